"""Checkpoints written as files that other programs load."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax import checkpoint, torch_files
from maskrcnn_jax.config import plain, stored_config
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.peer_models import NOTES, coco_rows
from maskrcnn_jax.weight_names import (
  NAMINGS,
  peer_names,
  rows_per_class,
  to_peer,
)

SUFFIXES = {'torchvision': ('.pth',), 'detectron2': ('.pkl', '.pth')}

# The score of a class that COCO never used.
_NEVER = -100.0


def export(
    source: pathlib.Path,
    destination: pathlib.Path,
    *,
    to: str,
    coco_91: bool = False,
) -> None:
  """Writes a checkpoint as a file that another program loads.

  Args:
    source: A checkpoint.
    destination: The file.
    to: 'torchvision' or 'detectron2'.
    coco_91: Whether rows are numbered by COCO's own ids, as in torchvision's
      weights; rows that COCO does not use never win.
  """
  if destination.exists():
    raise InputError(f'{destination} is there already; give a new file.')
  if destination.suffix not in SUFFIXES[to]:
    raise InputError(
        f'{destination} must end in {" or ".join(SUFFIXES[to])} for {to}.'
    )
  path = checkpoint.find_checkpoint(source)
  metadata = checkpoint.read_metadata(path)
  config = stored_config(metadata.config)
  if to == 'torchvision' and (
      config.model.norm == 'group' or config.model.box_convs
      or (config.model.stride_in_1x1 and config.model.depth >= 50)
  ):
    raise InputError(
        f'{path} has no like in torchvision, which knows neither group norm '
        'nor strides in 1x1 convolutions; try --to=detectron2.'
    )
  ids = [category[0] for category in metadata.categories]
  if coco_91 and (to != 'torchvision' or ids != list(COCO_CLASSES)):
    raise InputError(
        f"--coco_rows=91 is for torchvision and COCO's 80 classes; {path} has "
        f'{len(ids)} classes, to {to}.'
    )
  naming = NAMINGS[to]
  leaves = checkpoint.named_leaves(checkpoint.restore_model(
      path, checkpoint.nested({
          name: jax.ShapeDtypeStruct(shape, jnp.float32)
          for name, shape in checkpoint.model_shapes(path).items()
      })
  ))
  arrays = {}
  for name, leaf in leaves.items():
    array = to_peer(
        name, np.asarray(leaf), naming, box_side=config.roi.box_side
    )
    if coco_91 and rows_per_class(name):
      array = _spread_rows(name, array)
    arrays[peer_names(name, naming)[0]] = np.ascontiguousarray(array)

  conventions = plain({
      'geometry': config.geometry,
      'norm_eps': config.model.norm_eps,
      'stride_in_1x1': config.model.stride_in_1x1,
      'pixel_mean': config.data.pixel_mean,
      'pixel_std': config.data.pixel_std,
  })
  content = arrays
  if to == 'detectron2':
    content = {
        'model': arrays, '__author__': 'maskrcnn_jax',
        'matching_heuristics': False, NOTES: conventions,
    }
  destination.parent.mkdir(parents=True, exist_ok=True)
  write = {
      '.pth': torch_files.write_torch, '.pkl': torch_files.write_pickle
  }[destination.suffix]
  write(destination, content)
  print(f'{destination}: {len(arrays)} arrays for {to}')
  print('It expects ' + _settings(to, config, len(ids)))


def _spread_rows(name, array) -> np.ndarray:
  """Spreads rows of COCO's 80 classes over those of their ids."""
  per_class = rows_per_class(name)
  array = array.reshape(-1, per_class, *array.shape[1:])
  rows = np.zeros((max(COCO_CLASSES) + 1, *array.shape[1:]), np.float32)
  if name == 'params/box_head/cls_score/bias':
    rows[:] = _NEVER
  rows[coco_rows()] = array
  return rows.reshape(-1, *array.shape[2:])


def _settings(to, config, num_classes) -> str:
  """What the other program must be told."""
  mean, std = config.data.pixel_mean, config.data.pixel_std
  if to == 'detectron2':
    return (
        f'INPUT.FORMAT BGR, MODEL.PIXEL_MEAN {list(mean)[::-1]}, '
        f'MODEL.PIXEL_STD {list(std)[::-1]}, MODEL.RESNETS.DEPTH '
        f'{config.model.depth}, MODEL.RESNETS.STRIDE_IN_1X1 '
        f'{config.model.stride_in_1x1}, MODEL.ROI_HEADS.NUM_CLASSES '
        f'{num_classes}, and norms with eps {config.model.norm_eps:g}.'
    )
  return (
      f'image_mean={[round(x / 255, 6) for x in mean]}, '
      f'image_std={[round(x / 255, 6) for x in std]}, and FrozenBatchNorm2d '
      f'with eps={config.model.norm_eps:g}.'
  )
