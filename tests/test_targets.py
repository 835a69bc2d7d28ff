"""Tests of the targets: sampled anchors and RoIs, and the desired outputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.array_types import Outlines, Proposals
from maskrcnn_jax.targets import (
  make_mask_targets,
  make_roi_targets,
  make_rpn_targets,
)

UNIT = (1.0, 1.0, 1.0, 1.0)
SIZE = np.array([64, 64], np.int32)


@functools.partial(jax.jit, static_argnames=('num_samples', 'fraction'))
def rpn_targets(
  anchors, image_size, boxes, valid, key, num_samples=8, fraction=0.5
):
  return make_rpn_targets(
    anchors,
    image_size,
    boxes,
    valid,
    key,
    num_samples=num_samples,
    foreground_fraction=fraction,
    foreground_iou=0.7,
    background_iou=0.3,
    delta_weights=UNIT,
    padding_multiple=32,
  )


@functools.partial(jax.jit, static_argnames=('num_samples', 'fraction'))
def roi_targets(
  proposals, boxes, classes, valid, key, num_samples=8, fraction=0.5
):
  return make_roi_targets(
    proposals,
    boxes,
    classes,
    valid,
    key,
    num_samples=num_samples,
    foreground_fraction=fraction,
    foreground_iou=0.5,
    delta_weights=(10.0, 10.0, 5.0, 5.0),
  )


mask_targets = jax.jit(
  functools.partial(
    make_mask_targets, side=4, max_object_vertices=5, max_parts=1
  )
)


def make_proposal_slots(boxes, *, padding=0):
  """Returns `Proposals` of these boxes, and `padding` slots without a box."""
  boxes = np.reshape(boxes, (-1, 4)).astype(np.float32)
  return Proposals(
    boxes=np.pad(boxes, ((0, padding), (0, 0))),
    scores=np.zeros(len(boxes) + padding, np.float32),
    valid=np.arange(len(boxes) + padding) < len(boxes),
  )


def random_boxes(key, count):
  corners, sides = jax.random.uniform(key, (2, count, 2))
  return jnp.concatenate([40 * corners, 40 * corners + 4 + 20 * sides], axis=1)


def iou(box, other):
  sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
  if sides.min() <= 0:
    return 0.0
  area = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])
  return np.prod(sides) / (area - np.prod(sides))


def encode(box, anchor):
  sides, anchor_sides = box[2:] - box[:2], anchor[2:] - anchor[:2]
  centers = (box[:2] + box[2:] - anchor[:2] - anchor[2:]) / 2
  return np.concatenate([centers / anchor_sides, np.log(sides / anchor_sides)])


def assert_trees_equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert_array_equal(a, b)


# Their overlaps with an object at (0, 0, 10, 10), which has 100 pixels, are 1;
# 80/100; 50/100, which is neither foreground nor background; 10/190 = 0.05; 0.
ANCHORS = np.array(
  [
    [0, 0, 10, 10],
    [0, 0, 10, 8],
    [0, 0, 10, 5],
    [9, 0, 19, 10],
    [40, 40, 50, 50],
  ],
  np.float32,
)


def test_make_rpn_targets_by_hand(key):
  boxes = np.array([[0, 0, 10, 10]], np.float32)
  targets = rpn_targets(ANCHORS, SIZE, boxes, np.array([True]), key)
  assert sorted(np.array(targets.indices[:2])) == [0, 1]
  assert sorted(np.array(targets.indices[2:4])) == [3, 4]
  assert_array_equal(targets.foreground, [True] * 2 + [False] * 6)
  assert_array_equal(targets.valid, [True] * 4 + [False] * 4)
  # From (0, 0, 10, 8), the centre moves down by 1/8 of the height, and the
  # height grows to 10/8.
  deltas = {0: [0, 0, 0, 0], 1: [0, 0.125, 0, np.log(1.25)]}
  for slot in range(2):
    assert_allclose(
      targets.delta_targets[slot],
      deltas[int(targets.indices[slot])],
      atol=1e-6,
    )
  assert not targets.delta_targets[2:].any()


def test_make_rpn_targets_rescues_the_best_anchor_of_an_object(key):
  # No anchor overlaps the object by 0.7. The best overlap is 80 of 160 pixels.
  boxes = np.array([[0, 0, 10, 16]], np.float32)
  targets = rpn_targets(ANCHORS[1:], SIZE, boxes, np.array([True]), key)
  assert_array_equal(targets.foreground, [True] + [False] * 7)
  assert int(targets.indices[0]) == 0


def test_make_rpn_targets_never_takes_anchors_beyond_the_padded_image(key):
  # An image of 30x30 pixels is padded to 32x32. The centre of the last anchor
  # is at 45.
  boxes = np.array([[40, 40, 50, 50]], np.float32)
  targets = rpn_targets(
    ANCHORS, np.array([30, 30], np.int32), boxes, np.array([True]), key
  )
  assert not targets.foreground.any()
  assert sorted(np.array(targets.indices[:4])) == [0, 1, 2, 3]
  assert_array_equal(targets.valid, [True] * 4 + [False] * 4)


def test_make_rpn_targets_without_objects_is_all_background(key):
  targets = rpn_targets(
    ANCHORS, SIZE, np.zeros((2, 4), np.float32), np.zeros(2, bool), key
  )
  assert not targets.foreground.any()
  assert_array_equal(targets.valid, [True] * 5 + [False] * 3)
  assert_array_equal(targets.delta_targets, np.zeros((8, 4)))


def test_make_rpn_targets_agrees_with_the_definition(key):
  anchors_key, boxes_key, key = jax.random.split(key, 3)
  anchors = np.asarray(random_boxes(anchors_key, 60))
  boxes = np.asarray(random_boxes(boxes_key, 3))
  overlap = np.array([[iou(a, b) for b in boxes] for a in anchors])
  best = overlap.max(axis=1)
  labels = np.where(best >= 0.7, 1, np.where(best < 0.3, 0, -1))
  labels[(overlap == overlap.max(axis=0)).any(axis=1)] = 1
  # The sample has room for all anchors, so it is not random.
  targets = rpn_targets(
    anchors, SIZE, boxes, np.ones(3, bool), key, num_samples=120
  )
  chosen = np.array(targets.indices)
  foreground = np.array(targets.foreground)
  background = np.array(targets.valid) & ~foreground
  assert_array_equal(np.sort(chosen[foreground]), np.flatnonzero(labels == 1))
  assert_array_equal(np.sort(chosen[background]), np.flatnonzero(labels == 0))
  for slot in np.flatnonzero(foreground):
    anchor = chosen[slot]
    expected = encode(boxes[overlap[anchor].argmax()], anchors[anchor])
    assert_allclose(targets.delta_targets[slot], expected, atol=1e-5)


def test_make_roi_targets_by_hand(key):
  proposals = make_proposal_slots([[0, 0, 10, 8], [0, 0, 4, 10]], padding=1)
  boxes = np.array([[30, 30, 40, 40], [0, 0, 10, 10]], np.float32)
  targets = roi_targets(
    proposals, boxes, np.array([3, 5], np.int32), np.ones(2, bool), key
  )
  # Foreground: the first proposal, which overlaps object 1 by 80 of 100 pixels,
  # and the boxes of both objects. Background: the second proposal, which
  # overlaps object 1 by 40 of 100 pixels.
  assert_array_equal(targets.foreground, [True] * 3 + [False] * 5)
  assert_array_equal(targets.valid, [True] * 4 + [False] * 4)
  assert_array_equal(targets.rois[3], [0, 0, 4, 10])
  assert not targets.rois[4:].any()
  found = {tuple(map(float, targets.rois[i])): i for i in range(3)}
  slot = found[0, 0, 10, 8]
  assert_allclose(
    targets.delta_targets[slot],
    [0, 10 * 0.125, 0, 5 * np.log(1.25)],
    atol=1e-6,
  )
  for roi, slot in (
    ((0, 0, 10, 8), 1),
    ((0, 0, 10, 10), 1),
    ((30, 30, 40, 40), 0),
  ):
    assert int(targets.objects[found[roi]]) == slot
    assert int(targets.class_targets[found[roi]]) == (3, 5)[slot]
  assert_array_equal(targets.class_targets[3:], np.zeros(5))
  assert_array_equal(targets.objects[3:], np.zeros(5))


def test_make_roi_targets_with_exactly_the_threshold_are_foreground(key):
  proposals = make_proposal_slots([[0, 0, 10, 5]])
  targets = roi_targets(
    proposals,
    np.array([[0, 0, 10, 10]], np.float32),
    np.array([1], np.int32),
    np.array([True]),
    key,
  )
  assert int(targets.foreground.sum()) == 2


def test_make_roi_targets_limits_the_foreground(key):
  proposals = make_proposal_slots(
    [[0, 0, 10, 10]] * 20 + [[40, 40, 50, 50]] * 20
  )
  targets = roi_targets(
    proposals,
    np.array([[0, 0, 10, 10]], np.float32),
    np.array([1], np.int32),
    np.array([True]),
    key,
    fraction=0.25,
  )
  assert_array_equal(targets.foreground, np.arange(8) < 2)
  assert targets.valid.all()


def test_make_roi_targets_without_objects_is_all_background(key):
  proposals = make_proposal_slots([[0, 0, 10, 10]], padding=2)
  targets = roi_targets(
    proposals,
    np.zeros((2, 4), np.float32),
    np.zeros(2, np.int32),
    np.zeros(2, bool),
    key,
  )
  assert not targets.foreground.any()
  assert_array_equal(targets.valid, [True] + [False] * 7)
  assert not targets.class_targets.any()
  assert not targets.delta_targets.any()


def test_make_roi_targets_without_proposals_and_objects_is_empty(key):
  targets = roi_targets(
    make_proposal_slots([], padding=3),
    np.zeros((2, 4), np.float32),
    np.zeros(2, np.int32),
    np.zeros(2, bool),
    key,
  )
  assert not targets.valid.any()
  assert not targets.rois.any()
  assert np.isfinite(np.array(targets.delta_targets)).all()


def test_slots_of_ground_truth_padding_change_nothing(key):
  anchors_key, boxes_key, key = jax.random.split(key, 3)
  anchors = np.asarray(random_boxes(anchors_key, 50))
  boxes = np.asarray(random_boxes(boxes_key, 3))
  classes = np.array([1, 2, 3], np.int32)
  valid = np.ones(3, bool)
  padded = (
    # The values in padding must have no effect.
    np.pad(boxes, ((0, 4), (0, 0)), constant_values=5),
    np.pad(classes, (0, 4), constant_values=9),
    np.pad(valid, (0, 4)),
  )
  assert_trees_equal(
    rpn_targets(anchors, SIZE, boxes, valid, key),
    rpn_targets(anchors, SIZE, padded[0], padded[2], key),
  )
  proposals = make_proposal_slots(anchors)
  assert_trees_equal(
    roi_targets(proposals, boxes, classes, valid, key),
    roi_targets(proposals, *padded, key),
  )


def test_invalid_proposals_change_nothing(key):
  anchors_key, boxes_key, key = jax.random.split(key, 3)
  proposals = make_proposal_slots(random_boxes(anchors_key, 20), padding=10)
  other = proposals._replace(
    boxes=np.where(
      proposals.valid[:, None], proposals.boxes, np.float32([0, 0, 9, 9])
    )
  )
  boxes = np.asarray(random_boxes(boxes_key, 3))
  truth = boxes, np.array([1, 2, 3], np.int32), np.ones(3, bool), key
  assert_trees_equal(roi_targets(proposals, *truth), roi_targets(other, *truth))


def test_images_of_a_batch_get_the_same_targets_as_alone(key):
  anchors_key, boxes_key, key = jax.random.split(key, 3)
  anchors = random_boxes(anchors_key, 50)
  boxes = jnp.stack([random_boxes(k, 3) for k in jax.random.split(boxes_key)])
  valid = jnp.array([[True, True, False], [False, False, False]])
  keys = jax.random.split(key)
  together = jax.vmap(lambda b, v, k: rpn_targets(anchors, SIZE, b, v, k))(
    boxes, valid, keys
  )
  for row in range(2):
    assert_trees_equal(
      jax.tree.map(lambda x: x[row], together),  # noqa: B023
      rpn_targets(anchors, SIZE, boxes[row], valid[row], keys[row]),
    )


def test_another_key_draws_another_sample(key):
  anchors = random_boxes(key, 50)
  boxes, valid = anchors[:1], np.array([True])
  one, other = (
    rpn_targets(anchors, SIZE, boxes, valid, k) for k in jax.random.split(key)
  )
  assert (one.indices != other.indices).any()


@pytest.fixture
def square():
  """Returns outlines: object 0 is a square from 2 to 6, object 1 is padding."""
  return Outlines(
    vertices=np.array(
      [[2, 2], [6, 2], [6, 6], [2, 6], [2, 2], [0, 0]], np.float32
    ),
    parts=np.array([0, 0, 0, 0, -1, -1], np.int32),
    starts=np.array([0, 5, 5], np.int32),
  )


def test_make_mask_targets_draws_the_object_in_the_frame_of_the_roi(square):
  masks = mask_targets(
    square,
    jnp.array([[0.0, 0, 8, 8], [2, 0, 6, 8], [4, 4, 6, 6]]),
    jnp.zeros(3, jnp.int32),
    jnp.ones(3, bool),
  )
  # In the first RoI a cell has 2x2 pixels, and the square covers the middle
  # 2x2 cells. It covers the middle two rows of the second RoI and all of the
  # third.
  middle = np.array([0, 1, 1, 0])
  assert_array_equal(masks[0], np.outer(middle, middle))
  assert_array_equal(masks[1], np.outer(middle, np.ones(4)))
  assert_array_equal(masks[2], np.ones((4, 4)))


def test_make_mask_targets_is_empty_for_background_and_padding(square):
  masks = mask_targets(
    square,
    jnp.array([[0.0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 0, 0]]),
    jnp.array([0, 1, 0]),
    jnp.array([False, True, False]),
  )
  assert masks.dtype == jnp.float32
  assert_array_equal(masks, np.zeros((3, 4, 4)))
