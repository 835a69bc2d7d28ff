"""Writes a repaired copy of a COCO file, and lists every change."""

from collections.abc import Iterable, Iterator
import json
import os
import pathlib
import sys
from typing import Any, NamedTuple, TextIO

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  coco_annotations,
  coco_index,
  coco_tables,
  findings,
  json_stream,
  mask_values,
)
from maskrcnn_jax.data.repair import annotation_repairs, ids
from maskrcnn_jax.data.repair.image_repairs import ImageRepair

# Codes of the faults of images that are repaired by leaving the image out. Only
# the owner of the file can repair the others, such as an id that two images
# have, or a wrong size.
_IMAGE_CODES = frozenset(
  ('A19', 'I01', 'I02', 'I03', 'I09', 'I10', 'I11', 'I12', 'I15')
)


_SAME_ENTRY = 'an equal entry comes before it.'


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
  has_fractions: bool = False,
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
    has_fractions: Whether many coordinates look like fractions of the size of
      the image. Masks in 0..1 are then multiplied by this size.

  Returns:
    Every change, and the numbers of elements that are left.

  Raises:
    InputError: If the copy exists already or cannot be written, or if the file
      is not JSON.
  """
  if destination is not None and os.path.lexists(destination):
    raise errors.InputError(
      f'{destination} exists already; give a new file to --fix.'
    )
  copy = _RepairedCopy(
    source,
    image_repairs,
    bad_images,
    require_masks,
    width_offset,
    has_corner_boxes,
    has_fractions,
  )
  if destination is None:
    with open(os.devnull, 'w', encoding='utf-8') as file:
      copy.write(file)
    return copy.outcome()
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
    has_fractions: bool,
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
      has_fractions: Whether coordinates look like fractions of the image size.
    """
    self._source = source
    self._image_repairs = image_repairs
    self._bad_images = bad_images
    self._has_fractions = has_fractions
    self.changes: list[Change] = []
    # {name of a list: number of elements}, in the original and in the copy
    self._totals = {'images': 0, 'annotations': 0}
    self._kept = {'images': 0, 'annotations': 0}
    # All lines are kept, because `_note_image` takes the reasons from them.
    report = findings.Report(stop=False, keep=sys.maxsize)
    self._images = coco_tables.ImageTable(str(source), report)
    # {name of a list: {id: hash of the first entry with this id}}
    self._contents: dict[str, dict[Any, int]] = {'images': {}, 'categories': {}}
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
          image_names.append((entry['id'], coco_tables.file_name_of(entry)))
      elif key == 'categories' and isinstance(entry, dict):
        entry, _ = annotation_repairs.repair_category(entry)
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
    if self._is_repeated('images', entry):
      self._left_out[position] = f'A17: {_SAME_ENTRY}'
      return entry
    before = len(self._images.report.kept)
    name = coco_tables.file_name_of(entry) if isinstance(entry, dict) else ''
    why = self._bad_images.get(name, '')
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

  def _is_repeated(self, key: str, entry: Any) -> bool:
    """Tells whether an equal entry with the same id has come before.

    Args:
      key: Name of the list: 'images' or 'categories'.
      entry: The entry. It is remembered.
    """
    id_: Any = entry.get('id') if isinstance(entry, dict) else None
    if type(id_) not in coco_index.SCALARS:
      return False
    # The hash takes less memory than the entry.
    content = hash(json.dumps(entry, sort_keys=True))
    is_first = id_ not in self._contents[key]
    return self._contents[key].setdefault(id_, content) == content and (
      not is_first
    )

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
      entry, changes = annotation_repairs.repair_category(entry)
      id_ = entry.get('id')
      if type(id_) in (int, str) and id_ in self._background_ids:
        what = f'left out: its name is {entry["name"]!r}'
        self._note_changes(where, [('A16', what)])
        return
      if self._is_repeated('categories', entry):
        self._note_changes(where, [('A15', f'left out: {_SAME_ENTRY}')])
        return
      self._note_changes(where, changes)
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
      self._note_changes(where, [(code, f'left out: {why}')])
      return
    if position in self._image_repairs:
      entry, changes = self._image_repairs[position]
      self._note_changes(where, changes)
    yield entry

  def _repaired_annotation(self, position: int, entry: Any) -> Iterator[Any]:
    """Yields the repaired annotation, or nothing if it is left out.

    Args:
      position: Index of the annotation in the list.
      entry: The annotation as the JSON parser returned it.
    """
    where = f'annotation {position} of the list'
    if not isinstance(entry, dict):
      self._note_changes(where, [('A25', 'left out: it is not an object.')])
      return
    where += f' (id {entry.get("id")!r})'
    entry = dict(entry)
    changes = [
      *annotation_repairs.repair_id(entry, 'image_id', self._image_ids),
      *annotation_repairs.repair_id(entry, 'category_id', self._category_ids),
    ]
    image_id = entry.get('image_id')
    is_id = type(image_id) in coco_index.SCALARS
    # An annotation cannot be checked without the right image.
    if not (is_id and image_id in self._undecided_images):
      changes += self._repair_values(entry)
      try:
        changes += self._checked(entry)
      except errors.InputError as error:
        code, why = findings.split_code(str(error))
        self._note_changes(where, [(code, f'left out: {why}')])
        return
    self._note_changes(where, changes)
    yield entry

  def _checked(self, entry: dict[str, Any]) -> annotation_repairs.Changes:
    """Checks a repaired annotation, and repairs the faults that this finds.

    Args:
      entry: The annotation. It is changed in place.

    Returns:
      The changes.

    Raises:
      InputError: If the annotation must be left out. The message begins with
        the code.
    """
    area_code = 'A26'
    if coco_annotations.is_invalid_area(entry.get('area')):
      area_code = 'A04'
      entry['area'] = None
    found, notes = self._reader.read(entry)
    self._check_category(entry.get('category_id'))
    if found is None:
      code, why = next(
        (note for note in notes if note[0] in ('A01', 'A02', 'A05', 'A06')),
        ('I01', 'its image is left out'),
      )
      raise errors.InputError(f'{code}: {why}')
    changes: annotation_repairs.Changes = []
    for code, why in notes:
      match code:
        case 'A05':
          entry['segmentation'] = mask_values.usable_polygons(
            entry['segmentation']
          )
          changes.append((code, f'polygons left out: {why}'))
        case 'A02' if self._are_boxes_right:
          x1, y1, x2, y2 = found.box
          offset = self._reader.width_offset
          entry['bbox'] = [x1, y1, x2 - x1 + offset, y2 - y1 + offset]
          changes.append((code, f'{why[:-1]}: {entry["bbox"]}.'))
        case 'A12':
          entry['iscrowd'] = 0
          changes.append((code, 'iscrowd set to 0.'))
    changes += annotation_repairs.repair_area(
      entry,
      found,
      self._images.heights[found.row],
      self._images.widths[found.row],
      code=area_code,
      may_use_box=self._are_boxes_right,
    )
    id_: Any = entry.get('id')
    if type(id_) not in coco_index.SCALARS or id_ in self._used_ids:
      entry['id'] = self._next_id
      self._next_id += 1
      changes.append(('A18', f'id set to {entry["id"]}.'))
    self._used_ids.add(entry['id'])
    return changes

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

  def _repair_values(self, entry: dict[str, Any]) -> annotation_repairs.Changes:
    """Repairs the crowd flag, the mask and the box of an annotation.

    Args:
      entry: The annotation. It is changed in place.

    Returns:
      The changes.
    """
    changes = annotation_repairs.repair_plain_values(entry)
    id_: Any = entry.get('image_id')
    is_id = type(id_) in coco_index.SCALARS
    row = self._images.rows.get(id_, -1) if is_id else -1
    if row < 0:
      return changes
    size = self._images.heights[row], self._images.widths[row]
    if self._converts_corners:
      changes += annotation_repairs.convert_corners(entry)
    changes += annotation_repairs.repair_mask(entry, *size)
    if self._has_fractions:
      changes += annotation_repairs.scale_fractions(entry, *size)
    if self._are_boxes_right:
      changes += annotation_repairs.repair_empty_box(
        entry, *size, self._reader.width_offset
      )
    return changes

  def _note_changes(
    self, where: str, changes: Iterable[tuple[str, str]]
  ) -> None:
    """Appends changes of one element to the list of changes.

    Args:
      where: Name of the image, category or annotation.
      changes: (code of the fault, description) of each change.
    """
    # A description may quote a long value of the file.
    where = findings.printable(where)
    self.changes += [
      Change(code, where, findings.printable(what)) for code, what in changes
    ]
