"""Tests of making large pictures smaller on the host."""

import numpy as np
from numpy.testing import assert_array_equal
import oracles
from PIL import Image
import pytest

from maskrcnn_jax.data import host_resize


def picture(height, width):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize('size', [(13, 7), (40, 50), (1, 9), (31, 17)])
def test_resize_antialiased_equals_pil(size):
  pixels = picture(31, 23)
  expected = Image.fromarray(pixels).resize(
    (size[1], 31), Image.Resampling.BILINEAR
  )
  expected = expected.resize(size[::-1], Image.Resampling.BILINEAR)
  found = host_resize.resize(pixels, size, antialias=True)
  assert_array_equal(found, expected)


@pytest.mark.parametrize('size', [(13, 7), (40, 50), (1, 9), (31, 17)])
def test_resize_without_antialias_equals_the_definition(size):
  pixels = picture(31, 23)
  found = host_resize.resize(pixels, size, antialias=False)
  expected = oracles.resize_bilinear(pixels.astype(float), *size)
  # Rounding, and float32 coordinates.
  assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_pick_pixels_by_hand():
  # Seven rows become two. Their centres are at 1.75 and 5.25, so the old rows
  # with the centres 1.5 and 2.5, and 4.5 and 5.5 surround them. Three columns
  # become three.
  pixels = picture(7, 3)
  rows = host_resize.pick_pixels(pixels, 2, axis=0)
  assert_array_equal(rows, pixels[[1, 2, 4, 5]])
  columns = host_resize.pick_pixels(pixels, 3, axis=1)
  assert_array_equal(columns, pixels[:, [0, 1, 1, 2, 2, 2]])


def test_fit_array_leaves_a_picture_alone_that_fits():
  pixels = picture(31, 23)
  for antialias in (False, True):
    found = host_resize.fit_array(
      pixels,
      source_size=(31, 23),
      image_size=(5, 4),
      array_size=(32, 32),
      antialias=antialias,
    )
    assert found is pixels
