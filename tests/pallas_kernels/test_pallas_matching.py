"""Tests of the kernels of IoU, matching and selection, interpreted.

They are compared with plain JAX. The interpreter fills results with NaN or the
largest integer first, so that elements that a kernel does not write show.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import oracles
import pytest

from maskrcnn_jax.ops.anchors import anchor_levels, count_anchors
from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.ops.matching import match_boxes, match_by_overlap
from maskrcnn_jax.ops.selection import select_boxes

match = functools.partial(
  jax.jit(
    match_by_overlap,
    static_argnames=(
      'foreground_iou',
      'background_iou',
      'rescue',
      'width_offset',
      'kernels',
    ),
  ),
  foreground_iou=0.7,
  background_iou=0.3,
)


def whole_boxes(rng, *shape):
  """Draws boxes with whole coordinates; their IoU is rounded only once."""
  corners = rng.integers(0, 24, (*shape, 2))
  sides = rng.integers(0, 16, (*shape, 2))  # Some boxes have no area.
  boxes = np.concatenate([corners, corners + sides], axis=-1)
  return jnp.asarray(boxes, jnp.float32)


@pytest.mark.parametrize('width_offset', [0.0, 1.0])
@pytest.mark.parametrize('shape', [(1, 1), (130, 33), (3, 100), (0, 4), (4, 0)])
def test_iou_kernel_is_the_plain_one(shape, width_offset):
  rng = np.random.default_rng(0)
  boxes, others = whole_boxes(rng, shape[0]), whole_boxes(rng, shape[1])
  iou = functools.partial(pairwise_iou, width_offset=width_offset)
  assert_array_equal(
    iou(boxes, others, kernels='interpret'), iou(boxes, others)
  )


def test_iou_kernel_of_each_image_of_a_batch():
  rng = np.random.default_rng(0)
  boxes, others = whole_boxes(rng, 3, 20), whole_boxes(rng, 3, 7)
  ours = jax.vmap(functools.partial(pairwise_iou, kernels='interpret'))(
    boxes, others
  )
  for i in range(3):
    for j in range(20):
      for k in range(7):
        assert ours[i, j, k] == np.float32(
          oracles.iou(np.float64(boxes[i, j]), np.float64(others[i, k]))
        )


@pytest.mark.parametrize(
  ('n', 'g', 'rescue', 'width_offset'),
  [
    (200, 40, True, 0.0),
    (128, 32, False, 0.0),
    (300, 5, True, 1.0),
    (5, 70, True, 0.0),
  ],
)
def test_match_by_overlap_is_iou_and_matching(n, g, rescue, width_offset):
  rng = np.random.default_rng([n, g])
  boxes, gt_boxes = whole_boxes(rng, 3, n), whole_boxes(rng, 3, g)
  valid = jnp.asarray(rng.random((3, n)) < 0.8)
  gt_valid = jnp.asarray(rng.random((3, g)) < 0.8).at[2].set(False)

  def define(boxes, valid, gt_boxes, gt_valid):
    iou = pairwise_iou(boxes, gt_boxes, width_offset=width_offset)
    return match_boxes(
      jnp.where(valid[:, None], iou, -1),
      gt_valid,
      foreground_iou=0.7,
      background_iou=0.3,
      rescue=rescue,
    )

  arguments = boxes, valid, gt_boxes, gt_valid
  expected = jax.jit(jax.vmap(define))(*arguments)
  for kernels in ('xla', 'interpret'):
    ours = jax.vmap(
      functools.partial(
        match, rescue=rescue, width_offset=width_offset, kernels=kernels
      )
    )(*arguments)
    assert_array_equal(ours[0], expected[0], err_msg=kernels)
    assert_array_equal(ours[1], expected[1], err_msg=kernels)


@pytest.mark.parametrize('kernels', ['xla', 'interpret'])
@pytest.mark.parametrize(('n', 'g'), [(0, 3), (3, 0)])
def test_match_by_overlap_of_nothing_is_background(n, g, kernels):
  matches, labels = match(
    jnp.zeros((n, 4)),
    jnp.ones(n, bool),
    jnp.zeros((g, 4)),
    jnp.ones(g, bool),
    rescue=True,
    kernels=kernels,
  )
  assert_array_equal(matches, np.zeros(n))
  assert_array_equal(labels, np.zeros(n))


@pytest.mark.parametrize('kernels', ['xla', 'interpret'])
def test_match_by_overlap_rescues_equals_of_different_blocks(kernels):
  # Boxes 0, 150 and 299 have an IoU of 1/4 with the ground-truth box, and no
  # box has more.
  boxes = jnp.tile(jnp.array([[90.0, 90, 99, 99]]), (300, 1))
  boxes = boxes.at[jnp.array([0, 150, 299])].set(jnp.array([0.0, 0, 10, 10]))
  _, labels = match(
    boxes,
    jnp.ones(300, bool),
    jnp.array([[0.0, 0, 20, 20]]),
    jnp.ones(1, bool),
    rescue=True,
    kernels=kernels,
  )
  assert_array_equal(np.flatnonzero(labels), [0, 150, 299])


LEVELS = anchor_levels(
  (72, 96), sizes={2: (16.0,), 3: (32.0,), 6: (64.0,)}, ratios=(0.5, 1.0, 2.0)
)
NUM_ANCHORS = sum(map(count_anchors, LEVELS))


def chunked(monkeypatch, size):
  """Makes the chunks of the selection kernel small, so that a test is fast."""
  from pallas_kernels import selection

  monkeypatch.setattr(selection, 'CHUNK', size)


def logits_of_all_kinds():
  """Returns a row of logits of each kind, one for each image.

  The kinds are: random, many equal, mostly -inf, all -inf, some NaN and inf,
  and zeros of both signs.
  """
  rng = np.random.default_rng(0)
  random = rng.normal(size=(6, NUM_ANCHORS)).astype(np.float32)
  equal = rng.integers(-1, 2, NUM_ANCHORS)
  few = np.where(rng.random(NUM_ANCHORS) < 0.9, -np.inf, random[2])
  nan = np.where(rng.random(NUM_ANCHORS) < 0.3, np.nan, random[4])
  nan = np.where(rng.random(NUM_ANCHORS) < 0.1, np.inf, nan)
  return np.float32(
    [
      random[0],
      equal,
      few,
      np.full(NUM_ANCHORS, -np.inf),
      nan,
      np.zeros(NUM_ANCHORS) * rng.choice([-1, 1], NUM_ANCHORS),
    ]
  )


@pytest.mark.parametrize('limit', [1, 50, 200])
def test_selection_kernel_is_top_k_and_decoding(monkeypatch, limit):
  chunked(monkeypatch, 128)
  logits = logits_of_all_kinds()
  deltas = np.random.default_rng(1).normal(size=(*logits.shape, 4))
  deltas[0, ::5, 0] = deltas[1, ::7, 3] = np.nan
  sizes = jnp.array([[72, 96], [40, 50]] * 3)

  def select(kernels):
    return jax.jit(
      jax.vmap(
        lambda logits, deltas, size: select_boxes(
          logits,
          deltas,
          LEVELS,
          size,
          limit=limit,
          weights=(1.0, 1.0, 1.0, 1.0),
          kernels=kernels,
        )
      )
    )(jnp.asarray(logits), jnp.asarray(deltas, jnp.float32), sizes)

  boxes, best = select('interpret')
  expected_boxes, expected = select('xla')
  assert_array_equal(best, expected)
  assert_allclose(boxes, expected_boxes, rtol=1e-5, atol=1e-4)
  assert not np.isnan(best).any()


def test_plain_selection_serves_limits_that_the_kernel_is_slow_for(monkeypatch):
  from pallas_kernels import selection

  monkeypatch.setattr(selection, 'MAX_LIMIT', 10)
  # Compiled kernels do not run on a CPU, so this would fail if the kernel ran.
  plain, other = (
    select_boxes(
      jnp.arange(NUM_ANCHORS) % 97.0,
      jnp.zeros((NUM_ANCHORS, 4)),
      LEVELS,
      jnp.array([72, 96]),
      limit=11,
      weights=(1.0, 1.0, 1.0, 1.0),
      kernels=kernels,
    )
    for kernels in ('xla', 'pallas')
  )
  for a, b in zip(plain, other, strict=True):
    assert_array_equal(a, b)


def test_selection_kernel_takes_the_presets_of_peers(monkeypatch):
  chunked(monkeypatch, 256)
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=NUM_ANCHORS), jnp.float32)
  deltas = jnp.asarray(rng.normal(size=(NUM_ANCHORS, 4)), jnp.float32)

  def select(kernels):
    return jax.jit(
      lambda size, fit_to: select_boxes(
        logits,
        deltas,
        LEVELS,
        size,
        limit=30,
        width_offset=1.0,
        weights=(10.0, 10.0, 5.0, 5.0),
        fit_to=fit_to,
        kernels=kernels,
      )
    )(jnp.array([50, 90]), jnp.array([64, 96]))

  for ours, expected in zip(select('interpret'), select('xla'), strict=True):
    assert_allclose(ours, expected, rtol=1e-5, atol=1e-4)
