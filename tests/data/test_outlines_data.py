"""Tests of data/outlines.py."""

import numpy as np
from numpy.testing import assert_array_equal
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import outlines


def fill(vertices, parts, height, width):
  """Returns the mask of an outline, computed pixel by pixel as the oracle.

  The even-odd rule decides which pixel centres are inside a part. The mask is
  the union of the parts.
  """
  mask = np.zeros((height, width), bool)
  for part in range(parts.max(initial=-1) + 1):
    crossings = np.zeros((height, width), int)
    for i in np.flatnonzero(parts == part):
      (xa, ya), (xb, yb) = vertices[i].tolist(), vertices[i + 1].tolist()
      for y in range(height):
        if (ya <= y + 0.5) != (yb <= y + 0.5):
          x = xa + (y + 0.5 - ya) / (yb - ya) * (xb - xa)
          crossings[y] += np.arange(width) + 0.5 > x
    mask |= crossings % 2 == 1
  return mask


def random_mask(seed, height=9, width=12):
  rng = np.random.default_rng(seed)
  return rng.random((height, width)) < rng.uniform(0.02, 0.98)


def encode(mask):
  return mask_api.encode(np.asfortranarray(mask, np.uint8))


def uncompressed(mask):
  flat = mask.T.reshape(-1)
  edges = np.flatnonzero(np.diff(flat, prepend=False, append=not flat[-1]))
  return np.diff(edges, prepend=0).tolist()


def test_polygons_to_coco_by_hand():
  # A triangle of 20 x 30 pixels and a square of 8 x 8 pixels.
  triangle = [10.0, 10.0, 30.0, 10.0, 30.0, 40.0]
  polygons = [triangle, [0.0, 0.0, 0.0, 8.0, 8.0, 8.0, 8.0, 0.0]]
  assert outlines.polygons_to_coco(polygons) == {
    'segmentation': polygons,
    'bbox': [0, 0, 30, 40],
    'area': 20 * 30 / 2 + 64,
  }
  corners = np.reshape(triangle, (-1, 2))
  assert outlines.polygon_area(corners) == 300


@pytest.mark.parametrize('polygon', [[], [1.0], [1.0, 2.0, 3.0]])
def test_polygons_to_coco_refuses_half_corners_and_none(polygon):
  with pytest.raises(ValueError):
    outlines.polygons_to_coco([polygon])


def test_polygons_to_outline_closes_each_polygon_and_numbers_it():
  vertices, parts = outlines.polygons_to_outline(
    [[0, 0, 4, 0, 4, 4], [1, 1, 2, 1, 2, 2, 1, 2.5]]
  )
  assert vertices.dtype == np.float32
  assert parts.dtype == np.int16
  assert_array_equal(parts, [0, 0, 0, -1, 1, 1, 1, 1, -1])
  assert_array_equal(
    vertices,
    [
      *([0, 0], [4, 0], [4, 4], [0, 0]),
      *([1, 1], [2, 1], [2, 2], [1, 2.5], [1, 1]),
    ],
  )


def test_polygons_to_outline_fills_to_the_union_of_the_polygons():
  # Two squares of 4 pixels a side that overlap in 2 x 2 pixels.
  vertices, parts = outlines.polygons_to_outline(
    [[0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 6, 2, 6, 6, 2, 6]]
  )
  mask = fill(vertices, parts, 8, 8)
  assert mask.sum() == 16 + 16 - 4
  assert mask[2:4, 2:4].all()


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf, 1e300, 10**400])
def test_polygons_to_outline_refuses_numbers_that_are_not_finite(bad):
  with pytest.raises(errors.InputError, match='A04: a polygon coordinate'):
    outlines.polygons_to_outline([[0, 0, 4, 0, bad, 4]])


@pytest.mark.parametrize('bad', ['4', None, True, [4, 4]])
def test_polygons_to_outline_refuses_what_is_no_number(bad):
  with pytest.raises(errors.InputError, match='A04: .* not a number'):
    outlines.polygons_to_outline([[0, 0, 4, 0, bad, 4]])


def test_mask_to_outline_of_a_rectangle_is_its_two_vertical_sides():
  mask = np.zeros((6, 8), bool)
  mask[1:4, 2:7] = True
  vertices, parts = outlines.mask_to_outline(mask)
  assert_array_equal(vertices, [[2, 1], [2, 4], [7, 1], [7, 4]])
  assert_array_equal(parts, [0, -1, 0, -1])


@pytest.mark.parametrize('seed', range(30))
def test_rle_to_outline_gives_what_the_mask_gives(seed):
  rng = np.random.default_rng(seed)
  mask = random_mask(seed, *rng.integers(1, 12, 2).tolist())
  counts = uncompressed(mask)
  # Runs of length 0 are allowed anywhere.
  place = rng.integers(0, len(counts) + 1)
  counts = np.insert(counts, place, [0, 0]).astype(np.int64)
  expected = outlines.mask_to_outline(mask)
  for a, b in zip(
    outlines.rle_to_outline(counts, len(mask)), expected, strict=True
  ):
    assert_array_equal(a, b, strict=True)


def test_rle_to_outline_takes_the_time_of_the_runs():
  # The mask is an image of 10^14 pixels without its first column.
  counts = np.array([10**7, 10**14 - 10**7])
  vertices, parts = outlines.rle_to_outline(counts, 10**7)
  assert_array_equal(vertices, [[1, 0], [1, 10**7], [10**7, 0], [10**7, 10**7]])
  assert_array_equal(parts, [0, -1, 0, -1])


@pytest.mark.parametrize('seed', range(20))
def test_mask_to_outline_fills_back_to_the_mask(seed):
  mask = random_mask(seed)
  vertices, parts = outlines.mask_to_outline(mask)
  assert vertices.dtype == np.float32
  assert parts.dtype == np.int16
  assert_array_equal(fill(vertices, parts, *mask.shape), mask)


@pytest.mark.parametrize('shape', [(1, 1), (1, 7), (7, 1), (4, 5)])
def test_mask_to_outline_of_full_and_empty_masks(shape):
  vertices, parts = outlines.mask_to_outline(np.ones(shape, bool))
  assert fill(vertices, parts, *shape).all()
  vertices, parts = outlines.mask_to_outline(np.zeros(shape, bool))
  assert vertices.shape == (0, 2)
  assert parts.shape == (0,)


def decode_rle(segmentation, height, width):
  """Returns the mask of a COCO RLE: 1 inside and 0 outside, uint8."""
  counts = outlines.rle_counts(segmentation, height, width)
  inside = (np.arange(len(counts)) % 2).astype(np.uint8)
  return np.repeat(inside, counts).reshape(width, height).T


@pytest.mark.parametrize('seed', range(20))
def test_rle_counts_agrees_with_pycocotools(seed):
  mask = random_mask(seed, height=37 + seed, width=53)
  rle = encode(mask)
  size = mask.shape
  text = rle | {'counts': rle['counts'].decode()}
  plain = {'size': list(size), 'counts': uncompressed(mask)}
  for segmentation in (rle, text, plain):
    decoded = decode_rle(segmentation, *size)
    assert decoded.dtype == np.uint8
    assert_array_equal(decoded, mask)


def test_rle_counts_reads_long_runs():
  # The runs need more than 5, 10, 15 and 20 bits, and their differences have
  # both signs.
  mask = np.zeros((2000, 3000), bool)
  mask[3:1990, 7] = mask[:, 1000:2500] = mask[5, 2600] = True
  mask[:, 2700:] = True
  assert_array_equal(decode_rle(encode(mask), 2000, 3000), mask)


def test_rle_counts_of_full_and_empty_masks():
  for value in (0, 1):
    mask = np.full((5, 6), value, np.uint8)
    assert_array_equal(decode_rle(encode(mask), 5, 6), mask)


@pytest.mark.parametrize(
  ('segmentation', 'complaint'),
  [
    ({'size': [5, 4], 'counts': [20]}, r'size \[5, 4\], but .* \[4, 5\]'),
    ({'size': None, 'counts': [20]}, 'size None'),
    ({'counts': [20]}, 'size None'),
    ({'size': [4, 5], 'counts': [10, 9]}, 'sum to 19, not to the 20'),
    ({'size': [4, 5], 'counts': []}, 'sum to 0'),
    ({'size': [4, 5], 'counts': ''}, 'sum to 0'),
    ({'size': [4, 5], 'counts': [30, -10]}, 'more than the 20'),
    ({'size': [4, 5], 'counts': [15, -5, 10]}, 'negative'),
    ({'size': [4, 5], 'counts': [2**70]}, 'more than the 20'),
    ({'size': [4, 5], 'counts': [10.0, 10]}, 'no integers'),
    ({'size': [4, 5], 'counts': [True, 19]}, 'no integers'),
    ({'size': [4, 5], 'counts': [float('nan')]}, 'no integers'),
    ({'size': [4, 5], 'counts': ['20']}, 'no integers'),
    ({'size': [4, 5], 'counts': 20}, 'must be a string'),
    ({'size': [4, 5]}, 'counts None'),
    ({'size': [4, 5], 'counts': 'T'}, 'damaged'),
    ({'size': [4, 5], 'counts': '\u00e4'}, 'damaged'),
    ({'size': [4, 5], 'counts': '\ud800'}, 'damaged'),
    ({'size': [4, 5], 'counts': '!'}, 'damaged'),
    ({'size': [4, 5], 'counts': 'ooooooooooooooo0'}, '35 bits'),
    ({'size': [4, 5], 'counts': 'O'}, 'negative'),
  ],
)
def test_rle_counts_refuses_what_does_not_fill_the_image(
  segmentation, complaint
):
  with pytest.raises(errors.InputError, match=f'A09: .*{complaint}'):
    decode_rle(segmentation, 4, 5)
