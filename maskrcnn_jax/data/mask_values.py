"""Measures and encodes the mask of one annotation, exactly, on the host.

These functions are slower than the columns of `coco_objects`, and are used for
single annotations: by a repair, and for an object without a box.
"""

from typing import Any

from jaxtyping import Bool, Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import outlines
from maskrcnn_jax.data.coco_index import SCALARS

Number = int | float


def mask_box(
  segmentation: Any, height: int, width: int
) -> list[int | float] | None:
  """Returns the box around a mask, in COCO's form.

  Args:
    segmentation: Polygons or an RLE, as in the JSON.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    [x, y, width, height] in pixels, clipped to the image: around the corners of
    the polygons, or around the pixels of the RLE. `None` if there is no mask or
    if this box has no area.

  Raises:
    InputError: If an RLE or a coordinate of a polygon is not valid.
  """
  vertices, _ = _outline(segmentation, height, width)
  if not len(vertices):
    return None
  far = np.array([width, height])
  low = np.clip(vertices.min(axis=0).astype(np.float64), 0, far)
  high = np.clip(vertices.max(axis=0).astype(np.float64), 0, far)
  if not (high > low).all():
    return None
  return [_plain(value) for value in [*low.tolist(), *(high - low).tolist()]]


def mask_area(segmentation: Any, height: int, width: int) -> int:
  """Returns the number of pixels of a mask that are inside of the image.

  A pixel is inside a polygon if its centre is, by the even-odd rule. The pixels
  that several polygons share count once.

  Args:
    segmentation: Polygons or an RLE, as in the JSON.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The area in pixels; 0 if there is no mask.

  Raises:
    InputError: If an RLE or a coordinate of a polygon is not valid.
  """
  if isinstance(segmentation, dict):
    counts = outlines.rle_counts(segmentation, height, width)
    return int(counts[1::2].sum())
  box = mask_box(segmentation, height, width)
  if box is None:
    return 0
  # Only the pixels around the object are filled.
  left, top = int(box[0]), int(box[1])
  rows = int(np.ceil(box[1] + box[3])) - top
  columns = int(np.ceil(box[0] + box[2])) - left
  window = np.zeros((rows, columns), bool)
  _fill_polygons(window, segmentation, left, top)
  return int(window.sum())


def add_missing_boxes(content: dict[Any, Any]) -> None:
  """Gives each annotation without a box the box around its mask.

  Args:
    content: A COCO JSON, not checked. It is changed in place. Where the mask or
      the size of the image is not valid, no box is added.
  """
  sizes: dict[Any, tuple[Any, Any]] | None = None
  for entry in content.get('annotations', ()):
    if not isinstance(entry, dict) or entry.get('bbox') not in (None, []):
      continue
    if sizes is None:
      sizes = {
        image['id']: (image.get('height'), image.get('width'))
        for image in content.get('images', ())
        if isinstance(image, dict) and type(image.get('id')) in SCALARS
      }
    id_: Any = entry.get('image_id')
    size = sizes.get(id_, ()) if type(id_) in SCALARS else ()
    if not size or not all(type(side) is int for side in size):
      continue
    try:
      box = mask_box(entry.get('segmentation'), *size)
    except errors.InputError:
      continue
    if box is not None:
      entry['bbox'] = box


def decode_mask(
  segmentation: Any, height: int, width: int
) -> Bool[np.ndarray, 'h w']:
  """Returns the mask of a segmentation as an array.

  Args:
    segmentation: Polygons or an RLE, as in the JSON.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Raises:
    InputError: If an RLE or a coordinate of a polygon is not valid.
  """
  if isinstance(segmentation, dict):
    return _mask_of_counts(
      outlines.rle_counts(segmentation, height, width), height, width
    )
  mask = np.zeros((height, width), bool)
  _fill_polygons(mask, segmentation, 0, 0)
  return mask


def encode_mask(mask: Bool[np.ndarray, 'h w']) -> dict[str, Any]:
  """Returns a mask as an uncompressed RLE of COCO."""
  # A run ends where a pixel differs from the one before it. The first run is
  # outside of the mask.
  flat = mask.T.reshape(-1)
  ends = np.flatnonzero(np.diff(flat, prepend=False))
  counts = np.diff(np.concatenate([[0], ends, [flat.size]]))
  return {'size': list(mask.shape), 'counts': counts.tolist()}


def usable_polygons(segmentation: Any) -> list[list[Any]]:
  """Returns the polygons with an even count of at least 6 numbers.

  Args:
    segmentation: The value in the JSON. If it is not a list of lists, there are
      no polygons.
  """
  if not isinstance(segmentation, list):
    return []
  return [
    polygon
    for polygon in segmentation
    if isinstance(polygon, list) and len(polygon) >= 6 and not len(polygon) % 2
  ]


def _outline(
  segmentation: Any, height: int, width: int
) -> tuple[outlines.Vertices, outlines.Parts]:
  """Returns the outline of a segmentation; it is empty if there is no mask.

  Args:
    segmentation: Polygons or an RLE, as in the JSON.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Raises:
    InputError: If an RLE or a coordinate of a polygon is not valid.
  """
  if isinstance(segmentation, dict):
    counts = outlines.rle_counts(segmentation, height, width)
    return outlines.rle_to_outline(counts, height)
  return outlines.polygons_to_outline(usable_polygons(segmentation))


def _fill_polygons(
  mask: Bool[np.ndarray, 'h w'], segmentation: Any, left: int, top: int
) -> None:
  """Sets the pixels inside of polygons to True.

  Each polygon is filled in a window of its own, so that the time does not grow
  with the size of the mask times the number of polygons.

  Args:
    mask: It is changed in place.
    segmentation: Polygons in pixels of the image, as in the JSON.
    left: Column of the image that is column 0 of the mask.
    top: Row of the image that is row 0 of the mask.

  Raises:
    InputError: If a coordinate is not valid.
  """
  far = np.array(mask.shape[::-1])
  for polygon in usable_polygons(segmentation):
    vertices, parts = outlines.polygons_to_outline([polygon])
    # float32 has no spare digits for coordinates of large images, so that the
    # subtraction must not round.
    shifted = vertices.astype(np.float64) - (left, top)
    low = np.clip(np.floor(shifted.min(axis=0)), 0, far).astype(int)
    high = np.clip(np.ceil(shifted.max(axis=0)), 0, far).astype(int)
    if (high > low).all():
      window = mask[low[1] : high[1], low[0] : high[0]]
      window |= outlines.fill_outline(shifted - low, parts, *window.shape)


def _mask_of_counts(
  counts: Int[np.ndarray, ' runs'], height: int, width: int
) -> Bool[np.ndarray, 'h w']:
  """Returns the mask of run lengths down the columns.

  Args:
    counts: Run lengths: outside, inside, outside, and so on. They add up to the
      number of pixels.
    height: Height of the mask in pixels.
    width: Width of the mask in pixels.
  """
  inside = np.arange(len(counts)) % 2 == 1
  return np.repeat(inside, counts).reshape(width, height).T


def _plain(value: float) -> Number:
  """Returns an integer for a float without a fraction, such as 3 for 3.0."""
  return int(value) if float(value).is_integer() else float(value)
