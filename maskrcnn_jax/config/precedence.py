"""Which value holds when a trained model is used.

A key of the weights has the value that the weights were trained with. All
other keys have the value of the command line, else of the recipe file, else of
the recipe that the checkpoint stores. A recipe file of a fine-tuning says how
to continue from a checkpoint, so its keys of training, and those that it leaves
open, do not count here.
"""

import ml_collections

from maskrcnn_jax.config.comparison import (
  Difference,
  differences,
  format_differences,
  plain,
  stored_config,
)
from maskrcnn_jax.config.defaults import default_config, set_value, value_of
from maskrcnn_jax.config.keys import KEYS, TRAINING, WEIGHTS, Key
from maskrcnn_jax.config.recipe import Recipe
from maskrcnn_jax.errors import InputError


def config_for_use(
  recipe: Recipe, stored: dict
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Returns the recipe for evaluating or predicting with a checkpoint.

  Args:
    recipe: The user's recipe; without a path, only the given keys count.
    stored: The recipe that the checkpoint stores, a plain dict.

  Returns:
    The recipe, not checked yet; and lines for the log that name the keys of
    the recipe file that are not used, empty if all of them are used.

  Raises:
    InputError: If a key of the weights is given with another value than that
      of the checkpoint.
  """
  there = stored_config(stored)
  refuse_other_weights(
    recipe.config,
    stored,
    [
      key.name
      for key in KEYS
      if key.name in recipe.given
      and key.role == WEIGHTS
      and not key.overridable
    ],
  )
  config = there.copy_and_resolve_references()
  for key in KEYS:
    if _comes_from_recipe(key, recipe):
      set_value(config, key.name, value_of(recipe.config, key.name))
  if recipe.path is None:
    return config, []
  return config, ignored_line(recipe.config, config)


def _comes_from_recipe(key: Key, recipe: Recipe) -> bool:
  """Tells whether a recipe, not the checkpoint, decides the value of a key."""
  if key.name in recipe.given:
    return True
  if recipe.path is None or key.role == WEIGHTS:
    return False
  if recipe.config.train.fine_tune and key.role == TRAINING:
    return False  # It says how to go on from a checkpoint, not how one began.
  is_open = value_of(recipe.config, key.name) is None
  return not is_open or key.form.may_be_none


def refuse_other_weights(
  config: ml_collections.ConfigDict, stored: dict, given: list[str]
) -> None:
  """Raises an InputError if given keys differ from those of a checkpoint.

  Args:
    config: The recipe with the given values.
    stored: The recipe of the checkpoint, a plain dict.
    given: The keys that the weights depend on and that the user gave.
  """
  there = stored_config(stored)
  here = there.copy_and_resolve_references()
  for name in given:
    set_value(here, name, value_of(config, name))
  different = [
    difference
    for difference in differences(here, plain(there))
    if difference.key in given
  ]
  if different:
    raise InputError(
      'C02: The weights of the checkpoint were trained with another value '
      '(given | checkpoint) and fit no other: '
      f'{format_differences(different)}. '
      f'Leave --config.{different[0].key} out.'
    )


def ignored_line(
  recipe: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns a line about the keys of the weights that a recipe file sets.

  A recipe of a fine-tuning leaves the network to the checkpoint, so only what
  it sets otherwise than the defaults is named.

  Args:
    recipe: The recipe of the user.
    config: The recipe that holds.

  Returns:
    One line, or none if no such key differs.
  """
  defaults = default_config()
  weights = {key.name for key in KEYS if key.role == WEIGHTS}
  ignored = [
    Difference(name, here, there)
    for name, here, there in differences(recipe, plain(config))
    if name in weights
    and here is not None
    and not (
      recipe.train.fine_tune
      and plain(value_of(recipe, name)) == plain(value_of(defaults, name))
    )
  ]
  if not ignored:
    return []
  return [
    'The checkpoint decides keys that its weights depend on (recipe file | '
    f'checkpoint): {format_differences(ignored)}'
  ]
