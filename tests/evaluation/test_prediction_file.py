"""Tests of predictions.npz: its rows, and the order of several processes."""

import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax.data.coco_index import Category
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.prediction_file import (
  FILE,
  open_part,
  write_part,
  write_predictions,
)

CATEGORIES = (Category(7, 'odd'), Category(3, 'even'))


def result(image_id, category_id, bbox):
  """Returns a COCO result with the score 0.5."""
  return {
    'image_id': image_id,
    'category_id': category_id,
    'bbox': bbox,
    'score': 0.5,
  }


def write(folder, results, **options):
  """Writes predictions.npz without masks, and returns its arrays."""
  defaults = {
    'categories': CATEGORIES,
    'width_offset': 0.0,
    'mask_side': 0,
    'counts': [len(results)],
    'places': np.arange(len(results)),
  }
  write_predictions(folder, results, **defaults | options)
  with np.load(folder / FILE, allow_pickle=False) as arrays:
    return dict(arrays)


def test_boxes_and_classes_are_rows(tmp_path):
  arrays = write(
    tmp_path,
    [result(10**12, 3, [1.5, 2, 3, 4]), result(5, 7, [0, 0, 8, 9])],
  )
  assert sorted(arrays) == [
    'boxes',
    'category_ids',
    'class_names',
    'classes',
    'image_ids',
    'scores',
  ]
  # x2 = 1.5 + 3 and y2 = 2 + 4.
  assert_array_equal(arrays['boxes'], [[1.5, 2, 4.5, 6], [0, 0, 8, 9]])
  assert_array_equal(arrays['classes'], [2, 1])
  assert_array_equal(arrays['image_ids'], [10**12, 5])
  assert_array_equal(arrays['category_ids'], [7, 3])
  assert_array_equal(arrays['class_names'], ['odd', 'even'])
  assert_array_equal(arrays['scores'], [0.5, 0.5])


def test_boxes_keep_the_convention_of_their_geometry(tmp_path):
  # In the old convention, a box from 1 to 4 is 4 pixels wide.
  results = [result(1, 7, [1, 2, 4, 6])]
  arrays = write(tmp_path, results, width_offset=1.0)
  assert_array_equal(arrays['boxes'], [[1, 2, 4, 7]])


@pytest.mark.parametrize(
  ('ids', 'expected'),
  [
    (['a', 'b'], np.array(['a', 'b'])),
    ([1, 'b'], np.array(['1', 'b'])),
    ([1, 2.5], np.array([1, 2.5])),
    ([1, 2**70], np.array(['1', str(2**70)])),
    ([], np.array([], np.int64)),
  ],
)
def test_image_ids_of_any_kind_need_no_pickle(tmp_path, ids, expected):
  arrays = write(tmp_path, [result(id_, 7, [0, 0, 1, 1]) for id_ in ids])
  assert_array_equal(arrays['image_ids'], expected, strict=True)


def test_masks_of_two_processes_get_the_order_of_the_rows(
  tmp_path, monkeypatch
):
  # Chunks of two rows, so that the five rows need three.
  monkeypatch.setattr('maskrcnn_jax.evaluation.prediction_file._CHUNK', 2)
  # Mask i of all is filled with i / 255. Process 0 has the masks 0, 1 and 2.
  for process, numbers in enumerate(([0, 1, 2], [3, 4])):
    with open_part(tmp_path, process) as file:
      for number in numbers:
        write_part(file, np.full((1, 2, 2), number / 255, np.float32))
  places = np.array([3, 0, 4, 1, 2])
  arrays = write(
    tmp_path,
    [result(i, 7, [0, 0, 1, 1]) for i in range(5)],
    mask_side=2,
    counts=[3, 2],
    places=places,
  )
  assert_array_equal(
    arrays['masks'],
    np.broadcast_to(places[:, None, None], (5, 2, 2)).astype(np.uint8),
    strict=True,
  )
  assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_cell_is_at_least_128_where_its_probability_is_one_half(tmp_path):
  below = np.nextafter(np.float32(0.5), np.float32(0))
  cells = np.array([[[0, below], [0.5, 1]]], np.float32)
  with open_part(tmp_path, 0) as file:
    write_part(file, cells)
  arrays = write(tmp_path, [result(1, 7, [0, 0, 1, 1])], mask_side=2)
  assert_array_equal(arrays['masks'], [[[0, 127], [128, 255]]])


def test_no_detections_give_empty_arrays(tmp_path):
  with open_part(tmp_path, 0):
    pass
  arrays = write(tmp_path, [], mask_side=28)
  assert arrays['masks'].shape == (0, 28, 28)
  assert arrays['boxes'].shape == (0, 4)


def test_a_process_that_writes_elsewhere_is_an_error(tmp_path):
  with open_part(tmp_path, 0) as file:
    write_part(file, np.zeros((1, 2, 2), np.float32))
  with pytest.raises(InputError, match='C10: .* 1 masks of process 1 .*share'):
    write(
      tmp_path,
      [result(i, 7, [0, 0, 1, 1]) for i in range(2)],
      mask_side=2,
      counts=[1, 1],
    )


def test_an_evaluation_that_fails_leaves_no_part(tmp_path):
  with pytest.raises(KeyboardInterrupt), open_part(tmp_path, 0) as file:
    write_part(file, np.zeros((1, 2, 2), np.float32))
    raise KeyboardInterrupt
  assert list(tmp_path.iterdir()) == []
