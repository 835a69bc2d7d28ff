"""Writes a repaired copy of a COCO file, and lists every change."""

from collections.abc import Iterator
import json
import math
import os
import pathlib
import sys
from typing import Any, NamedTuple, TextIO

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  annotation_repairs,
  coco_annotations,
  coco_index,
  coco_tables,
  findings,
  ids,
  json_stream,
  mask_values,
  object_checks,
  outlines,
)
from maskrcnn_jax.data.image_repairs import ImageRepair

# Codes of the faults of images that are repaired by leaving the image out. Only
# the owner of the file can repair the others, such as an id that two images
# have, or a wrong size.
_IMAGE_CODES = frozenset(
  ('A19', 'I01', 'I02', 'I03', 'I09', 'I10', 'I11', 'I12', 'I15')
)


class Change(NamedTuple):
  """One difference between the copy and the original file."""

  code: str  # code of the fault that was repaired
  where: str  # 'annotation 3 of the list (id 7)'
  what: str  # description of the change

  def __str__(self) -> str:
    """Formats the change as one line."""
    return findings.printable(f'{self.code}: {self.where}: {self.what}')


class Outcome(NamedTuple):
  """The changes of a repair, and how much of the file is left after it."""

  changes: list[Change]  # in the order of the file
  # {name of a list: (number of elements in the copy, number in the original)}
  # of 'images' and 'annotations'
  kept: dict[str, tuple[int, int]]

  @property
  def is_empty(self) -> bool:
    """Whether no image or no annotation of the original file is left."""
    return any(total and not left for left, total in self.kept.values())


def repair(
  source: pathlib.Path,
  destination: pathlib.Path | None,
  *,
  image_repairs: dict[int, ImageRepair],
  bad_images: dict[str, str],
  require_masks: bool,
  width_offset: float = 0.0,
  has_corner_boxes: bool = False,
) -> Outcome:
  """Writes a copy of a COCO file in which faults are repaired or left out.

  An element is left out only if it cannot be repaired. If no image or no
  annotation would be left, no copy is written.

  Args:
    source: The file to repair.
    destination: The file to write. It must not exist yet. With `None` no copy
      is written, only the changes are found.
    image_repairs: The entries of images that change, by their positions in the
      list, as `image_repairs.repair_images` returns them.
    bad_images: {file_name: reason} of the images that cannot be used, with the
      file names after `image_repairs`. A reason begins with its code.
    require_masks: Whether to leave out objects without a mask.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box.
    has_corner_boxes: Whether the boxes look like (x1, y1, x2, y2). If every box
      of the file can be read in this form, all boxes are converted to (x, y,
      width, height). Otherwise no box is changed.

  Returns:
    Every change, and the numbers of elements that are left.

  Raises:
    InputError: If the copy exists already or cannot be written, or if the file
      is not JSON.
  """
  copy = _RepairedCopy(
    source,
    image_repairs,
    bad_images,
    require_masks,
    width_offset,
    has_corner_boxes,
  )
  if destination is None:
    with open(os.devnull, 'w', encoding='utf-8') as file:
      copy.write(file)
    return copy.outcome()
  if os.path.lexists(destination):
    raise errors.InputError(
      f'{destination} exists already; give a new file to --fix.'
    )
  partial = destination.with_name(f'{destination.name}.partial')
  try:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, 'w', encoding='utf-8') as file:
      copy.write(file)
    if not copy.outcome().is_empty:
      partial.replace(destination)
  except OSError as error:
    raise errors.InputError(
      f'Cannot write {destination}: {error.strerror or error}.'
    ) from error
  finally:
    partial.unlink(missing_ok=True)
  return copy.outcome()


class _RepairedCopy:
  """Decides how each element of a COCO file is repaired, and writes the copy.

  Attributes:
    changes: The changes so far, in the order of the file.
  """

  def __init__(
    self,
    source: pathlib.Path,
    image_repairs: dict[int, ImageRepair],
    bad_images: dict[str, str],
    require_masks: bool,
    width_offset: float,
    has_corner_boxes: bool,
  ):
    """Reads the file, and decides which images stay and how boxes are repaired.

    Args:
      source: The file to repair.
      image_repairs: The entries of images that change, by their positions.
      bad_images: {file_name: reason} of the images that cannot be used. A
        reason begins with its code.
      require_masks: Whether to leave out objects without a mask.
      width_offset: Number added to x2 - x1 to get the width of a box, and to
        y2 - y1 to get its height, in pixels: 0 or 1.
      has_corner_boxes: Whether the boxes look like (x1, y1, x2, y2).
    """
    self._source = source
    self._image_repairs = image_repairs
    self._bad_images = bad_images
    self._require_masks = require_masks
    self.changes: list[Change] = []
    # {name of a list: number of elements}, in the original and in the copy
    self._totals = {'images': 0, 'annotations': 0}
    self._kept = {'images': 0, 'annotations': 0}
    # All lines are kept, because `_note_image` takes the reasons from them.
    report = findings.Report(stop=False, keep=sys.maxsize)
    self._images = coco_tables.ImageTable(str(source), report)
    # {position of an image in the list: why it is left out}
    self._left_out: dict[int, str] = {}
    # Ids of images and of categories that have a fault that cannot be repaired.
    # They stay, and so do their annotations.
    self._undecided_images: set[Any] = set()
    self._undecided_categories: set[Any] = set()
    image_names: list[tuple[Any, str]] = []
    categories: list[tuple[Any, str]] = []
    self._background_ids: set[Any] = set()
    highest_id = 0
    for key, position, entry in json_stream.walk(source):
      if position < 0:
        continue
      if key == 'images':
        entry = self._note_image(position, entry)
        if isinstance(entry, dict) and type(entry.get('id')) in (
          coco_index.SCALARS
        ):
          image_names.append((entry['id'], str(entry.get('file_name'))))
      elif key == 'categories' and isinstance(entry, dict):
        entry, _ = _repair_category(entry)
        id_: Any = entry.get('id')
        name = entry.get('name')
        if type(id_) in (int, str) and isinstance(name, str):
          categories.append((id_, name))
          if coco_index.is_background(coco_index.Category(id_, name)):
            self._background_ids.add(id_)
        elif type(id_) in coco_index.SCALARS:
          self._undecided_categories.add(id_)
      elif key == 'annotations' and isinstance(entry, dict):
        id_ = entry.get('id')
        if type(id_) is int:
          highest_id = max(highest_id, id_)
    self._image_ids = ids.IdTable(image_names)
    self._category_ids = ids.IdTable(categories)
    self._next_id = highest_id + 1
    # Annotation ids that are taken. pycocotools takes 0 for "no match".
    self._used_ids: set[coco_index.Scalar] = {0}
    self._reader = coco_annotations.AnnotationReader(
      self._images, require_masks=require_masks, width_offset=width_offset
    )
    self._converts_corners = has_corner_boxes and all(
      coco_annotations.can_be_corners(entry, self._images)
      for key, position, entry in json_stream.walk(source)
      if key == 'annotations' and position >= 0
    )
    # If boxes are corners but not all of them can be converted, no box is
    # clipped, and no area is computed from a box.
    self._are_boxes_right = self._converts_corners or not has_corner_boxes

  def outcome(self) -> Outcome:
    """Returns the changes so far, and the numbers of elements left."""
    return Outcome(
      self.changes,
      {key: (self._kept[key], total) for key, total in self._totals.items()},
    )

  def _note_image(self, position: int, entry: Any) -> Any:
    """Decides whether an image is left out of the copy, and stores the reason.

    An image with a fault that nobody but the owner of the file can repair
    stays. So do its annotations, unchanged.

    Args:
      position: Index of the image in the list of images.
      entry: The image as the JSON parser returned it.

    Returns:
      The entry after its repairs.
    """
    if position in self._image_repairs:
      entry = self._image_repairs[position].entry
    before = len(self._images.report.kept)
    name = entry.get('file_name') if isinstance(entry, dict) else None
    why = self._bad_images.get(name, '') if isinstance(name, str) else ''
    is_usable = self._images.add(position, entry)
    if not is_usable and len(self._images.report.kept) > before:
      found = self._images.report.kept[-1]
      why = f'{found.code}: {found.reason}'
    if why and findings.split_code(why)[0] in _IMAGE_CODES:
      self._left_out[position] = why
      if is_usable:
        self._images.rows[entry['id']] = -1
    elif why:
      self._undecided_images.add(entry['id'])
    return entry

  def write(self, file: TextIO) -> None:
    """Writes the copy.

    Args:
      file: Receives the JSON. It is written element by element, because the
        whole document may not fit in memory.

    Raises:
      InputError: If the original file is not JSON.
    """
    file.write('{')
    is_first, open_list = True, ''
    for key, position, entry in json_stream.walk(self._source):
      if position < 0:
        file.write(open_list + ('' if is_first else ',\n'))
        file.write(f'{json.dumps(key)}: ')
        is_first, open_list, comma = False, '', '\n'
        if position == json_stream.LIST:
          file.write('[')
          open_list = '\n]'
        else:
          file.write(json.dumps(entry))
        continue

      if key in self._totals:
        self._totals[key] += 1
      for kept in self._repaired(key, position, entry):
        if key in self._kept:
          self._kept[key] += 1
        file.write(comma + json.dumps(kept))
        comma = ',\n'
    file.write(open_list + '}\n')

  def _repaired(
    self, key: str | None, position: int, entry: Any
  ) -> Iterator[Any]:
    """Yields the repaired element of a list, or nothing if it is left out.

    Args:
      key: Name of the list, as `json_stream.walk` yields it.
      position: Index of the element in the list.
      entry: The element.
    """
    if key == 'images':
      yield from self._repaired_image(position, entry)
    elif key == 'categories' and isinstance(entry, dict):
      where = f'category {position} of the list (id {entry.get("id")!r})'
      entry, changes = _repair_category(entry)
      id_ = entry.get('id')
      if type(id_) in (int, str) and id_ in self._background_ids:
        self._note_change(
          'A16', where, f'left out: its name is {entry["name"]!r}'
        )
        return
      for change in changes:
        self._note_change('A13', where, change)
      yield entry
    elif key == 'annotations':
      yield from self._repaired_annotation(position, entry)
    else:
      yield entry

  def _repaired_image(self, position: int, entry: Any) -> Iterator[Any]:
    """Yields the repaired image, or nothing if it is left out.

    Args:
      position: Index of the image in the list of images.
      entry: The image as the JSON parser returned it.
    """
    where = f'image {position} of the list'
    if isinstance(entry, dict):
      where += f' (id {entry.get("id")!r})'
    if position in self._left_out:
      code, why = findings.split_code(self._left_out[position])
      self._note_change(code, where, f'left out: {why}')
      return
    if position in self._image_repairs:
      entry, changes = self._image_repairs[position]
      for code, what in changes:
        self._note_change(code, where, what)
    yield entry

  def _repaired_annotation(self, position: int, entry: Any) -> Iterator[Any]:
    """Yields the repaired annotation, or nothing if it is left out.

    Args:
      position: Index of the annotation in the list.
      entry: The annotation as the JSON parser returned it.
    """
    where = f'annotation {position} of the list'
    if not isinstance(entry, dict):
      self._note_change('A25', where, 'left out: it is not an object.')
      return
    where += f' (id {entry.get("id")!r})'
    entry = dict(entry)
    changes = [
      *_repair_id(entry, 'image_id', self._image_ids),
      *_repair_id(entry, 'category_id', self._category_ids),
    ]
    image_id = entry.get('image_id')
    if (
      type(image_id) in coco_index.SCALARS
      and image_id in self._undecided_images
    ):
      # The annotation cannot be checked without the right image.
      for code, what in changes:
        self._note_change(code, where, what)
      yield entry
      return
    changes += self._repair_values(entry)
    area_code = 'A26'
    if coco_annotations.is_invalid_area(entry.get('area')):
      area_code = 'A04'
      entry['area'] = None
    try:
      found, notes = self._reader.read(entry)
      self._check_category(entry.get('category_id'))
    except errors.InputError as error:
      code, why = findings.split_code(str(error))
      self._note_change(code, where, f'left out: {why}')
      return
    if found is None:
      code, why = next(
        (note for note in notes if note[0] in ('A01', 'A02', 'A05', 'A06')),
        ('I01', 'its image is left out'),
      )
      self._note_change(code, where, f'left out: {why}')
      return
    for code, what in changes:
      self._note_change(code, where, what)
    for code, why in notes:
      match code:
        case 'A05':
          entry['segmentation'] = mask_values.usable_polygons(
            entry['segmentation']
          )
          self._note_change(code, where, f'polygons left out: {why}')
        case 'A02' if self._are_boxes_right:
          x1, y1, x2, y2 = found.box
          offset = self._reader.width_offset
          entry['bbox'] = [x1, y1, x2 - x1 + offset, y2 - y1 + offset]
          self._note_change(code, where, f'{why[:-1]}: {entry["bbox"]}.')
        case 'A12':
          entry['iscrowd'] = 0
          self._note_change(code, where, 'iscrowd set to 0.')
    self._repair_area(entry, found, where, area_code)
    id_ = entry.get('id')
    if type(id_) not in coco_index.SCALARS or id_ in self._used_ids:
      entry['id'] = self._next_id
      self._next_id += 1
      self._note_change('A18', where, f'id set to {entry["id"]}.')
    self._used_ids.add(entry['id'])
    yield entry

  def _check_category(self, id_: Any) -> None:
    """Checks that the category of an annotation stays in the copy.

    Args:
      id_: The category_id of the annotation, any JSON value.

    Raises:
      InputError: If it does not.
    """
    is_id = type(id_) in coco_index.SCALARS
    if is_id and id_ in self._background_ids:
      raise errors.InputError('A16: its category is background.')
    if is_id and id_ in self._undecided_categories:
      return
    if self._category_ids.find(id_) is None:
      raise errors.InputError(
        f'A14: category_id {id_!r} is no category of the file.'
      )

  def _repair_values(self, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Repairs the crowd flag, the mask and the box of an annotation.

    Args:
      entry: The annotation. It is changed in place.

    Returns:
      (code, description) of each change.
    """
    changes = []
    flag = annotation_repairs.repair_crowd_flag(entry.get('iscrowd'))
    if flag is not entry.get('iscrowd'):
      changes.append(
        ('A12', f'iscrowd {entry["iscrowd"]!r} written as {flag}.')
      )
      entry['iscrowd'] = flag
    box = annotation_repairs.repair_box(entry.get('bbox'))
    if box != entry.get('bbox'):
      changes.append(('A04', f'bbox {entry["bbox"]!r} written as {box}.'))
      entry['bbox'] = box
    row = self._image_row(entry)
    if row < 0:
      return changes
    height, width = self._images.heights[row], self._images.widths[row]
    if self._converts_corners and coco_annotations.has_box(entry):
      x1, y1, x2, y2 = entry['bbox']
      box = [x1, y1, x2 - x1, y2 - y1]
      changes.append(
        (
          'A03',
          f'its box {entry["bbox"]}, taken for (x1, y1, x2, y2), written as'
          f' (x, y, width, height): {box}.',
        )
      )
      entry['bbox'] = box
    mask, code, what = annotation_repairs.repair_segmentation(
      entry.get('segmentation'), entry.get('bbox'), height, width
    )
    if code:
      changes.append((code, what))
      entry['segmentation'] = mask
    if self._are_boxes_right:
      changes += self._repair_empty_box(entry, height, width)
    return changes

  def _image_row(self, entry: dict[str, Any]) -> int:
    """Returns the row of the image of an annotation; -1 if it has none."""
    id_: Any = entry.get('image_id')
    if type(id_) not in coco_index.SCALARS:
      return -1
    return self._images.rows.get(id_, -1)

  def _repair_empty_box(
    self, entry: dict[str, Any], height: int, width: int
  ) -> list[tuple[str, str]]:
    """Replaces a box that cannot be used by the box around the mask.

    Args:
      entry: The annotation. It is changed in place.
      height: Height of the image in pixels.
      width: Width of the image in pixels.

    Returns:
      The change, as (code, description). It is empty if the box has an area in
      the image, or if there is no mask.
    """
    code = 'A04'
    old = entry.get('bbox')
    if coco_annotations.has_box(entry):
      x, y, w, h = entry['bbox']
      least = self._reader.width_offset
      code = 'A01' if min(w, h) <= least else 'A02'
      ends = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
      if code == 'A02' and min(ends) > least:
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

  def _repair_area(
    self,
    entry: dict[str, Any],
    found: coco_annotations.Annotation,
    where: str,
    code: str,
  ) -> None:
    """Sets `area` if it is missing or differs much from that of the mask.

    The area of a mask is its number of pixels inside of the image. An object
    without a mask gets the area of its box.

    Args:
      entry: The annotation. It is changed in place.
      found: The same annotation, checked.
      where: Name of the annotation, for the list of changes.
      code: Code of the fault, for the list of changes.
    """
    is_missing = math.isnan(found.area)
    height = self._images.heights[found.row]
    width = self._images.widths[found.row]
    mask = entry.get('segmentation')
    if not is_missing:
      if not found.has_mask or not self._may_disagree(found):
        return
      area = mask_values.mask_area(mask, height, width)
      if not area or not _disagree(found.area, area):
        return
    else:
      area = mask_values.mask_area(mask, height, width)
      if not area:
        if not self._are_boxes_right:
          return
        area = entry['bbox'][2] * entry['bbox'][3]
    entry['area'] = area
    self._note_change(code, where, f'area set to {area:g}.')

  def _may_disagree(self, found: coco_annotations.Annotation) -> bool:
    """Tells by a quick measure whether an area may differ from the mask's.

    Args:
      found: The annotation.
    """
    area = found.mask_area
    if math.isnan(area):
      if not len(found.parts):
        return True
      starts = np.array([0, len(found.parts)])
      areas, _ = outlines.measure_outlines(starts, found.vertices, found.parts)
      area = float(areas[0])
    return _disagree(found.area, area)

  def _note_change(self, code: str, where: str, what: str) -> None:
    """Appends a change to the list of changes.

    Args:
      code: Code of the fault that was repaired.
      where: Name of the image, category or annotation.
      what: Description of the change.
    """
    self.changes.append(Change(code, where, what))


def _repair_id(
  entry: dict[str, Any], field: str, table: ids.IdTable
) -> list[tuple[str, str]]:
  """Writes an id of an annotation as the list of images or categories does.

  Args:
    entry: The annotation. It is changed in place.
    field: 'image_id' or 'category_id'.
    table: The ids of the list.

  Returns:
    The change, as (code, description). It is empty if the id is right, or if
    the table has no such id.
  """
  id_ = entry.get(field)
  found = table.find(id_)
  if found is None or (type(found), found) == (type(id_), id_):
    return []
  entry[field] = found
  return [('A14', f'{field} {id_!r} written as {found!r}.')]


def _repair_category(
  entry: dict[str, Any],
) -> tuple[dict[str, Any], list[str]]:
  """Returns a category with an id that is no float and a name that is text.

  Args:
    entry: The category as the JSON parser returned it.

  Returns:
    The repaired category, and a description of each change.
  """
  changes = []
  repaired = dict(entry)
  id_ = coco_index.plain_id(entry.get('id'))
  if type(id_) is not type(entry.get('id')):
    repaired['id'] = id_
    changes.append(f'its id {entry["id"]!r} written as {id_!r}.')
  name = entry.get('name')
  if type(name) in coco_index.NUMBERS:
    repaired['name'] = str(name)
    changes.append(f'its name {name!r} written as {str(name)!r}.')
  return repaired, changes


def _disagree(area: float, mask_area: int | float) -> bool:
  """Tells whether an area differs much from that of the mask, in pixels."""
  return bool(
    object_checks.areas_disagree(
      np.array([area], np.float64), np.array([mask_area], np.float64)
    )[0]
  )
