"""Masks and boxes of objects, computed from their outlines.

An outline is a list of edges, each of which belongs to a part (a polygon or, if
the object was given as RLE, its whole contour). A point is inside a part if a
ray from the point crosses an odd number of the part's edges: the even-odd rule.
The object is the union of its parts. See `Outlines` in `array_types.py`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import Outlines
from maskrcnn_jax.ops.adaptive_sampling import adaptive_weights


class _Edges(NamedTuple):
  """The edges of one object, in v slots."""

  starts: Float[Array, 'v 2']  # (x, y) where the edge starts
  ends: Float[Array, 'v 2']  # (x, y) where the edge ends
  parts: Int[Array, 'v']  # part that the edge belongs to; -1 is no edge


def rasterize_outlines(
  outlines: Outlines,
  objects: Int[Array, 'r'],
  boxes: Float[Array, 'r 4'],
  *,
  side: int,
  max_object_vertices: int,
  max_parts: int,
  min_box_side: float = 0.1,
  kernels: str = 'xla',
) -> Bool[Array, 'r {side} {side}']:
  """Draws one object for each box, on a square grid of cells over the box.

  A cell is True if its centre is inside the object.

  Args:
    outlines: Outlines of all objects of one image, in pixels.
    objects: Index of the object of each box.
    boxes: (x1, y1, x2, y2) in the same pixels as the outlines. Only the part of
      the object inside the box is drawn.
    side: Number of cells along each side of a box.
    max_object_vertices: Static upper limit of the number of vertices of an
      object. Plain JAX leaves out the vertices beyond the limit.
    max_parts: Static upper limit of the number of parts of an object. Plain JAX
      leaves out the parts beyond the limit.
    min_box_side: Shortest side of a box, in pixels. A shorter side is drawn as
      if it were this long; x1 and y1 stay. detectron2 `structures/masks.py` has
      0.1, maskrcnn-benchmark 1.
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests.

  Source:
    Even-odd filling by scan lines: Foley et al., "Computer Graphics", 2nd
    edition, section 3.6. Union over polygons as in the COCO API's `merge`.
    Differs: the COCO API fills on a grid five times as fine and rounds the
    outline to it first, so that cells on the border may come out differently.
  """
  if kernels != 'xla':
    from pallas_kernels import outlines as kernel

    return kernel.rasterize_outlines(
      outlines,
      objects,
      boxes,
      side=side,
      max_object_vertices=max_object_vertices,
      max_parts=max_parts,
      min_box_side=min_box_side,
      interpret=kernels == 'interpret',
    )
  fill = functools.partial(
    _fill_object,
    outlines,
    grid=(side, side),
    min_box_side=min_box_side,
    max_vertices=max_object_vertices,
    max_parts=max_parts,
  )
  return jax.vmap(fill)(objects, boxes)


def pool_outlines(
  outlines: Outlines,
  objects: Int[Array, 'r'],
  boxes: Float[Array, 'r 4'],
  *,
  side: int,
  image_size: Int[Array, '2'],
  padded_size: tuple[int, int],
  max_object_vertices: int,
  max_parts: int,
  min_box_side: float = 1.0,
) -> Float[Array, 'r {side} {side}']:
  """Pools the bitmap of one object for each box, as RoIAlign pools features.

  The object is drawn as a bitmap: a pixel of the image is 1 if its centre is
  inside the object. If the outline was made from a bitmap, this is the same
  bitmap. A cell of the result is the mean of bilinear samples of the pixels;
  along each side of the cell there are as many samples as it is pixels long,
  rounded up.

  Args:
    outlines: Outlines of all objects of one image, in pixels.
    objects: Index of the object of each box.
    boxes: (x1, y1, x2, y2) in the same pixels as the outlines.
    side: Number of cells along each side of a box.
    image_size: (height, width) of the image before padding, in pixels. A sample
      at most one pixel beyond the edge of the image repeats the edge; a sample
      farther away is 0.
    padded_size: (height, width) of the padded image, in pixels.
    max_object_vertices: Upper limit of the number of vertices of an object.
    max_parts: Upper limit of the number of parts of an object.
    min_box_side: Shortest side of a box, in pixels. A box with a shorter side
      is pooled as if the side were this long.

  Returns:
    Numbers from 0 (outside the object) to 1 (inside).

  Source:
    torchvision `models/detection/roi_heads.py`, `project_masks_on_boxes`.
  """
  height, width = padded_size
  whole = jnp.array([0, 0, width, height], jnp.float32)

  def pool(
    args: tuple[Int[Array, ''], Float[Array, '4']],
  ) -> Float[Array, 's s']:
    """Pools the object with this index in this box."""
    object_, box = args
    pixels = _fill_object(
      outlines,
      object_,
      whole,
      grid=padded_size,
      min_box_side=1.0,
      max_vertices=max_object_vertices,
      max_parts=max_parts,
    ).astype(jnp.float32)
    rows, columns = (
      adaptive_weights(
        box[i, None],
        jnp.maximum(box[i + 2] - box[i], min_box_side)[None],
        image_size[1 - i, None],
        side=side,
        max_length=padded_size[1 - i],
      )[0]
      for i in (1, 0)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.matmul(
      jnp.matmul(rows, pixels, precision=exact), columns.T, precision=exact
    )

  # One object after the other, because the bitmaps of all objects would not fit
  # into memory.
  return jax.lax.map(pool, (objects, boxes))


def from_bitmap(outlines: Outlines) -> Bool[Array, 'v']:
  """Tells for each vertex whether its object was given as a bitmap (RLE).

  The outline of a bitmap consists of vertical edges that are not connected:
  each is a vertex with an edge and a vertex without. A polygon has at least
  two edges in a row. Vertices of padding give False.

  Args:
    outlines: Outlines of all objects of one image.
  """
  starts_edge = jnp.pad(jnp.asarray(outlines.parts) >= 0, 1)
  before, here, after = starts_edge[:-2], starts_edge[1:-1], starts_edge[2:]
  alone = here & ~before & ~after
  return alone | jnp.pad(alone, (1, 0))[:-1]


def visible_boxes(
  outlines: Outlines,
  image_size: Int[Array, '2'],
  *,
  max_object_vertices: int,
) -> Float[Array, 'g 4']:
  """Returns the box around the visible part of each object.

  The visible part is the part of the object inside the image. Its box may be
  smaller than the object's box clipped to the image.

  Args:
    outlines: Outlines of all objects of one image, in pixels. They may extend
      beyond the image.
    image_size: (height, width) of the image before padding, in pixels.
    max_object_vertices: Upper limit of the number of vertices of an object.

  Returns:
    Boxes inside the image, in pixels. An object without an outline, or without
    an area inside the image, has the box (0, 0, 0, 0).
  """
  height, width = image_size[0], image_size[1]
  objects = jnp.arange(outlines.starts.shape[0] - 1)
  return jax.vmap(
    lambda object_: _visible_box(
      _edges(outlines, object_, max_object_vertices),
      jnp.float32(height),
      jnp.float32(width),
    )
  )(objects)


def _visible_box(
  edges: _Edges, height: Float[Array, ''], width: Float[Array, '']
) -> Float[Array, '4']:
  """Returns the box around the part of an object that is inside the image.

  The box encloses the parts of the object's edges inside the image, and the
  parts of the left and the right border of the image inside the object.

  Args:
    edges: Edges of the object, in pixels.
    height: Height of the image before padding, in pixels.
    width: Width of the image before padding, in pixels.

  Returns:
    (x1, y1, x2, y2) in pixels; zeros if nothing of the object is visible.
  """
  x, y = edges.starts[:, 0], edges.starts[:, 1]
  next_x, next_y = edges.ends[:, 0], edges.ends[:, 1]
  # Horizontal edges are left out: the edges that they connect reach the same
  # points. An outline made from a bitmap has no horizontal edges.
  real = (edges.parts >= 0) & (y != next_y)

  # The part of each edge inside the image, from `low` to `high` as fractions of
  # the edge's length.
  low, high = _range_within(x, next_x, 0.0, width)
  y_low, y_high = _range_within(y, next_y, 0.0, height)
  low, high = jnp.maximum(low, y_low), jnp.minimum(high, y_high)
  inside = real & (high > low)
  # Vertical edges on or beyond the left or right border are left out, because
  # `_covered` takes account of them.
  inside &= (x != next_x) | ((x > 0) & (x < width))
  ends_x = jnp.stack([x + low * (next_x - x), x + high * (next_x - x)])
  ends_y = jnp.stack([y + low * (next_y - y), y + high * (next_y - y)])

  def extent(
    values: Float[Array, '2 v'], limit: Float[Array, '']
  ) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Returns the smallest and the largest coordinate inside the image."""
    values = jnp.clip(values, 0, limit)
    return (
      jnp.min(jnp.where(inside, values, jnp.inf)),
      jnp.max(jnp.where(inside, values, -jnp.inf)),
    )

  x1, x2 = extent(ends_x, width)
  y1, y2 = extent(ends_y, height)
  left = _covered(edges, real, height, line=0.0, left_of_line=x <= 0)
  right = _covered(edges, real, height, line=width, left_of_line=x < width)
  x1 = jnp.where(left[0] < left[1], 0, x1)
  x2 = jnp.where(right[0] < right[1], width, x2)
  y1, y2 = jnp.minimum(y1, left[0]), jnp.maximum(y2, left[1])
  box = jnp.stack([x1, y1, x2, y2])
  return jnp.where((x2 > x1) & (y2 > y1), box, 0)


def _range_within(
  start: Float[Array, 'v'],
  end: Float[Array, 'v'],
  low: float | Float[Array, ''],
  high: float | Float[Array, ''],
) -> tuple[Float[Array, 'v'], Float[Array, 'v']]:
  """Finds the t in [0, 1] with start + t (end - start) between two limits.

  Args:
    start: One coordinate of the start of each edge.
    end: The same coordinate of the end of each edge.
    low: Lower limit of the coordinate.
    high: Upper limit of the coordinate.

  Returns:
    The smallest and the largest t of each edge. If no t fits, the second number
    is not above the first.
  """
  step = end - start
  safe = jnp.where(step == 0, 1, step)
  one, other = (low - start) / safe, (high - start) / safe
  within = (start >= low) & (start <= high)
  from_ = jnp.where(step == 0, jnp.where(within, 0, 2), jnp.minimum(one, other))
  to = jnp.where(step == 0, jnp.where(within, 1, -1), jnp.maximum(one, other))
  return jnp.maximum(from_, 0), jnp.minimum(to, 1)


def _covered(
  edges: _Edges,
  real: Bool[Array, 'v'],
  height: Float[Array, ''],
  *,
  line: float | Float[Array, ''],
  left_of_line: Bool[Array, 'v'],
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Returns the first and last y where a vertical line is inside the object.

  A point of the line is inside a part if an odd number of the part's edges is
  to the left of it. Each edge is clipped to the left of the line. The clipped
  edge covers a range of y, and a sweep along the line counts the ranges that
  are open.

  Args:
    edges: Edges of the object, in pixels.
    real: Which edges to use: existing edges that are not horizontal.
    height: Height of the image before padding, in pixels.
    line: x of the line, in pixels.
    left_of_line: Whether each edge counts as left of the line if it is
      vertical.

  Returns:
    Numbers in [0, height]; (inf, -inf) if the line is nowhere inside.
  """
  x, y = edges.starts[:, 0], edges.starts[:, 1]
  next_x, next_y = edges.ends[:, 0], edges.ends[:, 1]
  parts = edges.parts
  from_, to = _range_within(x, next_x, -jnp.inf, line)
  real &= (to > from_) & ((x != next_x) | left_of_line)
  # An end that is not clipped keeps its exact y, so that two edges that meet at
  # a vertex leave no gap between their ranges.
  start = jnp.where(from_ > 0, y + from_ * (next_y - y), y)
  end = jnp.where(to < 1, y + to * (next_y - y), next_y)
  start, end = jnp.clip(start, 0, height), jnp.clip(end, 0, height)
  # Sweep: +1 where a range starts, -1 where it ends, sorted by part, then by y.
  count = jnp.where(real, 1, 0)
  part = jnp.tile(jnp.where(real, parts, jnp.iinfo(parts.dtype).max), 2)
  part, at, step = jax.lax.sort(
    (
      part,
      jnp.concatenate([jnp.minimum(start, end), jnp.maximum(start, end)]),
      jnp.concatenate([count, -count]),
    ),
    num_keys=2,
  )
  odd = jnp.cumsum(step)[:-1] % 2 == 1
  odd &= (part[1:] == part[:-1]) & (at[1:] > at[:-1])
  return (
    jnp.min(jnp.where(odd, at[:-1], jnp.inf)),
    jnp.max(jnp.where(odd, at[1:], -jnp.inf)),
  )


def _edges(
  outlines: Outlines, object_: Int[Array, ''], max_vertices: int
) -> _Edges:
  """Returns the edges of one object, in `max_vertices` slots.

  Args:
    outlines: Outlines of all objects of one image.
    object_: Index of the object.
    max_vertices: Upper limit of the number of vertices of the object. Slots
      without an edge have part -1.
  """
  start, end = outlines.starts[object_], outlines.starts[object_ + 1]
  index = start + jnp.arange(max_vertices)
  last = outlines.parts.shape[0] - 1
  vertices = outlines.vertices[jnp.minimum(index, last)]
  nexts = outlines.vertices[jnp.minimum(index + 1, last)]
  parts = jnp.where(index < end, outlines.parts[jnp.minimum(index, last)], -1)
  return _Edges(vertices, nexts, parts)


def _fill_object(
  outlines: Outlines,
  object_: Int[Array, ''],
  box: Float[Array, '4'],
  *,
  grid: tuple[int, int],
  min_box_side: float,
  max_vertices: int,
  max_parts: int,
) -> Bool[Array, '{grid[0]} {grid[1]}']:
  """Tells which cells of a grid over a box have their centre inside an object.

  Args:
    outlines: Outlines of all objects of one image, in pixels.
    object_: Index of the object.
    box: (x1, y1, x2, y2) in the same pixels as the outlines.
    grid: (rows, columns) of cells that the box is divided into.
    min_box_side: Shortest side of the box, in pixels. A shorter side is treated
      as if it were this long; x1 and y1 stay.
    max_vertices: Static upper limit of the number of vertices of the object.
      Vertices beyond the limit are left out.
    max_parts: Static upper limit of the number of parts of the object. Parts
      beyond the limit are left out.
  """
  num_rows, num_columns = grid
  vertices, nexts, parts = _edges(outlines, object_, max_vertices)

  sides = jnp.maximum(box[2:] - box[:2], min_box_side)
  cells_per_pixel = jnp.array([num_columns, num_rows]) / sides
  x, y = jnp.moveaxis((vertices - box[:2]) * cells_per_pixel, -1, 0)
  next_x, next_y = jnp.moveaxis((nexts - box[:2]) * cells_per_pixel, -1, 0)

  # A scan line goes through the cell centres of each row. An edge crosses it if
  # its ends are on different sides of it. An end exactly on the line counts as
  # above it, so that the two edges at a vertex are counted consistently.
  lines = jnp.arange(num_rows) + 0.5
  crosses = (y[:, None] <= lines) != (next_y[:, None] <= lines)
  crosses &= (parts >= 0)[:, None]
  rise = jnp.where(next_y == y, 1, next_y - y)[:, None]
  at_x = x[:, None] + (lines - y[:, None]) * ((next_x - x)[:, None] / rise)
  # A crossing changes inside to outside, or back, for all cells whose centre is
  # at the crossing or to the right of it.
  column = jnp.clip(jnp.ceil(at_x - 0.5), 0, num_columns).astype(jnp.int32)

  # `max_parts` is out of range, so edges that do not cross are dropped below.
  part = jnp.where(crosses, parts[:, None], max_parts)
  turns = jnp.zeros((max_parts, num_rows, num_columns + 1), jnp.int32)
  turns = turns.at[part, jnp.arange(num_rows)[None, :], column].add(
    1, mode='drop'
  )
  inside = jnp.cumsum(turns, axis=-1)[:, :, :num_columns] % 2 == 1
  return inside.any(axis=0)
