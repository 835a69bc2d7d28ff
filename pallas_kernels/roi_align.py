"""RoIAlign over a pyramid, forward and backward.

In plain JAX, for each RoI of a level, with the weight of each cell of the level
along each axis:

  pooled = einsum('iy,jx,yxc->ijc', row_weights, column_weights, features)
  feature_gradient += einsum(
      'iy,jx,ijc->yxc', row_weights, column_weights, pooled_gradient)

In the forward kernel, a program computes a row of output cells of a RoI for a
block of channels, sample by sample. In the backward kernel, a program owns a
tile of cells of a level and goes through the RoIs that touch the tile, in their
order. Nothing is added atomically, so that the gradient has no races and is the
same to the bit each time.
"""

import functools
from typing import Any

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.launch import launch, load, store

# Largest numbers of channels of a program, forward and backward.
FORWARD_CHANNELS, BACKWARD_CHANNELS = 128, 64
# Cells of a level that a backward program owns: 4096 sums, 32 a thread.
TILE_ROWS, TILE_COLUMNS = 4, 16
# Largest number of samples that can touch a cell along one axis, if samples are
# between half a cell and one cell apart.
MAX_TOUCHING = 6
# A sample can touch a cell if it is at most this many cells away from the cell:
# one, and a little more for rounding.
REACH = 1.01


def _count_samples(size: Array, *, side: int, sampling_ratio: int) -> Array:
  """Returns the number of samples of an output cell along one axis.

  Args:
    size: Length of each RoI along the axis, in cells of the level.
    side: Number of output cells along the axis.
    sampling_ratio: The number of samples, if it is the same for all RoIs. With
      0, the number of samples is the length of an output cell in cells of the
      level, rounded up.

  Returns:
    Float32 whole numbers, one for each RoI.
  """
  if sampling_ratio > 0:
    return jnp.full_like(size, sampling_ratio)
  count = jnp.ceil(size / side)
  # A division may be rounded to slightly more than a whole number.
  return jnp.where((count - 1) * side >= size, count - 1, count)


def _position(
  start: Array,
  size: Array,
  cell: Array,
  sample: Array | float,
  count: Array,
  *,
  side: int,
  sampling_ratio: int,
) -> Array:
  """Returns the position of a sample along one axis, in cells of the level.

  Args:
    start: Start of the RoI along the axis, in cells of the level.
    size: Length of the RoI along the axis, in cells of the level.
    cell: Index of the output cell.
    sample: Index of the sample in this output cell.
    count: Number of samples of the output cell along the axis.
    side: Number of output cells along the axis.
    sampling_ratio: The number of samples, if it is the same for all RoIs, and
      `count` is then not used; otherwise 0.
  """
  if sampling_ratio > 0:
    fraction = (cell * sampling_ratio + sample + 0.5) / (side * sampling_ratio)
    return start + fraction * size
  step = size / side / jnp.maximum(count, 1)
  return start + cell * (size / side) + (sample + 0.5) * step


def _axis_weights(
  start: Array,
  size: Array,
  length: Array,
  *,
  side: int,
  sampling_ratio: int,
  max_length: int,
) -> Array:
  """Returns how much each cell of a level counts in each output cell of a RoI.

  The weights are those along one axis. The weight of a cell in an output cell
  is the product of its weights along both axes.

  Args:
    start: [r], start of each RoI along the axis, in cells of the level that it
      is pooled from.
    size: [r], length of each RoI along the axis, in cells.
    length: [r], number of cells of this level along the axis.
    side: Number of output cells along the axis.
    sampling_ratio: Number of samples of an output cell along the axis. With 0,
      it is the length of an output cell in cells of the level, rounded up.
    max_length: Largest value of `length`.

  Returns:
    [r, side, max_length] float32; 0 beyond `length`.
  """
  start, size = start[:, None, None], size[:, None, None]
  last = (length - 1)[:, None, None].astype(jnp.float32)
  count = _count_samples(size, side=side, sampling_ratio=sampling_ratio)
  cell = jnp.arange(side, dtype=jnp.float32)[:, None]
  column = jnp.arange(max_length, dtype=jnp.float32)
  first: Array | float
  if sampling_ratio > 0:
    first, num_tried = 0.0, sampling_ratio
  else:
    # If an output cell has a single sample, the step does not matter, and it
    # may be shorter than half a cell.
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
  *refs: jax.Ref,
  side: int,
  sampling_ratio: int,
  channels: int,
  block: int,
  lanes: int,
  interpret: bool,
) -> None:
  """Pools one row of output cells of one RoI for a block of channels.

  Args:
    *refs: Features of each level, [h, w, c], finest level first; RoIs, [6, r],
      as top, height, left and width in cells, and the number of rows and of
      columns that belong to the image on the level of the RoI; index of the
      level of each RoI, [r]; result, [r, side, side, c].
    side: Number of output cells along each side of a RoI.
    sampling_ratio: Number of samples along each side of an output cell. With 0,
      it is the length of the output cell in cells of the level, rounded up.
    channels: Number of channels of the features.
    block: Number of channels of a program.
    lanes: `side`, rounded up to a power of two.
    interpret: Whether the kernel is interpreted.
  """
  del interpret  # Nothing here depends on it.
  *level_refs, rois_ref, levels_ref, pooled_ref = refs
  roi, row = pl.program_id(0), pl.program_id(1)
  channel = pl.program_id(2) * block + jnp.arange(block)
  cell = jnp.arange(lanes)
  mask = (cell < side)[:, None] & (channel < channels)[None]
  y, height, x, width, end_row, end_column = (
    load(rois_ref, i, roi) for i in range(6)
  )
  rule = {'side': side, 'sampling_ratio': sampling_ratio}
  row_count = _count_samples(height, **rule)
  column_count = _count_samples(width, **rule)

  def taps(
    start: Array,
    size: Array,
    index: Array,
    sample: Array,
    count: Array,
    length: Array,
  ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns the two cells along an axis that a sample is interpolated from.

    Args:
      start: Start of the RoI along the axis, in cells of the level.
      size: Length of the RoI along the axis, in cells.
      index: Index of the output cell along the axis.
      sample: Index of the sample in the output cell.
      count: Number of samples of the output cell along the axis.
      length: Number of cells of the image on the level along the axis, float32.

    Returns:
      (index, weight) of the cell before the sample and of the cell after it.
      Both weights are 0 if the sample is outside of the level.
    """
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
    high = jnp.minimum(low + 1, length - 1)
    return (low.astype(jnp.int32), near), (high.astype(jnp.int32), far)

  def pool(ref: jax.Ref) -> None:
    """Pools the features of one level, [h, w, c], and writes the result."""

    def add_row(i: Array, total: Array) -> Array:
      """Adds the samples of row i of each output cell to the sums."""
      row_taps = taps(y, height, row, i, row_count, end_row)

      def add_column(j: Array, total: Array) -> Array:
        """Adds sample j of this row of each output cell to the sums."""
        column_taps = taps(x, width, cell, j, column_count, end_column)
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
  for i, ref in enumerate(level_refs):
    pl.when(level == i)(functools.partial(pool, ref))


def _backward_kernel(
  gradient_ref: jax.Ref,
  row_weights_ref: jax.Ref,
  column_weights_ref: jax.Ref,
  rois_ref: jax.Ref,
  levels_ref: jax.Ref,
  cells_ref: jax.Ref,
  *,
  level: int,
  shape: tuple[int, ...],
  num_rois: int,
  side: int,
  channels: int,
  block: int,
  interpret: bool,
) -> None:
  """Computes the gradient of one tile of a level for a block of channels.

  Args:
    gradient_ref: [r, side, side, c], gradient of the pooled features.
    row_weights_ref: [r, side, rows], weight of each row of the level in each
      row of output cells.
    column_weights_ref: [r, side, columns], weight of each column of the level
      in each column of output cells.
    rois_ref: [4, r], top, height, left and width of the RoIs, in cells.
    levels_ref: [r], index of the level of each RoI; -1 for a RoI to skip.
    cells_ref: Result [h, w, c], gradient of the features of the level.
    level: Index of the level.
    shape: (h, w) of the level.
    num_rois: Number of RoIs, r.
    side: Number of output cells along each side of a RoI.
    channels: Number of channels, c.
    block: Number of channels of a program.
    interpret: Whether the kernel is interpreted.
  """
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

  def may_touch(
    near: Array, size: Array, tile_start: Array, tile_length: int
  ) -> Array:
    """Tells which RoIs may have samples that touch the tile along an axis.

    Args:
      near: Top or left of each RoI, in cells.
      size: Height or width of each RoI, in cells.
      tile_start: First row or column of the tile.
      tile_length: Number of rows or columns of the tile.
    """
    first = tile_start.astype(jnp.float32) - REACH
    last = tile_start.astype(jnp.float32) + tile_length - 1 + REACH
    return (near <= last) & (near + size >= first)

  y, height, x, width = (load(rois_ref, i, rois, mask=real) for i in range(4))
  touches = real & (load(levels_ref, rois, mask=real, other=-1) == level)
  touches &= may_touch(y, height, top, TILE_ROWS)
  touches &= may_touch(x, width, left, TILE_COLUMNS)
  end = rois.shape[0]

  def next_after(roi: Array) -> Array:
    """Returns the next RoI that may touch the tile; `end` if there is none."""
    return jnp.min(jnp.where(touches & (rois > roi), rois, end))

  def cells_between(
    start: Array, size: Array, tile_start: Array, tile_length: int
  ) -> tuple[Array, Array]:
    """Finds the output cells of a RoI whose samples may touch the tile.

    Args:
      start: Top or left of the RoI, in cells of the level.
      size: Height or width of the RoI, in cells of the level.
      tile_start: First row or column of the tile.
      tile_length: Number of rows or columns of the tile.

    Returns:
      The first of these output cells along the axis, and the first after them.
    """
    bin_size = jnp.maximum(size / side, 1e-6)
    first = tile_start.astype(jnp.float32) - REACH - start
    last = first + (tile_length - 1 + 2 * REACH)
    low = jnp.floor(first / bin_size)
    high = jnp.floor(last / bin_size) + 1
    return (
      jnp.minimum(jnp.maximum(low, 0), side).astype(jnp.int32),
      jnp.minimum(jnp.maximum(high, 0), side).astype(jnp.int32),
    )

  def add_roi(state: tuple[Array, Array]) -> tuple[Array, Array]:
    """Adds the gradient that comes from one RoI.

    Args:
      state: Index of the RoI, and the gradient of the tile so far.

    Returns:
      The next RoI that may touch the tile, and the gradient.
    """
    roi, total = state
    y, height, x, width = (load(rois_ref, i, roi) for i in range(4))
    first_row, end_row = cells_between(y, height, top, TILE_ROWS)
    first_column, end_column = cells_between(x, width, left, TILE_COLUMNS)

    def add_row(i: Array, total: Array) -> Array:
      """Adds the gradient that comes from row i of the RoI's output cells."""
      row_weights = load(row_weights_ref, roi, i, rows, mask=rows < shape[0])

      def add_cell(j: Array, total: Array) -> Array:
        """Adds the gradient that comes from output cell j of this row."""
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
  own_size: Array | None = None,
  *,
  side: int,
  sampling_ratio: int,
  offset: float,
  min_side: float = 0.0,
  interpret: bool = False,
) -> Array:
  """Pools the features of each box into a square of cells.

  Args:
    pyramid: Features of one image, {level: [h, w, c]}. The levels are
      consecutive numbers; a cell of level l is 2**l pixels wide.
    boxes: [r, 4], (x1, y1, x2, y2) in pixels. No gradient flows to them.
    levels: [r], level that each box is pooled from.
    own_size: [2], (height, width) of the image on a canvas of its own, in
      pixels. The features beyond it are padding and are not read. `None` if
      there is no padding.
    side: Number of output cells along each side of a box.
    sampling_ratio: Number of samples along each side of an output cell. With 0,
      it is the length of the output cell in cells of the level, rounded up.
    offset: Number of cells subtracted from the coordinates of a box; 0.5 is
      "aligned" RoIAlign.
    min_side: A shorter side of a box is treated as this long, in cells.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    [r, side, side, c] in the dtype of the features; sums are float32.
    Differs: `ops.roi_align` returns NaN for a box that is too large for its
    level if `sampling_ratio` is 0. This function pools it like other boxes.
  """
  names = sorted(pyramid)
  shapes = [pyramid[name].shape[:2] for name in names]
  channels = pyramid[names[0]].shape[2]
  dtype = pyramid[names[0]].dtype
  num_rois = boxes.shape[0]
  if num_rois == 0:
    return jnp.zeros((0, side, side, channels), dtype)
  rule = {'side': side, 'sampling_ratio': sampling_ratio}

  # [l, 2]: rows and columns of each level that belong to the image.
  own_shapes = jnp.array(shapes, jnp.int32)
  if own_size is not None:
    cells_of_image = jnp.stack([-(-own_size // 2**name) for name in names])
    own_shapes = jnp.clip(cells_of_image, 1, own_shapes)

  def in_cells(boxes: Array, levels: Array) -> Array:
    """Returns [4, r]: top, height, left and width in cells of the level."""
    corners = boxes / (2.0 ** levels.astype(jnp.float32))[:, None] - offset
    x1, y1, x2, y2 = corners.T
    return jnp.stack(
      [y1, jnp.maximum(y2 - y1, min_side), x1, jnp.maximum(x2 - x1, min_side)]
    )

  def forward(
    pyramid: dict[int, Array],
    boxes: Array,
    levels: Array,
    own_shapes: Array,
  ) -> Array:
    """Runs the forward kernel.

    Args:
      pyramid: As in `roi_align`.
      boxes: As in `roi_align`.
      levels: As in `roi_align`.
      own_shapes: [l, 2], rows and columns of each level that belong to the
        image.
    """
    index = (levels - names[0]).astype(jnp.int32)
    ends = own_shapes[index].astype(jnp.float32)
    block = min(FORWARD_CHANNELS, pl.next_power_of_2(channels))
    return launch(
      _forward_kernel,
      *(pyramid[name] for name in names),
      jnp.concatenate([in_cells(boxes, levels), ends.T]),
      index,
      name='roi_align',
      grid=(num_rois, side, pl.cdiv(channels, block)),
      out_shape=jax.ShapeDtypeStruct((num_rois, side, side, channels), dtype),
      interpret=interpret,
      channels=channels,
      block=block,
      lanes=pl.next_power_of_2(side),
      **rule,
    )

  def backward(
    residuals: tuple[Array, Array, Array], gradient: Array
  ) -> tuple[dict[int, Any], Array, None, None]:
    """Runs the backward kernel on each level.

    Args:
      residuals: The last three arguments of `forward`.
      gradient: [r, side, side, c], gradient of the pooled features.

    Returns:
      Gradients of pyramid and boxes (zeros), and `None` for the integers.
    """
    boxes, levels, own_shapes = residuals
    rois = in_cells(boxes, levels)
    index = (levels - names[0]).astype(jnp.int32)
    lengths = own_shapes[index]
    # RoIs without a gradient are skipped. There are many: padding, which is
    # boxes of zeros, and background, which has no mask.
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
    return gradients, jnp.zeros_like(boxes), None, None

  pool = jax.custom_vjp(forward)
  pool.defvjp(
    lambda pyramid, *others: (forward(pyramid, *others), others), backward
  )
  return pool(pyramid, boxes, levels, own_shapes)
