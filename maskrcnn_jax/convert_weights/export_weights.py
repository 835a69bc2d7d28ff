"""Writes checkpoints as weight files for other programs."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from maskrcnn_jax.config import (
  default_config,
  geometry_of,
  plain,
  stored_config,
)
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.convert_weights import torch_files
from maskrcnn_jax.convert_weights.peer_models import (
  NOTED_KEYS,
  NOTES,
  coco_rows,
)
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  peer_names,
  rows_per_class,
  to_peer,
)
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.errors import InputError, print_lines
from maskrcnn_jax.geometry import PRESETS, Geometry
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.runtime.files import make_writable

SUFFIXES = {'torchvision': ('.pth',), 'detectron2': ('.pkl', '.pth')}

# The geometry, a key of `PRESETS`, that each program computes with.
_GEOMETRIES = {'torchvision': 'torchvision', 'detectron2': 'modern'}

# Bias of the score of an id that COCO never used. exp(-100) is 0 beside the
# scores of real classes, so that it is never detected.
_NEVER = -100.0


def export(
  source: pathlib.Path,
  destination: pathlib.Path,
  *,
  to: str,
  coco_91: bool = False,
) -> None:
  """Writes the weights of a checkpoint as a file for another program.

  Prints the settings with which the other program must load the file, and the
  computations in which it differs from ours.

  Args:
    source: Directory of a checkpoint.
    destination: File to write; it must not exist yet.
    to: Program that will load the file: 'torchvision' or 'detectron2'.
    coco_91: Whether to write a row for each of the ids 0 to 90, as torchvision
      has for COCO, not only for the 80 classes. The rows of ids that COCO never
      used get scores so low that they are never detected.

  Raises:
    InputError: If the destination exists, has another suffix than the files of
      the program, or cannot be written; if there is no readable checkpoint; if
      the program does not have the model; or if `coco_91` is given for another
      program than torchvision or for other classes than COCO's.
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
  if config.model.backbone != 'resnet':
    raise InputError(
      f'{path} has the backbone {config.model.backbone!r}; only models with a '
      'ResNet can be written for other programs.'
    )
  if to == 'torchvision' and config.model.body != 'fpn':
    raise InputError(
      f'{path} has no equivalent in torchvision, whose detectors have a '
      f'pyramid, not the body {config.model.body!r}; try --to=detectron2.'
    )
  if to == 'torchvision' and (
    config.model.norm == 'group'
    or config.model.box_convs
    or (config.model.stride_in_1x1 and config.model.depth >= 50)
  ):
    raise InputError(
      f'{path} has no equivalent in torchvision, which has neither group norm '
      'nor strides in 1x1 convolutions; try --to=detectron2.'
    )
  ids = [category[0] for category in metadata.categories]
  if coco_91 and (to != 'torchvision' or ids != list(COCO_CLASSES)):
    raise InputError(
      f"--coco_rows=91 is for --to=torchvision and COCO's 80 classes; {path} "
      f'has {len(ids)} classes and is written for {to}. Leave it out.'
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
    their_name = _name_to_write(peer_names(name, naming), config.model.body)
    arrays[their_name] = np.ascontiguousarray(array)

  geometry = geometry_of(config)
  conventions = plain(
    {
      'body': config.model.body,
      'geometry': config.geometry,
      'norm_eps': config.model.norm_eps,
      'stride_in_1x1': config.model.stride_in_1x1,
      'pixel_mean': geometry.input_format.mean,
      'pixel_std': geometry.input_format.std,
      'antialias': geometry.input_format.antialias,
      **{name: value_of(config, name) for name in NOTED_KEYS},
    }
  )
  content: dict[str, Any] = arrays
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
  print_lines(f'{destination}: {len(arrays)} arrays for {to}')
  num_classes = max(COCO_CLASSES) if coco_91 else len(ids)
  settings = _settings(to, config, geometry, num_classes)
  print_lines(f'It expects {", ".join(settings)}.')
  differences = _differences(to, geometry)
  if differences:
    print_lines(
      f'{to} computes otherwise than geometry {geometry.name}, and no setting '
      f'changes that: {"; ".join(differences)}. The AP may be lower.'
    )


def _name_to_write(names: tuple[str, ...], body: str) -> str:
  """Returns the name of an array in the file that is written.

  detectron2 has the ResNet below a pyramid in `backbone.bottom_up`. Without a
  pyramid the ResNet is `backbone` itself, and the last stage of a C4 model
  belongs to its `roi_heads`.

  Args:
    names: The names that the array has in files of the other program.
    body: `config.model.body` of the model.
  """
  if body == 'fpn' or not names[0].startswith('backbone.bottom_up.'):
    return names[0]
  in_heads = [name for name in names if name.startswith('roi_heads.')]
  if body == 'c4' and in_heads:
    return in_heads[0]
  return next(name for name in names[1:] if name.startswith('backbone.'))


def _spread_rows(name: str, array: np.ndarray) -> np.ndarray:
  """Moves the row of each of COCO's 80 classes to the index of its id, 1 to 90.

  Args:
    name: Our name of the array.
    array: Array as the other program lays it out: [rows, ...] with the rows of
      background first, then of each class.

  Returns:
    Array with the rows of 91 classes. The rows of ids that COCO never used are
    0, or `_NEVER` in the bias of the class scores.
  """
  per_class = rows_per_class(name)
  array = array.reshape(-1, per_class, *array.shape[1:])
  rows = np.zeros((max(COCO_CLASSES) + 1, *array.shape[1:]), np.float32)
  if name == 'params/box_head/cls_score/bias':
    rows[:] = _NEVER
  rows[coco_rows()] = array
  return rows.reshape(-1, *array.shape[2:])


def _settings(
  to: str,
  config: ml_collections.ConfigDict,
  geometry: Geometry,
  num_classes: int,
) -> list[str]:
  """Lists the settings with which another program must load the weights.

  The sizes of images, the anchors and the kind of RoIAlign are listed only if
  they differ from the usual ones.

  Args:
    to: The program, 'torchvision' or 'detectron2'.
    config: Recipe of the checkpoint.
    geometry: How the checkpoint measures and rounds boxes. Only its pixel mean
      and deviation and its rules of RoIAlign are used. The program has no
      settings for the rest, which `_differences` lists.
    num_classes: Number of classes in the file, without background.

  Returns:
    Clauses for the message to the user. Most are settings as that program
    writes them, such as 'INPUT.FORMAT BGR'; some name two settings.
  """
  mean, std = geometry.input_format.mean, geometry.input_format.std
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
    if geometry.sampling_ratio != PRESETS['torchvision'].sampling_ratio:
      settings.append(
        'box_roi_pool and mask_roi_pool with sampling_ratio='
        f'{geometry.sampling_ratio}'
      )
    return settings
  base = {
    'fpn': 'Base-RCNN-FPN.yaml',
    'c4': 'Base-RCNN-C4.yaml',
    'c5': 'Base-RCNN-DilatedC5.yaml with MODEL.RESNETS.RES5_DILATION 1',
    'dc5': 'Base-RCNN-DilatedC5.yaml',
  }[config.model.body]
  settings = [
    f'_BASE_ {base}',
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
    if geometry.sampling_ratio:
      settings.append(
        f'MODEL.{part}.POOLER_SAMPLING_RATIO {geometry.sampling_ratio}'
      )
    if not geometry.roi_offset:
      settings.append(f'MODEL.{part}.POOLER_TYPE ROIAlign')
  return settings


def _differences(to: str, geometry: Geometry) -> list[str]:
  """Lists how another program computes otherwise, whatever its settings are.

  Args:
    to: The program, 'torchvision' or 'detectron2'.
    geometry: Geometry of the checkpoint, which this program computes with.

  Returns:
    A clause for each difference, for the message to the user.
  """
  theirs = PRESETS[_GEOMETRIES[to]]
  lines = []
  # detectron2 has both kinds of RoIAlign.
  if to == 'torchvision' and geometry.roi_offset != theirs.roi_offset:
    lines.append(
      f'its RoIAlign moves boxes by {theirs.roi_offset:g} of a cell, not by '
      f'{geometry.roi_offset:g} ("aligned")'
    )
  if geometry.anchor_rounding != theirs.anchor_rounding:
    lines.append(
      f'its anchors are rounded by the rule {theirs.anchor_rounding!r}, not '
      f'{geometry.anchor_rounding!r}'
    )
  if geometry.fit_strides != theirs.fit_strides:
    rules = {True: "the padded image's side over the cells", False: '2**level'}
    lines.append(
      f'the stride of its anchors is {rules[theirs.fit_strides]}, not '
      f'{rules[geometry.fit_strides]}'
    )
  if geometry.width_offset != theirs.width_offset:
    lines.append(
      f'its boxes are x2 - x1 + {theirs.width_offset:g} wide, not x2 - x1 + '
      f'{geometry.width_offset:g}'
    )
  if geometry.paste_rule != theirs.paste_rule:
    lines.append('it pastes masks by another rule')
  antialias = theirs.input_format.antialias
  if geometry.input_format.antialias != antialias:
    averages = {True: 'averages', False: 'does not average'}
    lines.append(f'it {averages[antialias]} over pixels when it shrinks images')
  return lines
