"""Anchors computed from their index, so that no array of them is in memory.

In plain JAX, for anchor i of a level with `k` anchors a cell:

  cell, anchor = divmod(i, k)
  row, column = divmod(cell, columns)
  x, y = column * stride, row * stride
  (x, y, x, y) + around[anchor]
"""

from collections.abc import Sequence
from typing import Protocol

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.launch import launch, load, store

# Number of anchors that a program computes.
BLOCK = 128

# Columns of a layout, which has a row for each level: index of the level's
# first anchor among the anchors of all levels; number of columns of cells;
# anchors per cell; stride in pixels. Then, first for rows and then for columns
# of cells: the number of cells with a fitted stride, and that stride in pixels.
FIRST, COLUMNS, PER_CELL, STRIDE, FITTED_ROWS, FITTED_COLUMNS = 0, 1, 2, 3, 4, 6
LAYOUT_WIDTH = 8


class Level(Protocol):
  """Positions of the anchors of one pyramid level."""

  @property
  def stride(self) -> int:
    """Pixels per cell."""

  @property
  def size(self) -> tuple[int, int]:
    """Numbers of rows and columns of cells."""

  @property
  def around(self) -> tuple[tuple[float, ...], ...]:
    """Anchors of the cell at the origin, (x1, y1, x2, y2) in pixels."""


def anchor_layout(
  levels: Sequence[Level], fit_to: Array | None
) -> tuple[Array, np.ndarray]:
  """Describes the anchors of all levels in two arrays, for the kernels.

  Args:
    levels: Positions of the anchors, level after level.
    fit_to: (height, width) of the padded image, if the stride of a level is to
      be the image's side divided by its number of cells, rounded down. `None`
      keeps the strides of `levels`.

  Returns:
    layout: [l, 8] int32; the constants at the top of this file are its columns.
    around: [l, k, 4] float32, the anchors of the cell at the origin. k is the
      largest number of anchors per cell; the rest of a level is zeros.
  """
  rows, first = [], 0
  most = max(len(level.around) for level in levels)
  around = np.zeros((len(levels), most, 4), np.float32)
  for i, level in enumerate(levels):
    per_cell = len(level.around)
    around[i, :per_cell] = level.around
    row: list[Array | int] = [first, level.size[1], per_cell, level.stride]
    for axis in (0, 1):
      if fit_to is None:
        row += [0, level.stride]
      else:
        present = -(-fit_to[axis] // level.stride)
        row += [present, fit_to[axis] // present]
    rows.append(jnp.stack([jnp.asarray(x, jnp.int32) for x in row]))
    first += level.size[0] * level.size[1] * per_cell
  return jnp.stack(rows), around


def anchor_corners(
  layout_ref: jax.Ref,
  around_ref: jax.Ref,
  level: Array | int,
  index: Array,
  mask: Array,
) -> tuple[Array, ...]:
  """Computes anchors of one level inside a kernel.

  Args:
    layout_ref: First result of `anchor_layout`.
    around_ref: Second result of `anchor_layout`.
    level: Row of the level in these arrays.
    index: Indices among the anchors of that level.
    mask: Which anchors to compute; the others have no meaning.

  Returns:
    x1, y1, x2 and y2 in pixels, each of the shape of `index`.
  """

  def entry(column: int) -> Array:
    """Returns the number in a column of the layout."""
    return load(layout_ref, level, column)

  # Where the mask is false, the index may be any number, but the divisions
  # below are only correct for numbers that are not negative.
  index = jnp.where(mask, index, 0)
  cell = jax.lax.div(index, jnp.full_like(index, entry(PER_CELL)))
  anchor = index - cell * entry(PER_CELL)
  row = jax.lax.div(cell, jnp.full_like(index, entry(COLUMNS)))
  column = cell - row * entry(COLUMNS)

  def start(cells: Array, fitted: int) -> Array:
    """Returns where cells along an axis start, in pixels.

    Args:
      cells: Indices of rows or columns of cells.
      fitted: FITTED_ROWS or FITTED_COLUMNS, to match.
    """
    stride = jnp.where(cells < entry(fitted), entry(fitted + 1), entry(STRIDE))
    return (cells * stride).astype(jnp.float32)

  y, x = start(row, FITTED_ROWS), start(column, FITTED_COLUMNS)
  return tuple(
    corner + load(around_ref, level, anchor, i, mask=mask)
    for i, corner in enumerate((x, y, x, y))
  )


def _anchors_kernel(
  index_ref: jax.Ref,
  layout_ref: jax.Ref,
  around_ref: jax.Ref,
  anchors_ref: jax.Ref,
  *,
  n: int,
  interpret: bool,
) -> None:
  """Computes one block of `BLOCK` of the n anchors.

  Args:
    index_ref: [n], indices of the anchors to compute.
    layout_ref: [1, 8], first result of `anchor_layout` for the level.
    around_ref: [1, k, 4], second result of `anchor_layout` for the level.
    anchors_ref: Result [n, 4], (x1, y1, x2, y2) in pixels.
    n: Number of anchors.
    interpret: Whether the kernel is interpreted.
  """
  del interpret  # Nothing here depends on it.
  slots = pl.program_id(0) * BLOCK + jnp.arange(BLOCK)
  mask = slots < n
  index = load(index_ref, slots, mask=mask)
  corners = anchor_corners(layout_ref, around_ref, 0, index, mask)
  for i, corner in enumerate(corners):
    store(anchors_ref, slots, i, value=corner, mask=mask)


def anchors_at(
  level: Level,
  index: Array,
  *,
  fit_to: Array | None = None,
  interpret: bool = False,
) -> Array:
  """Returns anchors of one level, computed from their indices.

  Args:
    level: Positions of the level's anchors.
    index: [n], indices of anchors. They count the anchors of a cell first, then
      the columns, then the rows of cells.
    fit_to: (height, width) of the padded image, if the strides are fitted to
      it; see `anchor_layout`.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    [n, 4] float32, (x1, y1, x2, y2) in pixels.
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
