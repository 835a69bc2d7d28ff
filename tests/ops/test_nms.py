"""Tests of NMS: it keeps exactly the boxes that greedy suppression keeps."""

import functools
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from maskrcnn_jax.ops.nms import nms

# Number of sets of boxes of each kind. Coordinates are whole numbers below 64,
# so that only the division of an overlap is rounded, in the code and in the
# definition alike.
SETS = 75


def _random_set(rng, n):
  corners = rng.integers(0, 24, (n, 2))
  return np.concatenate([corners, corners + rng.integers(1, 24, (n, 2))], 1)


def _boxes_duplicates(rng, n):
  return _random_set(rng, 4)[rng.integers(0, 4, n)]


def _boxes_without_area(rng, n):
  boxes = _random_set(rng, n)
  flat = rng.integers(0, 4, n)
  boxes[flat == 0, 2] = boxes[flat == 0, 0]
  boxes[flat == 1] = boxes[flat == 1][:, [2, 3, 0, 1]]
  return boxes


def _boxes_chain(rng, n):
  # Neighbours overlap by 8/12, 7/13 or 6/14, boxes two apart by less than half.
  start = np.arange(n) % 12 * rng.integers(2, 5)
  row = np.arange(n) // 12 * 10
  return np.stack([start, row, start + 10, row + 9], axis=1)


def _boxes_nested(rng, n):
  edge = np.sort(rng.integers(0, 30, n))
  return np.stack([edge, edge, 63 - edge, 63 - edge], axis=1)


def _boxes_squares(rng, n):
  # Four positions and two shapes give overlaps of 0, 1/3, 1/2 and 1.
  x = rng.integers(0, 4, n) * 2
  width = rng.choice([4, 2], n)
  return np.stack([x, 0 * x, x + width, 0 * x + 4], axis=1)


KINDS = {
  'random': _random_set,
  'duplicates': _boxes_duplicates,
  'without_area': _boxes_without_area,
  'chain': _boxes_chain,
  'nested': _boxes_nested,
  'squares': _boxes_squares,
}


def _scores(rng, n):
  falling = np.linspace(1, 0, n)
  match rng.integers(0, 5):
    case 0:
      scores = rng.permutation(falling)
    case 1:
      scores = falling  # in a chain of boxes, each one decides about the next
    case 2:
      scores = rng.integers(0, 3, n) / 2
    case 3:
      scores = np.zeros(n) * rng.choice([-1, 1], n)  # 0.0 and -0.0
    case 4:
      scores = rng.choice([np.nan, np.inf, -np.inf, 1, -1], n)
  return scores.astype(np.float32)


def _valid(rng, n):
  match rng.integers(0, 4):
    case 0:
      return np.ones(n, bool)
    case 1:
      return np.zeros(n, bool)
    case 2:
      return np.arange(n) < rng.integers(0, n + 1)
    case _:
      return rng.random(n) < 0.7


@functools.cache
def _many_sets(n, num_sets=SETS):
  """Returns (boxes, scores, valid, groups) of `num_sets` sets of each kind."""
  sets = []
  for place, make in enumerate(KINDS.values()):
    rng = np.random.default_rng([n, place])
    sets += [
      (
        make(rng, n).astype(np.float32),
        _scores(rng, n),
        _valid(rng, n),
        rng.integers(0, rng.integers(1, 5), n).astype(np.int32),
      )
      for _ in range(num_sets)
    ]
  return tuple(np.stack(arrays) for arrays in zip(*sets, strict=True))


nms_of_many = jax.jit(
  jax.vmap(
    lambda b, s, v, g: nms(
      b, s, v, groups=g, iou_threshold=0.5, limit=40, block_size=16
    )
  )
)
compiled_nms = jax.jit(
  nms, static_argnames=('iou_threshold', 'limit', 'block_size')
)


def assert_greedy(indices, kept, sets, *, iou_threshold, limit):
  """Asserts that NMS of many sets keeps the boxes of the greedy definition."""
  boxes, scores, valid, groups = sets
  for i in range(len(boxes)):
    expected = oracles.greedy_nms(
      oracles.pairwise_iou(boxes[i]),
      scores[i],
      valid[i],
      groups=None if groups is None else groups[i],
      iou_threshold=iou_threshold,
      limit=limit,
    )
    assert kept[i].tolist() == [j < len(expected) for j in range(limit)]
    padded = expected + [0] * (limit - len(expected))
    assert indices[i].tolist() == padded


def _one(boxes, scores, valid=None, *, groups=None, iou_threshold=0.5):
  """Returns the indices that NMS keeps from up to eight boxes."""
  n = len(scores)
  indices, kept = compiled_nms(
    np.pad(np.float32(boxes), ((0, 8 - n), (0, 0))),
    np.pad(np.float32(scores), (0, 8 - n)),
    np.pad(np.ones(n, bool) if valid is None else valid, (0, 8 - n)),
    groups=None if groups is None else np.pad(groups, (0, 8 - n)),
    iou_threshold=iou_threshold,
    limit=8,
  )
  indices, kept = np.asarray(indices), np.asarray(kept)
  assert not indices[~kept].any()  # slots without a box hold 0
  return indices[kept].tolist()


def test_nms_by_hand():
  boxes = [
    [0, 0, 10, 10],
    [0, 0, 10, 9],  # overlaps the first by 90/100
    [20, 0, 30, 10],  # overlaps none
    [0, 0, 10, 4],  # overlaps the first by 40/100, the second by 40/90
  ]
  # The second box is the best and removes the first.
  assert _one(boxes, [0.8, 0.9, 0.5, 0.6]) == [1, 3, 2]
  assert _one(boxes, [0.8, 0.9, 0.5, 0.6], iou_threshold=0.3) == [1, 2]
  assert _one(boxes, [0.8, 0.9, 0.5, 0.6], iou_threshold=0.95) == [1, 0, 3, 2]


def test_nms_keeps_a_box_whose_only_rival_is_suppressed():
  # Each box overlaps the next by 7/13 > 0.5, and the next but one by 4/16.
  boxes = [[3 * i, 0, 3 * i + 10, 10] for i in range(7)]
  assert _one(boxes, np.linspace(1, 0, 7)) == [0, 2, 4, 6]
  assert _one(boxes, np.linspace(0, 1, 7)) == [6, 4, 2, 0]


def test_nms_suppresses_at_more_than_the_threshold():
  # The overlap is 2 of 4 pixels.
  boxes = [[0, 0, 4, 1], [0, 0, 2, 1]]
  assert _one(boxes, [1, 0]) == [0, 1]
  assert _one(boxes, [1, 0], iou_threshold=0.499) == [0]


def test_nms_ranks_equal_scores_by_index():
  boxes = [[0, 0, 4, 4], [0, 0, 4, 4], [8, 0, 12, 4], [8, 0, 12, 4]]
  assert _one(boxes, [0.5, 0.5, 0.5, 0.5]) == [0, 2]
  assert _one(boxes, [0.0, -0.0, -0.0, 0.0]) == [0, 2]


def test_nms_never_keeps_nan_or_minus_infinity():
  boxes = [[10 * i, 0, 10 * i + 5, 5] for i in range(5)]
  scores = [jnp.nan, -jnp.inf, jnp.inf, -jnp.nan, -1]
  assert _one(boxes, scores) == [2, 4]
  # -inf is sorted next to padding, which must not be kept either.
  assert _one(boxes[:2], [5, -jnp.inf], [False, True]) == []


def test_nms_lets_different_groups_overlap():
  boxes = [[0, 0, 4, 4]] * 4
  groups = np.int32([7, 0, 7, -3])
  assert _one(boxes, [4, 3, 2, 1], groups=groups) == [0, 1, 3]


def test_nms_keeps_every_box_without_area():
  boxes = [[2, 2, 2, 2], [2, 2, 2, 2], [5, 5, 1, 1], [0, 0, 9, 9]]
  assert _one(boxes, [4, 3, 2, 1]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
  'n, block_size, limit, iou_threshold, grouped',
  [
    (40, 256, 40, 0.5, False),  # fewer boxes than a block
    (40, 8, 40, 0.7, False),  # five full blocks
    (40, 8, 40, 0.5, True),
    (40, 16, 60, 1 / 3, False),  # the last block is not full; spare slots
    (40, 16, 60, 1 / 3, True),
    (40, 16, 5, 0.5, False),  # more boxes could be kept than there are slots
    (40, 16, 5, 0.5, True),
    (40, 1, 40, 0.25, True),
    (40, 7, 1, 0.0, False),
    (1, 256, 3, 0.5, True),
  ],
)
def test_nms_keeps_what_the_greedy_definition_keeps(
  n, block_size, limit, iou_threshold, grouped
):
  boxes, scores, valid, groups = _many_sets(n)
  groups = groups if grouped else None
  options = {'iou_threshold': iou_threshold, 'limit': limit}
  indices, kept = jax.jit(
    jax.vmap(
      lambda b, s, v, g: nms(
        b, s, v, groups=g, block_size=block_size, **options
      )
    )
  )(boxes, scores, valid, groups)
  indices, kept = np.asarray(indices), np.asarray(kept)
  assert_greedy(indices, kept, (boxes, scores, valid, groups), **options)


@pytest.mark.parametrize(
  'n, limit, iou_threshold, grouped',
  [
    (40, 60, 1 / 3, True),  # the second step is not full; spare slots
    (64, 5, 0.7, False),  # more boxes could be kept than there are slots
  ],
)
def test_nms_on_a_gpu_keeps_what_the_greedy_definition_keeps(
  monkeypatch, n, limit, iou_threshold, grouped
):
  # The implementation that other platforms than a CPU use.
  monkeypatch.setattr(
    jax.lax, 'platform_dependent', lambda *x, cpu, default: default(*x)
  )
  boxes, scores, valid, groups = _many_sets(n)
  groups = groups if grouped else None
  options = {'iou_threshold': iou_threshold, 'limit': limit}
  indices, kept = jax.jit(
    jax.vmap(lambda b, s, v, g: nms(b, s, v, groups=g, **options))
  )(boxes, scores, valid, groups)
  indices, kept = np.asarray(indices), np.asarray(kept)
  assert_greedy(indices, kept, (boxes, scores, valid, groups), **options)


@pytest.mark.slow
@pytest.mark.parametrize('kernels', ['xla', 'interpret'])
@pytest.mark.parametrize('n', [20, 70])
def test_nms_is_greedy_on_ten_thousand_sets(n, kernels):
  # Two values of n, six kinds of boxes and 834 sets of each make 10,008 sets.
  boxes, scores, valid, groups = _many_sets(n, 834)
  nms_of_all = jax.jit(
    jax.vmap(
      lambda b, s, v, g: nms(
        b,
        s,
        v,
        groups=g,
        iou_threshold=0.5,
        limit=40,
        block_size=16,
        kernels=kernels,
      )
    )
  )
  indices, kept = map(np.asarray, nms_of_all(boxes, scores, valid, groups))
  assert_greedy(
    indices, kept, (boxes, scores, valid, groups), iou_threshold=0.5, limit=40
  )


@pytest.mark.parametrize(
  'n, limit, iou_threshold, grouped',
  [
    (40, 40, 0.5, True),  # fewer boxes than a block
    (150, 150, 0.5, False),
    (150, 70, 1 / 3, True),  # the limit is reached, in the middle of a block
    (64, 5, 0.7, False),
  ],
)
def test_nms_kernel_equals_plain_jax(n, limit, iou_threshold, grouped):
  boxes, scores, valid, groups = _many_sets(n, 12)
  results = [
    jax.jit(
      jax.vmap(
        lambda b, s, v, g: nms(
          b,
          s,
          v,
          groups=g if grouped else None,
          iou_threshold=iou_threshold,
          limit=limit,
          kernels=kernels,  # noqa: B023
        )
      )
    )(boxes, scores, valid, groups)
    for kernels in ('interpret', 'xla')
  ]
  for ours, theirs in zip(*results, strict=True):
    np.testing.assert_array_equal(ours, theirs)


needs_triton = pytest.mark.skipif(
  importlib.util.find_spec('triton') is None,
  reason='triton is not installed (it comes with the extra jax-triton)',
)


@pytest.fixture
def interpreted_triton(monkeypatch):
  """Replaces jax-triton by Triton's interpreter in this process."""
  # Triton reads this at its first import, which is in this test.
  monkeypatch.setenv('TRITON_INTERPRET', '1')

  def triton_call(
    *arguments,
    kernel,
    out_type,
    grid,
    name,
    num_warps,
    num_stages,
    backend_options,
    **statics,
  ):
    def run(*arguments):
      arrays = [np.ascontiguousarray(x) for x in arguments]
      # Results start with arbitrary numbers, as on a GPU.
      results = [
        np.full(x.shape, np.nan if x.dtype == np.float32 else -77, x.dtype)
        for x in out_type
      ]
      kernel[grid](*map(_Tensor, arrays + results), **statics)
      return results

    return jax.pure_callback(run, list(out_type), *arguments)

  monkeypatch.setitem(
    sys.modules, 'jax_triton', types.SimpleNamespace(triton_call=triton_call)
  )


class _Tensor:
  """A NumPy array with the methods of a torch tensor that Triton calls."""

  def __init__(self, array):
    self.array, self.dtype = array, array.dtype

  def data_ptr(self):
    return self.array.ctypes.data

  def _itself(self, *_, **__):
    # The array is on the CPU already, so Triton's copies of it can be itself.
    return self

  untyped_storage = cpu = new_empty = set_ = copy_ = _itself
  storage_offset = size = stride = _itself


@needs_triton
@pytest.mark.parametrize(
  'n, limit, iou_threshold, grouped',
  [
    (40, 40, 0.5, True),  # fewer boxes than a block
    (150, 150, 0.5, False),
    (150, 70, 1 / 3, True),  # the limit is reached, in the middle of a block
    (64, 5, 0.7, False),
    (1, 3, 0.5, True),
  ],
)
def test_nms_in_triton_keeps_what_the_greedy_definition_keeps(
  interpreted_triton, n, limit, iou_threshold, grouped
):
  boxes, scores, valid, groups = _many_sets(n, 6)
  groups = groups if grouped else None
  options = {'iou_threshold': iou_threshold, 'limit': limit}
  # The sets are arranged like 12 images with three levels each.
  indices, kept = jax.jit(
    jax.vmap(
      jax.vmap(
        lambda *lists: nms(
          *lists[:3],
          groups=lists[3] if grouped else None,
          kernels='triton',
          **options,
        )
      )
    )
  )(
    *(
      x.reshape(12, 3, *x.shape[1:])
      for x in (boxes, scores, valid) + ((groups,) if grouped else ())
    )
  )
  indices, kept = (np.reshape(x, (36, limit)) for x in (indices, kept))
  assert_greedy(indices, kept, (boxes, scores, valid, groups), **options)


@needs_triton
def test_nms_in_triton_accepts_boxes_shared_by_a_batch(interpreted_triton):
  boxes, scores, _, _ = (jnp.asarray(x[:5]) for x in _many_sets(40, 6))
  results = [
    jax.vmap(
      lambda s: nms(
        boxes[0],
        s,
        jnp.ones(40, bool),
        iou_threshold=0.5,
        limit=40,
        kernels=kernels,  # noqa: B023
      )
    )(scores)
    for kernels in ('triton', 'xla')
  ]
  for ours, theirs in zip(*results, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_nms_is_not_changed_by_padding():
  boxes, scores, valid, groups = _many_sets(40)
  # The padding has the best scores, covers all boxes and is in their groups.
  extra = ((0, 0), (0, 9))
  padded_boxes = np.pad(boxes, extra + ((0, 0),))
  padded_boxes[:, 40:] = [0, 0, 64, 64]
  padded = nms_of_many(
    padded_boxes,
    np.pad(scores, extra, constant_values=9),
    np.pad(valid, extra),
    np.pad(groups, extra, mode='edge'),
  )
  plain = nms_of_many(boxes, scores, valid, groups)
  for ours, theirs in zip(plain, padded, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_nms_is_idempotent():
  boxes, scores, valid, groups = _many_sets(40)
  indices, kept = (
    np.asarray(x) for x in nms_of_many(boxes, scores, valid, groups)
  )
  again, kept_again = nms_of_many(
    np.take_along_axis(boxes, indices[..., None], axis=1),
    np.take_along_axis(scores, indices, axis=1),
    kept,
    np.take_along_axis(groups, indices, axis=1),
  )
  again = np.asarray(again)
  np.testing.assert_array_equal(kept_again, kept)
  slots = np.broadcast_to(np.arange(40), kept.shape)
  np.testing.assert_array_equal(again[kept], slots[kept])


def test_nms_with_a_smaller_limit_returns_the_first_boxes_of_a_larger():
  sets = _many_sets(40)
  small = jax.jit(
    jax.vmap(
      lambda b, s, v, g: nms(
        b, s, v, groups=g, iou_threshold=0.5, limit=5, block_size=16
      )
    )
  )(*sets)
  for few, many in zip(small, nms_of_many(*sets), strict=True):
    np.testing.assert_array_equal(few, np.asarray(many)[:, :5])


def test_nms_agrees_on_real_numbers_and_several_full_blocks(key):
  corners = jax.random.uniform(key, (700, 2)) * 200
  sides = jax.random.uniform(jax.random.fold_in(key, 1), (700, 2)) * 60 + 5
  boxes = jnp.concatenate([corners, corners + sides], axis=1)
  scores = jax.random.uniform(jax.random.fold_in(key, 2), (700,))
  overlap = oracles.pairwise_iou(np.asarray(boxes))
  # No overlap is so close to the threshold that rounding would decide.
  assert np.abs(overlap - 0.5).min() > 1e-6
  expected = oracles.greedy_nms(
    overlap,
    np.asarray(scores),
    np.ones(700, bool),
    iou_threshold=0.5,
    limit=700,
  )
  assert len(expected) > 256
  indices, kept = compiled_nms(
    boxes, scores, jnp.ones(700, bool), iou_threshold=0.5, limit=700
  )
  assert indices[: len(expected)].tolist() == expected
  assert kept.sum() == len(expected)


def test_nms_passes_gradients_to_kept_boxes_and_scores():
  boxes = jnp.array([[0, 0, 4, 4], [0, 0, 4, 3], [2, 2, 2, 2]], jnp.float32)
  valid = jnp.array([True, True, True])

  def total(boxes, scores):
    indices, kept = compiled_nms(
      boxes, scores, valid, iou_threshold=0.5, limit=4
    )
    kept_boxes = jnp.where(kept[:, None], boxes[indices], 0)
    return kept_boxes.sum() + jnp.where(kept, scores[indices], 0).sum()

  gradients = jax.grad(total, argnums=(0, 1))(boxes, jnp.array([3.0, 2, 1]))
  # The second box is suppressed by the first.
  np.testing.assert_array_equal(gradients[0], [[1] * 4, [0] * 4, [1] * 4])
  np.testing.assert_array_equal(gradients[1], [1, 0, 1])
