"""Anchors: the fixed boxes at each cell of the pyramid that the RPN moves."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np


class AnchorLevel(NamedTuple):
  """The positions and shapes of the anchors of one pyramid level, all static.

  Anchors are numbered row by row of the level's cells, then column by column,
  then in the order of `around`. Cell (row, column) starts at the pixel
  (x, y) = (column * stride, row * stride) of the padded image.
  """

  stride: int  # pixels per cell
  size: tuple[int, int]  # number of rows and of columns of cells
  # (x1, y1, x2, y2) of each anchor of the cell that starts at (0, 0), in
  # pixels. The anchors of another cell are shifted by the start of that cell.
  around: tuple[tuple[float, ...], ...]


def cell_anchors(
  sizes: tuple[float, ...],
  ratios: tuple[float, ...],
  *,
  rounding: str = 'none',
  stride: int = 1,
) -> Float[np.ndarray, 'anchors_per_cell 4']:
  """Returns the anchors of the cell that starts at pixel (0, 0).

  There is one anchor for each pair of a size and a ratio. `rounding` chooses
  where the anchors are centred, how their coordinates are rounded, and the
  order of the pairs:
    'none': Centred at the start of the cell and not rounded. All ratios of the
      first size come first.
    'corners': Centred at the start of the cell; each coordinate is rounded.
      All sizes of the first ratio come first.
    'stride': Centred at the middle of the cell's pixels. The sides of a box
      with the area of a cell are rounded for each ratio and then enlarged to
      each size; (x2, y2) is the last pixel inside the anchor. All sizes of the
      first ratio come first.
  Numbers halfway between two integers are rounded to the even one.

  Args:
    sizes: Square roots of the areas of the anchors, in pixels.
    ratios: Ratios of height to width.
    rounding: 'none', 'corners' or 'stride', as explained above.
    stride: Pixels per cell. Only `rounding='stride'` uses it.

  Returns:
    Boxes (x1, y1, x2, y2) in pixels. Coordinates may be negative.

  Raises:
    ValueError: If `rounding` is none of the three.

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
      # In float32, as in torchvision: float64 could round differently.
      roots = np.sqrt(np.asarray(ratios, np.float32))
      sides = np.asarray(sizes, np.float32)
      widths = ((1 / roots)[:, None] * sides).reshape(-1)
      heights = (roots[:, None] * sides).reshape(-1)
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
  """Returns the positions and shapes of the anchors of each level.

  Args:
    padded_size: (height, width) of the padded image, in pixels. A side that is
      not a multiple of a level's stride gets one more cell on that level.
    sizes: {level: square roots of the areas of its anchors, in pixels}.
    ratios: Ratios of height to width.
    rounding: How anchors are rounded: 'none', 'corners' or 'stride'; see
      `cell_anchors`.

  Returns:
    One entry for each key of `sizes`, finest level first.

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
  """Returns the boxes of all anchors, level by level.

  Args:
    levels: Positions and shapes of the anchors of each level.
    fit_to: (height, width) of one padded image, in pixels. If it is given, the
      stride of a level is the side of this image divided by its number of
      cells on the level, rounded down. `None` keeps the strides of `levels`,
      which are powers of two.

  Returns:
    For each level, boxes (x1, y1, x2, y2) in pixels of the padded image, in the
    order that `AnchorLevel` describes.

  Source:
    `fit_to`: torchvision `models/detection/anchor_utils.py`,
    `AnchorGenerator.forward`. It changes only level 6, and only if a side of
    the image is an odd multiple of 32 pixels.
  """
  return tuple(
    anchors_at(level, jnp.arange(count_anchors(level)), fit_to=fit_to)
    for level in levels
  )


def count_anchors(level: AnchorLevel) -> int:
  """Returns the number of anchors of a level."""
  return level.size[0] * level.size[1] * len(level.around)


def anchors_at(
  level: AnchorLevel,
  index: Int[Array, 'n'],
  *,
  fit_to: Int[Array, '2'] | None = None,
  kernels: str = 'xla',
) -> Float[Array, 'n 4']:
  """Computes the boxes of some anchors of a level from their numbers.

  Args:
    level: Positions and shapes of the anchors of the level.
    index: Numbers of the anchors, from 0 to `count_anchors(level)` - 1, in the
      order that `AnchorLevel` describes.
    fit_to: (height, width) of a padded image that the stride is fitted to; see
      `make_anchors`. `None` keeps the stride of the level.
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests.

  Returns:
    Boxes (x1, y1, x2, y2) in pixels of the padded image.
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


def _cell_starts(
  cells: Int[Array, 'n'], stride: int, fit_side: Int[Array, ''] | None
) -> Float[Array, 'n']:
  """Returns the pixels at which cells along one axis start.

  Args:
    cells: Rows or columns of the cells.
    stride: Pixels per cell.
    fit_side: Side of a padded image, in pixels. If it is given, the cells of
      the image have the stride `fit_side` // (their number).
  """
  strides: int | Array = stride
  if fit_side is not None:
    # Cells beyond the image stay where they are, so that they stay beyond it.
    num_cells = -(-fit_side // stride)
    strides = jnp.where(cells < num_cells, fit_side // num_cells, stride)
  return (cells * strides).astype(jnp.float32)


def pad_size(
  image_size: Int[Array, '*b 2'], *, padding_multiple: int
) -> Int[Array, '*b 2']:
  """Rounds (height, width) up to multiples of `padding_multiple` pixels.

  Detectron2, torchvision and maskrcnn-benchmark pad an image to this size.
  """
  return -(-image_size // padding_multiple) * padding_multiple


def anchors_in_image(
  anchors: Float[Array, 'a 4'],
  image_size: Int[Array, '2'],
  *,
  padding_multiple: int,
) -> Bool[Array, 'a']:
  """Tells which anchors are centred in the image, padded to a multiple.

  The static padded size may be much larger than the image. In other programs,
  an image is padded to the next multiple of `padding_multiple` only, so anchors
  centred beyond that multiple do not exist there. They take part in neither
  training nor proposals here, so that the static size changes no result.

  Args:
    anchors: Boxes in pixels of the padded image.
    image_size: (height, width) before padding, in pixels.
    padding_multiple: The image counts as padded to a multiple of this many
      pixels.
  """
  padded = pad_size(image_size, padding_multiple=padding_multiple)
  center_x = 0.5 * (anchors[:, 0] + anchors[:, 2])
  center_y = 0.5 * (anchors[:, 1] + anchors[:, 3])
  # An anchor's centre is computed from rounded corners, so it may come out
  # slightly below the multiple on which it lies. The centre of a cell's pixels
  # ('stride') may be half a pixel below the multiple: on level 6, it is at 95.5
  # in the last cell of an image of 96 pixels. A quarter of a pixel is more than
  # the error and less than this distance.
  return (center_x < padded[1] - 0.25) & (center_y < padded[0] - 0.25)


def anchors_inside_image(
  anchors: Float[Array, 'a 4'], image_size: Int[Array, '2']
) -> Bool[Array, 'a']:
  """Tells which anchors do not cross an edge of the unpadded image.

  Args:
    anchors: Boxes in pixels of the padded image.
    image_size: (height, width) before padding, in pixels.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.3; maskrcnn-benchmark
    `modeling/rpn/anchor_generator.py`, `add_visibility_to`, with a threshold
    of 0.
  """
  far = jnp.stack([image_size[1], image_size[0]])
  return jnp.all((anchors[:, :2] >= 0) & (anchors[:, 2:] < far), axis=1)
