"""Converts COCO masks, polygons or RLE, to outlines and back to masks.

Runs on the host. `array_types.Outlines` defines the format of an outline.
Axis letters here: m objects, v vertices, runs of an RLE.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax import errors

# Types of JSON numbers. A bool is not one, although it is a subclass of int.
_NUMBERS = frozenset((int, float))

# Pixels. No image is as large, and float32 cannot represent half a pixel of
# larger coordinates.
_MAX_COORDINATE = 4_000_000.0

# Parts are numbered as int16.
_MAX_PARTS = np.iinfo(np.int16).max

# Number of objects that are measured at a time. It bounds the memory for
# temporary arrays.
_BLOCK = 1 << 14

Vertices = Float[np.ndarray, 'v 2']
Parts = Int[np.ndarray, 'v']


def polygons_to_outline(
  polygons: list[list[Any]],
) -> tuple[Vertices, Parts]:
  """Makes an outline of polygons: each polygon, closed, becomes one part.

  Args:
    polygons: Flat lists (x1, y1, x2, y2, ...) in pixels, as in the JSON. Each
      must have an even length.

  Returns:
    Vertices, float32, and parts, int16. Polygon i is part i. Its first vertex
    is repeated at its end; the repeated vertex has part -1, which says that no
    edge starts there.

  Raises:
    InputError: If a coordinate is not a finite number or is too large, or if
      there are too many polygons.
  """
  if len(polygons) > _MAX_PARTS:
    raise errors.InputError(
      f'A27: the object has {len(polygons)} polygons, more than {_MAX_PARTS};'
      ' simplify it.'
    )
  coordinates = []
  parts = []
  for part, polygon in enumerate(polygons):
    if not _NUMBERS.issuperset(map(type, polygon)):
      odd = next(x for x in polygon if type(x) not in _NUMBERS)
      raise errors.InputError(
        f'A04: a polygon holds {_shown(odd)}, which is not a number.'
      )
    coordinates += polygon
    coordinates += polygon[:2]
    parts += [part] * (len(polygon) // 2)
    parts.append(-1)
  try:
    vertices = np.array(coordinates, np.float64).reshape(-1, 2)
  except OverflowError as error:
    raise errors.InputError(
      f'A04: a polygon coordinate is too large: {error}.'
    ) from error
  # A comparison with NaN is False, so NaN is not good.
  good = np.abs(vertices) <= _MAX_COORDINATE
  if not good.all():
    raise errors.InputError(
      f'A04: a polygon coordinate is {vertices[~good][0]}; it must be finite'
      ' and in pixels.'
    )
  return vertices.astype(np.float32), np.array(parts, np.int16)


def polygon_area(polygon: list[float] | Float[np.ndarray, 'n 2']) -> float:
  """Returns the area of a polygon in square pixels, by the shoelace formula.

  Args:
    polygon: The corners in pixels: a flat list x, y, x, y, ..., or an array
      with one row (x, y) for each corner.
  """
  x, y = np.reshape(polygon, (-1, 2)).T
  return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def polygons_to_coco(polygons: list[list[float]]) -> dict[str, Any]:
  """Returns COCO's `segmentation`, `bbox` and `area` of an object.

  Args:
    polygons: The polygons of the object: flat lists x, y, x, y, ... in pixels.

  Raises:
    ValueError: If there is no corner, or an odd number of coordinates.
  """
  corners = np.concatenate(polygons).reshape(-1, 2)
  low, high = corners.min(axis=0), corners.max(axis=0)
  return {
    'bbox': [*low.tolist(), *(high - low).tolist()],
    'area': sum(map(polygon_area, polygons)),
    'segmentation': polygons,
  }


def mask_to_outline(
  mask: Bool[np.ndarray, 'h w'],
) -> tuple[Vertices, Parts]:
  """Makes an outline of a mask: the vertical edges between inside and outside.

  The even-odd rule along rows only looks at edges that cross a row, so the
  vertical edges are enough: filling them gives exactly this mask again.

  Args:
    mask: True inside. The object may have holes and several pieces.

  Returns:
    Vertices, float32, and parts, int16. Each edge is a pair of vertices: its
    top with part 0 and its bottom with part -1. Edges are sorted from left to
    right, then downwards. Both arrays are empty for an empty mask.
  """
  columns = np.flatnonzero(mask.any(axis=0))
  if not len(columns):
    return np.zeros((0, 2), np.float32), np.zeros(0, np.int16)
  left, right = columns[0], columns[-1] + 1
  height = mask.shape[0]
  # crossed[x, y] tells whether the left side of pixel (left + x, y) is an edge
  # between inside and outside.
  inside = np.zeros((right - left + 2, height), bool)
  inside[1:-1] = mask[:, left:right].T
  crossed = inside[1:] != inside[:-1]
  # Adjacent crossed sides of a column make one long edge.
  framed = np.zeros((len(crossed), height + 2), bool)
  framed[:, 1:-1] = crossed
  x, top = np.nonzero(framed[:, 1:] & ~framed[:, :-1])
  _, bottom = np.nonzero(framed[:, :-1] & ~framed[:, 1:])
  vertices = np.empty((len(x), 2, 2), np.float32)
  vertices[:, :, 0] = (left + x)[:, None]
  vertices[:, 0, 1] = top
  vertices[:, 1, 1] = bottom
  parts = np.tile(np.array([0, -1], np.int16), len(x))
  return vertices.reshape(-1, 2), parts


def fill_outline(
  vertices: Vertices, parts: Parts, height: int, width: int
) -> Bool[np.ndarray, 'h w']:
  """Fills an outline: returns the mask of the pixels inside any of its parts.

  A pixel is inside if its centre is inside by the even-odd rule. This is the
  NumPy version of `ops.outlines.rasterize_outlines`.

  Args:
    vertices: In pixels of the mask to be filled.
    parts: Part of the edge that starts at each vertex; -1 for no edge.
    height: Height of the mask in pixels.
    width: Width of the mask in pixels.
  """
  mask = np.zeros((height, width), bool)
  starts = np.flatnonzero(parts >= 0)
  begin = vertices[starts].astype(np.float64)
  end = vertices[starts + 1].astype(np.float64)
  for part in np.unique(parts[starts]):
    here = parts[starts] == part
    (xa, ya), (xb, yb) = begin[here].T, end[here].T
    # An edge crosses the rows [first, last). Their centres lie on or below its
    # upper end and above its lower end.
    first = np.clip(np.ceil(np.minimum(ya, yb) - 0.5), 0, height).astype(int)
    last = np.clip(np.ceil(np.maximum(ya, yb) - 0.5), 0, height).astype(int)
    counts = last - first
    edge = np.repeat(np.arange(len(counts)), counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    row = first[edge] + np.arange(len(edge)) - before
    slope = (xb - xa)[edge] / (yb - ya)[edge]
    x = xa[edge] + (row + 0.5 - ya[edge]) * slope
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(int)
    turns = np.zeros((height, width + 1), np.int32)
    np.add.at(turns, (row, column), 1)
    mask |= np.cumsum(turns, axis=1)[:, :width] % 2 == 1
  return mask


def rle_to_outline(
  counts: Int[np.ndarray, ' runs'], height: int
) -> tuple[Vertices, Parts]:
  """Makes the outline of a mask given as run lengths: its vertical edges.

  The result is that of `mask_to_outline`, but the time depends on the number of
  runs, not of pixels. A run down the columns makes up to three rectangles: the
  rest of its first column, whole columns, and the beginning of its last column.
  The sides of these rectangles are the edges, except where two rectangles
  touch.

  Args:
    counts: Run lengths down the columns: outside, inside, outside, and so on.
    height: Height of the image in pixels.

  Returns:
    Vertices, float32, and parts, int16: each edge is its top with part 0 and
    its bottom with part -1. Edges are sorted from left to right, then
    downwards.
  """
  ends = np.cumsum(counts)
  first, last = ends[:-1:2], ends[1::2]  # pixels [first, last) are inside
  first, last = first[: len(last)], last[: len(first)]
  filled = last > first
  first, last = first[filled], last[filled]
  if not len(first):
    return np.zeros((0, 2), np.float32), np.zeros(0, np.int16)
  (left, top), (right, bottom) = (np.divmod(x, height) for x in (first, last))
  one = left == right
  rectangles = [
    (left, top, left + 1, np.where(one, bottom, height)),
    (left + 1, 0 * top, right, np.full_like(top, height)),
    (right, 0 * top, right + 1, np.where(one, 0, bottom)),
  ]
  edges = []
  for x1, y1, x2, y2 in rectangles:
    some = (x2 > x1) & (y2 > y1)
    x, y = np.stack([x1, x2], 1)[some], np.stack([y1, y2], 1)[some]
    edges.append((x[:, :, None] * (height + 1) + y[:, None, :]).ravel())
  # Two edges on the same line cancel out where they overlap. So an end that
  # occurs twice disappears, and the remaining ends are tops and bottoms in
  # turn.
  places, times = np.unique(np.concatenate(edges), return_counts=True)
  x, y = np.divmod(places[times % 2 == 1], height + 1)
  parts = np.tile(np.array([0, -1], np.int16), len(x) // 2)
  return np.stack([x, y], axis=1).astype(np.float32), parts


def measure_outlines(
  starts: Int[np.ndarray, ' m1'],
  vertices: Float[np.ndarray, 'v 2'],
  parts: Int[np.ndarray, ' v'],
) -> tuple[Float[np.ndarray, 'm'], Float[np.ndarray, 'm 4']]:
  """Computes the area of each object's outline and the box around it.

  Args:
    starts: Object j owns the vertices [starts[j], starts[j + 1]).
    vertices: Vertices of all objects, (x, y) in pixels.
    parts: Part of the edge that starts at each vertex; -1 for no edge.

  Returns:
    Areas: the sum of the areas of the polygons (shoelace formula), in square
    pixels. It is meaningless for outlines that were made from an RLE or a mask,
    and 0 for an object without vertices. Boxes: (x1, y1, x2, y2) in pixels, NaN
    for an object without vertices.
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
    # A polygon begins where an object begins, or after a vertex without edge.
    is_head = np.append(True, p[:-1] < 0)
    is_head[heads] = True
    heads_of_parts = np.flatnonzero(is_head)
    polygons = np.abs(np.add.reduceat(cross, heads_of_parts)) / 2
    owner = np.repeat(np.arange(first, last), lengths)[heads_of_parts]
    areas[first:last] = np.bincount(
      owner - first, polygons, minlength=last - first
    )
  return areas, bounds


def rle_counts(
  segmentation: dict, height: int, width: int
) -> Int[np.ndarray, ' runs']:
  """Reads the run lengths of a COCO RLE and checks them.

  Args:
    segmentation: `{'size': [height, width], 'counts': ...}`. The counts are
      COCO's compressed string (str or bytes) or a list of integers.
    height: Height of the image in pixels.
    width: Width of the image in pixels.

  Returns:
    Lengths of the runs down the columns, int64. The first run is outside of
    the object (it may have length 0), the second inside, and so on in turn.

  Raises:
    InputError: If the size is not that of the image, or if the counts are
      invalid or do not add up to the number of pixels.

  Source:
    pycocotools/common/maskApi.c, rleFrString.
    Differs: the counts are checked. maskApi.c trusts them and reads beyond
    its memory if they are wrong.
  """
  size = segmentation.get('size')
  if (
    not isinstance(size, (list, tuple))
    or len(size) != 2
    or tuple(size) != (height, width)
  ):
    raise errors.InputError(
      f'A09: the RLE has size {_shown(size)}, but the image is'
      f' [{height}, {width}] (height, width).'
    )
  counts = segmentation.get('counts')
  match counts:
    case str() if counts.startswith(("b'", 'b"')):
      # The quotation mark cannot be a part of an RLE.
      raise errors.InputError(
        f'A09: the counts of the RLE are {_shown(counts)}, the text of a bytes'
        ' object of Python; write counts.decode() instead of str(counts).'
      )
    case str():
      counts = _uncompress(counts.encode('utf-8', 'surrogatepass'))
    case bytes():
      counts = _uncompress(counts)
    case list() | tuple():
      if not all(type(count) is int for count in counts):
        raise errors.InputError('A09: the RLE has counts that are no integers.')
      if counts and max(counts) > height * width:
        raise errors.InputError(
          f'A09: the RLE has a count of {max(counts)}, more than the'
          f' {height * width} pixels of the image.'
        )
      if counts and min(counts) < 0:
        raise errors.InputError('A09: the RLE has negative counts.')
      counts = np.array(counts, np.int64)
    case _:
      raise errors.InputError(
        f'A09: the RLE has counts {_shown(counts)}; they must be a string or'
        ' a list of integers.'
      )
  if (counts < 0).any():
    raise errors.InputError('A09: the RLE has negative counts.')
  total = int(counts.sum())
  if total != height * width:
    raise errors.InputError(
      f'A09: the counts of the RLE sum to {total}, not to the'
      f' {height * width} pixels of the image.'
    )
  return counts


def _uncompress(text: bytes) -> np.ndarray:
  """Decodes the string of a compressed COCO RLE into run lengths.

  Each count is a series of digits in base 32, the lowest digit first. A digit
  is a character minus 48; bit 5 says that another digit follows, and bit 4 of
  the last digit is the sign.

  Raises:
    InputError: If a character is not valid, or a count has more than 35 bits.
  """
  if not text:
    return np.zeros(0, np.int64)
  digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
  if (digits < 0).any() or (digits > 63).any() or digits[-1] & 32:
    raise errors.InputError(f'A09: the RLE has damaged counts {_shown(text)}.')
  ends = np.flatnonzero((digits & 32) == 0)
  starts = np.concatenate([[0], ends[:-1] + 1])
  lengths = ends - starts + 1
  if lengths.max() > 7:  # 35 bits hold the pixels of any image
    raise errors.InputError('A09: the RLE has counts of more than 35 bits.')
  place = np.arange(len(digits)) - np.repeat(starts, lengths)
  counts = np.add.reduceat((digits & 31) << (5 * place), starts)
  counts -= np.where(digits[ends] & 16, np.int64(1) << (5 * lengths), 0)
  # From the fourth on, a count is stored as the difference from the count two
  # places before.
  counts[1::2] = np.cumsum(counts[1::2])
  counts[2::2] = np.cumsum(counts[2::2])
  return counts


def _shown(value: object) -> str:
  """Formats a value for a message, in at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
