"""Writes masks of other forms as polygons or RLEs of COCO.

Each function returns a repaired copy of a value, or the value itself if it is
right or cannot be repaired.
"""

from typing import Any

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco_annotations, mask_values, outlines
from maskrcnn_jax.data.repair.text_numbers import parsed_text, to_number

# A box and a mask that overlap by at least this (IoU) belong together.
_MIN_IOU = 0.8

# Corners of the longest outline that is written as an RLE. Filling one of a
# million corners takes seconds and hundreds of megabytes.
_MAX_CORNERS = 200_000

# Lists in lists. GeoJSON's MultiPolygon, the deepest known form, has four.
_MAX_DEPTH = 6


def repair_segmentation(
  segmentation: Any, box: Any, height: int, width: int
) -> tuple[Any, str, str]:
  """Writes a mask of another form as polygons or as an RLE.

  Args:
    segmentation: The value in the JSON.
    box: The `bbox` of the annotation. It shows whether the sides of an RLE's
      size or the mask itself are exchanged.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The repaired segmentation, the code of its fault, and a description of the
    change, both '' if the value is returned as it was.
  """
  value = parsed_text(segmentation)
  as_text = value is not segmentation
  if isinstance(value, dict):
    repaired, what = _repair_rle(value, box, height, width)
    if not what and not as_text:
      return _simplify(segmentation, height, width)
    return repaired, 'A09' if what else 'A07', what or 'its text parsed.'
  if not isinstance(value, list) or not value:
    return segmentation, '', ''
  if any(isinstance(part, dict) and 'counts' in part for part in value):
    return _join_masks(segmentation, value, box, height, width)
  if all(
    isinstance(part, list) and all(type(x) in (int, float) for x in part)
    for part in value
  ) and not (len(value) >= 3 and all(len(part) == 2 for part in value)):
    # Polygons in COCO's form, though some may be too short.
    if as_text:
      return value, 'A07', 'its text parsed.'
    return _simplify(segmentation, height, width)
  polygons = _flat_polygons(value)
  if not polygons:
    return segmentation, '', ''
  if all(
    isinstance(part, list)
    and not any(isinstance(x, (list, dict)) for x in part)
    for part in value
  ) and len(polygons) == len(value):
    return polygons, 'A04', 'the numbers of its polygons, which were text.'
  return (
    polygons,
    'A07',
    f'its mask written as {len(polygons)} flat lists of coordinates.'
    if len(polygons) > 1
    else 'its mask written as a flat list of coordinates in a list.',
  )


def _flat_polygons(value: Any) -> list[list[Any]]:
  """Returns the polygons of lists of points as COCO's flat lists of numbers.

  A point is [x, y], {"x": x, "y": y}, or a point in a list of its own, as
  OpenCV's contours are. Polygons may be in further lists.

  Args:
    value: A polygon or a list of polygons.

  Returns:
    The polygons; some may be too short. There are none if any part of the value
    has another form, if no polygon can be used, or if a polygon has a hole,
    because COCO's polygons cannot have one.
  """
  polygons = _collect_polygons(value, 0)
  is_usable = bool(polygons and mask_values.usable_polygons(polygons))
  return polygons if polygons and is_usable else []


def _collect_polygons(value: Any, depth: int) -> list[list[Any]] | None:
  """Does the work of `_flat_polygons`; returns `None` for another form.

  Args:
    value: A polygon or a list of polygons.
    depth: Number of lists around the value.
  """
  if not isinstance(value, list) or depth > _MAX_DEPTH:
    return None
  flat = _flat_numbers(value)
  if flat is not None:
    return [flat] if flat else []
  polygons = []
  for part in value:
    found = _collect_polygons(part, depth + 1)
    if found is None:
      return None
    # A MultiPolygon of GeoJSON lists the outline of a part and then its holes,
    # all as lists of points.
    if len(found) > 1 and None in map(to_number, part[0]):
      return None
    polygons += found
  return polygons


def _flat_numbers(value: list[Any]) -> list[Any] | None:
  """Returns x, y, x, y, ... of a list of numbers or of points, else `None`."""
  numbers = [to_number(x) for x in value]
  if None not in numbers:
    return numbers
  points = [_point(x) for x in value]
  if None in points:
    return None
  return [x for point in points if point for x in point]


def _point(value: Any) -> list[Any] | None:
  """Returns [x, y] of a point in one of the usual forms; `None` otherwise."""
  if isinstance(value, dict) and value.keys() == {'x', 'y'}:
    value = [value['x'], value['y']]
  while isinstance(value, list) and len(value) == 1:
    value = value[0]
  if not isinstance(value, list) or len(value) != 2:
    return None
  point = [to_number(x) for x in value]
  return None if None in point else point


def _repair_rle(
  rle: dict[str, Any], box: Any, height: int, width: int
) -> tuple[dict[str, Any], str]:
  """Repairs the size and the counts of an RLE.

  Args:
    rle: The RLE.
    box: The `bbox` of the annotation.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The RLE, and a description of the change; '' if it is right, or cannot be
    repaired.
  """
  if _is_valid(rle, height, width):
    return rle, ''
  size = rle.get('size')
  numbers = [to_number(x) for x in size] if isinstance(size, list) else []
  what = ''
  if size is None:
    numbers, what = [height, width], 'the size of the image given to its RLE.'
  elif numbers != size:
    what = 'the size of its RLE, which was text.'
  for counts, change in _other_counts(rle.get('counts')):
    repaired = rle | {'size': numbers, 'counts': counts}
    if _is_valid(repaired, height, width):
      return repaired, change or what
    if numbers == [width, height]:
      exchanged = _exchange_sides(repaired, box, height, width)
      if exchanged is not None:
        return exchanged, (
          f'its RLE of size {numbers} written for {[height, width]} (height,'
          ' width), where it fits its box.'
        )
  return rle, ''


def _other_counts(counts: Any) -> list[tuple[Any, str]]:
  """Returns the forms in which the counts of an RLE may have been meant.

  Args:
    counts: The counts in the JSON.

  Returns:
    (counts, description of the change) of each form. The first are the counts
    themselves, with ''.
  """
  forms = [(counts, '')]
  while isinstance(counts, list) and len(counts) == 1:
    counts = counts[0]
    forms.append((counts, 'the counts of its RLE taken out of a list.'))
  if isinstance(counts, str):
    text = counts.strip()
    if len(text) >= 3 and text[:2] in ("b'", 'b"') and text[-1] == text[1]:
      what = "the counts of its RLE, the text of Python's bytes, decoded."
      # Python writes each backslash of the bytes twice.
      forms.append((text[2:-1].replace('\\\\', '\\'), what))
      forms.append((text[2:-1], what))
    elif text != counts:
      forms.append((text, 'spaces around the counts of its RLE left out.'))
    counts = parsed_text(counts)
  if isinstance(counts, list):
    numbers = [to_number(count) for count in counts]
    if all(n is not None and n == int(n) for n in numbers):
      forms.append(
        (
          [int(n) for n in numbers if n is not None],
          'the counts of its RLE written as integers.',
        )
      )
  return forms


def _exchange_sides(
  rle: dict[str, Any], box: Any, height: int, width: int
) -> dict[str, Any] | None:
  """Returns an RLE for its image, of which it has the exchanged sides as size.

  Either only the size was written the wrong way round, or the mask was encoded
  along its rows. The box of the object tells which.

  Args:
    rle: The RLE. Its size is [width, height].
    box: The `bbox` of the annotation.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The RLE; `None` if the box fits neither mask, or both.
  """
  if not coco_annotations.has_box({'bbox': box}):
    return None
  written = rle | {'size': [height, width]}
  if not _is_valid(written, height, width):
    return None
  mask = mask_values.decode_mask(rle, width, height).T
  turned = mask_values.encode_mask(mask)
  fitting = [
    candidate
    for candidate in (written, turned)
    if _box_iou(mask_values.mask_box(candidate, height, width), box) > _MIN_IOU
  ]
  return fitting[0] if len(fitting) == 1 else None


def _join_masks(
  segmentation: Any, parts: list[Any], box: Any, height: int, width: int
) -> tuple[Any, str, str]:
  """Writes a list of RLEs, of which some may be polygons, as one RLE.

  Args:
    segmentation: The value in the JSON.
    parts: The elements of the list.
    box: The `bbox` of the annotation.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    As `repair_segmentation`.
  """
  masks: list[Any] = []
  for part in parts:
    if isinstance(part, dict):
      # The box is around all parts, so that it says nothing about one of many.
      rle, _ = _repair_rle(
        part, box if len(parts) == 1 else None, height, width
      )
      if not _is_valid(rle, height, width):
        return segmentation, '', ''
      masks.append(rle)
    else:
      polygons = _flat_polygons(part)
      if not polygons:
        return segmentation, '', ''
      masks.append(polygons)
  if len(masks) == 1:
    return masks[0], 'A07', 'its RLE taken out of a list.'
  try:
    mask = mask_values.decode_mask(masks[0], height, width)
    for other in masks[1:]:
      mask |= mask_values.decode_mask(other, height, width)
  except errors.InputError:
    return segmentation, '', ''
  return (
    mask_values.encode_mask(mask),
    'A07',
    f'its {len(masks)} masks joined into one RLE.',
  )


def _simplify(
  segmentation: Any, height: int, width: int
) -> tuple[Any, str, str]:
  """Writes polygons with too many corners as an RLE, if that has fewer.

  Polygons with more than `_MAX_CORNERS` corners stay as they are.

  Args:
    segmentation: Polygons or an RLE in COCO's form.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    As `repair_segmentation`.
  """
  most = coco_annotations.MAX_OBJECT_VERTICES
  unchanged = segmentation, '', ''
  if not isinstance(segmentation, list):
    return unchanged
  # A polygon is closed by repeating its first corner.
  count = sum(len(polygon) // 2 + 1 for polygon in segmentation)
  if not most < count <= _MAX_CORNERS:
    return unchanged
  try:
    rle = mask_values.encode_mask(
      mask_values.decode_mask(segmentation, height, width)
    )
  except errors.InputError:
    return unchanged
  _, parts = outlines.rle_to_outline(
    outlines.rle_counts(rle, height, width), height
  )
  if not 0 < len(parts) <= most:
    return unchanged
  return rle, 'A27', f'its outline of {count} corners written as an RLE.'


def _is_valid(rle: dict[str, Any], height: int, width: int) -> bool:
  """Tells whether an RLE is right for an image of this size, in pixels."""
  try:
    outlines.rle_counts(rle, height, width)
  except errors.InputError:
    return False
  return True


def _box_iou(box: list[int | float] | None, other: list[int | float]) -> float:
  """Returns the IoU of two boxes (x, y, width, height); 0 without a box."""
  if box is None:
    return 0.0
  shared = 1.0
  for axis in (0, 1):
    start = max(box[axis], other[axis])
    end = min(box[axis] + box[axis + 2], other[axis] + other[axis + 2])
    shared *= max(end - start, 0)
  both = box[2] * box[3] + other[2] * other[3] - shared
  return float(shared / both) if both > 0 else 0.0
