"""Tests of the detections, against a slow reference implementation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.array_types import Proposals
from maskrcnn_jax.detections import detect_boxes, select_masks

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
detect = jax.jit(
  functools.partial(detect_boxes, delta_weights=WEIGHTS),
  static_argnames=('min_score', 'iou_threshold', 'max_detections'),
)


def iou(box, other):
  """Returns the intersection over union of two boxes."""
  width = min(box[2], other[2]) - max(box[0], other[0])
  height = min(box[3], other[3]) - max(box[1], other[1])
  if width <= 0 or height <= 0:
    return 0.0
  areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (box, other)]
  return width * height / (sum(areas) - width * height)


def detections_by_definition(
  class_logits,
  box_deltas,
  boxes,
  valid,
  image_size,
  *,
  min_score,
  iou_threshold,
  max_detections,
):
  """Returns the boxes, classes and scores of one image, best first.

  For each class, greedy NMS runs over the boxes with a score above `min_score`.
  The result is the best `max_detections` boxes of all classes.
  """
  exp = np.exp(class_logits - class_logits.max(axis=1, keepdims=True))
  scores = exp / exp.sum(axis=1, keepdims=True)
  height, width = image_size
  found = []
  for c in range(1, class_logits.shape[1]):
    kept = []
    for i in np.argsort(-scores[:, c], kind='stable'):
      if not valid[i] or scores[i, c] <= min_score:
        continue
      x1, y1, x2, y2 = boxes[i]
      dx, dy, dw, dh = box_deltas[i, c] / WEIGHTS
      x = (x1 + x2) / 2 + dx * (x2 - x1)
      y = (y1 + y2) / 2 + dy * (y2 - y1)
      w = (x2 - x1) * math.exp(dw)
      h = (y2 - y1) * math.exp(dh)
      box = (
        min(max(x - w / 2, 0), width),
        min(max(y - h / 2, 0), height),
        min(max(x + w / 2, 0), width),
        min(max(y + h / 2, 0), height),
      )
      if box[2] <= box[0] or box[3] <= box[1]:
        continue
      if all(iou(box, other) <= iou_threshold for _, other, _ in kept):
        kept.append((scores[i, c], box, c))
    found += kept
  found.sort(key=lambda item: -item[0])
  found = found[:max_detections]
  return (
    np.reshape([box for _, box, _ in found], (-1, 4)),
    [c for _, _, c in found],
    [score for score, _, _ in found],
  )


def make_proposals(boxes, valid=None):
  boxes = jnp.asarray(boxes, jnp.float32)
  valid = jnp.ones(len(boxes), bool) if valid is None else jnp.asarray(valid)
  return Proposals(boxes, jnp.zeros(len(boxes)), valid)


def make_case(key, *, num_proposals=30, num_classes=6):
  """Returns random outputs of the box head, and crowded proposals."""
  keys = jax.random.split(key, 4)
  corners, sides = jax.random.uniform(keys[0], (2, num_proposals, 2))
  boxes = jnp.concatenate([40 * corners, 40 * corners + 8 + 16 * sides], axis=1)
  valid = jax.random.bernoulli(keys[3], 0.8, (num_proposals,))
  return (
    2 * jax.random.normal(keys[1], (num_proposals, num_classes)),
    jax.random.normal(keys[2], (num_proposals, num_classes, 4)),
    make_proposals(boxes, valid),
  )


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize(
  ('min_score', 'max_detections'),
  [(0.05, 200), (0.0, 20), (0.4, 20)],
  ids=['all detections', 'the best detections', 'two classes a proposal'],
)
def test_detect_boxes_agrees_with_the_definition(
  seed, min_score, max_detections
):
  class_logits, box_deltas, proposals = make_case(jax.random.key(seed))
  limits = dict(
    min_score=min_score, iou_threshold=0.5, max_detections=max_detections
  )
  boxes, classes, scores, valid = detect(
    class_logits, box_deltas, proposals, jnp.array([48, 56]), **limits
  )
  expected = detections_by_definition(
    np.asarray(class_logits, np.float64),
    np.asarray(box_deltas),
    np.asarray(proposals.boxes),
    np.asarray(proposals.valid),
    (48, 56),
    **limits,
  )
  count = len(expected[0])
  assert count > 3
  assert_array_equal(valid, np.arange(max_detections) < count)
  assert_allclose(boxes[:count], expected[0], rtol=1e-5, atol=1e-4)
  assert_array_equal(classes[:count], expected[1])
  assert_allclose(scores[:count], expected[2], rtol=1e-5)
  for padding in (boxes[count:], classes[count:], scores[count:]):
    assert not padding.any()


def test_detect_boxes_suppresses_inside_a_class_only():
  # The same box three times: class 1 is likely twice, class 2 once.
  logits = jnp.log(
    jnp.array([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.3, 0.1, 0.6]])
  )
  proposals = make_proposals([[2, 2, 8, 8]] * 3)
  boxes, classes, scores, valid = detect(
    logits,
    jnp.zeros((3, 3, 4)),
    proposals,
    jnp.array([16, 16]),
    min_score=0.3,
    iou_threshold=0.5,
    max_detections=4,
  )
  assert_array_equal(valid, [True, True, False, False])
  assert_array_equal(classes, [1, 2, 0, 0])
  assert_allclose(scores, [0.8, 0.6, 0, 0], rtol=1e-5)
  assert_array_equal(boxes[:2], [[2, 2, 8, 8]] * 2)


def test_detect_boxes_moves_a_box_by_the_deltas_of_its_class():
  # dx = 5 / 10 moves the box by half of its width of 10, and dh = 5 ln 2 / 5
  # doubles its height, around the centre (15, 10). The deltas of class 2 must
  # have no effect.
  deltas = (
    jnp.full((1, 3, 4), 99.0)
    .at[0, 1]
    .set(jnp.array([5, 0, 0, 5 * math.log(2)]))
  )
  boxes, classes, _, _ = detect(
    jnp.array([[0.0, 9, 0]]),
    deltas,
    make_proposals([[5, 5, 15, 15]]),
    jnp.array([100, 100]),
    min_score=0.5,
    iou_threshold=0.5,
    max_detections=1,
  )
  assert_allclose(boxes, [[10, 0, 20, 20]], atol=1e-5)
  assert_array_equal(classes, [1])


def test_detect_boxes_drops_boxes_outside_the_image():
  # The image is 8 pixels high; clipped to it, the second box has no height.
  valid = detect(
    jnp.array([[0.0, 9], [0, 9]]),
    jnp.zeros((2, 2, 4)),
    make_proposals([[0, 4, 4, 12], [0, 8, 4, 12]]),
    jnp.array([8, 16]),
    min_score=0.5,
    iou_threshold=0.5,
    max_detections=2,
  )[3]
  assert_array_equal(valid, [True, False])


def test_detect_boxes_drops_a_score_of_exactly_the_minimum():
  logits = jnp.zeros((1, 2))  # Both have exactly one half.
  arguments = (
    jnp.zeros((1, 2, 4)),
    make_proposals([[0, 0, 4, 4]]),
    jnp.array([8, 8]),
  )
  for min_score, found in ((0.5, 0), (0.499, 1)):
    valid = detect(
      logits,
      *arguments,
      min_score=min_score,
      iou_threshold=0.5,
      max_detections=1,
    )[3]
    assert int(valid.sum()) == found


def test_detect_boxes_of_no_valid_proposal_is_empty(key):
  class_logits, box_deltas, proposals = make_case(key)
  proposals = proposals._replace(valid=jnp.zeros(30, bool))
  for array in detect(
    class_logits,
    box_deltas,
    proposals,
    jnp.array([48, 56]),
    min_score=0.05,
    iou_threshold=0.5,
    max_detections=20,
  ):
    assert not array.any()


def test_slots_of_padding_change_nothing(key):
  class_logits, box_deltas, proposals = make_case(key)
  wide = (
    jnp.pad(class_logits, ((0, 5), (0, 0)), constant_values=3),
    jnp.pad(box_deltas, ((0, 5), (0, 0), (0, 0))),
    Proposals(
      jnp.pad(proposals.boxes, ((0, 5), (0, 0)), constant_values=9),
      jnp.pad(proposals.scores, (0, 5)),
      jnp.pad(proposals.valid, (0, 5)),
    ),
  )
  limits = dict(min_score=0.05, iou_threshold=0.5, max_detections=20)
  size = jnp.array([48, 56])
  for one, other in zip(
    detect(class_logits, box_deltas, proposals, size, **limits),
    detect(*wide, size, **limits),
    strict=True,
  ):
    assert_allclose(one, other, rtol=1e-6)


def test_select_masks_takes_the_mask_of_the_class():
  # Class k of detection i has logit 10 i + k everywhere.
  logits = jnp.arange(2)[:, None] * 10 + jnp.arange(3)[None, :]
  mask_logits = jnp.broadcast_to(
    logits[:, None, None, :].astype(jnp.float32) / 10, (2, 4, 4, 3)
  )
  masks = select_masks(mask_logits, jnp.array([2, 1]))
  # sigmoid(0.2) and sigmoid(1.1).
  assert_allclose(masks[0], np.full((4, 4), 0.549834), rtol=1e-5)
  assert_allclose(masks[1], np.full((4, 4), 0.750260), rtol=1e-5)
