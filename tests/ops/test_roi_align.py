"""Tests of RoIAlign: against its definition, SciPy and dense matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import ndimage

from maskrcnn_jax.ops import roi_align as ops

align = jax.jit(
  ops.roi_align,
  static_argnames=('side', 'sampling_ratio', 'offset', 'min_side'),
)
MODERN = {'sampling_ratio': 2, 'offset': 0.5}
SHAPES = {2: (12, 16), 3: (6, 8), 4: (3, 4)}

# Boxes in pixels of an image that is 48 pixels high and 64 wide.
BOXES = np.array(
  [
    [3.2, 4.7, 40.9, 38.1],
    [-20.5, -13.25, 19.75, 21.5],  # over the top left corner
    [45.3, 30.1, 94.0, 79.9],  # over the bottom right corner
    [-50.3, -50.1, 150.2, 149.6],  # larger than the image
    [8, 8, 12, 12],  # one cell of level 2
    [17.3, 21.1, 17.9, 21.2],  # less than a cell
    [0, 0, 64, 48],  # the image
    [200, 100, 240, 140],  # far outside
    [20, 10, 20, 10],  # a point
    [0, 0, 0, 0],  # padding
  ],
  np.float32,
)
LEVELS = np.arange(len(BOXES), dtype=np.int32) % 3 + 2


def _pyramid(key, channels=3):
  return {
    level: jax.random.normal(
      jax.random.fold_in(key, level), shape + (channels,)
    )
    for level, shape in SHAPES.items()
  }


def _one_level(features, boxes, **overrides):
  """Pools features of one channel and stride 1."""
  boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
  options = {'side': 4} | MODERN | overrides
  return align(
    {0: jnp.asarray(features, jnp.float32)[..., None]},
    boxes,
    jnp.zeros(len(boxes), jnp.int32),
    **options,
  )[..., 0]


@pytest.mark.parametrize(
  'side, level',
  [
    # floor(4 + log2(side / 224))
    (1, 2),
    (55, 2),
    (111.9, 2),
    (112, 3),
    (223.9, 3),
    (224, 4),
    (447.9, 4),
    (448, 5),
    (896, 5),
    (2000, 5),
    (0, 2),
  ],
)
def test_assign_levels_by_hand(side, level):
  boxes = jnp.array(
    [
      [0, 0, side, side],
      [50, 30, 50 + 2 * side, 30 + side / 2],  # has the same area
    ],
    jnp.float32,
  )
  np.testing.assert_array_equal(ops.assign_levels(boxes), [level, level])


def test_assign_levels_stays_between_the_given_levels():
  sides = jnp.array([0.0, 1.0, 224.0, 1e6])
  boxes = jnp.stack([0 * sides, 0 * sides, sides, sides], axis=1)
  levels = ops.assign_levels(boxes, min_level=3, max_level=4)
  np.testing.assert_array_equal(levels, [3, 3, 4, 4])


def test_assign_levels_sends_empty_boxes_to_the_finest():
  boxes = jnp.array([[0, 0, 0, 0], [900, 900, 0, 0], [0, 5, 900, 5]])
  np.testing.assert_array_equal(
    ops.assign_levels(boxes.astype(jnp.float32)), [2, 2, 2]
  )


def test_roi_align_by_hand():
  # The features are 5y + x, so the mean of samples is the value at their mean
  # position. The box reaches from (0.5, 0.5) to (2.5, 2.5) in cells, so an
  # output cell has a side of 0.5. The first is centred at (0.75, 0.75) and has
  # the value 5 * 0.75 + 0.75 = 4.5. The next to the right has 0.5 more, the
  # next below 2.5 more.
  features = np.arange(25).reshape(5, 5)
  expected = 4.5 + 2.5 * np.arange(4)[:, None] + 0.5 * np.arange(4)
  pooled = _one_level(features, [1, 1, 3, 3])
  np.testing.assert_allclose(pooled[0], expected, rtol=1e-6)
  # Without the offset, all positions are (0.5, 0.5) farther, where the values
  # are 3 more.
  pooled = _one_level(features, [1, 1, 3, 3], offset=0.0)
  np.testing.assert_allclose(pooled[0], expected + 3, rtol=1e-6)


@pytest.mark.parametrize(
  'coordinate, expected',
  [
    # One sample at this coordinate, in cells with the values 10, 20 and 30.
    (0, 10),
    (0.5, 15),
    (2, 30),
    (-0.5, 10),
    (-1, 10),
    (2.5, 30),
    (3, 30),  # one cell outside
    (-1.01, 0),
    (3.01, 0),
  ],
)
def test_roi_align_repeats_the_edge_for_one_cell(coordinate, expected):
  features = np.array([[10, 20, 30]] * 3)
  for box, image in (
    ([coordinate + 0.5, 1.5] * 2, features),
    ([1.5, coordinate + 0.5] * 2, features.T),
  ):
    pooled = _one_level(image, box, side=1, sampling_ratio=1)
    np.testing.assert_allclose(pooled, [[[expected]]], rtol=1e-5)


def test_roi_align_of_each_cell_of_the_image_is_the_image(key):
  features = jax.random.normal(key, (7, 7))
  # There is one sample in the middle of each cell.
  pooled = _one_level(features, [0, 0, 7, 7], side=7, sampling_ratio=1)
  np.testing.assert_allclose(pooled[0], features, atol=1e-5)


@pytest.mark.parametrize(
  'side, sampling_ratio, offset, min_side',
  [
    (7, 2, 0.5, 0.0),
    (5, 1, 0.5, 0.0),
    (2, 3, 0.0, 1.0),
    # Adaptive sampling; with a side of 3, up to 17 samples.
    (7, 0, 0.5, 0.0),
    (3, 0, 0.5, 0.0),
    (2, 0, 0.0, 1.0),
  ],
)
def test_roi_align_agrees_with_the_definition(
  key, side, sampling_ratio, offset, min_side
):
  pyramid = _pyramid(key)
  options = {
    'side': side,
    'sampling_ratio': sampling_ratio,
    'offset': offset,
    'min_side': min_side,
  }
  pooled = align(pyramid, jnp.asarray(BOXES), jnp.asarray(LEVELS), **options)
  for ours, box, level in zip(pooled, BOXES, LEVELS, strict=True):
    expected = oracles.roi_align(
      np.asarray(pyramid[level]), box, stride=2 ** int(level), **options
    )
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_roi_align_agrees_with_scipy(key):
  pyramid = _pyramid(key, channels=1)
  pooled = align(
    pyramid, jnp.asarray(BOXES), jnp.asarray(LEVELS), side=7, **MODERN
  )
  for ours, box, level in zip(pooled, BOXES, LEVELS, strict=True):
    x1, y1, x2, y2 = box.astype(np.float64) / 2**level - 0.5
    steps = (np.arange(14) + 0.5) / 14
    y, x = np.meshgrid(
      y1 + steps * (y2 - y1), x1 + steps * (x2 - x1), indexing='ij'
    )
    height, width = SHAPES[level]
    samples = ndimage.map_coordinates(
      np.asarray(pyramid[level][..., 0], np.float64),
      [y, x],
      order=1,
      mode='nearest',
    )
    samples *= (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    expected = samples.reshape(7, 2, 7, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(ours[..., 0], expected, atol=1e-5)


@pytest.mark.parametrize('kernels', ['xla', 'interpret'])
@pytest.mark.parametrize(
  'sampling_ratio, offset, min_side',
  [
    (2, 0.5, 0.0),
    pytest.param(2, 0.0, 1.0, marks=pytest.mark.slow),
    pytest.param(0, 0.5, 0.0, marks=pytest.mark.slow),
  ],
)
def test_roi_align_uses_nothing_beyond_the_own_size(
  key, kernels, sampling_ratio, offset, min_side
):
  # The image is 32 pixels high and 48 wide. The canvas has 48x64 pixels, and a
  # huge number wherever the image has no cell.
  own_size, pyramid = (32, 48), _pyramid(key)
  alone = {
    level: x[: 32 // 2**level, : 48 // 2**level] for level, x in pyramid.items()
  }
  padded = {
    level: jnp.full_like(pyramid[level], 1e6)
    .at[: x.shape[0], : x.shape[1]]
    .set(x)
    for level, x in alone.items()
  }
  boxes = jnp.array(
    [
      [30.5, 20.25, 48, 32],  # reaches the lower right corner
      [47.5, 31.5, 48, 32],  # less than a cell in this corner
      [0, 0, 48, 32],  # the image
      [3.5, 2.25, 17, 21],
      [0, 0, 0, 0],  # padding
    ]
  )
  levels = jnp.array([2, 3, 4, 2, 3])
  if sampling_ratio == 0:  # A box must be on the level of its size.
    levels = jnp.full(5, 4)

  def total(pyramid, own_size):
    pooled = ops.roi_align(
      pyramid,
      boxes,
      levels,
      own_size,
      side=3,
      sampling_ratio=sampling_ratio,
      offset=offset,
      min_side=min_side,
      kernels=kernels,
    )
    return jnp.sum(pooled**2), pooled

  run = jax.jit(jax.grad(total, has_aux=True))
  gradient, pooled = run(padded, jnp.array(own_size))
  expected_gradient, expected = run(alone, None)
  np.testing.assert_allclose(pooled, expected, atol=1e-6)
  for level, x in expected_gradient.items():
    rows, columns, _ = x.shape
    np.testing.assert_allclose(gradient[level][:rows, :columns], x, atol=1e-5)
    # No gradient flows into the padding.
    assert not gradient[level][rows:].any()
    assert not gradient[level][:, columns:].any()


def test_roi_align_of_an_image_without_a_size_is_finite(key):
  pooled = align(
    _pyramid(key),
    jnp.zeros((3, 4)),
    jnp.full(3, 2),
    jnp.zeros(2, jnp.int32),
    side=7,
    **MODERN,
  )
  assert jnp.isfinite(pooled).all()


def test_roi_align_of_flipped_features_and_boxes_is_flipped(key):
  pyramid = _pyramid(key)
  flipped_boxes = BOXES.copy()
  flipped_boxes[:, [0, 2]] = 64 - BOXES[:, [2, 0]]
  levels = jnp.asarray(LEVELS)
  pooled = align(pyramid, jnp.asarray(BOXES), levels, side=7, **MODERN)
  flipped = align(
    {level: features[:, ::-1] for level, features in pyramid.items()},
    jnp.asarray(flipped_boxes),
    levels,
    side=7,
    **MODERN,
  )
  np.testing.assert_allclose(flipped, pooled[:, :, ::-1], atol=1e-5)


def test_roi_align_reads_only_the_given_level(key):
  pyramid = _pyramid(key)
  boxes, levels = jnp.asarray(BOXES), jnp.full(len(BOXES), 3)
  pooled = align(pyramid, boxes, levels, side=7, **MODERN)
  others = {2: pyramid[2] + 1, 3: pyramid[3], 4: pyramid[4] - 1}
  np.testing.assert_array_equal(
    align(others, boxes, levels, side=7, **MODERN), pooled
  )


def test_roi_align_is_not_changed_by_padding(key):
  pyramid = _pyramid(key)
  padded = align(
    pyramid,
    jnp.asarray(np.pad(BOXES, ((0, 5), (0, 0)))),
    jnp.asarray(np.pad(LEVELS, (0, 5), constant_values=2)),
    side=7,
    **MODERN,
  )
  pooled = align(
    pyramid, jnp.asarray(BOXES), jnp.asarray(LEVELS), side=7, **MODERN
  )
  np.testing.assert_allclose(padded[:-5], pooled, atol=1e-6)
  assert jnp.isfinite(padded).all()


def test_roi_align_sums_in_float32_and_keeps_the_dtype(key):
  pyramid = {
    level: features.astype(jnp.bfloat16)
    for level, features in _pyramid(key).items()
  }
  wide = {
    level: features.astype(jnp.float32) for level, features in pyramid.items()
  }
  boxes, levels = jnp.asarray(BOXES), jnp.asarray(LEVELS)
  pooled = align(pyramid, boxes, levels, side=7, **MODERN)
  assert pooled.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    pooled.astype(jnp.float32),
    align(wide, boxes, levels, side=7, **MODERN),
    rtol=2**-8,  # one rounding to bfloat16, which has 8 bits
    atol=1e-6,
  )


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])
def test_roi_align_has_the_gradient_of_the_dense_matrices(
  monkeypatch, key, platform
):
  chosen = []

  def choose(*arguments, cpu, default):
    # `default` is the implementation of other platforms than a CPU.
    chosen.append(platform)
    return (cpu if platform == 'cpu' else default)(*arguments)

  monkeypatch.setattr(jax.lax, 'platform_dependent', choose)
  pyramid = _pyramid(key)
  boxes, levels = jnp.asarray(BOXES), jnp.asarray(LEVELS)

  def pool(pyramid):
    return ops.roi_align(pyramid, boxes, levels, side=7, **MODERN)

  pooled, pull_back = jax.vjp(jax.jit(pool), pyramid)
  cotangent = jax.random.normal(jax.random.fold_in(key, 9), pooled.shape)
  # Some boxes have no gradient, others have one in a single channel.
  cotangent = cotangent.at[::3].set(0).at[1, 1:].set(0).at[4, ..., 1:].set(0)
  (gradient,) = pull_back(cotangent)
  assert chosen == [platform]
  expected = {
    level: np.zeros(features.shape) for level, features in pyramid.items()
  }
  for box, level, one in zip(BOXES, LEVELS, cotangent, strict=True):
    x1, y1, x2, y2 = box.astype(np.float64) / 2**level - 0.5
    height, width = SHAPES[level]
    options = {'side': 7, 'sampling_ratio': 2}
    rows = oracles.roi_align_matrix(y1, y2, height, **options)
    columns = oracles.roi_align_matrix(x1, x2, width, **options)
    expected[level] += np.einsum('sh,stc,tw->hwc', rows, one, columns)
  for level in pyramid:
    np.testing.assert_allclose(gradient[level], expected[level], atol=1e-4)


def _large_pyramid(key):
  """Returns random features of an image of 800x1344 pixels."""
  return {
    level: jax.random.normal(
      jax.random.fold_in(key, level), (800 // 2**level, 1344 // 2**level, 1)
    )
    for level in (2, 3, 4, 5)
  }


def test_roi_align_of_adaptive_samples_is_exact_for_boxes_of_any_shape(key):
  pyramid = _large_pyramid(key)
  boxes = np.array(
    [
      [0, 0, 1344, 800],  # the image
      [0, 300, 1344, 309],  # the longest box on level 2, as high as possible
      [700, 0, 715.6, 800],  # the highest box on level 2, as wide as possible
      [3, 100, 1340, 137],  # almost the longest box on level 3
      [0, 0, 1344, 149],  # the longest box on level 4
      [10.3, 20.7, 122.2, 132.5],  # almost too large for level 2
      [500, 400, 947, 799],
      [500, 400, 500.2, 400.1],
    ],
    np.float32,
  )
  levels = ops.assign_levels(jnp.asarray(boxes))
  np.testing.assert_array_equal(levels, [5, 2, 2, 3, 4, 2, 4, 2])
  pooled, pull_back = jax.vjp(
    lambda p: align(
      p, jnp.asarray(boxes), levels, side=7, sampling_ratio=0, offset=0.5
    ),
    pyramid,
  )
  cotangent = jax.random.normal(key, pooled.shape)
  (gradient,) = pull_back(cotangent)
  expected_gradient = {
    level: np.zeros(features.shape) for level, features in pyramid.items()
  }
  for ours, box, level, one in zip(
    pooled, boxes, levels.tolist(), cotangent, strict=True
  ):
    x1, y1, x2, y2 = box.astype(np.float64) / 2**level - 0.5
    height, width = pyramid[level].shape[:2]
    rows, columns = (
      oracles.roi_align_matrix(
        start,
        end,
        length,
        side=7,
        sampling_ratio=math.ceil((end - start) / 7),
      )
      for start, end, length in ((y1, y2, height), (x1, x2, width))
    )
    expected = np.einsum('sh,hwc,tw->stc', rows, pyramid[level], columns)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    expected_gradient[level] += np.einsum('sh,stc,tw->hwc', rows, one, columns)
  for level, expected in expected_gradient.items():
    np.testing.assert_allclose(gradient[level], expected, atol=1e-5)


def test_roi_align_of_a_box_on_a_level_too_fine_for_it_is_nan(key):
  pooled = align(
    _large_pyramid(key),
    jnp.array([[0.0, 0.0, 400.0, 400.0]]),
    jnp.array([2]),
    side=7,
    sampling_ratio=0,
    offset=0.5,
  )
  assert jnp.isnan(pooled).all()


def test_assign_levels_adds_the_shift_to_the_level():
  # log2(448 / 224) is 1. For a side slightly below 448 it is slightly less, and
  # the shift makes up for it, as in torchvision.
  boxes = jnp.array([[0, 0, 447.9998, 447.9998]], jnp.float32)
  assert ops.assign_levels(boxes, epsilon=0.0) == 4
  assert ops.assign_levels(boxes, epsilon=0.0, shift=1e-6) == 5
  # The logarithm of an empty box is -inf; the box goes to the finest level.
  empty = jnp.zeros((1, 4))
  assert ops.assign_levels(empty, epsilon=0.0, shift=1e-6) == 2
  # The box is 447 + 1 pixels wide.
  wide = jnp.array([[0.0, 0.0, 447.0, 447.0]])
  assert ops.assign_levels(wide, width_offset=1.0) == 5


def test_roi_align_has_the_gradient_of_finite_differences(key):
  pyramid = _pyramid(key)
  boxes, levels = jnp.asarray(BOXES), jnp.asarray(LEVELS)

  def total(pyramid):
    return jnp.sum(align(pyramid, boxes, levels, side=3, **MODERN) ** 2)

  direction = _pyramid(jax.random.fold_in(key, 7))
  up = total(jax.tree.map(lambda a, b: a + b / 2, pyramid, direction))
  down = total(jax.tree.map(lambda a, b: a - b / 2, pyramid, direction))
  gradient = jax.grad(total)(pyramid)
  along = sum(jnp.vdot(gradient[level], direction[level]) for level in pyramid)
  # The central difference of a quadratic function is exact at any distance.
  np.testing.assert_allclose(along, up - down, rtol=1e-3)


def test_roi_align_gives_boxes_no_gradient(key):
  pyramid, levels = _pyramid(key), jnp.asarray(LEVELS)
  gradient = jax.grad(
    lambda b: align(pyramid, b, levels, side=7, **MODERN).sum()
  )(jnp.asarray(BOXES))
  assert not gradient.any()


@pytest.mark.parametrize(
  'side, sampling_ratio, offset, min_side, channels',
  [
    (2, 0, 0.0, 1.0, 1),
    pytest.param(3, 2, 0.5, 0.0, 3, marks=pytest.mark.slow),
  ],
)
def test_roi_align_kernel_equals_plain_jax(
  key, side, sampling_ratio, offset, min_side, channels
):
  # Two images; the boxes of the second are in reverse order.
  pyramids = jax.tree.map(
    lambda *leaves: jnp.stack(leaves),
    _pyramid(key, channels),
    _pyramid(jax.random.fold_in(key, 9), channels),
  )
  # The second image is smaller than the canvas.
  own_sizes = jnp.array([[48, 64], [24, 40]])
  # With adaptive samples, a box must be on the level of its size.
  levels = np.full_like(LEVELS, 4) if sampling_ratio == 0 else LEVELS
  boxes = jnp.stack([BOXES, BOXES[::-1]])
  levels = jnp.stack([levels, levels[::-1]])
  probe = jax.random.normal(
    jax.random.fold_in(key, 10), (2, len(BOXES), side, side, channels)
  )

  def pool(kernels):
    def weighed(pyramids):
      pooled = jax.vmap(
        lambda pyramid, boxes, levels, own_size: ops.roi_align(
          pyramid,
          boxes,
          levels,
          own_size,
          side=side,
          offset=offset,
          sampling_ratio=sampling_ratio,
          min_side=min_side,
          kernels=kernels,
        )
      )(pyramids, boxes, levels, own_sizes)
      return jnp.sum(pooled * probe), pooled

    return jax.jit(jax.grad(weighed, has_aux=True))(pyramids)

  gradient, pooled = pool('interpret')
  expected_gradient, expected = pool('xla')
  np.testing.assert_allclose(pooled, expected, atol=1e-5)
  for level in SHAPES:
    np.testing.assert_allclose(
      gradient[level], expected_gradient[level], atol=1e-4
    )


def test_roi_align_kernel_sums_bfloat16_gradients_in_float32(key):
  pyramid = {2: jax.random.normal(key, (12, 16, 2)).astype(jnp.bfloat16)}
  boxes = jnp.tile(jnp.array([[8.0, 8, 40, 40]]), (9, 1))

  def total(pyramid, kernels):
    pooled = ops.roi_align(
      pyramid,
      boxes,
      jnp.full(9, 2),
      side=2,
      sampling_ratio=2,
      offset=0.5,
      kernels=kernels,
    )
    return jnp.sum(pooled.astype(jnp.float32))

  ours = jax.grad(total)(pyramid, 'interpret')[2]
  exact = jax.grad(total)({2: pyramid[2].astype(jnp.float32)}, 'xla')[2]
  assert ours.dtype == jnp.bfloat16
  # The gradient is rounded to bfloat16 once, at the end.
  np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8)
