"""Weights of other programs made into checkpoints, and back.

  python -m maskrcnn_jax.convert_weights SOURCE DEST [--source_format=FORMAT]
  python -m maskrcnn_jax.convert_weights CHECKPOINT DEST --to=FORMAT

SOURCE is a .pth, .pkl or .safetensors file of torchvision, detectron2,
maskrcnn-benchmark or Caffe2 (Detectron); DEST is a checkpoint directory for
--checkpoint and --init_from. The other way round CHECKPOINT is one and DEST a
file: .pth, or for detectron2 also .pkl. Nothing of these programs is needed,
and nothing in a file is run.

Exit status: 0 done, 1 failed while running, 2 wrong input.
"""

import argparse
import collections
import contextlib
import functools
import hashlib
import pathlib
import sys

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.config import plain
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

# Parts of the model that a file may lack as a whole. Of the heads it may also
# lack the layers whose size the number of classes decides.
PARTS = ('fpn', 'rpn', 'box_head', 'mask_head')


def convert(
  source: pathlib.Path,
  destination: pathlib.Path,
  *,
  source_format: str | None = None,
  names: list[list] | None = None,
  keep_91: bool = False,
  **unusual,
) -> None:
  """Makes a checkpoint of a weight file and prints what became of its arrays.

  Args:
    source: The file.
    destination: A directory that does not exist, or is empty.
    source_format: A key of NAMINGS; None to guess.
    names: The class table, [[id, name], ...].
    keep_91: See `class_table`.
    **unusual: norm_eps, stride_in_1x1 and pixel_order, where what is usual
      for the format is wrong.
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
      'say which with --to.'
    )
  if source.is_file():
    # Tells a damaged download, whatever else is wrong with it.
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
      arrays = _without_shared(arrays)
    naming = naming_of(
      arrays, facts, guessed, pixel_order=unusual.pop('pixel_order', None)
    )
    config = recipe_of(arrays, facts, guessed, **unusual)
    score = find('params/box_head/cls_score/kernel', arrays, guessed)
    num_classes = len(arrays[score]) if score else len(names or ()) + 1
    categories, rows = class_table(num_classes, names, keep_91=keep_91)
    model, missing, left = _take(
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
  _report(guessed, config, categories, model, left, missing)
  print(
    f'{destination} is '
    + (
      'a part of a model: for --init_from.'
      if missing
      else 'a checkpoint: for --checkpoint and --init_from.'
    )
  )


def _without_shared(arrays):
  """Drops what a C4 model's mask head shares with its box head."""
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


def _take(arrays, naming, source_format, config, num_classes, rows):
  """Returns our arrays by name, those not found, and names not used."""
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  shapes = checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))
  model, missing, used = {}, [], set()
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
      'or of a model that this program does not have.'
    )
  return model, missing, sorted(set(arrays) - used)


def _report(source_format, config, categories, model, left, missing) -> None:
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
  # Of one of these there are as many as there are norms.
  counters = [name for name in left if name.endswith('.num_batches_tracked')]
  left = [name for name in left if name not in counters]
  if counters:
    left.append(f'*.num_batches_tracked ({len(counters)})')
  for title, listed in (('left out', left), ('not found', missing)):
    print(f'{title}: {", ".join(listed) or "none"}')
  parts = collections.Counter(name.split('/')[1] for name in model)
  counts = ', '.join(f'{part} {n}' for part, n in sorted(parts.items()))
  print(f'loaded: {len(model)} arrays ({counts})')


def main() -> int:
  """Converts as the command line says."""
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.convert_weights',
    description=__doc__.split('\n\n')[0],
  )
  parser.add_argument('source', type=pathlib.Path)
  parser.add_argument('dest', type=pathlib.Path)
  parser.add_argument(
    '--source_format', choices=NAMINGS, help='guessed where left out'
  )
  parser.add_argument(
    '--to',
    choices=('torchvision', 'detectron2'),
    help='SOURCE is a checkpoint, DEST the file to write',
  )
  parser.add_argument(
    '--categories',
    type=pathlib.Path,
    metavar='FILE.json',
    help='a COCO JSON with the names of the classes',
  )
  parser.add_argument(
    '--coco_rows',
    type=int,
    choices=(81, 91),
    default=81,
    help="torchvision's weights have a row for each of COCO's ids: 91. Only "
    '80 of them are classes; 91 keeps, or with --to writes, all',
  )
  parser.add_argument(
    '--norm_eps',
    type=float,
    help="of frozen batch norm; 0 for torchvision's COCO_V1 weights saved "
    'anew by a later torchvision',
  )
  parser.add_argument('--stride_in_1x1', choices=('true', 'false'))
  parser.add_argument(
    '--pixel_order', choices=('rgb', 'bgr'), help='that the stem expects'
  )
  parser.error = functools.partial(_fail, status=2)
  flags = parser.parse_args()
  if flags.to:
    export(flags.source, flags.dest, to=flags.to, coco_91=flags.coco_rows == 91)
    return 0
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
  return 0


def run() -> None:
  """Entry point: turns errors into one line and an exit status."""
  logging.use_absl_handler()
  logging.set_stderrthreshold(logging.WARNING)
  try:
    sys.exit(main())
  except InputError as error:
    _fail(str(error), 2)
  except OSError as error:
    _fail(str(error), 1)


def _fail(message: str, status: int) -> None:
  print_error(message)
  sys.exit(status)


if __name__ == '__main__':
  run()
