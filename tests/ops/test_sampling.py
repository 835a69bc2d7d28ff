"""Tests of sampling: the counts, the order, and equal probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import sampling

sample = jax.jit(
  sampling.sample_labels, static_argnames=('size', 'foreground_fraction')
)


def _labels(foreground, background, ignored, *, seed=0):
  labels = [1] * foreground + [0] * background + [-1] * ignored
  return jnp.asarray(np.random.default_rng(seed).permutation(labels), jnp.int32)


@pytest.mark.parametrize(
  'foreground, background, ignored, size, fraction, expected',
  [
    # `expected` is the number of (foreground, background) boxes drawn.
    (20, 60, 10, 16, 0.5, (8, 8)),
    (20, 60, 10, 16, 0.25, (4, 12)),
    (3, 77, 10, 16, 0.5, (3, 13)),  # background fills slots of foreground
    (20, 5, 65, 16, 0.5, (8, 5)),  # foreground fills no slots of background
    (0, 80, 10, 16, 0.5, (0, 16)),
    (20, 0, 70, 16, 0.5, (8, 0)),
    (2, 3, 85, 16, 0.5, (2, 3)),  # fewer boxes to draw than slots
    (0, 0, 90, 16, 0.5, (0, 0)),
    (2, 2, 1, 16, 0.5, (2, 2)),  # fewer boxes in all than slots
    (3, 0, 0, 16, 0.5, (3, 0)),
    (20, 60, 10, 16, 0.0, (0, 16)),
    (20, 60, 10, 16, 1.0, (16, 0)),
    (3, 77, 10, 16, 1.0, (3, 13)),
    (20, 60, 10, 16, 0.05, (0, 16)),  # 0.8 slots are rounded down to 0
    (20, 60, 10, 1, 1.0, (1, 0)),
    (20, 60, 10, 7, 0.5, (3, 4)),  # 3.5 slots are rounded down to 3
  ],
)
def test_sample_labels_counts(
  key, foreground, background, ignored, size, fraction, expected
):
  labels = _labels(foreground, background, ignored)
  drawn = sample(labels, key, size=size, foreground_fraction=fraction)
  total = sum(expected)
  # Foreground comes first, then background, then slots without a box.
  np.testing.assert_array_equal(drawn.foreground, np.arange(size) < expected[0])
  np.testing.assert_array_equal(drawn.valid, np.arange(size) < total)
  np.testing.assert_array_equal(
    labels[drawn.indices][:total], [1] * expected[0] + [0] * expected[1]
  )
  # No box is drawn twice. Slots without a box hold index 0.
  assert len(set(drawn.indices[:total].tolist())) == total
  assert not drawn.indices[total:].any()


def test_sample_labels_depends_on_the_key_alone(key):
  draw = functools.partial(sample, size=16, foreground_fraction=0.5)
  labels = _labels(40, 60, 10)
  first, again = draw(labels, key), draw(labels, key)
  np.testing.assert_array_equal(first.indices, again.indices)
  other = draw(labels, jax.random.fold_in(key, 1))
  assert set(first.indices.tolist()) != set(other.indices.tolist())


@pytest.mark.parametrize('counts', [(20, 60, 10), (3, 4, 2), (0, 9, 0)])
def test_sample_labels_is_not_changed_by_padding(key, counts):
  labels = _labels(*counts)
  draw = functools.partial(sample, size=16, foreground_fraction=0.5)
  drawn = draw(labels, key)
  for padding in (1, 13, 200):
    padded = draw(jnp.pad(labels, (0, padding), constant_values=-1), key)
    for ours, theirs in zip(drawn, padded, strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_sample_labels_draws_all_boxes_of_a_label_equally_often(key):
  # 3000 times, 8 of 12 foreground boxes and 8 of 24 background boxes are drawn.
  labels = _labels(12, 24, 4)
  keys = jax.random.split(key, 3000)
  drawn = jax.vmap(
    lambda k: sample(labels, k, size=16, foreground_fraction=0.5)
  )(keys)
  counts = np.bincount(drawn.indices.ravel(), minlength=40)
  assert not counts[labels == -1].any()
  for label, share in ((1, 8 / 12), (0, 8 / 24)):
    expected = 3000 * share
    # The standard deviation of a count is 26. The sum of the squared z is about
    # the number of boxes (chi-square distribution).
    deviation = np.sqrt(expected * (1 - share))
    z = (counts[labels == label] - expected) / deviation
    assert np.abs(z).max() < 5
    assert len(z) / 4 < (z**2).sum() < 3 * len(z)


def test_sample_labels_draws_neighbours_independently(key):
  # Two of 6 boxes are drawn. If they are independent, all pairs of different
  # boxes are equally frequent.
  labels = jnp.zeros(6, jnp.int32)
  keys = jax.random.split(key, 3600)
  winners = jax.vmap(
    lambda k: sample(labels, k, size=2, foreground_fraction=0.5).indices
  )(keys)
  pairs = np.bincount(winners[:, 0] * 6 + winners[:, 1], minlength=36)
  pairs = pairs.reshape(6, 6)
  assert not np.diag(pairs).any()
  # Each of the 30 pairs is expected 3600 / 30 = 120 times, with a standard
  # deviation of 11.
  assert np.abs(pairs[~np.eye(6, dtype=bool)] - 120).max() < 55


@pytest.mark.parametrize('foreground', [0, 5, 300])
def test_sample_labels_takes_the_highest_priorities_of_many_boxes(
  key, foreground
):
  # So many boxes that they are not sorted.
  labels = _labels(foreground, 20_000, 1_000)
  drawn = sample(labels, key, size=64, foreground_fraction=0.5)
  priorities = np.asarray(jax.random.uniform(key, labels.shape))
  order = np.argsort(-priorities, kind='stable')
  count = min(foreground, 32)
  expected = [
    *order[labels[order] == 1][:count],
    *order[labels[order] == 0][: 64 - count],
  ]
  np.testing.assert_array_equal(drawn.indices, expected)
