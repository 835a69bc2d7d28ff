"""Reads back what `coco_instances` wrote, as COCO JSON and image files."""

import functools
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import errors

# What `coco_instances` writes and other sets lack.
_FEATURES = ('image/index', 'objects/rle', 'polygons/coordinates')


class Records(NamedTuple):
  """A split of a set that tensorflow-datasets keeps."""

  name: str  # such as 'coco_instances/2017'
  split: str
  directory: str  # the data_dir of tensorflow-datasets

  def __str__(self) -> str:
    """Names it in messages."""
    return f'{self.name}, split {self.split}, in {self.directory}'


class RecordImages(NamedTuple):
  """The image files inside of records; stands for a folder of images."""

  directory: str  # of the set itself
  split: str
  positions: Int[np.ndarray, 'n']  # record of each image

  def read(self, row: int) -> bytes:
    """Returns the bytes of the file of the row-th image."""
    source = _open(self.directory, self.split)
    return source[int(self.positions[row])]['image']


def read_records(records: Records) -> tuple[dict[str, Any], RecordImages]:
  """Reads all annotations of a split, and where its images are.

  Returns:
    A COCO JSON as loaded: images in the order of the file that the records
    were made of, annotations by image; and the images.

  Raises:
    InputError: If there is no such set, or it lacks masks.
  """
  # Imported late: it takes a second, and most runs read JSON.
  from maskrcnn_jax.data import coco_instances

  directory = _find(records)
  source = _open(str(directory), records.split)
  categories = source.dataset_info.metadata['categories']
  positions = np.full(len(source), -1, np.int64)
  images = [None] * len(source)
  annotations = [None] * len(source)
  for position, record in enumerate(source):
    row = record['image/index']
    positions[row] = position
    images[row], annotations[row] = coco_instances.record_to_coco(
        record, categories
    )
  return {
      'images': images,
      'annotations': [entry for entries in annotations for entry in entries],
      'categories': [{'id': id_, 'name': name} for id_, name in categories],
  }, RecordImages(str(directory), records.split, positions)


def _find(records: Records) -> pathlib.Path:
  """Finds the newest version of a set and checks that it is what we need."""
  import tensorflow_datasets as tfds

  root = pathlib.Path(records.directory)
  if not records.directory or not root.is_dir():
    raise errors.InputError(
        f'I01: --config.data.tfds_dir is {records.directory!r}; give the'
        ' folder that tensorflow-datasets keeps its sets in.'
    )
  versions = sorted(
      (tfds.core.Version(path.parent.name), path.parent)
      for path in (root / records.name).glob('*/dataset_info.json')
      if tfds.core.Version.is_valid(path.parent.name)
  )
  if not versions:
    there = sorted({
        str(path.parents[1].relative_to(root))
        for path in root.rglob('dataset_info.json')
    })
    raise errors.InputError(
        f'I01: there is no set {records.name!r} in {root}; there is'
        f' {", ".join(there) or "none"}. python -m maskrcnn_jax.build_tfds'
        ' makes one.'
    )
  directory = versions[-1][1]
  info = tfds.builder_from_directory(directory).info
  lacks = [name for name in _FEATURES if name not in info.features]
  if lacks:
    raise errors.InputError(
        f'A25: the set in {directory} has no {", ".join(lacks)}, so no masks;'
        ' give one that python -m maskrcnn_jax.build_tfds made.'
    )
  if records.split not in info.splits:
    raise errors.InputError(
        f'I01: {records.name} in {root} has no split {records.split!r}; it'
        f' has {", ".join(sorted(info.splits))}.'
    )
  return directory


@functools.lru_cache(maxsize=8)
def _open(directory: str, split: str) -> Any:
  """Opens a split for random access; once in each process."""
  import tensorflow_datasets as tfds

  return tfds.builder_from_directory(directory).as_data_source(
      split, decoders={'image': tfds.decode.SkipDecoding()}
  )
