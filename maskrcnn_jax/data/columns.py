"""An index in files, so that worker processes need not hold it.

A worker is sent the name of a folder, and reads from it what one image has.
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
from typing import NamedTuple

import numpy as np

from maskrcnn_jax.data import coco_index

# Columns of CocoIndex by what they have a row for.
_OF_IMAGES = 'heights', 'widths', 'object_starts'
_OF_OBJECTS = 'boxes', 'classes', 'crowd', 'areas', 'outline_starts'
_OF_VERTICES = 'vertices', 'parts'
_TEXTS = 'image_ids', 'file_names'

# In the folder of an index: locked by the process that made it.
_LOCK = 'lock'


class StoredIndex(NamedTuple):
  """A CocoIndex that lies in a folder."""

  folder: str

  def image(self, row: int) -> coco_index.CocoIndex:
    """Reads what the index has of one image; see `one_image`."""
    columns = _open(self.folder)
    first, last = columns['object_starts'].read(row, row + 2).tolist()
    starts = columns['outline_starts'].read(first, last + 1)
    arrays = {
      name: columns[name].read(first, last)
      for name in _OF_OBJECTS
      if name != 'outline_starts'
    } | {
      name: columns[name].read(*starts[[0, -1]].tolist())
      for name in _OF_VERTICES
    }
    texts = {name: [_read_text(columns, name, row)] for name in _TEXTS}
    return coco_index.CocoIndex(
      categories=(),
      heights=columns['heights'].read(row, row + 1),
      widths=columns['widths'].read(row, row + 1),
      object_starts=np.array([0, last - first]),
      outline_starts=starts - starts[0],
      annotation_ids=[None] * (last - first),
      dropped={},
      **arrays,
      **texts,
    )


def store(
  index: coco_index.CocoIndex, folder: str | pathlib.Path
) -> StoredIndex:
  """Writes an index into a folder.

  Args:
    index: All of it is written but for annotation ids and the class table.
    folder: Must exist.
  """
  folder = os.fspath(folder)
  columns = {
    name: getattr(index, name)
    for name in (*_OF_IMAGES, *_OF_OBJECTS, *_OF_VERTICES)
  }
  for name in _TEXTS:
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
  """Keeps an index in a folder of its own, which is removed in the end.

  Those of processes that were killed before are removed at the start.

  Args:
    index: See `store`.
    parent: Where to make the folder. Other processes may do so too.
  """
  # Of other machines one cannot tell: not every file system shares its locks.
  prefix = f'loader_index_{platform.node()}_'
  for lock in parent.glob('loader_index_*/' + _LOCK):
    if lock.parent.name.startswith(prefix):
      _remove_unless_locked(lock)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f'new_{prefix}', dir=parent))
  try:
    with open(folder / _LOCK, 'w') as lock:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)
      # Before it is locked, nobody must find it.
      folder = folder.rename(folder.with_name(folder.name.removeprefix('new_')))
      yield store(index, folder)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _remove_unless_locked(lock: pathlib.Path) -> None:
  """Removes the folder of a lock that no living process holds."""
  # Either it is held, or there are no locks, or another was faster.
  with contextlib.suppress(OSError), open(lock, 'r+') as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(lock.parent, ignore_errors=True)


def one_image(
  index: coco_index.CocoIndex | StoredIndex, row: int
) -> coco_index.CocoIndex:
  """Returns the index of a single image, with its objects; no class table."""
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
  """An array in a file, of which rows can be read.

  Reading, unlike mapping, leaves nothing in the memory of the process.
  """

  def __init__(self, path: str, dtype: str, shape: list[int]):
    self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    self._dtype = np.dtype(dtype)
    self._shape = tuple(shape)
    self._size = self._dtype.itemsize * int(np.prod(shape, dtype=int))

  def read(self, start: int, stop: int) -> np.ndarray:
    """Returns the rows [start, stop)."""
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
  """Opens the columns of a folder; once in each process."""
  layout = json.loads(pathlib.Path(folder, 'layout.json').read_text())
  return {
    name: _Column(os.path.join(folder, name), *kind)
    for name, kind in layout.items()
  }


def _read_text(columns: dict[str, _Column], name: str, row: int):
  """Reads a JSON scalar."""
  ends = columns[f'{name}_starts'].read(row, row + 2).tolist()
  return json.loads(columns[name].read(*ends).tobytes())
