"""Counts the pixels that filled outlines cover, for many objects at once.

An area by the shoelace formula is quick, but wrong for an outline that crosses
itself, for polygons that overlap, and beyond the edge of the image.

Axis letters here: m objects, v outline vertices of all objects.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

# Number of crossings of edges and rows that are computed at a time, and of
# objects whose edges are. They bound the memory.
_MAX_CROSSINGS = 1 << 21
_BLOCK = 1 << 14

# An outline that crosses more rows is not filled: it would take gigabytes. No
# picture has an object whose outline goes up and down so far, in pixels.
_MAX_OBJECT_CROSSINGS = 1 << 22

# The area of an outline that is not filled.
UNKNOWN_AREA = -1

Starts = Int[np.ndarray, ' m1']
Vertices = Float[np.ndarray, 'v 2']
Parts = Int[np.ndarray, ' v']
Lengths = Int[np.ndarray, 'm']


class _Edges(NamedTuple):
  """The edges of the outlines of some objects, in float64."""

  owner: np.ndarray  # number of the object of each edge
  part: np.ndarray  # part of the object that the edge belongs to
  begin: np.ndarray  # (x, y) where the edge starts
  end: np.ndarray  # (x, y) where it ends


def have_pixels(
  starts: Starts,
  vertices: Vertices,
  parts: Parts,
  heights: Lengths,
  widths: Lengths,
) -> Bool[np.ndarray, 'm']:
  """Tells for each object whether its filled mask has a pixel in the image.

  A pixel is inside if its centre is inside any part by the even-odd rule, as in
  `outlines.fill_outline`.

  Args:
    starts: Object j owns the vertices [starts[j], starts[j + 1]).
    vertices: Vertices of all objects, (x, y) in pixels.
    parts: Part of the edge that starts at each vertex; -1 for no edge.
    heights: Height of the image of each object, in pixels.
    widths: Width of the image of each object, in pixels.
  """
  count = len(starts) - 1
  found = np.zeros(count, bool)
  lengths = np.diff(starts)
  # Nearly all masks have a pixel in the middle row of their outline, and one
  # row is quick to look at.
  for first in range(0, count, _BLOCK):
    last = min(first + _BLOCK, count)
    begin, end = starts[first], starts[last]
    there = first + np.flatnonzero(lengths[first:last])
    if not len(there):
      continue
    y = vertices[begin:end, 1]
    heads = starts[there] - begin
    top = np.clip(np.minimum.reduceat(y, heads), 0, heights[there])
    bottom = np.clip(np.maximum.reduceat(y, heads), 0, heights[there])
    middle = ((top + bottom) / 2).astype(np.int64)
    rows = np.zeros(last - first, np.int64)
    rows[there - first] = np.minimum(middle, heights[there] - 1)
    # float32 holds half a row of any image exactly.
    center = np.repeat((rows + 0.5).astype(np.float32), lengths[first:last])
    is_above = y <= center
    crosses = np.append(is_above[1:] != is_above[:-1], False)
    where = np.flatnonzero(crosses & (parts[begin:end] >= 0))
    # Few vertices are left, so their owners are searched for.
    owner = np.searchsorted(starts, begin + where, side='right') - 1
    edges = _Edges(
      owner,
      parts[begin + where],
      vertices[begin + where].astype(np.float64),
      vertices[begin + where + 1].astype(np.float64),
    )
    row, edge = rows[owner - first], np.arange(len(where))
    areas = _areas(edges, row, edge, widths, first, last - first)
    found[first:last] = areas > 0
  rest = np.flatnonzero(~found & (lengths > 0))
  areas = filled_areas(starts, vertices, parts, heights, widths, rest)
  # An outline that is too long to be filled is a mask too.
  found[rest] = areas != 0
  return found


def filled_areas(
  starts: Starts,
  vertices: Vertices,
  parts: Parts,
  heights: Lengths,
  widths: Lengths,
  chosen: Int[np.ndarray, 'n'],
) -> Int[np.ndarray, 'n']:
  """Counts the pixels inside the image that the masks of some objects cover.

  The numbers are those of `outlines.fill_outline`, without making the masks.

  Args:
    starts: Object j owns the vertices [starts[j], starts[j + 1]).
    vertices: Vertices of all objects, (x, y) in pixels.
    parts: Part of the edge that starts at each vertex; -1 for no edge.
    heights: Height of the image of each object, in pixels.
    widths: Width of the image of each object, in pixels.
    chosen: Numbers of the objects to measure, rising.

  Returns:
    Numbers of pixels; 0 for an object without vertices. `UNKNOWN_AREA` for an
    outline that is too long to be filled.
  """
  areas = np.zeros(len(chosen), np.int64)
  for block in range(0, len(chosen), _BLOCK):
    numbers = chosen[block : block + _BLOCK]
    edges, first, last = _edges(starts, vertices, parts, heights, numbers)
    edges = edges._replace(owner=np.searchsorted(numbers, edges.owner))
    count = len(numbers)
    crossings = np.bincount(edges.owner, last - first, count).astype(np.int64)
    too_long = crossings > _MAX_OBJECT_CROSSINGS
    last = np.where(too_long[edges.owner], first, last)
    # Objects are filled in groups of a bounded number of crossings.
    group = np.cumsum(np.where(too_long, 0, crossings)) // _MAX_CROSSINGS
    bounds = np.flatnonzero(np.diff(group, prepend=-1)).tolist()
    for low, high in zip(bounds, [*bounds[1:], count], strict=True):
      here = slice(*np.searchsorted(edges.owner, [low, high]).tolist())
      counts = (last - first)[here]
      edge = np.repeat(np.arange(len(counts)), counts)
      before = np.repeat(np.cumsum(counts) - counts, counts)
      row = first[here][edge] + np.arange(len(edge)) - before
      areas[block + low : block + high] = _areas(
        _Edges(*(column[here] for column in edges)),
        row,
        edge,
        widths[numbers],
        low,
        high - low,
      )
    areas[block : block + count][too_long] = UNKNOWN_AREA
  return areas


def filled_area(
  vertices: Vertices, parts: Parts, height: int, width: int
) -> int:
  """Counts the pixels inside the image that the mask of one object covers.

  The result is `UNKNOWN_AREA` if the outline is too long to be filled.

  Args:
    vertices: Vertices of its outline, (x, y) in pixels.
    parts: Part of the edge that starts at each vertex; -1 for no edge.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
  """
  areas = filled_areas(
    np.array([0, len(parts)]),
    vertices,
    parts,
    np.array([height]),
    np.array([width]),
    np.arange(1),
  )
  return int(areas[0])


def _edges(
  starts: Starts,
  vertices: Vertices,
  parts: Parts,
  heights: Lengths,
  chosen: Int[np.ndarray, 'n'],
) -> tuple[_Edges, np.ndarray, np.ndarray]:
  """Returns the edges of some objects, and the rows of the image they cross.

  Args:
    starts: Object j owns the vertices [starts[j], starts[j + 1]).
    vertices: Vertices of all objects, (x, y) in pixels.
    parts: Part of the edge that starts at each vertex; -1 for no edge.
    heights: Height of the image of each object, in pixels.
    chosen: Numbers of the objects.

  Returns:
    The edges, the first row that each crosses, and the row after the last one.
  """
  lengths = np.diff(starts)[chosen]
  owner = np.repeat(chosen, lengths)
  before = np.repeat(np.cumsum(lengths) - lengths, lengths)
  where = np.repeat(starts[chosen], lengths) + np.arange(len(owner)) - before
  is_edge = parts[where] >= 0
  owner, where = owner[is_edge], where[is_edge]
  begin = vertices[where].astype(np.float64)
  end = vertices[where + 1].astype(np.float64)
  # An edge crosses the rows whose centres lie on or below its upper end and
  # above its lower end.
  low, high = (
    np.minimum(begin[:, 1], end[:, 1]),
    np.maximum(begin[:, 1], end[:, 1]),
  )
  height = heights[owner]
  return (
    _Edges(owner, parts[where], begin, end),
    np.clip(np.ceil(low - 0.5), 0, height).astype(np.int64),
    np.clip(np.ceil(high - 0.5), 0, height).astype(np.int64),
  )


def _areas(
  edges: _Edges,
  row: Int[np.ndarray, 'c'],
  edge: Int[np.ndarray, 'c'],
  widths: Lengths,
  first: int,
  count: int,
) -> np.ndarray:
  """Counts the pixels in the spans between crossings of edges and rows.

  Args:
    edges: The edges.
    row: Row of each crossing. If one crossing of an object with a row is given,
      all of them are.
    edge: Number of the edge of each crossing.
    widths: Width of the image of each object that an edge may belong to, in
      pixels.
    first: Number of the first object that is counted.
    count: Number of objects that are counted.

  Returns:
    The number of pixels of the objects first, first + 1, ....
  """
  (xa, ya), (xb, yb) = edges.begin[edge].T, edges.end[edge].T
  owner, part = edges.owner[edge], edges.part[edge]
  # This is the arithmetic of `outlines.fill_outline`.
  x = xa + (row + 0.5 - ya) * ((xb - xa) / (yb - ya))
  column = np.clip(np.ceil(x - 0.5), 0, widths[owner]).astype(np.int64)
  order = np.lexsort((column, part, row, owner))
  owner, row, column = owner[order], row[order], column[order]
  # A closed part crosses a row an even number of times, so each pair of
  # neighbours is the beginning and the end of a span.
  owner, row = owner[::2], row[::2]
  begin, end = column[::2], column[1::2]
  # Spans of different parts may overlap. The spans of a row, placed on a line
  # behind those of the row before, are counted up to where the line is covered.
  order = np.lexsort((begin, row, owner))
  owner, row, begin, end = (a[order] for a in (owner, row, begin, end))
  is_new = np.append(True, (owner[1:] != owner[:-1]) | (row[1:] != row[:-1]))[
    : len(owner)
  ]
  offset = np.cumsum(np.where(is_new, widths[owner], 0)) - widths[owner]
  begin, end = begin + offset, end + offset
  covered = np.maximum.accumulate(end)
  covered = np.append(0, covered[:-1])[: len(end)]
  pixels = np.maximum(end - np.maximum(begin, covered), 0)
  return np.bincount(owner - first, pixels, minlength=count).astype(np.int64)
