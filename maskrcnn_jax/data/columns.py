"""Stores the index in files, so that workers need not hold it in memory.

A worker receives only the name of the folder. For each image it reads the rows
of that image from the files, one file for each column of the index.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import functools
import json
import os
import pathlib
import platform
import shutil
import tempfile
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax.data import coco_index

# Names of the arrays of CocoIndex that are stored.
_ARRAYS = (
  *('heights', 'widths', 'object_starts'),
  *('boxes', 'classes', 'crowd', 'areas', 'outline_starts'),
  *('vertices', 'parts'),
)

# Names of the lists of CocoIndex that are stored. Their elements become JSON.
_LISTS = 'image_ids', 'file_names'

# Name of a file in the folder of an index. The process that made the folder
# holds a lock on it.
_LOCK = 'lock'


class StoredIndex(NamedTuple):
  """An index in a folder. Pickling it costs nothing, unlike a CocoIndex."""

  folder: str  # path of the folder

  def image(self, row: int) -> coco_index.CocoIndex:
    """Reads a single image and its objects from the files, as an index.

    Args:
      row: Row of the image in the whole index.

    Returns:
      The image has row 0. The class table and `dropped` are empty, and all
      annotation ids are None.
    """
    columns = _open(self.folder)
    first, last = columns['object_starts'].read(row, row + 2).tolist()
    starts = columns['outline_starts'].read(first, last + 1)
    begin, end = starts[[0, -1]].tolist()
    return coco_index.CocoIndex(
      categories=(),
      image_ids=[_read_element(columns, 'image_ids', row)],
      file_names=[_read_element(columns, 'file_names', row)],
      heights=columns['heights'].read(row, row + 1),
      widths=columns['widths'].read(row, row + 1),
      object_starts=np.array([0, last - first]),
      boxes=columns['boxes'].read(first, last),
      classes=columns['classes'].read(first, last),
      crowd=columns['crowd'].read(first, last),
      areas=columns['areas'].read(first, last),
      annotation_ids=[None] * (last - first),
      outline_starts=starts - starts[0],
      vertices=columns['vertices'].read(begin, end),
      parts=columns['parts'].read(begin, end),
      dropped={},
    )


def store(
  index: coco_index.CocoIndex, folder: str | pathlib.Path
) -> StoredIndex:
  """Writes an index into a folder, one file for each column.

  Args:
    index: The index. The annotation ids, the class table and `dropped` are not
      written.
    folder: The folder, which must exist.
  """
  folder = os.fspath(folder)
  columns: dict[str, np.ndarray] = {
    name: getattr(index, name) for name in _ARRAYS
  }
  for name in _LISTS:
    texts = [json.dumps(text).encode() for text in getattr(index, name)]
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    columns[f'{name}_starts'] = np.concatenate([[0], np.cumsum(lengths)])
    columns[name] = np.frombuffer(b''.join(texts), np.uint8)
  for name, column in columns.items():
    np.ascontiguousarray(column).tofile(os.path.join(folder, name))
  layout = {
    name: (column.dtype.str, column.shape[1:])
    for name, column in columns.items()
  }
  pathlib.Path(folder, 'layout.json').write_text(json.dumps(layout))
  return StoredIndex(folder)


@contextlib.contextmanager
def temporarily_stored(
  index: coco_index.CocoIndex, parent: pathlib.Path
) -> Iterator[StoredIndex]:
  """Context manager that stores an index in a folder and removes it at exit.

  Before that, it removes folders of processes of this machine that were killed
  and could not remove theirs.

  Args:
    index: The index, see `store`.
    parent: Folder in which the new folder is made. Other processes may use the
      same parent at the same time.

  Raises:
    OSError: If the files cannot be written.
  """
  # Folders of other machines are left alone: some file systems do not share
  # their locks between machines, so the folder may still be in use.
  prefix = f'loader_index_{platform.node()}_'
  for lock in parent.glob('loader_index_*/' + _LOCK):
    if lock.parent.name.startswith(prefix):
      _remove_unless_locked(lock)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f'new_{prefix}', dir=parent))
  try:
    with open(folder / _LOCK, 'w') as file:
      with contextlib.suppress(OSError):  # the file system may have no locks
        fcntl.flock(file, fcntl.LOCK_EX)
      # The folder gets the name that other processes look for only now, so that
      # none of them removes it before it is locked.
      folder = folder.rename(folder.with_name(folder.name.removeprefix('new_')))
      yield store(index, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _remove_unless_locked(lock: pathlib.Path) -> None:
  """Removes the folder that a lock file is in, unless a process holds the lock.

  Args:
    lock: The lock file.
  """
  # An OSError means that a process holds the lock, that the file system has no
  # locks, or that another process has just removed the folder.
  with contextlib.suppress(OSError), open(lock, 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(lock.parent, ignore_errors=True)


def one_image(
  index: coco_index.CocoIndex | StoredIndex, row: int
) -> coco_index.CocoIndex:
  """Returns an index that holds a single image and its objects.

  Args:
    index: The whole index, in memory or in files.
    row: Row of the image in the whole index.

  Returns:
    The image has row 0. The class table and `dropped` are empty.
  """
  if isinstance(index, StoredIndex):
    return index.image(row)
  first, last = index.object_starts[row : row + 2].tolist()
  starts = index.outline_starts[first : last + 1]
  vertices = slice(*starts[[0, -1]].tolist())
  return index._replace(
    categories=(),
    image_ids=[index.image_ids[row]],
    file_names=[index.file_names[row]],
    heights=index.heights[row : row + 1],
    widths=index.widths[row : row + 1],
    object_starts=np.array([0, last - first]),
    boxes=index.boxes[first:last],
    classes=index.classes[first:last],
    crowd=index.crowd[first:last],
    areas=index.areas[first:last],
    annotation_ids=index.annotation_ids[first:last],
    outline_starts=starts - starts[0],
    vertices=index.vertices[vertices],
    parts=index.parts[vertices],
    dropped={},
  )


class _Column:
  """An array in a file, of which some rows can be read.

  The file is read, not mapped into memory, because the pages of a mapped file
  would count as memory of the process.
  """

  def __init__(self, path: str, dtype: str, shape: list[int]):
    """Opens the file.

    Args:
      path: The file, which holds the bytes of the rows and nothing else.
      dtype: NumPy's name of the type of the elements.
      shape: Shape of a row.
    """
    self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    self._dtype = np.dtype(dtype)
    self._shape = tuple(shape)
    self._size = self._dtype.itemsize * int(np.prod(shape, dtype=int))

  def read(self, start: int, stop: int) -> np.ndarray:
    """Reads the rows [start, stop)."""
    wanted = (stop - start) * self._size
    raw = bytearray()
    while len(raw) < wanted:
      more = os.pread(
        self._file, wanted - len(raw), start * self._size + len(raw)
      )
      if not more:
        raise EOFError('The stored index has changed while it was in use.')
      raw += more
    return np.frombuffer(raw, self._dtype).reshape(-1, *self._shape)


@functools.lru_cache(maxsize=4)
def _open(folder: str) -> dict[str, _Column]:
  """Opens the columns of a stored index, once in each process.

  Args:
    folder: The folder of the stored index.

  Returns:
    {name of the column: the column}.
  """
  layout = json.loads(pathlib.Path(folder, 'layout.json').read_text())
  return {
    name: _Column(os.path.join(folder, name), *kind)
    for name, kind in layout.items()
  }


def _read_element(columns: dict[str, _Column], name: str, row: int) -> Any:
  """Reads one element of a stored list.

  Args:
    columns: Columns of the stored index.
    name: Name of the list: 'image_ids' or 'file_names'.
    row: Row of the image.
  """
  ends = columns[f'{name}_starts'].read(row, row + 2).tolist()
  return json.loads(columns[name].read(*ends).tobytes())
