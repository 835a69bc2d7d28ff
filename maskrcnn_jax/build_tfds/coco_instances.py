"""Builds a tensorflow-datasets set from COCO files, with the masks.

The `coco` of tensorflow-datasets has no masks, renumbers the classes and rounds
areas; this set stores what the JSON says. TensorFlow is not needed.
`data/records.py` reads the set.

A record is one image:
  image                 the bytes of the file
  image/index           position in the JSON, from 0
  image/filename        as in the JSON
  image/id              as in the JSON, written as JSON: 139 or "a"
  image/height, width   as in the JSON
  objects/id            JSON list, of ids as they are in the file
  objects/bbox          [m, 4] float64, (x, y, width, height) in pixels
  objects/area          [m] float64; -1 where the file has none
  objects/label         [m] into the names of the classes, from 0
  objects/is_crowd      [m]
  objects/num_polygons  [m]; 0 if the mask is an RLE, or there is no mask
  objects/rle           JSON list: COCO's RLE, or null
  polygons/lengths      [p] length of each polygon, object after object
  polygons/coordinates  [sum of lengths] float64, x, y, x, y, ... in pixels
The metadata have 'categories', [[id, name], ...] of the file in the order of
the labels. Floats are stored as raw bytes, because tensorflow-datasets would
round them.
"""

from collections.abc import Iterator
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco
from maskrcnn_jax.data.records import MISSING_AREA
from maskrcnn_jax.data.source import CocoFiles, check_images_exist, read_set

NAME = 'coco_instances'


def find_splits(
  folder: pathlib.Path, year: str
) -> dict[str, tuple[pathlib.Path, pathlib.Path]]:
  """Finds the annotation files of a folder, and the folders of their images.

  Args:
    folder: COCO as its archives unpack, or any folder that has COCO JSON files
      in it or in its `annotations/`. The files named instances_SPLIT.json are
      taken; if there are none, all *.json. Their images are in SPLIT/,
      images_SPLIT/, images/SPLIT/, images/ or in the folder itself.
    year: '2014' or '2017' for COCO of that year; 'folder' for any other set.

  Returns:
    {split: (annotations, folder of images)}.

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
      f'I01: there is no *.json in {folder} or in its annotations/.'
    )
  splits = {}
  for file in files:
    split = re.sub(r'\W', '_', file.stem.removeprefix('instances_'))
    if split in splits:
      raise errors.InputError(
        f'{file} and {splits[split][0]} would both be the split {split};'
        ' rename one.'
      )
    splits[split] = file, _images_of(file, folder, split)
  return splits


def _images_of(
  file: pathlib.Path, folder: pathlib.Path, split: str
) -> pathlib.Path:
  """Finds the folder that holds the first image of an annotation file."""
  images = coco.read_json(file)['images']
  first = images[0].get('file_name') if images else None
  if not isinstance(first, str):
    raise errors.InputError(f'{file} has no images with a file_name.')
  places = [split, f'images_{split}', f'images/{split}', 'images', '.']
  for place in places:
    if (folder / place / first).is_file():
      return folder / place
  raise errors.InputError(
    f'I01: {first}, the first image of {file}, is in none of'
    f' {", ".join(places)} of {folder}.'
  )


class CocoInstances(tfds.core.GeneratorBasedBuilder):
  """COCO 2014, COCO 2017, or any folder in COCO's format, in ArrayRecord."""

  # Without a name here, tensorflow-datasets derives one from the class.
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
    'COCO as its archives unpack (scripts/download_dataset.sh of the source'
    ' repository does that), or any folder of COCO-format JSON files and'
    ' their images.'
  )

  def __init__(self, **arguments: Any):
    """Makes a builder; see `tfds.core.DatasetBuilder`."""
    super().__init__(**{'file_format': 'array_record'} | arguments)

  def _info(self) -> tfds.core.DatasetInfo:
    """Describes the records."""
    bytes_ = tfds.features.Encoding.BYTES

    def floats(*shape):
      return tfds.features.Tensor(
        shape=shape, dtype=np.float64, encoding=bytes_
      )

    def integers():
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

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    """Checks all splits and returns the generators of their records."""
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
          f'A21: {file} has other classes: {"; ".join(difference[:10])}.'
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
    """Yields (position, record) of each image of an annotation file."""
    content = coco.read_json(file)
    labels = {
      id_: i for i, (id_, _) in enumerate(self.info.metadata['categories'])
    }
    entries = {image['id']: [] for image in content['images']}
    for entry in content['annotations']:
      entries[entry['image_id']].append(entry)
    for index, image in enumerate(content['images']):
      yield (
        index,
        {
          'image': os.fspath(images / image['file_name']),
          'image/index': index,
          'image/filename': image['file_name'],
          'image/id': json.dumps(image['id']),
          'image/height': int(image['height']),
          'image/width': int(image['width']),
        }
        | _objects_to_record(entries[image['id']], labels),
      )


def _objects_to_record(entries: list[dict], labels: dict) -> dict[str, Any]:
  """Flattens the annotations of an image into the columns of its record.

  Args:
    entries: The annotations.
    labels: {category id: label}.
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
