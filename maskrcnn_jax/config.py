"""Every key that a recipe has, with its meaning and its default.

The defaults are Mask R-CNN with a ResNet-50-FPN at COCO's usual sizes; the
files in `configs/` start here and say what differs.
"""

import operator

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax import geometry
from maskrcnn_jax.errors import InputError

# What may differ between a checkpoint and the run that continues it: nothing
# here changes what a training step computes.
FREE_KEYS = (
    'data.eval',
    'data.num_threads',
    'data.num_workers',
    'data.train.annotations',
    'data.train.images',
    'detections',
    'eval',
    'predict',
    'train.checkpoint_every',
    'train.keep_checkpoints',
    'train.log_every',
    'train.num_steps',
)


def default_config() -> ml_collections.ConfigDict:
  """Returns all keys with their defaults, locked against unknown ones."""
  config = ml_collections.ConfigDict()
  # Decides initial weights, the order of images, flips and samples.
  config.seed = 0
  # Box conventions: a name in geometry.PRESETS. It also gives what is None
  # below: see `geometry_of`.
  config.geometry = 'modern'
  # Of convolutions and matmuls: fp32 | tf32 | bf16. Parameters, boxes, logits
  # and losses are always float32.
  config.precision = 'fp32'

  # Arguments of model.MaskRCNN; the number of classes comes from the data.
  config.model = ml_collections.ConfigDict({
      # 'masks' | 'boxes': no mask head, which is Faster R-CNN | 'proposals':
      # no box head either.
      'output': 'masks',
      # 'fpn', or 'c4': no pyramid; RoIs are pooled at stride 16 and the last
      # stage of the ResNet is the head of each. `c4_config` sets what goes
      # with it.
      'body': 'fpn',
      'depth': 50,  # 18 | 34 | 50 | 101
      # Of the 3x3 convolution of a bottleneck, and channels of each in the
      # first stage: 32 and 8 are ResNeXt 32x8d.
      'groups': 1,
      'group_width': 64,
      # 'frozen_batch', in the backbone alone; 'frozen_batch_all', in pyramid
      # and heads too; or 'group', in all, to train from scratch.
      'norm': 'frozen_batch',
      'norm_eps': 1e-5,
      'stride_in_1x1': False,  # True for weights converted from Caffe2
      'width': 64,  # channels of the stem
      'fpn_channels': 256,
      'rpn_convs': 1,
      'box_convs': 0,
      'box_fcs': 2,
      'box_features': 1024,
      'mask_convs': 4,
      'mask_channels': 256,
  })
  # Stages of the backbone that are not trained: 0 none, 2 stem and layer1.
  config.freeze_at = 2

  # One tuple of sizes (square root of the area, pixels) for each level from 2
  # to 6, or for the one level of a c4 body; ratios are height over width.
  config.anchors = ml_collections.ConfigDict({
      'sizes': ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
      'ratios': (0.5, 1.0, 2.0),
  })
  config.rpn = ml_collections.ConfigDict({
      'num_samples': 256,  # anchors an image that are learned from
      'foreground_fraction': 0.5,
      'foreground_iou': 0.7,
      'background_iou': 0.3,
      'iou_threshold': 0.7,  # of the NMS
      # Boxes of a level before and after NMS; boxes of an image.
      'train': {'pre_nms': 2000, 'post_nms': 1000, 'num_proposals': 1000},
      'eval': {'pre_nms': 1000, 'post_nms': 1000, 'num_proposals': 1000},
  })
  config.roi = ml_collections.ConfigDict({
      'num_samples': 512,  # RoIs an image that are learned from
      'foreground_fraction': 0.25,
      'foreground_iou': 0.5,
      'box_side': 7,  # cells pooled for the box head
      'mask_side': 14,  # cells pooled for the mask head; it predicts twice that
      # Samples along each side of a pooled cell; 0: as many as it is cells
      # long; None: the preset's.
      'sampling_ratio': config_dict.placeholder(int),
  })
  config.detections = ml_collections.ConfigDict({
      'min_score': 0.05,
      'iou_threshold': 0.5,
      'max_detections': 100,
  })

  config.data = ml_collections.ConfigDict({
      'train': {'images': '', 'annotations': ''},
      'eval': {'images': '', 'annotations': ''},
      # The short side is resized to short_side, unless the long side would
      # exceed long_side.
      'short_side': 800,
      'long_side': 1333,
      # Static canvases (height, width), multiples of 32; an image goes to the
      # smallest that it fits in. One compilation each.
      'padded_sizes': ((800, 1088), (800, 1344), (1088, 800), (1344, 800)),
      # Larger images are shrunk by a whole factor while they are decoded.
      'max_source_side': 2666,
      # RGB in [0, 255]; None: the preset's.
      'pixel_mean': config_dict.placeholder(tuple),
      'pixel_std': config_dict.placeholder(tuple),
      'antialias': config_dict.placeholder(bool),
      'flip_probability': 0.5,
      'keep_empty': False,  # train on images without objects
      'max_objects': 100,  # slots for the objects of an image
      'num_workers': 0,  # processes that decode; 0: threads only
      'num_threads': 2,  # threads that decode
  })
  config.train = ml_collections.ConfigDict({
      'batch_size': 16,  # images a step, all devices together
      'num_steps': 90_000,
      'checkpoint_every': 2_500,
      'keep_checkpoints': 3,  # the newest so many
      'log_every': 20,
  })
  config.optimizer = ml_collections.ConfigDict({
      'learning_rate': 0.02,
      'momentum': 0.9,
      'weight_decay': 1e-4,
      'bias_rate_factor': 2.0,  # learning rate of biases; they do not decay
      'warmup_steps': 500,
      'warmup_factor': 1 / 3,
      'decay_steps': (60_000, 80_000),
      'decay_factor': 0.1,
  })
  config.eval = ml_collections.ConfigDict({
      'batch_size': 1,
      # What computes the AP: 'pycocotools', or 'faster': the same numbers by
      # faster-coco-eval, if it is installed.
      'backend': 'pycocotools',
      # Also the recall of the proposals; always for a model of 'proposals'.
      'proposals': False,
  })
  config.predict = ml_collections.ConfigDict({
      'min_score': 0.5,  # detections drawn; all of them are written
  })
  config.lock()
  return config


def c4_config() -> ml_collections.ConfigDict:
  """Returns the defaults with a C4 body and what goes with it.

  Source:
    detectron2 `configs/Base-RCNN-C4.yaml` and config/defaults.py.
  """
  config = default_config()
  config.model.update({
      'body': 'c4', 'box_convs': 0, 'box_fcs': 0, 'mask_convs': 0,
  })
  config.anchors.sizes = ((32.0, 64.0, 128.0, 256.0, 512.0),)
  config.rpn.train.update(pre_nms=12_000, post_nms=2_000, num_proposals=2_000)
  config.rpn.eval.update(pre_nms=6_000, post_nms=1_000, num_proposals=1_000)
  config.roi.box_side = 14
  return config


def stored_config(stored: dict) -> ml_collections.ConfigDict:
  """Returns the recipe that a checkpoint stores; keys it lacks get defaults.

  Args:
    stored: A plain dict, as `plain` makes it.
  """
  config = ml_collections.ConfigDict(
      _fill(stored, default_config().to_dict())
  )
  config.lock()
  return config


def geometry_of(config: ml_collections.ConfigDict) -> geometry.Geometry:
  """Returns the preset of a recipe, with what the recipe says otherwise."""
  shape = geometry.PRESETS[config.geometry]
  if config.roi.sampling_ratio is not None:
    shape = shape._replace(sampling_ratio=config.roi.sampling_ratio)
  mean, std = shape.input_format.rgb_255()
  if config.data.pixel_mean is not None:
    mean = tuple(config.data.pixel_mean)
  if config.data.pixel_std is not None:
    std = tuple(config.data.pixel_std)
  antialias = shape.input_format.antialias
  if config.data.antialias is not None:
    antialias = config.data.antialias
  if config.model.body == 'c4':
    # Peers do not pad what has no pyramid: it has cells of 16 pixels, the last
    # of which may lie half outside.
    shape = shape._replace(padding_multiple=16)
  return shape._replace(
      input_format=shape.input_format._replace(
          channel_order='RGB', white=255.0, mean=mean, std=std,
          antialias=antialias,
      )
  )


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises an InputError for values that no run could use."""
  try:
    _check_values(config)
  except InputError as error:
    raise InputError(f'C05: {error}') from error


def _check_values(config: ml_collections.ConfigDict) -> None:
  _one_of('geometry', config.geometry, tuple(geometry.PRESETS))
  _one_of('precision', config.precision, ('fp32', 'tf32', 'bf16'))
  _one_of('model.depth', config.model.depth, (18, 34, 50, 101))
  _one_of(
      'model.norm', config.model.norm,
      ('frozen_batch', 'frozen_batch_all', 'group'),
  )
  _one_of('model.output', config.model.output, ('masks', 'boxes', 'proposals'))
  _one_of('model.body', config.model.body, ('fpn', 'c4'))
  _one_of('eval.backend', config.eval.backend, ('pycocotools', 'faster'))
  if config.model.groups > 1 and config.model.depth < 50:
    raise InputError(
        f'config.model.groups is {config.model.groups}, but a ResNet of depth '
        f'{config.model.depth} has no bottleneck to have groups in; set '
        'config.model.depth to 50 or 101.'
    )
  if not 0 <= config.freeze_at <= 5:
    raise InputError(
        f'config.freeze_at is {config.freeze_at}; give the number of stages '
        'not to train, 0 to 5.'
    )
  levels = {'fpn': 'each of the levels 2 to 6', 'c4': 'the one level'}
  if len(config.anchors.sizes) != {'fpn': 5, 'c4': 1}[config.model.body]:
    raise InputError(
        f'config.anchors.sizes has {len(config.anchors.sizes)} entries; give '
        f'one tuple of sizes for {levels[config.model.body]} of a body '
        f'{config.model.body!r}.'
    )
  if len({len(sizes) for sizes in config.anchors.sizes}) != 1:
    raise InputError(
        'config.anchors.sizes must have the same number of sizes on each '
        'level, for the RPN head is the same on all.'
    )
  for key in (
      'train.batch_size', 'train.num_steps', 'train.checkpoint_every',
      'train.keep_checkpoints', 'train.log_every', 'eval.batch_size',
      'data.max_objects', 'data.num_threads', 'data.short_side',
      'data.long_side', 'data.max_source_side', 'rpn.num_samples',
      'roi.num_samples', 'roi.box_side', 'roi.mask_side',
      'detections.max_detections', 'optimizer.warmup_steps',
      'model.groups', 'model.group_width', 'model.rpn_convs',
      *(f'rpn.{mode}.{name}' for mode in ('train', 'eval')
        for name in ('pre_nms', 'post_nms', 'num_proposals')),
  ):
    least = 0 if key == 'optimizer.warmup_steps' else 1
    value = operator.attrgetter(key)(config)
    if value < least:
      raise InputError(
          f'config.{key} is {value}; it must be at least {least}.'
      )
  ratio = config.roi.sampling_ratio
  if ratio is not None and ratio < 0:
    raise InputError(
        f'config.roi.sampling_ratio is {ratio}; give the samples along a side '
        'of a cell, or 0 for as many as it is long.'
    )
  for key in ('data.pixel_mean', 'data.pixel_std'):
    value = operator.attrgetter(key)(config)
    if value is not None and len(value) != 3:
      raise InputError(
          f'config.{key} is {tuple(value)}; give three numbers, of red, green '
          'and blue in [0, 255].'
      )
  for key in (
      'rpn.foreground_fraction', 'rpn.foreground_iou', 'rpn.background_iou',
      'rpn.iou_threshold', 'roi.foreground_fraction', 'roi.foreground_iou',
      'detections.min_score', 'detections.iou_threshold',
      'data.flip_probability', 'predict.min_score',
  ):
    value = operator.attrgetter(key)(config)
    if not 0 <= value <= 1:
      raise InputError(
          f'config.{key} is {value}; it must be between 0 and 1.'
      )
  if config.roi.num_samples * config.roi.foreground_fraction < 1:
    raise InputError(
        'config.roi.num_samples times config.roi.foreground_fraction is less '
        'than 1; no mask would ever be learned.'
    )
  if not config.data.padded_sizes:
    raise InputError(
        'config.data.padded_sizes is empty; give at least one (height, width).'
    )
  for size in config.data.padded_sizes:
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
      raise InputError(
          f'config.data.padded_sizes has {tuple(size)}; give (height, width) '
          'in multiples of 32 pixels.'
      )


def config_difference(
    config: ml_collections.ConfigDict, other: dict
) -> list[str]:
  """Returns 'key: here | there' for each value that differs.

  Args:
    config: Here.
    other: There: a plain dict, as stored in a checkpoint.
  """
  here = _flatten(_name_preset_values(config.to_dict()))
  there = _flatten(_name_preset_values(other))
  return [
      f'{key}: {here.get(key, "nothing")} | {there.get(key, "nothing")}'
      for key in sorted(here | there)
      if here.get(key, 'nothing') != there.get(key, 'nothing')
  ]


def is_free(line: str) -> bool:
  """Tells whether a line of `config_difference` may differ on a resume."""
  key = line.split(':')[0]
  return any(key == free or key.startswith(free + '.') for free in FREE_KEYS)


def plain(value):
  """Returns nested dicts, lists and numbers that JSON gives back unchanged."""
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [plain(item) for item in value]
  return value


def _fill(tree: dict, defaults: dict) -> dict:
  """Adds to a nested dict what it lacks."""
  return defaults | {
      key: _fill(value, defaults.get(key, {}))
      if isinstance(value, dict) else value
      for key, value in tree.items()
  }


def _name_preset_values(tree: dict) -> dict:
  """Puts the preset's values where a recipe leaves them to the preset."""
  shape = geometry.PRESETS.get(tree.get('geometry'))
  if shape is None:
    return tree
  mean, std = shape.input_format.rgb_255()
  values = {
      'roi': {'sampling_ratio': shape.sampling_ratio},
      'data': {
          'pixel_mean': mean,
          'pixel_std': std,
          'antialias': shape.input_format.antialias,
      },
  }
  return tree | {
      part: group | {
          key: value for key, value in values[part].items()
          if key in group and group[key] is None
      }
      for part, group in tree.items() if part in values
  }


def _flatten(tree: dict, prefix: str = '') -> dict:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = plain(value)
  return flat


def _one_of(key, value, choices):
  if value not in choices:
    raise InputError(
        f'config.{key} is {value!r}; choose one of '
        f'{", ".join(map(repr, choices))}.'
    )
