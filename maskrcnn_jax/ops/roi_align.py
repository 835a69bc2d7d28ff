"""RoIAlign: pools the features in each box into a grid of a fixed size.

Coordinates "in cells" count the cells of a feature map: the cell in row i and
column j has its centre at (y, x) = (i, j).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from maskrcnn_jax.ops.adaptive_sampling import pool_adaptively
from maskrcnn_jax.ops.boxes import box_area
from maskrcnn_jax.ops.valid_cells import count_cells


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
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.

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
  own_size: Int[Array, '2'] | None = None,
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
    own_size: (height, width) of the image on a canvas of its own, in pixels.
      The features beyond it are padding and are not read: the edges of a level
      are those of the image, also on a larger canvas. `None` if there is no
      padding.
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
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests.

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
      own_size,
      side=side,
      sampling_ratio=sampling_ratio,
      offset=offset,
      min_side=min_side,
      interpret=kernels == 'interpret',
    )
  names = sorted(pyramid)
  row_lengths = jnp.array([pyramid[n].shape[1] for n in names], jnp.int32)
  own_shapes = jnp.array([pyramid[n].shape[:2] for n in names], jnp.int32)
  if own_size is not None:
    # A row of the batch that is padding may have an image without a size. One
    # cell keeps the indices in range.
    cells_of_image = jnp.stack([count_cells(own_size, n) for n in names])
    own_shapes = jnp.clip(cells_of_image, 1, own_shapes)
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
    return pool_adaptively(
      cells,
      starts[index],
      row_lengths[index],
      own_shapes[index],
      (y, height),
      (x, width),
      side=side,
      level_shapes=[pyramid[n].shape[:2] for n in names],
    )
  rows, row_weights = _bilinear_taps(
    y,
    height,
    own_shapes[index, 0],
    side=side,
    sampling_ratio=sampling_ratio,
  )
  columns, column_weights = _bilinear_taps(
    x,
    width,
    own_shapes[index, 1],
    side=side,
    sampling_ratio=sampling_ratio,
  )
  shape = (-1, side, 2 * sampling_ratio)
  starts_of_rows = starts[index][:, None] + rows * row_lengths[index][:, None]
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

  Boxes without a gradient are left out. There are many: the mask head has a
  slot for each box that could be foreground, and most are background.

  Args:
    num_cells: Number of cells of all levels.
    gradient: Gradient for the output cells, float32.
    *samples: Rows, row weights, columns and column weights of `_pool_samples`.

  Returns:
    The gradient for the cells.
  """
  rows, _, columns, _ = samples
  num_columns = columns.shape[2]
  has_gradient = jnp.any(gradient != 0, axis=(1, 2, 3), keepdims=True)[..., 0]

  def add_pair(k: Int[Array, ''], total: Array) -> Array:
    """Adds the gradients for pair k of a row and a column."""
    index, weight = _pair(k // num_columns, k % num_columns, *samples)
    # The index `num_cells` does not exist, so that nothing is added there.
    index = jnp.where(has_gradient, index, num_cells)
    return total.at[index].add(weight[..., None] * gradient, mode='drop')

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
    no sample is more than one cell outside of the feature map.
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
