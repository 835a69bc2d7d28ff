"""Reads a YAML file to a flat table of keys, without running code of the file.

The values are plain: texts, numbers, booleans, `None`, and tuples of these.
"""

import ast
import os
import pathlib
from typing import Any
import warnings

import yaml

from maskrcnn_jax.errors import InputError

# A recipe has about 2 kB. YAML can name a part of the file again and again, so
# that a short file stands for more entries than the memory holds.
_MAX_BYTES = 1_000_000
_MAX_ENTRIES = 10_000
_MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
  """PyYAML's safe loader of plain values; a key must not occur twice."""


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
  """Makes the dict of a mapping; a key that occurs twice is an error."""
  loader.flatten_mapping(node)
  result: dict[Any, Any] = {}
  for key_node, value_node in node.value:
    if not isinstance(key_node, yaml.ScalarNode):
      raise yaml.constructor.ConstructorError(
        None, None, 'a key is not a word', key_node.start_mark
      )
    key = loader.construct_object(key_node)
    if key in result:
      raise yaml.constructor.ConstructorError(
        None, None, f'the key {key!r} occurs twice', key_node.start_mark
      )
    result[key] = loader.construct_object(value_node, deep=True)
  return result


_Loader.add_constructor('tag:yaml.org,2002:map', _construct_mapping)


def read_yaml(file: str | os.PathLike) -> dict[str, Any]:
  """Reads a YAML file of nested keys.

  Args:
    file: The file.

  Returns:
    {full name: value}, in the order of the file. The names of nested keys are
    joined by dots: {'SOLVER': {'BASE_LR': 0.02}} gives 'SOLVER.BASE_LR'.

  Raises:
    InputError: If the file cannot be read, is not YAML or not a table of keys,
      has a key twice, or has anything but plain values.
  """
  text = _read_text(pathlib.Path(file))
  try:
    # `_Loader` only makes plain values, as `yaml.safe_load` does.
    tree = yaml.load(text, Loader=_Loader)  # noqa: S506
  except yaml.YAMLError as error:
    raise InputError(f'C05: {_explain(error, file)}') from error
  # ValueError: a number with thousands of digits, or a day such as 2020-99-99.
  except (ValueError, RecursionError) as error:
    reason = (
      'it is nested too deeply'
      if isinstance(error, RecursionError)
      else ' '.join(str(error).split())
    )
    raise InputError(
      f'C05: {file} cannot be read as YAML: {reason}.'
    ) from error
  if not isinstance(tree, dict) or not tree:
    raise InputError(
      f'C05: {file} is no recipe: it must hold keys with values, for example '
      'SOLVER: {BASE_LR: 0.02}.'
    )
  table: dict[str, Any] = {}
  try:
    _flatten(tree, '', table, [_MAX_ENTRIES], depth=0)
  except ValueError as error:
    raise InputError(f'C05: {file}: {error}.') from error
  return table


def decode(written: Any) -> Any:
  """Decodes a value that is written as the text of a Python literal.

  This is the rule of yacs, with which NVIDIA's program and detectron2 read
  their recipes: '(60000, 80000)' is a tuple, and '1e-4' is a number although
  YAML reads it as a text. Quotes around a text are removed. A text that is no
  literal stays as it is, and a value that is no text too.
  """
  if not isinstance(written, str):
    return written
  try:
    with warnings.catch_warnings():
      # Python warns of backslashes, as in a path of Windows.
      warnings.simplefilter('ignore')
      value = ast.literal_eval(written.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    return written
  return _tuples(value)


def _tuples(value: Any) -> Any:
  """Returns a value with tuples in place of all lists."""
  if isinstance(value, list | tuple):
    return tuple(map(_tuples, value))
  return value


def _read_text(file: pathlib.Path) -> str:
  """Reads a file as UTF-8.

  Raises:
    InputError: If there is no such file, it is too large or not a text.
  """
  if not file.is_file():
    raise InputError(f'--config={file} is not a file; give an existing file.')
  try:
    with file.open('rb') as stream:
      content = stream.read(_MAX_BYTES + 1)
    text = content.decode('utf-8-sig')
  except OSError as error:
    raise InputError(
      f'Cannot read {file}: {error.strerror or error}.'
    ) from error
  except UnicodeDecodeError as error:
    raise InputError(
      f'C05: {file} is not a text in UTF-8 (byte {error.start}); save it as '
      'UTF-8.'
    ) from error
  if len(content) > _MAX_BYTES:
    raise InputError(
      f'C05: {file} is larger than {_MAX_BYTES:,} bytes; it is no recipe.'
    )
  return text


def _explain(error: yaml.YAMLError, file: str | os.PathLike) -> str:
  """Returns the message about a fault in a YAML file, with its line."""
  mark = getattr(error, 'problem_mark', None)
  place = f'{file}, line {mark.line + 1}' if mark else str(file)
  problem = getattr(error, 'problem', None) or str(error)
  if 'python/' in problem:
    problem = 'it asks for a Python object; only plain values are read'
  return (
    f'{place}: cannot be read as YAML: {" ".join(problem.split())}. Correct '
    'this place.'
  )


def _flatten(
  tree: dict,
  prefix: str,
  table: dict[str, Any],
  room: list[int],
  *,
  depth: int,
) -> None:
  """Adds the values of a nested dict to a flat table.

  Args:
    tree: The nested dict.
    prefix: The name of the dict with a dot at its end, '' for the whole file.
    table: {full name: value}; it is changed.
    room: The number of entries that may follow, as a list of one number, which
      is changed.
    depth: Number of dicts that this one is inside of.

  Raises:
    ValueError: If a key is no text or occurs twice, a value is not plain, or
      there are too many entries or levels.
  """
  for key, value in tree.items():
    if not isinstance(key, str):
      raise ValueError(f'the key {prefix}{key} is not a text; put it in quotes')
    name = f'{prefix}{key}'
    if depth > _MAX_DEPTH:
      raise ValueError(f'{name[:60]}... is nested too deeply')
    if isinstance(value, dict):
      _count(room)
      _flatten(value, f'{name}.', table, room, depth=depth + 1)
      continue
    if name in table:
      raise ValueError(f'the key {name!r} occurs twice')
    table[name] = _plain(value, name, room, depth=depth)


def _plain(value: Any, name: str, room: list[int], *, depth: int) -> Any:
  """Checks that a value is plain, and makes tuples of lists.

  Args:
    value: A value of the file.
    name: The name of its key, for messages.
    room: As in `_flatten`.
    depth: As in `_flatten`; lists count too.

  Raises:
    ValueError: If the value is not plain, too long or too deep.
  """
  _count(room)
  if depth > _MAX_DEPTH:
    raise ValueError(f'{name} is nested too deeply')
  if isinstance(value, list):
    return tuple(_plain(item, name, room, depth=depth + 1) for item in value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise ValueError(
    f'{name} is a {type(value).__name__}; give a text, a number or a list'
  )


def _count(room: list[int]) -> None:
  """Counts an entry of the file.

  Args:
    room: As in `_flatten`.

  Raises:
    ValueError: If there are too many entries.
  """
  room[0] -= 1
  if room[0] < 0:
    raise ValueError(f'there are more than {_MAX_ENTRIES:,} entries')
