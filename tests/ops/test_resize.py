"""Tests of resizing: against a loop and PIL; padding has no effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
from PIL import Image
import pytest

from maskrcnn_jax.data import canvases
from maskrcnn_jax.ops import resize as ops

resize = jax.jit(ops.resize_image, static_argnames=('padded_size', 'antialias'))
resize_weights = jax.jit(
  ops.resize_weights,
  static_argnames=('source_length', 'target_length', 'antialias'),
)
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


def test_resize_weights_by_hand():
  # Two pixels become four. In pixels of the source, the new centres are at
  # 0.25, 0.75, 1.25 and 1.75, the old ones at 0.5 and 1.5. The last row is
  # padding.
  expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1], [0, 0]]
  for antialias in (False, True):
    weights = resize_weights(
      jnp.array(2),
      jnp.array(4),
      source_length=2,
      target_length=5,
      antialias=antialias,
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_resize_weights_of_shrinking_by_hand():
  # Six pixels become two. In pixels of the source, their centres are at 1.5 and
  # 4.5.
  weights = [
    resize_weights(
      jnp.array(6),
      jnp.array(2),
      source_length=7,
      target_length=2,
      antialias=antialias,
    )
    for antialias in (False, True)
  ]
  # Without antialiasing, the samples are pixels 1 and 4, whose centres these
  # are.
  np.testing.assert_array_equal(
    weights[0], [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]]
  )
  # With antialiasing, the weights are a triangle of half-width 3: (2, 3, 2, 1)
  # / 3 from pixel 0 on, with the sum 8 / 3.
  np.testing.assert_allclose(
    weights[1] * 8,
    [[2, 3, 2, 1, 0, 0, 0], [0, 0, 1, 2, 3, 2, 0]],
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_weights_of_a_real_pixel_sum_to_one(
  source_size, image_size, antialias
):
  for axis in (0, 1):
    weights = resize_weights(
      jnp.array(source_size[axis]),
      jnp.array(image_size[axis]),
      source_length=CANVAS[axis],
      target_length=PADDED[axis],
      antialias=antialias,
    )
    real = np.arange(PADDED[axis]) < image_size[axis]
    np.testing.assert_allclose(weights.sum(axis=1), real, rtol=1e-6)
    assert (weights >= 0).all()


@pytest.mark.parametrize('antialias', [False, True])
def test_resize_image_to_the_same_size_is_the_identity(antialias):
  image = _image((17, 23))
  resized = _resize(image, (17, 23), (17, 23), antialias=antialias)
  np.testing.assert_array_equal(resized[:24, :32], image)
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
  np.testing.assert_allclose(
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
  np.testing.assert_allclose(resized[:height, :width], expected, atol=1e-2)
  assert not resized[height:].any() and not resized[:, width:].any()


@pytest.mark.parametrize('source_size, image_size', SIZES)
def test_resize_image_antialiased_agrees_with_pil(source_size, image_size):
  image = _image(source_size)
  resized = _resize(image, source_size, image_size, antialias=True)
  height, width = image_size
  source = Image.fromarray(image[: source_size[0], : source_size[1]])
  expected = np.asarray(
    source.resize((width, height), Image.Resampling.BILINEAR), np.float64
  )
  # PIL rounds to whole grey values after each axis.
  assert np.abs(resized[:height, :width] - expected).max() <= 1.01


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
  np.testing.assert_array_equal(*results)


def test_resize_image_stays_in_the_range_of_its_pixels():
  for outside in (0, 255):
    image = np.full(CANVAS + (3,), outside, np.uint8)
    resized = _resize(image, (23, 31), (37, 19), antialias=True)
    np.testing.assert_allclose(resized[:37, :19], outside, atol=1e-3)


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
  np.testing.assert_allclose(cut, expected, atol=1e-3)


@pytest.mark.parametrize('rule', ['nearest', 'legacy'])
def test_resized_size_equals_the_computation_on_the_host(rule):
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 3000, (2000, 2))
  # Some of these sizes come out halfway between two integers.
  sizes[:100, 1] = sizes[:100, 0] * 3 // 2
  short_sides = rng.integers(200, 900, len(sizes))
  found = jax.jit(
    jax.vmap(functools.partial(ops.resized_size, long_side=1333, rule=rule))
  )(jnp.asarray(sizes), jnp.asarray(short_sides))
  expected = [
    canvases.resized_size(h, w, short_side=short, long_side=1333, rule=rule)
    for (h, w), short in zip(sizes.tolist(), short_sides.tolist(), strict=True)
  ]
  np.testing.assert_array_equal(found, expected)


def test_resized_size_down_is_at_most_a_pixel_above_the_host():
  # The device divides integers exactly. On the host, 49 * (800 / 49) may be
  # 799.99..., as in torchvision.
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 3000, (2000, 2))
  found = np.asarray(
    jax.vmap(
      lambda size: ops.resized_size(
        size, jnp.int32(800), long_side=1333, rule='down'
      )
    )(jnp.asarray(sizes))
  )
  expected = np.array(
    [
      canvases.resized_size(h, w, short_side=800, long_side=1333, rule='down')
      for h, w in sizes.tolist()
    ]
  )
  assert set(np.unique(found - expected)) <= {0, 1}
  assert (found == expected).mean() > 0.9


def test_resized_size_by_hand():
  for size, short, expected in [
    ((480, 640), 800, (800, 1067)),
    ((480, 640), 640, (640, 853)),
    ((400, 1000), 800, (533, 1333)),
    ((1000, 400), 800, (1333, 533)),
    ((1, 5000), 800, (1, 1333)),
    ((500, 500), 640, (640, 640)),
  ]:
    found = ops.resized_size(jnp.array(size), jnp.int32(short), long_side=1333)
    assert tuple(found.tolist()) == expected
