"""Outlines drawn into the grid of a RoI; the boxes of what is visible."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import Outlines
from maskrcnn_jax.ops.roi_align import adaptive_weights


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
    min_box_side: A smaller side of a box, in pixels, is taken to be this long.
      0.1 is that of detectron2 `structures/masks.py`, 1 maskrcnn-benchmark's.
    kernels: See `kernels.py`.

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
  """Pools the pixels of one object for every box, as RoIAlign pools features.

  The object is drawn on the pixels of the image, each of which is inside or
  outside by its centre; an outline that was made of a bitmap gives back the
  bitmap. A cell is the mean of as many bilinear samples as it is pixels long,
  rounded up.

  Args:
    outlines: Of one image, in pixels.
    objects: Which object each box is to show.
    boxes: In pixels.
    side: Grid cells along each side of a box.
    image_size: (height, width) of the image; its edge is repeated, not that
      of the canvas.
    padded_size: (height, width) of the canvas.
    max_object_vertices: No object has more vertices than this.
    max_parts: No object has more parts than this.
    min_box_side: A smaller side of a box, in pixels, is taken to be this long.

  Returns:
    From 0 (outside) to 1 (inside).

  Source:
    torchvision `models/detection/roi_heads.py`, `project_masks_on_boxes`.
  """
  height, width = padded_size
  whole = jnp.array([0, 0, width, height], jnp.float32)

  def pool(args):
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

  # One after the other: the pixels of all objects would not fit into memory.
  return jax.lax.map(pool, (objects, boxes))


def visible_boxes(
  outlines: Outlines,
  image_size: Int[Array, '2'],
  *,
  max_object_vertices: int,
) -> Float[Array, 'g 4']:
  """Finds the box of what an image shows of each object.

  Not the part of an object's box inside the image: an object that is cut may
  be visible in less than that.

  Args:
    outlines: Of one image, in pixels; they may leave it.
    image_size: (height, width) of the image.
    max_object_vertices: No object has more vertices than this.

  Returns:
    Boxes inside the image, in pixels; all 0 for an object without an outline,
    or with none of its area in the image.
  """
  height, width = image_size[0], image_size[1]
  objects = jnp.arange(outlines.starts.shape[0] - 1)
  return jax.vmap(
    lambda object_: _visible_box(
      *_edges(outlines, object_, max_object_vertices),
      jnp.float32(height),
      jnp.float32(width),
    )
  )(objects)


def _visible_box(vertices, nexts, parts, height, width):
  """The box of one object; see `visible_boxes`."""
  x, y = vertices[:, 0], vertices[:, 1]
  next_x, next_y = nexts[:, 0], nexts[:, 1]
  # Level edges say nothing that those beside them do not, and an outline made
  # of a bitmap has none.
  real = (parts >= 0) & (y != next_y)

  # What of each edge is inside, as a range of its length.
  low, high = _range_within(x, next_x, 0, width)
  y_low, y_high = _range_within(y, next_y, 0, height)
  low, high = jnp.maximum(low, y_low), jnp.minimum(high, y_high)
  inside = real & (high > low)
  # An edge along the border of the image belongs to the borders, below.
  inside &= (x != next_x) | ((x > 0) & (x < width))
  ends_x = jnp.stack([x + low * (next_x - x), x + high * (next_x - x)])
  ends_y = jnp.stack([y + low * (next_y - y), y + high * (next_y - y)])

  def extent(values, limit):
    values = jnp.clip(values, 0, limit)
    return (
      jnp.min(jnp.where(inside, values, jnp.inf)),
      jnp.max(jnp.where(inside, values, -jnp.inf)),
    )

  x1, x2 = extent(ends_x, width)
  y1, y2 = extent(ends_y, height)
  left = _covered(
    vertices,
    nexts,
    parts,
    real,
    height,
    line=0.0,
    upright=x <= 0,
  )
  right = _covered(
    vertices,
    nexts,
    parts,
    real,
    height,
    line=width,
    upright=x < width,
  )
  x1 = jnp.where(left[0] < left[1], 0, x1)
  x2 = jnp.where(right[0] < right[1], width, x2)
  y1, y2 = jnp.minimum(y1, left[0]), jnp.maximum(y2, left[1])
  box = jnp.stack([x1, y1, x2, y2])
  return jnp.where((x2 > x1) & (y2 > y1), box, 0)


def _range_within(start, end, low, high):
  """The range of t in [0, 1] where start + t (end - start) is in [low, high].

  It is empty, its end not beyond its start, where there is none.
  """
  step = end - start
  safe = jnp.where(step == 0, 1, step)
  one, other = (low - start) / safe, (high - start) / safe
  within = (start >= low) & (start <= high)
  from_ = jnp.where(step == 0, jnp.where(within, 0, 2), jnp.minimum(one, other))
  to = jnp.where(step == 0, jnp.where(within, 1, -1), jnp.maximum(one, other))
  return jnp.maximum(from_, 0), jnp.minimum(to, 1)


def _covered(vertices, nexts, parts, real, height, *, line, upright):
  """First and last y in [0, height] at which x = `line` is inside.

  By the even-odd rule: where an odd number of edges of a part is to the left.

  Args:
    vertices: [v, 2] starts of edges.
    nexts: [v, 2] their ends.
    parts: [v] the part of each.
    real: [v] whether it is an edge to look at.
    height: Of the image.
    line: Where to look.
    upright: [v] whether an upright edge is to the left of the line.
  """
  x, y = vertices[:, 0], vertices[:, 1]
  next_x, next_y = nexts[:, 0], nexts[:, 1]
  from_, to = _range_within(x, next_x, -jnp.inf, line)
  real &= (to > from_) & ((x != next_x) | upright)
  # Ends that are the same vertex must be the same number.
  start = jnp.where(from_ > 0, y + from_ * (next_y - y), y)
  end = jnp.where(to < 1, y + to * (next_y - y), next_y)
  start, end = jnp.clip(start, 0, height), jnp.clip(end, 0, height)
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


def _edges(outlines, object_, max_vertices):
  """Starts, ends and parts of the edges of an object; part -1: none."""
  start, end = outlines.starts[object_], outlines.starts[object_ + 1]
  index = start + jnp.arange(max_vertices)
  last = outlines.parts.shape[0] - 1
  vertices = outlines.vertices[jnp.minimum(index, last)]
  nexts = outlines.vertices[jnp.minimum(index + 1, last)]
  parts = jnp.where(index < end, outlines.parts[jnp.minimum(index, last)], -1)
  return vertices, nexts, parts


def _fill_object(
  outlines, object_, box, *, grid, min_box_side, max_vertices, max_parts
):
  """Fills one object on a grid of (rows, columns) over one box."""
  num_rows, num_columns = grid
  vertices, nexts, parts = _edges(outlines, object_, max_vertices)

  sides = jnp.maximum(box[2:] - box[:2], min_box_side)
  cells_per_pixel = jnp.array([num_columns, num_rows]) / sides
  x, y = jnp.moveaxis((vertices - box[:2]) * cells_per_pixel, -1, 0)
  next_x, next_y = jnp.moveaxis((nexts - box[:2]) * cells_per_pixel, -1, 0)

  # An edge meets a scan line if its ends lie on different sides of it; an end
  # on the line counts as above, so that a vertex is met once or twice, not
  # three times.
  lines = jnp.arange(num_rows) + 0.5
  crosses = (y[:, None] <= lines) != (next_y[:, None] <= lines)
  crosses &= (parts >= 0)[:, None]
  rise = jnp.where(next_y == y, 1, next_y - y)[:, None]
  at_x = x[:, None] + (lines - y[:, None]) * ((next_x - x)[:, None] / rise)
  # The crossing turns all cells whose centre is at or right of it.
  column = jnp.clip(jnp.ceil(at_x - 0.5), 0, num_columns).astype(jnp.int32)

  # The last part takes what is not a crossing.
  part = jnp.where(crosses, parts[:, None], max_parts)
  turns = jnp.zeros((max_parts, num_rows, num_columns + 1), jnp.int32)
  turns = turns.at[part, jnp.arange(num_rows)[None, :], column].add(
    1, mode='drop'
  )
  inside = jnp.cumsum(turns, axis=-1)[:, :, :num_columns] % 2 == 1
  return inside.any(axis=0)
