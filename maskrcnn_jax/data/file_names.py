"""Finds the image file that a wrong name in an annotation file means."""

import os
import pathlib
import re
import unicodedata
import urllib.parse

from maskrcnn_jax.data.image_files import EXTENSIONS

# Label Studio puts eight hexadecimal digits before the name of an uploaded
# file: '1f0a9c3e-cat.png'.
_UPLOAD_PREFIX = re.compile(r'[0-9a-f]{8}-')

# A name may be quoted more than once, such as '%2520' for a space.
_MOST_QUOTINGS = 3


class FileFinder:
  """Finds files of a folder by the last part of a path from another computer.

  The folder and its sub-folders are listed once, when the first file is sought.
  """

  def __init__(self, folder: str | pathlib.Path):
    """Remembers the folder.

    Args:
      folder: The folder of the images.
    """
    self._folder = os.path.abspath(folder)
    # {base name: paths relative to the folder}, and the same with the base
    # names in a form in which spellings of one name are equal.
    self._by_name: dict[str, list[str]] | None = None
    self._by_spelling: dict[str, list[str]] = {}

  def find(self, name: str) -> str:
    """Returns the file that has the base name of a path, if it is unique.

    The path may be absolute, have Windows' backslashes, be a URL, have
    characters such as %20, or differ from the file in upper and lower case
    letters. An exact base name is preferred to another spelling. If several
    files have it, the one is taken that has the most folders in common with the
    path.

    Args:
      name: The path, as in the annotation file.

    Returns:
      The path of the file relative to the folder, with '/'. It is '' if no file
      or more than one file fits.
    """
    if self._by_name is None:
      self._list_files()
    assert self._by_name is not None
    paths = _readings(name)
    for table, key in (
      (self._by_name, _base_name),
      (self._by_spelling, _spelling),
    ):
      for path in paths:
        found = table.get(key(path))
        if found:
          nearest = self._nearest(path, found)
          is_file = os.path.isfile(os.path.join(self._folder, nearest))
          return nearest if is_file else ''
    return ''

  def _list_files(self) -> None:
    """Lists the files of the folder and its sub-folders by their base names."""
    self._by_name = {}
    for folder, _, names in os.walk(self._folder):
      for name in names:
        path = os.path.relpath(os.path.join(folder, name), self._folder)
        path = path.replace(os.sep, '/')
        self._by_name.setdefault(name, []).append(path)
        self._by_spelling.setdefault(_spelling(name), []).append(path)
        stem, extension = os.path.splitext(name)
        if extension.lower() in EXTENSIONS:
          # This is for names without an extension.
          self._by_spelling.setdefault(_spelling(stem), []).append(path)

  def _nearest(self, name: str, paths: list[str]) -> str:
    """Returns the path with the most folders in common with a name, or ''.

    Args:
      name: The path that is sought.
      paths: Paths relative to the folder. At least one.

    Returns:
      A path; '' if two of them are equally near.
    """
    if len(paths) == 1:
      return paths[0]
    wanted = _parts(name)[::-1]
    ranks = []
    for path in paths:
      parts = _parts(f'{self._folder}/{path}')[::-1]
      shared = 1  # The base name.
      while (
        shared < min(len(parts), len(wanted))
        and parts[shared] == wanted[shared]
      ):
        shared += 1
      ranks.append(shared)
    best = max(ranks)
    return paths[ranks.index(best)] if ranks.count(best) == 1 else ''


def _readings(name: str) -> list[str]:
  """Returns the paths that a file name may mean, the likeliest first.

  Args:
    name: The name in the annotation file.
  """
  names = [name]
  for _ in range(_MOST_QUOTINGS):
    names.append(urllib.parse.unquote(names[-1]))
  names.append(urllib.parse.unquote_plus(name))
  for path in list(names):
    # A URL may end in a query, or hold the path in it: '?d=images/0.png'.
    before, _, query = path.partition('?')
    names += [before, query.rpartition('=')[2]]
  names += [path.strip() for path in names]
  for path in list(names):
    base = _base_name(path)
    if _UPLOAD_PREFIX.match(base):
      names.append(path[: len(path) - len(base)] + base[9:])
  return [path for path in dict.fromkeys(names) if _base_name(path)]


def _parts(path: str) -> list[str]:
  """Returns the parts of a path that '/' or a backslash separates."""
  return [part for part in re.split(r'[/\\]', path) if part not in ('', '.')]


def _base_name(path: str) -> str:
  """Returns the last part of a path; '' if it ends with a separator."""
  return re.split(r'[/\\]', path)[-1]


def _spelling(path: str) -> str:
  """Returns a form of a base name that its usual spellings have in common.

  Letter case, the composition of Unicode characters (macOS stores an 'é' as
  two), and the ending of a JPEG do not count.
  """
  name = unicodedata.normalize('NFKC', _base_name(path)).casefold().strip()
  return f'{name[:-5]}.jpg' if name.endswith('.jpeg') else name
