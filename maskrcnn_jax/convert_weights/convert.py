"""Converts weights of other programs to checkpoints, and checkpoints back.

  python -m maskrcnn_jax.convert_weights SOURCE DEST [--source_format=FORMAT]
  python -m maskrcnn_jax.convert_weights CHECKPOINT DEST --to=FORMAT

In the first form, SOURCE is a .pth, .pkl or .safetensors file of torchvision,
detectron2, maskrcnn-benchmark or Caffe2 (Detectron). DEST becomes a checkpoint
directory for --checkpoint and --init_from. In the second form, CHECKPOINT is a
checkpoint directory and DEST becomes a .pth file; for detectron2 it may also be
a .pkl file. None of these programs needs to be installed. No code that a file
contains or names is run.

Exit status: 0 done, 1 failed while running, 2 wrong input.
"""

import argparse
import collections
import contextlib
import hashlib
import pathlib
import sys
from typing import NoReturn

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskrcnn_jax.config import plain
from maskrcnn_jax.config.command_line import with_underscores
from maskrcnn_jax.convert_weights import torch_files
from maskrcnn_jax.convert_weights.export_weights import export
from maskrcnn_jax.convert_weights.peer_models import (
  class_table,
  find,
  guess_format,
  naming_of,
  recipe_of,
)
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  Naming,
  from_peer,
  peer_names,
  rows_per_class,
  to_peer,
)
from maskrcnn_jax.data import coco
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.files import make_writable

# Parts of the model that a file may lack as a whole. A file may also lack the
# single layers of a head whose size depends on the number of classes.
PARTS = ('fpn', 'rpn', 'box_head', 'mask_head')


def convert(
  source: pathlib.Path,
  destination: pathlib.Path,
  *,
  source_format: str | None = None,
  names: list[list] | None = None,
  keep_91: bool = False,
  norm_eps: float | None = None,
  stride_in_1x1: bool | None = None,
  pixel_order: str | None = None,
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
    norm_eps: Epsilon of the frozen batch norm. Here and in the next two
      arguments, `None` uses the value that the file shows or, without one, the
      usual value of the program.
    stride_in_1x1: Whether the first convolution of a bottleneck, which is 1x1,
      has the stride, not the second.
    pixel_order: Channel order that the first convolution expects, 'rgb' or
      'bgr'.

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
    with source.open('rb') as file:
      checksum = hashlib.file_digest(file, 'sha256').hexdigest()
    print(f'{source}: sha256 {checksum}')
  arrays, facts = torch_files.read_weights(source)
  try:
    guessed = guess_format(arrays)
    if source_format not in (None, guessed):
      raise InputError(
        f'holds weights of {guessed}, not of {source_format}; leave '
        '--source_format out.'
      )
    if guessed == 'maskrcnn_benchmark':
      arrays = _drop_shared_stage(arrays)
    naming = naming_of(arrays, facts, guessed, pixel_order=pixel_order)
    config = recipe_of(
      arrays,
      facts,
      guessed,
      norm_eps=norm_eps,
      stride_in_1x1=stride_in_1x1,
    )
    scores_name = find('params/box_head/cls_score/kernel', arrays, guessed)
    num_classes = (
      len(arrays[scores_name]) if scores_name else len(names or ()) + 1
    )
    categories, rows = class_table(num_classes, names, keep_91=keep_91)
    model, missing, unused = _convert_arrays(
      arrays, naming, guessed, config, len(categories) + 1, rows
    )
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
  _report(guessed, config, categories, model, unused, missing)
  print(
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
    InputError: If an array has another shape than expected, or if the file has
      a part of the model without some of its arrays.
  """
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  shapes = checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))
  model: dict[str, jax.Array] = {}
  missing, used = [], set()
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
    model[name] = jnp.asarray(np.ascontiguousarray(array, np.float32))

  lacking = {
    part
    for part in PARTS
    if not any(name.split('/')[1] == part for name in model)
  }
  broken = [
    name
    for name in missing
    if name.split('/')[1] not in lacking and not rows_per_class(name)
  ]
  if broken:
    raise InputError(
      f'lacks {len(broken)} arrays of parts that it has otherwise, such as '
      f'{peer_names(broken[0], naming)[0]} ({broken[0]} here): it is damaged '
      'or belongs to a model that this program does not have.'
    )
  return model, missing, sorted(set(arrays) - used)


def _report(
  source_format: str,
  config: ml_collections.ConfigDict,
  categories: list[list],
  model: dict[str, jax.Array],
  unused: list[str],
  missing: list[str],
) -> None:
  """Prints the model, its conventions, and the arrays left out or missing.

  Args:
    source_format: Program that the file comes from, a key of `NAMINGS`.
    config: Recipe of the model.
    categories: The classes, [[id, name], ...].
    model: Arrays of the checkpoint by our names.
    unused: Names of arrays of the file that are not in the checkpoint.
    missing: Our names of arrays of the model that the file lacks.
  """
  sizes = config.model
  network = f'ResNet-{sizes.depth}'
  if sizes.groups > 1:
    network = f'ResNeXt-{sizes.depth} {sizes.groups}x{sizes.group_width}d'
  print(
    f'{source_format}: {network}, {sizes.body}, for {sizes.output}, norm '
    f'{sizes.norm}, {len(categories)} classes; taken to be of '
    f'geometry {config.geometry}, norm_eps {config.model.norm_eps:g}, '
    f'antialias {config.data.antialias}, stride_in_1x1 '
    f'{config.model.stride_in_1x1}, pixel_mean '
    f'{tuple(config.data.pixel_mean)}, pixel_std '
    f'{tuple(config.data.pixel_std)}'
  )
  # Each norm has such a counter; one entry stands for all of them.
  counters = [name for name in unused if name.endswith('.num_batches_tracked')]
  unused = [name for name in unused if name not in counters]
  if counters:
    unused.append(f'*.num_batches_tracked ({len(counters)})')
  for title, listed in (('left out', unused), ('not found', missing)):
    print(f'{title}: {", ".join(listed) or "none"}')
  parts = collections.Counter(name.split('/')[1] for name in model)
  counts = ', '.join(f'{part} {n}' for part, n in sorted(parts.items()))
  print(f'loaded: {len(model)} arrays ({counts})')


class _Parser(argparse.ArgumentParser):
  """Reports a wrong argument in one line, as other wrong input is reported."""

  def error(self, message: str) -> NoReturn:
    """Prints the message and ends the program with exit status 2."""
    _fail(message, 2)


def main() -> None:
  """Converts the file or the checkpoint that the command line names."""
  parser = _Parser(
    prog='python -m maskrcnn_jax.convert_weights',
    description=__doc__.split('\n\n')[0],
  )
  parser.add_argument(
    'source', type=pathlib.Path, help='weight file, or a checkpoint with --to'
  )
  parser.add_argument(
    'dest',
    type=pathlib.Path,
    help='checkpoint directory to write, or a weight file with --to',
  )
  parser.add_argument(
    '--source_format',
    choices=NAMINGS,
    help='program that the weight file must come from; recognised by default',
  )
  parser.add_argument(
    '--to',
    choices=('torchvision', 'detectron2'),
    help='program to write a weight file for; SOURCE is then a checkpoint',
  )
  parser.add_argument(
    '--categories',
    type=pathlib.Path,
    metavar='FILE.json',
    help='COCO JSON file with the names of the classes',
  )
  parser.add_argument(
    '--coco_rows',
    type=int,
    choices=(81, 91),
    default=81,
    help='number of rows of the class scores, with background. torchvision has '
    "91, one for each id up to COCO's largest, but only 80 ids are classes: "
    '91 keeps all rows, or writes all with --to. Default: 81',
  )
  parser.add_argument(
    '--norm_eps',
    type=float,
    help='epsilon of the frozen batch norm, if not the usual one of the '
    "program; 0 for torchvision's COCO_V1 weights that a later torchvision "
    'has saved again',
  )
  parser.add_argument(
    '--stride_in_1x1',
    choices=('true', 'false'),
    help='whether the first 1x1 convolution of a bottleneck has the stride, if '
    'not as usual for the program',
  )
  parser.add_argument(
    '--pixel_order',
    choices=('rgb', 'bgr'),
    help='channel order that the first convolution expects, if not the usual '
    'one of the program',
  )
  flags = parser.parse_args(with_underscores(sys.argv[1:]))
  if flags.to:
    export(flags.source, flags.dest, to=flags.to, coco_91=flags.coco_rows == 91)
    return
  names = None
  if flags.categories:
    index = coco.read_coco(flags.categories, require_masks=False)
    names = [list(category) for category in index.categories]
  stride = flags.stride_in_1x1
  convert(
    flags.source,
    flags.dest,
    source_format=flags.source_format,
    names=names,
    keep_91=flags.coco_rows == 91,
    norm_eps=flags.norm_eps,
    stride_in_1x1=None if stride is None else stride == 'true',
    pixel_order=flags.pixel_order,
  )


def run() -> NoReturn:
  """Runs the tool; an error ends it with a line of text and an exit status."""
  logging.use_absl_handler()
  logging.set_stderrthreshold(logging.WARNING)
  try:
    main()
    sys.exit(0)
  except InputError as error:
    _fail(str(error), 2)
  except OSError as error:
    _fail(str(error), 1)


def _fail(message: str, status: int) -> NoReturn:
  """Prints an error message and ends the program with an exit status."""
  print_error(message)
  sys.exit(status)


if __name__ == '__main__':
  run()
