"""Tests of matching: by hand, against loops, and with added padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from maskrcnn_jax.ops import matching
from maskrcnn_jax.ops.boxes import pairwise_iou

match = functools.partial(
  jax.jit(
    matching.match_boxes,
    static_argnames=('foreground_iou', 'background_iou', 'rescue'),
  ),
  foreground_iou=0.7,
  background_iou=0.3,
)


def test_match_boxes_by_hand():
  iou = jnp.array(
    [
      [0.8, 0.1],  # at least 0.7: foreground
      [0.7, 0.7],  # exactly 0.7: foreground; the first of equals matches
      [0.2, 0.5],  # between the thresholds: ignored
      [0.3, 0.0],  # exactly 0.3: ignored
      [0.29, 0.2],  # less than 0.3: background
    ]
  )
  matches, labels = match(iou, jnp.array([True, True]), rescue=False)
  np.testing.assert_array_equal(matches, [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(labels, [1, 1, -1, -1, 0])


def test_match_boxes_rescues_the_best_box_of_a_poorly_covered_object():
  iou = jnp.array([[0.9, 0.0], [0.0, 0.1], [0.0, 0.2], [0.0, 0.2]])
  _, labels = match(iou, jnp.array([True, True]), rescue=True)
  # Two boxes have the largest overlap, 0.2; both are rescued.
  np.testing.assert_array_equal(labels, [1, 0, 1, 1])


def test_match_boxes_matches_a_rescued_box_to_the_object_it_overlaps_most():
  # The best box of object 1 overlaps object 0 more.
  iou = jnp.array([[0.6, 0.4], [0.9, 0.1]])
  matches, labels = match(iou, jnp.array([True, True]), rescue=True)
  np.testing.assert_array_equal(matches, [0, 0])
  np.testing.assert_array_equal(labels, [1, 1])


def test_match_boxes_rescues_no_box_for_an_object_that_no_box_overlaps():
  iou = jnp.array([[0.9, 0.0], [0.1, 0.0]])
  _, labels = match(iou, jnp.array([True, True]), rescue=True)
  np.testing.assert_array_equal(labels, [1, 0])


@pytest.mark.parametrize('rescue', [False, True])
def test_match_boxes_without_objects_is_all_background(rescue):
  iou = jnp.array([[0.9, 0.5], [0.5, 0.9]])
  matches, labels = match(iou, jnp.array([False, False]), rescue=rescue)
  np.testing.assert_array_equal(matches, [0, 0])
  np.testing.assert_array_equal(labels, [0, 0])


@pytest.mark.parametrize('rescue', [False, True])
def test_match_boxes_gives_a_box_that_takes_no_part_no_label_1(rescue):
  # The first box does not take part, so 0.2 is the best overlap of object 0.
  iou = jnp.array([[-1.0, -1.0], [0.2, 0.0], [0.0, 0.8]])
  _, labels = match(iou, jnp.array([True, True]), rescue=rescue)
  np.testing.assert_array_equal(labels, [0, int(rescue), 1])
  _, labels = match(
    jnp.full((3, 2), -1.0), jnp.array([True, True]), rescue=rescue
  )
  np.testing.assert_array_equal(labels, [0, 0, 0])


def _random_iou(seed, num_boxes=30, num_slots=6):
  """Returns random overlaps, and which ground-truth slots are valid."""
  rng = np.random.default_rng(seed)
  # Overlaps are multiples of 0.1 and mostly 0, so that many are equal or
  # exactly at a threshold.
  iou = rng.integers(0, 11, (num_boxes, num_slots)) / np.float32(10)
  iou *= rng.random(iou.shape) < rng.random()
  return iou.astype(np.float32), rng.random(num_slots) < rng.random() * 1.5


@pytest.mark.parametrize('rescue', [False, True])
def test_match_boxes_agrees_with_the_definition(rescue):
  for seed in range(300):
    iou, gt_valid = _random_iou(seed)
    expected = oracles.match_boxes(
      iou, gt_valid, foreground_iou=0.7, background_iou=0.3, rescue=rescue
    )
    ours = match(jnp.asarray(iou), jnp.asarray(gt_valid), rescue=rescue)
    np.testing.assert_array_equal(ours[0], expected[0])
    np.testing.assert_array_equal(ours[1], expected[1])


@pytest.mark.parametrize('rescue', [False, True])
def test_match_boxes_is_not_changed_by_padding(rescue):
  for seed in range(50):
    iou, gt_valid = _random_iou(seed)
    matches, labels = match(
      jnp.asarray(iou), jnp.asarray(gt_valid), rescue=rescue
    )
    # Add four slots of padding with overlap 1, and five boxes that do not take
    # part.
    padded = np.pad(iou, ((0, 0), (0, 4)), constant_values=1)
    padded = np.pad(padded, ((0, 5), (0, 0)), constant_values=-1)
    padded_matches, padded_labels = match(
      jnp.asarray(padded),
      jnp.asarray(np.pad(gt_valid, (0, 4))),
      rescue=rescue,
    )
    np.testing.assert_array_equal(padded_matches[:-5], matches)
    np.testing.assert_array_equal(padded_labels[:-5], labels)
    assert not padded_labels[-5:].any()


def test_match_boxes_moves_with_the_order_of_the_boxes():
  iou, gt_valid = _random_iou(7)
  order = np.random.default_rng(0).permutation(len(iou))
  gt_valid = jnp.asarray(gt_valid)
  matches, labels = match(jnp.asarray(iou), gt_valid, rescue=True)
  moved = match(jnp.asarray(iou[order]), gt_valid, rescue=True)
  np.testing.assert_array_equal(moved[0], matches[order])
  np.testing.assert_array_equal(moved[1], labels[order])


@pytest.mark.parametrize(
  'n, g, rescue, width_offset',
  [
    (200, 40, True, 0.0),  # the second of two groups of objects is not full
    (60, 3, False, 1.0),
    (40, 129, True, 0.0),  # too many objects for groups
  ],
)
def test_match_by_overlap_on_a_gpu_is_iou_and_matching(
  monkeypatch, n, g, rescue, width_offset
):
  # The implementation that other platforms than a CPU use.
  monkeypatch.setattr(
    jax.lax, 'platform_dependent', lambda *x, cpu, default: default(*x)
  )
  rng = np.random.default_rng([n, g])
  corners = rng.integers(0, 24, (3, n + g, 2))
  sides = rng.integers(0, 16, (3, n + g, 2))  # some boxes have no area
  both = jnp.asarray(
    np.concatenate([corners, corners + sides], axis=-1), jnp.float32
  )
  boxes, gt_boxes = both[:, :n], both[:, n:]
  valid, gt_valid = rng.random((3, n)) < 0.8, rng.random((3, g)) < 0.8
  gt_valid[2] = False
  thresholds = {'foreground_iou': 0.7, 'background_iou': 0.3, 'rescue': rescue}
  matches, labels = jax.jit(
    jax.vmap(
      functools.partial(
        matching.match_by_overlap, width_offset=width_offset, **thresholds
      )
    )
  )(boxes, valid, gt_boxes, gt_valid)
  for i in range(3):
    iou = pairwise_iou(boxes[i], gt_boxes[i], width_offset=width_offset)
    expected = oracles.match_boxes(
      np.where(valid[i][:, None], iou, -1), gt_valid[i], **thresholds
    )
    # A box that takes no part gets match 0.
    np.testing.assert_array_equal(
      matches[i], np.where(valid[i], expected[0], 0)
    )
    np.testing.assert_array_equal(labels[i], expected[1])
