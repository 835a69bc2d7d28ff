"""The values that a fine-tuning takes from its checkpoint and from its data.

`configs/finetune.py` gives the reasons for the numbers.
"""

import math

import ml_collections

from maskrcnn_jax.config.comparison import stored_config
from maskrcnn_jax.config.defaults import default_config, set_value, value_of
from maskrcnn_jax.config.keys import KEYS, WEIGHTS
from maskrcnn_jax.config.precedence import ignored_line, refuse_other_weights

# Always taken from the checkpoint: with other values the weights would see
# something else than they were trained on.
FROM_CHECKPOINT = tuple(
  key.name
  for key in KEYS
  if key.role == WEIGHTS and not (key.overridable or key.relearned)
)
# Computed by `adopt` and by `fit` where the recipe leaves them open. All other
# open keys are taken from the checkpoint. The numbers of samples and proposals
# are among those: the many boxes of a large network would slow a small one.
COMPUTED = (
  'optimizer.learning_rate',
  'train.num_steps',
  'train.checkpoint_every',
  'optimizer.warmup_steps',
  'optimizer.decay_steps',
  'data.max_objects',
  'detections.max_detections',
)
# With the learning rate that the weights were trained with, they would move
# too far from where they are.
_RATE_FACTOR = 0.5

# 60 epochs of 50 images, 12 of 5,000: ten times as many images make 4.5 times
# as many steps. With more epochs, few images would only be memorized.
_MOST_EPOCHS, _LEAST_EPOCHS = 60, 12
_FEW_IMAGES, _MANY_IMAGES = 50, 5_000


def adopt(
  config: ml_collections.ConfigDict,
  stored: dict,
  given: frozenset[str] = frozenset(),
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Returns a recipe with the values that its weights need.

  Args:
    config: A recipe with `train.fine_tune`.
    stored: The recipe of the checkpoint, a plain dict.
    given: Keys that the command line gave.

  Returns:
    The recipe; and lines for the log that name the keys of the recipe file
    that are not used, empty if all of them are used.

  Raises:
    InputError: If a key is given that must be as in the checkpoint, and has
      another value.
  """
  refuse_other_weights(
    config, stored, [name for name in FROM_CHECKPOINT if name in given]
  )
  there = stored_config(stored)
  adopted = _filled(config, there)
  for name in FROM_CHECKPOINT:
    set_value(adopted, name, value_of(there, name))
  return adopted, ignored_line(config, adopted)


def adopt_defaults(
  config: ml_collections.ConfigDict,
) -> ml_collections.ConfigDict:
  """Fills in the defaults where there is no checkpoint to take values from.

  Args:
    config: A recipe with `train.fine_tune`. Keys that it does not leave open
      keep their values.
  """
  return _filled(config, default_config())


def _filled(
  config: ml_collections.ConfigDict, there: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Returns a recipe whose open keys are those of another recipe.

  The learning rate is computed; the other `COMPUTED` keys stay open.
  """
  config = config.copy_and_resolve_references()
  for key in KEYS:
    is_open = value_of(config, key.name) is None and not key.form.may_be_none
    if is_open and key.name not in COMPUTED:
      set_value(config, key.name, value_of(there, key.name))
  if config.optimizer.learning_rate is None:
    rate = there.optimizer.learning_rate / there.train.batch_size
    set_value(
      config,
      'optimizer.learning_rate',
      float(f'{_RATE_FACTOR * rate * config.train.batch_size:.3g}'),
    )
  return config


def fit(
  config: ml_collections.ConfigDict, *, num_images: int, most_objects: int
) -> tuple[ml_collections.ConfigDict, str]:
  """Returns a recipe with its open keys chosen for the size of the data.

  Args:
    config: A recipe, as `adopt` gives it.
    num_images: Number of images to train on.
    most_objects: Largest number of objects that an image has.

  Returns:
    The recipe, complete and no longer `train.fine_tune`; and a line for the
    log that names the chosen values.
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
    # In the same places as 60,000 and 80,000 of COCO's 90,000 steps.
    'optimizer.decay_steps': (steps * 2 // 3, steps * 8 // 9),
    'data.max_objects': slots,
    'detections.max_detections': max(100, slots),
  }
  for key, value in values.items():
    if value_of(config, key) is None:
      set_value(config, key, value)
  config.train.fine_tune = False
  text = ', '.join(
    f'{key} {value_of(config, key)}'
    for key in ('optimizer.learning_rate', *values)
  )
  return config, (
    f'Fine-tuning on {num_images} images of at most {most_objects} objects, '
    f'{config.train.batch_size} a step: {text}. Each can be set, for example '
    f'--config.train.num_steps={2 * steps}'
  )
