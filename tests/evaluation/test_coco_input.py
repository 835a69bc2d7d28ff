"""Tests of the checks of a ground truth before it is scored.

test_average_precision.py has the tests that also score.
"""

import numpy as np
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation import coco_input


def test_read_counts_inverts_the_codes_of_pycocotools():
  rng = np.random.default_rng(0)
  for _ in range(50):
    # Long and short runs make the coded differences positive and negative.
    runs = np.ceil(rng.exponential(10.0 ** rng.integers(0, 5), 40)).astype(int)
    size = [1, int(runs.sum())]
    coded = mask_api.frPyObjects({'size': size, 'counts': runs.tolist()}, *size)
    np.testing.assert_array_equal(
      coco_input._read_counts(coded['counts']), runs
    )


def test_check_truth_needs_masks_for_the_ap_of_masks_only():
  truth = {
    'images': [{'id': 1, 'height': 20, 'width': 20}],
    'categories': [{'id': 1, 'name': 'cat'}],
    'annotations': [
      {'id': 5, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 9, 9]}
    ],
  }
  coco_input.check_truth(truth, kind='bbox')
  with pytest.raises(InputError, match='A06: Annotation 5 of image 1'):
    coco_input.check_truth(truth, kind='segm')
