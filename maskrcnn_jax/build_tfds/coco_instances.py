"""Builds a tensorflow-datasets set from COCO files, with the masks.

The set `coco` that comes with tensorflow-datasets has no masks, renumbers the
classes and rounds areas; this set stores the values of the JSON unchanged.
TensorFlow is not needed. `data/records.py` reads the set.

A record is one image. The letter m stands for its number of objects, p for the
number of their polygons.
  image                 the bytes of the file
  image/index           position in the JSON, from 0
  image/filename        as in the JSON
  image/id              as in the JSON, written as JSON: 139 or "a"
  image/height, width   as in the JSON
  objects/id            JSON list of the ids, as in the JSON
  objects/bbox          [m, 4] float64, (x, y, width, height) in pixels
  objects/area          [m] float64, in pixels; -1 if the JSON has no area
  objects/label         [m] number of the class in 'categories', from 0
  objects/is_crowd      [m] 1 for a crowd region, 0 for an object
  objects/num_polygons  [m]; 0 if the mask is an RLE, or there is no mask
  objects/rle           JSON list: COCO's RLE, or null
  polygons/lengths      [p] count of the numbers of each polygon, object after
                        object
  polygons/coordinates  [sum of lengths] float64, x, y, x, y, ... in pixels
The metadata have 'categories', a list of [id, name] in the order of the labels.
Floats are stored as raw bytes, because tensorflow-datasets would round them.
"""

from collections.abc import Iterator, Mapping
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco
from maskrcnn_jax.data.coco_tables import file_name_of
from maskrcnn_jax.data.records import MISSING_AREA
from maskrcnn_jax.data.source import CocoFiles, check_images_exist, read_set

NAME = 'coco_instances'


def find_splits(
  folder: pathlib.Path, year: str
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Finds the annotation files of a folder, and the folders of their images.

  Args:
    folder: A folder in which the archives of COCO were unpacked; or any folder
      that has COCO JSON files in it or in its `annotations/`. The files named
      instances_SPLIT.json are taken; if there are none, all *.json. Their
      images are in SPLIT/, images_SPLIT/, images/SPLIT/, images/ or in the
      folder itself.
    year: '2014' or '2017' for COCO of that year; 'folder' for any other set.

  Returns:
    For each split its annotation file and the folder of its images.

  Raises:
    InputError: If a file or folder is missing.
  """
  if not folder.is_dir():
    raise errors.InputError(f'I01: there is no folder {folder}.')
  if year != 'folder':
    splits = {
      split: (
        folder / 'annotations' / f'instances_{split}{year}.json',
        folder / f'{split}{year}',
      )
      for split in ('train', 'val')
    }
    missing = [p for pair in splits.values() for p in pair if not p.exists()]
    if missing:
      raise errors.InputError(
        f'I01: COCO {year} must be unpacked in {folder}; there is no'
        f' {", no ".join(str(p.relative_to(folder)) for p in missing)}.'
        ' scripts/download_dataset.sh of the source repository downloads it.'
      )
    return splits
  places = folder / 'annotations', folder
  for pattern in ('instances_*.json', '*.json'):
    files = sorted(f for place in places for f in place.glob(pattern))
    if files:
      break
  else:
    raise errors.InputError(
      f'I01: there is no *.json in {folder} or in its annotations/; give the'
      ' folder that has the COCO JSON files.'
    )
  splits = {}
  for file in files:
    split = re.sub(r'\W', '_', file.stem.removeprefix('instances_'))
    if split in splits:
      raise errors.InputError(
        f'{file} and {splits[split][0]} would both be the split {split};'
        ' rename one of the files.'
      )
    splits[split] = file, _images_of(file, folder, split)
  return splits


def _images_of(
  file: pathlib.Path, folder: pathlib.Path, split: str
) -> pathlib.Path:
  """Finds the folder that holds the first image of an annotation file.

  Args:
    file: The annotation file.
    folder: The folder in which the folder of images is looked for.
    split: The name of the split; the folder of images may be named after it.

  Raises:
    InputError: If the file lists no image, or no folder has its first image.
  """
  images = coco.read_json(file)['images']
  first = file_name_of(images[0]) if images else ''
  if not first:
    raise errors.InputError(
      f'{file} lists no image, or its first image has no file_name; give a COCO'
      ' instances JSON.'
    )
  places = [split, f'images_{split}', f'images/{split}', 'images', '.']
  for place in places:
    if (folder / place / first).is_file():
      return folder / place
  raise errors.InputError(
    f'I01: {first}, the first image of {file}, is in none of the folders'
    f' {", ".join(places)} of {folder}; move the images into one of them.'
  )


class CocoInstances(tfds.core.GeneratorBasedBuilder):
  """COCO 2014, COCO 2017, or any folder in COCO's format, in ArrayRecord."""

  # If no name is set here, tensorflow-datasets derives one from the class.
  name = NAME
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(name='2017', description='COCO 2017.'),
    tfds.core.BuilderConfig(name='2014', description='COCO 2014.'),
    tfds.core.BuilderConfig(
      name='folder', description='Any folder in COCO format.'
    ),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    'The unpacked archives of COCO (scripts/download_dataset.sh of the source'
    ' repository downloads and unpacks them), or any folder of COCO-format'
    ' JSON files and their images.'
  )

  def __init__(self, **arguments: Any):
    """Makes a builder that writes ArrayRecord files.

    Args:
      **arguments: Arguments of `tfds.core.DatasetBuilder`.
    """
    super().__init__(**{'file_format': 'array_record'} | arguments)

  def _info(self) -> tfds.core.DatasetInfo:
    """Describes the fields of a record to tensorflow-datasets."""
    bytes_ = tfds.features.Encoding.BYTES

    def floats(*shape: int | None) -> tfds.features.Tensor:
      """Describes an array of float64; `None` is a length that varies."""
      return tfds.features.Tensor(
        shape=shape, dtype=np.float64, encoding=bytes_
      )

    def integers() -> tfds.features.Tensor:
      """Describes a list of int32 of any length."""
      return tfds.features.Tensor(
        shape=(None,), dtype=np.int32, encoding=bytes_
      )

    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      homepage='https://cocodataset.org',
      metadata=tfds.core.MetadataDict(),
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(),
          'image/index': np.int64,
          'image/filename': tfds.features.Text(),
          'image/id': tfds.features.Text(),
          'image/height': np.int64,
          'image/width': np.int64,
          'objects/id': tfds.features.Text(),
          'objects/bbox': floats(None, 4),
          'objects/area': floats(None),
          'objects/label': integers(),
          'objects/is_crowd': integers(),
          'objects/num_polygons': integers(),
          'objects/rle': tfds.features.Text(),
          'polygons/lengths': integers(),
          'polygons/coordinates': floats(None),
        }
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    """Checks all splits and returns a generator of records for each.

    Args:
      dl_manager: Its `manual_dir` is the folder of the COCO files.

    Raises:
      InputError: If a file is damaged or missing, or two splits have different
        classes.
    """
    splits = find_splits(
      pathlib.Path(dl_manager.manual_dir), self.builder_config.name
    )
    tables = {}
    for split, (file, images) in splits.items():
      # Reading checks everything before the first record is written.
      data_set = read_set(
        CocoFiles(os.fspath(images), os.fspath(file)), require_masks=False
      )
      check_images_exist(data_set)
      tables[split] = data_set.coco_index.categories
      first = next(iter(tables))
      difference = coco.class_table_difference(
        tables[split], tables[first], there_name=str(splits[first][0])
      )
      if difference:
        raise errors.InputError(
          f'A21: {file} has other classes:'
          f' {coco.format_difference(difference)}.'
        )
    categories = next(iter(tables.values()))
    self.info.metadata['categories'] = [list(c) for c in categories]
    return {
      split: self._generate_examples(file, images)
      for split, (file, images) in splits.items()
    }

  def _generate_examples(
    self, file: pathlib.Path, images: pathlib.Path
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the record of each image of an annotation file.

    Args:
      file: The annotation file.
      images: The folder of its images.

    Yields:
      The position of the image in the file, from 0, and its record.
    """
    content = coco.read_json(file)
    labels = {
      id_: i for i, (id_, _) in enumerate(self.info.metadata['categories'])
    }
    entries: dict[int | float | str, list[dict[str, Any]]] = {
      image['id']: [] for image in content['images']
    }
    for entry in content['annotations']:
      entries[entry['image_id']].append(entry)
    for index, image in enumerate(content['images']):
      yield (
        index,
        {
          'image': os.fspath(images / file_name_of(image)),
          'image/index': index,
          'image/filename': file_name_of(image),
          'image/id': json.dumps(image['id']),
          'image/height': int(image['height']),
          'image/width': int(image['width']),
        }
        | _objects_to_record(entries[image['id']], labels),
      )


def _objects_to_record(
  entries: list[dict[str, Any]], labels: Mapping[int | str, int]
) -> dict[str, Any]:
  """Turns the annotations of an image into the object fields of its record.

  Args:
    entries: The image's entries in the `annotations` of the JSON. They have
      been checked before.
    labels: The label of each category, from 0, by the category's id.

  Returns:
    The fields objects/... and polygons/... of the record, as the top of this
    file lists them: NumPy arrays, and texts for the JSON lists. The arrays of
    floats become raw bytes only when tensorflow-datasets writes the record.
  """
  masks = [entry.get('segmentation') for entry in entries]
  polygons = [mask if isinstance(mask, list) else [] for mask in masks]
  flat = [polygon for object_ in polygons for polygon in object_]
  numbers = [number for polygon in flat for number in polygon]
  areas = [entry.get('area') for entry in entries]
  return {
    'objects/id': json.dumps([entry.get('id') for entry in entries]),
    'objects/bbox': np.array(
      [entry['bbox'] for entry in entries], np.float64
    ).reshape(-1, 4),
    'objects/area': np.array(
      [a if type(a) in (int, float) else MISSING_AREA for a in areas],
      np.float64,
    ),
    'objects/label': np.array(
      [labels[entry['category_id']] for entry in entries], np.int32
    ),
    'objects/is_crowd': np.array(
      [entry.get('iscrowd', 0) for entry in entries], np.int32
    ),
    'objects/num_polygons': np.array(list(map(len, polygons)), np.int32),
    'objects/rle': json.dumps(
      [mask if isinstance(mask, dict) else None for mask in masks]
    ),
    'polygons/lengths': np.array(list(map(len, flat)), np.int32),
    'polygons/coordinates': np.array(numbers, np.float64),
  }
