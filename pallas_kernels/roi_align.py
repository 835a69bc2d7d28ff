"""RoIAlign over a pyramid, forward and backward.

In plain JAX, with the weights of the cells along each axis, for each RoI of a
level:

  pooled = einsum('iy,jx,yxc->ijc', row_weights, column_weights, features)
  feature_gradient += einsum(
      'iy,jx,ijc->yxc', row_weights, column_weights, pooled_gradient)

Forward, a program makes a row of a RoI's cells for some channels, sample by
sample. Backward, a program owns a tile of a level's cells and goes through the
RoIs that touch it in their order: nothing is added atomically, so that the
gradient has no races and is the same each time.
"""

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.launch import launch, load, store

# Channels of a program, forward and backward.
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
# Cells of a level that a backward program owns: 4096 sums, 32 a thread.
TILE_ROWS, TILE_COLUMNS = 4, 16
# Samples that can touch a cell along one axis when they lie between half a
# cell and one cell apart.
MAX_TOUCHING = 6
# A sample may touch a cell this far from it, and a trace more for rounding.
REACH = 1.01


def _count_samples(size, *, side, sampling_ratio):
  """How many samples an output cell has along one axis."""
  if sampling_ratio > 0:
    return jnp.full_like(size, sampling_ratio)
  count = jnp.ceil(size / side)
  # A division may come out above a whole number.
  return jnp.where((count - 1) * side >= size, count - 1, count)


def _position(start, size, cell, sample, count, *, side, sampling_ratio):
  """Where a sample of an output cell lies, in cells of the level."""
  if sampling_ratio > 0:
    fraction = (cell * sampling_ratio + sample + 0.5) / (side * sampling_ratio)
    return start + fraction * size
  step = size / side / jnp.maximum(count, 1)
  return start + cell * (size / side) + (sample + 0.5) * step


def _axis_weights(start, size, length, *, side, sampling_ratio, max_length):
  """Weighs the cells along one axis for each output cell of each RoI.

  Returns:
    [r, side, max_length], float32; 0 beyond `length`.
  """
  start, size = start[:, None, None], size[:, None, None]
  last = (length - 1)[:, None, None].astype(jnp.float32)
  count = _count_samples(size, side=side, sampling_ratio=sampling_ratio)
  cell = jnp.arange(side, dtype=jnp.float32)[:, None]
  column = jnp.arange(max_length, dtype=jnp.float32)
  if sampling_ratio > 0:
    first, num_tried = 0.0, sampling_ratio
  else:
    # With a single sample the step may be any length; it is not needed then.
    step = jnp.maximum(size / side / jnp.maximum(count, 1), 0.5)
    bins = start + cell * (size / side)
    first = jnp.floor((column - 1 - bins) / step - 0.5)
    num_tried = MAX_TOUCHING
  total = jnp.zeros((start.shape[0], side, max_length))
  for i in range(num_tried):
    sample = first + i
    position = _position(
      start,
      size,
      cell,
      sample,
      count,
      side=side,
      sampling_ratio=sampling_ratio,
    )
    counts = (sample >= 0) & (sample < count)
    counts &= (position >= -1) & (position <= last + 1)
    distance = jnp.abs(jnp.clip(position, 0, last) - column)
    total += jnp.where(counts, jnp.maximum(1 - distance, 0), 0)
  return jnp.where(column <= last, total / jnp.maximum(count, 1), 0)


def _forward_kernel(
  *refs, level_shapes, side, sampling_ratio, channels, block, lanes, interpret
):
  """Pools one row of cells of one RoI for a block of channels."""
  del interpret  # Nothing here depends on it.
  *level_refs, rois_ref, levels_ref, pooled_ref = refs
  roi, row = pl.program_id(0), pl.program_id(1)
  channel = pl.program_id(2) * block + jnp.arange(block)
  cell = jnp.arange(lanes)
  mask = (cell < side)[:, None] & (channel < channels)[None]
  y, height, x, width = (load(rois_ref, i, roi) for i in range(4))
  rule = {'side': side, 'sampling_ratio': sampling_ratio}
  row_count = _count_samples(height, **rule)
  column_count = _count_samples(width, **rule)

  def taps(start, size, index, sample, count, length):
    """The two cells that a sample lies between, and their weights."""
    position = _position(
      start,
      size,
      index.astype(jnp.float32),
      sample.astype(jnp.float32),
      count,
      **rule,
    )
    inside = (position >= -1) & (position <= length)
    position = jnp.minimum(jnp.maximum(position, 0), length - 1)
    low = jnp.floor(position)
    near = jnp.where(inside, 1 - (position - low), 0)
    far = jnp.where(inside, position - low, 0)
    low = low.astype(jnp.int32)
    return (low, near), (jnp.minimum(low + 1, length - 1), far)

  def pool(ref, shape):
    def add_row(i, total):
      row_taps = taps(y, height, row, i, row_count, shape[0])

      def add_column(j, total):
        column_taps = taps(x, width, cell, j, column_count, shape[1])
        for row_cell, row_weight in row_taps:
          for column_cell, column_weight in column_taps:
            features = load(
              ref, row_cell, column_cell[:, None], channel[None], mask=mask
            )
            total += (row_weight * column_weight)[:, None] * features.astype(
              jnp.float32
            )
        return total

      if sampling_ratio > 0:
        return jax.lax.fori_loop(0, sampling_ratio, add_column, total)
      return jax.lax.fori_loop(
        0, column_count.astype(jnp.int32), add_column, total
      )

    num_rows = (
      sampling_ratio if sampling_ratio > 0 else row_count.astype(jnp.int32)
    )
    total = jax.lax.fori_loop(
      0, num_rows, add_row, jnp.zeros((lanes, block), jnp.float32)
    )
    total *= 1 / jnp.maximum(row_count * column_count, 1)
    store(
      pooled_ref,
      roi,
      row,
      cell[:, None],
      channel[None],
      value=total,
      mask=mask,
    )

  level = load(levels_ref, roi)
  for i, (ref, shape) in enumerate(zip(level_refs, level_shapes, strict=True)):
    pl.when(level == i)(lambda ref=ref, shape=shape: pool(ref, shape))


def _backward_kernel(
  gradient_ref,
  row_weights_ref,
  column_weights_ref,
  rois_ref,
  levels_ref,
  cells_ref,
  *,
  level,
  shape,
  num_rois,
  side,
  channels,
  block,
  interpret,
):
  """Adds up the gradient of one tile of a level for a block of channels."""
  del interpret  # Nothing here depends on it.
  num_columns = pl.cdiv(shape[1], TILE_COLUMNS)
  tile = pl.program_id(0)
  tile_row = jax.lax.div(tile, jnp.int32(num_columns))
  top = tile_row * TILE_ROWS
  left = (tile - tile_row * num_columns) * TILE_COLUMNS
  rows, columns = top + jnp.arange(TILE_ROWS), left + jnp.arange(TILE_COLUMNS)
  channel = pl.program_id(1) * block + jnp.arange(block)

  rois = jnp.arange(pl.next_power_of_2(num_rois))
  real = rois < num_rois

  def reached(near, size, tile_start, tile_length):
    """Whether samples may lie so close that they touch the tile."""
    first = tile_start.astype(jnp.float32) - REACH
    last = tile_start.astype(jnp.float32) + tile_length - 1 + REACH
    return (near <= last) & (near + size >= first)

  y, height, x, width = (load(rois_ref, i, rois, mask=real) for i in range(4))
  touches = real & (load(levels_ref, rois, mask=real, other=-1) == level)
  touches &= reached(y, height, top, TILE_ROWS)
  touches &= reached(x, width, left, TILE_COLUMNS)
  end = rois.shape[0]

  def next_after(roi):
    return jnp.min(jnp.where(touches & (rois > roi), rois, end))

  def cells_between(start, size, tile_start, tile_length):
    """The output cells whose samples may touch the tile."""
    bin_size = jnp.maximum(size / side, 1e-6)
    first = tile_start.astype(jnp.float32) - REACH - start
    last = first + (tile_length - 1 + 2 * REACH)
    low = jnp.floor(first / bin_size)
    high = jnp.floor(last / bin_size) + 1
    return (
      jnp.minimum(jnp.maximum(low, 0), side).astype(jnp.int32),
      jnp.minimum(jnp.maximum(high, 0), side).astype(jnp.int32),
    )

  def add_roi(state):
    roi, total = state
    y, height, x, width = (load(rois_ref, i, roi) for i in range(4))
    first_row, end_row = cells_between(y, height, top, TILE_ROWS)
    first_column, end_column = cells_between(x, width, left, TILE_COLUMNS)

    def add_row(i, total):
      row_weights = load(row_weights_ref, roi, i, rows, mask=rows < shape[0])

      def add_cell(j, total):
        column_weights = load(
          column_weights_ref, roi, j, columns, mask=columns < shape[1]
        )
        gradient = load(
          gradient_ref, roi, i, j, channel, mask=channel < channels
        ).astype(jnp.float32)
        weights = row_weights[:, None] * column_weights[None]
        return total + weights[:, :, None] * gradient[None, None, :]

      return jax.lax.fori_loop(first_column, end_column, add_cell, total)

    total = jax.lax.fori_loop(first_row, end_row, add_row, total)
    return next_after(roi), total

  _, total = jax.lax.while_loop(
    lambda state: state[0] < end,
    add_roi,
    (
      next_after(jnp.int32(-1)),
      jnp.zeros((TILE_ROWS, TILE_COLUMNS, block), jnp.float32),
    ),
  )
  store(
    cells_ref,
    rows[:, None, None],
    columns[None, :, None],
    channel[None, None, :],
    value=total,
    mask=(rows < shape[0])[:, None, None]
    & (columns < shape[1])[None, :, None]
    & (channel < channels)[None, None, :],
  )


def roi_align(
  pyramid: dict[int, Array],
  boxes: Array,
  levels: Array,
  *,
  side: int,
  sampling_ratio: int,
  offset: float,
  min_side: float = 0.0,
  interpret: bool = False,
) -> Array:
  """Pools every box into a square of features, from one level each.

  Args:
    pyramid: One image's features, {level: [h, w, c]}, no level left out in
      between.
    boxes: [r, 4] in pixels. No gradient flows to them.
    levels: [r], the level of each box.
    side: Cells along each side of the result.
    sampling_ratio: Samples along each side of an output cell; 0: as many as it
      is cells of the level long, rounded up.
    offset: Subtracted from coordinates in cells; 0.5 is "aligned".
    min_side: A smaller side of a box, in cells, is taken to be this long.
    interpret: See `launch`.

  Returns:
    [r, side, side, c] in the dtype of the features; sums are made in float32.
    Differs: a box on a level that it is too large for is pooled like others.
  """
  names = sorted(pyramid)
  shapes = [pyramid[name].shape[:2] for name in names]
  channels = pyramid[names[0]].shape[2]
  dtype = pyramid[names[0]].dtype
  num_rois = boxes.shape[0]
  if num_rois == 0:
    return jnp.zeros((0, side, side, channels), dtype)
  rule = {'side': side, 'sampling_ratio': sampling_ratio}

  def in_cells(boxes, levels):
    """[4, r]: top, height, left and width in cells of the level."""
    corners = boxes / (2.0 ** levels.astype(jnp.float32))[:, None] - offset
    x1, y1, x2, y2 = corners.T
    return jnp.stack(
      [y1, jnp.maximum(y2 - y1, min_side), x1, jnp.maximum(x2 - x1, min_side)]
    )

  def forward(pyramid, boxes, levels):
    block = min(FORWARD_CHANNELS, pl.next_power_of_2(channels))
    return launch(
      _forward_kernel,
      *(pyramid[name] for name in names),
      in_cells(boxes, levels),
      (levels - names[0]).astype(jnp.int32),
      name='roi_align',
      grid=(num_rois, side, pl.cdiv(channels, block)),
      out_shape=jax.ShapeDtypeStruct((num_rois, side, side, channels), dtype),
      interpret=interpret,
      level_shapes=shapes,
      channels=channels,
      block=block,
      lanes=pl.next_power_of_2(side),
      **rule,
    )

  def backward(residuals, gradient):
    boxes, levels = residuals
    rois = in_cells(boxes, levels)
    index = (levels - names[0]).astype(jnp.int32)
    lengths = jnp.asarray(np.array(shapes, np.int32))[index]
    # Empty slots are boxes of zeros, and background has no mask: a tile would
    # go through all their cells in vain.
    index = jnp.where(jnp.any(gradient != 0, axis=(1, 2, 3)), index, -1)
    row_weights, column_weights = (
      _axis_weights(
        rois[2 * axis],
        rois[2 * axis + 1],
        lengths[:, axis],
        max_length=max(shape[axis] for shape in shapes),
        **rule,
      )
      for axis in (0, 1)
    )
    block = min(BACKWARD_CHANNELS, pl.next_power_of_2(channels))
    gradients = {
      name: launch(
        _backward_kernel,
        gradient,
        row_weights,
        column_weights,
        rois,
        index,
        name=f'roi_align_backward_{name}',
        grid=(
          pl.cdiv(shape[0], TILE_ROWS) * pl.cdiv(shape[1], TILE_COLUMNS),
          pl.cdiv(channels, block),
        ),
        out_shape=jax.ShapeDtypeStruct((*shape, channels), dtype),
        interpret=interpret,
        level=level,
        shape=shape,
        num_rois=num_rois,
        side=side,
        channels=channels,
        block=block,
      )
      for level, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }
    return gradients, jnp.zeros_like(boxes), None

  pool = jax.custom_vjp(forward)
  pool.defvjp(
    lambda pyramid, boxes, levels: (
      forward(pyramid, boxes, levels),
      (boxes, levels),
    ),
    backward,
  )
  return pool(pyramid, boxes, levels)
