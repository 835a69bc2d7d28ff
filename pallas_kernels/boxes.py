"""Pairwise IoU.

In plain JAX:

  corner = maximum(boxes[:, None, :2], others[:, :2])
  far_corner = minimum(boxes[:, None, 2:], others[:, 2:])
  intersection = prod(maximum(far_corner - corner + width_offset, 0), axis=-1)
  iou = intersection / (area[:, None] + other_area - intersection)
"""

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.launch import divide, launch, load, store

# A tile of 4096 overlaps is 32 numbers a thread; rows of 32 are 128 bytes, one
# whole transaction each.
ROWS, COLUMNS = 128, 32


def load_boxes(ref, index, mask) -> tuple[Array, ...]:
  """Returns (x1, y1, x2, y2); zeros where masked."""
  return tuple(load(ref, index, i, mask=mask) for i in range(4))


def iou_tile(
  boxes: tuple[Array, ...],
  others: tuple[Array, ...],
  *,
  width_offset: float,
  interpret: bool,
) -> Array:
  """Returns the overlaps of the boxes of two lists; 0 if they share nothing."""
  (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes, others
  area = jnp.maximum(x2 - x1 + width_offset, 0) * jnp.maximum(
    y2 - y1 + width_offset, 0
  )
  other_area = jnp.maximum(u2 - u1 + width_offset, 0) * jnp.maximum(
    v2 - v1 + width_offset, 0
  )
  width = jnp.minimum(x2[:, None], u2[None]) - jnp.maximum(
    x1[:, None], u1[None]
  )
  height = jnp.minimum(y2[:, None], v2[None]) - jnp.maximum(
    y1[:, None], v1[None]
  )
  intersection = jnp.maximum(width + width_offset, 0) * jnp.maximum(
    height + width_offset, 0
  )
  union = area[:, None] + other_area[None] - intersection
  return jnp.where(
    intersection > 0,
    divide(intersection, jnp.where(union > 0, union, 1), interpret=interpret),
    0,
  )


def _iou_kernel(
  boxes_ref, others_ref, iou_ref, *, n, m, width_offset, interpret
):
  rows = pl.program_id(0) * ROWS + jnp.arange(ROWS)
  columns = pl.program_id(1) * COLUMNS + jnp.arange(COLUMNS)
  iou = iou_tile(
    load_boxes(boxes_ref, rows, rows < n),
    load_boxes(others_ref, columns, columns < m),
    width_offset=width_offset,
    interpret=interpret,
  )
  store(
    iou_ref,
    rows[:, None],
    columns[None],
    value=iou,
    mask=(rows < n)[:, None] & (columns < m)[None],
  )


def pairwise_iou(
  boxes: Array,
  others: Array,
  *,
  width_offset: float = 0.0,
  interpret: bool = False,
) -> Array:
  """Returns intersection over union of each box with each other; 0 if empty.

  Args:
    boxes: [n, 4], (x1, y1, x2, y2).
    others: [m, 4].
    width_offset: What a box is wider than x2 - x1.
    interpret: See `launch`.

  Returns:
    [n, m], float32.
  """
  n, m = boxes.shape[0], others.shape[0]
  if n == 0 or m == 0:
    return jnp.zeros((n, m), jnp.float32)
  return launch(
    _iou_kernel,
    boxes,
    others,
    name='pairwise_iou',
    grid=(pl.cdiv(n, ROWS), pl.cdiv(m, COLUMNS)),
    out_shape=jax.ShapeDtypeStruct((n, m), jnp.float32),
    interpret=interpret,
    n=n,
    m=m,
    width_offset=width_offset,
  )
