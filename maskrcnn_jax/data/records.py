"""Reads a data set that `build_tfds` wrote: COCO annotations and image files.

`build_tfds/coco_instances.py` describes the features of a record.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco
from maskrcnn_jax.data.coco_index import CocoIndex

# The value of `objects/area` for an object whose annotation has no area.
MISSING_AREA = -1.0

# Features that `build_tfds` writes and that other COCO sets of
# tensorflow-datasets lack.
_FEATURES = ('image/index', 'objects/rle', 'polygons/coordinates')


class Records(NamedTuple):
  """A split of a tensorflow-datasets data set."""

  name: str  # such as 'coco_instances/2017'
  split: str
  directory: str  # the data_dir of tensorflow-datasets

  def __str__(self) -> str:
    """Returns the name of the data set for messages."""
    return f'{self.name}, split {self.split}, in {self.directory}'

  def check_is_there(self, option: str) -> None:
    """Checks that the set exists and has masks; messages need no `option`.

    Raises:
      InputError: If the data set or the split does not exist, or has no masks.
    """
    find_records(self)

  def read(self, **options: Any) -> tuple[CocoIndex, 'RecordImages']:
    """Reads and checks all annotations, and finds the record of each image.

    Args:
      **options: Keyword arguments of `coco.index_coco`.

    Raises:
      InputError: If the data set or the split does not exist or has no masks,
        or if the annotations are wrong and `options` have no `report`.
    """
    content, images = read_records(self)
    return coco.index_coco(content, str(self), **options), images

  def read_content(self) -> dict[str, Any]:
    """Returns a COCO document with the annotations of the records, not checked.

    Raises:
      InputError: If the data set or the split does not exist or has no masks.
    """
    return read_records(self)[0]


class RecordImage(NamedTuple):
  """The image file inside one record."""

  directory: str  # folder of one version of the data set
  split: str
  position: int  # index of the record in its split

  def read(self) -> bytes:
    """Returns the bytes of the image file."""
    return _open(self.directory, self.split)[self.position]['image']


class RecordImages(NamedTuple):
  """The image files inside the records of a split."""

  directory: str  # folder of one version of the data set
  split: str
  positions: Int[
    np.ndarray, 'n'
  ]  # index of the record of each row of the index

  def image(self, row: int) -> RecordImage:
    """Returns the image file of a row of the index."""
    return RecordImage(self.directory, self.split, int(self.positions[row]))


def read_records(records: Records) -> tuple[dict[str, Any], RecordImages]:
  """Reads all annotations of a split, and finds the record of each image.

  Returns:
    A COCO document and the image files. The images have the order of the
    original COCO file. The annotations are sorted by image.

  Raises:
    InputError: If the data set does not exist or has no masks.
  """
  directory = find_records(records)
  rows = _open(str(directory), records.split)
  categories = rows.dataset_info.metadata['categories']
  positions = np.full(len(rows), -1, np.int64)
  # Records are not in the order of the original file.
  images: list[dict[str, Any]] = [{}] * len(rows)
  annotations: list[list[dict[str, Any]]] = [[]] * len(rows)
  for position, record in enumerate(rows):
    row = record['image/index']
    positions[row] = position
    images[row], annotations[row] = record_to_coco(record, categories)
  return {
    'images': images,
    'annotations': [entry for entries in annotations for entry in entries],
    'categories': [{'id': id_, 'name': name} for id_, name in categories],
  }, RecordImages(str(directory), records.split, positions)


def find_records(records: Records) -> pathlib.Path:
  """Finds the folder of the newest version of a data set.

  Raises:
    InputError: If the data set or the split does not exist, or has no masks.
  """
  # Imported late: importing it takes a second, and most runs read JSON.
  import tensorflow_datasets as tfds

  root = pathlib.Path(records.directory)
  if not records.directory or not root.is_dir():
    raise errors.InputError(
      f'I01: --config.data.tfds_dir is {records.directory!r}; give the folder'
      ' in which tensorflow-datasets stores its data sets.'
    )
  versions = sorted(
    (tfds.core.Version(path.parent.name), path.parent)
    for path in (root / records.name).glob('*/dataset_info.json')
    if tfds.core.Version.is_valid(path.parent.name)
  )
  if not versions:
    existing = sorted(
      {
        str(path.parents[1].relative_to(root))
        for path in root.rglob('dataset_info.json')
      }
    )
    raise errors.InputError(
      f'I01: there is no set {records.name!r} in {root}; there is'
      f' {", ".join(existing) or "none"}. python -m maskrcnn_jax.build_tfds'
      ' makes one.'
    )
  directory = versions[-1][1]
  info = tfds.builder_from_directory(directory).info
  missing = [name for name in _FEATURES if name not in info.features]
  if missing:
    raise errors.InputError(
      f'A25: the set in {directory} has no {", ".join(missing)}, so no masks;'
      ' give one that python -m maskrcnn_jax.build_tfds made.'
    )
  if records.split not in info.splits:
    raise errors.InputError(
      f'I01: {records.name} in {root} has no split {records.split!r}; it'
      f' has {", ".join(sorted(info.splits))}.'
    )
  return directory


def record_to_coco(
  record: dict[str, Any], categories: list[Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Converts a record to a COCO image and its annotations.

  Args:
    record: A record as tensorflow-datasets returns it.
    categories: [[id, name], ...] from the metadata of the data set.

  Returns:
    The element of COCO's list `images`, and those of its list `annotations`.
  """
  image = {
    'id': json.loads(record['image/id']),
    'file_name': record['image/filename'].decode(),
    'height': int(record['image/height']),
    'width': int(record['image/width']),
  }
  coordinates = record['polygons/coordinates'].tolist()
  lengths = iter(record['polygons/lengths'].tolist())
  position = 0
  annotations = []
  columns = zip(
    json.loads(record['objects/id']),
    record['objects/bbox'].tolist(),
    record['objects/area'].tolist(),
    record['objects/label'].tolist(),
    record['objects/is_crowd'].tolist(),
    record['objects/num_polygons'].tolist(),
    json.loads(record['objects/rle']),
    strict=True,
  )
  for id_, box, area, label, crowd, num_polygons, rle in columns:
    polygons = []
    for _ in range(num_polygons):
      end = position + next(lengths)
      polygons.append(coordinates[position:end])
      position = end
    entry = {
      'image_id': image['id'],
      'category_id': categories[label][0],
      'bbox': box,
      'iscrowd': crowd,
      'segmentation': polygons if rle is None else rle,
    }
    if id_ is not None:
      entry['id'] = id_
    if area != MISSING_AREA:
      entry['area'] = area
    annotations.append(entry)
  return image, annotations


@functools.lru_cache(maxsize=8)
def _open(directory: str, split: str) -> Any:
  """Opens a split for random access, once in each process.

  Args:
    directory: Folder of one version of the data set.
    split: Name of the split.

  Returns:
    A sequence of records, in which the images are not decoded.
  """
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory).as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
