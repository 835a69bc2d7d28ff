"""Reads a recipe, and explains its faults in one line."""

from collections.abc import Sequence
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback
from typing import Any, NamedTuple

import ml_collections

from maskrcnn_jax.config.check import check_config, check_values
from maskrcnn_jax.config.command_line import (
  Override,
  apply_overrides,
  parse_overrides,
)
from maskrcnn_jax.config.comparison import flatten
from maskrcnn_jax.config.defaults import default_config
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.errors import InputError

_PACKAGE = pathlib.Path(__file__).parents[1]


class Recipe(NamedTuple):
  """A recipe, and which of its values the command line gave."""

  config: ml_collections.ConfigDict  # the file's values, then the given ones
  given: dict[str, Any]  # {key: value} of each --config.KEY argument
  path: str | None  # the value of --config; None if it was not given


def read_recipe(path: str | None, overrides: Sequence[Override] = ()) -> Recipe:
  """Reads a recipe and changes some of its keys.

  Args:
    path: FILE.py, or NAME of a recipe that comes with the program; with
      :ARGUMENT behind it where the recipe takes one. None for the defaults.
    overrides: As `split_arguments` gives them.

  Raises:
    InputError: If there is no such recipe, or its values make no sense.
  """
  given = parse_overrides(overrides)
  config = default_config() if path is None else _run(path)
  apply_overrides(config, given)
  check_config(config)
  return Recipe(config, given, path)


def read_overrides(overrides: Sequence[Override]) -> Recipe:
  """Returns overrides alone, for the recipe that a checkpoint stores.

  The other keys have their defaults, so each given value can be checked, but
  not whether they fit each other.

  Raises:
    InputError: If there is no such key, or the text is no value of it.
  """
  given = parse_overrides(overrides)
  config = default_config()
  apply_overrides(config, given)
  check_values(config)
  return Recipe(config, given, None)


def packaged_recipes() -> dict[str, pathlib.Path]:
  """Returns {name: file} of the recipes that come with the program."""
  folder = _PACKAGE / 'configs'
  if not folder.is_dir() and (_PACKAGE.parent / 'setup.cfg').is_file():
    folder = _PACKAGE.parent / 'configs'  # in a checkout of the source
  return {
    path.stem: path
    for path in sorted(folder.glob('*.py'))
    if not path.stem.startswith('_')
  }


def _find(path: str) -> pathlib.Path:
  """Returns the file that --config names, as a name or as a path."""
  packaged = packaged_recipes()
  if path in packaged:
    return packaged[path]
  file = pathlib.Path(path)
  names = ', '.join(packaged)
  if file.suffix != '.py':
    near = difflib.get_close_matches(path, packaged, 1)
    raise InputError(
      f'--config={path} is not a Python file, nor the name of a recipe that '
      'comes with the program '
      f'({names}){f"; did you mean {near[0]}?" if near else "."}'
    )
  if not file.is_file():
    raise InputError(
      f'--config={path} is not a file; give FILE.py, or the name of a recipe '
      f'that comes with the program: {names}.'
    )
  return file


def _run(path: str) -> ml_collections.ConfigDict:
  """Runs a recipe and returns the result of its `get_config`."""
  name, colon, argument = path.partition(':')
  file = _find(name)

  spec = importlib.util.spec_from_file_location(
    f'maskrcnn_jax_recipe_{file.stem}', file
  )
  module = importlib.util.module_from_spec(spec)
  # Data classes look for their module there.
  sys.modules[spec.name] = module
  try:
    spec.loader.exec_module(module)
    make = getattr(module, 'get_config', None)
    if make is None:
      raise InputError(f'{file} is no recipe: it has no get_config().')
    if colon and not inspect.signature(make).parameters:
      raise InputError(f'{file} takes no argument; leave :{argument} out.')
    config = make(*[argument] * bool(colon))
  except InputError:
    raise
  except ValueError as error:  # a recipe that refuses its argument
    raise InputError(str(error)) from error
  # A recipe is Python of the user, which may raise anything.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise InputError(
      _explain_misspelt(error, file)
      or f'C05: {_where(error, file)}: {type(error).__name__}: {reason}'
    ) from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f'C05: {file}: get_config() must return a ConfigDict, as '
      'maskrcnn_jax.config.default_config does.'
    )
  if isinstance(config, ml_collections.FrozenConfigDict):
    config = ml_collections.ConfigDict(config).lock()
  keys = flatten(config.to_dict()).keys()
  missing = sorted(BY_NAME.keys() - keys)
  if missing:
    raise InputError(
      f'C05: {file}: the recipe lacks {", ".join(missing[:5])}; '
      'begin with maskrcnn_jax.config.default_config().'
    )
  unknown = sorted(keys - BY_NAME.keys())
  if unknown:
    near = difflib.get_close_matches(unknown[0], BY_NAME, 1)
    raise InputError(
      f'C05: {file}: there is no config key {unknown[0]!r}'
      f'{f"; did you mean {near[0]!r}?" if near else "."}'
    )
  return config


def _explain_misspelt(error: Exception, file: pathlib.Path) -> str | None:
  """Says which key a recipe misspells; None if the error is another one.

  Args:
    error: The error that the recipe raised.
    file: The recipe.
  """
  match = re.search(
    r'Key "(\w+)" does not exist'  # written to
    r'|instead of "(\w+)"'  # read
    r'|^[\'"\\]*(\w+)[\'"\\]*$',  # read, and no key is like it
    str(error),
  )
  if not match or not isinstance(error, AttributeError | KeyError):
    return None
  name = next(filter(None, match.groups()))
  line = _line_of(error, file)
  if line:
    source = file.read_text(encoding='utf-8').splitlines()
    # With the group that the key is in, if the line shows it.
    group = re.search(rf'\w\.((?:\w+\.)+){name}\b', source[line - 1])
    name = group[1] + name if group else name
  known = list(BY_NAME)
  if '.' not in name:
    known = [key.split('.')[-1] for key in known]
  near = difflib.get_close_matches(name, known, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  if name == 'mesh':
    hint = '; leave it out, all devices are always used'
  return f'C05: {_where(error, file)}: there is no config key {name!r}{hint}'


def _line_of(error: Exception, file: pathlib.Path) -> int:
  """Returns the line of a file that raised an error, 0 if none did."""
  if isinstance(error, SyntaxError):
    return error.lineno or 0
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if os.path.realpath(frame.filename) == os.path.realpath(file)
  ]
  return lines[-1] if lines else 0


def _where(error: Exception, file: pathlib.Path) -> str:
  """Returns 'FILE, line N'; FILE alone if the line is not known."""
  line = _line_of(error, file)
  return f'{file}, line {line}' if line else str(file)
