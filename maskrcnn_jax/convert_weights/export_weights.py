"""Checkpoints written as files that other programs load."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.config import (
  default_config,
  geometry_of,
  plain,
  stored_config,
)
from maskrcnn_jax.convert_weights import torch_files
from maskrcnn_jax.convert_weights.peer_models import NOTES, coco_rows
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  peer_names,
  rows_per_class,
  to_peer,
)
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.geometry import PRESETS, Geometry
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.files import make_writable

SUFFIXES = {'torchvision': ('.pth',), 'detectron2': ('.pkl', '.pth')}

# What a program calls the conventions that it computes with.
_GEOMETRIES = {'torchvision': 'torchvision', 'detectron2': 'modern'}

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
  config = stored_config(metadata.recipe)
  if to == 'torchvision' and (
    config.model.norm == 'group'
    or config.model.box_convs
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
  make_writable(destination.parent)
  naming = NAMINGS[to]
  leaves = checkpoint.named_leaves(
    checkpoint.restore_model(
      path,
      checkpoint.nested(
        {
          name: jax.ShapeDtypeStruct(shape, jnp.float32)
          for name, shape in checkpoint.model_shapes(path).items()
        }
      ),
    )
  )
  arrays = {}
  for name, leaf in leaves.items():
    array = to_peer(
      name, np.asarray(leaf), naming, box_side=config.roi.box_side
    )
    if coco_91 and rows_per_class(name):
      array = _spread_rows(name, array)
    arrays[peer_names(name, naming)[0]] = np.ascontiguousarray(array)

  shape = geometry_of(config)
  conventions = plain(
    {
      'geometry': config.geometry,
      'norm_eps': config.model.norm_eps,
      'stride_in_1x1': config.model.stride_in_1x1,
      'pixel_mean': shape.input_format.mean,
      'pixel_std': shape.input_format.std,
      'antialias': shape.input_format.antialias,
    }
  )
  content = arrays
  if to == 'detectron2':
    content = {
      'model': arrays,
      '__author__': 'maskrcnn_jax',
      'matching_heuristics': False,
      NOTES: conventions,
    }
  write = {'.pth': torch_files.write_torch, '.pkl': torch_files.write_pickle}[
    destination.suffix
  ]
  write(destination, content)
  print(f'{destination}: {len(arrays)} arrays for {to}')
  print(f'It expects {", ".join(_settings(to, config, shape, len(ids)))}.')
  differences = _differences(to, shape)
  if differences:
    print(
      f'{to} computes otherwise than geometry {shape.name}, and no setting '
      f'changes that: {"; ".join(differences)}. The AP may be lower.'
    )


def _spread_rows(name, array) -> np.ndarray:
  """Spreads rows of COCO's 80 classes over those of their ids."""
  per_class = rows_per_class(name)
  array = array.reshape(-1, per_class, *array.shape[1:])
  rows = np.zeros((max(COCO_CLASSES) + 1, *array.shape[1:]), np.float32)
  if name == 'params/box_head/cls_score/bias':
    rows[:] = _NEVER
  rows[coco_rows()] = array
  return rows.reshape(-1, *array.shape[2:])


def _settings(to, config, shape: Geometry, num_classes: int) -> list[str]:
  """What the other program must be told."""
  mean, std = shape.input_format.mean, shape.input_format.std
  usual = default_config()
  sizes = tuple(map(tuple, config.anchors.sizes))
  ratios = tuple(config.anchors.ratios)
  other_anchors = (sizes, ratios) != (usual.anchors.sizes, usual.anchors.ratios)
  sides = config.data.short_side, config.data.long_side
  other_sides = sides != (usual.data.short_side, usual.data.long_side)
  eps = f'{config.model.norm_eps:g}'
  if to == 'torchvision':
    settings = [
      f'image_mean={[round(x / 255, 6) for x in mean]}',
      f'image_std={[round(x / 255, 6) for x in std]}',
      f'num_classes={num_classes + 1} (with background)',
      f'FrozenBatchNorm2d with eps={eps}',
    ]
    if other_sides:
      settings.append(f'min_size={sides[0]}, max_size={sides[1]}')
    if other_anchors:
      settings.append(
        f'rpn_anchor_generator=AnchorGenerator(sizes={sizes}, '
        f'aspect_ratios={(ratios,) * len(sizes)})'
      )
    if shape.sampling_ratio != PRESETS['torchvision'].sampling_ratio:
      settings.append(
        'box_roi_pool and mask_roi_pool with sampling_ratio='
        f'{shape.sampling_ratio}'
      )
    return settings
  settings = [
    'INPUT.FORMAT BGR',
    f'MODEL.PIXEL_MEAN {list(mean)[::-1]}',
    f'MODEL.PIXEL_STD {list(std)[::-1]}',
    f'MODEL.RESNETS.DEPTH {config.model.depth}',
    f'MODEL.RESNETS.STRIDE_IN_1X1 {config.model.stride_in_1x1}',
    f'MODEL.ROI_HEADS.NUM_CLASSES {num_classes}',
    f'norms with eps {eps}',
  ]
  if other_sides:
    settings.append(
      f'INPUT.MIN_SIZE_TEST {sides[0]}, INPUT.MAX_SIZE_TEST {sides[1]}'
    )
  if other_anchors:
    settings.append(
      f'MODEL.ANCHOR_GENERATOR.SIZES {plain(sizes)}, '
      f'MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS {plain((ratios,))}'
    )
  for part in ('ROI_BOX_HEAD', 'ROI_MASK_HEAD'):
    if shape.sampling_ratio:
      settings.append(
        f'MODEL.{part}.POOLER_SAMPLING_RATIO {shape.sampling_ratio}'
      )
    if not shape.roi_offset:
      settings.append(f'MODEL.{part}.POOLER_TYPE ROIAlign')
  return settings


def _differences(to: str, shape: Geometry) -> list[str]:
  """What the other program computes otherwise, whatever it is told."""
  theirs = PRESETS[_GEOMETRIES[to]]
  lines = []
  # detectron2 has either.
  if to == 'torchvision' and shape.roi_offset != theirs.roi_offset:
    lines.append(
      f'its RoIAlign moves boxes by {theirs.roi_offset:g} of a cell, not by '
      f'{shape.roi_offset:g} ("aligned")'
    )
  if shape.anchor_rounding != theirs.anchor_rounding:
    lines.append(
      f'its anchors are rounded by the rule {theirs.anchor_rounding!r}, not '
      f'{shape.anchor_rounding!r}'
    )
  if shape.fit_strides != theirs.fit_strides:
    rules = {True: "the padded image's side over the cells", False: '2**level'}
    lines.append(
      f'the stride of its anchors is {rules[theirs.fit_strides]}, not '
      f'{rules[shape.fit_strides]}'
    )
  if shape.width_offset != theirs.width_offset:
    lines.append(
      f'its boxes are x2 - x1 + {theirs.width_offset:g} wide, not x2 - x1 + '
      f'{shape.width_offset:g}'
    )
  if shape.paste_rule != theirs.paste_rule:
    lines.append('it pastes masks by another rule')
  antialias = theirs.input_format.antialias
  if shape.input_format.antialias != antialias:
    averages = {True: 'averages', False: 'does not average'}
    lines.append(f'it {averages[antialias]} over pixels when it shrinks images')
  return lines
