"""A repaired copy of a COCO file, with a line for every change."""

from collections.abc import Iterator
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple, TextIO

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  coco_index,
  coco_objects,
  coco_tables,
  findings,
  json_stream,
)

# Of images, what leaving them out repairs.  What is left (an id twice, sizes
# that are wrong) nobody but the owner of the file can decide.
_IMAGE_CODES = frozenset(
  ('A19', 'I01', 'I02', 'I03', 'I09', 'I10', 'I11', 'I12', 'I15')
)


class Change(NamedTuple):
  """One thing that the copy has otherwise."""

  code: str  # of what was wrong
  where: str
  what: str

  def __str__(self) -> str:
    """Says it in one line."""
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
  """Writes a copy of a COCO file without what can be repaired.

  Args:
    source: The file.
    destination: A file that does not exist yet.
    bad_images: {file_name: why it cannot be used, code first}.
    require_masks: See `coco.read_coco`.
    width_offset: See `coco.read_coco`.
    has_corner_boxes: Whether the boxes look like (x1, y1, x2, y2). If every
      one can be that, all become (x, y, width, height); if not, none is
      changed.

  Returns:
    Every change, in the order of the file.

  Raises:
    InputError: If the copy cannot be written, or the file is not COCO.
  """
  if destination.exists():
    raise errors.InputError(
      f'{destination} is there already; give a new file to --fix.'
    )
  partial = destination.with_name(f'{destination.name}.partial')
  try:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, 'w', encoding='utf-8') as file:
      changes = _Repair(
        source, bad_images, require_masks, width_offset, has_corner_boxes
      )
      changes.write(file)
    partial.replace(destination)
  except OSError as error:
    raise errors.InputError(
      f'Cannot write {destination}: {error.strerror or error}.'
    ) from error
  finally:
    partial.unlink(missing_ok=True)
  return changes.made


class _Repair:
  """What is known of a file, and what was changed."""

  def __init__(
    self,
    source: pathlib.Path,
    bad_images: dict[str, str],
    require_masks: bool,
    width_offset: float,
    has_corner_boxes: bool,
  ):
    self._source = source
    self._bad_images = bad_images
    self.made: list[Change] = []
    # Of each image that is wrong the reason is looked up.
    report = findings.Report(stop=False, keep=sys.maxsize)
    self._images = coco_tables.ImageTable(str(source), report)
    self._categories = set()
    self._background = set()
    self._left_out: dict[int, str] = {}  # position of an image: why
    self._undecided: set = set()  # ids of images that are wrong and stay
    ids = []
    for key, position, entry in json_stream.walk(source):
      if position < 0:
        continue
      if key == 'images':
        self._note_image(position, entry)
      elif key == 'categories' and isinstance(entry, dict):
        id_, name = entry.get('id'), entry.get('name')
        if type(id_) in (int, str) and isinstance(name, str):
          self._categories.add(id_)
          if coco_index.is_background(coco_index.Category(id_, name)):
            self._background.add(id_)
      elif key == 'annotations' and isinstance(entry, dict):
        if type(entry.get('id')) in (int, float, str):
          ids.append(entry['id'])
    integers = [id_ for id_ in ids if type(id_) is int]
    self._next_id = max([0, *integers]) + 1
    self._ids: set = {0}
    self._objects = coco_objects.ObjectColumns(
      self._images, require_masks=require_masks, width_offset=width_offset
    )
    self._turns_corners = has_corner_boxes and all(
      coco_objects.can_be_corners(entry, self._images)
      for key, position, entry in json_stream.walk(source)
      if key == 'annotations' and position >= 0
    )
    # What a box says that is no (x, y, width, height) is good for nothing.
    self._are_boxes_right = self._turns_corners or not has_corner_boxes

  def _note_image(self, position: int, entry: Any) -> None:
    """Decides whether an image stays."""
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
      self._undecided.add(entry['id'])

  def write(self, file: TextIO) -> None:
    """Writes the copy."""
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
      for kept in self._kept(key, position, entry):
        file.write(comma + json.dumps(kept))
        comma = ',\n'
    file.write(open_list + '}\n')

  def _kept(self, key: str, position: int, entry: Any) -> Iterator[Any]:
    """Yields what stays of an element of a list."""
    if key == 'images' and position in self._left_out:
      code, why = findings.split_code(self._left_out[position])
      self._change(code, f'image {position} of the list', f'left out: {why}')
    elif (
      key == 'categories'
      and isinstance(entry, dict)
      and type(entry.get('id')) in (int, str)
      and entry['id'] in self._background
    ):
      self._change(
        'A16',
        f'category {entry["id"]!r}',
        f'left out: it is called {entry["name"]!r}',
      )
    elif key == 'annotations':
      yield from self._annotation(position, entry)
    else:
      yield entry

  def _annotation(self, position: int, entry: Any) -> Iterator[dict]:
    """Yields the annotation as it should be, if it stays."""
    where = f'annotation {position} of the list'
    area_code = 'A26'
    if isinstance(entry, dict):
      where += f' (id {entry.get("id")!r})'
      image_id = entry.get('image_id')
      if type(image_id) in (int, float, str) and image_id in self._undecided:
        # Whether it is right cannot be told.
        yield entry
        return
      entry = self._nest(entry, where)
      if self._turns_corners:
        entry = self._turn_corners(entry, where)
      if coco_objects.is_strange_area(entry.get('area')):
        area_code = 'A04'
        entry = entry | {'area': None}
    try:
      found, notes = self._objects.read(entry)
      if entry.get('category_id') in self._background:
        raise errors.InputError('A16: its category is background.')
      if entry.get('category_id') not in self._categories:
        raise errors.InputError(
          f'A14: category_id {entry.get("category_id")!r} is no category of'
          ' the file.'
        )
    except errors.InputError as error:
      code, why = findings.split_code(str(error))
      self._change(code, where, f'left out: {why}')
      return
    if found is None:
      code, why = next(
        (note for note in notes if note[0] in ('A01', 'A02', 'A05', 'A06')),
        ('I01', 'its image is left out'),
      )
      self._change(code, where, f'left out: {why}')
      return
    entry = dict(entry)
    for code, why in notes:
      match code:
        case 'A05':
          entry['segmentation'] = [
            p for p in entry['segmentation'] if len(p) >= 6 and len(p) % 2 == 0
          ]
          self._change(code, where, f'polygons left out: {why}')
        case 'A02' if self._are_boxes_right:
          x1, y1, x2, y2 = found.box
          offset = self._objects.width_offset
          entry['bbox'] = [x1, y1, x2 - x1 + offset, y2 - y1 + offset]
          self._change(code, where, f'{why[:-1]}: {entry["bbox"]}.')
        case 'A12':
          entry['iscrowd'] = 0
          self._change(code, where, 'iscrowd set to 0.')
    if self._are_boxes_right or found.has_mask:
      self._fix_area(entry, found, where, area_code)
    id_ = entry.get('id')
    if type(id_) not in (int, float, str) or id_ in self._ids:
      entry['id'] = self._next_id
      self._next_id += 1
      self._change('A18', where, f'id set to {entry["id"]}.')
    self._ids.add(entry['id'])
    yield entry

  def _nest(self, entry: dict, where: str) -> dict:
    """Puts the numbers of a flat polygon into a list of their own."""
    flat = entry.get('segmentation')
    if (
      isinstance(flat, list)
      and len(flat) >= 6
      and len(flat) % 2 == 0
      and all(type(x) in (int, float) for x in flat)
    ):
      self._change('A07', where, 'its flat polygon put into a list.')
      return entry | {'segmentation': [flat]}
    return entry

  def _turn_corners(self, entry: dict, where: str) -> dict:
    """Writes a box that has its corners as COCO does."""
    if not coco_objects.has_box(entry):
      return entry
    x1, y1, x2, y2 = entry['bbox']
    box = [x1, y1, x2 - x1, y2 - y1]
    self._change(
      'A03',
      where,
      f'its box {entry["bbox"]} taken for corners and written as (x, y,'
      f' width, height): {box}.',
    )
    return entry | {'bbox': box}

  def _fix_area(
    self, entry: dict, found: coco_objects.Object, where: str, code: str
  ) -> None:
    """Sets an area that is missing or far from that of the mask."""
    area = found.mask_area
    if math.isnan(area) and len(found.parts):
      starts = np.array([0, len(found.parts)])
      areas, _ = coco_objects.outline_figures(
        starts, found.vertices, found.parts
      )
      area = areas[0]
    if math.isnan(area) or not area:
      area = entry['bbox'][2] * entry['bbox'][3]
    one = np.array([found.area]), np.array([float(area)])
    if math.isnan(found.area) or (
      found.has_mask and coco_objects.far_apart(*one)[0]
    ):
      entry['area'] = float(area)
      self._change(code, where, f'area set to {area:g}.')

  def _change(self, code: str, where: str, what: str) -> None:
    self.made.append(Change(code, where, what))
