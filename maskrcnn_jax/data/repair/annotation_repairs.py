"""Repairs values of one annotation of a COCO file without losing its object."""

import math
import operator
from typing import Any

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  coco_annotations,
  coco_index,
  mask_values,
  object_checks,
)
from maskrcnn_jax.data.repair import ids
from maskrcnn_jax.data.repair.segmentation_repairs import repair_segmentation
from maskrcnn_jax.data.repair.text_numbers import parsed_text, to_number

# (code of the fault, description) of each change of an annotation or a category
Changes = list[tuple[str, str]]


def repair_category(entry: dict[str, Any]) -> tuple[dict[str, Any], Changes]:
  """Returns a category with an id that is no float and a name that is text.

  Args:
    entry: The category as the JSON parser returned it.

  Returns:
    The repaired category, and the changes.
  """
  changes = []
  repaired = dict(entry)
  id_ = coco_index.plain_id(entry.get('id'))
  if type(id_) is not type(entry.get('id')):
    repaired['id'] = id_
    changes.append(('A13', f'its id {entry["id"]!r} written as {id_!r}.'))
  name = entry.get('name')
  if type(name) in coco_index.NUMBERS:
    repaired['name'] = str(name)
    changes.append(('A13', f'its name {name!r} written as {str(name)!r}.'))
  return repaired, changes


def repair_id(entry: dict[str, Any], field: str, table: ids.IdTable) -> Changes:
  """Writes an id of an annotation as the list of images or categories does.

  Args:
    entry: The annotation. It is changed in place.
    field: 'image_id' or 'category_id'.
    table: The ids of the list.

  Returns:
    The change. There is none if the id is right, or if the table has no such
    id.
  """
  id_ = entry.get(field)
  found = table.find(id_)
  if found is None or (type(found), found) == (type(id_), id_):
    return []
  entry[field] = found
  return [('A14', f'{field} {id_!r} written as {found!r}.')]


def repair_plain_values(entry: dict[str, Any]) -> Changes:
  """Repairs the crowd flag and the numbers of the box of an annotation.

  Args:
    entry: The annotation. It is changed in place.

  Returns:
    The changes.
  """
  changes = []
  flag = _crowd_flag(entry.get('iscrowd'))
  if flag is not entry.get('iscrowd'):
    changes.append(('A12', f'iscrowd {entry["iscrowd"]!r} written as {flag}.'))
    entry['iscrowd'] = flag
  box = _box_numbers(entry.get('bbox'))
  if box != entry.get('bbox'):
    changes.append(('A04', f'bbox {entry["bbox"]!r} written as {box}.'))
    entry['bbox'] = box
  return changes


def convert_corners(entry: dict[str, Any]) -> Changes:
  """Writes a box (x1, y1, x2, y2) as (x, y, width, height).

  Args:
    entry: The annotation. It is changed in place, unless it has no box.

  Returns:
    The change.
  """
  if not coco_annotations.has_box(entry):
    return []
  x1, y1, x2, y2 = entry['bbox']
  box = [x1, y1, x2 - x1, y2 - y1]
  what = (
    f'its box {entry["bbox"]}, taken for (x1, y1, x2, y2), written as (x, y,'
    f' width, height): {box}.'
  )
  entry['bbox'] = box
  return [('A03', what)]


def repair_mask(entry: dict[str, Any], height: int, width: int) -> Changes:
  """Writes the mask of an annotation in a form of COCO.

  Args:
    entry: The annotation. It is changed in place.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The change. There is none if the mask is right or cannot be repaired.
  """
  mask, code, what = repair_segmentation(
    entry.get('segmentation'), entry.get('bbox'), height, width
  )
  if not code:
    return []
  entry['segmentation'] = mask
  return [(code, what)]


def scale_fractions(entry: dict[str, Any], height: int, width: int) -> Changes:
  """Writes polygons in fractions of the image's size in pixels.

  The box becomes that around the mask, because a box in fractions may begin
  with the centre of the object, as YOLO's do, and nothing shows that. So an
  object without a mask is not changed.

  Args:
    entry: The annotation. It is changed in place.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    The changes. There are none if neither the box nor the mask is in fractions.
  """
  changes = []
  mask = entry.get('segmentation')
  polygons = mask_values.usable_polygons(mask)
  if (
    isinstance(mask, list)
    and len(polygons) == len(mask)
    and _are_fractions([x for polygon in polygons for x in polygon])
  ):
    entry['segmentation'] = [
      # Rounding removes only the error of the multiplication.
      [
        round(x * (height if i % 2 else width), 6)
        for i, x in enumerate(polygon)
      ]
      for polygon in polygons
    ]
    entry['area'] = None
    changes.append(('A28', 'its mask, given in fractions, written in pixels.'))
  old = entry.get('bbox')
  if changes or (coco_annotations.has_box(entry) and _are_fractions(old)):
    try:
      box = mask_values.mask_box(entry.get('segmentation'), height, width)
    except errors.InputError:
      box = None
    if box is not None:
      entry['bbox'] = box
      changes.append(
        ('A28', f'bbox {old!r} written as {box}, the box around its mask.')
      )
  return changes


def repair_empty_box(
  entry: dict[str, Any], height: int, width: int, width_offset: float
) -> Changes:
  """Replaces a box that cannot be used by the box around the mask.

  Args:
    entry: The annotation. It is changed in place.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0 or 1.

  Returns:
    The change. There is none if the box has an area inside of the image, or if
    there is no mask.
  """
  code = 'A04'
  old = entry.get('bbox')
  if coco_annotations.has_box(entry):
    x, y, w, h = entry['bbox']
    code = 'A01' if min(w, h) <= width_offset else 'A02'
    ends = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    if code == 'A02' and min(ends) > width_offset:
      return []
  try:
    box = mask_values.mask_box(entry.get('segmentation'), height, width)
  except errors.InputError:
    return []
  if box is None:
    return []
  entry['bbox'] = box
  what = 'missing bbox' if old is None else f'bbox {old!r}'
  return [(code, f'{what} written as {box}, the box around its mask.')]


def repair_area(
  entry: dict[str, Any],
  found: coco_annotations.Annotation,
  height: int,
  width: int,
  *,
  code: str,
  may_use_box: bool,
) -> Changes:
  """Sets `area` if it is missing or differs much from that of the mask.

  The area of a mask is its number of pixels inside of the image. An object
  without a mask gets the area of its box.

  Args:
    entry: The annotation. It is changed in place.
    found: The same annotation, checked.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    code: Code of the fault, if there is one.
    may_use_box: Whether the box of the annotation is right.

  Returns:
    The change.
  """
  is_missing = math.isnan(found.area)
  mask = entry.get('segmentation')
  if not is_missing and not (found.has_mask and _may_disagree(found, mask)):
    return []
  area: Any = mask_values.mask_area(mask, height, width)
  if is_missing and not area and may_use_box:
    area = entry['bbox'][2] * entry['bbox'][3]
  if not area or not (is_missing or _disagree(found.area, area)):
    return []
  entry['area'] = area
  return [(code, f'area set to {area:g}.')]


def _box_numbers(box: Any) -> Any:
  """Returns a box whose numbers are no text and in no further list.

  Args:
    box: The `bbox` of an annotation, any JSON value. It is returned as it is if
      it is right or cannot be repaired.
  """
  values = parsed_text(box)
  if isinstance(values, list) and len(values) == 1:
    values = parsed_text(values[0])
  if not isinstance(values, list) or len(values) != 4:
    return box
  numbers = [to_number(value) for value in values]
  return box if None in numbers else numbers


def _are_fractions(numbers: Any) -> bool:
  """Tells whether numbers lie in 0..1, and are not all 0 or 1."""
  return all(
    type(x) in coco_index.NUMBERS and 0 <= x <= 1 for x in numbers
  ) and any(x not in (0, 1) for x in numbers)


def _crowd_flag(flag: Any) -> Any:
  """Returns 0 or 1 for an `iscrowd` that is text, such as '0' or 'false'."""
  if isinstance(flag, str):
    words = {'0': 0, 'false': 0, 'no': 0, '1': 1, 'true': 1, 'yes': 1}
    return words.get(flag.strip().lower(), flag)
  return flag


def _shoelace(polygon: list[Any]) -> int | float:
  """Returns the area of a flat polygon by the shoelace formula, in pixels.

  NumPy would take ten times as long for a usual polygon.
  """
  x, y = polygon[0::2], polygon[1::2]
  positive = sum(map(operator.mul, x, y[1:] + y[:1]))
  negative = sum(map(operator.mul, y, x[1:] + x[:1]))
  return abs(positive - negative) / 2


def _may_disagree(found: coco_annotations.Annotation, mask: Any) -> bool:
  """Tells by a quick measure whether an area may differ from the mask's.

  Args:
    found: The annotation, checked.
    mask: Its segmentation in the JSON.
  """
  area = found.mask_area
  if math.isnan(area):
    polygons = mask_values.usable_polygons(mask)
    area = float(sum(map(_shoelace, polygons)))
  return _disagree(found.area, area)


def _disagree(area: float, mask_area: int | float) -> bool:
  """Tells whether an area differs much from that of the mask, in pixels."""
  return bool(
    object_checks.areas_disagree(
      np.array([area], np.float64), np.array([mask_area], np.float64)
    )[0]
  )
