"""Every key that a recipe has, with its meaning and its default.

The defaults are Mask R-CNN with a ResNet-50-FPN at COCO's usual sizes; the
files in `configs/` start here and say what differs.
"""

import operator

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax import geometry
from maskrcnn_jax.data.source import CocoFiles, Records, Source

# What may differ between a checkpoint and the run that continues it: nothing
# here changes what a training step computes, but for the rounding.
FREE_KEYS = (
    'data.eval',
    'data.num_threads',
    'data.num_workers',
    'data.tfds_dir',
    'data.train.annotations',
    'data.train.images',
    'data.train.split',
    'data.train.tfds',
    'detections',
    'eval',
    'expected',
    'kernels',
    'mesh',
    'predict',
    'train.auto_scale',
    'train.checkpoint_every',
    'train.eval_every',
    'train.eval_every_epochs',
    'train.keep_checkpoints',
    'train.log_every',
    'train.micro_batches',
    'train.min_box_ap',
    'train.min_mask_ap',
    'train.num_steps',
    'train.reference_batch_size',
    'train.watchdog_seconds',
)


def default_config() -> ml_collections.ConfigDict:
  """Returns all keys with their defaults, locked against unknown ones."""
  config = ml_collections.ConfigDict()
  # Decides initial weights, the order of images, flips and samples.
  config.seed = 0
  # Box conventions: a name in geometry.PRESETS. It also gives what is None
  # below: see `geometry_of`.
  config.geometry = 'modern'
  # Of convolutions and matmuls: fp32 | tf32 | bf16 | fp16. Parameters, boxes,
  # logits and losses are always float32.
  config.precision = 'fp32'
  # What works out boxes, NMS and RoIAlign: 'xla' plain JAX; 'pallas' the GPU
  # kernels of pallas_kernels; 'auto' those known to be faster on the device.
  config.kernels = 'auto'

  # Axes of all devices of all processes, (name, size); -1: all that are left.
  config.mesh = (('data', -1),)

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
      # A folder and a COCO JSON; or in their place tfds, the name of a set
      # that maskrcnn_jax.build_tfds has made in tfds_dir, and a split of it.
      'train': {'images': '', 'annotations': '', 'tfds': '', 'split': 'train'},
      'eval': {'images': '', 'annotations': '', 'tfds': '', 'split': 'val'},
      'tfds_dir': '',
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
      # Of gray images of 16 or 32 bits, the values that become 0 and 255; None:
      # there are no such images.
      'pixel_range': config_dict.placeholder(tuple),
      # What training changes at random, images and truth together, on the
      # device. Short sides to choose from instead of short_side, none longer:
      'short_sides': (),
      # or the least and greatest size of an image, as a part of the largest
      # that fits on its canvas, which shows a random part of a larger one:
      'scale_jitter': (),
      'flip_probability': 0.5,
      # How much brightness, contrast and saturation may go up or down, [0, 1].
      'color_jitter': (0.0, 0.0, 0.0),
      'keep_empty': False,  # train on images without objects
      'max_objects': 100,  # slots for the objects of an image
      'num_workers': 0,  # processes that decode; 0: threads only
      'num_threads': 2,  # threads that decode
  })
  config.train = ml_collections.ConfigDict({
      'batch_size': 16,  # images a step, all devices together
      # Parts that a batch is worked through in, one after the other: the same
      # training in less memory.
      'micro_batches': 1,
      # Share that an average of the weights, which is then what is evaluated
      # and saved for use, keeps of itself each step; 0: there is none.
      'ema_decay': 0.0,
      'num_steps': 90_000,
      'checkpoint_every': 2_500,
      'keep_checkpoints': 3,  # the newest so many
      'log_every': 20,
      # The batch size that num_steps and the optimizer's rate and steps are
      # meant for; see `scaled_to_batch`. None: for any.
      'reference_batch_size': config_dict.placeholder(int),
      'auto_scale': True,
      # Evaluate every so many steps, or epochs; 0: only at the end.
      'eval_every': 0,
      'eval_every_epochs': 0.0,
      # The training ends when an evaluation reaches both; 0 and 0: never.
      'min_box_ap': 0.0,
      'min_mask_ap': 0.0,
      # A run without progress for so long ends itself, with stacks of what
      # hung. More than compiling takes, and the AP of a set; 0: never.
      'watchdog_seconds': 1800.0,
      # True: keys of --init_from's recipe and those that are None are filled
      # in when checkpoint and data are known; see fine_tuning.py.
      'fine_tune': False,
  })
  config.optimizer = ml_collections.ConfigDict({
      'learning_rate': 0.02,
      'momentum': 0.9,
      'weight_decay': 1e-4,
      'bias_rate_factor': 2.0,  # learning rate of biases; they do not decay
      'clip_norm': 0.0,  # of all gradients together, at most; 0: no limit
      # See optimizer.learning_rate: constant | linear | mlperf_linear, and
      # multistep | cosine.
      'warmup': 'linear',
      'warmup_steps': 500,
      'warmup_factor': 1 / 3,
      'schedule': 'multistep',
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
  # AP that the whole recipe should reach, (mean, tolerance); None: not known.
  config.expected = ml_collections.ConfigDict({
      'box_ap': config_dict.placeholder(tuple),
      'mask_ap': config_dict.placeholder(tuple),
  })
  config.predict = ml_collections.ConfigDict({
      'min_score': 0.5,  # detections drawn; all of them are written
  })
  config.lock()
  return config


# This file is a recipe as well: of the defaults.
get_config = default_config


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


def scaled_to_batch(
    config: ml_collections.ConfigDict, given: frozenset[str] = frozenset()
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Fits a recipe to a batch of another size than it was written for.

  With k times the images a step, the learning rate is k times as high and
  there are 1 / k as many steps, those of the warm-up and of the decays among
  them: as many images are seen at each rate.

  Args:
    config: The recipe; `train.reference_batch_size` is the batch it is for.
    given: Keys that the user set: they stay as they are.

  Returns:
    The recipe for `train.batch_size`, and a line for each key that changed.

  Source:
    Accurate, Large Minibatch SGD (arXiv:1706.02677), section 2.1; detectron2
    `engine/defaults.py`, auto_scale_workers.
  """
  config = config.copy_and_resolve_references()
  reference = config.train.reference_batch_size
  config.train.reference_batch_size = config.train.batch_size
  if not config.train.auto_scale or reference in (
      None, config.train.batch_size
  ):
    return config, []
  factor = config.train.batch_size / reference

  def fewer(steps):
    return max(round(steps / factor), 1) if steps else 0

  values = {
      'optimizer.learning_rate': config.optimizer.learning_rate * factor,
      'optimizer.warmup_steps': fewer(config.optimizer.warmup_steps),
      'optimizer.decay_steps': tuple(map(fewer, config.optimizer.decay_steps)),
      'train.num_steps': fewer(config.train.num_steps),
  }
  if config.optimizer.warmup == 'mlperf_linear':
    # A rise a step: of a higher rate, in fewer steps.
    values['optimizer.warmup_factor'] = (
        config.optimizer.warmup_factor * factor**2
    )
  lines = []
  for key, value in values.items():
    before = operator.attrgetter(key)(config)
    if key in given:
      lines.append(f'{key} = {before} (given, not scaled)')
    elif value != before:
      group, name = key.split('.')
      config[group][name] = value
      lines.append(f'{key} = {value} (recipe: {before})')
  return config, [
      f'{config.train.batch_size} images a step, the recipe is for '
      f'{reference}: {"; ".join(lines)}. --config.train.auto_scale=False '
      'leaves all as it is.'
  ]


def source_of(
    config: ml_collections.ConfigDict, part: str
) -> Source | None:
  """Returns the data set that a recipe names; `None` if it names none.

  Records win over COCO files: the recipes of configs/ name the files of COCO,
  and whoever gives records need not remove those.

  Args:
    config: The recipe.
    part: 'train' or 'eval'.
  """
  keys = config.data[part]
  if keys.tfds:
    return Records(keys.tfds, keys.split, config.data.tfds_dir)
  if keys.annotations:
    return CocoFiles(keys.images, keys.annotations)
  return None


def pixel_range_of(
    config: ml_collections.ConfigDict,
) -> tuple[float, float] | None:
  """Returns `data.pixel_range`; a stored recipe has it as a list."""
  if config.data.pixel_range is None:
    return None
  low, high = map(float, config.data.pixel_range)
  return low, high


def has_eval_set(config: ml_collections.ConfigDict) -> bool:
  """Tells whether a recipe names a set to evaluate on."""
  return source_of(config, 'eval') is not None


def config_difference(
    config: ml_collections.ConfigDict, other: dict
) -> list[str]:
  """Returns 'key: here | there' for each value that differs.

  Args:
    config: Here.
    other: There: a plain dict, as stored in a checkpoint.
  """
  here = flatten(_name_preset_values(config.to_dict()))
  there = flatten(_name_preset_values(other))
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


def flatten(tree: dict, prefix: str = '') -> dict:
  """Returns {'group.key': plain value} of a nested dict."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = plain(value)
  return flat


