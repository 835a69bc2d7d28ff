"""Pastes small masks into images as run lengths (RLE), on the host."""

from typing import Any

from jaxtyping import Float, Float32
import numpy as np
from pycocotools import mask as mask_api

# Number of pixels that are sampled at once, as a strip of columns. They take
# 4 MB as float32 and so stay in the CPU's cache.
STRIP_PIXELS = 1 << 20


def paste_masks(
  masks: Float32[np.ndarray, 'd m m'],
  boxes: Float32[np.ndarray, 'd 4'],
  *,
  height: int,
  width: int,
  threshold: float = 0.5,
  rule: str = 'sampled',
) -> list[dict[str, Any]]:
  """Writes each mask into its box of the image, as compressed run lengths.

  Rule 'sampled': The mask is stretched over the box, whose corners are not
  rounded. It is sampled bilinearly at the centre (x + 0.5, y + 0.5) of each
  pixel. Outside the mask, its value is zero.

  Rule 'resized': The mask gets a border of one cell of zeros, and the box grows
  by the same border. The corners of the box are truncated to integers. The mask
  is resized to the pixels from the first corner to the last, both included.

  Memory does not grow with the image, because neither full-size masks nor
  full-size samples are made.

  Args:
    masks: Probabilities of the cells of each mask; row 0 is the top of the box.
    boxes: Boxes of the masks, in pixels of the original image. They may reach
      out of the image. A box without an area gives an empty mask.
    height: Height of the original image, in pixels.
    width: Width of the original image, in pixels.
    threshold: A pixel belongs to the object if its probability is at least this
      (rule 'sampled') or more than this (rule 'resized'). It must be above 0.
    rule: 'sampled' or 'resized', as explained above.

  Returns:
    COCO RLE dictionaries with `size`, (height, width), and `counts`, a str.
    They equal the results of `pycocotools.mask.encode` for full-size masks.

  Raises:
    ValueError: If a mask or a box is not finite, or if the size, the threshold
      or the rule is not allowed.

  Source:
    'sampled': detectron2 `layers/mask_ops.py`, `paste_masks_in_image`:
    `grid_sample` with `align_corners=False`, then >= threshold. 'resized':
    torchvision `models/detection/roi_heads.py`, `paste_masks_in_image`, and
    maskrcnn-benchmark `modeling/roi_heads/mask_head/inference.py`, `Masker`:
    `interpolate` with `align_corners=False`, then > threshold.
    Differs: with a threshold below 0.5, an object may extend beyond its box by
    half a cell of the mask, as on detectron2's GPU path. detectron2's CPU path
    cuts the object off one pixel beyond the box.
  """
  if height < 1 or width < 1:
    raise ValueError(
      f'height ({height}) and width ({width}) of the image must be at least 1.'
    )
  if not threshold > 0:
    raise ValueError(
      f'threshold ({threshold}) must be above 0; otherwise all pixels '
      'outside the mask, whose samples are 0, would belong to the object.'
    )
  if rule not in _AXIS_WEIGHTS:
    raise ValueError(
      f'rule must be one of {", ".join(_AXIS_WEIGHTS)}, not {rule!r}.'
    )
  finite = np.isfinite(masks).all(axis=(1, 2)) & np.isfinite(boxes).all(axis=1)
  if not finite.all():
    raise ValueError(
      f'The mask or box of detection {int(np.argmin(finite))} is not finite: '
      'the weights or the input of the model contain nan or inf.'
    )
  return [
    _compress(
      _paste_runs(mask, box, height, width, threshold, rule), height, width
    )
    for mask, box in zip(masks, boxes, strict=True)
  ]


def _paste_runs(
  mask: np.ndarray,
  box: np.ndarray,
  height: int,
  width: int,
  threshold: float,
  rule: str,
) -> np.ndarray:
  """Finds where the runs of pixels of one object start and end.

  Args:
    mask: Probabilities of the cells of the mask, [m, m].
    box: (x1, y1, x2, y2) of the mask, in pixels of the image.
    height: Height of the image, in pixels.
    width: Width of the image, in pixels.
    threshold: Probability that decides whether a pixel belongs to the object.
    rule: 'sampled' or 'resized': see `paste_masks`.

  Returns:
    Offsets start, end, start, end, ... in rising order. They count the pixels
    of the image column by column, as RLE does. `end` is the first pixel after
    a run.
  """
  x1, y1, x2, y2 = box
  weigh, compare = _AXIS_WEIGHTS[rule]
  left, column_weights = weigh(x1, x2, len(mask), width)
  top, row_weights = weigh(y1, y2, len(mask), height)
  num_columns, num_rows = len(column_weights), len(row_weights)
  if not num_columns or not num_rows:
    return np.zeros(0, np.int64)

  # Bilinear sampling is separable: along x, then along y.
  mask_rows = mask @ column_weights.T
  strip = max(1, STRIP_PIXELS // num_rows)
  strips = []
  for start in range(0, num_columns, strip):
    # The first axis is the column, because RLE counts column by column.
    samples = mask_rows[:, start : start + strip].T @ row_weights.T
    # A border of zeros above and below makes each run start and end inside its
    # column.
    inside = np.zeros((len(samples), num_rows + 2), bool)
    compare(samples, threshold, out=inside[:, 1:-1])
    x, y = np.nonzero(inside[:, 1:] != inside[:, :-1])
    strips.append((x + left + start) * height + y + top)
  offsets = np.concatenate(strips)

  # A run that ends in the last row of a column and a run that starts in the
  # first row of the next column are joined.
  joined = offsets[1:-1:2] == offsets[2::2]
  keep = np.ones(len(offsets), bool)
  keep[1:-1:2] = keep[2::2] = ~joined
  return offsets[keep]


def _sample_weights(
  low: np.float32, high: np.float32, side: int, length: int
) -> tuple[int, Float[np.ndarray, 'n m']]:
  """Computes the weights of mask cells in each pixel, under rule 'sampled'.

  Bilinear weights are products of weights along y and along x. This function
  computes those of one axis.

  Args:
    low: Left or top edge of the box, in pixels of the image.
    high: Right or bottom edge of the box, in pixels of the image.
    side: Number of cells along the side of the mask.
    length: Number of pixels of the image along this axis.

  Returns:
    The first pixel that the mask contributes to, and one row of weights for
    this pixel and for each pixel that follows.
  """
  start, end = float(low), float(high)
  if not end > start:
    return 0, np.zeros((0, side), np.float32)
  # The samples of pixels whose centre is further than half a cell from the box
  # are zero.
  reach = 0.5 * (end - start) / side
  first = int(np.clip(np.floor(start - reach - 0.5), 0, length))
  last = int(np.clip(np.ceil(end + reach + 0.5), first, length))
  centers = np.arange(first, last) + 0.5
  cells = (centers - start) / (end - start) * side - 0.5
  weights = 1 - np.abs(cells[:, None] - np.arange(side))
  return first, np.maximum(weights, 0).astype(np.float32)


def _resize_weights(
  low: np.float32, high: np.float32, side: int, length: int
) -> tuple[int, Float[np.ndarray, 'n m']]:
  """Computes the weights of mask cells in each pixel, under rule 'resized'.

  Bilinear weights are products of weights along y and along x. This function
  computes those of one axis. The mask gets a border of one cell of zeros, and
  the corners of the enlarged box are truncated to integers.

  Args:
    low: Left or top edge of the box, in pixels of the image.
    high: Right or bottom edge of the box, in pixels of the image.
    side: Number of cells along the side of the mask.
    length: Number of pixels of the image along this axis.

  Returns:
    The first pixel that the mask contributes to, and one row of weights for
    this pixel and for each pixel that follows.
  """
  # The arithmetic is float32 and in the same order as in torchvision and
  # maskrcnn-benchmark, because the corners are truncated: another rounding
  # could move a corner by a pixel.
  half = (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
  center = (high + low) * np.float32(0.5)
  start, end = int(center - half), int(center + half)
  size = max(end - start + 1, 1)
  first = min(max(start, 0), length)
  last = max(min(end + 1, length), first)
  # Here too, float32 and the order matter: where probabilities are almost 0 or
  # 1, many samples are exactly or almost 0.5, the usual threshold.
  pixels = np.arange(first, last, dtype=np.float32) - np.float32(start)
  step = np.float32(side + 2) / np.float32(size)
  cells = np.maximum((pixels + np.float32(0.5)) * step - np.float32(0.5), 0)
  near = np.minimum(cells.astype(np.int64), side)
  far_weight = np.minimum(cells - near.astype(np.float32), 1)
  rows = np.arange(len(cells))
  weights = np.zeros((len(cells), side + 2), np.float32)
  weights[rows, near] = 1 - far_weight
  weights[rows, near + 1] = far_weight
  # The cells of the border are zero, so their weights are not needed.
  return first, weights[:, 1:-1]


# {rule: (function that computes the weights of an axis, comparison of samples
# with the threshold that tells whether a pixel belongs to the object)}.
_AXIS_WEIGHTS = {
  'sampled': (_sample_weights, np.greater_equal),
  'resized': (_resize_weights, np.greater),
}


def _compress(offsets: np.ndarray, height: int, width: int) -> dict[str, Any]:
  """Turns the starts and ends of runs into a compressed COCO RLE.

  Args:
    offsets: Start, end, start, end, ... of the runs, as `_paste_runs` returns
      them.
    height: Height of the image, in pixels.
    width: Width of the image, in pixels.
  """
  counts = np.diff(offsets, prepend=0, append=height * width)
  if len(counts) > 1 and counts[-1] == 0:
    counts = counts[:-1]
  size = [int(height), int(width)]
  rle = mask_api.frPyObjects(
    {'size': size, 'counts': counts.tolist()}, height, width
  )
  return {'size': size, 'counts': rle['counts'].decode('ascii')}
