"""Anchors: the boxes that every cell of every pyramid level starts from."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np


class AnchorLevel(NamedTuple):
  """Where the anchors of a level are; all of it static.

  They go through the rows of cells, the columns, the anchors of a cell; cell
  (row, column) starts at (column * stride, row * stride).
  """

  stride: int  # pixels per cell
  size: tuple[int, int]  # rows and columns of cells
  around: tuple[tuple[float, ...], ...]  # anchors of the cell at the origin


def cell_anchors(
  sizes: tuple[float, ...],
  ratios: tuple[float, ...],
  *,
  rounding: str = 'none',
  stride: int = 1,
) -> Float[np.ndarray, 'anchors_per_cell 4']:
  """Returns the anchors of the cell at the origin.

  Args:
    sizes: Square root of an anchor's area, in pixels.
    ratios: Height over width.
    rounding: Halves go to the even neighbour.
      'none': about the cell's corner; size outer, ratio inner.
      'corners': the same, each coordinate rounded; ratio outer, size inner.
      'stride': about the middle of the cell's pixels. A box of the cell's own
      size is given its ratio, its sides are rounded and then enlarged; x2 is
      the last pixel inside. Ratio outer, size inner.
    stride: Pixels per cell; only 'stride' looks at it.

  Source:
    'none': detectron2 `modeling/anchor_generator.py`, `generate_cell_anchors`.
    'corners': torchvision `models/detection/anchor_utils.py`,
    `AnchorGenerator.generate_anchors`.
    'stride': maskrcnn-benchmark `modeling/rpn/anchor_generator.py`,
    `generate_anchors`, which is Detectron's.
  """
  match rounding:
    case 'none':
      pairs = [(size, ratio) for size in sizes for ratio in ratios]
      widths = np.array([(size * size / r) ** 0.5 for size, r in pairs])
      heights = np.array([r * (size * size / r) ** 0.5 for size, r in pairs])
      return 0.5 * np.stack([-widths, -heights, widths, heights], axis=1)
    case 'corners':
      # In float32, as the original rounds what that gives.
      roots = np.sqrt(np.asarray(ratios, np.float32))
      sizes = np.asarray(sizes, np.float32)
      widths = ((1 / roots)[:, None] * sizes).reshape(-1)
      heights = (roots[:, None] * sizes).reshape(-1)
      corners = np.stack([-widths, -heights, widths, heights], axis=1)
      return np.round(corners / 2)
    case 'stride':
      base_widths = np.round(np.sqrt(stride * stride / np.asarray(ratios)))
      base_heights = np.round(base_widths * np.asarray(ratios))
      scales = np.asarray(sizes) / stride
      widths = (base_widths[:, None] * scales).reshape(-1)
      heights = (base_heights[:, None] * scales).reshape(-1)
      reach = 0.5 * (np.stack([widths, heights], axis=1) - 1)
      center = 0.5 * (stride - 1)
      return np.concatenate([center - reach, center + reach], axis=1)
  raise ValueError(
    f"rounding must be 'none', 'corners' or 'stride', not {rounding!r}."
  )


def anchor_levels(
  padded_size: tuple[int, int],
  *,
  sizes: dict[int, tuple[float, ...]],
  ratios: tuple[float, ...],
  rounding: str = 'none',
) -> tuple[AnchorLevel, ...]:
  """Returns where the anchors of each level are, finest first.

  Args:
    padded_size: (height, width) in pixels, multiples of the coarsest stride's
      half, as the levels are.
    sizes: For each level, the square roots of the areas of its anchors.
    ratios: Height over width.
    rounding: See `cell_anchors`.

  Source:
    FPN (arXiv:1612.03144), section 4.1; order and origin as detectron2's
    `modeling/anchor_generator.py` with offset 0.
  """
  levels = []
  for level in sorted(sizes):
    stride = 2**level
    around = cell_anchors(
      sizes[level], ratios, rounding=rounding, stride=stride
    )
    height, width = padded_size
    levels.append(
      AnchorLevel(
        stride,
        (-(-height // stride), -(-width // stride)),
        tuple(map(tuple, around.tolist())),
      )
    )
  return tuple(levels)


def make_anchors(
  levels: tuple[AnchorLevel, ...], *, fit_to: Int[Array, '2'] | None = None
) -> tuple[Float[Array, '_ 4'], ...]:
  """Returns the anchors of each level.

  Args:
    levels: Where they are.
    fit_to: (height, width) of one image, padded. Where its cells do not come
      out even, they are moved together to fit into it: the stride is its side
      over the number of its cells, rounded down. None: strides are powers of
      two.

  Source:
    `fit_to`: torchvision `models/detection/anchor_utils.py`,
    `AnchorGenerator.forward`; only level 6 of an image with an odd number of
    cells of 32 px differs by it.
  """
  return tuple(
    anchors_at(level, jnp.arange(count_anchors(level)), fit_to=fit_to)
    for level in levels
  )


def count_anchors(level: AnchorLevel) -> int:
  """Returns how many anchors a level has."""
  return level.size[0] * level.size[1] * len(level.around)


def anchors_at(
  level: AnchorLevel,
  index: Int[Array, 'n'],
  *,
  fit_to: Int[Array, '2'] | None = None,
  kernels: str = 'xla',
) -> Float[Array, 'n 4']:
  """Returns anchors of a level, made from their numbers alone.

  Args:
    level: Where its anchors are.
    index: From 0 to `count_anchors(level)` - 1.
    fit_to: See `make_anchors`.
    kernels: See `kernels.py`.
  """
  if kernels != 'xla':
    from pallas_kernels import anchors as kernel

    return kernel.anchors_at(
      level, index, fit_to=fit_to, interpret=kernels == 'interpret'
    )
  per_cell = len(level.around)
  cell = index // per_cell
  fit_rows, fit_columns = (None, None) if fit_to is None else fit_to
  y = _cell_starts(cell // level.size[1], level.stride, fit_rows)
  x = _cell_starts(cell % level.size[1], level.stride, fit_columns)
  around = jnp.asarray(level.around, jnp.float32)
  return jnp.stack([x, y, x, y], axis=-1) + around[index % per_cell]


def _cell_starts(cells, stride, fit_side):
  """Where cells along an axis start, in pixels."""
  if fit_side is not None:
    # Cells beyond the image stay where they are, so that they stay beyond it.
    present = -(-fit_side // stride)
    stride = jnp.where(cells < present, fit_side // present, stride)
  return (cells * stride).astype(jnp.float32)


def pad_size(
  image_size: Int[Array, '2'], *, padding_multiple: int
) -> Int[Array, '2']:
  """Returns the (height, width) that peers pad an image to."""
  return -(-image_size // padding_multiple) * padding_multiple


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
  padded = pad_size(image_size, padding_multiple=padding_multiple)
  center_x = 0.5 * (anchors[:, 0] + anchors[:, 2])
  center_y = 0.5 * (anchors[:, 1] + anchors[:, 3])
  # The centre of rounded corners may come out just below the multiple that it
  # lies on; half a pixel is more than that and less than any stride.
  return (center_x < padded[1] - 0.5) & (center_y < padded[0] - 0.5)


def anchors_inside_image(
  anchors: Float[Array, 'a 4'], image_size: Int[Array, '2']
) -> Bool[Array, 'a']:
  """Tells which anchors do not straddle an edge of the unpadded image.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.3; maskrcnn-benchmark
    `modeling/rpn/anchor_generator.py`, `add_visibility_to`, with a threshold
    of 0.
  """
  far = jnp.stack([image_size[1], image_size[0]])
  return jnp.all((anchors[:, :2] >= 0) & (anchors[:, 2:] < far), axis=1)
