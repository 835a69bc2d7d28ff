"""Adaptive sampling for RoIAlign: as many samples as an output cell is long.

Coordinates "in cells" count the cells of a feature map: the cell in row i and
column j has its centre at (y, x) = (i, j).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Upper limits of the number of boxes that are pooled at once, and of the bytes
# of their gathered cells as float32. 32 boxes on the largest level of an
# 800x1344 image with 256 channels take 48 MB.
WINDOW_CHUNK = 32
WINDOW_BYTES = 48 * 2**20

# Upper limit of the number of samples along one axis that read a given cell.
# Neighbouring samples are between half a cell and one cell apart. A sample
# reads a cell if it is less than one cell away from it, in either direction;
# rounding may add a sample at both ends.
MAX_TOUCHING = 6


def adaptive_weights(
  start: Float[Array, 'r'],
  size: Float[Array, 'r'],
  length: Int[Array, 'r'],
  *,
  side: int,
  max_length: int,
) -> Float[Array, 'r {side} {max_length}']:
  """Computes the weights of feature cells in output cells along one axis.

  An output cell is the mean of linear samples along the axis. The number of
  samples is the length of the output cell in cells of the feature map, rounded
  up. A sample more than one cell outside of the feature map counts as 0; if no
  sample is that far away, the weights of an output cell sum to 1. A box of
  length 0 has the weights 0.

  Args:
    start: Start of each box along the axis, in cells. Position 0 is the centre
      of the first cell.
    size: Length of each box along the axis, in cells.
    length: Number of cells along the axis in the level of each box. The cells
      from index `length` on get weight 0.
    side: Number of output cells of a box along the axis.
    max_length: Static upper limit of `length`.

  Returns:
    One row of weights for each output cell of each box, gradient stopped.

  Source:
    detectron2 `layers/csrc/ROIAlign` with sampling_ratio 0.
  """
  count, step = _adaptive_samples(size, side=side)
  count, step = count[:, None, None], step[:, None, None]
  bins = jnp.arange(side)[:, None] * (size / side)[:, None, None]
  first = start[:, None, None] + bins
  last = (length - 1)[:, None, None].astype(start.dtype)
  cells = jnp.arange(max_length, dtype=start.dtype)
  # Only an output cell with a single sample can have a step below half a cell.
  # With the limit, this sample is still one of the samples that the loop tries.
  long_step = jnp.maximum(step, 0.5)
  # The number of the first sample that may read each cell.
  first_sample = jnp.floor((cells - 1 - first) / long_step - 0.5)
  total = jnp.zeros(jnp.broadcast_shapes(first_sample.shape, last.shape))
  for i in range(MAX_TOUCHING):
    sample = first_sample + i
    position = first + (sample + 0.5) * step
    counts = (sample >= 0) & (sample < count)
    counts &= (position >= -1) & (position <= last + 1)
    distance = jnp.abs(jnp.clip(position, 0, last) - cells)
    total += jnp.where(counts, jnp.maximum(1 - distance, 0), 0)
  weights = total / jnp.maximum(count, 1)
  return jax.lax.stop_gradient(jnp.where(cells <= last, weights, 0))


def _adaptive_samples(
  size: Float[Array, '*r'], *, side: int
) -> tuple[Float[Array, '*r'], Float[Array, '*r']]:
  """Returns the number of samples of an output cell, and their distance.

  Args:
    size: Length of each box along one axis, in cells.
    side: Number of output cells of a box along this axis.

  Returns:
    The number of samples along the axis, a whole number, and the distance
    between neighbouring samples in cells.
  """
  count = jnp.ceil(size / side)
  # XLA compiles the division into a product, which may be slightly larger than
  # a whole number, so that `ceil` gives one sample too many.
  count = jnp.where((count - 1) * side >= size, count - 1, count)
  return count, size / side / jnp.maximum(count, 1)


def pool_adaptively(
  cells: Float[Array, 'n c'],
  starts: Int[Array, 'r'],
  row_lengths: Int[Array, 'r'],
  own_shapes: Int[Array, 'r 2'],
  rows: tuple[Float[Array, 'r'], Float[Array, 'r']],
  columns: tuple[Float[Array, 'r'], Float[Array, 'r']],
  *,
  side: int,
  level_shapes: list[tuple[int, ...]],
) -> Float[Array, 'r {side} {side} c']:
  """Pools boxes by RoIAlign with an adaptive number of samples.

  The cells that a box touches are gathered once, into a list of a static
  length, and multiplied by their weights. This works because a box has less
  than 28x28 cells on each level except the coarsest, whatever its shape.

  Args:
    cells: Features of all cells of all levels in one list, row by row.
    starts: Index in `cells` at which the level of each box starts.
    row_lengths: Number of cells of a row of the level of each box, from the
      start of a row in `cells` to the start of the next one.
    own_shapes: Numbers of rows and columns of the level of each box that belong
      to the image; the rest is padding, which no box touches.
    rows: y of the start of each box, and its height, in cells.
    columns: x of the start of each box, and its width, in cells.
    side: Number of output cells along each side of a box.
    level_shapes: Numbers of rows and columns of all levels, finest first.

  Returns:
    Pooled features in the dtype of `cells`; NaN for a box that touches more
    cells than the list has room for.
  """
  limit = max(
    _most_cells(*shape, limited=shape != level_shapes[-1])
    for shape in level_shapes
  )
  max_rows = max(shape[0] for shape in level_shapes)
  max_columns = max(shape[1] for shape in level_shapes)

  # Recomputing the gathered cells in the backward pass is fast, and keeping
  # them would take much memory.
  @jax.checkpoint
  def pool_one(
    box: tuple[
      Int[Array, ''],
      Int[Array, ''],
      Int[Array, '2'],
      tuple[Float[Array, ''], Float[Array, '']],
      tuple[Float[Array, ''], Float[Array, '']],
    ],
  ) -> Float[Array, 's s c']:
    """Pools one box, given as its row of the five arguments after `cells`."""
    start, row_length, shape, (y, height), (x, width) = box
    first_row, num_rows = _touched(y, height, shape[0], side=side)
    first_column, num_columns = _touched(x, width, shape[1], side=side)
    slots = jnp.arange(limit)
    row = first_row + slots // num_columns
    column = first_column + slots % num_columns
    weigh = functools.partial(adaptive_weights, side=side)
    row_weights = (
      weigh(y[None], height[None], shape[:1], max_length=max_rows)[0]
      .at[:, row]
      .get(mode='clip')
    )
    column_weights = (
      weigh(x[None], width[None], shape[1:], max_length=max_columns)[0]
      .at[:, column]
      .get(mode='clip')
    )
    row_weights = jnp.where(slots < num_rows * num_columns, row_weights, 0)
    weights = row_weights[:, None, :] * column_weights[None, :, :]
    features = cells.at[start + row * row_length + column].get(mode='clip')
    # Products of lower precision (TF32) would be less exact than the bilinear
    # samples of other programs.
    pooled = jnp.einsum(
      'stp,pc->stc',
      weights,
      features.astype(jnp.float32),
      precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.where(num_rows * num_columns > limit, jnp.nan, pooled).astype(
      cells.dtype
    )

  chunk = WINDOW_BYTES // (4 * limit * cells.shape[-1])
  return jax.lax.map(
    pool_one,
    (starts, row_lengths, own_shapes, rows, columns),
    batch_size=max(1, min(chunk, WINDOW_CHUNK)),
  )


def _most_cells(height: int, width: int, *, limited: bool) -> int:
  """Returns the largest number of cells of a level that a box can touch.

  A box of h by w cells touches at most h + 2 by w + 2 cells. Among boxes of
  equal area, the longest and thinnest one touches most cells.

  Args:
    height: Number of rows of the level.
    width: Number of columns of the level.
    limited: Whether the area of a box is less than 28x28 cells, as on all
      levels except the coarsest.
  """
  if not limited:
    return height * width
  # `roi_align.assign_levels` puts boxes of less than 448x448 pixels on level 4,
  # which are 28x28 cells. On each finer level the limit is also 28x28 cells.
  # The factor allows for rounding.
  area = 28**2 * 1.0001
  longest = max(height, width)
  touched = (longest + 2) * (area / longest + 2)
  return min(height * width, int(touched) + 1)


def _touched(
  start: Float[Array, ''],
  size: Float[Array, ''],
  length: Int[Array, ''],
  *,
  side: int,
) -> tuple[Int[Array, ''], Int[Array, '']]:
  """Returns the first cell that a box reads along one axis, and how many.

  Args:
    start: Start of the box along the axis, in cells.
    size: Length of the box along the axis, in cells.
    length: Number of cells of the level along the axis.
    side: Number of output cells of the box.
  """
  _, step = _adaptive_samples(size, side=side)
  last = length - 1
  low = jnp.clip(jnp.floor(start + 0.5 * step), 0, last)
  high = jnp.clip(jnp.floor(start + size - 0.5 * step) + 1, 0, last)
  return low.astype(jnp.int32), (high - low).astype(jnp.int32) + 1
