"""Mask targets: polygons filled on a grid over a box.

In plain JAX, for each edge from (x, y) to (u, v), in cells of the grid:

  crosses = (y <= lines) != (v <= lines)       # lines = arange(side) + 0.5
  at = x + (lines - y) * ((u - x) / (v - y))
  inside[part] ^= crosses[:, None] & (arange(side) + 0.5 >= at[:, None])

and the object is the union of its parts. A program fills one object: it keeps
the grid of the part it is at and of the union in registers.
"""

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.launch import divide, launch, load, store


def _fill_kernel(
  vertices_ref,
  parts_ref,
  starts_ref,
  objects_ref,
  boxes_ref,
  masks_ref,
  *,
  side,
  lanes,
  num_vertices,
  min_box_side,
  interpret,
):
  """Fills the outline of one object on a grid over one box."""
  roi = pl.program_id(0)
  object_ = load(objects_ref, roi)
  start, end = load(starts_ref, object_), load(starts_ref, object_ + 1)
  x1, y1, x2, y2 = (load(boxes_ref, roi, i) for i in range(4))

  cells = jnp.arange(lanes)
  lines = cells.astype(jnp.float32) + 0.5

  # The same number in every lane, for `divide` takes no scalars.
  def per_pixel(near, far):
    length = jnp.maximum(far - near, min_box_side)
    return divide(
      jnp.full(lanes, side, jnp.float32),
      jnp.full(lanes, length),
      interpret=interpret,
    )

  x_scale, y_scale = per_pixel(x1, x2), per_pixel(y1, y2)

  def vertex(index):
    x, y = load(vertices_ref, index, 0), load(vertices_ref, index, 1)
    return (x - x1) * x_scale, (y - y1) * y_scale

  def add_edge(i, state):
    last_part, inside, union = state
    index = start + i
    part = load(parts_ref, index)
    x, y = vertex(index)
    next_x, next_y = vertex(jnp.minimum(index + 1, num_vertices - 1))
    # An end on a line counts as above it, so that a vertex is met once or
    # twice, not three times.
    crosses = ((y <= lines) != (next_y <= lines)) & (part >= 0)
    rise = jnp.where(next_y == y, 1.0, next_y - y)
    slope = divide(next_x - x, rise, interpret=interpret)
    at_x = x + (lines - y) * slope
    # The crossing turns all cells whose centre is at or right of it.
    column = jnp.ceil(at_x - 0.5)
    turned = crosses[:, None] & (
      cells.astype(jnp.float32)[None] >= column[:, None]
    )
    # The edges of a part follow one another.
    is_new = (part >= 0) & (part != last_part)
    union = jnp.where(is_new, union | inside, union)
    inside = jnp.where(is_new, 0, inside) ^ turned.astype(jnp.int32)
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
  outlines,
  objects: Array,
  boxes: Array,
  *,
  side: int,
  max_object_vertices: int,
  max_parts: int,
  min_box_side: float = 0.1,
  interpret: bool = False,
) -> Array:
  """Fills the outline of one object for every box, on a grid over the box.

  Args:
    outlines: Of one image. Has `vertices`, [v, 2]; `parts`, [v], rising inside
      an object, -1 where no edge starts; `starts`, [g + 1].
    objects: [r], which object each box is to show.
    boxes: [r, 4].
    side: Grid cells along each side of a box.
    max_object_vertices: Not needed; all vertices of an object are looked at.
    max_parts: Not needed; an object may have any number.
    min_box_side: A smaller side of a box is taken to be this long.
    interpret: See `launch`.

  Returns:
    [r, side, side], bool.
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
