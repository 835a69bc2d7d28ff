"""Computes the values that the rest of the package needs from a recipe."""

from collections.abc import Sequence
import os
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax import geometry
from maskrcnn_jax.config.defaults import set_value, value_of
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.data.several_sets import SeveralSets
from maskrcnn_jax.data.source import Source, source_of_files
from maskrcnn_jax.errors import InputError

# A batch that was enlarged to this size or more has a warm-up of its own: a
# number of steps, and the factor of the learning rate at the first step.
# Source: NVIDIA's Mask R-CNN For PyTorch, README, "Training Process".
LARGE_BATCH = 32
LARGE_BATCH_WARMUP_STEPS = 625
LARGE_BATCH_WARMUP_FACTOR = 0.01


class Heads(NamedTuple):
  """The heads that a model has in addition to the RPN."""

  boxes: bool  # whether it has the box head, which also predicts the classes
  masks: bool  # whether it has the mask head


def heads_of(config: ml_collections.ConfigDict) -> Heads:
  """Returns the heads that a model needs for `model.output` of a recipe.

  The output 'masks' needs both heads, 'boxes' the box head only, and
  'proposals' neither.
  """
  return {
    'masks': Heads(boxes=True, masks=True),
    'boxes': Heads(boxes=True, masks=False),
    'proposals': Heads(boxes=False, masks=False),
  }[config.model.output]


def geometry_of(config: ml_collections.ConfigDict) -> geometry.Geometry:
  """Returns the box and pixel conventions of a recipe.

  They are the preset that `config.geometry` names, with the values of those
  keys that the recipe sets itself: sampling ratio, mean, standard deviation and
  antialiasing. The input format is RGB in [0, 255]. A model without a
  pyramid has the side of a cell of its feature map as padding multiple.
  """
  preset = geometry.PRESETS[config.geometry]
  if config.roi.sampling_ratio is not None:
    preset = preset._replace(sampling_ratio=config.roi.sampling_ratio)
  mean, std = preset.input_format.rgb_255()
  if config.data.pixel_mean is not None:
    red, green, blue = config.data.pixel_mean
    mean = (red, green, blue)
  if config.data.pixel_std is not None:
    red, green, blue = config.data.pixel_std
    std = (red, green, blue)
  antialias = preset.input_format.antialias
  if config.data.antialias is not None:
    antialias = config.data.antialias
  if config.model.body != 'fpn':
    # detectron2 and maskrcnn-benchmark do not pad images for a model without a
    # pyramid. The last cell of its feature map may lie partly outside of the
    # image.
    preset = preset._replace(padding_multiple=2 ** first_level_of(config))
  return preset._replace(
    input_format=preset.input_format._replace(
      channel_order='RGB',
      white=255.0,
      mean=mean,
      std=std,
      antialias=antialias,
    )
  )


def pixel_range_of(
  config: ml_collections.ConfigDict,
) -> tuple[float, float] | None:
  """Returns `data.pixel_range`: the pixel values that become black and white.

  They are for images of more than 8 bits a channel. `None` means that the
  recipe has no range, so that such images are refused.
  """
  if config.data.pixel_range is None:
    return None
  low, high = map(float, config.data.pixel_range)
  return low, high


def has_eval_set(config: ml_collections.ConfigDict) -> bool:
  """Tells whether a recipe names a set to evaluate on."""
  return source_of(config, 'eval') is not None


def source_of(config: ml_collections.ConfigDict, part: str) -> Source | None:
  """Returns the training or evaluation set of a recipe; `None` if it has none.

  If the recipe names both records of tensorflow-datasets and COCO files, the
  records are used. The recipes in configs/ name files of COCO, so a user who
  gives records need not remove the files.

  Args:
    config: The recipe.
    part: 'train' or 'eval'. Only the training set may consist of several sets.

  Raises:
    InputError: If there are not as many folders of images as files of
      annotations, or if a file of annotations is named twice.
  """
  keys = config.data[part]
  if keys.tfds:
    return Records(keys.tfds, keys.split, config.data.tfds_dir)
  images, annotations = map(_as_tuple, (keys.images, keys.annotations))
  if len(images) != len(annotations):
    raise InputError(
      f'C05: config.data.{part}.images is {keys.images!r}, and '
      f'config.data.{part}.annotations is {keys.annotations!r}; give both, '
      'with a folder for each file of annotations. If sets have the same '
      'folder, name it for each of them.'
    )
  if not all(annotations):
    return None
  files = [os.path.realpath(path) for path in annotations]
  for path, file in zip(annotations, files, strict=True):
    if files.count(file) > 1:
      raise InputError(
        f'C05: config.data.{part}.annotations names the file {path} more than '
        'once; leave one of them out, and its folder.'
      )
  sources = tuple(map(source_of_files, images, annotations))
  return sources[0] if len(sources) == 1 else SeveralSets(sources)


def _as_tuple(value: str | Sequence[str]) -> tuple[str, ...]:
  """Returns a text as a tuple of one, and a sequence of texts as a tuple."""
  return (value,) if isinstance(value, str) else tuple(value)


def scaled_to_batch(
  config: ml_collections.ConfigDict, given: frozenset[str] = frozenset()
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Adapts learning rate and numbers of steps of a recipe to its batch size.

  If the batch is k times as large as the recipe was written for, the learning
  rate is multiplied by k, and the numbers of training steps, of warm-up steps
  and of the steps before each decay are divided by k and rounded, to at least
  1. So the number of images that are seen at each rate stays the same. With the
  warm-up 'mlperf_linear', `optimizer.warmup_factor` is multiplied by k squared.

  The warm-up 'linear' is an exception from 32 images a step on, because the
  high learning rate needs more steps to be reached, not fewer: it has 625 steps
  from a hundredth of the rate. In a short training, it ends halfway to the
  first decay or to the end.

  Args:
    config: The recipe; `train.reference_batch_size` is the batch size that it
      was written for. If that is `None`, or if `train.auto_scale` is False,
      nothing is scaled.
    given: Keys that the user set on the command line; they stay as they are.

  Returns:
    The recipe for `train.batch_size`, with the same number as
    `train.reference_batch_size`; and a list with one line for the log, which
    names each key that was changed, and the given keys that were not. The list
    is empty if nothing is scaled.

  Source:
    Accurate, Large Minibatch SGD (arXiv:1706.02677), section 2.1; detectron2
    `engine/defaults.py`, auto_scale_workers. The warm-up of large batches:
    NVIDIA's Mask R-CNN For PyTorch, README, "Training Process".
  """
  config = config.copy_and_resolve_references()
  reference = config.train.reference_batch_size
  config.train.reference_batch_size = config.train.batch_size
  if not config.train.auto_scale or reference in (
    None,
    config.train.batch_size,
  ):
    return config, []
  factor = config.train.batch_size / reference

  def fewer(steps: int) -> int:
    """Divides a number of steps by the factor; 0 stays 0."""
    return max(round(steps / factor), 1) if steps else 0

  optimizer = config.optimizer
  values = {
    'optimizer.learning_rate': optimizer.learning_rate * factor,
    'optimizer.warmup_steps': fewer(optimizer.warmup_steps),
    'optimizer.decay_steps': tuple(map(fewer, optimizer.decay_steps)),
    'train.num_steps': fewer(config.train.num_steps),
  }
  is_large = (
    optimizer.warmup == 'linear'
    and optimizer.warmup_steps > 0
    and config.train.batch_size >= LARGE_BATCH
  )
  if is_large:
    used = {
      key: value_of(config, key) if key in given else value
      for key, value in values.items()
    }
    ends = [used['train.num_steps']]
    if optimizer.schedule == 'multistep':
      ends += used['optimizer.decay_steps']
    values['optimizer.warmup_steps'] = min(
      LARGE_BATCH_WARMUP_STEPS, max(min(ends) // 2, 1)
    )
    values['optimizer.warmup_factor'] = LARGE_BATCH_WARMUP_FACTOR
  if optimizer.warmup == 'mlperf_linear':
    # In this schedule the key is the rise of the learning rate at each step.
    # The rate must rise k times as high in 1 / k as many steps.
    values['optimizer.warmup_factor'] = optimizer.warmup_factor * factor**2
  changes = []
  for key, value in values.items():
    before = value_of(config, key)
    if key in given:
      changes.append(f'{key} = {before} (given, not scaled)')
    elif value != before:
      set_value(config, key, value)
      changes.append(f'{key} = {value} (recipe: {before})')
  sentences = [
    f'{config.train.batch_size} images a step, the recipe is for '
    f'{reference}: {"; ".join(changes)}.',
    f'The warm-up is that for {LARGE_BATCH} images a step and more.',
    '--config.train.auto_scale=False leaves all values as they are.',
  ]
  if not is_large:
    del sentences[1]
  return config, [' '.join(sentences)]


def anchor_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the keyword arguments of `ops.anchors.anchor_levels` as a dict.

  They are the sizes of the anchors by level, their ratios and their rounding.
  """
  return {
    'sizes': dict(
      enumerate(map(tuple, config.anchors.sizes), start=first_level_of(config))
    ),
    'ratios': tuple(config.anchors.ratios),
    'rounding': geometry_of(config).anchor_rounding,
  }


def first_level_of(config: ml_collections.ConfigDict) -> int:
  """Returns the finest level that a model has anchors on.

  It is 2 with a pyramid. Without one it is the only level: 4 with the body 'c4'
  or 'dc5', and 5 with 'c5'. A level has cells of 2**level pixels.
  """
  return {'fpn': 2, 'c4': 4, 'c5': 5, 'dc5': 4}[config.model.body]


def canvas_arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the keyword arguments of `data.canvases.plan_canvases` as a dict.

  They are the limits of the image sizes, the padded sizes, and how sizes are
  rounded and images resized. `drawn_sizes` has those for training only.
  """
  pixels = geometry_of(config).input_format
  return {
    'resize_rule': pixels.resize_rule,
    'antialias': pixels.antialias,
    'short_side': config.data.short_side,
    'long_side': config.data.long_side,
    'padded_sizes': tuple(map(tuple, config.data.padded_sizes)),
    'max_source_side': config.data.max_source_side,
  }


def drawn_sizes(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the keyword arguments of `plan_canvases` for training as a dict.

  They say from which sizes the size of a training image is drawn at random.
  """
  return {
    'short_sides': tuple(config.data.short_sides),
    'scale_jitter': tuple(config.data.scale_jitter),
  }
