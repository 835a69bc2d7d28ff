"""Values that follow from a recipe."""

from typing import NamedTuple

import ml_collections

from maskrcnn_jax import geometry
from maskrcnn_jax.config.defaults import set_value, value_of
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.data.source import Source, source_of_files


class Heads(NamedTuple):
  """The heads that a model has beside the RPN."""

  boxes: bool
  masks: bool


def heads_of(config: ml_collections.ConfigDict) -> Heads:
  """Returns the heads that `model.output` asks for."""
  return {
    'masks': Heads(boxes=True, masks=True),
    'boxes': Heads(boxes=True, masks=False),
    'proposals': Heads(boxes=False, masks=False),
  }[config.model.output]


def geometry_of(config: ml_collections.ConfigDict) -> geometry.Geometry:
  """Returns the preset of a recipe, with the values that the recipe changes."""
  preset = geometry.PRESETS[config.geometry]
  if config.roi.sampling_ratio is not None:
    preset = preset._replace(sampling_ratio=config.roi.sampling_ratio)
  mean, std = preset.input_format.rgb_255()
  if config.data.pixel_mean is not None:
    mean = tuple(config.data.pixel_mean)
  if config.data.pixel_std is not None:
    std = tuple(config.data.pixel_std)
  antialias = preset.input_format.antialias
  if config.data.antialias is not None:
    antialias = config.data.antialias
  if config.model.body == 'c4':
    # Peers do not pad images for a model without a pyramid: it has cells of 16
    # pixels, the last of which may lie half outside.
    preset = preset._replace(padding_multiple=16)
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
  """Returns `data.pixel_range` as numbers; a stored recipe has it as a list."""
  if config.data.pixel_range is None:
    return None
  low, high = map(float, config.data.pixel_range)
  return low, high


def has_eval_set(config: ml_collections.ConfigDict) -> bool:
  """Tells whether a recipe names a set to evaluate on."""
  return source_of(config, 'eval') is not None


def source_of(config: ml_collections.ConfigDict, part: str) -> Source | None:
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
    return source_of_files(keys.images, keys.annotations)
  return None


def scaled_to_batch(
  config: ml_collections.ConfigDict, given: frozenset[str] = frozenset()
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Adapts a recipe to another batch size than it was written for.

  With k times the images a step, the learning rate is k times as high and
  there are 1 / k as many steps, also of the warm-up and before the decays: as
  many images are seen at each rate.

  Args:
    config: The recipe; `train.reference_batch_size` is the batch size that it
      was written for.
    given: Keys that the user set on the command line; they stay as they are.

  Returns:
    The recipe for `train.batch_size`, and a line for the log that names each
    key that has changed; no line if nothing has.

  Source:
    Accurate, Large Minibatch SGD (arXiv:1706.02677), section 2.1; detectron2
    `engine/defaults.py`, auto_scale_workers.
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

  def fewer(steps):
    return max(round(steps / factor), 1) if steps else 0

  values = {
    'optimizer.learning_rate': config.optimizer.learning_rate * factor,
    'optimizer.warmup_steps': fewer(config.optimizer.warmup_steps),
    'optimizer.decay_steps': tuple(map(fewer, config.optimizer.decay_steps)),
    'train.num_steps': fewer(config.train.num_steps),
  }
  if config.optimizer.warmup == 'mlperf_linear':
    # The factor is a rise a step, to a higher rate in fewer steps.
    values['optimizer.warmup_factor'] = (
      config.optimizer.warmup_factor * factor**2
    )
  changes = []
  for key, value in values.items():
    before = value_of(config, key)
    if key in given:
      changes.append(f'{key} = {before} (given, not scaled)')
    elif value != before:
      set_value(config, key, value)
      changes.append(f'{key} = {value} (recipe: {before})')
  return config, [
    f'{config.train.batch_size} images a step, the recipe is for '
    f'{reference}: {"; ".join(changes)}. --config.train.auto_scale=False '
    'leaves all as it is.'
  ]


def anchor_arguments(config: ml_collections.ConfigDict) -> dict:
  """Returns the arguments of `ops.anchors.anchor_levels` of a recipe."""
  return {
    'sizes': dict(
      enumerate(map(tuple, config.anchors.sizes), start=first_level_of(config))
    ),
    'ratios': tuple(config.anchors.ratios),
    'rounding': geometry_of(config).anchor_rounding,
  }


def first_level_of(config: ml_collections.ConfigDict) -> int:
  """Returns the finest pyramid level of a recipe's model."""
  return {'fpn': 2, 'c4': 4}[config.model.body]


def canvas_arguments(config: ml_collections.ConfigDict) -> dict:
  """Returns the arguments of `data.canvases.plan_canvases` of a recipe."""
  return {
    'resize_rule': geometry_of(config).input_format.resize_rule,
    'short_side': config.data.short_side,
    'long_side': config.data.long_side,
    'padded_sizes': tuple(map(tuple, config.data.padded_sizes)),
    'max_source_side': config.data.max_source_side,
  }
