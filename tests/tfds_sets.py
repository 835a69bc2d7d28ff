"""Builds a tfds set from a small COCO set with every kind of mask."""

import json
import sys

import numpy as np
from PIL import Image
from pycocotools import mask
import pytest

from maskrcnn_jax.build_tfds import build as build_tfds
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.data.source import CocoFiles

COMPRESSED = mask.frPyObjects(
  {'size': [12, 16], 'counts': [40, 6, 146]}, 12, 16
)
COMPRESSED['counts'] = COMPRESSED['counts'].decode()

# Masks in every form that COCO has: one polygon, several polygons, uncompressed
# and compressed RLE.
MASKS = [
  [[1.1, 2.3, 9.7, 2.3, 9.7, 11.9]],
  [[1, 1, 5, 1, 5, 5], [6, 6, 9, 6, 9, 9.5]],
  {'size': [12, 16], 'counts': [30, 5, 157]},
  COMPRESSED,
]


def box_of(segmentation):
  """Returns the box (x, y, width, height) around a mask in any COCO form."""
  if isinstance(segmentation, dict):
    counts = segmentation['counts']
    if isinstance(counts, list):
      segmentation = mask.frPyObjects(segmentation, 12, 16)
    return mask.toBbox(segmentation).tolist()
  points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
  low, high = points.min(axis=0), points.max(axis=0)
  return [*low.tolist(), *(high - low).tolist()]


def write_set(folder, *, ids=(7, 'b', 2.5)):
  """Writes a COCO set with the splits train and val, which are the same.

  The first of the three images has four objects, the second none, and the
  third a crowd region. The category ids have gaps and are not sorted.

  Args:
    folder: The folder to make and to write to.
    ids: The ids of the three images.

  Returns:
    The content of the JSON files.
  """
  (folder / 'images').mkdir(parents=True)
  rng = np.random.default_rng(0)
  images = []
  for i, id_ in enumerate(ids):
    pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / 'images' / f'{i}.png')
    images.append(
      {'id': id_, 'file_name': f'{i}.png', 'height': 12, 'width': 16}
    )
  annotations = [
    {
      'id': 100 - i,
      'image_id': ids[0],
      'category_id': 9 if i % 2 else 3,
      'bbox': box_of(masks),
      'area': 0.1 * i,
      'iscrowd': 0,
      'segmentation': masks,
    }
    for i, masks in enumerate(MASKS)
  ]
  del annotations[1]['area'], annotations[2]['id'], annotations[3]['iscrowd']
  annotations.append(
    {
      'id': 'x',
      'image_id': ids[2],
      'category_id': 3,
      'iscrowd': 1,
      'bbox': box_of(MASKS[2]),
      'area': 9,
      'segmentation': MASKS[2],
    }
  )
  content = {
    'images': images,
    'annotations': annotations,
    'categories': [{'id': 9, 'name': 'b'}, {'id': 3, 'name': 'a'}],
  }
  for split in ('train', 'val'):
    (folder / f'instances_{split}.json').write_text(json.dumps(content))
  return content


def build(folder, out, *, name='folder'):
  """Builds a tfds set with the command build_tfds.

  Args:
    folder: The folder of the COCO files.
    out: The folder of the tfds sets.
    name: The --name of the command.
  """
  arguments = [
    'build_tfds',
    f'--manual_dir={folder}',
    f'--tfds_dir={out}',
    f'--name={name}',
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', arguments)
    build_tfds.main()


def records_of(out, *, name='folder', split='train'):
  """Returns a split of a set that `build` wrote into the folder `out`."""
  return Records(f'coco_instances/{name}', split, str(out))


def files_of(folder, *, split='train'):
  """Returns the COCO files in `folder` that a split was made from."""
  return CocoFiles(
    str(folder / 'images'), str(folder / f'instances_{split}.json')
  )
