"""Tells the cells of an image from the padding of a larger canvas.

An image has a size of its own, at which another program would process it. On a
larger canvas, all cells beyond this size are padding. The network treats them
like the zeros beyond the edge of a feature map, so that the size of the canvas
changes no result.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from maskrcnn_jax.array_types import ValidCells


def count_cells(
  own_sizes: Int[Array, '*b 2'], level: int
) -> Int[Array, '*b 2']:
  """Returns the number of rows and of columns of cells of a level.

  Args:
    own_sizes: (height, width) of each image on a canvas of its own, in pixels.
    level: A cell has 2**level rows and columns of pixels. The last cell may lie
      partly outside of the image.
  """
  return -(-own_sizes // 2**level)


def valid_cells(
  own_sizes: Int[Array, 'b 2'], shapes: dict[int, tuple[int, int]]
) -> ValidCells:
  """Returns which cells of each level belong to each image of a batch.

  Args:
    own_sizes: (height, width) of each image on a canvas of its own, in pixels.
    shapes: {level: number of rows and of columns of cells on the canvas}.
  """
  cells = {}
  for level, (rows, columns) in shapes.items():
    ends = count_cells(own_sizes, level)[:, :, None]
    in_rows = jnp.arange(rows) < ends[:, 0]
    in_columns = jnp.arange(columns) < ends[:, 1]
    cells[level] = (in_rows[:, :, None] & in_columns[:, None, :])[..., None]
  return cells
