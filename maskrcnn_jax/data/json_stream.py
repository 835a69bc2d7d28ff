"""Reads a large JSON document piece by piece, in little memory.

`json.loads` of an annotation file takes several times the size of the file.
Here the elements of the lists at the top level are yielded one at a time. They
are parsed by the parser of `json`, so that special cases such as NaN and byte
order marks mean the same.
"""

import codecs
from collections.abc import Callable, Iterator
import io
import json
import pathlib
import re
from typing import Any

from maskrcnn_jax import errors

# Bytes that are read at a time.
_WINDOW = 1 << 22

# Number of characters. If a value that is longer does not end in the window, it
# is refused.
_MAX_ELEMENT = 1 << 26

# Number of characters. A parser error this close to the end of the window may
# only mean that the rest of a number, literal or escape is not read yet; all of
# these are shorter.
_MARGIN = 32

# Lists of COCO. Some programs write an object instead, whose names are the ids
# of its elements, which have them too.
_TABLES = frozenset(('images', 'annotations', 'categories'))

# Fields whose values are kept in sets and dictionaries.
_IDS = ('id', 'image_id', 'category_id')

# Number of ids beyond 64 bits that may have the same hash.
_MAX_EQUAL_HASHES = 100

# Values that `walk` yields instead of the position of a list element.
LIST = -1  # a list begins
OTHER = -2  # the element is a value that is not a list

_SPACE = re.compile(r'[ \t\n\r]*')

# (key, position, element), see `walk`.
_Item = tuple[str | None, int, Any]


def walk(path: pathlib.Path) -> Iterator[_Item]:
  """Yields the values at the top level of a JSON file, in their order.

  Args:
    path: The file.

  Yields:
    (key, position, element), where the key is the name of the value. For a
    list: (key, LIST, None), then (key, i, element) for each element i. The
    lists of COCO may also be objects, whose names are dropped. For any other
    value: (key, OTHER, value). If the document is a list instead of an
    object, the key is None. If it is neither, only (None, OTHER, document) is
    yielded.

  Raises:
    InputError: If the file cannot be read, or is not valid JSON, or if its ids
      would make dictionaries slow.
  """
  large_ids: dict[int, set[int]] = {}
  try:
    # A pipe that nobody writes to would be waited for without end.
    if path.exists() and not path.is_file():
      raise errors.InputError(
        f'A25: {path} is not a file; give annotations as a regular JSON file.'
      )
    with open(path, 'rb') as file:
      for item in _Window(path, file).document():
        if isinstance(item[2], dict):
          _note_large_ids(item[2], large_ids, path)
        yield item
  except OSError as error:
    raise errors.InputError(
      f'A25: Cannot read the annotations {path}: {error.strerror or error}.'
    ) from error


def _note_large_ids(
  entry: dict[str, Any], seen: dict[int, set[int]], path: pathlib.Path
) -> None:
  """Refuses ids that were chosen so that their hashes are equal.

  Python's hash of an integer is its remainder modulo 2**61 - 1, and n keys with
  equal hashes take n**2 steps in a dictionary. Up to 64 bits there are at most
  nine such numbers. Source: docs.python.org, "Hashing of numeric types".

  Args:
    entry: An object of the file.
    seen: {hash: the ids beyond 64 bits that have it}. The ids of the entry are
      added.
    path: The file, for the message.

  Raises:
    InputError: If more than 100 ids have the same hash.
  """
  for field in _IDS:
    id_ = entry.get(field)
    if type(id_) is int and id_.bit_length() > 64:
      ids = seen.setdefault(hash(id_), set())
      ids.add(id_)
      if len(ids) > _MAX_EQUAL_HASHES:
        raise errors.InputError(
          f'A19: {path}: more than {_MAX_EQUAL_HASHES} ids beyond 64 bits have'
          ' the same remainder when divided by 2^61 - 1. No numbering does'
          ' that by chance, and it would make the program very slow; number'
          ' the entries anew, or write the ids as strings.'
        )


def loads(text: str) -> Any:
  """Parses a JSON text as `json.loads` does, but refuses a name used twice.

  Raises:
    ValueError: If the text is not valid JSON, or if an object has the same name
      twice, of which `json.loads` would silently drop the first.
  """
  return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a dict of (name, value) pairs.

  Raises:
    ValueError: If a name occurs twice.
  """
  found: dict[str, Any] = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    for name, _ in pairs:
      if name in seen:
        raise ValueError(f'the name {name!r} comes twice in one object')
      seen.add(name)
  return found


class _Window:
  """The part of a JSON text in memory, and how far the parser has read it."""

  def __init__(self, path: pathlib.Path, file: io.BufferedReader):
    """Starts at the beginning of a file.

    Args:
      path: The path, for messages.
      file: The open file.

    Raises:
      InputError: If the file is compressed with gzip.
    """
    self._path = path
    self._file = file
    self._decode = codecs.getincrementaldecoder('utf-8-sig')().decode
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    # Parses the value at an index of a text; returns it and the index after it.
    # The type stubs of `json` lack this attribute of the decoder.
    self._scan: Callable[[str, int], tuple[Any, int]] = decoder.scan_once  # type: ignore[attr-defined]
    self._text = ''
    self._place = 0  # index of the next character in the window
    self._passed = 0  # number of characters before the window
    self._is_all = False  # whether the window reaches the end of the file
    if file.peek(2)[:2] == b'\x1f\x8b':
      raise errors.InputError(
        f'A25: {path} is gzip-compressed; unpack it first.'
      )

  def document(self) -> Iterator[_Item]:
    """Parses the whole file and yields the values at its top level.

    Yields:
      (key, position, element), as `walk` does: (key, LIST, None) when a list
      begins, then (key, i, element) for its element i; and (key, OTHER, value)
      for a value that is not a list. The key is `None` if the document is not
      an object.

    Raises:
      InputError: If the file is not valid JSON, or if an object has the same
        name twice.
    """
    match self._peek():
      case '{':
        keys: set[str] = set()
        for key in self._names():
          if key in keys:
            raise self._error(f'the name {key!r} comes twice in one object')
          keys.add(key)
          if self._peek() == '[':
            yield key, LIST, None
            for position, element in enumerate(self._elements()):
              yield key, position, element
          elif key in _TABLES and self._peek() == '{':
            yield from self._table(key)
          else:
            yield key, OTHER, self._value()
      case '[':
        yield None, LIST, None
        for position, element in enumerate(self._elements()):
          yield None, position, element
      case '<':
        raise self._error(
          'it looks like XML, which Pascal VOC and CVAT use; convert it to COCO'
        )
      case '':
        raise self._error('it is empty')
      case _:
        yield None, OTHER, self._value()
    if self._peek():
      raise self._error('more text follows after the end of the document')

  def _table(self, key: str) -> Iterator[_Item]:
    """Yields the values of an object as those of a list, one at a time.

    Before, the next character is the opening brace. If the object is empty, or
    its first value is not an object itself, it is yielded as a whole.

    Args:
      key: The name of the object.

    Raises:
      InputError: If the text is not valid JSON, or a name occurs twice.
    """
    whole: dict[str, Any] = {}
    names: set[str] = set()
    for name in self._names():
      if name in names:
        raise self._error(f'the name {name!r} comes twice in one object')
      is_first = not names
      names.add(name)
      value = self._value()
      if whole or (is_first and not isinstance(value, dict)):
        whole[name] = value
        continue
      if is_first:
        yield key, LIST, None
      yield key, len(names) - 1, value
    if whole or not names:
      yield key, OTHER, whole

  def _names(self) -> Iterator[str]:
    """Yields the names of an object; the caller parses each value in between.

    Before, the next character is the opening brace; afterwards, it is the
    first one behind the closing brace. When a name is yielded, its value comes
    next.
    """
    self._place += 1
    if self._peek() == '}':
      self._place += 1
      return
    while True:
      if self._peek() != '"':
        raise self._error('there must be a name in double quotes')
      name = self._value()
      self._expect(':')
      yield name
      if self._expect(',}') == '}':
        return

  def _elements(self) -> Iterator[Any]:
    """Parses and yields the elements of a list.

    Before, the next character is the opening bracket; afterwards, it is the
    first one behind the closing bracket.
    """
    self._place += 1
    if self._peek() == ']':
      self._place += 1
      return
    while True:
      yield self._value()
      if self._expect(',]') == ']':
        return

  def _expect(self, characters: str) -> str:
    """Moves past the next character, which must be one of some characters.

    Args:
      characters: The characters that are allowed.

    Returns:
      The character.

    Raises:
      InputError: If the next character is another one, or the file ends.
    """
    found = self._peek()
    if not found or found not in characters:
      raise self._error(f'there must be one of {characters!r}')
    self._place += 1
    return found

  def _peek(self) -> str:
    """Moves past white space; returns the next character, '' at the end."""
    while True:
      space = _SPACE.match(self._text, self._place)
      assert space is not None  # the pattern also matches no characters
      self._place = space.end()
      if self._place < len(self._text):
        return self._text[self._place]
      if self._is_all:
        return ''
      self._read(_WINDOW)

  def _value(self) -> Any:
    """Parses the next value, moves past it and returns it.

    If the window ends inside of the value, or just after a number that may go
    on, more of the file is read and the value is parsed again from its start.

    Raises:
      InputError: If the text is not valid JSON, or if an unfinished value is
        longer than `_MAX_ELEMENT`.
    """
    self._peek()
    size = _WINDOW
    while True:
      try:
        value, end = self._scan(self._text, self._place)
      except StopIteration as error:
        place, reason = error.value, 'there must be a value'
      except json.JSONDecodeError as error:
        place, reason = error.pos, error.msg
        if reason.startswith('Unterminated string'):
          place = len(self._text)
      except RecursionError as error:
        raise self._error('it is nested too deeply') from error
      except ValueError as error:
        raise self._error(str(error)) from error
      else:
        # A number at the end of the window may go on: 1 as 1.5, or as 1e+5.
        is_whole = type(value) not in (int, float)
        if is_whole or end + 2 < len(self._text) or self._is_all:
          self._place = end
          return value
        place = end
      if self._is_all or place < len(self._text) - _MARGIN:
        self._place = min(place, len(self._text))
        raise self._error(reason)
      if len(self._text) - self._place > _MAX_ELEMENT:
        raise self._error(
          f'it has an element of more than {_MAX_ELEMENT} characters'
        )
      self._read(size)
      size *= 2

  def _read(self, size: int) -> None:
    """Removes the parsed text from the window, and appends text from the file.

    Args:
      size: Number of bytes to read.

    Raises:
      InputError: If the bytes are not UTF-8 text.
    """
    self._passed += self._place
    raw = self._file.read(size)
    self._is_all = not raw
    try:
      more = self._decode(raw, self._is_all)
    except UnicodeDecodeError as error:
      raise self._error(f'it is not UTF-8 text ({error.reason})') from error
    self._text = self._text[self._place :] + more
    self._place = 0

  def _error(self, reason: str) -> errors.InputError:
    """Makes an error that names the file, the reason and the place in the file.

    Args:
      reason: Words that follow "is not JSON:".
    """
    return errors.InputError(
      f'A25: {self._path} is not JSON: {reason}'
      f' (character {self._passed + self._place}).'
    )
