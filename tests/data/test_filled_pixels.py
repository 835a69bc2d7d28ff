"""Tests of data/filled_pixels.py: the counts are those of filled masks."""

import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax.data import filled_pixels, outlines


def drawn_objects(rng, count):
  """Draws outlines of all kinds in images of all sizes.

  Returns:
    The arguments of `have_pixels`, and the number of pixels of each mask that
    `fill_outline` makes.
  """
  sizes = rng.integers(1, 40, (count, 2))
  shapes, areas = [], []
  for i, (height, width) in enumerate(sizes.tolist()):
    match i % 4:
      case 0:
        polygons = []
      case 1:
        mask = rng.random((height, width)) < rng.choice([0.02, 0.5])
        shapes.append(outlines.mask_to_outline(mask))
        areas.append(mask.sum())
        continue
      case _:
        # Polygons cross themselves and each other, and leave the image.
        polygons = [
          rng.normal(size=2 * rng.integers(3, 8)) * rng.choice([0.3, 3, 30])
          + rng.uniform(-5, 40)
          for _ in range(rng.integers(1, 4))
        ]
        if rng.random() < 0.5:
          # Corners at the centres and at the edges of pixels.
          polygons = [np.round(2 * polygon) / 2 for polygon in polygons]
    shape = outlines.polygons_to_outline([p.tolist() for p in polygons])
    shapes.append(shape)
    areas.append(outlines.fill_outline(*shape, height, width).sum())
  starts = np.cumsum([0, *(len(parts) for _, parts in shapes)])
  vertices = np.concatenate([v for v, _ in shapes])
  parts = np.concatenate([p for _, p in shapes])
  heights, widths = sizes.T.astype(np.int32)
  return (starts, vertices, parts, heights, widths), np.array(areas)


@pytest.mark.parametrize('limit', [50, 1 << 21])
def test_pixels_are_counted_as_they_are_filled(monkeypatch, limit):
  # Small limits split the objects into many groups.
  monkeypatch.setattr(filled_pixels, '_MAX_CROSSINGS', limit)
  monkeypatch.setattr(filled_pixels, '_BLOCK', min(limit, 1 << 14))
  rng = np.random.default_rng(0)
  arguments, areas = drawn_objects(rng, 400)
  assert 20 < (areas == 0).sum() < 200
  everything = np.arange(400)
  assert_array_equal(filled_pixels.filled_areas(*arguments, everything), areas)
  some = np.flatnonzero(rng.random(400) < 0.3)
  assert_array_equal(filled_pixels.filled_areas(*arguments, some), areas[some])
  assert_array_equal(filled_pixels.have_pixels(*arguments), areas > 0)


def test_filled_area_by_hand():
  # Two overlapping squares of 4 x 4 pixels, one half outside of the image.
  square = [0, 0, 4, 0, 4, 4, 0, 4]
  moved = [2, 2, 6, 2, 6, 6, 2, 6]
  outline = outlines.polygons_to_outline([square, moved])
  assert filled_pixels.filled_area(*outline, 10, 10) == 16 + 16 - 4
  assert filled_pixels.filled_area(*outline, 4, 4) == 16
  # A bow tie, whose area by the shoelace formula is 0.
  tie = outlines.polygons_to_outline([[0, 0, 8, 8, 8, 0, 0, 8]])
  assert filled_pixels.filled_area(*tie, 10, 10) == 32
  # A line between two rows of centres.
  line = outlines.polygons_to_outline([[0, 1, 9, 1, 9, 1.4, 0, 1.4]])
  assert filled_pixels.filled_area(*line, 10, 10) == 0
  assert filled_pixels.filled_area(outline[0][:0], outline[1][:0], 9, 9) == 0


def test_an_outline_that_is_too_long_is_not_filled():
  # A zigzag that crosses each of 100,000 rows 60 times.
  height, width = 100_000, 200
  x = np.arange(60)
  zigzag = np.stack([x * 3.0, np.where(x % 2, height, 0)], axis=1)
  outline = outlines.polygons_to_outline([zigzag.ravel().tolist()])
  arguments = *outline, height, width
  unknown = filled_pixels.UNKNOWN_AREA
  assert filled_pixels.filled_area(*arguments) == unknown
  # Its neighbours are filled, and it counts as an object with a mask.
  small = outlines.polygons_to_outline([[0, 0, 4, 0, 4, 4, 0, 4]])
  lengths = [len(small[1]), len(outline[1]), len(small[1])]
  arguments = (
    np.cumsum([0, *lengths]),
    np.concatenate([small[0], outline[0], small[0]]),
    np.concatenate([small[1], outline[1], small[1]]),
    np.full(3, height),
    np.full(3, width),
  )
  areas = filled_pixels.filled_areas(*arguments, np.arange(3))
  assert areas.tolist() == [16, unknown, 16]
  assert filled_pixels.have_pixels(*arguments).all()
