"""A cheap fingerprint of the training images, which tells replaced files."""

from concurrent import futures
import os
import pathlib
from typing import NamedTuple
import zlib

import numpy as np

from maskrcnn_jax.data.records import RecordImages
from maskrcnn_jax.data.source import DataSet, SeveralImages, image_file

# Number of files whose bytes are read; of a larger set, this many are taken at
# equal distances. The size and the time of each file are always read. On a disk
# that turns, reading the bytes of 118,000 files would take minutes.
MAX_READ = 10_000

# Bytes that are read at each end of a file.
_END = 256

# Threads that read files, because a network disk answers many at a time.
_NUM_THREADS = 16


class ImageFingerprint(NamedTuple):
  """Checksums over the image files of a data set, in hexadecimal digits."""

  content: str  # of the sizes, and of the first and the last bytes
  times: str  # of the times of the last change

  def __str__(self) -> str:
    """Returns the text that a checkpoint stores."""
    return ' '.join(self)


def fingerprint_images(data_set: DataSet, rows: np.ndarray) -> ImageFingerprint:
  """Computes the fingerprint of the image files that are trained on.

  A file that cannot be read counts as empty; the loader reports it.

  Args:
    data_set: The training set. If its images are in records, the files of the
      records are taken.
    rows: The rows of its index that are trained on.
  """
  paths = _paths(data_set, rows)
  is_read = np.zeros(len(paths), bool)
  if paths:
    chosen = np.linspace(0, len(paths) - 1, MAX_READ).round().astype(int)
    is_read[chosen] = True
  content = times = 0
  size = 500
  with futures.ThreadPoolExecutor(_NUM_THREADS) as threads:
    for facts in threads.map(
      _facts_of,
      [paths[i : i + size] for i in range(0, len(paths), size)],
      [is_read[i : i + size] for i in range(0, len(paths), size)],
    ):
      for length, time, ends in facts:
        content = zlib.crc32(b'%d ' % length + ends, content)
        times = zlib.crc32(b'%d ' % time, times)
  return ImageFingerprint(f'{content:08x}', f'{times:08x}')


def image_change(stored: str, now: str) -> str:
  """Tells in which way image files have changed.

  Args:
    stored: A fingerprint as text, of an earlier run. '' if it has none.
    now: The fingerprint as text of the files as they are. '' in processes that
      have none.

  Returns:
    Half a sentence about the difference; '' if there is none or if one of the
    fingerprints is missing.
  """
  if not stored or not now or stored == now:
    return ''
  if stored.split()[0] != now.split()[0]:
    return 'their sizes or their first or last bytes differ'
  return (
    'they have other modification times. If they were only copied, nothing '
    'needs to be done'
  )


def _paths(data_set: DataSet, rows: np.ndarray) -> list[str]:
  """Returns the files of the images, without repetitions of record files."""
  index, images = data_set
  parts = images.parts if isinstance(images, SeveralImages) else (images,)
  records = [
    str(file)
    for part in parts
    if isinstance(part, RecordImages)
    for file in sorted(pathlib.Path(part.directory).iterdir())
    if file.is_file()
  ]
  found = (
    image_file(images, row, index.file_names[row]) for row in rows.tolist()
  )
  return [image.path for image in found if image.record is None] + records


def _facts_of(
  paths: list[str], is_read: np.ndarray
) -> list[tuple[int, int, bytes]]:
  """Reads size, time of the last change (ns), first and last bytes of files.

  Args:
    paths: The files.
    is_read: For each file, whether its bytes are read. If not, they are b''.
  """
  facts = []
  for path, reads in zip(paths, is_read, strict=True):
    try:
      if not reads:
        status = os.stat(path)
        facts.append((status.st_size, status.st_mtime_ns, b''))
        continue
      with open(path, 'rb', buffering=0) as file:
        status = os.fstat(file.fileno())
        ends = file.read(_END) or b''
        file.seek(max(status.st_size - _END, 0))
        ends += file.read(_END) or b''
      facts.append((status.st_size, status.st_mtime_ns, ends))
    except OSError:
      facts.append((0, 0, b''))
  return facts
