"""From small masks inside boxes to run lengths in the image, on the host."""

from typing import Any

from jaxtyping import Float, Float32
import numpy as np
from pycocotools import mask as mask_api

# The samples of a strip of columns (4 MB as float32) stay in the CPU's cache.
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

  Rule 'sampled': the mask is stretched over the float box and sampled
  bilinearly at the centre (x + 0.5, y + 0.5) of each pixel; it counts as zero
  outside itself.  Rule 'resized': mask and box get a border of one cell, of
  zeros; the corners of the box are truncated to integers, and the mask is
  resized to the pixels from the first corner to the last, both of them
  included.  Memory
  does not grow with the image: neither a full-size mask nor full-size samples
  are ever made.

  Args:
    masks: Probabilities; row 0 is the top of the box.
    boxes: In pixels of the original image, clipped or not.  A box without area
      gives an empty mask.
    height: Of the original image.
    width: Of the original image.
    threshold: A pixel belongs to the object from this probability on (rule
      'resized': above this probability); above 0.
    rule: 'sampled' or 'resized'.

  Returns:
    COCO RLE dictionaries, `size` (height, width) and `counts` a str, the same
    that `pycocotools.mask.encode` gives for the full-size masks.

  Raises:
    ValueError: If a mask or box is not finite, or for a bad size, threshold or
      rule.

  Source:
    'sampled': detectron2 `layers/mask_ops.py`, `paste_masks_in_image`:
    `grid_sample` with `align_corners=False`, then >= threshold. 'resized':
    torchvision `models/detection/roi_heads.py`, `paste_masks_in_image`, and
    maskrcnn-benchmark `modeling/roi_heads/mask_head/inference.py`, `Masker`:
    `interpolate` with `align_corners=False`, then > threshold.
    Differs: with a threshold below 0.5 an object may reach half a mask cell out
    of its box, as on detectron2's GPU path; its CPU path cuts at one pixel.
  """
  if height < 1 or width < 1:
    raise ValueError(f'The image must have pixels, not {height} x {width}.')
  if not threshold > 0:
    raise ValueError(
        f'threshold ({threshold}) must be above 0: the samples outside of a '
        'mask are 0 and would belong to the object.'
    )
  if rule not in _AXIS_WEIGHTS:
    raise ValueError(
        f'rule must be one of {", ".join(_AXIS_WEIGHTS)}, not {rule!r}.'
    )
  finite = np.isfinite(masks).all(axis=(1, 2)) & np.isfinite(boxes).all(axis=1)
  if not finite.all():
    raise ValueError(
        f'The mask or box of detection {int(np.argmin(finite))} is not finite; '
        'the weights or the input of the model hold nan or inf.'
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
  """Finds where the runs of one object start and end.

  Returns:
    start, end, start, end, ...: rising offsets into the image read column by
    column.
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
  offsets = []
  for start in range(0, num_columns, strip):
    # Columns come first, as RLE reads them.
    samples = mask_rows[:, start : start + strip].T @ row_weights.T
    # A border of zeros, so that each run both starts and ends in its column.
    inside = np.zeros((len(samples), num_rows + 2), bool)
    compare(samples, threshold, out=inside[:, 1:-1])
    x, y = np.nonzero(inside[:, 1:] != inside[:, :-1])
    offsets.append((x + left + start) * height + y + top)
  offsets = np.concatenate(offsets)

  # A run to the last row and one from the first row of the next column are one.
  joined = offsets[1:-1:2] == offsets[2::2]
  keep = np.ones(len(offsets), bool)
  keep[1:-1:2] = keep[2::2] = ~joined
  return offsets[keep]


def _sample_weights(
    low: np.float32, high: np.float32, side: int, length: int
) -> tuple[int, Float[np.ndarray, 'n m']]:
  """Weighs the mask's cells for each pixel that can see them, on one axis.

  Returns:
    The first pixel, and a row of weights for it and each that follows.
  """
  low, high = float(low), float(high)
  if not high > low:
    return 0, np.zeros((0, side), np.float32)
  # Centres further than half a cell from the box sample nothing but zeros.
  reach = 0.5 * (high - low) / side
  first = int(np.clip(np.floor(low - reach - 0.5), 0, length))
  last = int(np.clip(np.ceil(high + reach + 0.5), first, length))
  centers = np.arange(first, last) + 0.5
  cells = (centers - low) / (high - low) * side - 0.5
  weights = 1 - np.abs(cells[:, None] - np.arange(side))
  return first, np.maximum(weights, 0).astype(np.float32)


def _resize_weights(
    low: np.float32, high: np.float32, side: int, length: int
) -> tuple[int, Float[np.ndarray, 'n m']]:
  """The same, of the pixels that the mask is resized to."""
  # In float32 and in this order, for the corners are truncated.
  half = (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
  center = (high + low) * np.float32(0.5)
  low, high = int(center - half), int(center + half)
  size = max(high - low + 1, 1)
  first = min(max(low, 0), length)
  last = max(min(high + 1, length), first)
  # Likewise: where a probability is all but 0 or 1, halves are common.
  pixels = np.arange(first, last, dtype=np.float32) - np.float32(low)
  step = np.float32(side + 2) / np.float32(size)
  cells = np.maximum((pixels + np.float32(0.5)) * step - np.float32(0.5), 0)
  near = np.minimum(cells.astype(np.int64), side)
  far_weight = np.minimum(cells - near.astype(np.float32), 1)
  rows = np.arange(len(cells))
  weights = np.zeros((len(cells), side + 2), np.float32)
  weights[rows, near] = 1 - far_weight
  weights[rows, near + 1] = far_weight
  # The cells of the border are zero.
  return first, weights[:, 1:-1]


# Rule -> weights of an axis, and what makes a pixel belong to the object.
_AXIS_WEIGHTS = {
    'sampled': (_sample_weights, np.greater_equal),
    'resized': (_resize_weights, np.greater),
}


def _compress(offsets: np.ndarray, height: int, width: int) -> dict[str, Any]:
  counts = np.diff(offsets, prepend=0, append=height * width)
  if len(counts) > 1 and counts[-1] == 0:
    counts = counts[:-1]
  size = [int(height), int(width)]
  rle = mask_api.frPyObjects(
      {'size': size, 'counts': counts.tolist()}, height, width
  )
  return {'size': size, 'counts': rle['counts'].decode('ascii')}
