"""Whether a recipe makes sense, before anything is started with it."""

import math
import numbers
import operator

import ml_collections

from maskrcnn_jax import geometry
from maskrcnn_jax.config import flatten, plain
from maskrcnn_jax.errors import InputError

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
  for key, value in flatten(config.to_dict()).items():
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


def _one_of(key, value, choices):
  if value not in choices:
    raise InputError(
        f'config.{key} is {value!r}; choose one of '
        f'{", ".join(map(repr, choices))}.'
    )
