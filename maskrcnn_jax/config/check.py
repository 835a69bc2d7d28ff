"""Checks a recipe before anything is started with it.

The values that a single key may have are in its row of `KEYS`. This file has
the rules about several keys at once.
"""

from typing import Any

import ml_collections

from maskrcnn_jax.config.comparison import plain
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.forms import problem_with
from maskrcnn_jax.config.keys import KEYS, names
from maskrcnn_jax.errors import InputError


def check_config(
  config: ml_collections.ConfigDict, *, for_training: bool = True
) -> None:
  """Raises an InputError if a recipe has values that no run could use.

  A key is open if its value is `None` although it must have a value. Only a
  recipe of a fine-tuning may have open keys; `train` fills them in and checks
  the recipe again.

  Args:
    config: The recipe.
    for_training: Whether the rules about several keys of training are checked
      too. They are not when a trained model is evaluated or predicts: keys of
      training then have no effect, and may come from another recipe than the
      keys that they are compared with.
  """
  check_values(config)
  if for_training and config.train.fine_tune:
    if config.train.reference_batch_size is not None:
      raise InputError(
        'C05: config.train.reference_batch_size is '
        f'{config.train.reference_batch_size}, but a fine-tuning chooses its '
        'learning rate and steps for its own batch size; leave it out.'
      )
    return
  checks = [_check_model, _check_images]
  if for_training:
    checks += [_check_training, _check_sampling, _check_augmentation]
  for check in checks:
    problem = check(config)
    if problem:
      raise InputError(f'C05: {problem}')


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks each key of a recipe by itself.

  Values of different keys are not compared.

  Args:
    config: The recipe.

  Raises:
    InputError: If a key has a value of the wrong type or out of its range.
  """
  is_complete = not config.train.fine_tune
  for key in KEYS:
    value = value_of(config, key.name)
    if value is None:
      if is_complete and not key.form.may_be_none:
        raise InputError(
          f'C05: config.{key.name} is None; give a value. Only a recipe with '
          'config.train.fine_tune may leave keys open.'
        )
      continue
    problem = problem_with(key.form, value)
    if problem:
      raise InputError(
        f'C05: config.{key.name} is {_written(value)}; {problem}.'
      )


def _written(value: Any) -> str:
  """Returns the Python expression for a value of a key, for a message.

  Lists are written as tuples, because recipes have tuples.
  """
  if isinstance(value, list):
    value = tuple(
      tuple(item) if isinstance(item, list) else item for item in value
    )
  return repr(value)


def _check_model(config: ml_collections.ConfigDict) -> str | None:
  """Checks the keys of the network and of the anchors against each other.

  Keys that only a ResNet has must keep their defaults with another backbone,
  which cannot have the body 'c4' or 'dc5' either. Depths below 50 have no
  groups and no body 'dc5'. `anchors.sizes` must have five entries with the body
  'fpn' and one with any other, each with the same number of sizes.

  Returns:
    The message about the first rule that is broken, `None` if none is.
  """
  model = config.model
  if model.backbone != 'resnet':
    for name in names(resnet_only=True):
      default = next(key.default for key in KEYS if key.name == name)
      if value_of(config, name) != default:
        return (
          f'config.{name} is {value_of(config, name)!r}, but only a ResNet '
          f'has it and config.model.backbone is {model.backbone!r}; leave '
          f'config.{name} out, or set it to {default!r}.'
        )
    if model.body in ('c4', 'dc5'):
      return (
        f'config.model.body is {model.body!r}, which needs the last stage of a '
        f'ResNet, but config.model.backbone is {model.backbone!r}; set '
        "config.model.body to 'fpn' or 'c5'."
      )
  if model.groups > 1 and model.depth < 50:
    return (
      f'config.model.groups is {model.groups}, but a ResNet of depth '
      f'{model.depth} has no bottleneck blocks, which alone can have groups; '
      'set config.model.depth to 50 or 101.'
    )
  if model.body == 'dc5' and model.depth < 50:
    return (
      "config.model.body is 'dc5', but a ResNet of depth "
      f'{model.depth} has no bottleneck blocks, which alone can be dilated; '
      'set config.model.depth to 50 or 101.'
    )
  sizes = config.anchors.sizes
  if model.body == 'fpn':
    levels, number = 'each of the levels 2 to 6', 5
  else:
    levels, number = 'the only level', 1
  if len(sizes) != number:
    recipes = {
      'fpn': 'r50_fpn, r101_fpn, faster_rcnn_r50_fpn or rpn_r50_fpn',
      'c4': 'r50_c4, r101_c4 or faster_rcnn_r50_c4',
      'c5': 'r50_c5 or r101_c5',
      'dc5': 'r50_dc5',
    }
    return (
      f'config.anchors.sizes has {len(sizes)} entries; give one tuple of '
      f'sizes for {levels} of a body {model.body!r}. Other keys depend on '
      'config.model.body too, so begin with a recipe that has this body: '
      f'{recipes[model.body]}.'
    )
  if len({len(of_level) for of_level in sizes}) != 1:
    return (
      'config.anchors.sizes must have the same number of sizes on each '
      'level, because all levels share one RPN head.'
    )
  return None


def _check_training(config: ml_collections.ConfigDict) -> str | None:
  """Checks the keys of the schedule and of the optimizer against each other.

  `train.ema_decay` must be below 1. Only one of `train.eval_every` and
  `train.eval_every_epochs` may be given; one must be given if
  `train.min_box_ap` or `train.min_mask_ap` is. With 'adamw', `momentum` and
  `beta2` must be below 1.

  Returns:
    The message about the first rule that is broken, `None` if none is.
  """
  train, optimizer = config.train, config.optimizer
  if train.ema_decay == 1:
    return (
      'config.train.ema_decay is 1, so the average would never change; give a '
      'number below 1.'
    )
  if train.eval_every and train.eval_every_epochs:
    return (
      'Give config.train.eval_every or config.train.eval_every_epochs, not '
      'both.'
    )
  if (train.min_box_ap or train.min_mask_ap) and not (
    train.eval_every or train.eval_every_epochs
  ):
    return (
      'config.train.min_box_ap and min_mask_ap need evaluations during the '
      'training; give --config.train.eval_every=STEPS or '
      '--config.train.eval_every_epochs=EPOCHS too.'
    )
  if optimizer.name == 'adamw':
    for name in ('momentum', 'beta2'):
      if optimizer[name] >= 1:
        return (
          f'config.optimizer.{name} is {optimizer[name]}; it must be below 1 '
          'for adamw.'
        )
  return None


def _check_sampling(config: ml_collections.ConfigDict) -> str | None:
  """Checks that the RoI sampling leaves room for at least one foreground RoI.

  This means that `roi.num_samples` * `roi.foreground_fraction` is at least 1.

  Returns:
    The message if the product is less than 1, otherwise `None`.
  """
  if config.roi.num_samples * config.roi.foreground_fraction < 1:
    return (
      'config.roi.num_samples times config.roi.foreground_fraction is less '
      'than 1; no mask would ever be learned. Raise one of the two.'
    )
  return None


def _check_augmentation(config: ml_collections.ConfigDict) -> str | None:
  """Checks the keys of the augmentation against each other.

  `data.short_sides` and `data.scale_jitter` exclude each other, no short side
  may exceed `data.short_side`, and `data.scale_jitter` must be a rising pair of
  positive factors.

  Returns:
    The message about the first rule that is broken, `None` if none is.
  """
  data = config.data
  if data.short_sides and data.scale_jitter:
    return (
      'config.data has short_sides and scale_jitter; both decide the size of '
      'an image, so give only one.'
    )
  if any(side > data.short_side for side in data.short_sides):
    return (
      f'config.data.short_sides is {tuple(data.short_sides)}; give whole '
      f'numbers up to config.data.short_side ({data.short_side}), because '
      'larger images may not fit into config.data.padded_sizes.'
    )
  scales = data.scale_jitter
  if scales and not (len(scales) == 2 and 0 < scales[0] <= scales[1]):
    return (
      f'config.data.scale_jitter is {tuple(scales)}; give the least and the '
      'greatest factor, both above 0, for example (0.1, 2.0).'
    )
  return None


def _check_images(config: ml_collections.ConfigDict) -> str | None:
  """Checks `data.pixel_range` and `data.padded_sizes`.

  The pixel range must rise. There must be at least one padded size, and its
  sides must be multiples of 32 pixels.

  Returns:
    The message about the first rule that is broken, `None` if none is.
  """
  data = config.data
  if data.pixel_range is not None and not (
    data.pixel_range[0] < data.pixel_range[1]
  ):
    return (
      f'config.data.pixel_range is {tuple(data.pixel_range)}; give the '
      'values that become black and white, the lower value first.'
    )

  if not data.padded_sizes:
    return (
      'config.data.padded_sizes is empty; give at least one (height, width).'
    )
  for size in data.padded_sizes:
    if any(side < 32 or side % 32 for side in size):
      return (
        f'config.data.padded_sizes has {tuple(plain(size))}; give (height, '
        'width) in multiples of 32 pixels.'
      )
  return None
