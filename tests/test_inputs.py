"""Tests of the inputs: flip, resize, normalise and pad, with the truth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.inputs import draw_flips, prepare_inputs

PADDED = (8, 8)
prepare = jax.jit(
    functools.partial(
        prepare_inputs, padded_size=PADDED, pixel_mean=(10.0, 20.0, 30.0),
        pixel_std=(1.0, 2.0, 4.0), antialias=True,
    )
)


def make_batch(rows, *, slots=2, vertices=8):
  """A batch of rows (pixels, image_size, boxes, polygon) on a 6x6 canvas."""
  b = len(rows)
  images = np.full((b, 6, 6, 3), 99, np.uint8)  # Not zero where not real.
  source_sizes = np.zeros((b, 2), np.int32)
  image_sizes = np.zeros((b, 2), np.int32)
  gt_boxes = np.full((b, slots, 4), 7, np.float32)
  gt_classes = np.zeros((b, slots), np.int32)
  gt_valid = np.zeros((b, slots), bool)
  points = np.zeros((b, vertices, 2), np.float32)
  parts = np.full((b, vertices), -1, np.int32)
  starts = np.zeros((b, slots + 1), np.int32)
  for i, (pixels, image_size, boxes, polygon) in enumerate(rows):
    images[i, : pixels.shape[0], : pixels.shape[1]] = pixels
    source_sizes[i] = pixels.shape[:2]
    image_sizes[i] = image_size
    gt_boxes[i, : len(boxes)] = np.reshape(boxes, (-1, 4))
    gt_classes[i, : len(boxes)] = 1
    gt_valid[i, : len(boxes)] = True
    points[i, : len(polygon)] = np.reshape(polygon, (-1, 2))
    parts[i, : len(polygon)] = [0] * (len(polygon) - 1) + [-1]
    starts[i, 1:] = len(polygon)
  return Batch(
      images, source_sizes, image_sizes, np.ones(b, bool), gt_boxes,
      gt_classes, gt_valid, Outlines(points, parts, starts),
  )


def grey(values):
  return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def ramp():
  """2 rows of 3 pixels, to be made 4 by 6: everything doubles."""
  pixels = grey([[10, 20, 30], [10, 20, 30]])
  polygon = [(0, 0), (2, 0), (2, 2), (0, 0)]
  return make_batch([(pixels, (4, 6), [(0, 0, 2, 1)], polygon)])


def test_prepare_inputs_normalises_each_channel(ramp):
  batch = ramp._replace(images=np.full_like(ramp.images, 50))
  pixels = prepare(batch, jnp.array([False])).images[0, :4, :6]
  # (50 - 10) / 1, (50 - 20) / 2, (50 - 30) / 4.
  assert_allclose(pixels, np.broadcast_to([40, 15, 5], (4, 6, 3)), rtol=1e-6)


def test_prepare_inputs_interpolates_between_pixel_centres(ramp):
  row = prepare(ramp, jnp.array([False])).images[0, 0, :6, 0]
  # Target centres 0.5, 1.5, ... lie at 0.25, 0.75, ... of the source, whose
  # centres are at 0.5, 1.5, 2.5; the edges repeat. The mean is 10.
  assert_allclose(row, np.array([10, 12.5, 17.5, 22.5, 27.5, 30]) - 10, 1e-6)


def test_prepare_inputs_is_zero_outside_the_image(ramp):
  images = np.array(prepare(ramp, jnp.array([True])).images)
  images[0, :4, :6] = 0
  assert_array_equal(images, np.zeros((1, *PADDED, 3)))


@pytest.mark.parametrize(
    ('flip', 'box', 'vertices'),
    [
        # Times 2; mirrored in 6 pixels, x becomes 6 - x.
        (False, (0, 0, 4, 2), [(0, 0), (4, 0), (4, 4), (0, 0)]),
        (True, (2, 0, 6, 2), [(6, 0), (2, 0), (2, 4), (6, 0)]),
    ],
)
def test_prepare_inputs_moves_the_truth_with_the_image(
    ramp, flip, box, vertices
):
  inputs = prepare(ramp, jnp.array([flip]))
  assert_allclose(inputs.gt_boxes[0, 0], box, rtol=1e-6)
  assert_allclose(inputs.outlines.vertices[0, :4], vertices, rtol=1e-6)


def test_prepare_inputs_scales_the_axes_apart():
  # 4x3 pixels become 2x6: y halves, x doubles.
  batch = make_batch(
      [(grey(np.zeros((4, 3))), (2, 6), [(1, 2, 3, 4)], [(1, 2), (3, 4)])]
  )
  inputs = prepare(batch, jnp.array([False]))
  assert_allclose(inputs.gt_boxes[0, 0], [2, 1, 6, 2], rtol=1e-6)
  assert_allclose(inputs.outlines.vertices[0, 1], [6, 2], rtol=1e-6)


def test_prepare_inputs_zeroes_boxes_of_padding(ramp):
  inputs = prepare(ramp, jnp.array([True]))
  assert_array_equal(inputs.gt_boxes[0, 1], np.zeros(4))


def test_flipping_mirrors_the_image_inside_its_own_width(ramp):
  plain = prepare(ramp, jnp.array([False])).images[0, :4, :6]
  flipped = prepare(ramp, jnp.array([True])).images[0, :4, :6]
  assert_allclose(flipped, plain[:, ::-1], atol=1e-5)


def test_flipping_the_source_and_then_the_inputs_changes_nothing(key):
  noise = np.asarray(jax.random.randint(key, (5, 4, 3), 0, 256), np.uint8)
  one = make_batch([(noise, (7, 6), [(1, 0, 2, 5)], [])])
  other = make_batch([(noise[:, ::-1], (7, 6), [(2, 0, 3, 5)], [])])
  a = prepare(one, jnp.array([False]))
  b = prepare(other, jnp.array([True]))
  assert_allclose(a.images, b.images, atol=1e-4)
  assert_allclose(a.gt_boxes, b.gt_boxes, atol=1e-5)


def test_prepare_inputs_ignores_pixels_outside_the_source(ramp):
  other = np.array(ramp.images)
  other[0, 2:] = 0
  other[0, :, 3:] = 255
  flips = jnp.array([False])
  assert_array_equal(
      prepare(ramp, flips).images,
      prepare(ramp._replace(images=other), flips).images,
  )


def test_prepare_inputs_treats_rows_apart(ramp, key):
  noise = np.asarray(jax.random.randint(key, (5, 6, 3), 0, 256), np.uint8)
  other = make_batch([(noise, (8, 7), [(0, 1, 2, 3)], [(1, 1), (2, 2)])])
  both = jax.tree.map(lambda x, y: np.concatenate([x, y]), ramp, other)
  together = prepare(both, jnp.array([True, False]))
  alone = prepare(other, jnp.array([False]))
  for a, b in zip(
      jax.tree.leaves(jax.tree.map(lambda x: x[1:], together)),
      jax.tree.leaves(alone),
      strict=True,
  ):
    assert_allclose(a, b, atol=1e-5)


def test_prepare_inputs_leaves_the_size_of_an_image_that_fits_alone(key):
  noise = np.asarray(jax.random.randint(key, (6, 6, 3), 0, 256), np.uint8)
  batch = make_batch([(noise, (6, 6), [], [])])
  pixels = prepare(batch, jnp.array([False])).images[0, :6, :6]
  assert_allclose(
      pixels, (noise - np.array([10.0, 20, 30])) / [1, 2, 4], atol=1e-4
  )


@pytest.mark.parametrize(('probability', 'expected'), [(0.0, 0), (1.0, 8)])
def test_draw_flips_knows_never_and_always(key, probability, expected):
  flips = draw_flips(jax.random.split(key, 8), probability=probability)
  assert int(flips.sum()) == expected


def test_draw_flips_depends_on_the_key_of_the_row_alone(key):
  keys = jax.random.split(key, 64)
  flips = draw_flips(keys, probability=0.5)
  assert_array_equal(flips[::-1], draw_flips(keys[::-1], probability=0.5))
  assert_array_equal(flips[:5], draw_flips(keys[:5], probability=0.5))
  # 64 fair coins: 32 heads, four standard deviations are 16.
  assert 16 <= int(flips.sum()) <= 48
