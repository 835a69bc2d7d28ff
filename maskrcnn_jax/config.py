"""Every key that a recipe has, with its meaning and its default.

The defaults are Mask R-CNN with a ResNet-50-FPN at COCO's usual sizes; the
files in `configs/` start here and say what differs.
"""

import math
import numbers
import operator

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax import geometry
from maskrcnn_jax.data import records
from maskrcnn_jax.errors import InputError

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

# What the keys that are tuples hold, in words and as `_fits` has it.
_TUPLES = {
    'mesh': (
        '(name, size) pairs, for example ((\'data\', -1),)', [(str, int)]
    ),
    'anchors.sizes': (
        'a tuple of sizes for each level, for example ((32.0,), (64.0,), '
        '(128.0,), (256.0,), (512.0,))', [[float]],
    ),
    'anchors.ratios': ('ratios, for example (0.5, 1.0, 2.0)', [float]),
    'data.padded_sizes': (
        '(height, width) pairs in whole pixels, for example ((800, 1344), '
        '(1344, 800))', [(int, int)],
    ),
    'data.pixel_mean': ('three numbers, of red, green and blue', [float]),
    'data.pixel_std': ('three numbers, of red, green and blue', [float]),
    'data.short_sides': ('whole numbers, for example (640, 800)', [int]),
    'data.scale_jitter': (
        'the least and the greatest factor, for example (0.1, 2.0)', [float]
    ),
    'data.color_jitter': (
        'three numbers, for brightness, contrast and saturation', [float]
    ),
    'optimizer.decay_steps': (
        'whole numbers, for example (60000, 80000)', [int]
    ),
    'expected.box_ap': ('(mean, tolerance)', [float]),
    'expected.mask_ap': ('(mean, tolerance)', [float]),
}


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


def records_of(
    config: ml_collections.ConfigDict, part: str
) -> records.Records | None:
  """Returns the records to read instead of a JSON; None if it is a JSON.

  Records come first: recipes name the folders of COCO.

  Args:
    config: The recipe.
    part: 'train' or 'eval'.
  """
  source = config.data[part]
  if not source.tfds:
    return None
  return records.Records(source.tfds, source.split, config.data.tfds_dir)


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
  return bool(config.data.eval.tfds or config.data.eval.annotations)


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises an InputError for values that no run could use."""
  try:
    _check_values(config)
  except InputError as error:
    raise InputError(f'C05: {error}') from error


def _fits(value, form) -> bool:
  """Tells whether a value has a form.

  Args:
    value: Of a key, or of an element of a tuple.
    form: [form] for a tuple of any length, (form, form) for one of that
      length, or str, int or float.
  """
  if isinstance(form, list):
    return isinstance(value, tuple | list) and all(
        _fits(item, form[0]) for item in value
    )
  if isinstance(form, tuple):
    return (
        isinstance(value, tuple | list) and len(value) == len(form)
        and all(map(_fits, value, form))
    )
  if form is str:
    return isinstance(value, str)
  if isinstance(value, bool):
    return False
  return isinstance(
      value, numbers.Integral if form is int else numbers.Real
  )


def _check_types(config: ml_collections.ConfigDict) -> None:
  """Raises an InputError for tuples of what they do not hold, and for nan.

  The types of other keys are those of the defaults, which the config sees to.
  What is None is left open by the recipe.
  """
  for key, (what, form) in _TUPLES.items():
    value = operator.attrgetter(key)(config)
    if value is not None and not _fits(value, form):
      raise InputError(f'config.{key} is {value!r}; give {what}.')
  for key, value in _flatten(config.to_dict()).items():
    if not all(map(math.isfinite, _numbers_in(value))):
      raise InputError(
          f'config.{key} is {value!r}; give what is a finite number.'
      )


def _numbers_in(value) -> list[numbers.Real]:
  """The numbers of nested tuples and lists."""
  if isinstance(value, tuple | list):
    return [number for item in value for number in _numbers_in(item)]
  return [value] if isinstance(value, numbers.Real) else []


def _check_values(config: ml_collections.ConfigDict) -> None:
  _check_types(config)
  if config.train.fine_tune:
    # Not complete yet; `train` checks it when it is.
    if config.train.batch_size < 1:
      raise InputError(
          f'config.train.batch_size is {config.train.batch_size}; it must be '
          'at least 1.'
      )
    return
  _one_of('geometry', config.geometry, tuple(geometry.PRESETS))
  _one_of('precision', config.precision, ('fp32', 'tf32', 'bf16', 'fp16'))
  _one_of('kernels', config.kernels, ('auto', 'xla', 'pallas'))
  _one_of('model.depth', config.model.depth, (18, 34, 50, 101))
  _one_of(
      'model.norm', config.model.norm,
      ('frozen_batch', 'frozen_batch_all', 'group'),
  )
  _one_of('model.output', config.model.output, ('masks', 'boxes', 'proposals'))
  _one_of('model.body', config.model.body, ('fpn', 'c4'))
  _one_of('eval.backend', config.eval.backend, ('pycocotools', 'faster'))
  _one_of(
      'optimizer.warmup', config.optimizer.warmup,
      ('constant', 'linear', 'mlperf_linear'),
  )
  _one_of(
      'optimizer.schedule', config.optimizer.schedule, ('multistep', 'cosine')
  )
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
      'train.batch_size', 'train.micro_batches', 'train.num_steps',
      'train.checkpoint_every',
      'train.keep_checkpoints', 'train.log_every', 'eval.batch_size',
      'data.max_objects', 'data.num_threads', 'data.short_side',
      'data.long_side', 'data.max_source_side', 'rpn.num_samples',
      'roi.num_samples', 'roi.box_side', 'roi.mask_side',
      'detections.max_detections', 'optimizer.warmup_steps',
      'train.watchdog_seconds',
      'model.groups', 'model.group_width', 'model.rpn_convs', 'model.width',
      'model.fpn_channels', 'model.box_features', 'model.mask_channels',
      *(f'rpn.{mode}.{name}' for mode in ('train', 'eval')
        for name in ('pre_nms', 'post_nms', 'num_proposals')),
  ):
    least = 0 if key in (
        'optimizer.warmup_steps', 'train.watchdog_seconds'
    ) else 1
    value = operator.attrgetter(key)(config)
    if value < least:
      raise InputError(
          f'config.{key} is {value}; it must be at least {least}.'
      )
  for key in (
      'optimizer.clip_norm', 'train.eval_every', 'train.eval_every_epochs',
      'optimizer.learning_rate', 'optimizer.momentum', 'optimizer.weight_decay',
      'optimizer.bias_rate_factor', 'optimizer.warmup_factor',
      'optimizer.decay_factor', 'model.norm_eps', 'model.box_convs',
      'model.box_fcs', 'model.mask_convs', 'data.num_workers',
  ):
    value = operator.attrgetter(key)(config)
    if value < 0:
      raise InputError(f'config.{key} is {value}; it must be at least 0.')
  for key in ('anchors.sizes', 'anchors.ratios', 'data.pixel_std'):
    value = operator.attrgetter(key)(config)
    if value is not None and (
        not _numbers_in(value) or min(_numbers_in(value)) <= 0
    ):
      raise InputError(
          f'config.{key} is {plain(value)}; give numbers above 0.'
      )
  for key in ('optimizer.decay_steps', 'data.pixel_mean'):
    value = operator.attrgetter(key)(config)
    if value is not None and min(value, default=0) < 0:
      raise InputError(
          f'config.{key} is {plain(value)}; give numbers of at least 0.'
      )
  if config.train.ema_decay == 1:
    raise InputError(
        'config.train.ema_decay is 1; the average would never move.'
    )
  if config.train.eval_every and config.train.eval_every_epochs:
    raise InputError(
        'Give config.train.eval_every or config.train.eval_every_epochs, not '
        'both.'
    )
  if (config.train.min_box_ap or config.train.min_mask_ap) and not (
      config.train.eval_every or config.train.eval_every_epochs
  ):
    raise InputError(
        'config.train.min_box_ap and min_mask_ap are for evaluations while '
        'training; give --config.train.eval_every=STEPS or '
        '--config.train.eval_every_epochs=EPOCHS too.'
    )
  reference = config.train.reference_batch_size
  if reference is not None and reference < 1:
    raise InputError(
        f'config.train.reference_batch_size is {reference}; give the batch '
        'size that the recipe is for.'
    )
  for key in ('expected.box_ap', 'expected.mask_ap'):
    value = operator.attrgetter(key)(config)
    if value is not None and len(value) != 2:
      raise InputError(
          f'config.{key} is {tuple(value)}; give (mean, tolerance).'
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
  pixel_range = config.data.pixel_range
  if pixel_range is not None and not (
      len(pixel_range) == 2 and -1e10 < pixel_range[0] < pixel_range[1] < 1e10
  ):
    raise InputError(
        f'config.data.pixel_range is {tuple(pixel_range)}; give the values that'
        ' become black and white, the first the lower.'
    )
  for key in (
      'rpn.foreground_fraction', 'rpn.foreground_iou', 'rpn.background_iou',
      'rpn.iou_threshold', 'roi.foreground_fraction', 'roi.foreground_iou',
      'detections.min_score', 'detections.iou_threshold',
      'data.flip_probability', 'predict.min_score', 'train.ema_decay',
      'train.min_box_ap', 'train.min_mask_ap',
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
  _check_augmentation(config.data)
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


def _check_augmentation(data):
  if data.short_sides and data.scale_jitter:
    raise InputError(
        'config.data has short_sides and scale_jitter; both say how large an '
        'image becomes, so give one.'
    )
  if any(
      type(side) is not int or not 1 <= side <= data.short_side
      for side in data.short_sides
  ):
    raise InputError(
        f'config.data.short_sides is {tuple(data.short_sides)}; give whole '
        'numbers up to config.data.short_side '
        f'({data.short_side}), for which the canvases are.'
    )
  scales = data.scale_jitter
  if scales and not (len(scales) == 2 and 0 < scales[0] <= scales[1]):
    raise InputError(
        f'config.data.scale_jitter is {tuple(scales)}; give the least and the '
        'greatest factor, for example (0.1, 2.0).'
    )
  strengths = data.color_jitter
  if len(strengths) != 3 or not all(0 <= s <= 1 for s in strengths):
    raise InputError(
        f'config.data.color_jitter is {tuple(strengths)}; give three numbers '
        'in [0, 1], for brightness, contrast and saturation.'
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
