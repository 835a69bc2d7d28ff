"""Converts weights of other programs to checkpoints."""

import collections
import contextlib
import hashlib
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskrcnn_jax.config import plain
from maskrcnn_jax.convert_weights import torch_files
from maskrcnn_jax.convert_weights.foreign_networks import (
  foreign_network,
  leftovers,
)
from maskrcnn_jax.convert_weights.peer_models import (
  Conventions,
  class_table,
  count_classes,
  find,
  guess_format,
  is_converted,
  naming_of,
  recipe_of,
)
from maskrcnn_jax.convert_weights.weight_names import (
  Naming,
  from_peer,
  peer_names,
  rows_per_class,
  to_peer,
)
from maskrcnn_jax.errors import InputError, print_lines
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.files import make_writable

# Parts of the model that a file may lack as a whole.
PARTS = ('fpn', 'rpn', 'box_head', 'mask_head')
# A file may also lack the predictors of its heads: the layers whose size
# depends on the number of classes, and the layer before that of the masks.
_PREDICTORS = (
  'box_head/cls_score',
  'box_head/bbox_pred',
  'mask_head/conv5_mask',
  'mask_head/mask_fcn_logits',
)
# So many names of arrays are listed in a message.
_MAX_LISTED = 5

_USUAL = Conventions()


class _StrangeValues(InputError):
  """Weights are not finite, or a variance is below 0."""


def convert(
  source: pathlib.Path,
  destination: pathlib.Path,
  *,
  source_format: str | None = None,
  names: list[list] | None = None,
  keep_91: bool = False,
  given: Conventions = _USUAL,
  key: str | None = None,
  prefix: str | None = None,
) -> None:
  """Writes a checkpoint with the weights of another program's file.

  Prints the kind of model that was recognised, the names of arrays that were
  not used, and the names of arrays that the file lacks.

  Args:
    source: The weight file.
    destination: Directory to write; it must be empty or not exist yet.
    source_format: Program that the file must come from, a key of `NAMINGS`.
      `None` accepts the format that is recognised.
    names: The classes, [[id, name], ...], in the order of their class numbers.
      `None` uses COCO's names if the number of classes is COCO's; otherwise the
      names are 'class 1', 'class 2' and so on.
    keep_91: Whether a file with a row for each of the ids 0 to 90 keeps the
      rows of the ids that COCO never used.
    given: Conventions of the weights that the user gives.
    key: Path of the dictionary that holds the weights, if the file has several,
      such as 'model_ema'. `None` takes one by a rule that is printed.
    prefix: Text before the names of the weights, such as 'module.'. `None`
      finds it. With a prefix, nothing beside these weights matters, so that the
      ResNet of any detector can be taken alone.

  Raises:
    InputError: If the destination is not empty or cannot be written, or if the
      file cannot be read, comes from another program than `source_format`, is
      damaged, or holds a model that this program does not have.
  """
  if destination.exists() and (
    not destination.is_dir() or any(destination.iterdir())
  ):
    raise InputError(
      f'C10: {destination} is there already; give a new directory.'
    )
  if source.is_dir():
    raise InputError(
      f'{source} is a directory; to write a checkpoint for another program, '
      'name the program with --to.'
    )
  if source.is_file():
    # Printed before the file is read, so that the checksum shows a damaged
    # download even if reading fails.
    with source.open('rb') as opened:
      checksum = hashlib.file_digest(opened, 'sha256').hexdigest()
    print_lines(f'{source}: sha256 {checksum}')
  file = torch_files.read_weights(source, key=key, prefix=prefix)
  arrays, facts = file.arrays, file.facts
  for note in file.notes:
    print_lines(note)
  try:
    _check_network(file, is_part=prefix is not None)
    guessed = guess_format(arrays)
    if source_format not in (None, guessed):
      raise InputError(
        f'holds weights of {guessed}, not of {source_format}; leave '
        '--source_format out.'
      )
    if guessed == 'maskrcnn_benchmark':
      arrays = _drop_shared_stage(arrays)
    naming = naming_of(arrays, facts, guessed, given.pixel_order)
    config = recipe_of(arrays, facts, guessed, given)
    categories, rows = class_table(
      count_classes(arrays, guessed, names), names, keep_91=keep_91
    )
    model, missing, unused = _convert_arrays(
      arrays, naming, guessed, config, len(categories) + 1, rows
    )
  except _StrangeValues as error:
    raise InputError(f'C14: {source} {error}') from error
  except InputError as error:
    raise InputError(f'C02: {source} {error}') from error

  make_writable(destination)
  with contextlib.closing(checkpoint.open_checkpoints(destination)) as manager:
    checkpoint.save_checkpoint(
      manager,
      model=checkpoint.nested(model),
      optimizer=None,
      metadata=checkpoint.Metadata(
        0,
        plain(config),
        categories,
        f'converted from {source.name}',
        is_partial=bool(missing),
      ),
    )
    manager.wait_until_finished()
    manager.check_for_errors()
  if guessed == 'detectron2' and is_converted(arrays, facts):
    print_lines(
      f'The author is {facts.get("__author__")!r}, so the weights are taken to '
      "be torchvision's ResNet in detectron2's names, with its conventions. "
      '--pixel_order, --pixel_mean, --pixel_std, --stride_in_1x1 and '
      '--norm_eps change them.'
    )
  if rows is not None:
    print_lines(
      'left out: the rows of the 10 ids that COCO never used, of 91. Scores '
      'become a little higher, because these rows had a share in the softmax; '
      '--coco_rows=91 keeps them.'
    )
  order = 'bgr' if naming.is_bgr else 'rgb'
  unused += _summary(file.outside)
  _report(guessed, config, order, categories, model, unused, missing)
  print_lines(
    f'{destination} is '
    + (
      'a part of a model: for --init_from.'
      if missing
      else 'a checkpoint: for --checkpoint and --init_from.'
    )
  )


def _drop_shared_stage(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Drops the mask head's copy of the ResNet stage that two heads share.

  In a C4 model of maskrcnn-benchmark, box head and mask head begin with the
  same ResNet stage, and the file holds it under the names of both heads.

  Args:
    arrays: Arrays of the file by name. The file of another model has no such
      copy, and nothing is dropped.

  Raises:
    InputError: If the two copies differ.
  """
  kept = {}
  for name, array in arrays.items():
    twin = name.replace(
      'roi_heads.mask.feature_extractor.head.',
      'roi_heads.box.feature_extractor.head.',
    )
    if name == twin or twin not in arrays:
      kept[name] = array
    elif not np.array_equal(array, arrays[twin]):
      raise InputError(
        f'has a mask head with a ResNet stage of its own ({name}); here the '
        "stage is the box head's."
      )
  return kept


def _convert_arrays(
  arrays: dict[str, np.ndarray],
  naming: Naming,
  source_format: str,
  config: ml_collections.ConfigDict,
  num_classes: int,
  rows: list[int] | None,
) -> tuple[dict[str, jax.Array], list[str], list[str]]:
  """Converts the arrays of a weight file to the arrays of our model.

  Args:
    arrays: Arrays of the file by name.
    naming: Names and layout of the file's program.
    source_format: That program, a key of `NAMINGS`.
    config: Recipe of the model.
    num_classes: Number of classes with background.
    rows: Rows of the class scores to keep, by index. `None` keeps all.

  Returns:
    model: Arrays of the model by our names.
    missing: Our names of arrays that the file lacks, if a model may lack them.
    unused: Names of arrays of the file that the model has no use for, sorted.

  Raises:
    InputError: If an array has another shape than expected or values that are
      not finite, if arrays inside the model are not used, or if the file has a
      part of the model without some of its arrays.
  """
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  shapes = checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))
  model: dict[str, jax.Array] = {}
  missing, used = [], set()
  strange: dict[str, str] = {}
  for name, expected in shapes.items():
    peer_name = find(name, arrays, source_format)
    if peer_name is None:
      leaf = name.split('/')[-1]
      if leaf in ('mean', 'var') and leaf not in naming.leaves:
        fill = jnp.zeros if leaf == 'mean' else jnp.ones
        model[name] = fill(expected.shape)
      else:
        missing.append(name)
      continue
    used.add(peer_name)
    array = arrays[peer_name]
    per_class = rows_per_class(name)
    if per_class and rows is not None:
      classes = np.asarray(rows)
      array = array.reshape(-1, per_class, *array.shape[1:])
      if len(array) <= classes.max():
        raise InputError(f'has {len(array)} rows of classes in {peer_name}.')
      array = array[classes].reshape(-1, *array.shape[2:])
    wanted = to_peer(
      name,
      np.broadcast_to(np.float32(0), expected.shape),
      naming,
      box_side=config.roi.box_side,
    ).shape
    if array.shape != wanted:
      raise InputError(
        f'does not fit: {peer_name} is {array.shape}, {wanted} was expected '
        'for a model like the rest of the file.'
      )
    array = from_peer(name, array, naming, box_side=config.roi.box_side)
    with np.errstate(over='ignore'):  # Infinity is found below.
      array = np.ascontiguousarray(array, np.float32)
    count = array.size - np.isfinite(array).sum()
    if count:
      strange[peer_name] = f'{count} of {array.size} not finite'
    elif name.endswith('/var') and array.min() < 0:
      strange[peer_name] = 'a variance below 0'
    model[name] = jnp.asarray(array)
  if strange:
    raise _StrangeValues(
      f'has values that no trained model has: '
      f'{_listed([f"{name} ({text})" for name, text in strange.items()])}. The '
      'training that wrote it has diverged; take an earlier checkpoint of it.'
    )
  unused = sorted(set(arrays) - used)
  inside = leftovers(unused, used)
  if inside:
    raise InputError(
      f'has {len(inside)} arrays inside the model that this program has no '
      f'place for: {_listed(inside)}. It belongs to another network; take one '
      'with a plain ResNet or ResNeXt.'
    )
  lacking = {
    part
    for part in PARTS
    if not any(name.split('/')[1] == part for name in model)
  }
  broken = [
    name
    for name in missing
    if name.split('/')[1] not in lacking
    and '/'.join(name.split('/')[1:3]) not in _PREDICTORS
  ]
  if broken:
    raise InputError(
      f'lacks {len(broken)} arrays of parts that it has otherwise, such as '
      f'{peer_names(broken[0], naming)[0]} ({broken[0]} here): it is damaged '
      'or belongs to a model that this program does not have.'
    )
  return model, missing, unused


def _check_network(file: torch_files.WeightFile, *, is_part: bool) -> None:
  """Refuses a network that this program does not have, by its name.

  Args:
    file: The weight file.
    is_part: Whether only the arrays after a prefix were asked for. The arrays
      around them are then not looked at.

  Raises:
    InputError: If it is such a network.
  """
  outside = None if is_part else file.outside
  has_resnet = file.backbone is not None
  network = foreign_network(file.arrays, outside, has_resnet=has_resnet)
  if network is None:
    return
  name, shown_by, instead = network
  if file.backbone is not None:
    start = file.backbone.removeprefix(file.prefix)
    resnet = (x for x in file.arrays if x.startswith(start))
    if foreign_network(resnet, None, has_resnet=True) is None:
      instead += (
        f', or its ResNet alone with --prefix={file.backbone} for --init_from'
      )
  raise InputError(
    f'holds {name} (it has {shown_by}), which this program does not have; '
    f'{instead}.'
  )


def _listed(names: list[str]) -> str:
  """Returns the first names of a list, and the number of the others."""
  more = len(names) - _MAX_LISTED
  shown = ', '.join(names[:_MAX_LISTED])
  return f'{shown} and {more} more' if more > 0 else shown


def _summary(names: list[str]) -> list[str]:
  """Groups names by their first part: 'encoder_k.* (267)'."""
  groups = collections.Counter(name.partition('.')[0] for name in names)
  return [
    f'{first}.* ({count})' if count > 1 else first
    for first, count in sorted(groups.items())
  ]


def _report(
  source_format: str,
  config: ml_collections.ConfigDict,
  pixel_order: str,
  categories: list[list],
  model: dict[str, jax.Array],
  unused: list[str],
  missing: list[str],
) -> None:
  """Prints the model, its conventions, and the arrays left out or missing.

  Args:
    source_format: Program that the file comes from, a key of `NAMINGS`.
    config: Recipe of the model.
    pixel_order: Channel order of the file's first convolution.
    categories: The classes, [[id, name], ...].
    model: Arrays of the checkpoint by our names.
    unused: Names of arrays of the file that are not in the checkpoint.
    missing: Our names of arrays of the model that the file lacks.
  """
  sizes = config.model
  network = f'ResNet-{sizes.depth}'
  if sizes.groups > 1:
    network = f'ResNeXt-{sizes.depth} {sizes.groups}x{sizes.group_width}d'
  print_lines(
    f'{source_format}: {network}, {sizes.body}, for {sizes.output}, norm '
    f'{sizes.norm}, {len(categories)} classes; taken to be of '
    f'geometry {config.geometry}, norm_eps {config.model.norm_eps:g}, '
    f'antialias {config.data.antialias}, stride_in_1x1 '
    f'{config.model.stride_in_1x1}, pixel_order {pixel_order}, pixel_mean '
    f'{tuple(config.data.pixel_mean)}, pixel_std '
    f'{tuple(config.data.pixel_std)}'
  )
  # Each norm has such a counter; one entry stands for all of them.
  counters = [name for name in unused if name.endswith('.num_batches_tracked')]
  unused = [name for name in unused if name not in counters]
  if counters:
    unused.append(f'*.num_batches_tracked ({len(counters)})')
  for title, listed in (('left out', unused), ('not found', missing)):
    print_lines(f'{title}: {", ".join(listed) or "none"}')
  parts = collections.Counter(name.split('/')[1] for name in model)
  counts = ', '.join(f'{part} {n}' for part, n in sorted(parts.items()))
  print_lines(f'loaded: {len(model)} arrays ({counts})')
