"""The file predictions.npz: the detections of a whole data set as arrays.

Each process first writes the masks of its detections to a file of its own, so
that the masks of a large data set need no memory. Process 0 then joins these
files. Axis letters here: n detections of all images, m x m cells of a mask.
"""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib
from typing import Any, BinaryIO
import zipfile

from jaxtyping import Float, Int
import numpy as np

from maskrcnn_jax.data.coco_index import Category
from maskrcnn_jax.errors import InputError

FILE = 'predictions.npz'

# Number of masks that are copied at once: 3 MB with 28 x 28 cells.
_CHUNK = 4096


@contextlib.contextmanager
def open_part(directory: pathlib.Path, process: int) -> Iterator[BinaryIO]:
  """Opens the file for the masks of one process; an error removes the file.

  Args:
    directory: Folder of predictions.npz; it is made if it is missing. All
      processes must see the same folder.
    process: Number of the process.

  Yields:
    The file, which `write_part` writes to.
  """
  directory.mkdir(parents=True, exist_ok=True)
  path = _part(directory, process)
  try:
    with open(path, 'wb') as file:
      yield file
  except BaseException:
    path.unlink(missing_ok=True)
    raise


def write_part(file: BinaryIO, masks: Float[np.ndarray, 'd m m']) -> None:
  """Appends the masks of an image, 1 byte for each cell.

  A probability p becomes the nearest whole number to 255 p, so that p is at
  least 0.5 if and only if the number is at least 128.

  Args:
    file: The file of this process.
    masks: Probabilities in [0, 1], in the order of the detections.
  """
  file.write(np.rint(masks * 255).astype(np.uint8).tobytes())


def write_predictions(
  directory: pathlib.Path,
  results: Sequence[dict[str, Any]],
  *,
  categories: Sequence[Category],
  width_offset: float,
  mask_side: int,
  counts: Sequence[int],
  places: Int[np.ndarray, 'n'],
) -> None:
  """Writes predictions.npz and removes the files of the processes.

  The file has these arrays, with a row for each detection:
    image_ids: Ids of the images, as in the COCO JSON. A file whose ids are not
      all numbers has texts here.
    boxes: (x1, y1, x2, y2) in pixels of the image on disk, float32.
    scores: In [0, 1], float32.
    classes: Class numbers from 1 on, int32.
    masks: uint8 [n, m, m]. The box is divided into m x m cells, 28 x 28 in
      models with a pyramid; 255 times the probability that a cell belongs to
      the object, rounded. Missing if the model has no mask head.
  and a row for each class:
    category_ids, class_names: Id and name of class 1, 2, and so on.

  Args:
    directory: Folder of the file.
    results: The detections as COCO results, in the order of the rows.
    categories: The classes; class number = position + 1.
    width_offset: Number of pixels that `bbox` of a result adds to x2 - x1 and
      y2 - y1.
    mask_side: m; 0 if the model has no mask head.
    counts: Number of detections of each process.
    places: For each row, the position of its mask in the files of all
      processes, one after the other.

  Raises:
    InputError: If the file of a process is missing or too short.
  """
  numbers = {category.id: i for i, category in enumerate(categories, start=1)}
  boxes = np.array([result['bbox'] for result in results], np.float64).reshape(
    -1, 4
  )
  boxes[:, 2:] += boxes[:, :2] - width_offset
  arrays = {
    'image_ids': _ids([result['image_id'] for result in results]),
    'boxes': boxes.astype(np.float32),
    'scores': np.array([result['score'] for result in results], np.float32),
    'classes': np.array(
      [numbers[result['category_id']] for result in results], np.int32
    ),
    'category_ids': _ids([category.id for category in categories]),
    'class_names': np.array([category.name for category in categories], str),
  }
  partial = directory / f'{FILE}.partial'
  with zipfile.ZipFile(
    partial, 'w', zipfile.ZIP_DEFLATED, compresslevel=1
  ) as archive:
    for name, array in arrays.items():
      with archive.open(f'{name}.npy', 'w') as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
    if mask_side:
      shape = (len(results), mask_side, mask_side)
      with archive.open('masks.npy', 'w', force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(
          file, {'descr': '|u1', 'fortran_order': False, 'shape': shape}
        )
        parts = _read_parts(directory, counts, mask_side)
        for chunk in _in_order(parts, counts, places):
          file.write(chunk.tobytes())
  partial.replace(directory / FILE)
  for process in range(len(counts)):
    _part(directory, process).unlink(missing_ok=True)


def _part(directory: pathlib.Path, process: int) -> pathlib.Path:
  """Returns the path of the file with the masks of a process."""
  return directory / f'predictions.{process}.partial'


def _read_parts(
  directory: pathlib.Path, counts: Sequence[int], side: int
) -> list[np.ndarray]:
  """Maps the files of all processes into memory, without reading them.

  Args:
    directory: Folder of the files.
    counts: Number of masks of each process.
    side: Number of cells of a mask in each direction.

  Returns:
    uint8 arrays [count, side, side].

  Raises:
    InputError: If a file is missing or has another size.
  """
  parts = []
  for process, count in enumerate(counts):
    path = _part(directory, process)
    if not path.is_file() or path.stat().st_size != count * side * side:
      raise InputError(
        f'C10: process 0 does not find the {count} masks of process {process} '
        f'in {path}; --workdir must be on a file system that all machines '
        'share.'
      )
    # An empty file cannot be mapped.
    parts.append(
      np.memmap(path, np.uint8, 'r', shape=(count, side, side))
      if count
      else np.zeros((0, side, side), np.uint8)
    )
  return parts


def _in_order(
  parts: list[np.ndarray], counts: Sequence[int], places: np.ndarray
) -> Iterator[np.ndarray]:
  """Yields the masks in the order of the rows, some thousands at once.

  Args:
    parts: The masks of each process.
    counts: Number of masks of each process.
    places: For each row, the position of its mask in all parts together.
  """
  ends = np.cumsum(counts)
  for start in range(0, len(places), _CHUNK):
    chosen = places[start : start + _CHUNK]
    process = np.searchsorted(ends, chosen, side='right')
    chunk = np.empty((len(chosen), *parts[0].shape[1:]), np.uint8)
    for number, part in enumerate(parts):
      own = process == number
      chunk[own] = part[chosen[own] - (ends[number] - counts[number])]
    yield chunk


def _ids(ids: Sequence[int | float | str]) -> np.ndarray:
  """Converts ids to an array that can be stored without pickle.

  Args:
    ids: Ids of images or categories, as in the JSON.

  Returns:
    int64 if all ids are whole numbers that it can hold, float64 if all are
    numbers with fractions among them, otherwise texts.
  """
  types = {type(id_) for id_ in ids}
  if types <= {int}:
    with contextlib.suppress(OverflowError):
      return np.array(ids, np.int64)
  elif types <= {int, float}:
    return np.array(ids, np.float64)
  return np.array([str(id_) for id_ in ids], str)
