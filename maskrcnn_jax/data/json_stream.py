"""A large JSON object read piece by piece, in little memory.

`json.loads` of an annotation file takes several times the file's size.  Here
the elements of the lists at the top come one at a time, parsed by the same
parser of the standard library, so that NaN and byte order marks mean the same.
"""

import codecs
from collections.abc import Iterator
import json
import pathlib
import re
from typing import Any, BinaryIO

from maskrcnn_jax import errors

# Characters read at a time, and the most that one element may have.
_WINDOW = 1 << 22
_MAX_ELEMENT = 1 << 26

# A failure this close to the end of what was read may be for want of the rest;
# no number, literal or escape is longer than that.
_MARGIN = 32

# In place of the position of a list's element.
LIST, OTHER = -1, -2

_SPACE = re.compile(r'[ \t\n\r]*')


def walk(path: pathlib.Path) -> Iterator[tuple[str | None, int, Any]]:
  """Yields what a JSON file holds, in its order.

  Args:
    path: The file.

  Yields:
    (key, position, element) for each element of a list at the top of the
    object, (key, LIST, None) before its first one and (key, OTHER, value) for
    what is no list. If the document is itself a list, the key is None; if it
    is no object either, there is (None, OTHER, value) alone.

  Raises:
    InputError: If the file cannot be read or is not JSON.
  """
  try:
    with open(path, 'rb') as file:
      yield from _Window(path, file).document()
  except OSError as error:
    raise errors.InputError(
      f'A25: Cannot read the annotations {path}: {error.strerror or error}.'
    ) from error


def loads(text: str) -> Any:
  """Does what json.loads does, but no name may come twice in an object."""
  return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Makes a dict of names and values, each name only once."""
  found = dict(pairs)
  if len(found) < len(pairs):
    seen = set()
    twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    raise ValueError(f'the name {twice!r} comes twice in one object')
  return found


class _Window:
  """The part of a text that is being parsed."""

  def __init__(self, path: pathlib.Path, file: BinaryIO):
    self._path = path
    self._file = file
    self._decode = codecs.getincrementaldecoder('utf-8-sig')().decode
    self._scan = json.JSONDecoder(object_pairs_hook=_unique).scan_once
    self._text = ''
    self._place = 0  # of what comes next
    self._passed = 0  # characters before the window
    self._is_all = False
    if file.peek(2)[:2] == b'\x1f\x8b':
      raise errors.InputError(
        f'A25: {path} is gzip-compressed; unpack it first.'
      )

  def document(self) -> Iterator[tuple[str | None, int, Any]]:
    """Yields what `walk` yields."""
    match self._peek():
      case '{':
        keys = set()
        for key in self._names():
          if key in keys:
            raise self._error(f'the name {key!r} comes twice in one object')
          keys.add(key)
          if self._peek() == '[':
            yield key, LIST, None
            for position, element in enumerate(self._elements()):
              yield key, position, element
          else:
            yield key, OTHER, self._value()
      case '[':
        yield None, LIST, None
        for position, element in enumerate(self._elements()):
          yield None, position, element
      case '<':
        raise self._error(
          'it looks like XML, such as that of Pascal VOC or CVAT; convert it'
          ' to COCO'
        )
      case _:
        yield None, OTHER, self._value()
    if self._peek():
      raise self._error('something comes after the end')

  def _names(self) -> Iterator[str]:
    """Yields the names of an object, each when its value is next."""
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
    """Yields the elements of a list."""
    self._place += 1
    if self._peek() == ']':
      self._place += 1
      return
    while True:
      yield self._value()
      if self._expect(',]') == ']':
        return

  def _expect(self, characters: str) -> str:
    """Takes one of some characters."""
    found = self._peek()
    if not found or found not in characters:
      raise self._error(f'there must be one of {characters!r}')
    self._place += 1
    return found

  def _peek(self) -> str:
    """Returns the next character that is no space; '' at the end."""
    while True:
      self._place = _SPACE.match(self._text, self._place).end()
      if self._place < len(self._text):
        return self._text[self._place]
      if self._is_all:
        return ''
      self._read(_WINDOW)

  def _value(self) -> Any:
    """Takes a value."""
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
        # A number may go on: 1 as 1.5, or as 1e+5.
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
    """Forgets what was parsed and reads on."""
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
    """Says what is wrong, and where."""
    return errors.InputError(
      f'A25: {self._path} is not JSON: {reason}'
      f' (character {self._passed + self._place}).'
    )
