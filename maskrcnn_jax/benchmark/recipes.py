"""Completes the recipe of a fine-tuning without a checkpoint."""

import ml_collections

from maskrcnn_jax.config import fine_tuning
from maskrcnn_jax.config.check import check_config


def complete_recipe(
  config: ml_collections.ConfigDict, *, num_images: int, most_objects: int
) -> ml_collections.ConfigDict:
  """Fills in the keys that the recipe of a fine-tuning leaves open.

  A key is open if its value is `None` although it must have a value. A training
  takes most open keys from its checkpoint. A benchmark has no checkpoint and
  takes them from the default recipe; the learning rate is half the default,
  scaled to the batch size. The schedule is computed from the number of images,
  and the slots for objects and detections from the largest number of objects in
  an image, as in a training. Keys that have a value keep it.

  Args:
    config: Any recipe. A recipe without `train.fine_tune` is returned as it is.
    num_images: Number of images that are trained on.
    most_objects: Largest number of objects in an image.

  Returns:
    A complete recipe, with `train.fine_tune` False. The argument is not
    changed.

  Raises:
    InputError: If keys of the completed recipe contradict each other.
  """
  if not config.train.fine_tune:
    return config
  config, _ = fine_tuning.fit(
    fine_tuning.adopt_defaults(config),
    num_images=num_images,
    most_objects=most_objects,
  )
  check_config(config)
  return config
