"""Mask targets: the polygons of an object, filled on a grid over a box.

In plain JAX, for each edge from (x, y) to (u, v), in cells of the grid:

  crosses = (y <= lines) != (v <= lines)       # lines = arange(side) + 0.5
  at = x + (lines - y) * ((u - x) / (v - y))
  inside[part] ^= crosses[:, None] & (arange(side) + 0.5 >= at[:, None])

The object is the union of its parts. A program fills the object of one box. It
keeps two grids in registers: that of the current part, and that of the union.
"""

from typing import Protocol

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.launch import divide, launch, load, store


class Outlines(Protocol):
  """The outlines of the objects of one image.

  The vertices of all objects are in one array, object after object. Vertex i
  starts an edge to vertex i + 1 if `parts[i]` is not negative.
  """

  @property
  def vertices(self) -> Array | np.ndarray:
    """[v, 2], (x, y) in pixels."""

  @property
  def parts(self) -> Array | np.ndarray:
    """[v], number of the polygon that the edge from a vertex belongs to.

    The numbers rise within an object. -1 means that no edge starts here.
    """

  @property
  def starts(self) -> Array | np.ndarray:
    """[g + 1]; object i has the vertices starts[i] to starts[i + 1] - 1."""


def _fill_kernel(
  vertices_ref: jax.Ref,
  parts_ref: jax.Ref,
  starts_ref: jax.Ref,
  objects_ref: jax.Ref,
  boxes_ref: jax.Ref,
  masks_ref: jax.Ref,
  *,
  side: int,
  lanes: int,
  num_vertices: int,
  min_box_side: float,
  interpret: bool,
) -> None:
  """Fills the outline of one object on a grid over one box.

  Args:
    vertices_ref: [v, 2], (x, y) of the vertices of all objects, in pixels.
    parts_ref: [v], number of the part (a polygon or, for RLE, the whole
      contour) of the edge from a vertex to the next vertex; -1 if no edge
      starts at this vertex.
    starts_ref: [g + 1], index of the first vertex of each object; the last
      entry is the end of the last object.
    objects_ref: [r], index of the object to draw in each box.
    boxes_ref: [r, 4], (x1, y1, x2, y2) in pixels.
    masks_ref: Result [r, side, side], 1 inside the object and 0 outside.
    side: Number of grid cells along each side of a box.
    lanes: `side`, rounded up to a power of two.
    num_vertices: Number of vertices of all objects, v.
    min_box_side: Shortest side of a box, in pixels. A shorter side is treated
      as this long; x1 and y1 stay.
    interpret: Whether the kernel is interpreted.
  """
  roi = pl.program_id(0)
  object_ = load(objects_ref, roi)
  start, end = load(starts_ref, object_), load(starts_ref, object_ + 1)
  x1, y1, x2, y2 = (load(boxes_ref, roi, i) for i in range(4))

  cells = jnp.arange(lanes)
  lines = cells.astype(jnp.float32) + 0.5

  def cells_per_pixel(near: Array, far: Array) -> Array:
    """Returns the number of grid cells per pixel along an axis of the box.

    The number is repeated in an array, because `divide` takes no scalars.

    Args:
      near: x1 or y1 of the box.
      far: x2 or y2 of the box.
    """
    length = jnp.maximum(far - near, min_box_side)
    return divide(
      jnp.full(lanes, side, jnp.float32),
      jnp.full(lanes, length),
      interpret=interpret,
    )

  x_scale, y_scale = cells_per_pixel(x1, x2), cells_per_pixel(y1, y2)

  def vertex(index: Array) -> tuple[Array, Array]:
    """Returns x and y of a vertex in cells of the grid, each in an array."""
    x, y = load(vertices_ref, index, 0), load(vertices_ref, index, 1)
    return (x - x1) * x_scale, (y - y1) * y_scale

  def add_edge(
    i: Array, state: tuple[Array, Array, Array]
  ) -> tuple[Array, Array, Array]:
    """Adds one edge of the object to the grid.

    Args:
      i: Number of the edge in the object.
      state: Number of the current part, -1 before the first one; grid of the
        current part, 1 inside; grid of the union of all parts before.

    Returns:
      The state after this edge.
    """
    last_part, inside, union = state
    index = start + i
    part = load(parts_ref, index)
    x, y = vertex(index)
    next_x, next_y = vertex(jnp.minimum(index + 1, num_vertices - 1))
    # An end of an edge on a line counts as above it. Two edges that meet at a
    # vertex on a line then cross it once, if it is a side, or twice or never,
    # if it is a tip.
    crosses = ((y <= lines) != (next_y <= lines)) & (part >= 0)
    rise = jnp.where(next_y == y, 1.0, next_y - y)
    slope = divide(next_x - x, rise, interpret=interpret)
    at_x = x + (lines - y) * slope
    # A crossing toggles all cells whose centre is at or right of it.
    column = jnp.ceil(at_x - 0.5)
    toggled = crosses[:, None] & (
      cells.astype(jnp.float32)[None] >= column[:, None]
    )
    # All edges of a part follow each other, so that another part number means
    # that the part before is complete.
    is_new = (part >= 0) & (part != last_part)
    union = jnp.where(is_new, union | inside, union)
    inside = jnp.where(is_new, 0, inside) ^ toggled.astype(jnp.int32)
    return jnp.where(part >= 0, part, last_part), inside, union

  grid = jnp.zeros((lanes, lanes), jnp.int32)
  _, inside, union = jax.lax.fori_loop(
    0, end - start, add_edge, (jnp.int32(-1), grid, grid)
  )
  store(
    masks_ref,
    roi,
    cells[:, None],
    cells[None],
    value=inside | union,
    mask=(cells < side)[:, None] & (cells < side)[None],
  )


def rasterize_outlines(
  outlines: Outlines,
  objects: Array,
  boxes: Array,
  *,
  side: int,
  max_object_vertices: int,
  max_parts: int,
  min_box_side: float = 0.1,
  interpret: bool = False,
) -> Array:
  """Fills the outline of one object for each box, on a grid over the box.

  Args:
    outlines: Outlines of the objects of one image.
    objects: [r], index of the object that each box shows.
    boxes: [r, 4], (x1, y1, x2, y2) in pixels, in the same frame as the
      outlines.
    side: Number of grid cells along each side of a box.
    max_object_vertices: Ignored: an object may have any number of vertices.
    max_parts: Ignored: an object may have any number of polygons.
    min_box_side: Shortest side of a box, in pixels. A shorter side is treated
      as this long; x1 and y1 stay.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    [r, side, side] bool, whether the centre of a cell is inside the object.
  """
  del max_object_vertices, max_parts
  num_boxes, num_vertices = boxes.shape[0], outlines.vertices.shape[0]
  if num_boxes == 0 or num_vertices == 0:
    return jnp.zeros((num_boxes, side, side), bool)
  masks = launch(
    _fill_kernel,
    outlines.vertices,
    outlines.parts.astype(jnp.int32),
    outlines.starts.astype(jnp.int32),
    objects.astype(jnp.int32),
    boxes,
    name='rasterize_outlines',
    grid=(num_boxes,),
    out_shape=jax.ShapeDtypeStruct((num_boxes, side, side), jnp.int8),
    interpret=interpret,
    side=side,
    lanes=pl.next_power_of_2(side),
    num_vertices=num_vertices,
    min_box_side=min_box_side,
  )
  return masks != 0
