"""Tests of data/shapes.py, the data set of drawn shapes."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
import pytest

from maskrcnn_jax.data import shapes


def write(directory, **overrides):
  sizes = {'num_train': 21, 'num_val': 20, 'image_size': 64, 'seed': 0}
  shapes.write_shapes(directory, **(sizes | overrides))
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*.*'))
  }


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  directory = tmp_path_factory.mktemp('shapes')
  write(directory)
  return directory


@pytest.fixture(scope='module')
def coco(directory):
  return COCO(directory / 'instances_train.json')


def test_write_shapes_draws_the_same_for_the_same_seed(directory, tmp_path):
  assert write(tmp_path / 'a') == write(tmp_path / 'b')


def test_write_shapes_draws_another_set_for_another_seed(tmp_path):
  first = write(tmp_path / 'a', num_train=2, num_val=1)
  second = write(tmp_path / 'b', num_train=2, num_val=1, seed=1)
  assert first['images/train_00000.jpg'] != second['images/train_00000.jpg']
  # The evaluation images differ from the training images, too.
  assert first['images/train_00000.jpg'] != first['images/val_00000.jpg']


def test_write_shapes_keeps_an_image_when_more_are_drawn(tmp_path):
  few = write(tmp_path / 'few', num_train=2, num_val=1)
  more = write(tmp_path / 'more', num_train=4, num_val=2)
  images = [name for name in few if name.endswith('.jpg')]
  assert all(few[name] == more[name] for name in images)


def test_write_shapes_lists_the_images_that_are_there(directory):
  listed = set()
  for name, count in (('train', 21), ('val', 20)):
    record = json.loads((directory / f'instances_{name}.json').read_text())
    assert len(record['images']) == count
    for entry in record['images']:
      with Image.open(directory / 'images' / entry['file_name']) as image:
        assert image.size == (entry['width'], entry['height'])
        assert image.mode == 'RGB'
      listed.add(entry['file_name'])
  assert listed == {path.name for path in (directory / 'images').iterdir()}


def test_write_shapes_copies_held_out_images_to_samples(directory):
  samples = sorted((directory / 'samples').iterdir())
  assert len(samples) == shapes.NUM_SAMPLES
  for path in samples:
    assert path.name.startswith('val_')
    assert path.read_bytes() == (directory / 'images' / path.name).read_bytes()


def test_write_shapes_leaves_every_twentieth_image_empty(coco):
  empty = [i for i in coco.getImgIds() if not coco.getAnnIds(i)]
  assert [coco.imgs[i]['file_name'] for i in empty] == ['train_00019.jpg']


def test_write_shapes_uses_all_classes_and_both_kinds_of_mask(coco):
  annotations = list(coco.anns.values())
  assert {a['category_id'] for a in annotations} == {3, 7, 12}
  assert {type(a['segmentation']) for a in annotations} == {list, dict}


def test_annotations_agree_with_their_masks(coco):
  for annotation in coco.anns.values():
    mask = coco.annToMask(annotation)
    assert mask.sum() == annotation['area'] > 0
    rows, columns = np.nonzero(mask)
    x, y, width, height = annotation['bbox']
    # The outermost pixel at a corner may lie mostly outside of the shape.
    np.testing.assert_allclose(
      [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
      [x, y, x + width, y + height],
      atol=2,
    )


def test_annotated_polygons_are_the_pixels_that_were_drawn(coco):
  rng = np.random.default_rng(0)
  for _ in range(20):
    picture, annotations = shapes.draw_image(rng, 64, 80, num_objects=1)
    for annotation in annotations:
      if not isinstance(annotation['segmentation'], list):
        continue
      corners = np.reshape(annotation['segmentation'], (-1, 2))
      drawn = shapes._coverage(corners, 64, 80) >= 0.5
      rle = mask_api.merge(
        mask_api.frPyObjects(annotation['segmentation'], 64, 80)
      )
      differ = np.sum(drawn != mask_api.decode(rle))
      perimeter = 2 * sum(annotation['bbox'][2:])
      assert differ < 0.2 * perimeter


def test_visible_regions_share_border_pixels_at_most(coco):
  for image_id in coco.getImgIds():
    annotations = coco.loadAnns(coco.getAnnIds(image_id))
    if not annotations:
      continue
    masks = np.stack([coco.annToMask(a) for a in annotations])
    shared = (masks.sum(axis=0) > 1).sum()
    border = sum(2 * sum(a['bbox'][2:]) for a in annotations)
    assert shared <= 0.1 * border


def test_visible_masks_hide_what_later_shapes_cover():
  # The second square of 4 x 4 pixels lies 2 pixels to the right of and 2 below
  # the first. They share 2 x 2 pixels, which the second keeps.
  square = np.array([[1, 1], [5, 1], [5, 5], [1, 5]], float)
  drawn = [
    shapes.Shape(7, corners, shapes._coverage(corners, 8, 8), np.ones(3))
    for corners in (square, square + 2)
  ]
  first, second = shapes._visible_masks(drawn)
  assert first.sum() == 16 - 4
  assert second.sum() == 16
  assert not (first & second).any()


@pytest.mark.parametrize(
  'arguments', [['--size=8'], ['--train=0'], ['--seed=-1'], ['--what']]
)
def test_main_rejects_wrong_arguments_with_status_2(tmp_path, arguments):
  with pytest.raises(SystemExit) as exit_:
    shapes.main([str(tmp_path / 'out'), *arguments])
  assert exit_.value.code == 2
  assert not (tmp_path / 'out').exists()
