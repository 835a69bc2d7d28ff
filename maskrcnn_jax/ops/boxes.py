"""Boxes: areas, overlaps, and offsets from anchors.

A box is (x1, y1, x2, y2) in pixels; pixel i covers [i, i + 1). The argument
`width_offset` chooses between two conventions. A box is x2 - x1 + width_offset
pixels wide and y2 - y1 + width_offset pixels high. With 0, (x2, y2) is the
corner of the box. With 1, it is the last pixel inside the box, as in Detectron
and maskrcnn-benchmark.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Upper limit of the decoded (dw, dh). exp() of a larger number would enlarge an
# anchor of 16 pixels to more than 1000 pixels.
# Source: Detectron `core/config.py`, BBOX_XFORM_CLIP; detectron2, torchvision
# and maskrcnn-benchmark have the same limit.
MAX_LOG_SCALE = math.log(1000 / 16)

# Factors that encoded offsets (dx, dy, dw, dh) are multiplied by.
Weights = tuple[float, float, float, float]


def box_sides(
  boxes: Float[Array, '*n 4'], *, width_offset: float = 0.0
) -> Float[Array, '*n 2']:
  """Returns (width, height) in pixels; negative if x2 < x1 or y2 < y1.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    width_offset: Number added to both sides, 0 or 1; see the top of this file.
  """
  return boxes[..., 2:] - boxes[..., :2] + width_offset


def box_area(
  boxes: Float[Array, '*n 4'], *, width_offset: float = 0.0
) -> Float[Array, '*n']:
  """Returns width times height in square pixels; 0 if a side is negative.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    width_offset: Number added to both sides, 0 or 1; see the top of this file.
  """
  sides = jnp.maximum(box_sides(boxes, width_offset=width_offset), 0)
  return sides[..., 0] * sides[..., 1]


def pairwise_iou(
  boxes: Float[Array, 'n 4'],
  others: Float[Array, 'm 4'],
  *,
  width_offset: float = 0.0,
  kernels: str = 'xla',
) -> Float[Array, 'n m']:
  """Returns the intersection over union (IoU) of each pair of boxes.

  Args:
    boxes: The boxes of the rows of the result, in pixels.
    others: The boxes of the columns of the result, in pixels.
    width_offset: Number added to both sides of a box, 0 or 1; see the top of
      this file.
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests.

  Returns:
    Numbers in [0, 1]; 0 if one of the two boxes has no area.
  """
  if kernels != 'xla':
    from pallas_kernels import boxes as kernel

    return kernel.pairwise_iou(
      boxes,
      others,
      width_offset=width_offset,
      interpret=kernels == 'interpret',
    )
  return iou_of_corners(
    boxes.T[:, :, None], others.T[:, None, :], width_offset=width_offset
  )


def iou_of_corners(
  corners: Float[Array, '4 ...'],
  others: Float[Array, '4 ...'],
  *,
  width_offset: float = 0.0,
) -> Float[Array, '...']:
  """Returns the intersection over union of boxes, with broadcasting.

  The first axis of both arguments holds x1, y1, x2 and y2, so that each
  coordinate is contiguous in memory: loops over contiguous numbers are several
  times faster on a CPU. The other axes are broadcast against each other.

  Args:
    corners: Coordinates of boxes, in pixels.
    others: Coordinates of the boxes to compare with, in pixels.
    width_offset: Number added to both sides of a box, 0 or 1; see the top of
      this file.

  Returns:
    Numbers in [0, 1]; 0 if one of the two boxes has no area.
  """

  def area(
    x1: Float[Array, '...'],
    y1: Float[Array, '...'],
    x2: Float[Array, '...'],
    y2: Float[Array, '...'],
  ) -> Float[Array, '...']:
    """Returns the area; 0 if a side is negative."""
    width = jnp.maximum(x2 - x1 + width_offset, 0)
    return width * jnp.maximum(y2 - y1 + width_offset, 0)

  x1, y1, x2, y2 = corners
  u1, v1, u2, v2 = others
  intersection = area(
    jnp.maximum(x1, u1),
    jnp.maximum(y1, v1),
    jnp.minimum(x2, u2),
    jnp.minimum(y2, v2),
  )
  union = area(*corners) + area(*others) - intersection
  return jnp.where(
    intersection > 0, intersection / jnp.where(union > 0, union, 1), 0
  )


def encode_boxes(
  boxes: Float[Array, '*n 4'],
  anchors: Float[Array, '*n 4'],
  *,
  weights: Weights = (1.0, 1.0, 1.0, 1.0),
  width_offset: float = 0.0,
) -> Float[Array, '*n 4']:
  """Encodes each box as offsets (dx, dy, dw, dh) from its anchor.

  (dx, dy) is the shift of the centre in units of the anchor's sides. (dw, dh)
  are the logarithms of the ratios of the sides.

  Args:
    boxes: Boxes to encode, in pixels. Only padding has boxes or anchors without
      an area; their offsets are finite but have no meaning.
    anchors: The anchor of each box, in pixels.
    weights: Factors that (dx, dy, dw, dh) are multiplied by.
    width_offset: Number added to both sides of a box, 0 or 1; see the top of
      this file.

  Source:
    R-CNN (arXiv:1311.2524), appendix C, equations 6 to 9.
  """
  sides = box_sides(boxes, width_offset=width_offset)
  anchor_sides = box_sides(anchors, width_offset=width_offset)
  sides = jnp.where(sides > 0, sides, 1)
  anchor_sides = jnp.where(anchor_sides > 0, anchor_sides, 1)
  centers = boxes[..., :2] + 0.5 * sides
  anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
  shift = (centers - anchor_centers) / anchor_sides
  log_scale = jnp.log(sides / anchor_sides)
  return jnp.concatenate([shift, log_scale], axis=-1) * jnp.asarray(weights)


def decode_boxes(
  deltas: Float[Array, '*n 4'],
  anchors: Float[Array, '*n 4'],
  *,
  weights: Weights = (1.0, 1.0, 1.0, 1.0),
  width_offset: float = 0.0,
) -> Float[Array, '*n 4']:
  """Moves and scales each anchor by its deltas; the inverse of `encode_boxes`.

  Args:
    deltas: Encoded offsets (dx, dy, dw, dh). Divided by their weights, dw and
      dh are limited to `MAX_LOG_SCALE`.
    anchors: The anchor of each row of deltas, in pixels.
    weights: Divisors of (dx, dy, dw, dh): the factors that encoding used.
    width_offset: Number added to both sides of a box, 0 or 1; see the top of
      this file.

  Returns:
    Boxes in pixels, not clipped to the image.
  """
  deltas = deltas / jnp.asarray(weights)
  anchor_sides = box_sides(anchors, width_offset=width_offset)
  anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
  centers = deltas[..., :2] * anchor_sides + anchor_centers
  sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_sides
  return jnp.concatenate(
    [centers - 0.5 * sides, centers + 0.5 * sides - width_offset], -1
  )


def clip_boxes(
  boxes: Float[Array, '*n 4'],
  image_size: Int[Array, '2'],
  *,
  width_offset: float = 0.0,
) -> Float[Array, '*n 4']:
  """Clips the coordinates of boxes to the image.

  Args:
    boxes: In pixels. A box outside the image loses its area.
    image_size: (height, width) of the image, in pixels.
    width_offset: Number added to both sides of a box, 0 or 1. With 1, the
      largest coordinates are width - 1 and height - 1.
  """
  height, width = image_size[0], image_size[1]
  limit = jnp.stack([width, height, width, height]).astype(boxes.dtype)
  return jnp.clip(boxes, 0, limit - width_offset)


def flip_boxes(
  boxes: Float[Array, '*n 4'],
  width: Int[Array, ''],
  *,
  width_offset: float = 0.0,
) -> Float[Array, '*n 4']:
  """Mirrors boxes left to right in an image that is `width` pixels wide.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    width: Width of the image before padding, in pixels.
    width_offset: Number added to both sides of a box, 0 or 1. With 1, pixel x
      becomes pixel width - 1 - x.
  """
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  far = width - width_offset
  return jnp.stack([far - x2, y1, far - x1, y2], axis=-1)


def has_area(
  boxes: Float[Array, '*n 4'],
  *,
  min_size: float = 0.0,
  width_offset: float = 0.0,
) -> Bool[Array, '*n']:
  """Tells which boxes have an area and sides of at least `min_size` pixels.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    min_size: Length of the shortest side allowed, in pixels.
    width_offset: Number added to both sides of a box, 0 or 1; see the top of
      this file.
  """
  sides = box_sides(boxes, width_offset=width_offset)
  return jnp.all((sides > 0) & (sides >= min_size), axis=-1)
