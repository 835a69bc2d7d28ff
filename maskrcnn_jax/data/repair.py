"""Writes a repaired copy of a COCO file, and lists every change."""

from collections.abc import Iterator
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple, TextIO

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  coco_annotations,
  coco_index,
  coco_tables,
  findings,
  json_stream,
  object_checks,
  outlines,
)

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


def repair(
  source: pathlib.Path,
  destination: pathlib.Path,
  *,
  bad_images: dict[str, str],
  require_masks: bool,
  width_offset: float = 0.0,
  has_corner_boxes: bool = False,
) -> list[Change]:
  """Writes a copy of a COCO file in which faults are repaired or left out.

  Args:
    source: The file to repair.
    destination: The file to write. It must not exist yet.
    bad_images: {file_name: reason} of the images that cannot be used. A reason
      begins with its code.
    require_masks: Whether to leave out objects without a mask.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box.
    has_corner_boxes: Whether the boxes look like (x1, y1, x2, y2). If every box
      of the file can be read in this form, all boxes are converted to (x, y,
      width, height). Otherwise no box is changed.

  Returns:
    Every change, in the order of the file.

  Raises:
    InputError: If the copy exists already or cannot be written, or if the file
      is not JSON.
  """
  if destination.exists():
    raise errors.InputError(
      f'{destination} exists already; give a new file to --fix.'
    )
  partial = destination.with_name(f'{destination.name}.partial')
  try:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, 'w', encoding='utf-8') as file:
      copy = _RepairedCopy(
        source, bad_images, require_masks, width_offset, has_corner_boxes
      )
      copy.write(file)
    partial.replace(destination)
  except OSError as error:
    raise errors.InputError(
      f'Cannot write {destination}: {error.strerror or error}.'
    ) from error
  finally:
    partial.unlink(missing_ok=True)
  return copy.changes


class _RepairedCopy:
  """Decides how each element of a COCO file is repaired, and writes the copy.

  Attributes:
    changes: The changes so far, in the order of the file.
  """

  def __init__(
    self,
    source: pathlib.Path,
    bad_images: dict[str, str],
    require_masks: bool,
    width_offset: float,
    has_corner_boxes: bool,
  ):
    """Reads the file, and decides which images stay and how boxes are repaired.

    Args:
      source: The file to repair.
      bad_images: {file_name: reason} of the images that cannot be used. A
        reason begins with its code.
      require_masks: Whether to leave out objects without a mask.
      width_offset: Number added to x2 - x1 to get the width of a box, and to
        y2 - y1 to get its height, in pixels: 0 or 1.
      has_corner_boxes: Whether the boxes look like (x1, y1, x2, y2).
    """
    self._source = source
    self._bad_images = bad_images
    self.changes: list[Change] = []
    # All lines are kept, because `_note_image` takes the reasons from them.
    report = findings.Report(stop=False, keep=sys.maxsize)
    self._images = coco_tables.ImageTable(str(source), report)
    self._category_ids: set[Any] = set()
    self._background_ids: set[Any] = set()
    # {position of an image in the list: why it is left out}
    self._left_out: dict[int, str] = {}
    # Ids of images that have a fault that cannot be repaired. They stay.
    self._undecided_ids: set[Any] = set()
    highest_id = 0
    for key, position, entry in json_stream.walk(source):
      if position < 0:
        continue
      if key == 'images':
        self._note_image(position, entry)
      elif key == 'categories' and isinstance(entry, dict):
        id_: Any = entry.get('id')
        name = entry.get('name')
        if type(id_) in (int, str) and isinstance(name, str):
          self._category_ids.add(id_)
          if coco_index.is_background(coco_index.Category(id_, name)):
            self._background_ids.add(id_)
      elif key == 'annotations' and isinstance(entry, dict):
        id_ = entry.get('id')
        if type(id_) is int:
          highest_id = max(highest_id, id_)
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

  def _note_image(self, position: int, entry: Any) -> None:
    """Decides whether an image is left out of the copy, and stores the reason.

    An image with a fault that nobody but the owner of the file can repair
    stays. So do its annotations, unchanged.

    Args:
      position: Index of the image in the list of images.
      entry: The image as the JSON parser returned it.
    """
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
      self._undecided_ids.add(entry['id'])

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

      for kept in self._repaired(key, position, entry):
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
    if key == 'images' and position in self._left_out:
      code, why = findings.split_code(self._left_out[position])
      self._note_change(
        code, f'image {position} of the list', f'left out: {why}'
      )
    elif (
      key == 'categories'
      and isinstance(entry, dict)
      and type(entry.get('id')) in (int, str)
      and entry['id'] in self._background_ids
    ):
      self._note_change(
        'A16',
        f'category {entry["id"]!r}',
        f'left out: its name is {entry["name"]!r}',
      )
    elif key == 'annotations':
      yield from self._repaired_annotation(position, entry)
    else:
      yield entry

  def _repaired_annotation(self, position: int, entry: Any) -> Iterator[Any]:
    """Yields the repaired annotation, or nothing if it is left out.

    Args:
      position: Index of the annotation in the list.
      entry: The annotation as the JSON parser returned it.
    """
    where = f'annotation {position} of the list'
    area_code = 'A26'
    if isinstance(entry, dict):
      where += f' (id {entry.get("id")!r})'
      image_id = entry.get('image_id')
      if (
        type(image_id) in coco_index.SCALARS and image_id in self._undecided_ids
      ):
        # The annotation cannot be checked without the right image.
        yield entry
        return
      entry = self._nest_polygon(entry, where)
      if self._converts_corners:
        entry = self._convert_corners(entry, where)
      if coco_annotations.is_invalid_area(entry.get('area')):
        area_code = 'A04'
        entry = entry | {'area': None}
    try:
      found, notes = self._reader.read(entry)
      category_id = entry.get('category_id')
      # A list or an object, which the file may have by mistake, cannot be
      # looked up in a set.
      is_id = type(category_id) in coco_index.SCALARS
      if is_id and category_id in self._background_ids:
        raise errors.InputError('A16: its category is background.')
      if not is_id or category_id not in self._category_ids:
        raise errors.InputError(
          f'A14: category_id {category_id!r} is no category of the file.'
        )
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
    entry = dict(entry)
    for code, why in notes:
      match code:
        case 'A05':
          entry['segmentation'] = [
            p for p in entry['segmentation'] if len(p) >= 6 and len(p) % 2 == 0
          ]
          self._note_change(code, where, f'polygons left out: {why}')
        case 'A02' if self._are_boxes_right:
          x1, y1, x2, y2 = found.box
          offset = self._reader.width_offset
          entry['bbox'] = [x1, y1, x2 - x1 + offset, y2 - y1 + offset]
          self._note_change(code, where, f'{why[:-1]}: {entry["bbox"]}.')
        case 'A12':
          entry['iscrowd'] = 0
          self._note_change(code, where, 'iscrowd set to 0.')
    if self._are_boxes_right or found.has_mask:
      self._fix_area(entry, found, where, area_code)
    id_ = entry.get('id')
    if type(id_) not in coco_index.SCALARS or id_ in self._used_ids:
      entry['id'] = self._next_id
      self._next_id += 1
      self._note_change('A18', where, f'id set to {entry["id"]}.')
    self._used_ids.add(entry['id'])
    yield entry

  def _nest_polygon(self, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the annotation with its flat polygon put into a list.

    Args:
      entry: The annotation. It is returned as it is if its segmentation is not
        a flat list of numbers.
      where: Name of the annotation, for the list of changes.
    """
    flat = entry.get('segmentation')
    if (
      isinstance(flat, list)
      and len(flat) >= 6
      and len(flat) % 2 == 0
      and all(type(x) in (int, float) for x in flat)
    ):
      self._note_change('A07', where, 'its flat polygon put into a list.')
      return entry | {'segmentation': [flat]}
    return entry

  def _convert_corners(
    self, entry: dict[str, Any], where: str
  ) -> dict[str, Any]:
    """Returns the annotation with its box converted from corners.

    Args:
      entry: The annotation. It is returned as it is if it has no valid box.
      where: Name of the annotation, for the list of changes.
    """
    if not coco_annotations.has_box(entry):
      return entry
    x1, y1, x2, y2 = entry['bbox']
    box = [x1, y1, x2 - x1, y2 - y1]
    self._note_change(
      'A03',
      where,
      f'its box {entry["bbox"]}, taken for (x1, y1, x2, y2), written as (x, y,'
      f' width, height): {box}.',
    )
    return entry | {'bbox': box}

  def _fix_area(
    self,
    entry: dict[str, Any],
    found: coco_annotations.Annotation,
    where: str,
    code: str,
  ) -> None:
    """Sets `area` if it is missing or differs much from the area of the mask.

    An object without a mask gets the area of its box.

    Args:
      entry: The annotation. It is changed in place.
      found: The same annotation, checked.
      where: Name of the annotation, for the list of changes.
      code: Code of the fault, for the list of changes.
    """
    area = found.mask_area
    if math.isnan(area) and len(found.parts):
      starts = np.array([0, len(found.parts)])
      areas, _ = outlines.measure_outlines(starts, found.vertices, found.parts)
      area = float(areas[0])
    if math.isnan(area) or not area:
      area = entry['bbox'][2] * entry['bbox'][3]
    disagrees = object_checks.areas_disagree(
      np.array([found.area]), np.array([float(area)])
    )[0]
    if math.isnan(found.area) or (found.has_mask and disagrees):
      entry['area'] = float(area)
      self._note_change(code, where, f'area set to {area:g}.')

  def _note_change(self, code: str, where: str, what: str) -> None:
    """Appends a change to the list of changes.

    Args:
      code: Code of the fault that was repaired.
      where: Name of the image, category or annotation.
      what: Description of the change.
    """
    self.changes.append(Change(code, where, what))
