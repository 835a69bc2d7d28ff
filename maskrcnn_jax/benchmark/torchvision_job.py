"""The work of torchvision's program: its model, its images and its weights."""

import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from maskrcnn_jax.benchmark import step_speed
from maskrcnn_jax.benchmark.images import Images
from maskrcnn_jax.config import geometry_of, heads_of
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  from_peer,
  peer_names,
)
from maskrcnn_jax.data.outlines import fill_outline
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint


class Setting(NamedTuple):
  """A way to run torchvision."""

  name: str  # for the table
  autocast: str = ''  # 'bf16', 'fp16', or '' for no autocast
  channels_last: bool = False  # whether channels are the innermost axis
  wait_policy: str = ''  # of OpenMP: 'ACTIVE', 'PASSIVE', or '' for its default
  huge_pages: bool = False  # whether the C library asks for huge pages
  tf32: bool | None = None  # None leaves torch's own choice
  tunes: bool = False  # whether cuDNN tries several algorithms first


def settings_for(platform: str, precision: str) -> list[Setting]:
  """Returns the settings of torchvision to compare with, its default first.

  Args:
    platform: 'cpu' or 'cuda'.
    precision: Precision of this program, such as 'bf16'.
  """
  autocast = precision if precision in ('bf16', 'fp16') else ''
  start = f'{autocast} autocast, ' if autocast else ''
  if platform == 'cpu':
    fast = Setting(f'{start}channels_last', autocast, True)
    settings = [Setting('default')]
    if autocast:
      settings.append(Setting(f'{autocast} autocast', autocast))
    return settings + [
      fast,
      *(
        fast._replace(
          name=f'{fast.name}, OMP_WAIT_POLICY={policy}', wait_policy=policy
        )
        for policy in ('PASSIVE', 'ACTIVE')
      ),
      # This program's own command has huge pages too.
      fast._replace(name=f'{fast.name}, huge pages', huge_pages=True),
    ]
  tf32 = None if autocast else precision == 'tf32'
  if not autocast:
    start = 'TF32, ' if tf32 else 'no TF32, '
  fast = Setting(f'{start}channels_last', autocast, True, tf32=tf32)
  return [
    Setting('default (TF32 in convolutions)'),
    fast._replace(name=start.rstrip(', '), channels_last=False),
    fast,
    # The number of RoIs of the mask head changes from step to step, and cuDNN
    # tries the algorithms again for each number.
    fast._replace(name=f'{fast.name}, cudnn.benchmark', tunes=True),
  ]


def model_settings(
  images: Images, options: step_speed.Options
) -> dict[str, Any]:
  """Returns the arguments of `torchvision_steps.build_model` for a recipe.

  Args:
    images: The images, with the recipe.
    options: The work that is timed. Made-up images keep their size.

  Raises:
    InputError: If torchvision has no counterpart of the recipe.
  """
  config = images.config
  model, rpn, roi, data = config.model, config.rpn, config.roi, config.data
  box_head = model.box_convs, model.box_fcs
  for key, value, is_there in (
    ('model.backbone', model.backbone, model.backbone == 'resnet'),
    ('model.body', model.body, model.body == 'fpn'),
    ('model.output', model.output, heads_of(config).boxes),
    ('model.norm', model.norm, model.norm in ('frozen_batch', 'group')),
    ('model.width', model.width, model.width == 64),
    (
      'model.stride_in_1x1',
      model.stride_in_1x1,
      not model.stride_in_1x1 or model.depth < 50,
    ),
    (
      '(model.box_convs, model.box_fcs)',
      box_head,
      box_head in ((0, 2), (4, 1)),
    ),
    ('model.mask_convs', model.mask_convs, model.mask_convs > 0),
    ('data.scale_jitter', data.scale_jitter, not data.scale_jitter),
    ('data.color_jitter', data.color_jitter, not any(data.color_jitter)),
  ):
    if not is_there:
      raise InputError(
        f'--compare=torchvision: torchvision has no counterpart of config.{key}'
        f'={value}. --config=r50_fpn has one.'
      )
  geometry = geometry_of(config)
  mean, std = geometry.input_format.rgb_255()
  sides: tuple[Any, int] = (
    list(data.short_sides) or data.short_side,
    data.long_side,
  )
  if options.source is None:
    sides = min(options.image_size), max(options.image_size)
  return {
    'depth': model.depth,
    'norm': model.norm,
    # torchvision has these two arguments for bottleneck blocks only.
    'resnet': {'groups': model.groups, 'width_per_group': model.group_width}
    if model.depth >= 50
    else {},
    'freeze_at': config.freeze_at,
    'masks': heads_of(config).masks,
    'num_classes': images.num_classes,
    'sampling_ratio': geometry.sampling_ratio,
    'box_side': roi.box_side,
    'mask_side': roi.mask_side,
    'anchor_sizes': [list(sizes) for sizes in config.anchors.sizes],
    'anchor_ratios': list(config.anchors.ratios),
    **{
      name: model[name]
      for name in (
        'fpn_channels',
        'rpn_convs',
        'box_convs',
        'box_features',
        'mask_convs',
        'mask_channels',
      )
    },
    'options': {
      'min_size': sides[0],
      'max_size': sides[1],
      'image_mean': [x / 255 for x in mean],
      'image_std': [x / 255 for x in std],
      'rpn_pre_nms_top_n_train': rpn.train.pre_nms,
      'rpn_pre_nms_top_n_test': rpn.eval.pre_nms,
      'rpn_post_nms_top_n_train': rpn.train.num_proposals,
      'rpn_post_nms_top_n_test': rpn.eval.num_proposals,
      'rpn_nms_thresh': rpn.iou_threshold,
      'rpn_fg_iou_thresh': rpn.foreground_iou,
      'rpn_bg_iou_thresh': rpn.background_iou,
      'rpn_batch_size_per_image': rpn.num_samples,
      'rpn_positive_fraction': rpn.foreground_fraction,
      'box_batch_size_per_image': roi.num_samples,
      'box_positive_fraction': roi.foreground_fraction,
      'box_fg_iou_thresh': roi.foreground_iou,
      'box_bg_iou_thresh': roi.foreground_iou,
      'box_score_thresh': config.detections.min_score,
      'box_nms_thresh': config.detections.iou_threshold,
      'box_detections_per_img': config.detections.max_detections,
    },
  }


def write_batches(images: Images, path: pathlib.Path) -> None:
  """Writes images and objects for `torchvision_steps.load_batches`.

  Args:
    images: The batches. The images are written without padding.
    path: The file.

  Raises:
    InputError: If the host has left out pixels of an image that is too large.
  """
  arrays: dict[str, Any] = {}
  counts = []
  number = 0
  for batch, _ in images.batches:
    counts.append(len(batch.images))
    for i in range(counts[-1]):
      height, width = batch.source_sizes[i].tolist()
      if height > batch.images.shape[1] or width > batch.images.shape[2]:
        raise InputError(
          f'--compare=torchvision: an image of {height}x{width} is larger than '
          'config.data.max_source_side; raise that key, or leave the image out.'
        )
      objects = np.flatnonzero(batch.gt_valid[i])
      vertices, parts, starts = (
        np.asarray(field[i]) for field in batch.outlines
      )
      masks = [
        fill_outline(
          vertices[starts[g] : starts[g + 1]],
          parts[starts[g] : starts[g + 1]],
          height,
          width,
        )
        for g in objects
      ]
      arrays[f'image_{number}'] = np.asarray(
        batch.images[i, :height, :width], np.uint8
      )
      arrays[f'boxes_{number}'] = np.asarray(
        batch.gt_boxes[i, objects], np.float32
      )
      arrays[f'labels_{number}'] = np.asarray(
        batch.gt_classes[i, objects], np.int64
      )
      arrays[f'masks_{number}'] = np.packbits(
        np.array(masks, bool).reshape(-1, height, width), axis=-1
      )
      number += 1
  np.savez(path, count=np.array(counts), **arrays)


def read_weights(
  path: pathlib.Path, rcnn: Rcnn, config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Converts weights of torchvision to variables of a network.

  Args:
    path: A file of NumPy arrays with torchvision's names.
    rcnn: The network.
    config: Its recipe.
  """
  naming = NAMINGS['torchvision']
  with np.load(path) as file:
    arrays = {name: file[name] for name in file}
  shapes = checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))
  leaves = {}
  for name, shape in shapes.items():
    theirs = next(n for n in peer_names(name, naming) if n in arrays)
    leaves[name] = np.ascontiguousarray(
      from_peer(name, arrays.pop(theirs), naming, box_side=config.roi.box_side)
    )
    assert leaves[name].shape == shape.shape, name
  assert not arrays, f'not converted: {sorted(arrays)}'
  return checkpoint.nested(leaves)
