"""Tests of pasting masks: against the definition, SciPy and pycocotools."""

import numpy as np
from pycocotools import mask as mask_api
import pytest
from scipy import ndimage

from maskrcnn_jax import mask_paste

# The decoder of pycocotools 2.0.11 has an `__array__` method from before NumPy
# 2, which warns.
pytestmark = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)

# (x1, y1, x2, y2) in pixels of an image of 24 rows and 31 columns.
BOXES = np.array(
  [
    [3.2, 4.7, 20.9, 18.1],
    [-6.5, -3.25, 9.75, 11.5],  # over the top left corner
    [25.3, 20.1, 44.0, 39.9],  # over the bottom right corner
    [-10, -10, 50, 50],  # larger than the image
    [7, 9, 8, 10],  # one pixel
    [7.4, 9.4, 7.6, 9.6],  # around one pixel centre
    [7.6, 9.6, 8.4, 10.4],  # between pixel centres
    [40, 4, 50, 9],  # outside
    [-6, -5, 37, 29],  # covers the image: runs go on in the next column
  ],
  np.float32,
)
HEIGHT, WIDTH = 24, 31


def _paste(masks, boxes, *, height=HEIGHT, width=WIDTH, threshold=0.5):
  rles = mask_paste.paste_masks(
    masks, boxes, height=height, width=width, threshold=threshold
  )
  return np.array([mask_api.decode(rle) for rle in rles]).astype(bool)


def _samples_by_definition(mask, box):
  """Returns the bilinear sample of each pixel of the image, one at a time.

  A sample is a weighted sum of the four cells around the centre of the pixel.
  Cells outside the mask are zero.
  """
  side = len(mask)
  x1, y1, x2, y2 = (float(v) for v in box)
  out = np.zeros((HEIGHT, WIDTH))
  for y in range(HEIGHT):
    for x in range(WIDTH):
      u = (x + 0.5 - x1) / (x2 - x1) * side - 0.5
      v = (y + 0.5 - y1) / (y2 - y1) * side - 0.5
      for j in (np.floor(u), np.floor(u) + 1):
        for i in (np.floor(v), np.floor(v) + 1):
          if 0 <= i < side and 0 <= j < side:
            weight = (1 - abs(u - j)) * (1 - abs(v - i))
            out[y, x] += weight * mask[int(i), int(j)]
  return out


def _samples_by_scipy(mask, box):
  side = len(mask)
  x1, y1, x2, y2 = box.astype(np.float64)
  x = (np.arange(WIDTH) + 0.5 - x1) / (x2 - x1) * side - 0.5
  y = (np.arange(HEIGHT) + 0.5 - y1) / (y2 - y1) * side - 0.5
  rows, columns = np.meshgrid(y + 1, x + 1, indexing='ij')
  padded = np.pad(mask.astype(np.float64), 1)
  return ndimage.map_coordinates(
    padded, [rows, columns], order=1, mode='constant'
  )


@pytest.mark.parametrize('samples', [_samples_by_definition, _samples_by_scipy])
@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.8])
def test_paste_masks_agrees_with_other_samples(samples, threshold):
  rng = np.random.default_rng(0)
  masks = rng.uniform(size=(len(BOXES), 5, 5)).astype(np.float32)
  pasted = _paste(masks, BOXES, threshold=threshold)
  for mask, box, ours in zip(masks, BOXES, pasted, strict=True):
    expected = samples(mask, box)
    # No sample is so close to the threshold that rounding would decide.
    assert np.abs(expected - threshold).min() > 1e-6
    np.testing.assert_array_equal(ours, expected >= threshold)


def test_paste_masks_of_a_full_mask_fills_the_pixels_whose_centres_it_covers():
  # Columns 2..5 and rows 1..3 have their centres in (1.75, 6.25) x (0.6, 4.4).
  masks = np.ones((1, 28, 28), np.float32)
  pasted = _paste(masks, np.array([[1.75, 0.6, 6.25, 4.4]], np.float32))
  expected = np.zeros((HEIGHT, WIDTH), bool)
  expected[1:4, 2:6] = True
  np.testing.assert_array_equal(pasted[0], expected)


def test_paste_masks_of_a_full_mask_in_a_pixel_box_is_that_pixel():
  pasted = _paste(np.ones((1, 28, 28), np.float32), BOXES[4:5])
  assert np.argwhere(pasted[0]).tolist() == [[9, 7]]


def test_paste_masks_keeps_the_threshold_itself():
  # A cell is as large as a pixel, so each sample equals its cell.
  mask = np.full((1, 2, 2), 0.5, np.float32)
  pasted = _paste(mask, np.array([[0, 0, 2, 2]], np.float32))
  assert pasted[0].sum() == 4 and pasted[0][:2, :2].all()


def test_paste_masks_gives_the_run_lengths_of_pycocotools(monkeypatch):
  monkeypatch.setattr(mask_paste, 'STRIP_PIXELS', 100)  # several strips
  rng = np.random.default_rng(1)
  masks = rng.uniform(size=(len(BOXES), 6, 6)).astype(np.float32)
  masks[-1] = 1
  rles = mask_paste.paste_masks(masks, BOXES, height=HEIGHT, width=WIDTH)
  for rle in rles:
    assert rle['size'] == [HEIGHT, WIDTH]
    again = mask_api.encode(np.asfortranarray(mask_api.decode(rle)))
    assert rle['counts'] == again['counts'].decode()
  assert mask_api.area(rles[-1]) == HEIGHT * WIDTH


@pytest.mark.parametrize(
  'box', [[5, 5, 5, 9], [5, 5, 9, 5], [9, 9, 5, 5], [0, 0, 0, 0]]
)
def test_paste_masks_of_a_box_without_area_is_empty(box):
  rles = mask_paste.paste_masks(
    np.ones((1, 4, 4), np.float32),
    np.array([box], np.float32),
    height=HEIGHT,
    width=WIDTH,
  )
  assert rles[0]['size'] == [HEIGHT, WIDTH]
  assert mask_api.area(rles[0]) == 0


def test_paste_masks_of_no_detections_is_empty():
  masks, boxes = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
  assert mask_paste.paste_masks(masks, boxes, height=4, width=5) == []


def test_paste_masks_handles_an_image_of_one_pixel():
  masks = np.ones((1, 28, 28), np.float32)
  pasted = _paste(masks, BOXES[3:4], height=1, width=1)
  assert pasted.tolist() == [[[True]]]


@pytest.mark.parametrize('broken', ['mask', 'box'])
def test_paste_masks_names_the_detection_that_is_not_finite(broken):
  masks, boxes = np.ones((3, 4, 4), np.float32), BOXES[:3].copy()
  (masks if broken == 'mask' else boxes)[2, 1] = np.nan
  with pytest.raises(ValueError, match='detection 2 is not finite'):
    mask_paste.paste_masks(masks, boxes, height=HEIGHT, width=WIDTH)


def test_paste_masks_refuses_a_threshold_of_zero():
  with pytest.raises(ValueError, match='threshold'):
    _paste(np.ones((1, 4, 4), np.float32), BOXES[:1], threshold=0.0)
