"""Tests of data/survey.py: statistics of classes, sizes and anchors."""

import numpy as np
from numpy.testing import assert_allclose
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.data import survey
from maskrcnn_jax.ops.anchors import cell_anchors

SIZES = {2: (16.0,), 3: (32.0,), 4: (64.0,), 5: (128.0,), 6: (256.0,)}


def all_anchors(shapes, height, width, *, inside_only):
  """Returns all anchors of an image, made cell by cell."""
  found = []
  for level, around in shapes.items():
    stride = 2**level
    for y in range(0, -(-height // 32) * 32, stride):
      for x in range(0, -(-width // 32) * 32, stride):
        found.append(around + np.array([x, y, x, y]))
  found = np.concatenate(found)
  if inside_only:
    found = found[
      (found[:, :2] >= 0).all(1) & (found[:, 2:] < [width, height]).all(1)
    ]
  return found


def to_xywh(boxes):
  return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


@pytest.mark.parametrize('inside_only', [False, True])
@pytest.mark.parametrize('rounding', ['none', 'corners', 'stride'])
def test_best_anchor_iou_is_that_of_all_anchors(rounding, inside_only):
  height, width = 200, 300
  rng = np.random.default_rng(0)
  low = rng.uniform(0, [width - 4, height - 4], (200, 2))
  sides = np.exp(rng.uniform(0, 6, (200, 2)))
  high = np.minimum(low + sides, [width, height])
  boxes = np.concatenate([low, high], axis=1)
  shapes = {
    level: cell_anchors(
      sizes, (0.5, 1.0, 2.0), rounding=rounding, stride=2**level
    )
    for level, sizes in SIZES.items()
  }
  found = survey.best_anchor_iou(
    boxes,
    np.tile([height, width], (200, 1)),
    shapes,
    inside_only=inside_only,
  )
  anchors = all_anchors(shapes, height, width, inside_only=inside_only)
  expected = mask_api.iou(
    to_xywh(anchors), to_xywh(boxes), [0] * len(boxes)
  ).max(axis=0)
  assert_allclose(found, expected, rtol=1e-6, atol=1e-9)
  assert 0.2 < (found < 0.5).mean() < 0.8


def test_histogram_counts_from_each_bin_to_before_the_next():
  bins = (0, 1, 2, 5)
  assert survey.histogram(np.array([0, 1, 4, 5, 99]), bins) == {
    '0': 1,
    '1': 1,
    '2 to 4': 1,
    '5 and more': 2,
  }
  assert survey.histogram(np.array([0.5, 1.0, 4.99]), bins) == {
    '0 to 1': 1,
    '1 to 2': 1,
    '2 to 5': 1,
    '5 and more': 0,
  }
