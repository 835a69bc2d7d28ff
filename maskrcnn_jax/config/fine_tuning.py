"""What a fine-tuning takes from its checkpoint, and what from its data.

`configs/finetune.py` says why the figures are what they are.
"""

import math
import operator

import ml_collections

from maskrcnn_jax.config import default_config, plain, stored_config

# Without these the weights would see something else than they were trained on.
FROM_CHECKPOINT = (
    'geometry', 'model', 'roi.box_side', 'roi.mask_side', 'roi.sampling_ratio',
    'data.pixel_mean', 'data.pixel_std', 'data.antialias', 'freeze_at',
)
# Taken from the checkpoint where the recipe leaves them open.
OPEN_FROM_CHECKPOINT = (
    'anchors.sizes', 'anchors.ratios', 'data.short_side', 'data.long_side',
    'data.padded_sizes', 'data.max_source_side',
    # A small network is not slowed down by the many boxes of a large one's.
    'rpn.num_samples', 'roi.num_samples',
    'rpn.train.pre_nms', 'rpn.train.post_nms', 'rpn.train.num_proposals',
    'rpn.eval.pre_nms', 'rpn.eval.post_nms', 'rpn.eval.num_proposals',
)
# A rate that the weights stood while they were trained would throw them far
# from where they are.
_RATE_FACTOR = 0.5

# 60 epochs of 50 images, 12 of 5,000: ten times as many images make 4.5 times
# as many steps. More epochs of few images would only be learned by heart.
_MOST_EPOCHS, _LEAST_EPOCHS = 60, 12
_FEW_IMAGES, _MANY_IMAGES = 50, 5_000


def adopt(
    config: ml_collections.ConfigDict, stored: dict
) -> ml_collections.ConfigDict:
  """Returns a recipe with what its weights ask for.

  Args:
    config: A recipe with `train.fine_tune`.
    stored: The recipe of the checkpoint, a plain dict.
  """
  stored = stored_config(stored)
  config = config.copy_and_resolve_references()
  with config.ignore_type():
    for key in FROM_CHECKPOINT + OPEN_FROM_CHECKPOINT:
      if key in FROM_CHECKPOINT or operator.attrgetter(key)(config) is None:
        _set(config, key, operator.attrgetter(key)(stored))
    if config.optimizer.learning_rate is None:
      rate = stored.optimizer.learning_rate / stored.train.batch_size
      config.optimizer.learning_rate = float(
          f'{_RATE_FACTOR * rate * config.train.batch_size:.3g}'
      )
  return config


def adopt_defaults(
    config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Does what `adopt` does where there is no checkpoint to ask.

  What the recipe leaves open becomes the default; all else stays.

  Args:
    config: A recipe with `train.fine_tune`.
  """
  stored = default_config()
  with stored.ignore_type():
    for key in FROM_CHECKPOINT:
      _set(stored, key, operator.attrgetter(key)(config))
  return adopt(config, plain(stored))


def fit(
    config: ml_collections.ConfigDict, *, num_images: int, most_objects: int
) -> tuple[ml_collections.ConfigDict, str]:
  """Returns a recipe with what is None taken from the size of the data.

  Args:
    config: A recipe, as `adopt` gives it.
    num_images: To train on.
    most_objects: That an image has.

  Returns:
    The recipe, complete and no longer `train.fine_tune`; and a line for the
    log that says what was chosen.
  """
  config = config.copy_and_resolve_references()
  share = math.log(max(num_images, 1) / _FEW_IMAGES) / math.log(
      _MANY_IMAGES / _FEW_IMAGES
  )
  share = min(max(share, 0), 1)
  epochs = _MOST_EPOCHS * (_LEAST_EPOCHS / _MOST_EPOCHS) ** share
  steps = config.train.num_steps
  if steps is None:
    steps = max(math.ceil(epochs * num_images / config.train.batch_size), 100)
  slots = min(max(8 * math.ceil(most_objects / 8), 8), 512)
  values = {
      'train.num_steps': steps,
      'train.checkpoint_every': max(steps // 10, 1),
      'optimizer.warmup_steps': min(500, steps // 10),
      # As 60,000 and 80,000 are in 90,000, the schedule of COCO.
      'optimizer.decay_steps': (steps * 2 // 3, steps * 8 // 9),
      'data.max_objects': slots,
      'detections.max_detections': max(100, slots),
  }
  with config.ignore_type():
    for key, value in values.items():
      if operator.attrgetter(key)(config) is None:
        _set(config, key, value)
    config.train.fine_tune = False
  text = ', '.join(
      f'{key} {operator.attrgetter(key)(config)}'
      for key in ('optimizer.learning_rate', *values)
  )
  return config, (
      f'Fine-tuning on {num_images} images of at most {most_objects} objects, '
      f'{config.train.batch_size} a step: {text}. Each can be set, for example '
      f'--config.train.num_steps={2 * steps}'
  )


def for_use(
    config: ml_collections.ConfigDict, stored: dict
) -> ml_collections.ConfigDict:
  """Returns the recipe of a fine-tuned checkpoint, on the data of another.

  Args:
    config: A recipe with `train.fine_tune`: it says what to look at.
    stored: The recipe of the checkpoint, a plain dict.
  """
  stored = stored_config(stored)
  for key in ('data.eval', 'data.tfds_dir', 'eval', 'expected', 'predict'):
    _set(stored, key, operator.attrgetter(key)(config))
  return stored


def _set(config, key, value):
  """Sets a key such as 'data.max_objects'."""
  *groups, name = key.split('.')
  for group in groups:
    config = config[group]
  config[name] = value
