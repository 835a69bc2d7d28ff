"""Tests of the proposals, against a slow reference implementation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.ops.anchors import (
  AnchorLevel,
  anchor_levels,
  make_anchors,
)
from maskrcnn_jax.proposals import make_proposals

UNIT = (1.0, 1.0, 1.0, 1.0)
LEVELS = anchor_levels(
  (64, 96), sizes={3: (12.0,), 4: (24.0,), 5: (48.0,)}, ratios=(0.5, 2.0)
)
ANCHORS = make_anchors(LEVELS)
NUM_ANCHORS = sum(level.shape[0] for level in ANCHORS)
make = jax.jit(
  make_proposals,
  static_argnames=(
    'pre_nms',
    'post_nms',
    'num_proposals',
    'iou_threshold',
    'delta_weights',
    'padding_multiple',
    'levels',
    'kernels',
  ),
)
propose = functools.partial(
  make, iou_threshold=0.7, delta_weights=UNIT, padding_multiple=32
)


def one_cell(*anchors):
  """Returns a level of a single cell that has these anchors."""
  return AnchorLevel(1, (1, 1), anchors)


def iou(box, other):
  """Returns the intersection over union of two boxes."""
  width = min(box[2], other[2]) - max(box[0], other[0])
  height = min(box[3], other[3]) - max(box[1], other[1])
  if width <= 0 or height <= 0:
    return 0.0
  both = width * height
  areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (box, other)]
  return both / (sum(areas) - both)


def proposals_by_definition(
  logits,
  deltas,
  anchors,
  image_size,
  *,
  pre_nms,
  post_nms,
  num_proposals,
  iou_threshold,
  padding_multiple,
):
  """Returns the boxes and scores of the proposals of one image, best first.

  On each level, the `pre_nms` best anchors are decoded and clipped, and greedy
  NMS keeps at most `post_nms` of them. The result is the best `num_proposals`
  boxes of all levels.
  """
  height, width = (int(side) for side in image_size)
  rows = -(-height // padding_multiple) * padding_multiple
  columns = -(-width // padding_multiple) * padding_multiple
  start, found = 0, []
  for level in anchors:
    ranked = sorted(
      (
        i
        for i, (x1, y1, x2, y2) in enumerate(level)
        if (x1 + x2) / 2 < columns and (y1 + y2) / 2 < rows
      ),
      key=lambda i: -logits[start + i],  # noqa: B023
    )
    kept = []
    for i in ranked[:pre_nms]:
      x1, y1, x2, y2 = level[i]
      dx, dy, dw, dh = deltas[start + i]
      x = (x1 + x2) / 2 + dx * (x2 - x1)
      y = (y1 + y2) / 2 + dy * (y2 - y1)
      w = (x2 - x1) * math.exp(min(dw, math.log(1000 / 16)))
      h = (y2 - y1) * math.exp(min(dh, math.log(1000 / 16)))
      box = (
        min(max(x - w / 2, 0), width),
        min(max(y - h / 2, 0), height),
        min(max(x + w / 2, 0), width),
        min(max(y + h / 2, 0), height),
      )
      if box[2] <= box[0] or box[3] <= box[1] or len(kept) == post_nms:
        continue
      if all(iou(box, other) <= iou_threshold for _, other in kept):
        kept.append((logits[start + i], box))
    found += kept
    start += len(level)
  found.sort(key=lambda item: -item[0])
  found = found[:num_proposals]
  boxes = np.reshape([box for _, box in found], (-1, 4))
  return boxes, 1 / (1 + np.exp(-np.array([logit for logit, _ in found])))


@pytest.fixture
def rpn(key):
  """Returns random logits and deltas of all anchors."""
  logits_key, deltas_key = jax.random.split(key)
  return (
    jax.random.normal(logits_key, (NUM_ANCHORS,)),
    0.3 * jax.random.normal(deltas_key, (NUM_ANCHORS, 4)),
  )


@pytest.mark.parametrize('image_size', [(64, 96), (50, 61), (20, 96), (1, 1)])
@pytest.mark.parametrize(
  ('pre_nms', 'post_nms', 'num_proposals'),
  [(40, 20, 30), (500, 500, 50), (500, 4, 50)],
  ids=['all limits', 'levels smaller than limits', 'few kept on each level'],
)
def test_make_proposals_agrees_with_the_definition(
  rpn, image_size, pre_nms, post_nms, num_proposals
):
  sizes = dict(pre_nms=pre_nms, post_nms=post_nms, num_proposals=num_proposals)
  proposals = propose(*rpn, LEVELS, jnp.array(image_size), **sizes)
  boxes, scores = proposals_by_definition(
    *map(np.asarray, rpn),
    [np.asarray(level) for level in ANCHORS],
    image_size,
    iou_threshold=0.7,
    padding_multiple=32,
    **sizes,
  )
  count = len(boxes)
  assert_array_equal(proposals.valid, np.arange(num_proposals) < count)
  assert_allclose(proposals.boxes[:count], boxes, rtol=1e-5, atol=1e-4)
  assert_allclose(proposals.scores[:count], scores, rtol=1e-5)
  assert_array_equal(proposals.boxes[count:], 0)
  assert_array_equal(proposals.scores[count:], 0)


def test_make_proposals_suppresses_inside_a_level_only():
  # Two identical boxes on one level, and the same box on another level.
  box = (10.0, 10.0, 20.0, 20.0)
  anchors = (one_cell(box, box), one_cell(box))
  proposals = propose(
    jnp.array([1.0, 2.0, 0.0]),
    jnp.zeros((3, 4)),
    anchors,
    jnp.array([32, 32]),
    pre_nms=4,
    post_nms=4,
    num_proposals=3,
  )
  assert_array_equal(proposals.valid, [True, True, False])
  # sigmoid(2) = 0.8808, sigmoid(0) = 0.5.
  assert_allclose(proposals.scores, [0.880797, 0.5, 0], rtol=1e-5)


def test_make_proposals_clips_to_the_image_and_drops_boxes_outside():
  anchors = (one_cell((-5.0, -5.0, 15.0, 15.0), (40.0, 40.0, 50.0, 50.0)),)
  # The image is 30 pixels wide and 20 high and is padded to 32x32. The centre
  # of the second anchor is beyond that. The first anchor is moved to the left
  # by its width, which is outside the image too.
  proposals = propose(
    jnp.array([1.0, 2.0]),
    jnp.array([[-1.0, 0, 0, 0], [0, 0, 0, 0]]),
    anchors,
    jnp.array([20, 30]),
    pre_nms=2,
    post_nms=2,
    num_proposals=2,
  )
  assert_array_equal(proposals.valid, [False, False])
  proposals = propose(
    jnp.array([1.0, 2.0]),
    jnp.zeros((2, 4)),
    anchors,
    jnp.array([20, 30]),
    pre_nms=2,
    post_nms=2,
    num_proposals=2,
  )
  assert_array_equal(proposals.boxes, [[0, 0, 15, 15], [0, 0, 0, 0]])


def test_a_larger_canvas_gives_the_same_proposals(rpn):
  logits, deltas = rpn
  sizes = {3: (12.0,), 4: (24.0,), 5: (48.0,)}
  large_levels = anchor_levels((96, 128), sizes=sizes, ratios=(0.5, 2.0))
  large = make_anchors(large_levels)
  # The anchors that the larger canvas adds get high scores. They must have no
  # effect.
  large_logits, large_deltas, start = [], [], 0
  for level, (small, big) in enumerate(zip(ANCHORS, large, strict=True)):
    stride = 2 ** (level + 3)
    h, w = 64 // stride, 96 // stride
    shape = (96 // stride, 128 // stride, 2)
    count = small.shape[0]
    cells = logits[start : start + count].reshape(h, w, 2)
    large_logits.append(jnp.full(shape, 9.0).at[:h, :w].set(cells).reshape(-1))
    cells = deltas[start : start + count].reshape(h, w, 2, 4)
    large_deltas.append(
      jnp.zeros((*shape, 4)).at[:h, :w].set(cells).reshape(-1, 4)
    )
    start += count
    assert big.shape[0] == math.prod(shape)
  limits = dict(pre_nms=40, post_nms=20, num_proposals=30)
  one = propose(logits, deltas, LEVELS, jnp.array([60, 90]), **limits)
  other = propose(
    jnp.concatenate(large_logits),
    jnp.concatenate(large_deltas),
    large_levels,
    jnp.array([60, 90]),
    **limits,
  )
  assert_allclose(one.boxes, other.boxes, rtol=1e-6, atol=1e-5)
  assert_array_equal(one.valid, other.valid)


def test_equal_scores_are_ranked_by_index():
  anchors = (one_cell((0.0, 0.0, 4.0, 4.0), (8.0, 8.0, 12.0, 12.0)),) * 2
  proposals = propose(
    jnp.zeros(4),
    jnp.zeros((4, 4)),
    anchors,
    jnp.array([32, 32]),
    pre_nms=2,
    post_nms=2,
    num_proposals=3,
  )
  assert_array_equal(
    proposals.boxes, [[0, 0, 4, 4], [8, 8, 12, 12], [0, 0, 4, 4]]
  )


def test_no_gradient_flows_through_proposals(rpn):
  def total(logits, deltas):
    proposals = propose(
      logits,
      deltas,
      LEVELS,
      jnp.array([64, 96]),
      pre_nms=10,
      post_nms=5,
      num_proposals=8,
    )
    return jnp.sum(proposals.boxes) + jnp.sum(proposals.scores)

  for gradient in jax.grad(total, argnums=(0, 1))(*rpn):
    assert not gradient.any()


def test_nan_is_never_proposed(rpn):
  logits, deltas = rpn
  proposals = propose(
    jnp.full_like(logits, jnp.nan),
    deltas,
    LEVELS,
    jnp.array([64, 96]),
    pre_nms=40,
    post_nms=20,
    num_proposals=30,
  )
  assert not proposals.valid.any()
  assert not proposals.boxes.any()
