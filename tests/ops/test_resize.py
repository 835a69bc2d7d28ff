"""Tests of resizing: against a loop and PIL; padding has no effect."""

from fractions import Fraction
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import oracles
from PIL import Image
import pytest

from maskrcnn_jax.data import host_resize
from maskrcnn_jax.ops import resize as ops

resize = jax.jit(ops.resize_image, static_argnames=('padded_size', 'antialias'))
CANVAS = (24, 32)
PADDED = (40, 48)

# (height, width) of the source, then of the result.
SIZES = [
  ((24, 32), (24, 32)),  # the size stays
  ((24, 32), (40, 48)),  # source and result have no padding
  ((17, 23), (31, 41)),  # odd sizes, enlarged
  ((23, 31), (11, 13)),  # odd sizes, reduced
  ((23, 9), (8, 47)),  # reduced along y, enlarged along x
  ((1, 1), (7, 5)),
  ((24, 32), (1, 1)),
  ((24, 1), (24, 20)),
]


def weights_of(source, target, source_length, target_length, *, antialias=True):
  """Returns the weights of old pixels (columns) in new pixels (rows)."""
  read_axis = ops.average_weights if antialias else ops.find_neighbours
  found = read_axis(
    jnp.array(source),
    jnp.array(target),
    source_length=source_length,
    target_length=target_length,
  )
  if antialias:
    return np.asarray(found)
  weights = np.zeros((target_length, source_length))
  rows = np.arange(target_length)
  for column, weight in zip(found[:2], found[2:], strict=True):
    weights[rows, np.asarray(column)] += np.asarray(weight)
  return weights


def _image(source_size, *, outside=0, seed=0):
  """Returns random pixels in the top left corner of a canvas.

  The rest of the canvas has the value `outside`.
  """
  height, width = source_size
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
  canvas = np.full(CANVAS + (3,), outside, np.uint8)
  canvas[:height, :width] = pixels
  return canvas


def _resize(
  image,
  source_size,
  image_size,
  *,
  antialias=False,
  flip=False,
  offset=(0, 0),
):
  return np.asarray(
    resize(
      jnp.asarray(image),
      jnp.array(source_size),
      jnp.array(image_size),
      padded_size=PADDED,
      antialias=antialias,
      flip=jnp.array(flip),
      offset=jnp.array(offset),
    )
  )


def test_average_weights_by_hand():
  # Two pixels become four. In pixels of the source, the new centres are at
  # 0.25, 0.75, 1.25 and 1.75, the old ones at 0.5 and 1.5. The last row is
  # padding.
  expected = np.array([[4, 0], [3, 1], [1, 3], [0, 4], [0, 0]])
  assert_array_equal(weights_of(2, 4, 2, 5), expected * 2**20)
  assert_allclose(weights_of(2, 4, 2, 5, antialias=False), expected / 4)


def test_weights_of_shrinking_by_hand():
  # Six pixels become two. In pixels of the source, their centres are at 1.5 and
  # 4.5. Without antialiasing, the samples are pixels 1 and 4, whose centres
  # these are.
  assert_array_equal(
    weights_of(6, 2, 7, 2, antialias=False),
    [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]],
  )
  # With antialiasing, the weights are a triangle of half-width 3: (2, 3, 2, 1)
  # / 3 from pixel 0 on, with the sum 8 / 3.
  assert_array_equal(
    weights_of(6, 2, 7, 2),
    np.array([[2, 3, 2, 1, 0, 0, 0], [0, 0, 1, 2, 3, 2, 0]]) * 2**19,
  )


@pytest.mark.parametrize('source, target', [(97, 31), (640, 427), (2666, 9)])
def test_average_weights_are_the_rounded_fractions(source, target):
  found = weights_of(source, target, source + 3, target + 2)
  radius = Fraction(max(source, target), target)
  expected = np.zeros((target + 2, source + 3), int)
  for i in range(0, target, 8):
    center = Fraction((2 * i + 1) * source, 2 * target)
    triangle = [
      max(1 - abs(j + Fraction(1, 2) - center) / radius, 0)
      for j in range(source)
    ]
    total = sum(triangle)
    expected[i, :source] = [
      math.floor(2**22 * x / total + Fraction(1, 2)) for x in triangle
    ]
  assert_array_equal(found[:target:8], expected[:target:8])
  assert not found[target:].any()


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_weights_of_a_real_pixel_sum_to_one(source_size, image_size, antialias):
  for axis in (0, 1):
    weights = weights_of(
      source_size[axis],
      image_size[axis],
      CANVAS[axis],
      PADDED[axis],
      antialias=antialias,
    )
    real = np.arange(PADDED[axis]) < image_size[axis]
    total = weights.sum(axis=1) / (2**22 if antialias else 1)
    assert_allclose(total, real, rtol=1e-5)
    assert (weights >= 0).all()


@pytest.mark.parametrize('antialias', [False, True])
def test_resize_image_to_the_same_size_is_the_identity(antialias):
  image = _image((17, 23))
  resized = _resize(image, (17, 23), (17, 23), antialias=antialias)
  assert_array_equal(resized[:24, :32], image)
  assert not resized[17:].any() and not resized[:, 23:].any()


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_image_flips_left_and_right(source_size, image_size, antialias):
  image = _image(source_size)
  height, width = image_size
  plain = _resize(image, source_size, image_size, antialias=antialias)
  flipped = _resize(
    image, source_size, image_size, antialias=antialias, flip=True
  )
  assert_allclose(
    flipped[:height, :width], plain[:height, :width][:, ::-1], atol=1e-2
  )
  assert not flipped[height:].any() and not flipped[:, width:].any()


@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_image_agrees_with_the_definition(source_size, image_size):
  image = _image(source_size)
  resized = _resize(image, source_size, image_size)
  height, width = image_size
  expected = oracles.resize_bilinear(
    image[: source_size[0], : source_size[1]].astype(np.float64), height, width
  )
  assert_allclose(resized[:height, :width], expected, atol=1e-2)
  assert not resized[height:].any() and not resized[:, width:].any()


def pil_resize(pixels, size):
  """Resizes columns first, as all versions of Pillow before 13 do."""
  wide = Image.fromarray(pixels).resize(
    (size[1], pixels.shape[0]), Image.Resampling.BILINEAR
  )
  return np.asarray(wide.resize(size[::-1], Image.Resampling.BILINEAR))


def test_the_order_of_the_axes_is_that_of_pillow_for_photographs():
  pixels = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
  for size in ((48, 32), (120, 80), (70, 30)):
    once = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
    assert_array_equal(once, pil_resize(pixels, size))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_image_antialiased_equals_pil(source_size, image_size, flip):
  image = _image(source_size)
  resized = _resize(image, source_size, image_size, antialias=True, flip=flip)
  height, width = image_size
  expected = pil_resize(image[: source_size[0], : source_size[1]], image_size)
  if flip:
    expected = expected[:, ::-1]
  assert_array_equal(resized[:height, :width], expected)
  assert not resized[height:].any() and not resized[:, width:].any()


def test_resize_image_antialiased_equals_pil_for_many_sizes():
  # Up, down, both, sides of one pixel, and more than 64 old pixels for a new
  # one. Some pictures are black and white, whose averages are often near a
  # half.
  rng = np.random.default_rng(0)
  resize_large = jax.jit(
    functools.partial(ops.resize_image, padded_size=(192, 224), antialias=True)
  )
  for i in range(150):
    source_size = rng.integers(1, (257, 321))
    image_size = rng.integers(1, (193, 225))
    if i % 5 == 0:
      source_size[i % 2] = 1
    if i % 7 == 0:
      image_size[i % 2] = 1
    height, width = source_size
    image = np.zeros((256, 320, 3), np.uint8)
    pixels = rng.integers(0, 256, (height, width, 3))
    image[:height, :width] = pixels if i % 3 else 255 * (pixels > 127)
    found = np.asarray(
      resize_large(image, jnp.asarray(source_size), jnp.asarray(image_size))
    )
    expected = np.zeros((192, 224, 3), np.uint8)
    expected[: image_size[0], : image_size[1]] = pil_resize(
      image[:height, :width], tuple(image_size.tolist())
    )
    assert_array_equal(found, expected, f'{source_size} to {image_size}')


@pytest.mark.parametrize(
  'source_size, image_size',
  [
    ((480, 640), (320, 427)),
    ((427, 640), (800, 1199)),
    ((1200, 1600), (99, 7)),
  ],
)
def test_resize_image_antialiased_equals_pil_for_sizes_of_photographs(
  source_size, image_size
):
  image = np.random.default_rng(0).integers(0, 256, (*source_size, 3), np.uint8)
  found = resize(
    jnp.asarray(image),
    jnp.array(source_size),
    jnp.array(image_size),
    padded_size=image_size,
    antialias=True,
  )
  assert_array_equal(found, pil_resize(image, image_size))


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('offset', [(0, 0), (3, 5)])
def test_resize_image_of_the_pixels_that_are_used_equals_that_of_all(
  offset, flip
):
  # The second array is too short for 67 rows and 90 columns.
  pixels = np.random.default_rng(0).integers(0, 256, (67, 90, 3), np.uint8)
  image_size = (17, 23)
  picked = host_resize.fit_array(
    pixels,
    source_size=(67, 90),
    image_size=image_size,
    array_size=(40, 50),
    antialias=False,
  )
  assert picked.shape == (34, 46, 3)
  results = []
  for part, canvas in ((pixels, (67, 90)), (picked, (40, 50))):
    array = np.full((*canvas, 3), 9, np.uint8)
    array[: part.shape[0], : part.shape[1]] = part
    results.append(
      _resize(array, (67, 90), image_size, flip=flip, offset=offset)
    )
  assert_array_equal(*results)
  expected = oracles.resize_bilinear(pixels.astype(float), *image_size)
  if flip:
    expected = expected[:, ::-1]
  expected = expected[offset[0] :, offset[1] :]
  height, width = expected.shape[:2]
  assert_allclose(results[0][:height, :width], expected, atol=1e-2)
  assert not results[0][height:].any() and not results[0][:, width:].any()


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_image_ignores_pixels_outside_the_source(
  source_size, image_size, antialias, flip
):
  results = [
    _resize(
      _image(source_size, outside=outside),
      source_size,
      image_size,
      antialias=antialias,
      flip=flip,
    )
    for outside in (0, 255)
  ]
  assert_array_equal(*results)


def test_resize_image_stays_in_the_range_of_its_pixels():
  for outside in (0, 255):
    image = np.full(CANVAS + (3,), outside, np.uint8)
    resized = _resize(image, (23, 31), (37, 19), antialias=True)
    assert_allclose(resized[:37, :19], outside, atol=1e-3)


@pytest.mark.parametrize(
  'source_size, image_size',
  [((0, 0), (0, 0)), ((5, 5), (0, 0)), ((0, 0), (5, 5))],
)
def test_resize_image_of_an_empty_row_of_a_batch_is_zero(
  source_size, image_size
):
  for antialias in (False, True):
    assert not _resize(
      _image((24, 32)), source_size, image_size, antialias=antialias
    ).any()


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize('antialias', [False, True])
def test_resize_image_with_an_offset_crops_the_whole_result(antialias, flip):
  image = jnp.asarray(_image((17, 23)))
  arguments = dict(antialias=antialias, flip=flip)
  whole = np.asarray(
    ops.resize_image(
      image,
      jnp.array((17, 23)),
      jnp.array((61, 83)),
      padded_size=(64, 96),
      **arguments,
    )
  )
  cut = _resize(image, (17, 23), (61, 83), offset=(30, 50), **arguments)
  expected = np.zeros((*PADDED, 3))
  expected[: 61 - 30, : 83 - 50] = whole[30:61, 50:83]
  assert_allclose(cut, expected, atol=1e-3)
