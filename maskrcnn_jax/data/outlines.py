"""COCO segmentations, polygons or RLE, as the outlines that we train on.

Host only.  `array_types.Outlines` says what an outline is.
"""

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax import errors

# Numbers that a JSON file can hold; bool is none of them.
_NUMBERS = frozenset((int, float))

# No image is this large; beyond it float32 no longer resolves half a pixel.
_MAX_COORDINATE = 4_000_000.0

_MAX_PARTS = np.iinfo(np.int16).max

Vertices = Float[np.ndarray, 'v 2']
Parts = Int[np.ndarray, 'v']


def polygons_to_outline(
  polygons: list[list],
) -> tuple[Vertices, Parts]:
  """Closes each polygon and makes it one part of an outline.

  Args:
    polygons: As the JSON holds them, flat (x1, y1, x2, y2, ...), each of an
      even length.

  Returns:
    Vertices, float32, and their parts, int16: polygon i is part i; its first
    vertex comes once more at its end, where part -1 says that no edge starts.

  Raises:
    InputError: If a coordinate is no finite number, or absurdly large.
  """
  if len(polygons) > _MAX_PARTS:
    raise errors.InputError(
      f'A27: {len(polygons)} polygons in one object; at most {_MAX_PARTS} can'
      ' be.'
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
    raise errors.InputError(f'A04: a polygon coordinate: {error}.') from error
  # Written so that a NaN fails.
  good = np.abs(vertices) <= _MAX_COORDINATE
  if not good.all():
    raise errors.InputError(
      f'A04: a polygon coordinate is {vertices[~good][0]}; it must be finite'
      ' and in pixels.'
    )
  return vertices.astype(np.float32), np.array(parts, np.int16)


def mask_to_outline(
  mask: Bool[np.ndarray, 'h w'],
) -> tuple[Vertices, Parts]:
  """Finds the vertical edges between the pixels inside and outside of a mask.

  Even-odd filling along rows looks only at edges that cross the row, so the
  vertical ones say all: filling them gives back exactly this mask.

  Args:
    mask: Any shape of object, with holes and islands.

  Returns:
    Vertices, float32, and their parts, int16: pairs (top, 0), (bottom, -1),
    from left to right, then downwards.  Both empty for an empty mask.
  """
  columns = np.flatnonzero(mask.any(axis=0))
  if not len(columns):
    return np.zeros((0, 2), np.float32), np.zeros(0, np.int16)
  left, right = columns[0], columns[-1] + 1
  height = mask.shape[0]
  # crossed[x, y]: the left side of pixel (left + x, y) belongs to the contour.
  inside = np.zeros((right - left + 2, height), bool)
  inside[1:-1] = mask[:, left:right].T
  crossed = inside[1:] != inside[:-1]
  # Runs of crossed pixels down each column of pixel sides.
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
  """Fills an outline: all pixels whose centre is inside of any part of it.

  The host's twin of `ops.outlines.rasterize_outlines`.

  Args:
    vertices: In pixels of the mask to be filled.
    parts: As in `array_types.Outlines`.
    height: Of the mask.
    width: Of the mask.
  """
  mask = np.zeros((height, width), bool)
  starts = np.flatnonzero(parts >= 0)
  begin = vertices[starts].astype(np.float64)
  end = vertices[starts + 1].astype(np.float64)
  for part in np.unique(parts[starts]):
    here = parts[starts] == part
    (xa, ya), (xb, yb) = begin[here].T, end[here].T
    # The rows whose centre lies on or beyond one end and before the other.
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
  """Does what `mask_to_outline` does, in the time of the runs, not the pixels.

  A run is at most three rectangles: the end of a column, whole columns, the
  start of a column. A piece of an edge that two of them share is none.

  Args:
    counts: As `rle_counts` returns them.
    height: Of the image.

  Returns:
    As `mask_to_outline`.
  """
  ends = np.cumsum(counts)
  first, last = ends[:-1:2], ends[1::2]  # of the runs inside
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
  # Two edges on one line cancel where they overlap: an end that comes twice
  # is none, and the rest are ends of what is left, in turn.
  places, times = np.unique(np.concatenate(edges), return_counts=True)
  x, y = np.divmod(places[times % 2 == 1], height + 1)
  parts = np.tile(np.array([0, -1], np.int16), len(x) // 2)
  return np.stack([x, y], axis=1).astype(np.float32), parts


def rle_counts(
  segmentation: dict, height: int, width: int
) -> Int[np.ndarray, ' runs']:
  """Reads the run lengths of a COCO RLE and checks them.

  Args:
    segmentation: `{'size': [height, width], 'counts': ...}` with COCO's
      compressed counts (str or bytes) or a list of them.
    height: Of the image.
    width: Of the image.

  Returns:
    Lengths of the runs down the columns, int64: outside, inside, outside, ...

  Raises:
    InputError: If the size is not the image's, or the counts do not fill it.

  Source:
    pycocotools/common/maskApi.c, rleFrString.
    Differs: that one believes the counts and reads beyond its memory.
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
  """Reads COCO's base-32 digits: low first, the last one with a sign."""
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
  # From the fourth on, a count is the difference to the one two before.
  counts[1::2] = np.cumsum(counts[1::2])
  counts[2::2] = np.cumsum(counts[2::2])
  return counts


def _shown(value: object) -> str:
  """Shows a value in at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:57]}...'
