"""Collects the objects of a COCO file and makes the index of them.

Axis letters here: m objects, v outline vertices of all objects.
"""

import array
import functools
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import (
  filled_pixels,
  findings,
  object_checks,
  outlines,
)
from maskrcnn_jax.data.coco_annotations import (
  NO_OUTLINE,
  AnnotationReader,
  look_up_id,
  name_annotation,
)
from maskrcnn_jax.data.coco_index import SCALARS, CocoIndex, Scalar
from maskrcnn_jax.data.coco_tables import Classes, ImageTable

# Above this share of boxes that reach beyond their image, boxes are suspected
# to be given by their corners.
_MAX_BEYOND = 0.2

# Above this share of crowd regions, `iscrowd` is suspected to be wrong. COCO's
# own files have 1.2 %. One or two crowd regions of a tiny set prove nothing.
_MAX_CROWD = 0.2
_FEW_CROWDS = 2

# Number of objects whose outlines are joined or moved at a time. It bounds the
# memory for temporary arrays.
_BLOCK = 1 << 14


class ObjectColumns:
  """Collects the objects of a file one by one, then makes the index.

  If the report of the images raises errors instead of collecting them, the
  methods raise an `InputError` where they would report an error.
  """

  def __init__(
    self, images: ImageTable, *, require_masks: bool, width_offset: float
  ):
    """Makes a collection without objects.

    Args:
      images: Images of the same file. All must be in the table before the
        first object is added. Its report receives all errors and warnings.
      require_masks: Whether to leave out objects without a mask.
      width_offset: Number added to x2 - x1 to get the width of a box, and to
        y2 - y1 to get its height, in pixels: 0 or 1.
    """
    self._images = images
    self._report = images.report
    self._reader = AnnotationReader(
      images, require_masks=require_masks, width_offset=width_offset
    )
    self._num_entries = 0
    # Category ids of entries that were left out.
    self._lost_category_ids: set[Any] = set()
    # {code: number of objects that were left out}. These codes are warnings
    # while such objects are few, and errors if `findings.are_many` says so.
    self._num_left_out = dict.fromkeys(('A01', 'A02', 'A05', 'A06'), 0)
    # {code: (number of cases, name of the first)} of codes that get one warning
    # for all cases together.
    self._tally: dict[str, tuple[int, str]] = {}

    self._rows = array.array('q')
    self._boxes = array.array('d')
    self._category_ids: list[Any] = []
    self._ids: list[Scalar | None] = []
    self._positions = array.array('q')
    self._crowd = array.array('b')
    self._has_mask = array.array('b')
    self._areas = array.array('d')
    self._mask_areas = array.array('d')
    # Number of vertices of each outline; the outlines of the last objects, each
    # in arrays of its own; and all outlines before these, joined in blocks,
    # because many small arrays take much more memory.
    self._lengths = array.array('q')
    self._vertices: list[np.ndarray] = []
    self._parts: list[np.ndarray] = []
    self._blocks: list[tuple[np.ndarray, np.ndarray]] = []

  def add(self, position: int, entry: Any) -> None:
    """Adds one element of the list of annotations, or reports its error.

    Args:
      position: Index of the element in the list.
      entry: The element as the JSON parser returned it.
    """
    self._num_entries += 1
    id_ = entry.get('id') if isinstance(entry, dict) else None
    if type(id_) not in SCALARS:
      id_ = None
    try:
      found, notes = self._reader.read(entry)
    except errors.InputError as error:
      self._note_category(entry)
      self._report.error_from_exception(
        self._images.name, name_annotation(id_, position), error
      )
      return
    for code, reason in notes:
      name = name_annotation(id_, position)
      if code in self._num_left_out:
        self._num_left_out[code] += found is None
        self._report.warn(
          code,
          self._images.name,
          name,
          reason,
          row=self._images.rows.get(entry['image_id'], -1),
        )
      else:
        count, first = self._tally.get(code, (0, ''))
        self._tally[code] = count + 1, first or name
    if found is None:
      self._note_category(entry)
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

  def used_category_ids(self) -> set[Any]:
    """Returns the category ids of all entries, before `finish`."""
    ids = {id_ for id_ in self._category_ids if type(id_) in SCALARS}
    return ids | self._lost_category_ids

  def _note_category(self, entry: Any) -> None:
    """Remembers the category id of an entry that is left out.

    Args:
      entry: The element of the list of annotations, any JSON value.
    """
    id_ = entry.get('category_id') if isinstance(entry, dict) else None
    if type(id_) in SCALARS:
      self._lost_category_ids.add(id_)

  def finish(self, table: Classes) -> CocoIndex:
    """Makes the index, and reports faults that only all objects together show.

    Args:
      table: The class table of the file.

    Returns:
      The images of the table and the objects, sorted by image; the objects of
      an image keep the order of the file. Objects of an unknown class are left
      out and reported.
    """
    name, report, images = self._images.name, self._report, self._images
    self._check_fractions()
    self._check_shares()
    self._check_corners()
    categories = table.categories
    used_ids = self.used_category_ids()
    classes = self._find_classes(table)
    self._check_ids()

    rows = np.array(self._rows, np.int64)
    known = np.flatnonzero(classes)
    order = known[np.argsort(rows[known], kind='stable')]
    rows = rows[order]
    boxes = np.array(self._boxes, np.float32).reshape(-1, 4)[order]
    crowd = np.array(self._crowd, bool)[order]
    has_mask = np.array(self._has_mask, bool)[order] & ~crowd
    starts, vertices, parts = self._sorted_outlines(order)
    heights = np.array(images.heights, np.int32)
    widths = np.array(images.widths, np.int32)
    # An object has a mask if its filled mask has a pixel.
    outlined = starts, vertices, parts, heights[rows], widths[rows]
    is_empty = has_mask & ~filled_pixels.have_pixels(*outlined)
    has_mask &= ~is_empty
    areas = np.array(self._areas)[order]
    mask_areas = np.array(self._mask_areas)[order]
    quick_areas, bounds = outlines.measure_outlines(starts, vertices, parts)
    is_quick = np.isnan(mask_areas)
    mask_areas = np.where(is_quick, quick_areas, mask_areas)
    # The quick areas are wrong for some outlines. So the pixels are counted
    # before an area of the file is called wrong.
    suspects = np.flatnonzero(
      has_mask & is_quick & object_checks.areas_disagree(areas, mask_areas)
    )
    exact = filled_pixels.filled_areas(*outlined, suspects)
    mask_areas[suspects] = np.where(
      exact == filled_pixels.UNKNOWN_AREA, areas[suspects], exact
    )
    # A missing area becomes that of the mask, else that of the box.
    sides = boxes[:, 2:] - boxes[:, :2] + self._reader.width_offset
    computed = np.where(
      has_mask | crowd & (mask_areas > 0), mask_areas, sides.prod(axis=1)
    )
    index = CocoIndex(
      categories=categories,
      image_ids=images.ids,
      file_names=images.file_names,
      heights=heights,
      widths=widths,
      object_starts=_starts(np.bincount(rows, minlength=len(images.ids))),
      boxes=boxes,
      classes=classes[order].astype(np.int32),
      crowd=crowd,
      areas=np.where(np.isnan(areas), computed, areas),
      annotation_ids=[self._ids[i] for i in order.tolist()],
      outline_starts=starts,
      vertices=vertices,
      parts=parts,
      dropped={
        reason: count for reason, count in self._reader.dropped.items() if count
      },
    )
    name_object = functools.partial(self._name_object, order)
    # Other findings about masks in fractions would follow from that.
    in_fractions = object_checks.check_fractions(bounds, report, name)
    is_right = has_mask & ~in_fractions
    object_checks.check_masks(
      is_empty & ~in_fractions, rows, report, name, name_object
    )
    overlaps = object_checks.box_mask_iou(
      index, rows, bounds, self._reader.width_offset
    )
    object_checks.check_boxes(
      overlaps, is_right, rows, report, name, name_object
    )
    self._check_missing_fields()
    self._check_crowd()
    object_checks.check_areas(
      is_right & object_checks.areas_disagree(areas, mask_areas),
      report,
      name,
      name_object,
    )
    object_checks.check_repeats(index, rows, report, name, name_object)
    object_checks.check_classes(index, used_ids, report, name)
    return _without_outlines(index, is_empty)

  def _check_fractions(self) -> None:
    """Reports boxes that look like fractions of the size of the image.

    Raises:
      InputError: If there are many and the report raises errors.
    """
    count, total = self._reader.num_fractions, self._num_entries
    if not count:
      return
    add = self._report.warn
    if findings.are_many(count, total):
      add = self._report.error
    add(
      'A28',
      self._images.name,
      '',
      f'{count} of {total} boxes lie within 0..1 in x and in y, so they look'
      ' like fractions of the size of the image; COCO has pixels: multiply x by'
      ' the width of the image and y by its height, in the boxes and the'
      ' masks.',
      count=count,
    )

  def _check_crowd(self) -> None:
    """Warns if a large share of the annotations are crowd regions."""
    count, total = sum(self._crowd), len(self._crowd)
    if count > _FEW_CROWDS and count > _MAX_CROWD * total:
      self._report.warn(
        'A29',
        self._images.name,
        '',
        f'{count} of {total} annotations are crowd regions (iscrowd 1), which'
        ' are not trained on; if each is one object, set its iscrowd to 0.',
        count=count,
      )

  def _check_shares(self) -> None:
    """Reports an error for each of four faults that too many objects have.

    The faults are A01, A02, A05 and A06, for which an object is left out with a
    warning. Objects of which only a polygon was left out (A05), and boxes that
    were only clipped (A02), do not count.

    Raises:
      InputError: If there is such a fault and the report raises errors.
    """
    total = self._num_entries
    for code, count in self._num_left_out.items():
      if findings.are_many(count, total):
        advice = ''
        if code == 'A06':
          advice = (
            ' A model that predicts only boxes (config.model.output=boxes)'
            ' needs no masks.'
          )
        self._report.error(
          code,
          self._images.name,
          '',
          f'{count} of {total} objects are left out: {findings.MEANINGS[code]}.'
          ' So many are no accident; python -m maskrcnn_jax.check_data lists'
          f' them, and with --fix=OUT.json leaves them out.{advice}',
          count=0,
        )

  def _check_corners(self) -> None:
    """Reports an error if the boxes look like (x1, y1, x2, y2).

    They do if more than a fifth of them reach beyond their images when they are
    read as (x, y, width, height), and all fit when they are read as corners.
    """
    total = self._num_entries
    num_beyond = self._reader.num_beyond
    # A box in COCO's form of an object in the right half of an image cannot be
    # read as corners. So it is no coincidence if all boxes can.
    if num_beyond > _MAX_BEYOND * total and not self._reader.num_not_corners:
      self._report.error(
        'A03',
        self._images.name,
        '',
        f'{num_beyond} of {total} boxes reach beyond their images, and all'
        ' boxes fit when read as (x1, y1, x2, y2); COCO boxes are (x, y, width,'
        ' height). python -m maskrcnn_jax.check_data --fix=OUT.json converts'
        ' them.',
        count=num_beyond,
      )

  def _find_classes(self, table: Classes) -> Int[np.ndarray, 'm']:
    """Returns the class of each object and reports unknown category ids.

    Objects of a category that was left out are not reported again. Neither is
    any object if the table is empty, or has an entry without an id to which the
    object may belong.

    Args:
      table: The class table of the file.

    Returns:
      Classes 1..len(categories); 0 for objects of an unknown class.
    """
    numbers = {c.id: i for i, c in enumerate(table.categories, start=1)}
    is_complete = bool(numbers) and not table.has_lost_ids
    classes = np.zeros(len(self._category_ids), np.int64)
    for i, id_ in enumerate(self._category_ids):
      try:
        classes[i] = look_up_id('category_id', id_, numbers)
      except errors.InputError as error:
        is_known = type(id_) in SCALARS and id_ in table.left_out
        if is_complete and not is_known:
          self._report.error_from_exception(
            self._images.name,
            name_annotation(self._ids[i], self._positions[i]),
            error,
          )
    self._category_ids = []
    return classes

  def _check_ids(self) -> None:
    """Gives one warning for all annotation ids that are missing or not unique.

    An id of 0 counts too: pycocotools takes it for "no match".
    """
    missing = self._ids.count(None)
    repeated = len(self._ids) - missing - len(set(self._ids) - {None})
    zero = self._ids.count(0)
    if missing or repeated or zero:
      self._report.warn(
        'A18',
        self._images.name,
        '',
        f'{missing} annotation ids are missing, {repeated} are used twice and'
        f' {zero} are 0; the annotations get new ids in memory.',
        count=missing + repeated + zero,
      )

  def _check_missing_fields(self) -> None:
    """Gives one warning for each field that annotations lack."""
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

  def _name_object(self, order: np.ndarray, j: int) -> str:
    """Returns the name of object j of the index, for messages.

    Args:
      order: For each object of the index, its number in the order of `add`.
      j: Number of the object in the index.
    """
    return name_annotation(self._ids[order[j]], self._positions[order[j]])

  def _close_block(self) -> None:
    """Joins the outlines since the last call into two arrays, a new block."""
    if self._parts:
      self._blocks.append(
        (np.concatenate(self._vertices), np.concatenate(self._parts))
      )
      self._vertices, self._parts = [], []

  def _sorted_outlines(
    self, order: Int[np.ndarray, 'm']
  ) -> tuple[
    Int[np.ndarray, ' m1'], Float[np.ndarray, 'v 2'], Int[np.ndarray, ' v']
  ]:
    """Returns the outlines of all objects in the order of the index.

    Args:
      order: For each object of the index, its number in the order of `add`.

    Returns:
      Starts, vertices and parts, as in `CocoIndex`.
    """
    self._close_block()
    blocks, self._blocks = self._blocks, []
    vertices = np.concatenate([NO_OUTLINE[0], *(v for v, _ in blocks)])
    parts = np.concatenate([NO_OUTLINE[1], *(p for _, p in blocks)])
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


def _without_outlines(
  index: CocoIndex, chosen: Bool[np.ndarray, 'm']
) -> CocoIndex:
  """Returns an index without the outlines of some objects.

  Args:
    index: The index.
    chosen: Whether an object loses its outline.
  """
  lengths = np.diff(index.outline_starts)
  if not (chosen & (lengths > 0)).any():
    return index
  stays = np.repeat(~chosen, lengths)
  return index._replace(
    outline_starts=_starts(np.where(chosen, 0, lengths)),
    vertices=index.vertices[stays],
    parts=index.parts[stays],
  )


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Returns the position at which each of some adjacent pieces starts.

  Args:
    lengths: Length of each piece.

  Returns:
    One number more than pieces: piece i is [starts[i], starts[i + 1]).
  """
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
