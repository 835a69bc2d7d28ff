"""Reads and checks single annotations of a COCO file."""

import math
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import filled_pixels, outlines
from maskrcnn_jax.data.coco_index import (
  BAD_POLYGON,
  NO_AREA,
  NO_POLYGON,
  NO_SEGMENTATION,
  NUMBERS,
  REASONS,
  SCALARS,
)
from maskrcnn_jax.data.coco_tables import ImageTable

# A longer outline would cost the training step gigabytes of memory: each edge
# is compared with each row of the mask of each RoI.
MAX_OBJECT_VERTICES = 1 << 15

# Pixels. A box that reaches less far beyond its image was only rounded.
_ROUNDING = 1.0

# Limits for a coordinate, in pixels, and an area, in pixels squared. No image
# is as large.
_MAX_SIDE = 1e9
_MAX_AREA = 1e18

_PAIRS = (
  'segmentation holds pairs [x, y], or other lists of lists; write each polygon'
  ' as one flat list of numbers: [[x1, y1, x2, y2, ...]].'
)

# The outline of an object without a mask: no vertices and no parts.
NO_OUTLINE = np.zeros((0, 2), np.float32), np.zeros(0, np.int16)


class Annotation(NamedTuple):
  """A checked annotation, which can become an object of the index."""

  row: int  # row of its image in the index
  # (x1, y1, x2, y2) in pixels of the image, clipped to it
  box: tuple[float, float, float, float]
  category_id: Any  # as in the file; the classes are not known yet
  is_crowd: bool
  area: float  # as in the file, in pixels; NaN if the file has none
  mask_area: float  # pixels; NaN if only the outline can tell, or no mask
  vertices: np.ndarray  # outline as in `array_types.Outlines`; none for crowds
  parts: np.ndarray
  has_mask: bool


class _Segmentation(NamedTuple):
  """The mask of an annotation."""

  vertices: np.ndarray  # empty for a crowd region
  parts: np.ndarray
  area: float  # pixels; NaN if only the outline can tell, or no mask
  has_mask: bool
  num_bad_polygons: int  # polygons that were left out


class AnnotationReader:
  """Reads annotations one by one, and counts those with certain faults.

  Attributes:
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box.
    dropped: {reason: number of objects or polygons that were left out for it so
      far}, for each reason in `coco_index.REASONS`.
    num_beyond: Number of boxes so far that reach beyond the right or the lower
      edge of their image.
    num_fractions: Number of boxes so far that lie within 0..1 in x and y, as
      boxes do that are given in fractions of the size of the image.
    num_not_corners: Number of boxes so far whose four numbers cannot be
      (x1, y1, x2, y2), because a side would be empty or the box would reach
      beyond its image.
  """

  def __init__(
    self, images: ImageTable, *, require_masks: bool, width_offset: float
  ):
    """Makes a reader whose counts are 0.

    Args:
      images: Images of the same file. All must be in the table before the
        first annotation is read.
      require_masks: Whether to leave out objects without a mask.
      width_offset: Number added to x2 - x1 to get the width of a box, and to
        y2 - y1 to get its height, in pixels: 0 or 1.
    """
    self._images = images
    self._require_masks = require_masks
    self.width_offset = width_offset
    self.dropped = dict.fromkeys(REASONS, 0)
    self.num_beyond = self.num_not_corners = self.num_fractions = 0

  def read(self, entry: Any) -> tuple[Annotation | None, list[tuple[str, str]]]:
    """Checks one element of the list of annotations and clips its box.

    Args:
      entry: The element as the JSON parser returned it.

    Returns:
      The annotation, or `None` if the object is left out, and a list of
      (code, reason): the faults that a user should know about. An annotation
      of an image that was left out gives `None` and an empty list. So does one
      of an unknown image if the id of an image was lost (A17, A19).

    Raises:
      InputError: If a value is wrong. The message begins with the code.
    """
    if not isinstance(entry, dict):
      raise errors.InputError('A25: it is not an object.')
    notes: list[tuple[str, str]] = []
    try:
      row = look_up_id('image_id', entry.get('image_id'), self._images.rows)
    except errors.InputError:
      if not self._images.has_lost_ids:
        raise
      row = -1
    if row < 0:
      return None, notes
    category_id = entry.get('category_id')
    is_crowd = entry.get('iscrowd')
    if is_crowd is None:
      is_crowd = 0
      notes.append(('A12', 'iscrowd is missing'))
    if is_crowd not in (0, 1):
      raise errors.InputError(f'A12: iscrowd is {is_crowd!r}, not 0 or 1.')
    height, width = self._images.heights[row], self._images.widths[row]
    x, y, w, h = _read_box(entry)
    is_beyond = x + w > width + _ROUNDING or y + h > height + _ROUNDING
    self.num_beyond += is_beyond
    self.num_not_corners += (
      w > width + _ROUNDING or h > height + _ROUNDING or w <= x or h <= y
    )
    if x + w <= 1 and y + h <= 1 and x >= 0 and y >= 0:
      # A box of whole numbers is the first pixel of the image.
      self.num_fractions += any(side != int(side) for side in (x, y, w, h))
    offset = self.width_offset
    box = (
      max(x, 0.0),
      max(y, 0.0),
      min(x + max(w - offset, 0), width - offset),
      min(y + max(h - offset, 0), height - offset),
    )
    mask = _read_segmentation(
      entry.get('segmentation'), height, width, bool(is_crowd)
    )
    area = entry.get('area')
    if is_invalid_area(area):
      raise errors.InputError(
        f'A04: area is {_short(area)}; it must be a positive finite number.'
      )
    if not area:
      area = math.nan
      notes.append(('A26', 'area is missing'))

    if mask.num_bad_polygons:
      self.dropped[BAD_POLYGON] += mask.num_bad_polygons
      bad = next(p for p in entry['segmentation'] if not _is_polygon(p))
      notes.append(
        (
          'A05',
          f'{mask.num_bad_polygons} of its {len(entry["segmentation"])}'
          ' polygons have fewer than 6 numbers or an odd count, such as'
          f' {_short(bad)}.',
        )
      )
    if not (box[2] > box[0] and box[3] > box[1]):
      self.dropped[NO_AREA] += 1
      notes.append(
        ('A01', f'its box {entry["bbox"]} has no area.')
        if min(w, h) <= offset
        else ('A02', f'its box {entry["bbox"]} is outside of the image.')
      )
      return None, notes
    if is_beyond or x < -_ROUNDING or y < -_ROUNDING:
      notes.append(('A02', f'clipped its box {entry["bbox"]} to the image.'))
    if not mask.has_mask and not is_crowd and self._require_masks:
      has_bad = mask.num_bad_polygons > 0
      self.dropped[NO_POLYGON if has_bad else NO_SEGMENTATION] += 1
      if not has_bad:
        notes.append(('A06', 'it has no segmentation.'))
      return None, notes
    return Annotation(
      row=row,
      box=box,
      category_id=category_id,
      is_crowd=bool(is_crowd),
      area=float(area),
      mask_area=mask.area,
      vertices=mask.vertices,
      parts=mask.parts,
      has_mask=mask.has_mask,
    ), notes


def name_annotation(id_: Any, position: int) -> str:
  """Returns the words that name an annotation in messages.

  Args:
    id_: Id of the annotation. `None` if it has no usable id; then the position
      names it.
    position: Index in the list of annotations of the file.
  """
  if id_ is None:
    return f'annotation {position} of the list'
  return f'annotation {id_!r}'


def look_up_id(field: str, id_: Any, table: dict[Any, int]) -> int:
  """Returns the row of an image, or the number of a class, by its id.

  Args:
    field: The field of an annotation that holds the id: 'image_id' or
      'category_id'.
    id_: The id, any JSON value.
    table: {id: row or number}.

  Raises:
    InputError: If the table does not have the id. If a table of at most 10,000
      ids has an id that differs in type only, such as 7 instead of '7', the
      message names it.
  """
  if type(id_) in SCALARS and id_ in table:
    return table[id_]
  # A million wrong ids in a table of a million ids would take hours to search.
  candidates = () if len(table) > 10_000 else table
  similar = next((k for k in candidates if str(k) == str(id_)), None)
  hint = (
    '' if similar is None else f' (there is {similar!r}; write both the same)'
  )
  kind = 'image' if field == 'image_id' else 'category'
  raise errors.InputError(
    f'A14: {field} {id_!r} is no {kind} of the file{hint}.'
  )


def is_invalid_area(area: Any) -> bool:
  """Tells whether an area is given but is not a positive finite number.

  A missing area (`None`, 0 or an empty value) is not invalid: the area is then
  computed from the mask.
  """
  return bool(area) and not (type(area) in NUMBERS and 0 < area < _MAX_AREA)


def has_box(entry: Any) -> bool:
  """Tells whether a list element is an object with a box of four numbers.

  The numbers must be finite.

  Args:
    entry: An element of the list of annotations, any JSON value.
  """
  box = entry.get('bbox') if isinstance(entry, dict) else None
  return (
    isinstance(box, list)
    and len(box) == 4
    and all(
      type(side) in NUMBERS and -_MAX_SIDE < side < _MAX_SIDE for side in box
    )
  )


def can_be_corners(entry: Any, images: ImageTable) -> bool:
  """Tells whether a box can be (x1, y1, x2, y2) instead of COCO's form.

  It can if the two corners make a box that lies inside of the image.

  Args:
    entry: An element of the list of annotations. If it has no valid box, or its
      image is unknown or left out, the answer is True, because such an element
      is no evidence against corners.
    images: All images of the file.
  """
  if not has_box(entry) or type(entry.get('image_id')) not in SCALARS:
    return True
  row = images.rows.get(entry['image_id'], -1)
  if row < 0:
    return True
  x1, y1, x2, y2 = entry['bbox']
  return (
    -_ROUNDING <= x1 < x2 <= images.widths[row] + _ROUNDING
    and -_ROUNDING <= y1 < y2 <= images.heights[row] + _ROUNDING
  )


def _read_box(entry: dict[str, Any]) -> tuple[float, float, float, float]:
  """Returns (x, y, width, height) of an annotation, in pixels, not clipped.

  Raises:
    InputError: If `bbox` is not a list of four finite numbers.
  """
  box = entry.get('bbox')
  if not isinstance(box, list) or len(box) != 4:
    raise errors.InputError(
      f'A04: bbox is {_short(box)}; there must be [x, y, width, height].'
    )
  for side in box:
    if type(side) not in NUMBERS or not -_MAX_SIDE < side < _MAX_SIDE:
      raise errors.InputError(
        f'A04: bbox is {_short(box)}; it must hold finite numbers, in pixels.'
      )
  x, y, width, height = map(float, box)
  return x, y, width, height


def _short(value: Any) -> str:
  """Formats a value for a message, in at most 100 characters."""
  text = repr(value)
  return text if len(text) <= 100 else f'{text[:97]}...'


def _read_segmentation(
  segmentation: object, height: int, width: int, is_crowd: bool
) -> _Segmentation:
  """Reads the mask of an annotation from its `segmentation`.

  Args:
    segmentation: Polygons or an RLE. A missing or empty value means no mask.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    is_crowd: Whether this is a crowd region. Only the area of its mask is
      kept, because crowd regions are not trained on.

  Raises:
    InputError: If the value has another form, or numbers that cannot be right.
  """
  if not segmentation:
    return _Segmentation(*NO_OUTLINE, math.nan, False, 0)
  if isinstance(segmentation, dict):
    counts = outlines.rle_counts(segmentation, height, width)
    area = float(counts[1::2].sum())
    if is_crowd:
      return _Segmentation(*NO_OUTLINE, area, True, 0)
    vertices, parts = outlines.rle_to_outline(counts, height)
    _check_length(parts)
    return _Segmentation(vertices, parts, area, True, 0)
  if not isinstance(segmentation, list):
    raise errors.InputError(
      f'A07: segmentation is a {type(segmentation).__name__}, neither a list'
      ' of polygons nor an RLE.'
    )
  for polygon in segmentation:
    if type(polygon) is not list or (polygon and type(polygon[0]) is list):
      raise errors.InputError(f'A07: {_not_polygons(segmentation)}')
  good = [polygon for polygon in segmentation if _is_polygon(polygon)]
  num_bad = len(segmentation) - len(good)
  if not good:
    if num_bad >= 3 and all(len(polygon) == 2 for polygon in segmentation):
      raise errors.InputError(f'A07: {_PAIRS}')
    # [[]] is another way to write that there is no mask.
    num_bad = num_bad if any(segmentation) else 0
    return _Segmentation(*NO_OUTLINE, math.nan, False, num_bad)
  vertices, parts = outlines.polygons_to_outline(good)
  if is_crowd:
    area = filled_pixels.filled_area(vertices, parts, height, width)
    known = math.nan if area == filled_pixels.UNKNOWN_AREA else float(area)
    return _Segmentation(*NO_OUTLINE, known, True, num_bad)
  _check_length(parts)
  return _Segmentation(vertices, parts, math.nan, True, num_bad)


def _is_polygon(numbers: list[Any]) -> bool:
  """Tells whether a list has as many numbers as a polygon may have."""
  return len(numbers) >= 6 and len(numbers) % 2 == 0


def _not_polygons(elements: list[Any]) -> str:
  """Says what the elements of a segmentation are if they are no polygons.

  Args:
    elements: The elements of the list. One of them is not a list, or is a list
      of lists.
  """
  if all(type(x) in NUMBERS for x in elements):
    return (
      'segmentation is a flat list of numbers; put each polygon into a list of'
      ' its own: [[x1, y1, x2, y2, ...]].'
    )
  if all(isinstance(x, dict) and 'counts' in x for x in elements):
    return (
      f'segmentation is a list of {len(elements)} RLEs; write the RLE without a'
      ' list around it, and several RLEs as one of their union.'
    )
  for element in elements:
    if not isinstance(element, list):
      return (
        f'segmentation holds {_short(element)}, which is neither a polygon, a'
        ' list of numbers, nor an RLE.'
      )
  return _PAIRS


def _check_length(parts: np.ndarray) -> None:
  """Checks that an outline has no more vertices than the training step allows.

  Args:
    parts: The part of each vertex of the outline.

  Raises:
    InputError: If the outline is too long.
  """
  if len(parts) > MAX_OBJECT_VERTICES:
    raise errors.InputError(
      f'A27: the outline has {len(parts)} vertices, more than'
      f' {MAX_OBJECT_VERTICES}; simplify it.'
    )
