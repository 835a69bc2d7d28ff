"""Tests of the operations on boxes: areas, overlaps and encoded offsets."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.ops import boxes as ops

pairwise_iou = jax.jit(ops.pairwise_iou)
encode_boxes = jax.jit(ops.encode_boxes, static_argnames='weights')
decode_boxes = jax.jit(ops.decode_boxes, static_argnames='weights')

# Zeros, a line, a point, a box with x2 < x1 and y2 < y1, a pixel, a box.
ODD_BOXES = jnp.array(
  [
    [0, 0, 0, 0],
    [2, 3, 9, 3],
    [5, 5, 5, 5],
    [8, 8, 2, 2],
    [5, 5, 6, 6],
    [1, 2, 9, 8],
  ],
  jnp.float32,
)


def _random_boxes(key, count, *, low=0.0, high=100.0):
  corners = jax.random.uniform(key, (count, 2, 2), minval=low, maxval=high)
  return jnp.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def test_box_area_is_width_times_height():
  # The box is 9 - 1 = 8 wide and 8 - 2 = 6 high.
  assert ops.box_area(jnp.array([1.0, 2.0, 9.0, 8.0])) == 48


def test_box_area_of_a_box_without_area_is_zero():
  np.testing.assert_array_equal(ops.box_area(ODD_BOXES), [0, 0, 0, 0, 1, 48])


def test_pairwise_iou_by_hand():
  boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]])
  others = jnp.array(
    [
      # Shares 2 of 4 + 4 pixels with each box.
      [1.0, 0.0, 3.0, 2.0],
      # Equals the first box and shares one pixel with the second.
      [0.0, 0.0, 2.0, 2.0],
      # Touches an edge of the first box and the corner of the second.
      [2.0, 0.0, 4.0, 1.0],
    ]
  )
  np.testing.assert_allclose(
    pairwise_iou(boxes, others),
    [[2 / 6, 1, 0], [2 / 6, 1 / 7, 0]],
    rtol=1e-6,
  )


def test_pairwise_iou_with_a_box_without_area_is_zero():
  iou = pairwise_iou(ODD_BOXES, ODD_BOXES)
  assert not iou[:4].any() and not iou[:, :4].any()
  np.testing.assert_array_equal(jnp.diag(iou)[4:], [1, 1])


def test_pairwise_iou_agrees_with_the_definition(key):
  boxes = np.asarray(_random_boxes(key, 40))
  expected = [
    [oracles.iou(a, b) for b in boxes.astype(np.float64)]
    for a in boxes.astype(np.float64)
  ]
  np.testing.assert_allclose(
    pairwise_iou(jnp.asarray(boxes), jnp.asarray(boxes)),
    expected,
    rtol=1e-5,
    atol=1e-6,
  )


def test_pairwise_iou_agrees_with_pycocotools(key):
  boxes, others = jnp.split(_random_boxes(key, 90), [40])

  def x_y_width_height(array):
    array = np.asarray(array, np.float64)
    return np.concatenate([array[:, :2], array[:, 2:] - array[:, :2]], axis=1)

  expected = mask_api.iou(
    x_y_width_height(boxes), x_y_width_height(others), [0] * len(others)
  )
  np.testing.assert_allclose(
    pairwise_iou(boxes, others), expected, rtol=1e-5, atol=1e-6
  )


def test_pairwise_iou_is_symmetric_and_ignores_position_and_unit(key):
  boxes = jnp.round(_random_boxes(key, 40))
  iou = pairwise_iou(boxes, boxes)
  np.testing.assert_array_equal(iou, iou.T)
  # With whole numbers and a power of two, shifting and scaling is exact.
  np.testing.assert_array_equal(
    iou, pairwise_iou(4 * boxes + 64, 4 * boxes + 64)
  )


def test_encode_boxes_by_hand():
  # From a 10x20 anchor centred at (5, 10) to a 20x20 box centred at (10, 12).
  anchor = jnp.array([0.0, 0.0, 10.0, 20.0])
  box = jnp.array([0.0, 2.0, 20.0, 22.0])
  np.testing.assert_allclose(
    encode_boxes(box, anchor),
    [5 / 10, 2 / 20, math.log(2), 0],
    rtol=1e-6,
    atol=1e-7,
  )
  np.testing.assert_allclose(
    encode_boxes(box, anchor, weights=(10.0, 10.0, 5.0, 5.0)),
    [5, 1, 5 * math.log(2), 0],
    rtol=1e-6,
    atol=1e-6,
  )


def test_decode_boxes_by_hand():
  # The centre (5, 10) moves by (0.5 * 10, 0.1 * 20) to (10, 12); the width
  # doubles to 20, the height halves to 10.
  anchor = jnp.array([0.0, 0.0, 10.0, 20.0])
  deltas = jnp.array([0.5, 0.1, math.log(2), -math.log(2)])
  expected = [0, 7, 20, 17]
  np.testing.assert_allclose(
    decode_boxes(deltas, anchor), expected, rtol=1e-6, atol=1e-5
  )
  weights = (10.0, 10.0, 5.0, 5.0)
  np.testing.assert_allclose(
    decode_boxes(deltas * jnp.array(weights), anchor, weights=weights),
    expected,
    rtol=1e-6,
    atol=1e-5,
  )


def test_decode_boxes_of_no_deltas_is_the_anchor(key):
  anchors = _random_boxes(key, 40)
  np.testing.assert_allclose(
    decode_boxes(jnp.zeros_like(anchors), anchors), anchors, atol=1e-4
  )


@pytest.mark.parametrize('weights', [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_decode_boxes_undoes_encode_boxes(key, weights):
  boxes, anchors = jnp.split(_random_boxes(key, 2000, high=1000.0), 2)
  anchors = jnp.concatenate([anchors[:, :2], anchors[:, 2:] + 16], axis=1)
  deltas = encode_boxes(boxes, anchors, weights=weights)
  np.testing.assert_allclose(
    decode_boxes(deltas, anchors, weights=weights),
    boxes,
    rtol=1e-4,
    atol=2e-3,  # 1e-6 of the 1000 pixels
  )


@pytest.mark.parametrize('weights', [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_encode_boxes_undoes_decode_boxes(key, weights):
  anchors = _random_boxes(key, 500)
  anchors = anchors.at[:, 2:].add(4)
  deltas = jax.random.normal(jax.random.fold_in(key, 1), anchors.shape)
  boxes = decode_boxes(deltas, anchors, weights=weights)
  np.testing.assert_allclose(
    encode_boxes(boxes, anchors, weights=weights),
    deltas,
    rtol=1e-4,
    atol=1e-3,
  )


def test_decode_boxes_enlarges_16_pixels_to_1000_at_most():
  anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
  boxes = decode_boxes(jnp.array([0.0, 0.0, 50.0, 1e30]), anchor)
  # The box has 1000 pixels a side around the centre (8, 8).
  np.testing.assert_allclose(boxes, [-492, -492, 508, 508], rtol=1e-5)


def test_encode_boxes_of_padding_is_finite():
  every = jnp.repeat(ODD_BOXES, len(ODD_BOXES), axis=0)
  other = jnp.tile(ODD_BOXES, (len(ODD_BOXES), 1))
  assert jnp.isfinite(encode_boxes(every, other)).all()


def test_clip_boxes_cuts_at_every_edge():
  boxes = jnp.array([[-3.0, -4.0, 50.0, 60.0], [1.0, 2.0, 3.0, 4.0]])
  # The image is 20 pixels high and 30 wide.
  np.testing.assert_array_equal(
    ops.clip_boxes(boxes, jnp.array([20, 30])), [[0, 0, 30, 20], [1, 2, 3, 4]]
  )


def test_clip_boxes_leaves_a_box_outside_without_area():
  boxes = jnp.array([[-9.0, 2.0, -3.0, 8.0], [40.0, 2.0, 50.0, 8.0]])
  clipped = ops.clip_boxes(boxes, jnp.array([20, 30]))
  assert not ops.box_area(clipped).any()
  assert not ops.has_area(clipped).any()


def test_has_area_requires_both_sides():
  np.testing.assert_array_equal(
    ops.has_area(ODD_BOXES), [False, False, False, False, True, True]
  )
  # The box is 8 wide and 6 high.
  assert ops.has_area(ODD_BOXES[5], min_size=6.0)
  assert not ops.has_area(ODD_BOXES[5], min_size=6.5)


def test_has_area_of_nan_is_false():
  assert not ops.has_area(jnp.array([0.0, 0.0, jnp.nan, 9.0]))


@pytest.mark.parametrize(
  'function',
  [
    lambda a, b: ops.box_area(a) + ops.box_area(b),
    pairwise_iou,
    encode_boxes,
    decode_boxes,
    lambda a, b: ops.clip_boxes(a + b, jnp.array([7, 7])),
  ],
)
def test_gradients_are_finite_for_odd_boxes(function):
  boxes = jnp.repeat(ODD_BOXES, len(ODD_BOXES), axis=0)
  others = jnp.tile(ODD_BOXES, (len(ODD_BOXES), 1))
  gradients = jax.jit(
    jax.grad(lambda a, b: function(a, b).sum(), argnums=(0, 1))
  )(boxes, others)
  assert all(jnp.isfinite(gradient).all() for gradient in gradients)


def test_decode_boxes_has_no_gradient_beyond_its_cap():
  anchor = jnp.array([0.0, 0.0, 16.0, 16.0])
  gradient = jax.grad(lambda d: decode_boxes(d, anchor)[2])(
    jnp.array([0.0, 0.0, 100.0, 0.0])
  )
  # x2 = 16 dx + 8 + 8 exp(dw), and exp(dw) is constant beyond the limit.
  np.testing.assert_array_equal(gradient, [16, 0, 0, 0])
