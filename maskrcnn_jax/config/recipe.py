"""Reading a recipe of configs/, and saying in a line what is wrong with it."""

import ast
from collections.abc import Sequence
import difflib
import importlib.util
import inspect
import os
import pathlib
import re
import traceback

import ml_collections

from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.errors import InputError


def read_recipe(
    path: str | None, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Reads a recipe and changes some of its keys.

  What `main` does with --config, for programs without absl's flags.

  Args:
    path: FILE, or FILE:ARGUMENT where it takes one; None for the defaults.
    overrides: '--config.KEY=VALUE'.

  Raises:
    InputError: If there is no such recipe, or it makes no sense.
  """
  config = default_config()
  if path is not None:
    config = _run(path)
  for override in overrides:
    key, equals, value = override.removeprefix('--config.').partition('=')
    if not override.startswith('--config.') or not equals:
      raise InputError(
          f'Unexpected argument {override!r}; --help lists what there is.'
      )
    try:
      value = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      pass  # A word, such as a name of a preset.
    try:
      config.update_from_flattened_dict({key: value})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
      reason = ' '.join(str(error).split())
      raise InputError(f'C05: --config.{key}: {reason}') from error
  check_config(config)
  return config


def _run(path: str) -> ml_collections.ConfigDict:
  """Returns what the recipe's `get_config` does."""
  file, colon, argument = path.partition(':')
  if not pathlib.Path(file).is_file():
    raise InputError(f'{file} is not a file; give a recipe of configs/.')
  spec = importlib.util.spec_from_file_location('recipe', file)
  if spec is None:
    raise InputError(f'{file} is no recipe; give one of configs/, FILE.py.')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    make = getattr(module, 'get_config', None)
    if make is None:
      raise InputError(f'{file} is no recipe: it has no get_config().')
    if colon and not inspect.signature(make).parameters:
      raise InputError(f'{file} takes no argument; leave :{argument} out.')
    return make(*[argument] * bool(colon))
  except InputError:
    raise
  except ValueError as error:  # what a recipe says of its argument
    raise InputError(str(error)) from error
  # Whatever Python that is not ours may raise.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise InputError(
        explain_misspelt(error, path)
        or f'C05: {_where(error, file)}: {type(error).__name__}: {reason}'
    ) from error


def explain_misspelt(error: Exception, path: str) -> str | None:
  """Says which key a recipe misspells; None if the error is not of that.

  Args:
    error: What running it raised.
    path: FILE or FILE:ARGUMENT.
  """
  found = re.search(
      r'Key "(\w+)" does not exist'  # written to
      r'|instead of "(\w+)"'  # read
      r'|^[\'"\\]*(\w+)[\'"\\]*$',  # read, and none is like it
      str(error),
  )
  if not found or not isinstance(error, AttributeError | KeyError):
    return None
  file = path.split(':')[0]
  name = next(filter(None, found.groups()))
  line = _line_of(error, file)
  if line:
    source = pathlib.Path(file).read_text(encoding='utf-8').splitlines()
    # With the group that it is in, as far as the line tells.
    group = re.search(rf'\w\.((?:\w+\.)+){name}\b', source[line - 1])
    name = group[1] + name if group else name
  known = key_names(default_config())
  if '.' not in name:
    known = [key.split('.')[-1] for key in known]
  near = difflib.get_close_matches(name, known, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  return f'C05: {_where(error, file)}: there is no config key {name!r}{hint}'


def key_names(config: ml_collections.ConfigDict, prefix: str = '') -> list[str]:
  """Returns the keys of a recipe, 'data.train.images'."""
  names = []
  for key, value in config.items():
    if hasattr(value, 'items'):
      names += key_names(value, f'{prefix}{key}.')
    else:
      names.append(prefix + key)
  return names


def _line_of(error: Exception, file: str) -> int:
  """Returns the line of a file that raised an error, 0 if none did."""
  if isinstance(error, SyntaxError):
    return error.lineno or 0
  lines = [
      frame.lineno for frame in traceback.extract_tb(error.__traceback__)
      if os.path.realpath(frame.filename) == os.path.realpath(file)
  ]
  return lines[-1] if lines else 0


def _where(error: Exception, file: str) -> str:
  line = _line_of(error, file)
  return f'{file}, line {line}' if line else file
