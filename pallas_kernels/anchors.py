"""Anchors made from their number, so that none are kept in memory.

In plain JAX, for anchor i of a level with `k` anchors a cell:

  cell, anchor = divmod(i, k)
  row, column = divmod(cell, columns)
  x, y = column * stride, row * stride
  (x, y, x, y) + around[anchor]
"""

from collections.abc import Sequence

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.launch import launch, load, store

BLOCK = 128

# Columns of a layout: number of a level's first anchor among those of all
# levels; columns of cells; anchors a cell; stride in pixels; for rows and for
# columns: how many cells are moved to a fitted stride, and that stride.
FIRST, COLUMNS, PER_CELL, STRIDE, FITTED_ROWS, FITTED_COLUMNS = 0, 1, 2, 3, 4, 6
LAYOUT_WIDTH = 8


def anchor_layout(
  levels: Sequence, fit_to: Array | None
) -> tuple[Array, np.ndarray]:
  """Returns what the kernels know of the levels: integers, and cell anchors.

  Args:
    levels: Each has `stride`, `size` (rows and columns of cells) and `around`,
      the anchors of the cell at the origin.
    fit_to: (height, width) of the padded image that the cells are fitted to,
      or None.
  """
  rows, first = [], 0
  most = max(len(level.around) for level in levels)
  around = np.zeros((len(levels), most, 4), np.float32)
  for i, level in enumerate(levels):
    per_cell = len(level.around)
    around[i, :per_cell] = level.around
    row = [first, level.size[1], per_cell, level.stride]
    for axis in (0, 1):
      if fit_to is None:
        row += [0, level.stride]
      else:
        present = -(-fit_to[axis] // level.stride)
        row += [present, fit_to[axis] // present]
    rows.append(jnp.stack([jnp.asarray(x, jnp.int32) for x in row]))
    first += level.size[0] * level.size[1] * per_cell
  return jnp.stack(rows), around


def anchor_corners(layout_ref, around_ref, level, index, mask):
  """Returns (x1, y1, x2, y2) of a level's anchors; inside a kernel.

  Args:
    layout_ref: Of `anchor_layout`.
    around_ref: Likewise.
    level: Number of the level.
    index: Numbers of the anchors on that level.
    mask: Anchors to make.
  """

  def know(column):
    return load(layout_ref, level, column)

  # Masked numbers may be anything; these divisions want none below 0.
  index = jnp.where(mask, index, 0)
  cell = jax.lax.div(index, jnp.full_like(index, know(PER_CELL)))
  anchor = index - cell * know(PER_CELL)
  row = jax.lax.div(cell, jnp.full_like(index, know(COLUMNS)))
  column = cell - row * know(COLUMNS)

  def start(cells, fitted):
    stride = jnp.where(cells < know(fitted), know(fitted + 1), know(STRIDE))
    return (cells * stride).astype(jnp.float32)

  y, x = start(row, FITTED_ROWS), start(column, FITTED_COLUMNS)
  return tuple(
    corner + load(around_ref, level, anchor, i, mask=mask)
    for i, corner in enumerate((x, y, x, y))
  )


def _anchors_kernel(
  index_ref, layout_ref, around_ref, anchors_ref, *, n, interpret
):
  del interpret  # Nothing here depends on it.
  slots = pl.program_id(0) * BLOCK + jnp.arange(BLOCK)
  mask = slots < n
  index = load(index_ref, slots, mask=mask)
  corners = anchor_corners(layout_ref, around_ref, 0, index, mask)
  for i, corner in enumerate(corners):
    store(anchors_ref, slots, i, value=corner, mask=mask)


def anchors_at(
  level,
  index: Array,
  *,
  fit_to: Array | None = None,
  interpret: bool = False,
) -> Array:
  """Returns anchors of one level, made from their numbers.

  Args:
    level: See `anchor_layout`.
    index: [n], numbers of anchors; row, column, anchor of the cell.
    fit_to: See `anchor_layout`.
    interpret: See `launch`.

  Returns:
    [n, 4], float32.
  """
  n = index.shape[0]
  if n == 0:
    return jnp.zeros((0, 4), jnp.float32)
  layout, around = anchor_layout((level,), fit_to)
  return launch(
    _anchors_kernel,
    index,
    layout,
    jnp.asarray(around),
    name='anchors_at',
    grid=(pl.cdiv(n, BLOCK),),
    out_shape=jax.ShapeDtypeStruct((n, 4), jnp.float32),
    interpret=interpret,
    n=n,
  )
