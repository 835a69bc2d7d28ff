"""Tests of the anchors: their shapes, their order, and which an image has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskrcnn_jax.ops import anchors as ops

RATIOS = (0.5, 1.0, 2.0)
SIZES = {2: (32.0,), 3: (64.0,), 4: (128.0,), 5: (256.0,), 6: (512.0,)}


def make_anchors(padded_size, **arguments):
  return ops.make_anchors(ops.anchor_levels(padded_size, **arguments))


@pytest.mark.parametrize(
  'size, wide, narrow',
  [
    # The area is size**2, and height = ratio * width. At ratios 1/2 and 2 the
    # half sides are size * sqrt(2) / 2 and size / sqrt(2) / 2, as detectron2
    # prints them.
    (32, 22.63, 11.31),
    (64, 45.25, 22.63),
    (128, 90.51, 45.25),
    (256, 181.02, 90.51),
    (512, 362.04, 181.02),
  ],
)
def test_cell_anchors_by_hand(size, wide, narrow):
  half = size / 2
  np.testing.assert_allclose(
    ops.cell_anchors((float(size),), RATIOS),
    [
      [-wide, -narrow, wide, narrow],
      [-half, -half, half, half],
      [-narrow, -wide, narrow, wide],
    ],
    atol=0.005,
  )


def test_cell_anchors_go_through_the_ratios_of_a_size_first():
  # At ratio 4 an anchor is half as wide as at ratio 1. Columns 2 and 3 are half
  # of the widths and heights.
  anchors = ops.cell_anchors((8.0, 16.0), (1.0, 4.0))
  np.testing.assert_array_equal(anchors[:, 2], [4, 2, 8, 4])
  np.testing.assert_array_equal(anchors[:, 3], [4, 8, 8, 16])


def test_make_anchors_goes_through_rows_then_columns_then_the_cell():
  # Two rows and three columns of stride 4. The anchors of a cell are a square
  # of 8x8 pixels and one 4 wide and 16 high.
  (anchors,) = make_anchors((8, 12), sizes={2: (8.0,)}, ratios=(1.0, 4.0))
  np.testing.assert_array_equal(
    anchors,
    [
      [-4, -4, 4, 4],
      [-2, -8, 2, 8],  # about (0, 0)
      [0, -4, 8, 4],
      [2, -8, 6, 8],  # about (4, 0)
      [4, -4, 12, 4],
      [6, -8, 10, 8],  # about (8, 0)
      [-4, 0, 4, 8],
      [-2, -4, 2, 12],  # about (0, 4)
      [0, 0, 8, 8],
      [2, -4, 6, 12],
      [4, 0, 12, 8],
      [6, -4, 10, 12],
    ],
  )


def test_make_anchors_gives_each_cell_three_anchors_finest_level_first():
  levels = make_anchors((96, 160), sizes=SIZES, ratios=RATIOS)
  # Level 6 has half the cells of level 5's 3x5, rounded up.
  cells = [24 * 40, 12 * 20, 6 * 10, 3 * 5, 2 * 3]
  assert [len(level) for level in levels] == [3 * count for count in cells]
  np.testing.assert_allclose(levels[0][1], [-16, -16, 16, 16])
  np.testing.assert_allclose(levels[-1][1], [-256, -256, 256, 256])


def test_make_anchors_ignores_the_order_of_the_sizes():
  shuffled = dict(sorted(SIZES.items(), reverse=True))
  for ours, theirs in zip(
    make_anchors((64, 64), sizes=SIZES, ratios=RATIOS),
    make_anchors((64, 64), sizes=shuffled, ratios=RATIOS),
    strict=True,
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_anchors_in_image_by_hand():
  (anchors,) = make_anchors((16, 16), sizes={2: (8.0,)}, ratios=(1.0,))
  present = ops.anchors_in_image(
    anchors, jnp.array([5, 12]), padding_multiple=8
  )
  # 5x12 pixels are padded to 8x16. Cells start at 0, 4, 8 and 12: two rows and
  # all columns are in the padded image.
  np.testing.assert_array_equal(
    present.reshape(4, 4), [[True] * 4, [True] * 4, [False] * 4, [False] * 4]
  )


def test_anchors_in_image_does_not_pad_a_size_that_is_a_multiple():
  (anchors,) = make_anchors((16, 16), sizes={2: (8.0,)}, ratios=(1.0,))
  present = ops.anchors_in_image(anchors, jnp.array([8, 8]), padding_multiple=8)
  assert present.sum() == 4


def test_anchors_in_image_of_an_empty_image_has_no_anchor():
  (anchors,) = make_anchors((16, 16), sizes={2: (8.0,)}, ratios=(1.0,))
  present = ops.anchors_in_image(anchors, jnp.array([0, 0]), padding_multiple=8)
  assert not present.any()


@pytest.mark.parametrize('rounding', ['none', 'corners', 'stride'])
@pytest.mark.parametrize('factor', [1, 0.7, 100.7 / 32])
@pytest.mark.parametrize('image_size', [(300, 500), (352, 480)])
def test_anchors_in_image_are_the_same_on_a_larger_canvas(
  rounding, factor, image_size
):
  sizes = {level: (factor * size,) for level, (size,) in SIZES.items()}
  ratios = (1 / 3, 0.5, 1.0, 2.0, 3.0)
  padded = tuple(-(-side // 32) * 32 for side in image_size)
  options = dict(sizes=sizes, ratios=ratios, rounding=rounding)
  tight = make_anchors(padded, **options)
  canvas = make_anchors((512, 1024), **options)
  present = jax.jit(ops.anchors_in_image, static_argnames='padding_multiple')
  for ours, theirs in zip(canvas, tight, strict=True):
    kept = present(ours, jnp.array(image_size), padding_multiple=32)
    np.testing.assert_array_equal(np.asarray(ours)[kept], theirs)


def test_anchors_in_image_leaves_out_centres_that_rounding_moves_inside():
  # Two anchors are centred at (32, 32), just outside the image. The centre
  # computed from the rounded corners is below 32 in x for the first anchor and
  # in y for the second.
  (anchors,) = make_anchors((64, 64), sizes={5: (48.0,)}, ratios=(1 / 3, 3.0))
  corner = np.asarray(anchors[-2:])
  middle = np.float32(0.5) * (corner[:, :2] + corner[:, 2:])
  assert middle[0, 0] < 32 and middle[1, 1] < 32
  present = ops.anchors_in_image(
    anchors, jnp.array([32, 32]), padding_multiple=32
  )
  # Only the two anchors of the first of the four cells are in the image.
  np.testing.assert_array_equal(present, [True] * 2 + [False] * 6)


@pytest.mark.parametrize(
  'fit_to', [pytest.param(None, marks=pytest.mark.slow), (256, 352)]
)
def test_anchors_at_equals_the_same_rows_of_the_whole_level(fit_to):
  fit_to = None if fit_to is None else jnp.array(fit_to)
  levels = ops.anchor_levels((288, 416), sizes=SIZES, ratios=RATIOS)
  rng = np.random.default_rng(0)
  for level, anchors in zip(
    levels, ops.make_anchors(levels, fit_to=fit_to), strict=True
  ):
    index = rng.integers(0, ops.count_anchors(level), 40)
    for kernels in ('xla', 'interpret'):
      np.testing.assert_array_equal(
        ops.anchors_at(
          level, jnp.asarray(index), fit_to=fit_to, kernels=kernels
        ),
        anchors[index],
      )
