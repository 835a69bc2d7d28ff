"""COCO's JSON as columns of NumPy arrays.

Axis letters here: n images, m objects, v outline vertices of all objects.
"""

import json
import math
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import outlines

# Keys of `CocoIndex.dropped`, in order.  COCO's own files have such cases, so
# they are counted and left out, where anything stranger is an error.
NO_AREA = 'objects whose box has no area inside the image'
NO_SEGMENTATION = 'objects without a segmentation'
BAD_POLYGON = 'polygons with fewer than 6 numbers or an odd count'
NO_POLYGON = 'objects with no usable polygon left'
_REASONS = (NO_AREA, NO_SEGMENTATION, BAD_POLYGON, NO_POLYGON)

# A box may stick out by as much as rounding explains.
_ROUNDING = 1.0

_NUMBERS = (int, float)
_SCALARS = (int, float, str)


class Category(NamedTuple):
  """A row of the class table; its class number is its position + 1."""

  id: int | str
  name: str


class CocoIndex(NamedTuple):
  """A COCO file in columns: n images, and m objects sorted by their image."""

  categories: tuple[Category, ...]
  image_ids: list  # as in the JSON, any scalar; never on the device
  file_names: list[str]
  heights: Int[np.ndarray, 'n']
  widths: Int[np.ndarray, 'n']
  object_starts: Int[np.ndarray, ' n1']  # image i: [starts[i], starts[i + 1])
  boxes: Float[np.ndarray, 'm 4']  # pixels of the file, clipped to the image
  classes: Int[np.ndarray, 'm']  # 1..len(categories)
  crowd: Bool[np.ndarray, 'm']  # never trained on; without an outline
  areas: Float[np.ndarray, 'm']  # of the masks, in pixels
  annotation_ids: list  # as in the JSON; None where there is none
  outline_starts: Int[np.ndarray, ' m1']  # object j: [starts[j], starts[j + 1])
  vertices: Float[np.ndarray, 'v 2']  # as in array_types.Outlines
  parts: Int[np.ndarray, ' v']
  dropped: dict[str, int]  # reason -> count, of what was left out


def read_coco(
    path: str | pathlib.Path,
    *,
    require_masks: bool = True,
    width_offset: float = 0.0,
) -> CocoIndex:
  """Reads and checks a COCO instances file.

  Args:
    path: The JSON file.
    require_masks: Leave out the objects that have no segmentation. Crowd
      regions, which nobody trains on, may lack it.
    width_offset: What a box is wider than x2 - x1; 1 where (x2, y2) is the
      last pixel inside. A box whose corners then fall together has no area.

  Returns:
    Images in the order of the file, with their objects in that order. Classes
    follow the ids of the categories where all are integers, else the file.

  Raises:
    InputError: If the file is not COCO, or contradicts itself.
  """
  path = pathlib.Path(path)
  return index_coco(
      read_json(path), str(path), require_masks=require_masks,
      width_offset=width_offset,
  )


def index_coco(
    content: dict[str, Any],
    name: str,
    *,
    require_masks: bool = True,
    width_offset: float = 0.0,
) -> CocoIndex:
  """Does what `read_coco` does with a JSON that is loaded already.

  Args:
    content: The JSON; its annotations are taken out to save memory.
    name: What to call it in errors.
    require_masks: See `read_coco`.
    width_offset: See `read_coco`.
  """
  try:
    categories = _read_categories(content['categories'])
    image_ids, file_names, heights, widths = _read_images(content['images'])
    objects = _read_annotations(
        content.pop('annotations'),
        image_rows={id_: row for row, id_ in enumerate(image_ids)},
        class_numbers={c.id: i for i, c in enumerate(categories, start=1)},
        heights=heights,
        widths=widths,
        require_masks=require_masks,
        width_offset=width_offset,
    )
  except errors.InputError as error:
    raise errors.InputError(f'{name}: {error}') from error
  return CocoIndex(
      categories=categories,
      image_ids=image_ids,
      file_names=file_names,
      heights=heights,
      widths=widths,
      **objects,
  )


def class_table_difference(
    here: tuple[Category, ...],
    there: tuple[Category, ...],
    *,
    there_name: str = 'the checkpoint',
) -> list[str]:
  """Compares two class tables, line by line; empty if they are the same.

  Args:
    here: The table of the data at hand.
    there: The table it must agree with.
    there_name: What to call the latter.
  """
  lines = []
  for i in range(max(len(here), len(there))):
    a = here[i] if i < len(here) else None
    b = there[i] if i < len(there) else None
    if a == b and type(a.id) is type(b.id):
      continue
    a, b = (f'id {c.id!r} {c.name!r}' if c else 'nothing' for c in (a, b))
    lines.append(f'class {i + 1}: {a} here, {b} in {there_name}')
  return lines


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Loads a JSON object that has COCO's three lists, or says what it is."""
  try:
    raw = path.read_bytes()
  except OSError as error:
    raise errors.InputError(
        f'Cannot read the annotations {path}: {error.strerror or error}.'
    ) from error
  if raw[:2] == b'\x1f\x8b':
    raise errors.InputError(f'A25: {path} is gzip-compressed; unpack it first.')
  try:
    content = json.loads(raw.decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    raise errors.InputError(f'A25: {path} is not JSON: {error}.') from error
  problem = _why_not_coco(content)
  if problem:
    raise errors.InputError(
        f'A25: {path} is not a COCO instances file: {problem}.'
    )
  return content


def _why_not_coco(content: object) -> str:
  """Says what keeps a JSON document from being COCO; '' if nothing does."""
  if isinstance(content, list):
    first = content[0] if content else None
    if isinstance(first, dict) and 'score' in first:
      return (
          'it is a list with scores, so looks like COCO detection results;'
          ' give the ground truth'
      )
    return 'it is a list, not an object with images and annotations'
  if not isinstance(content, dict):
    return f'it holds a {type(content).__name__}, not an object'
  missing = [
      f"'{key}'"
      for key in ('images', 'annotations', 'categories')
      if not isinstance(content.get(key), list)
  ]
  if missing:
    problem = f'no list {" or ".join(missing)} in it'
    values = list(content.values())
    if any(key.startswith('_via_') for key in content) or (
        values and all(isinstance(v, dict) and 'regions' in v for v in values)
    ):
      problem += '; it looks like a VIA export: export it from VIA as COCO'
    elif 'shapes' in content and 'imagePath' in content:
      problem += '; it looks like a LabelMe file: convert it, e.g. labelme2coco'
    return problem
  first = content['annotations'][:1]
  if first and isinstance(first[0], dict):
    if 'segments_info' in first[0]:
      return 'it looks like COCO panoptic; give the instances file'
    if 'caption' in first[0] and 'bbox' not in first[0]:
      return 'it looks like COCO captions; give the instances file'
  return ''


def _read_categories(entries: list) -> tuple[Category, ...]:
  """Reads the class table."""
  if not entries:
    raise errors.InputError("'categories' is empty; there is nothing to learn.")
  categories = []
  for i, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise errors.InputError(f'category {i} of the list is not an object.')
    id_, name = entry.get('id'), entry.get('name')
    if type(id_) not in (int, str) or not isinstance(name, str):
      raise errors.InputError(
          f'A13: category {i} of the list has id {id_!r} and name {name!r};'
          ' there must be an integer or string, and a string.'
      )
    categories.append(Category(id_, name))
  for field in Category._fields:
    seen = set()
    for category in categories:
      value = getattr(category, field)
      if value in seen:
        raise errors.InputError(
            f'A15: two categories have the {field} {value!r}.'
        )
      seen.add(value)
  if all(type(category.id) is int for category in categories):
    categories.sort()
  return tuple(categories)


def _read_images(
    entries: list,
) -> tuple[list, list[str], np.ndarray, np.ndarray]:
  """Reads ids, file names, heights and widths."""
  ids, names, sizes = [], [], []
  seen = set()
  for i, entry in enumerate(entries):
    if not isinstance(entry, dict):
      raise errors.InputError(f'image {i} of the list is not an object.')
    id_ = entry.get('id')
    if type(id_) not in _SCALARS or id_ != id_:
      raise errors.InputError(
          f'A19: image {i} of the list has the id {id_!r}; there must be a'
          ' number or a string.'
      )
    if id_ in seen:
      raise errors.InputError(f'A17: two images have the id {id_!r}.')
    seen.add(id_)
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
      raise errors.InputError(f"image {id_!r} has no 'file_name'.")
    size = entry.get('height'), entry.get('width')
    if not all(
        type(side) in _NUMBERS and 0 < side < 2**31 and side == int(side)
        for side in size
    ):
      raise errors.InputError(
          f'I05: image {id_!r} ({name}) has height {size[0]!r} and width'
          f' {size[1]!r}; both must be positive integers.'
      )
    ids.append(id_)
    names.append(name)
    sizes.append(size)
  heights, widths = np.array(sizes, np.int32).reshape(-1, 2).T.copy()
  return ids, names, heights, widths


def _read_annotations(
    entries: list,
    *,
    image_rows: dict,
    class_numbers: dict,
    heights: np.ndarray,
    widths: np.ndarray,
    require_masks: bool,
    width_offset: float,
) -> dict[str, Any]:
  """Reads the objects: the fields of CocoIndex from `object_starts` on."""
  counts = dict.fromkeys(_REASONS, 0)
  sides = list(zip(heights.tolist(), widths.tolist(), strict=True))
  rows, boxes, classes, crowd, areas, ids = [], [], [], [], [], []
  vertices, parts = [], []
  beyond = beyond_as_corners = 0  # boxes that stick out, read in either way

  for position, entry in enumerate(entries):
    entries[position] = None  # a big file leaves memory as it is read
    id_ = entry.get('id') if isinstance(entry, dict) else None
    try:
      if not isinstance(entry, dict):
        raise errors.InputError('it is not an object.')
      row = _look_up(entry, 'image_id', image_rows)
      class_number = _look_up(entry, 'category_id', class_numbers)
      is_crowd = entry.get('iscrowd', 0)
      if is_crowd not in (0, 1):
        raise errors.InputError(f'iscrowd is {is_crowd!r}, not 0 or 1.')
      height, width = sides[row]
      x, y, w, h = _read_box(entry)
      beyond += x + w > width + _ROUNDING or y + h > height + _ROUNDING
      beyond_as_corners += (
          w > width + _ROUNDING or h > height + _ROUNDING or w <= x or h <= y
      )
      box = (
          max(x, 0.0),
          max(y, 0.0),
          min(x + max(w - width_offset, 0), width - width_offset),
          min(y + max(h - width_offset, 0), height - width_offset),
      )
      has_area = box[2] > box[0] and box[3] > box[1]

      segmentation = entry.get('segmentation')
      outline, has_mask, bad = _read_segmentation(segmentation, height, width)
      area = entry.get('area')
      if type(area) not in _NUMBERS or not 0 <= area < math.inf:
        area = (
            _mask_area(segmentation, outline, height, width)
            if has_mask
            else w * h
        )
    except errors.InputError as error:
      name = f'annotation {position} of the list' if id_ is None else (
          f'annotation {id_!r}'
      )
      raise errors.InputError(f'{name}: {error}') from error

    counts[BAD_POLYGON] += bad
    if not has_area:
      counts[NO_AREA] += 1
      continue
    if require_masks and not has_mask and not is_crowd:
      counts[NO_POLYGON if bad else NO_SEGMENTATION] += 1
      continue
    rows.append(row)
    boxes.append(box)
    classes.append(class_number)
    crowd.append(is_crowd)
    areas.append(area)
    ids.append(id_)
    vertices.append(_NOTHING[0] if is_crowd else outline[0])
    parts.append(_NOTHING[1] if is_crowd else outline[1])

  # Boxes (x, y, width, height) of objects right of the middle cannot be read
  # as corners, so that all can be is no chance.
  num_boxes = len(entries)
  if beyond > 0.2 * num_boxes and not beyond_as_corners:
    raise errors.InputError(
        f'A03: {beyond} of {num_boxes} boxes stick out of their images, and all'
        ' fit when read as (x1, y1, x2, y2); COCO boxes are (x, y, width,'
        ' height).'
    )

  # Objects of an image side by side, in the order of the file.
  rows = np.array(rows, np.int64)
  order = np.argsort(rows, kind='stable')
  lengths = np.array([len(p) for p in parts], np.int64)[order]
  ordered = order.tolist()
  vertices = [np.zeros((0, 2), np.float32), *(vertices[i] for i in ordered)]
  parts = [np.zeros(0, np.int16), *(parts[i] for i in ordered)]
  per_image = np.bincount(rows, minlength=len(heights))
  return dict(
      object_starts=_starts(per_image),
      boxes=np.array(boxes, np.float32).reshape(-1, 4)[order],
      classes=np.array(classes, np.int32)[order],
      crowd=np.array(crowd, bool)[order],
      areas=np.array(areas, np.float64)[order],
      annotation_ids=[ids[i] for i in ordered],
      outline_starts=_starts(lengths),
      vertices=np.concatenate(vertices),
      parts=np.concatenate(parts),
      dropped={reason: count for reason, count in counts.items() if count},
  )


def _look_up(entry: dict, field: str, table: dict) -> int:
  """Finds an annotation's image or category."""
  key = entry.get(field)
  if type(key) in _SCALARS and key in table:
    return table[key]
  other = next((k for k in table if str(k) == str(key)), None)
  hint = '' if other is None else f' (there is {other!r}; write it alike)'
  what = 'image' if field == 'image_id' else 'category'
  raise errors.InputError(
      f"A14: {field} {key!r} is no {what} of the file{hint}."
  )


def _read_box(entry: dict) -> tuple[float, float, float, float]:
  """Reads (x, y, width, height)."""
  box = entry.get('bbox')
  if not isinstance(box, list) or len(box) != 4:
    raise errors.InputError(
        f'A04: bbox is {box!r}; there must be [x, y, width, height].'
    )
  for side in box:
    if type(side) not in _NUMBERS or not -1e9 < side < 1e9:
      raise errors.InputError(
          f'A04: bbox is {box!r}; it must hold finite numbers, in pixels.'
      )
  return tuple(map(float, box))


_NOTHING = np.zeros((0, 2), np.float32), np.zeros(0, np.int16)


def _read_segmentation(
    segmentation: object, height: int, width: int
) -> tuple[tuple[np.ndarray, np.ndarray], bool, int]:
  """Returns the outline, whether there is a mask, and how many bad polygons."""
  if not segmentation:
    return _NOTHING, False, 0
  if isinstance(segmentation, dict):
    mask = outlines.decode_rle(segmentation, height, width)
    return outlines.mask_to_outline(mask.view(bool)), True, 0
  if not isinstance(segmentation, list):
    raise errors.InputError(
        f'segmentation is a {type(segmentation).__name__}, neither a list of'
        ' polygons nor an RLE.'
    )
  if not all(isinstance(polygon, list) for polygon in segmentation):
    raise errors.InputError(
        'A07: segmentation is a flat list of numbers; put each polygon into a'
        ' list of its own: [[x1, y1, x2, y2, ...]].'
    )
  good = [p for p in segmentation if len(p) >= 6 and len(p) % 2 == 0]
  bad = len(segmentation) - len(good)
  if not good:
    return _NOTHING, False, bad
  return outlines.polygons_to_outline(good), True, bad


def _mask_area(
    segmentation: dict | list,
    outline: tuple[np.ndarray, np.ndarray],
    height: int,
    width: int,
) -> float:
  """Counts the pixels of an RLE, or sums the polygons' areas (shoelace)."""
  if isinstance(segmentation, dict):
    counts = outlines.rle_counts(segmentation, height, width)
    return float(counts[1::2].sum())
  vertices, parts = outline
  x, y = vertices.astype(np.float64).T
  cross = (x[:-1] * y[1:] - x[1:] * y[:-1]) * (parts[:-1] >= 0)
  starts = np.flatnonzero(np.diff(parts[:-1], prepend=-1) > 0)
  return float(np.abs(np.add.reduceat(cross, starts)).sum() / 2)


def _starts(lengths: np.ndarray) -> np.ndarray:
  """Turns lengths into where each begins, and the end of the last."""
  return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
