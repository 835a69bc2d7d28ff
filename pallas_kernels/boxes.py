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

# Numbers of boxes of the two lists in a tile. A tile of 4096 overlaps is 32
# numbers for each of 128 threads. A row of 32 numbers is 128 bytes, one whole
# memory transaction.
ROWS, COLUMNS = 128, 32


def load_boxes(ref: jax.Ref, index: Array, mask: Array) -> tuple[Array, ...]:
  """Reads boxes from an array [n, 4] inside a kernel.

  Args:
    ref: Reference to the array.
    index: Rows to read.
    mask: Which of the rows to read.

  Returns:
    x1, y1, x2 and y2, each of the shape of `index`; zeros where the mask is
    false.
  """
  return tuple(load(ref, index, i, mask=mask) for i in range(4))


def iou_tile(
  boxes: tuple[Array, ...],
  others: tuple[Array, ...],
  *,
  width_offset: float,
  interpret: bool,
) -> Array:
  """Returns the IoU of each box with each of the other boxes inside a kernel.

  Args:
    boxes: x1, y1, x2 and y2 of n boxes, in pixels.
    others: x1, y1, x2 and y2 of m boxes, in pixels.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    interpret: Whether the kernel is interpreted.

  Returns:
    [n, m]; 0 where the intersection is empty.
  """
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
  boxes_ref: jax.Ref,
  others_ref: jax.Ref,
  iou_ref: jax.Ref,
  *,
  n: int,
  m: int,
  width_offset: float,
  interpret: bool,
) -> None:
  """Computes one tile of the matrix of overlaps.

  Args:
    boxes_ref: [n, 4], (x1, y1, x2, y2) in pixels.
    others_ref: [m, 4], the other boxes.
    iou_ref: Result [n, m], IoU of each box with each of the other boxes.
    n: Number of boxes.
    m: Number of other boxes.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    interpret: Whether the kernel is interpreted.
  """
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
  """Returns the IoU of each box with each of the other boxes.

  Args:
    boxes: [n, 4], (x1, y1, x2, y2) in pixels.
    others: [m, 4], the other boxes, in pixels.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    [n, m] float32; 0 where the intersection is empty.
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
