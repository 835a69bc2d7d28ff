"""RoIAlign: a fixed grid of features for every box."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from maskrcnn_jax.ops.boxes import box_area

# Adaptive samples: boxes whose cells are gathered at a time, and bytes of
# float32 that these are at most. 32 boxes on the largest level of an 800x1344
# image, of 256 channels, are 48 MB.
WINDOW_CHUNK = 32
WINDOW_BYTES = 48 * 2**20

# Samples that can touch a cell along one axis when they lie between half a
# cell and one cell apart: less than two cells apart in both directions, and
# rounding at both ends.
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
  lowers the level by one.

  Args:
    boxes: In pixels of the padded image. Empty boxes go to `min_level`.
    min_level: Finest level there is.
    max_level: Coarsest level there is.
    epsilon: Added to the ratio of sides, so that an empty box has a level.
    shift: Added to the level before it is rounded down.
    width_offset: See `ops/boxes.py`.

  Returns:
    Levels, not indices: between `min_level` and `max_level`.

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
  """Pools every box into a square of features, from one level each.

  Each output cell is the mean of `sampling_ratio`**2 bilinear samples. The
  weights of a bilinear sample, its clamping at the edge and its being nothing
  outside all factor into a part of y and a part of x, so the samples of a cell
  are 2 * sampling_ratio weighted rows by as many weighted columns.

  Args:
    pyramid: One image's features; level l has a stride of 2**l pixels, and no
      level is left out in between.
    boxes: In pixels. No gradient flows to them.
    levels: The level of each box, out of those in `pyramid`.
    side: Cells along each side of the result.
    sampling_ratio: Samples along each side of an output cell. 0: as many as
      it is cells of the level long, rounded up, which may differ in y and x;
      then a box must be on the level that `assign_levels` gives it, for only
      so many cells are looked at as it can have there. One that has more
      comes out as NaN.
    offset: Subtracted from coordinates in cells; 0.5 is "aligned".
    min_side: A smaller side of a box, in cells, is taken to be this long.
    kernels: See `kernels.py`.

  Returns:
    In the dtype of the features; sums are made in float32.

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
def _pool_samples(cells, rows, row_weights, columns, column_weights):
  """Adds up weighted cells for every output cell of every box.

  Sample by sample, so that the samples are never in memory: they are 16 times
  as large as the result.

  Args:
    cells: [n, c] of all levels.
    rows: [r, side, taps], where the rows start in `cells`.
    row_weights: Likewise.
    columns: [r, side, taps], from the start of a row.
    column_weights: Likewise.

  Returns:
    [r, side, side, c].
  """
  total = 0.0
  for i, j in np.ndindex(rows.shape[2], columns.shape[2]):
    place, weight = _sample(i, j, rows, row_weights, columns, column_weights)
    features = cells.at[place].get(mode='promise_in_bounds')
    total += weight[..., None] * features.astype(jnp.float32)
  return total.astype(cells.dtype)


def _sample(i, j, rows, row_weights, columns, column_weights):
  """Where a sample's cell is for every output cell, and its weight."""
  return (
    rows[:, :, None, i] + columns[:, None, :, j],
    row_weights[:, :, None, i] * column_weights[:, None, :, j],
  )


def _pool_samples_forward(cells, *samples):
  # An array without elements tells how many cells there are, and their type.
  return _pool_samples(cells, *samples), (cells[:, :0], samples)


def _pool_samples_backward(residuals, gradient):
  likeness, samples = residuals
  spread = functools.partial(_spread, likeness.shape[0])
  total = jax.lax.platform_dependent(
    gradient.astype(jnp.float32),
    *samples,
    # Elsewhere sums by index are fast, and one after the other is slow.
    cpu=jax.custom_batching.sequential_vmap(
      functools.partial(_spread_in_order, likeness.shape[0])
    ),
    default=spread,
  )
  return total.astype(likeness.dtype), None, None, None, None


_pool_samples.defvjp(_pool_samples_forward, _pool_samples_backward)


def _spread(num_cells, gradient, *samples):
  """Adds the weighted gradient of every output cell to its samples' cells."""
  rows, _, columns, _ = samples
  taps = columns.shape[2]

  def add(k, total):
    place, weight = _sample(k // taps, k % taps, *samples)
    return total.at[place].add(
      weight[..., None] * gradient, mode='promise_in_bounds'
    )

  return jax.lax.fori_loop(
    0,
    rows.shape[2] * taps,
    add,
    jnp.zeros((num_cells, gradient.shape[-1])),
  )


def _spread_in_order(num_cells, gradient, *samples):
  """The same, one output cell after the other."""
  rows, row_weights, columns, column_weights = samples
  num_boxes, side, taps = rows.shape
  channels = gradient.shape[-1]

  def add(k, total):
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
    0, num_boxes * side**2, add, jnp.zeros((num_cells, channels))
  )


def adaptive_weights(
  start: Float[Array, 'r'],
  size: Float[Array, 'r'],
  length: Int[Array, 'r'],
  *,
  side: int,
  max_length: int,
) -> Float[Array, 'r {side} {max_length}']:
  """Weighs the cells along one axis for each output cell of each box.

  An output cell is the mean of as many samples as it is cells long, rounded
  up. The weights of an output cell sum to 1 where all its samples are inside.

  Args:
    start: Where each box begins, in cells.
    size: How long it is, in cells.
    length: Cells that there are along this axis; the rest weighs nothing.
    side: Output cells.
    max_length: Static limit of `length`.

  Source:
    detectron2 `layers/csrc/ROIAlign` with sampling_ratio 0.
  """
  count, step = _adaptive_samples(size, side=side)
  count, step = count[:, None, None], step[:, None, None]
  bins = jnp.arange(side)[:, None] * (size / side)[:, None, None]
  first = start[:, None, None] + bins
  last = (length - 1)[:, None, None].astype(start.dtype)
  cells = jnp.arange(max_length, dtype=start.dtype)
  # With a single sample the step may be any length; it is not needed then.
  sparse = jnp.maximum(step, 0.5)
  nearest = jnp.floor((cells - 1 - first) / sparse - 0.5)
  total = jnp.zeros(jnp.broadcast_shapes(nearest.shape, last.shape))
  for i in range(MAX_TOUCHING):
    sample = nearest + i
    position = first + (sample + 0.5) * step
    counts = (sample >= 0) & (sample < count)
    counts &= (position >= -1) & (position <= last + 1)
    distance = jnp.abs(jnp.clip(position, 0, last) - cells)
    total += jnp.where(counts, jnp.maximum(1 - distance, 0), 0)
  weights = total / jnp.maximum(count, 1)
  return jax.lax.stop_gradient(jnp.where(cells <= last, weights, 0))


def _adaptive_samples(size, *, side):
  """How many samples an output cell has, and how far apart they are."""
  count = jnp.ceil(size / side)
  # Compiled, the division is a product that may come out above a whole number.
  count = jnp.where((count - 1) * side >= size, count - 1, count)
  return count, size / side / jnp.maximum(count, 1)


def _pool_windows(cells, starts, shapes, rows, columns, *, side, level_shapes):
  """Pools boxes with adaptive samples.

  All cells that a box touches are gathered once, in a list of a static length,
  and multiplied by their weights. A box's sides may be of any length, but it
  has an area of less than 28x28 cells on all levels but the coarsest.

  Args:
    cells: [n, c] of all levels.
    starts: [r] where the level of each box starts in `cells`.
    shapes: [r, 2] rows and columns of it.
    rows: [r] each: where the boxes begin and how long they are, in cells.
    columns: Likewise.
    side: Output cells.
    level_shapes: Of all levels, finest first.
  """
  limit = max(
    _most_cells(*shape, limited=shape != level_shapes[-1])
    for shape in level_shapes
  )
  max_rows = max(shape[0] for shape in level_shapes)
  max_columns = max(shape[1] for shape in level_shapes)

  # What the backward pass needs is quickly made again.
  @jax.checkpoint
  def pool_one(box):
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
    # Rounded products (TF32) would be less exact than the samples.
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


def _most_cells(height, width, *, limited):
  """The most cells that a box on a level of this shape can touch.

  A box of h by w cells touches no more than (h + 2) by (w + 2). Among those of
  equal area the longest touch most.
  """
  if not limited:
    return height * width
  # Sides of 448 px on level 4, as many cells on the finer ones; a trace more
  # for rounding.
  area = 28**2 * 1.0001
  longest = max(height, width)
  touched = (longest + 2) * (area / longest + 2)
  return min(height * width, int(touched) + 1)


def _touched(start, size, length, *, side):
  """The first cell that samples along one axis touch, and how many cells."""
  _, step = _adaptive_samples(size, side=side)
  last = length - 1
  low = jnp.clip(jnp.floor(start + 0.5 * step), 0, last)
  high = jnp.clip(jnp.floor(start + size - 0.5 * step) + 1, 0, last)
  return low.astype(jnp.int32), (high - low).astype(jnp.int32) + 1


def _bilinear_taps(start, size, length, *, side, sampling_ratio):
  """The cells that the samples along one axis touch, and their weights.

  Args:
    start: [r] where each box begins, in cells.
    size: [r] how long it is.
    length: [r] cells that there are along this axis.
    side: Output cells.
    sampling_ratio: Samples in each output cell.

  Returns:
    Indices and weights, both [r, side * sampling_ratio * 2]; the weights of an
    output cell sum to 1 where all its samples are inside.
  """
  count = side * sampling_ratio
  # Sample i of n in a bin lies at (i + 0.5) / n of the bin.
  fractions = (jnp.arange(count) + 0.5) / count
  position = start[:, None] + fractions * size[:, None]
  last = (length - 1)[:, None].astype(position.dtype)
  # A sample less than one cell outside takes the edge; one further out is 0.
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
