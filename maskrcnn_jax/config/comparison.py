"""Converts recipes to the form that a checkpoint stores, and compares them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax import geometry
from maskrcnn_jax.config.defaults import default_config
from maskrcnn_jax.config.forms import describe, may_have_type
from maskrcnn_jax.config.keys import BY_NAME, REMOVED_KEYS
from maskrcnn_jax.errors import DamagedCheckpoint

# The value that a message shows for a key that only the other recipe has.
NOTHING = 'nothing'


class Difference(NamedTuple):
  """A key that has different values in two recipes."""

  key: str  # full name, such as 'rpn.train.pre_nms'
  here: Any  # value in the first recipe, usually the recipe of this run
  there: Any  # value in the second recipe, usually the recipe of a checkpoint


def plain(value: Any) -> Any:
  """Converts a recipe, or a value in it, to types that JSON has.

  ConfigDicts become dicts and tuples become lists, at every depth, so that
  writing the result as JSON and reading it again gives an equal result.
  """
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [plain(item) for item in value]
  return value


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens a nested dict to {'group.key': value}, values as `plain` has them.

  Args:
    tree: A recipe, or a group of keys, as a nested dict.
    prefix: Put before each name: the name of the group and a dot.
  """
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = plain(value)
  return flat


def stored_config(stored: dict[str, Any]) -> ml_collections.ConfigDict:
  """Converts the recipe that a checkpoint stores back to a `ConfigDict`.

  Keys that are newer than the checkpoint get their defaults, and keys that
  this version no longer has are left out. Lists become tuples again, because
  JSON has no tuples.

  Args:
    stored: A nested dict, as `plain` returns it.

  Raises:
    DamagedCheckpoint: If there is a value in the place of a group of keys, a
      group in the place of a value, or a value of a wrong type.
  """
  tree = _fill(stored, default_config().to_dict())
  for name, value in _values_of(tree):
    if not may_have_type(BY_NAME[name].form, value):
      raise _damaged(name, value, describe(BY_NAME[name].form))
  config = ml_collections.ConfigDict(
    {
      key: _with_tuples(value, key)
      for key, value in tree.items()
      if key not in REMOVED_KEYS
    }
  )
  config.lock()
  return config


def facts_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns {key: value} of all keys, with no value left to the preset.

  A key that is `None` because the preset of `config.geometry` decides it gets
  the value of the preset. Values are as `plain` returns them.
  """
  return flatten(_name_preset_values(config.to_dict()))


def compilation_facts(
  config: ml_collections.ConfigDict, *, for_training: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the keys of a recipe that decide which programs are compiled.

  Args:
    config: The recipe.
    for_training: Whether the program is a training step; otherwise it detects
      objects.

  Returns:
    {key: value} of the keys that mainly decide how long the compilation takes;
    and {key: value} of all keys on which the program may depend.
  """
  unused = ['data.train.', 'data.eval.', 'eval.', 'expected.', 'predict.']
  used = ['train.micro_batches']
  if for_training:
    used += ['train.ema_decay', 'train.num_steps']
  else:
    unused += ['optimizer.', 'loss_weights.', 'seed']
  program = {
    key: value
    for key, value in facts_of(config).items()
    if key in used or not key.startswith(('train.', *unused))
  }
  kind = {
    key: value
    for key, value in program.items()
    if key.startswith('model.') or key in ('precision', 'train.micro_batches')
  }
  return kind, program


def differences(
  config: ml_collections.ConfigDict, other: dict[str, Any]
) -> list[Difference]:
  """Returns the keys whose values differ in two recipes, in alphabetical order.

  A value that the preset gives and the same value written out are equal.

  Args:
    config: The first recipe.
    other: The second recipe, a nested dict as `plain` returns it.
  """
  here = facts_of(config)
  there = flatten(
    _name_preset_values(
      {key: value for key, value in other.items() if key not in REMOVED_KEYS}
    )
  )
  return [
    Difference(key, here.get(key, NOTHING), there.get(key, NOTHING))
    for key in sorted(here | there)
    if here.get(key, NOTHING) != there.get(key, NOTHING)
  ]


def format_differences(found: Iterable[Difference]) -> str:
  """Formats differences for a message: 'key: here | there; key: here | ...'."""
  return '; '.join(f'{key}: {here} | {there}' for key, here, there in found)


def _fill(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
  """Returns a nested dict with all keys of two nested dicts.

  Args:
    tree: The dict whose values are used for all keys that it has.
    defaults: The dict whose values are used for all other keys, at every depth.

  Raises:
    DamagedCheckpoint: If `tree` has a value where `defaults` has a dict.
  """
  filled = defaults | tree
  for key, value in tree.items():
    default = defaults.get(key)
    if isinstance(default, dict):
      if not isinstance(value, dict):
        raise _damaged(key, value, 'a group of keys')
      filled[key] = _fill(value, default)
  return filled


def _values_of(
  tree: dict[str, Any], prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields the full name and the value of each known key of a nested dict.

  Args:
    tree: A recipe, or a group of keys. If it has a dict in the place of a
      value, the dict is yielded.
    prefix: The name of the group and a dot.
  """
  for key, value in tree.items():
    if prefix + key in BY_NAME:
      yield prefix + key, value
    elif isinstance(value, dict):
      yield from _values_of(value, f'{prefix}{key}.')


def _damaged(name: str, value: Any, wanted: str) -> DamagedCheckpoint:
  """Returns the error about a key of a checkpoint's recipe.

  Args:
    name: Name of the key.
    value: Its value.
    wanted: The values that the key may have, in words.
  """
  return DamagedCheckpoint(
    f'C08: the recipe of the checkpoint is damaged: {name} is {value!r:.50}, '
    f'not {wanted}. Try an earlier checkpoint.'
  )


def _with_tuples(value: Any, name: str) -> Any:
  """Converts lists to tuples in those keys whose values are tuples.

  Args:
    value: The value of a key, or a group of keys as a nested dict.
    name: The full name of the key or the group.
  """
  if isinstance(value, dict):
    return {
      key: _with_tuples(item, f'{name}.{key}') for key, item in value.items()
    }
  form = BY_NAME[name].form if name in BY_NAME else None
  may_be_tuple = form is not None and (form.kind is tuple or form.several)
  return _nested_tuple(value) if may_be_tuple else value


def _nested_tuple(value: Any) -> Any:
  """Converts lists to tuples at every depth."""
  if isinstance(value, list | tuple):
    return tuple(map(_nested_tuple, value))
  return value


def _name_preset_values(tree: dict[str, Any]) -> dict[str, Any]:
  """Replaces each `None` that means "as the preset" by the preset's value.

  Args:
    tree: A recipe as a nested dict. If its preset is not known, it is returned
      unchanged.
  """
  preset = geometry.PRESETS.get(tree.get('geometry', ''))
  if preset is None:
    return tree
  mean, std = preset.input_format.rgb_255()
  values: dict[str, dict[str, Any]] = {
    'roi': {'sampling_ratio': preset.sampling_ratio},
    'data': {
      'pixel_mean': mean,
      'pixel_std': std,
      'antialias': preset.input_format.antialias,
    },
  }
  return tree | {
    part: group
    | {
      key: value
      for key, value in values[part].items()
      if key in group and group[key] is None
    }
    for part, group in tree.items()
    if part in values
  }
