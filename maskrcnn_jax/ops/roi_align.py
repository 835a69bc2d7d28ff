"""RoIAlign: pools the features in each box into a grid of a fixed size.

Coordinates "in cells" count the cells of a feature map: the cell in row i and
column j has its centre at (y, x) = (i, j).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from maskrcnn_jax.ops.boxes import box_area

# Adaptive sampling: upper limits of the number of boxes that are pooled at
# once, and of the bytes of their gathered cells as float32. 32 boxes on the
# largest level of an 800x1344 image with 256 channels take 48 MB.
WINDOW_CHUNK = 32
WINDOW_BYTES = 48 * 2**20

# Adaptive sampling: upper limit of the number of samples along one axis that
# read a given cell. Neighbouring samples are between half a cell and one cell
# apart. A sample reads a cell if it is less than one cell away from it, in
# either direction; rounding may add a sample at both ends.
MAX_TOUCHING = 6


def assign_levels(
  boxes: Float[Array, '*n 4'],
  *,
  min_level: int = 2,
  max_level: int = 5,
  epsilon: float = 1e-8,
  shift: float = 0.0,
  width_offset: float = 0.0,
) -> Int[Array, '*n']:
  """Picks the pyramid level that each box is pooled from.

  A box as large as an ImageNet crop (224 px) goes to level 4; halving its side
  lowers the level by one. The side of a box is the square root of its area.

  Args:
    boxes: In pixels of the padded image. Empty boxes go to `min_level`.
    min_level: Finest level of the pyramid.
    max_level: Coarsest level of the pyramid.
    epsilon: Number added to side / 224, so that the logarithm of an empty box
      is finite.
    shift: Number added to the level before it is rounded down.
    width_offset: Number of pixels by which a box is wider than x2 - x1 and
      higher than y2 - y1, 0 or 1.

  Returns:
    Levels between `min_level` and `max_level`; level l has a stride of 2**l
    pixels.

  Source:
    FPN (arXiv:1612.03144), equation 1.
  """
  side = jnp.sqrt(box_area(boxes, width_offset=width_offset))
  level = jnp.floor(4 + jnp.log2(side / 224 + epsilon) + shift)
  return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def roi_align(
  pyramid: dict[int, Float[Array, 'h w c']],
  boxes: Float[Array, 'r 4'],
  levels: Int[Array, 'r'],
  *,
  side: int,
  sampling_ratio: int,
  offset: float,
  min_side: float = 0.0,
  kernels: str = 'xla',
) -> Float[Array, 'r {side} {side} c']:
  """Pools the features in each box into a square grid, from one level each.

  A box is divided into `side` x `side` output cells. Each output cell is the
  mean of bilinear samples of the features, `sampling_ratio`**2 in number. The
  weight of a feature in a sample is a product of a weight along y and a weight
  along x, also at the edge, where samples are clamped, and beyond it, where
  they are zero. The mean is therefore a sum over 2 * sampling_ratio weighted
  rows and as many weighted columns.

  Args:
    pyramid: Features of one image; level l has a stride of 2**l pixels. The
      levels are consecutive.
    boxes: In pixels of the padded image. No gradient flows to them.
    levels: The level of each box, a key of `pyramid`.
    side: Number of output cells along each side of a box.
    sampling_ratio: Number of samples along each side of an output cell. 0 is
      adaptive: along each side there are as many samples as the output cell is
      cells of the level long, rounded up. A box must then be on the level that
      `assign_levels` gives it, because there is only memory for the cells that
      it can touch there; a box that touches more cells is pooled to NaN.
    offset: Number of cells subtracted from the coordinates of a box. With 0.5,
      a sample is interpolated between the cells whose centres surround it
      ("aligned").
    min_side: Shortest side of a box, in cells. A box with a shorter side is
      pooled as if the side were this long.
    kernels: Implementation: 'xla' (plain JAX), 'pallas' or 'interpret'.

  Returns:
    Pooled features in the dtype of `pyramid`, summed in float32.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3; edge rules of detectron2
    `layers/csrc/ROIAlign`, version 2 with offset 0.5.
  """
  if kernels != 'xla':
    from pallas_kernels import roi_align as kernel

    return kernel.roi_align(
      pyramid,
      boxes,
      levels,
      side=side,
      sampling_ratio=sampling_ratio,
      offset=offset,
      min_side=min_side,
      interpret=kernels == 'interpret',
    )
  names = sorted(pyramid)
  shapes = jnp.array([pyramid[n].shape[:2] for n in names], jnp.int32)
  sizes = [pyramid[n].shape[0] * pyramid[n].shape[1] for n in names]
  starts = jnp.array([sum(sizes[:i]) for i in range(len(sizes))], jnp.int32)
  cells = jnp.concatenate(
    [pyramid[n].reshape(-1, pyramid[n].shape[-1]) for n in names]
  )

  index = levels - names[0]
  box_cells = boxes / (2.0 ** levels.astype(jnp.float32))[:, None] - offset
  y, x = box_cells[:, 1], box_cells[:, 0]
  height = jnp.maximum(box_cells[:, 3] - y, min_side)
  width = jnp.maximum(box_cells[:, 2] - x, min_side)
  if sampling_ratio == 0:
    return _pool_windows(
      cells,
      starts[index],
      shapes[index],
      (y, height),
      (x, width),
      side=side,
      level_shapes=[pyramid[n].shape[:2] for n in names],
    )
  rows, row_weights = _bilinear_taps(
    y,
    height,
    shapes[index, 0],
    side=side,
    sampling_ratio=sampling_ratio,
  )
  columns, column_weights = _bilinear_taps(
    x,
    width,
    shapes[index, 1],
    side=side,
    sampling_ratio=sampling_ratio,
  )
  shape = (-1, side, 2 * sampling_ratio)
  starts_of_rows = starts[index][:, None] + rows * shapes[index, 1][:, None]
  return _pool_samples(
    cells,
    starts_of_rows.reshape(shape),
    row_weights.reshape(shape),
    columns.reshape(shape),
    column_weights.reshape(shape),
  )


@jax.custom_vjp
def _pool_samples(
  cells: Float[Array, 'n c'],
  rows: Int[Array, 'r s t'],
  row_weights: Float[Array, 'r s t'],
  columns: Int[Array, 'r s t'],
  column_weights: Float[Array, 'r s t'],
) -> Float[Array, 'r s s c']:
  """Computes each output cell of each box as a weighted sum of cells.

  Output cell (i, j) of a box is the sum over all pairs of one of its t rows and
  one of its t columns. The sum is accumulated pair by pair, because the
  features of all pairs together are 16 times as large as the result.

  Args:
    cells: Features of all cells of all levels in one list, row by row.
    rows: Indices in `cells` at which the rows of each output row start.
    row_weights: Weights of these rows.
    columns: Columns of each output column, counted from the start of a row.
    column_weights: Weights of these columns.

  Returns:
    Pooled features in the dtype of `cells`, summed in float32.
  """
  total = jnp.zeros((), jnp.float32)
  for i, j in np.ndindex(rows.shape[2], columns.shape[2]):
    index, weight = _pair(i, j, rows, row_weights, columns, column_weights)
    features = cells.at[index].get(mode='promise_in_bounds')
    total += weight[..., None] * features.astype(jnp.float32)
  return total.astype(cells.dtype)


def _pair(
  i: int | Int[Array, ''],
  j: int | Int[Array, ''],
  rows: Int[Array, 'r s t'],
  row_weights: Float[Array, 'r s t'],
  columns: Int[Array, 'r s t'],
  column_weights: Float[Array, 'r s t'],
) -> tuple[Int[Array, 'r s s'], Float[Array, 'r s s']]:
  """Pairs row i with column j of each output cell of each box.

  Args:
    i: Number of the row among the t rows of an output row.
    j: Number of the column among the t columns of an output column.
    rows: Indices in the list of all cells at which rows start.
    row_weights: Weights of the rows.
    columns: Columns, counted from the start of a row.
    column_weights: Weights of the columns.

  Returns:
    For each output cell, the index of the cell in this row and column, and the
    product of the two weights.
  """
  return (
    rows[:, :, None, i] + columns[:, None, :, j],
    row_weights[:, :, None, i] * column_weights[:, None, :, j],
  )


def _pool_samples_forward(
  cells: Float[Array, 'n c'], *samples: Array
) -> tuple[Array, tuple[Array, tuple[Array, ...]]]:
  """Returns the result of `_pool_samples`, and the arrays for its gradient.

  The gradient needs only the number and the dtype of the cells. An array
  without columns has both and takes no memory.
  """
  return _pool_samples(cells, *samples), (cells[:, :0], samples)


def _pool_samples_backward(
  saved: tuple[Array, tuple[Array, ...]], gradient: Float[Array, 'r s s c']
) -> tuple[Array, None, None, None, None]:
  """Returns the gradient of `_pool_samples` for the cells, and for no other."""
  empty_cells, samples = saved
  num_cells = empty_cells.shape[0]
  total = jax.lax.platform_dependent(
    gradient.astype(jnp.float32),
    *samples,
    # A scatter-add is slow on a CPU and fast on a GPU. A loop over the output
    # cells is fast on a CPU and slow on a GPU.
    cpu=jax.custom_batching.sequential_vmap(
      functools.partial(_scatter_gradient_in_loop, num_cells)
    ),
    default=functools.partial(_scatter_gradient, num_cells),
  )
  return total.astype(empty_cells.dtype), None, None, None, None


_pool_samples.defvjp(_pool_samples_forward, _pool_samples_backward)


def _scatter_gradient(
  num_cells: int, gradient: Float[Array, 'r s s c'], *samples: Array
) -> Float[Array, '{num_cells} c']:
  """Adds the gradient of each output cell to the cells that it was pooled from.

  Args:
    num_cells: Number of cells of all levels.
    gradient: Gradient for the output cells, float32.
    *samples: Rows, row weights, columns and column weights of `_pool_samples`.

  Returns:
    The gradient for the cells.
  """
  rows, _, columns, _ = samples
  num_columns = columns.shape[2]

  def add_pair(k: Int[Array, ''], total: Array) -> Array:
    """Adds the gradients for pair k of a row and a column."""
    index, weight = _pair(k // num_columns, k % num_columns, *samples)
    return total.at[index].add(
      weight[..., None] * gradient, mode='promise_in_bounds'
    )

  return jax.lax.fori_loop(
    0,
    rows.shape[2] * num_columns,
    add_pair,
    jnp.zeros((num_cells, gradient.shape[-1])),
  )


def _scatter_gradient_in_loop(
  num_cells: int, gradient: Float[Array, 'r s s c'], *samples: Array
) -> Float[Array, '{num_cells} c']:
  """Computes `_scatter_gradient` in a loop over the output cells.

  Args:
    num_cells: Number of cells of all levels.
    gradient: Gradient for the output cells, float32.
    *samples: Rows, row weights, columns and column weights of `_pool_samples`.

  Returns:
    The gradient for the cells.
  """
  rows, row_weights, columns, column_weights = samples
  num_boxes, side, taps = rows.shape
  channels = gradient.shape[-1]

  def add_output_cell(k: Int[Array, ''], total: Array) -> Array:
    """Adds the gradients that come from output cell k of all boxes."""
    box, i, j = k // side**2, k // side % side, k % side
    for m, n in np.ndindex(taps, taps):
      place = rows[box, i, m] + columns[box, j, n]
      weight = row_weights[box, i, m] * column_weights[box, j, n]
      before = jax.lax.dynamic_slice(total, (place, 0), (1, channels))
      total = jax.lax.dynamic_update_slice(
        total, before + weight * gradient[box, i, j], (place, 0)
      )
    return total

  return jax.lax.fori_loop(
    0, num_boxes * side**2, add_output_cell, jnp.zeros((num_cells, channels))
  )


def adaptive_weights(
  start: Float[Array, 'r'],
  size: Float[Array, 'r'],
  length: Int[Array, 'r'],
  *,
  side: int,
  max_length: int,
) -> Float[Array, 'r {side} {max_length}']:
  """Computes the weights of all cells of one axis in each output cell.

  An output cell is the mean of linear samples along the axis, as many as it is
  cells long, rounded up. Its weights sum to 1 if all samples are inside the
  feature map.

  Args:
    start: Start of each box along the axis, in cells.
    size: Length of each box along the axis, in cells.
    length: Number of cells along the axis in the level of each box. The cells
      from `length` to `max_length` get weight 0.
    side: Number of output cells of a box.
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


def _pool_windows(
  cells: Float[Array, 'n c'],
  starts: Int[Array, 'r'],
  shapes: Int[Array, 'r 2'],
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
    shapes: Numbers of rows and columns of the level of each box.
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
      Int[Array, '2'],
      tuple[Float[Array, ''], Float[Array, '']],
      tuple[Float[Array, ''], Float[Array, '']],
    ],
  ) -> Float[Array, 's s c']:
    """Pools one box, given as its row of (starts, shapes, rows, columns)."""
    start, shape, (y, height), (x, width) = box
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
    features = cells.at[start + row * shape[1] + column].get(mode='clip')
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
    (starts, shapes, rows, columns),
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
  # `assign_levels` puts boxes of less than 448x448 pixels on level 4, which are
  # 28x28 cells. On each finer level the limit is also 28x28 cells. The factor
  # allows for rounding.
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


def _bilinear_taps(
  start: Float[Array, 'r'],
  size: Float[Array, 'r'],
  length: Int[Array, 'r'],
  *,
  side: int,
  sampling_ratio: int,
) -> tuple[Int[Array, 'r t'], Float[Array, 'r t']]:
  """Returns the cells that linear samples along one axis read, and the weights.

  Args:
    start: Start of each box along the axis, in cells.
    size: Length of each box along the axis, in cells.
    length: Number of cells along the axis in the level of each box.
    side: Number of output cells of a box.
    sampling_ratio: Number of samples in each output cell.

  Returns:
    Indices of cells, two for each sample, so t = side * sampling_ratio * 2; and
    their weights, gradient stopped. The weights of an output cell sum to 1 if
    all its samples are inside the feature map.
  """
  count = side * sampling_ratio
  # Samples are in the middle of equal parts of the box.
  fractions = (jnp.arange(count) + 0.5) / count
  position = start[:, None] + fractions * size[:, None]
  last = (length - 1)[:, None].astype(position.dtype)
  # A sample up to one cell outside repeats the edge; farther outside, it is 0.
  inside = (position >= -1) & (position <= last + 1)
  position = jnp.clip(position, 0, last)
  low = jnp.floor(position)
  high = jnp.minimum(low + 1, last)
  high_weight = position - low
  scale = jnp.where(inside, 1 / sampling_ratio, 0)
  indices = jnp.stack([low, high], axis=-1).astype(jnp.int32)
  weights = jnp.stack([1 - high_weight, high_weight], axis=-1)
  shape = (start.shape[0], 2 * count)
  return (
    indices.reshape(shape),
    jax.lax.stop_gradient(weights * scale[..., None]).reshape(shape),
  )
