"""Reads --config=FILE.yaml, and KEY VALUE pairs at the end of a command.

A YAML file is a recipe of NVIDIA's Mask R-CNN For PyTorch, which is translated,
or names a recipe of this program and changes keys of it:

  maskrcnn_jax_recipe: r50_fpn
  train.batch_size: 8
  optimizer: {learning_rate: 0.01}

The name `defaults` stands for the defaults of all keys. A training writes its
recipe in this form to WORKDIR/config.yaml.
"""

from collections.abc import Sequence
import difflib
import pathlib
import re
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax.config.command_line import Override, parse_overrides
from maskrcnn_jax.config.defaults import default_config, set_value, value_of
from maskrcnn_jax.config.forms import parse
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.nvidia_keys import BY_NAME as NVIDIA_KEYS
from maskrcnn_jax.config.nvidia_keys import is_nvidia_key
from maskrcnn_jax.config.nvidia_recipe import (
  Translation,
  translate_file,
  translate_pairs,
)
from maskrcnn_jax.config.yaml_file import decode, read_yaml
from maskrcnn_jax.errors import InputError

# The key of a YAML file that names a recipe of this program.
RECIPE_KEY = 'maskrcnn_jax_recipe'

# The value of that key that stands for the defaults of all keys.
DEFAULTS = 'defaults'


class Given(NamedTuple):
  """The arguments of the command line that change keys of a recipe."""

  ours: dict[str, Any]  # {key: value} of the --config.KEY arguments
  pairs: dict[str, Any]  # {key of NVIDIA's program: value} of KEY VALUE pairs


def read_given(overrides: Sequence[Override]) -> Given:
  """Separates --config.KEY arguments from KEY VALUE pairs, and parses both.

  Args:
    overrides: (key, text) pairs, as `split_arguments` returns them.

  Raises:
    InputError: If a key of this program does not exist, or a text cannot be
      converted. Keys of NVIDIA's program are not checked here.
  """
  pairs = {}
  for key, text in overrides:
    if is_nvidia_key(key):
      if text is None:
        raise InputError(f'C05: {key} needs a value: {key} VALUE.')
      pairs[key] = decode(text)
  return Given(
    parse_overrides([item for item in overrides if not is_nvidia_key(item[0])]),
    pairs,
  )


def is_yaml(path: str) -> bool:
  """Tells whether the value of --config is a YAML file, by its name."""
  return pathlib.PurePath(path).suffix.lower() in ('.yaml', '.yml')


def read_table(path: str) -> dict[str, Any]:
  """Reads a YAML file and checks of which program it is.

  Args:
    path: The file.

  Returns:
    {full name: value}. The keys are those of NVIDIA's program, with decoded
    values, or `RECIPE_KEY` and keys of this program.

  Raises:
    InputError: If the file cannot be read, or is a recipe of neither program.
  """
  table = read_yaml(path)
  if RECIPE_KEY in table:
    return table
  if '_BASE_' in table or str(table.get('VERSION')) == '2':
    raise InputError(
      f'C05: {path} is a recipe of detectron2, which is not translated; take '
      f'--config={nearest_recipe(path, table)}, the nearest recipe here, and '
      'change its keys with --config.KEY=VALUE.'
    )
  if not any(is_nvidia_key(name) for name in table):
    raise InputError(
      f"C05: {path} has neither the key {RECIPE_KEY} nor keys of NVIDIA's "
      f'Mask R-CNN such as MODEL.META_ARCHITECTURE; its first key is '
      f'{next(iter(table))!r}. Give a recipe of one of the two.'
    )
  return {name: decode(value) for name, value in table.items()}


def translated(
  table: dict[str, Any], given: Given, path: str
) -> tuple[ml_collections.ConfigDict, Translation]:
  """Translates a file of NVIDIA's program and the pairs that follow it.

  Args:
    table: {key of NVIDIA's program: value} of the file.
    given: The arguments of the command line.
    path: The file, for messages.

  Returns:
    The recipe; and the translation.

  Raises:
    InputError: If a key or value has no counterpart.
  """
  translation = translate_file(
    table | given.pairs, place=path, provided=frozenset(given.ours)
  )
  config = default_config()
  for key, value in translation.values.items():
    set_value(config, key, value)
  return config, translation


def given_values(
  given: Given, config: ml_collections.ConfigDict, translation: Translation
) -> dict[str, Any]:
  """Returns the values of all keys that the command line sets.

  Args:
    given: The arguments of the command line.
    config: The recipe, which the pairs need not have changed yet.
    translation: The translation of the pairs, or of a file with the pairs.

  Raises:
    InputError: If a pair and a --config.KEY argument set a key to different
      values.
  """
  values = {}
  for name in given.pairs:
    for key in translation.keys[name]:
      if key not in translation.values:
        continue
      value = translation.values[key]
      if key in given.ours and given.ours[key] != value:
        raise InputError(
          f'C05: {name} {given.pairs[name]} sets config.{key} to {value!r}, '
          f'and --config.{key} to {given.ours[key]!r}; leave one of them out.'
        )
      values[key] = value
  if 'train.auto_scale' in translation.values:
    values['train.auto_scale'] = translation.values['train.auto_scale']
  return values | given.ours


def pairs_for(given: Given, config: ml_collections.ConfigDict) -> Translation:
  """Translates the KEY VALUE pairs that follow a recipe of this program."""
  if not given.pairs:
    return Translation({}, [], {})
  return translate_pairs(given.pairs, config, provided=frozenset(given.ours))


def change_keys(
  config: ml_collections.ConfigDict, table: dict[str, Any], path: str
) -> None:
  """Sets the keys of a recipe that a YAML file of this program changes.

  Args:
    config: The recipe that the file names; it is changed.
    table: {key: value} of the file, with `RECIPE_KEY`.
    path: The file, for messages.

  Raises:
    InputError: If a key does not exist or its text cannot be converted. The
      range of a value is not checked.
  """
  for name, value in table.items():
    if name == RECIPE_KEY:
      continue
    if name not in BY_NAME:
      near = difflib.get_close_matches(name, BY_NAME, 1)
      raise InputError(
        f'C05: {path}: there is no config key {name!r}'
        f'{f"; did you mean {near[0]!r}?" if near else "."}'
      )
    if isinstance(value, str):
      try:
        value = parse(BY_NAME[name].form, value)
      except ValueError as error:
        raise InputError(
          f'C05: {path}: {name} is {value!r}; {error}.'
        ) from None
    is_open = BY_NAME[name].form.may_be_none or value_of(config, name) is None
    if value is None and not is_open:
      raise InputError(f'C05: {path}: {name} has no value; give one.')
    set_value(config, name, value)


def recipe_name(table: dict[str, Any], path: str) -> str:
  """Returns the recipe that a YAML file of this program names, or `DEFAULTS`.

  Raises:
    InputError: If it is no name of a recipe or of a Python file.
  """
  name = table[RECIPE_KEY]
  if not isinstance(name, str) or not name or is_yaml(name):
    raise InputError(
      f'C05: {path}: {RECIPE_KEY} is {name!r}; give the name of a recipe, for '
      'example r50_fpn, or a file FILE.py.'
    )
  return name


def settings_of(
  path: str | None, overrides: Sequence[Override]
) -> dict[str, tuple[str, bool]]:
  """Returns OUTPUT_DIR and MODEL.WEIGHT, which are flags of this program.

  Args:
    path: The value of --config.
    overrides: (key, text) pairs, as `split_arguments` returns them.

  Returns:
    {key of NVIDIA's program: (value, whether the command line gives it)}, for
    those of the two keys that are given and not empty.

  Raises:
    InputError: If the YAML file cannot be read.
  """
  table = read_table(path) if path and is_yaml(path) else {}
  pairs = {key: decode(text) for key, text in overrides if key in NVIDIA_KEYS}
  return {
    key: (value, key in pairs)
    for key, value in (table | pairs).items()
    if key in ('OUTPUT_DIR', 'MODEL.WEIGHT')
    and isinstance(value, str)
    and value
  }


def nearest_recipe(path: str, table: dict[str, Any]) -> str:
  """Returns the recipe of this program that is most like one of detectron2.

  Args:
    path: The file; its name tells body and depth if its keys do not.
    table: {key of detectron2: value}.
  """
  words = f'{pathlib.PurePath(path).stem} {table.get("_BASE_", "")}'.lower()
  depth = table.get('MODEL.RESNETS.DEPTH')
  if depth is None:
    depth = 101 if re.search(r'(r|x)_?-?101', words) else 50
  is_large = depth == 101
  if str(table.get('MODEL.META_ARCHITECTURE')) == 'ProposalNetwork' or (
    words.startswith('rpn')
  ):
    return 'rpn_r50_fpn'
  has_masks = table.get('MODEL.MASK_ON')
  if has_masks is None:
    has_masks = 'mask' in words or 'cascade' in words
  is_c4 = bool(re.search(r'c4', words))
  if not has_masks:
    return 'faster_rcnn_r50_c4' if is_c4 else 'faster_rcnn_r50_fpn'
  if 'x_101' in words or table.get('MODEL.RESNETS.NUM_GROUPS', 1) != 1:
    return 'x101_32x8d_fpn'
  if is_c4:
    return 'r101_c4' if is_large else 'r50_c4'
  if 'dc5' in words or 'dilatedc5' in words:
    return 'r50_dc5'
  is_group = 'gn' in re.split(r'[ _.-]', words) or (
    table.get('MODEL.RESNETS.NORM') == 'GN'
  )
  name = 'r101_fpn' if is_large else 'r50_fpn'
  if is_group and 'scratch' in words and not is_large:
    return 'r50_fpn_gn_scratch'
  return f'{name}_gn' if is_group else name
