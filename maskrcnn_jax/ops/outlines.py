"""Mask targets: outlines drawn into the grid of a RoI."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import Outlines

# A RoI is taken to be at least this many pixels wide and high.
# Source: detectron2 `structures/masks.py`, `rasterize_polygons_within_box`.
MIN_BOX_SIDE = 0.1


def rasterize_outlines(
    outlines: Outlines,
    objects: Int[Array, 'r'],
    boxes: Float[Array, 'r 4'],
    *,
    side: int,
    max_object_vertices: int,
    max_parts: int,
) -> Bool[Array, 'r {side} {side}']:
  """Fills the outline of one object for every box, on a grid over the box.

  A grid cell is filled if its centre is inside: inside any part of the object,
  each by the even-odd rule.

  Args:
    outlines: Of one image, in pixels.
    objects: Which object each box is to show.
    boxes: In pixels. What of the object lies outside its box is cut off.
    side: Grid cells along each side of a box.
    max_object_vertices: No object has more vertices than this.
    max_parts: No object has more parts than this.

  Source:
    Even-odd filling by scan lines: Foley et al., "Computer Graphics", 2nd
    edition, section 3.6. Union over polygons as in the COCO API's `merge`.
    Differs: the COCO API fills on a grid five times as fine and rounds the
    outline to it first, so that cells on the border may come out differently.
  """
  fill = functools.partial(
      _fill_object, outlines, side=side, max_vertices=max_object_vertices,
      max_parts=max_parts,
  )
  return jax.vmap(fill)(objects, boxes)


def _fill_object(outlines, object_, box, *, side, max_vertices, max_parts):
  """Fills one object on a [side, side] grid over one box."""
  start, end = outlines.starts[object_], outlines.starts[object_ + 1]
  index = start + jnp.arange(max_vertices)
  last = outlines.parts.shape[0] - 1
  vertices = outlines.vertices[jnp.minimum(index, last)]
  nexts = outlines.vertices[jnp.minimum(index + 1, last)]
  parts = jnp.where(index < end, outlines.parts[jnp.minimum(index, last)], -1)

  cells_per_pixel = side / jnp.maximum(box[2:] - box[:2], MIN_BOX_SIDE)
  x, y = jnp.moveaxis((vertices - box[:2]) * cells_per_pixel, -1, 0)
  next_x, next_y = jnp.moveaxis((nexts - box[:2]) * cells_per_pixel, -1, 0)

  # An edge meets a scan line if its ends lie on different sides of it; an end
  # on the line counts as above, so that a vertex is met once or twice, not
  # three times.
  lines = jnp.arange(side) + 0.5
  crosses = (y[:, None] <= lines) != (next_y[:, None] <= lines)
  crosses &= (parts >= 0)[:, None]
  rise = jnp.where(next_y == y, 1, next_y - y)[:, None]
  at_x = x[:, None] + (lines - y[:, None]) * ((next_x - x)[:, None] / rise)
  # The crossing turns all cells whose centre is at or right of it.
  column = jnp.clip(jnp.ceil(at_x - 0.5), 0, side).astype(jnp.int32)

  # The last part takes what is not a crossing.
  part = jnp.where(crosses, parts[:, None], max_parts)
  turns = jnp.zeros((max_parts, side, side + 1), jnp.int32)
  turns = turns.at[part, jnp.arange(side)[None, :], column].add(1, mode='drop')
  inside = jnp.cumsum(turns, axis=-1)[:, :, :side] % 2 == 1
  return inside.any(axis=0)
