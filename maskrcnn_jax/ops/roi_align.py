"""RoIAlign: a fixed grid of features for every box."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops.boxes import box_area


def assign_levels(
    boxes: Float[Array, '*n 4'],
    *,
    min_level: int = 2,
    max_level: int = 5,
    epsilon: float = 1e-8,
) -> Int[Array, '*n']:
  """Picks the pyramid level that each box is pooled from.

  A box as large as an ImageNet crop (224 px) goes to level 4; halving its side
  lowers the level by one.

  Args:
    boxes: In pixels of the padded image. Empty boxes go to `min_level`.
    min_level: Finest level there is.
    max_level: Coarsest level there is.
    epsilon: Added to the ratio of sides, so that an empty box has a level.

  Returns:
    Levels, not indices: between `min_level` and `max_level`.

  Source:
    FPN (arXiv:1612.03144), equation 1.
  """
  side = jnp.sqrt(box_area(boxes))
  level = jnp.floor(4 + jnp.log2(side / 224 + epsilon))
  return jnp.clip(level, min_level, max_level).astype(jnp.int32)


def roi_align(
    pyramid: dict[int, Float[Array, 'h w c']],
    boxes: Float[Array, 'r 4'],
    levels: Int[Array, 'r'],
    *,
    side: int,
    sampling_ratio: int,
    offset: float,
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
    sampling_ratio: Samples along each side of a cell.
    offset: Subtracted from coordinates in cells; 0.5 is "aligned".

  Returns:
    In the dtype of the features; sums are made in float32.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3; edge rules of detectron2
    `layers/csrc/ROIAlign`, version 2 with offset 0.5.
  """
  names = sorted(pyramid)
  shapes = jnp.array([pyramid[n].shape[:2] for n in names], jnp.int32)
  sizes = [pyramid[n].shape[0] * pyramid[n].shape[1] for n in names]
  starts = jnp.array([sum(sizes[:i]) for i in range(len(sizes))], jnp.int32)
  cells = jnp.concatenate([
      pyramid[n].reshape(-1, pyramid[n].shape[-1]) for n in names
  ])

  index = levels - names[0]
  box_cells = boxes / (2.0 ** levels.astype(jnp.float32))[:, None] - offset
  rows, row_weights = _bilinear_taps(
      box_cells[:, 1], box_cells[:, 3], shapes[index, 0],
      side=side, sampling_ratio=sampling_ratio,
  )
  columns, column_weights = _bilinear_taps(
      box_cells[:, 0], box_cells[:, 2], shapes[index, 1],
      side=side, sampling_ratio=sampling_ratio,
  )
  width = shapes[index, 1]
  where = (
      starts[index][:, None, None]
      + rows[:, :, None] * width[:, None, None]
      + columns[:, None, :]
  )
  taps = 2 * sampling_ratio
  corners = cells.at[where].get(mode='clip').reshape(
      -1, side, taps, side, taps, cells.shape[-1]
  )
  row_weights = row_weights.reshape(-1, side, taps)
  column_weights = column_weights.reshape(-1, side, taps)
  weights = (
      row_weights[:, :, :, None, None] * column_weights[:, None, None, :, :]
  )
  pooled = jnp.sum(
      corners.astype(jnp.float32) * weights[..., None], axis=(2, 4)
  )
  return pooled.astype(cells.dtype)


def _bilinear_taps(start, end, length, *, side, sampling_ratio):
  """The cells that the samples along one axis touch, and their weights.

  Args:
    start: [r] where each box begins, in cells.
    end: [r] where it ends.
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
  position = start[:, None] + fractions * (end - start)[:, None]
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
