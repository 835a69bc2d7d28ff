"""Reads a recipe file, and explains an error in it in one line."""

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
from maskrcnn_jax.config.command_line import Override, apply_overrides
from maskrcnn_jax.config.comparison import flatten
from maskrcnn_jax.config.defaults import default_config
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.yaml_recipe import (
  DEFAULTS,
  RECIPE_KEY,
  change_keys,
  given_values,
  is_yaml,
  pairs_for,
  read_given,
  read_table,
  recipe_name,
  translated,
)
from maskrcnn_jax.errors import InputError

_PACKAGE = pathlib.Path(__file__).parents[1]


class Recipe(NamedTuple):
  """A recipe, and which of its values the command line gave."""

  # The values of the recipe file, changed by the --config.KEY arguments.
  config: ml_collections.ConfigDict
  # {key: value} of each --config.KEY argument and KEY VALUE pair.
  given: dict[str, Any]
  path: str | None  # the value of --config; None if it was not given
  # A line for the log about each key that was translated from another program.
  notes: tuple[str, ...] = ()


def read_recipe(
  path: str | None,
  overrides: Sequence[Override] = (),
  *,
  for_training: bool = True,
) -> Recipe:
  """Reads a recipe, applies the --config.KEY arguments and checks the result.

  Args:
    path: FILE.py, FILE.yaml (see `yaml_recipe.py`), or the NAME of a recipe
      that comes with the program. A recipe that takes an argument is given as
      FILE.py:ARGUMENT or NAME:ARGUMENT. `None` stands for the defaults of all
      keys.
    overrides: (key, text) pairs, as `split_arguments` returns them.
    for_training: Whether a model is trained with the recipe. Otherwise a
      checkpoint decides some of the keys, so that the values are checked one by
      one, but not against each other: `load_detector` does this as soon as the
      checkpoint is known.

  Raises:
    InputError: If the recipe does not exist or fails, a key does not exist, or
      the check of the values finds an error.
  """
  arguments = read_given(overrides)
  table = read_table(path) if path and is_yaml(path) else {}
  if path and table and RECIPE_KEY not in table:
    config, translation = translated(table, arguments, path)
  else:
    config = default_config()
    if path:
      name = recipe_name(table, path) if table else path
      if not (table and name == DEFAULTS):
        config = _run(name)
      change_keys(config, table, path)
    translation = pairs_for(arguments, config)
  given = given_values(arguments, config, translation)
  apply_overrides(config, given)
  (check_config if for_training else check_values)(config)
  return Recipe(config, given, path, tuple(translation.lines))


def read_overrides(overrides: Sequence[Override]) -> Recipe:
  """Reads --config.KEY arguments that change the recipe stored in a checkpoint.

  That recipe is not known yet, so all other keys have their defaults. Each
  given value is checked by itself, but not together with other keys.

  Args:
    overrides: (key, text) pairs, as `split_arguments` returns them.

  Returns:
    A recipe whose path is `None`. Only its given keys have a meaning.

  Raises:
    InputError: If a key does not exist, or its value is not allowed.
  """
  arguments = read_given(overrides)
  config = default_config()
  translation = pairs_for(arguments, config)
  given = given_values(arguments, config, translation)
  apply_overrides(config, given)
  check_values(config)
  return Recipe(config, given, None, tuple(translation.lines))


def packaged_recipes() -> dict[str, pathlib.Path]:
  """Returns {name: file} for all recipes that come with the program."""
  folder = _PACKAGE / 'configs'
  if not folder.is_dir() and (_PACKAGE.parent / 'setup.cfg').is_file():
    folder = _PACKAGE.parent / 'configs'  # in a checkout of the source
  return {
    path.stem: path
    for path in sorted(folder.glob('*.py'))
    if not path.stem.startswith('_')
  }


def _find(path: str) -> pathlib.Path:
  """Finds the file of a recipe.

  Args:
    path: The value of --config without :ARGUMENT: a path, or the name of a
      recipe that comes with the program.

  Raises:
    InputError: If there is no such recipe.
  """
  packaged = packaged_recipes()
  if path in packaged:
    return packaged[path]
  file = pathlib.Path(path)
  names = ', '.join(packaged)
  if file.suffix != '.py':
    near = difflib.get_close_matches(path, packaged, 1)
    raise InputError(
      f'--config={path} is not a Python or YAML file, nor the name of a recipe '
      'that comes with the program '
      f'({names}){f"; did you mean {near[0]}?" if near else "."}'
    )
  if not file.is_file():
    raise InputError(
      f'--config={path} is not a file; give FILE.py, or the name of a recipe '
      f'that comes with the program: {names}.'
    )
  return file


def _run(path: str) -> ml_collections.ConfigDict:
  """Runs a recipe file and returns the result of its `get_config`.

  Args:
    path: The value of --config: FILE.py, FILE.py:ARGUMENT, NAME or
      NAME:ARGUMENT.

  Raises:
    InputError: If the recipe does not exist or raises an exception, or if the
      keys of the result are not exactly the keys that recipes have.
  """
  name, colon, argument = path.partition(':')
  file = _find(name)

  spec = importlib.util.spec_from_file_location(
    f'maskrcnn_jax_recipe_{file.stem}', file
  )
  # The name ends with .py, so the loader for Python files is found.
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  # A data class in the recipe looks up its module there.
  sys.modules[spec.name] = module
  try:
    spec.loader.exec_module(module)
    make = getattr(module, 'get_config', None)
    if make is None:
      raise InputError(
        f'{file} is no recipe: it has no get_config(). Give a file whose '
        'get_config() returns the recipe.'
      )
    if colon and not inspect.signature(make).parameters:
      raise InputError(f'{file} takes no argument; leave :{argument} out.')
    config = make(*[argument] * bool(colon))
  except InputError:
    raise
  except ValueError as error:  # The recipe refuses its argument.
    raise InputError(f'--config={path}: {error}') from error
  # A recipe is Python code of the user, which may raise any exception.
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
  """Explains an error if its reason is a misspelt key in a recipe.

  Args:
    error: The exception that the recipe raised.
    file: The recipe.

  Returns:
    A message that names the key and the most similar key that exists; `None` if
    the exception has another reason.
  """
  match = re.search(
    r'Key "(\w+)" does not exist'  # The recipe sets the key.
    r'|instead of "(\w+)"'  # It reads the key, and a similar key exists.
    r'|^[\'"\\]*(\w+)[\'"\\]*$',  # It reads the key, and no key is similar.
    str(error),
  )
  if not match or not isinstance(error, AttributeError | KeyError):
    return None
  name = next(filter(None, match.groups()))
  line = _line_of(error, file)
  if line:
    source = file.read_text(encoding='utf-8').splitlines()
    # Add the group of the key, such as 'train.', if the source line has it.
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
  """Returns the number of the line in a file that raised an exception.

  It is 0 if no line of this file did.
  """
  if isinstance(error, SyntaxError):
    return error.lineno or 0
  lines = [
    frame.lineno
    for frame in traceback.extract_tb(error.__traceback__)
    if os.path.realpath(frame.filename) == os.path.realpath(file)
  ]
  return (lines[-1] or 0) if lines else 0


def _where(error: Exception, file: pathlib.Path) -> str:
  """Returns the place of an error, 'FILE, line N', or FILE without a line."""
  line = _line_of(error, file)
  return f'{file}, line {line}' if line else str(file)
