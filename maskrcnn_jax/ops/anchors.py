"""Anchors: the boxes that every cell of every pyramid level starts from."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np


def cell_anchors(
    sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> Float[np.ndarray, 'anchors_per_cell 4']:
  """Returns the anchors of one cell about the origin: size outer, ratio inner.

  Args:
    sizes: Square root of an anchor's area, in pixels.
    ratios: Height over width.

  Source:
    detectron2 `modeling/anchor_generator.py`, `generate_cell_anchors`.
  """
  widths = np.array([(s * s / r) ** 0.5 for s in sizes for r in ratios])
  heights = np.array([r * (s * s / r) ** 0.5 for s in sizes for r in ratios])
  return 0.5 * np.stack([-widths, -heights, widths, heights], axis=1)


def make_anchors(
    padded_size: tuple[int, int],
    *,
    sizes: dict[int, tuple[float, ...]],
    ratios: tuple[float, ...],
) -> tuple[Float[Array, '_ 4'], ...]:
  """Returns the anchors of each level, finest first; (row, column, anchor).

  The anchors of cell (row, column) are centred on the cell's top left corner,
  (column * stride, row * stride).

  Args:
    padded_size: (height, width) in pixels, multiples of the coarsest stride's
      half, as the levels are.
    sizes: For each level, the square roots of the areas of its anchors.
    ratios: Height over width.

  Source:
    FPN (arXiv:1612.03144), section 4.1; order and origin as detectron2's
    `modeling/anchor_generator.py` with offset 0.
  """
  levels = []
  for level in sorted(sizes):
    stride = 2**level
    rows, columns = (-(-side // stride) for side in padded_size)
    y = jnp.arange(rows, dtype=jnp.float32)[:, None] * stride
    x = jnp.arange(columns, dtype=jnp.float32)[None, :] * stride
    corners = jnp.stack(jnp.broadcast_arrays(x, y, x, y), axis=-1)
    around = jnp.asarray(cell_anchors(sizes[level], ratios), jnp.float32)
    levels.append((corners[:, :, None, :] + around).reshape(-1, 4))
  return tuple(levels)


def anchors_in_image(
    anchors: Float[Array, 'a 4'],
    image_size: Int[Array, '2'],
    *,
    padding_multiple: int,
) -> Bool[Array, 'a']:
  """Tells which anchors are centred in the image, padded as peers pad it.

  A static canvas may be much larger than its image. What lies beyond the next
  multiple of `padding_multiple` would not exist elsewhere, so it takes part in
  neither training nor proposals: the canvas changes nothing.
  """
  padded = -(-image_size // padding_multiple) * padding_multiple
  center_x = 0.5 * (anchors[:, 0] + anchors[:, 2])
  center_y = 0.5 * (anchors[:, 1] + anchors[:, 3])
  # The centre of rounded corners may come out just below the multiple that it
  # lies on; half a pixel is more than that and less than any stride.
  return (center_x < padded[1] - 0.5) & (center_y < padded[0] - 0.5)
