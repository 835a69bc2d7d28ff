"""Completes a recipe of a fine-tuning from its checkpoint and its data.

`configs/finetune.py` gives the reasons for the numbers.
"""

import math
from typing import Any

from jaxtyping import Int
import ml_collections
import numpy as np

from maskrcnn_jax.config.comparison import stored_config
from maskrcnn_jax.config.defaults import default_config, set_value, value_of
from maskrcnn_jax.config.keys import KEYS, WEIGHTS
from maskrcnn_jax.config.nvidia_training import padded_sizes
from maskrcnn_jax.config.precedence import ignored_line, refuse_other_values
from maskrcnn_jax.data.canvases import resized_size

# Keys that are always taken from the checkpoint: with other values, the network
# would differ from the network that the weights were trained for, or would get
# other inputs.
FROM_CHECKPOINT = tuple(
  key.name
  for key in KEYS
  if key.role == WEIGHTS and not (key.overridable or key.relearned)
)
# Keys that are computed if the recipe leaves them open: the learning rate by
# `adopt`, the others by `fit`. All other open keys are taken from the
# checkpoint, also the numbers of samples and proposals: the defaults, which are
# for a large network, would make a small network slow.
COMPUTED = (
  'optimizer.learning_rate',
  'train.num_steps',
  'train.checkpoint_every',
  'optimizer.warmup_steps',
  'optimizer.decay_steps',
  'data.max_objects',
  'detections.max_detections',
)
# Learning rate per image of a batch, relative to the rate per image that the
# weights were trained with. That rate itself would change the weights too much.
_RATE_FACTOR = 0.5

# 60 epochs of 50 images, 12 of 5,000: ten times as many images make 4.5 times
# as many steps. With more epochs, few images would only be memorized.
_MOST_EPOCHS, _LEAST_EPOCHS = 60, 12
_FEW_IMAGES, _MANY_IMAGES = 50, 5_000


def adopt(
  config: ml_collections.ConfigDict,
  stored: dict[str, Any],
  given: frozenset[str] = frozenset(),
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Fills in a fine-tuning's recipe from the checkpoint that it starts from.

  A key is open if its value is `None` although it must have a value. Keys that
  describe the network are always taken from the checkpoint. An open learning
  rate becomes half the rate that the checkpoint was trained with, scaled to the
  batch size. All other open keys are taken from the checkpoint too, except
  those that `fit` computes from the data.

  Args:
    config: A recipe with `train.fine_tune`.
    stored: The recipe that the checkpoint stores, a nested dict.
    given: Names of the keys that the user gave on the command line.

  Returns:
    The recipe, in which only keys that `fit` computes are open; and lines for
    the log that name the keys of the recipe file that are not used. The list is
    empty if all keys are used.

  Raises:
    InputError: If a key that is always taken from the checkpoint is given with
      another value.
  """
  refuse_other_values(
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
  """Fills in the open keys of a fine-tuning's recipe from the default recipe.

  This is for programs that have no checkpoint to take the values from. A key is
  open if its value is `None` although it must have a value. An open learning
  rate becomes half the default learning rate, scaled to the batch size.

  Args:
    config: A recipe with `train.fine_tune`; it is not changed. Keys that have a
      value keep it.

  Returns:
    The recipe, in which only keys that `fit` computes are open.
  """
  return _filled(config, default_config())


def _filled(
  config: ml_collections.ConfigDict, there: ml_collections.ConfigDict
) -> ml_collections.ConfigDict:
  """Fills in the open keys of a recipe from another recipe.

  The learning rate, if open, is half the learning rate of the other recipe,
  scaled from its batch size to the batch size of the result. The other keys in
  `COMPUTED` stay open.

  Args:
    config: The recipe with open keys; it is not changed.
    there: The complete recipe to take values from.

  Returns:
    A copy of the recipe, filled in.
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
  """Completes a fine-tuning's recipe with values for the size of the data.

  Open keys of the schedule are chosen by the number of images. Open numbers of
  slots for objects and for detections are chosen by the largest number of
  objects in an image. Keys that have a value keep it.

  Args:
    config: A recipe, as `adopt` or `adopt_defaults` returns it.
    num_images: Number of images to train on.
    most_objects: Largest number of objects in an image.

  Returns:
    The complete recipe, with `train.fine_tune` False; and a line for the log
    that names the chosen values.
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
    # The same fractions as 60,000 and 80,000 of COCO's 90,000 steps.
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
    f'{config.train.batch_size} a step: {text}. Each value can be set, for '
    f'example --config.train.num_steps={2 * steps}'
  )


def shrink_warning(
  heights: Int[np.ndarray, 'n'],
  widths: Int[np.ndarray, 'n'],
  config: ml_collections.ConfigDict,
) -> str:
  """Warns if the image size of the checkpoint is too small for the data.

  It is too small if it shrinks more than half of the images to less than half
  of their height and width.

  Args:
    heights: Heights of the n training images, in pixels.
    widths: Widths of the n training images, in pixels.
    config: The complete recipe.

  Returns:
    The warning in one line, with flags that halve the images; '' if the image
    size is large enough.
  """
  sides = config.data.short_side, config.data.long_side
  scales = np.array(
    [
      resized_size(height, width, short_side=sides[0], long_side=sides[1])[0]
      / height
      for height, width in zip(heights.tolist(), widths.tolist(), strict=True)
    ]
  )
  median = float(np.median(scales)) if len(scales) else 1.0
  if median >= 0.5:
    return ''
  middle = int(np.argsort(scales)[len(scales) // 2])
  size = int(heights[middle]), int(widths[middle])
  # 0.5 / median times as large, and rounded up to the stride of the network.
  short, long = (
    -(-math.ceil(side * 0.5 / median) // 32) * 32 for side in sides
  )
  padded = repr(padded_sizes(short, long)).replace(' ', '')
  return (
    f'THE IMAGES ARE SHRUNK to {median:.2f} of their height and width (median; '
    f'for example from {size[0]}x{size[1]} pixels), because the checkpoint was '
    f'trained with data.short_side {sides[0]} and data.long_side {sides[1]}. '
    'Small objects may disappear. If yours are small, cut the images into '
    f'pieces, or give --config.data.short_side={short} --config.data.long_side='
    f"{long} --config.data.padded_sizes='{padded}', which halves the images "
    'and needs more memory.'
  )
