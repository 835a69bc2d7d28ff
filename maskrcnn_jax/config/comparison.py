"""Recipes as a checkpoint stores them, and the comparison of two recipes."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax import geometry
from maskrcnn_jax.config.defaults import default_config
from maskrcnn_jax.config.keys import BY_NAME, REMOVED_KEYS

# Stands for the value of a key that one of two recipes does not have.
NOTHING = 'nothing'


class Difference(NamedTuple):
  """A key that has different values in two recipes."""

  key: str
  here: Any
  there: Any


def plain(value):
  """Returns nested dicts, lists and numbers that JSON gives back unchanged."""
  if isinstance(value, ml_collections.ConfigDict):
    value = value.to_dict()
  if isinstance(value, dict):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [plain(item) for item in value]
  return value


def flatten(tree: dict, prefix: str = '') -> dict[str, Any]:
  """Returns {'group.key': plain value} for a nested dict."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = plain(value)
  return flat


def stored_config(stored: dict) -> ml_collections.ConfigDict:
  """Returns the recipe that a checkpoint stores.

  Keys that are newer than the checkpoint get their defaults, and keys that
  this version no longer has are left out. JSON made lists of the tuples; they
  become tuples again.

  Args:
    stored: A nested dict, as `plain` makes it.
  """
  tree = _fill(stored, default_config().to_dict())
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
  """Returns {key: plain value}, with the preset's values where it decides."""
  return flatten(_name_preset_values(config.to_dict()))


def differences(
  config: ml_collections.ConfigDict, other: dict
) -> list[Difference]:
  """Returns the keys whose values differ, in the order of their names.

  A value that the preset gives and the same value written out are equal.

  Args:
    config: The recipe here.
    other: The recipe there, a nested dict as `plain` makes it.
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
  """Returns 'key: here | there; key: here | there' for a message."""
  return '; '.join(f'{key}: {here} | {there}' for key, here, there in found)


def _fill(tree: dict, defaults: dict) -> dict:
  """Adds the keys to a nested dict that only the defaults have."""
  return defaults | {
    key: _fill(value, defaults.get(key, {}))
    if isinstance(value, dict)
    else value
    for key, value in tree.items()
  }


def _with_tuples(value, name: str):
  """Returns the value of a key, or of a group, with tuples for lists."""
  if isinstance(value, dict):
    return {
      key: _with_tuples(item, f'{name}.{key}') for key, item in value.items()
    }
  is_tuple = name in BY_NAME and BY_NAME[name].form.kind is tuple
  return _nested_tuple(value) if is_tuple else value


def _nested_tuple(value):
  """Returns tuples for lists."""
  if isinstance(value, list | tuple):
    return tuple(map(_nested_tuple, value))
  return value


def _name_preset_values(tree: dict) -> dict:
  """Puts in the preset's values where a recipe leaves them to the preset."""
  preset = geometry.PRESETS.get(tree.get('geometry'))
  if preset is None:
    return tree
  mean, std = preset.input_format.rgb_255()
  values = {
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
