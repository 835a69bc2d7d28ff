"""The objects of a COCO file: read one by one, checked, and put into columns.

Axis letters here: m objects, v outline vertices of all objects.
"""

import array
import functools
import math
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings, outlines
from maskrcnn_jax.data.coco_index import (
  BAD_POLYGON,
  NO_AREA,
  NO_POLYGON,
  NO_SEGMENTATION,
  NUMBERS,
  REASONS,
  SCALARS,
  Category,
  CocoIndex,
  is_background,
)
from maskrcnn_jax.data.coco_tables import ImageTable

# A longer outline would cost the step gigabytes: it is compared with each row
# of the mask of each RoI.
MAX_OBJECT_VERTICES = 1 << 15

# A box may stick out by as much as rounding explains.
_ROUNDING = 1.0

# Pixels, and pixels squared; no image has as many.
_MAX_SIDE = 1e9
_MAX_AREA = 1e18

# Share of boxes that stick out from which on they are taken for corners.
_MAX_BEYOND = 0.2

# Boxes that overlap their mask's less than this disagree with it, and share of
# objects for which that is an error.
MIN_BOX_IOU = 0.5
_MAX_DISAGREE = 0.2

# Objects whose outlines are moved at a time.
_BLOCK = 1 << 14


class Object(NamedTuple):
  """An annotation as read."""

  row: int
  box: tuple[float, float, float, float]  # clipped corners
  category_id: Any
  is_crowd: bool
  area: float  # nan where the file has no usable one
  mask_area: float  # nan where the outline has to tell
  vertices: np.ndarray
  parts: np.ndarray
  has_mask: bool


class ObjectColumns:
  """The objects of a file, read one by one."""

  def __init__(
    self, images: ImageTable, *, require_masks: bool, width_offset: float
  ):
    """Starts without objects.

    Args:
      images: May be filled until the first object comes.
      require_masks: See `read_coco`.
      width_offset: See `read_coco`.
    """
    self._images = images
    self._report = images.report
    self._require_masks = require_masks
    self.width_offset = width_offset
    self._num_entries = 0
    self._dropped = dict.fromkeys(REASONS, 0)
    # Of cases that are no error while they are few, and of those that are none
    # at all but worth a line.
    self._shares = dict.fromkeys(('A01', 'A02', 'A05', 'A06'), 0)
    self._tally: dict[str, tuple[int, str]] = {}
    # Boxes that stick out, read in either way.
    self._beyond = self._beyond_as_corners = 0

    self._rows = array.array('q')
    self._boxes = array.array('d')
    self._category_ids: list = []
    self._ids: list = []
    self._positions = array.array('q')
    self._crowd = array.array('b')
    self._has_mask = array.array('b')
    self._areas = array.array('d')
    self._mask_areas = array.array('d')
    self._lengths = array.array('q')
    self._vertices: list[np.ndarray] = []
    self._parts: list[np.ndarray] = []
    self._blocks: list[tuple[np.ndarray, np.ndarray]] = []

  def add(self, position: int, entry: Any) -> None:
    """Adds an entry of the JSON's list, or reports what is wrong with it."""
    self._num_entries += 1
    id_ = entry.get('id') if isinstance(entry, dict) else None
    if type(id_) not in SCALARS:
      id_ = None
    try:
      found, notes = self.read(entry)
    except errors.InputError as error:
      self._report.error_of(
        self._images.name, _annotation(id_, position), error
      )
      return
    for code, reason in notes:
      if code in self._shares:
        self._shares[code] += not reason.startswith('clipped')
        self._report.warn(
          code,
          self._images.name,
          _annotation(id_, position),
          reason,
          row=self._images.rows.get(entry['image_id'], -1),
        )
      else:
        count, first = self._tally.get(code, (0, ''))
        self._tally[code] = count + 1, first or _annotation(id_, position)
    if found is None:
      return
    self._rows.append(found.row)
    self._boxes.extend(found.box)
    self._category_ids.append(found.category_id)
    self._ids.append(id_)
    self._positions.append(position)
    self._crowd.append(found.is_crowd)
    self._has_mask.append(found.has_mask)
    self._areas.append(found.area)
    self._mask_areas.append(found.mask_area)
    self._lengths.append(len(found.parts))
    self._vertices.append(found.vertices)
    self._parts.append(found.parts)
    if len(self._parts) >= _BLOCK:
      self._close_block()

  def read(self, entry: Any) -> tuple[Object | None, list[tuple[str, str]]]:
    """Reads one entry of the JSON's list.

    Returns:
      The object, None if it is left out; and (code, reason) of what a person
      should know about it.

    Raises:
      InputError: If it is wrong; the message begins with the code.
    """
    if not isinstance(entry, dict):
      raise errors.InputError('A25: it is not an object.')
    notes: list[tuple[str, str]] = []
    row = _look_up(entry, 'image_id', self._images.rows)
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
    self._beyond += is_beyond
    self._beyond_as_corners += (
      w > width + _ROUNDING or h > height + _ROUNDING or w <= x or h <= y
    )
    offset = self.width_offset
    box = (
      max(x, 0.0),
      max(y, 0.0),
      min(x + max(w - offset, 0), width - offset),
      min(y + max(h - offset, 0), height - offset),
    )
    outline, mask_area, num_bad = _read_segmentation(
      entry.get('segmentation'), height, width, bool(is_crowd)
    )
    has_mask = mask_area is not None
    area = entry.get('area')
    if is_strange_area(area):
      raise errors.InputError(
        f'A04: area is {_short(area)}; it must be a positive finite number.'
      )
    if not area:
      area = math.nan
      notes.append(('A26', 'area is missing'))

    if num_bad:
      self._dropped[BAD_POLYGON] += num_bad
      notes.append(
        (
          'A05',
          f'{num_bad} of its {len(entry["segmentation"])} polygons have fewer'
          ' than 6 numbers or an odd count.',
        )
      )
    if not (box[2] > box[0] and box[3] > box[1]):
      self._dropped[NO_AREA] += 1
      notes.append(
        ('A01', f'its box {entry["bbox"]} has no area.')
        if min(w, h) <= offset
        else ('A02', f'its box {entry["bbox"]} is outside of the image.')
      )
      return None, notes
    if is_beyond or x < -_ROUNDING or y < -_ROUNDING:
      notes.append(('A02', f'clipped its box {entry["bbox"]} to the image.'))
    if not has_mask and not is_crowd and self._require_masks:
      self._dropped[NO_POLYGON if num_bad else NO_SEGMENTATION] += 1
      if not num_bad:
        notes.append(('A06', 'it has no segmentation.'))
      return None, notes
    return Object(
      row=row,
      box=box,
      category_id=category_id,
      is_crowd=bool(is_crowd),
      area=float(area),
      mask_area=mask_area if has_mask else math.nan,
      vertices=outline[0],
      parts=outline[1],
      has_mask=has_mask,
    ), notes

  def finish(self, categories: tuple[Category, ...]) -> CocoIndex:
    """Looks at all objects together and returns the index."""
    name, report, images = self._images.name, self._report, self._images
    total = self._num_entries
    for code, count in self._shares.items():
      if count > findings.MAX_SHARE * total:
        advice = (
          ''
          if code != 'A06'
          else (
            ' A model of boxes alone (config.model.output=boxes) needs no'
            ' masks.'
          )
        )
        report.error(
          code,
          name,
          '',
          f'{count} of {total} objects: {findings.MEANINGS[code]}. So many'
          ' are no accident; python -m maskrcnn_jax.check_data lists them,'
          f' and with --fix=OUT.json leaves them out.{advice}',
          count=0,
        )
    # Boxes (x, y, width, height) of objects right of the middle cannot be read
    # as corners, so that all can be is no chance.
    if self._beyond > _MAX_BEYOND * total and not self._beyond_as_corners:
      report.error(
        'A03',
        name,
        '',
        f'{self._beyond} of {total} boxes stick out of their images, and all'
        ' fit when read as (x1, y1, x2, y2); COCO boxes are (x, y, width,'
        ' height). python -m maskrcnn_jax.check_data --fix=OUT.json turns'
        ' them.',
        count=self._beyond,
      )
    classes = self._find_classes(categories)
    self._check_ids()

    # Objects of an image side by side, in the order of the file.
    rows = np.array(self._rows, np.int64)
    known = np.flatnonzero(classes)
    order = known[np.argsort(rows[known], kind='stable')]
    boxes = np.array(self._boxes, np.float32).reshape(-1, 4)[order]
    crowd = np.array(self._crowd, bool)[order]
    mask_areas = np.array(self._mask_areas)[order]
    areas = np.array(self._areas)[order]
    has_mask = np.array(self._has_mask, bool)[order] & ~crowd
    starts, vertices, parts = self._sorted_outlines(order)
    per_image = np.bincount(rows[order], minlength=len(images.ids))
    index = CocoIndex(
      categories=categories,
      image_ids=images.ids,
      file_names=images.file_names,
      heights=np.array(images.heights, np.int32),
      widths=np.array(images.widths, np.int32),
      object_starts=_starts(per_image),
      boxes=boxes,
      classes=classes[order].astype(np.int32),
      crowd=crowd,
      areas=areas,
      annotation_ids=[self._ids[i] for i in order.tolist()],
      outline_starts=starts,
      vertices=vertices,
      parts=parts,
      dropped={
        reason: count for reason, count in self._dropped.items() if count
      },
    )
    rows = rows[order]
    outline_areas, bounds = outline_figures(starts, vertices, parts)
    mask_areas = np.where(np.isnan(mask_areas), outline_areas, mask_areas)
    sides = boxes[:, 2:] - boxes[:, :2] + self.width_offset
    computed = np.where(
      has_mask | crowd & (mask_areas > 0), mask_areas, sides.prod(axis=1)
    )
    is_wrong = has_mask & far_apart(areas, mask_areas)
    index.areas[:] = np.where(np.isnan(areas), computed, areas)
    labels = functools.partial(self._label, order)
    self._check_masks(has_mask, mask_areas, rows, labels)
    self._check_boxes(index, rows, bounds, has_mask, labels)
    self._check_tally(is_wrong, labels)
    self._check_classes(index)
    return index

  def _find_classes(
    self, categories: tuple[Category, ...]
  ) -> Int[np.ndarray, 'm']:
    """Looks up the class of each object, 0 where there is none."""
    numbers = {c.id: i for i, c in enumerate(categories, start=1)}
    classes = np.zeros(len(self._category_ids), np.int64)
    for i, id_ in enumerate(self._category_ids):
      try:
        classes[i] = _look_up({'category_id': id_}, 'category_id', numbers)
      except errors.InputError as error:
        self._report.error_of(
          self._images.name,
          _annotation(self._ids[i], self._positions[i]),
          error,
        )
    self._category_ids = []
    return classes

  def _check_ids(self) -> None:
    """Counts the annotation ids that no program may rely on."""
    missing = self._ids.count(None)
    twice = len(self._ids) - missing - len(set(self._ids) - {None})
    zero = self._ids.count(0)
    if missing or twice or zero:
      self._report.warn(
        'A18',
        self._images.name,
        '',
        f'of the ids of annotations {missing} are missing, {twice} come twice'
        f' and {zero} are 0; they are numbered anew in memory.',
        count=missing + twice + zero,
      )

  def _label(self, order: np.ndarray, j: int) -> str:
    """Names the j-th object of the index."""
    return _annotation(self._ids[order[j]], self._positions[order[j]])

  def _check_masks(self, has_mask, mask_areas, rows, label) -> None:
    """Reports masks that no pixel is in."""
    for j in np.flatnonzero(has_mask & (mask_areas == 0)).tolist():
      self._report.warn(
        'A10',
        self._images.name,
        label(j),
        'no pixel is in its mask; its box is learned, no mask.',
        row=int(rows[j]),
      )

  def _check_boxes(self, index, rows, bounds, has_mask, label) -> None:
    """Reports boxes that are not those of their masks."""
    overlaps = box_mask_iou(index, rows, bounds, self.width_offset)
    apart = np.flatnonzero(has_mask & (overlaps < MIN_BOX_IOU))
    apart = apart[np.argsort(overlaps[apart], kind='stable')]
    for j in apart.tolist():
      self._report.warn(
        'A11',
        self._images.name,
        label(j),
        f'its box and that of its mask overlap by {overlaps[j]:.2f} only'
        ' (IoU).',
        row=int(rows[j]),
      )
    if len(apart) > _MAX_DISAGREE * max(has_mask.sum(), 1):
      self._report.error(
        'A11',
        self._images.name,
        '',
        f'{len(apart)} of {has_mask.sum()} boxes are not those of their'
        ' masks; one of the two is wrong.',
        count=0,
      )

  def _check_tally(self, is_wrong: np.ndarray, label) -> None:
    """Reports what is worth one line however often it comes."""
    for code, field, instead in (
      ('A12', 'iscrowd', 'taken to be 0'),
      ('A26', 'area', 'computed from the mask'),
    ):
      count, first = self._tally.get(code, (0, ''))
      if count:
        self._report.warn(
          code,
          self._images.name,
          '',
          f'{count} annotations have no {field} (first: {first}); it is'
          f' {instead}.',
          count=count,
        )
    wrong = np.flatnonzero(is_wrong).tolist()
    if wrong:
      self._report.warn(
        'A26',
        self._images.name,
        '',
        f'{len(wrong)} areas are not even half or twice that of the mask'
        f' (first: {label(wrong[0])}); AP of small, medium and large objects'
        ' goes by them.',
        count=len(wrong),
      )

  def _check_classes(self, index: CocoIndex) -> None:
    """Reports classes that have no object, or should have none."""
    counts = np.bincount(
      index.classes[~index.crowd], minlength=len(index.categories) + 1
    )[1:].tolist()
    for category, count in zip(index.categories, counts, strict=True):
      if is_background(category):
        add = self._report.error if count else self._report.warn
        add(
          'A16',
          self._images.name,
          f'category {category.id!r}',
          f'it is called {category.name!r} and has {count} objects; what no'
          ' object covers is background already, so leave it out.',
        )
    empty = [
      category.name
      for category, count in zip(index.categories, counts, strict=True)
      if not count and not is_background(category)
    ]
    if empty and len(index.classes):
      shown = ', '.join(empty[:10]) + (', ...' if len(empty) > 10 else '')
      self._report.warn(
        'A22',
        self._images.name,
        '',
        f'{len(empty)} of {len(index.categories)} classes have no objects:'
        f' {shown}.',
        count=len(empty),
      )

  def _close_block(self) -> None:
    """Joins the outlines of the last objects."""
    if self._parts:
      self._blocks.append(
        (np.concatenate(self._vertices), np.concatenate(self._parts))
      )
      self._vertices, self._parts = [], []

  def _sorted_outlines(
    self, order: Int[np.ndarray, 'm']
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns starts, vertices and parts of the objects in an order."""
    self._close_block()
    blocks, self._blocks = self._blocks, []
    vertices = np.concatenate([_NOTHING[0], *(v for v, _ in blocks)])
    parts = np.concatenate([_NOTHING[1], *(p for _, p in blocks)])
    del blocks
    lengths = np.array(self._lengths, np.int64)
    sources = _starts(lengths)[:-1][order]
    lengths = lengths[order]
    starts = _starts(lengths)
    if len(order) == len(self._lengths) and (np.diff(sources) >= 0).all():
      return starts, vertices, parts
    sorted_vertices = np.empty((starts[-1], 2), np.float32)
    sorted_parts = np.empty(starts[-1], np.int16)
    for first in range(0, len(order), _BLOCK):
      chosen = slice(first, first + _BLOCK)
      begin, end = starts[first], starts[min(first + _BLOCK, len(order))]
      where = np.repeat(sources[chosen] - starts[:-1][chosen], lengths[chosen])
      where += np.arange(begin, end)
      sorted_vertices[begin:end] = vertices[where]
      sorted_parts[begin:end] = parts[where]
    return starts, sorted_vertices, sorted_parts


def outline_figures(
  starts: Int[np.ndarray, ' m1'],
  vertices: Float[np.ndarray, 'v 2'],
  parts: Int[np.ndarray, ' v'],
) -> tuple[Float[np.ndarray, 'm'], Float[np.ndarray, 'm 4']]:
  """Measures outlines.

  Args:
    starts: As in `CocoIndex.outline_starts`.
    vertices: Of all objects.
    parts: Likewise.

  Returns:
    Areas: the sum of those of the polygons (shoelace), which says nothing of
    an outline that was an RLE. And the boxes around them, nan around nothing.
  """
  count = len(starts) - 1
  areas = np.zeros(count)
  bounds = np.full((count, 4), np.nan)
  for first in range(0, count, _BLOCK):
    last = min(first + _BLOCK, count)
    begin, end = starts[first], starts[last]
    if begin == end:
      continue
    v = vertices[begin:end].astype(np.float64)
    p = parts[begin:end]
    lengths = np.diff(starts[first : last + 1])
    there = first + np.flatnonzero(lengths)
    heads = starts[there] - begin
    bounds[there, :2] = np.minimum.reduceat(v, heads)
    bounds[there, 2:] = np.maximum.reduceat(v, heads)
    x, y = v.T
    cross = (x * np.roll(y, -1) - np.roll(x, -1) * y) * (p >= 0)
    # A part begins where an object does, or behind a vertex without an edge.
    is_head = np.append(True, p[:-1] < 0)
    is_head[heads] = True
    heads_of_parts = np.flatnonzero(is_head)
    polygons = np.abs(np.add.reduceat(cross, heads_of_parts)) / 2
    owner = np.repeat(np.arange(first, last), lengths)[heads_of_parts]
    areas[first:last] = np.bincount(
      owner - first, polygons, minlength=last - first
    )
  return areas, bounds


def box_mask_iou(
  index: CocoIndex,
  rows: Int[np.ndarray, 'm'],
  bounds: Float[np.ndarray, 'm 4'],
  width_offset: float,
) -> Float[np.ndarray, 'm']:
  """Compares each box with the one around its mask.

  A last pixel more or less is a matter of convention; the better of the two
  readings counts.

  Args:
    index: Has the boxes.
    rows: Image of each object.
    bounds: Around the outlines; not yet clipped.
    width_offset: Of the boxes.

  Returns:
    IoU; 1 where there is no outline.
  """
  far = np.stack([index.widths[rows], index.heights[rows]], axis=1)
  boxes = index.boxes.astype(np.float64)
  boxes[:, 2:] += width_offset
  best = np.zeros(len(boxes))
  for more in (0.0, 1.0):
    low = np.clip(bounds[:, :2], 0, far)
    high = np.clip(bounds[:, 2:] + more, 0, far)
    shared = np.clip(
      np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None
    ).prod(axis=1)
    both = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    both += (high - low).prod(axis=1)
    best = np.maximum(best, shared / np.maximum(both - shared, 1e-9))
  return np.where(np.isnan(bounds[:, 0]), 1, best)


def far_apart(
  areas: Float[np.ndarray, 'm'], mask_areas: Float[np.ndarray, 'm']
) -> Bool[np.ndarray, 'm']:
  """Tells which areas are off by more than a factor and rounding explain."""
  ratio = np.maximum(areas, 1e-9) / np.maximum(mask_areas, 1e-9)
  return ((ratio > 2) | (ratio < 0.5)) & (np.abs(areas - mask_areas) > 16)


def is_strange_area(area: Any) -> bool:
  """Tells whether an area is given, but as nothing that can be one."""
  return bool(area) and not (type(area) in NUMBERS and 0 < area < _MAX_AREA)


def has_box(entry: Any) -> bool:
  """Tells whether an entry of the JSON's list has a box of four numbers."""
  box = entry.get('bbox') if isinstance(entry, dict) else None
  return (
    isinstance(box, list)
    and len(box) == 4
    and all(
      type(side) in NUMBERS and -_MAX_SIDE < side < _MAX_SIDE for side in box
    )
  )


def can_be_corners(entry: Any, images: ImageTable) -> bool:
  """Tells whether a box may be (x1, y1, x2, y2), inside of its image.

  Args:
    entry: Of the JSON's list. One that has no box, or is of no image that can
      be used, has nothing against it.
    images: Of the file.
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


def _annotation(id_: Any, position: int) -> str:
  """Names an annotation."""
  if id_ is None:
    return f'annotation {position} of the list'
  return f'annotation {id_!r}'


def _look_up(entry: dict, field: str, table: dict) -> int:
  """Finds an annotation's image or category."""
  key = entry.get(field)
  if type(key) in SCALARS and key in table:
    return table[key]
  # A table of a million ids is not searched for each of a million orphans.
  near = () if len(table) > 10_000 else table
  other = next((k for k in near if str(k) == str(key)), None)
  hint = '' if other is None else f' (there is {other!r}; write it alike)'
  what = 'image' if field == 'image_id' else 'category'
  raise errors.InputError(
    f'A14: {field} {key!r} is no {what} of the file{hint}.'
  )


def _read_box(entry: dict) -> tuple[float, float, float, float]:
  """Reads (x, y, width, height)."""
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
  return tuple(map(float, box))


def _short(value: Any) -> str:
  """Shows a value in at most 100 characters."""
  text = repr(value)
  return text if len(text) <= 100 else f'{text[:97]}...'


_NOTHING = np.zeros((0, 2), np.float32), np.zeros(0, np.int16)


def _read_segmentation(
  segmentation: object, height: int, width: int, is_crowd: bool
) -> tuple[tuple[np.ndarray, np.ndarray], float | None, int]:
  """Reads a mask.

  Returns:
    The outline, nothing for a crowd; the area, nan if the outline has to tell
    and None if there is no mask; and how many polygons are bad.
  """
  if not segmentation:
    return _NOTHING, None, 0
  if isinstance(segmentation, dict):
    counts = outlines.rle_counts(segmentation, height, width)
    area = float(counts[1::2].sum())
    if is_crowd:
      return _NOTHING, area, 0
    return _not_too_long(outlines.rle_to_outline(counts, height)), area, 0
  if not isinstance(segmentation, list):
    raise errors.InputError(
      f'A07: segmentation is a {type(segmentation).__name__}, neither a list'
      ' of polygons nor an RLE.'
    )
  if not all(isinstance(polygon, list) for polygon in segmentation):
    raise errors.InputError(
      'A07: segmentation is a flat list of numbers; put each polygon into a'
      ' list of its own: [[x1, y1, x2, y2, ...]].'
    )
  good = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
  bad = len(segmentation) - len(good)
  if not good:
    return _NOTHING, None, bad if any(segmentation) else 0
  outline = outlines.polygons_to_outline(good)
  if is_crowd:
    starts = np.array([0, len(outline[1])])
    return _NOTHING, float(outline_figures(starts, *outline)[0][0]), bad
  return _not_too_long(outline), math.nan, bad


def _not_too_long(
  outline: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns an outline that the training step can afford."""
  if len(outline[1]) > MAX_OBJECT_VERTICES:
    raise errors.InputError(
      f'A27: the outline has {len(outline[1])} vertices, more than'
      f' {MAX_OBJECT_VERTICES}; simplify it.'
    )
  return outline


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Turns lengths into where each begins, and the end of the last."""
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
