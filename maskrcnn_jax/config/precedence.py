"""Decides the value of each key when a trained model evaluates or predicts.

A key with the role `WEIGHTS` has the value that the weights were trained with;
if the key is `overridable`, the command line may change it.
Every other key has the value on the command line; without one, the value in the
recipe file; without a recipe file, the value in the recipe that the checkpoint
stores. A recipe file of a fine-tuning says how to continue from a checkpoint.
Its keys with the role `TRAINING` and its open keys are therefore ignored here.
"""

from typing import Any

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
  recipe: Recipe, stored: dict[str, Any]
) -> tuple[ml_collections.ConfigDict, list[str]]:
  """Makes the recipe for evaluating or predicting with a checkpoint.

  The result is the stored recipe, with the values of the user's recipe in the
  keys that the user may decide. The top of this file has the rules.

  Args:
    recipe: The user's recipe. If its path is `None`, the user has given no
      recipe file, and only the keys of the command line are taken from it.
    stored: The recipe that the checkpoint stores, a nested dict.

  Returns:
    The recipe, not checked yet; and lines for the log that name the keys of the
    recipe file that are not used. The list is empty if all keys are used.

  Raises:
    InputError: If the weights depend on a key, and its value on the command
      line differs from its value in the checkpoint.
  """
  there = stored_config(stored)
  refuse_other_values(
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
  """Tells whether the value of a key comes from the user's recipe.

  Otherwise it comes from the recipe that the checkpoint stores. A key of the
  command line always comes from the user. A key of the recipe file does unless
  the weights depend on it, the file leaves it open, or the file is a recipe of
  a fine-tuning and the key has the role `TRAINING`.

  Args:
    key: The key.
    recipe: The user's recipe; its path is `None` without a recipe file.
  """
  if key.name in recipe.given:
    return True
  if recipe.path is None or key.role == WEIGHTS:
    return False
  if recipe.config.train.fine_tune and key.role == TRAINING:
    # These keys describe a later training, not the training of this checkpoint.
    return False
  is_open = value_of(recipe.config, key.name) is None
  return not is_open or key.form.may_be_none


def refuse_other_values(
  config: ml_collections.ConfigDict, stored: dict[str, Any], given: list[str]
) -> None:
  """Raises an InputError if a given key differs from the checkpoint's value.

  It is called before an evaluation, a prediction and a fine-tuning.

  Args:
    config: The recipe with the given values.
    stored: The recipe that the checkpoint stores, a nested dict.
    given: Names of the keys to compare: keys on the command line that must keep
      the value that the weights were trained with. The caller has left out the
      keys that may be overridden.
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
      'C02: The weights of the checkpoint can only be used with the value that '
      'they were trained with (given | checkpoint): '
      f'{format_differences(different)}. '
      f'Leave --config.{different[0].key} out.'
    )


def ignored_line(
  recipe: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> list[str]:
  """Returns a line for the log about keys of a recipe file that are not used.

  These are the keys with the role `WEIGHTS` for which the checkpoint has
  another value. For a recipe of a fine-tuning, which leaves the network to the
  checkpoint, only keys that it sets to another value than the default are
  named.

  Args:
    recipe: The recipe of the user.
    config: The recipe that is used.

  Returns:
    A list with the line; it is empty if there is no such key.
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
