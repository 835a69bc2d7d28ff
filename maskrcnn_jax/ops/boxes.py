"""Boxes: (x1, y1, x2, y2) in pixels; pixel i covers [i, i + 1).

`width_offset` is what a box is wider than x2 - x1: 0, or 1 where (x2, y2) is
the last pixel inside, as Detectron and maskrcnn-benchmark have it. Heights
likewise.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# exp() of more would blow a 16 px anchor past 1000 px.
# Source: Detectron `core/config.py` BBOX_XFORM_CLIP, in every peer since.
MAX_LOG_SCALE = math.log(1000 / 16)

Weights = tuple[float, float, float, float]


def box_sides(
  boxes: Float[Array, '*n 4'], *, width_offset: float = 0.0
) -> Float[Array, '*n 2']:
  """Returns (width, height), negative for a box turned inside out."""
  return boxes[..., 2:] - boxes[..., :2] + width_offset


def box_area(
  boxes: Float[Array, '*n 4'], *, width_offset: float = 0.0
) -> Float[Array, '*n']:
  """Returns width times height; 0 for a box turned inside out."""
  sides = jnp.maximum(box_sides(boxes, width_offset=width_offset), 0)
  return sides[..., 0] * sides[..., 1]


def pairwise_iou(
  boxes: Float[Array, 'n 4'],
  others: Float[Array, 'm 4'],
  *,
  width_offset: float = 0.0,
  kernels: str = 'xla',
) -> Float[Array, 'n m']:
  """Returns intersection over union of each box with each other; 0 if empty.

  Args:
    boxes: One list.
    others: The other.
    width_offset: See the top of this file.
    kernels: See `kernels.py`.
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
  """Returns intersection over union of boxes whose axes are broadcast.

  Args:
    corners: x1, y1, x2, y2, each an array of its own: a loop over numbers that
      lie side by side is several times as fast on a CPU.
    others: Likewise.
    width_offset: See the top of this file.
  """

  def area(x1, y1, x2, y2):
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
  """Returns the deltas that lead from each anchor to its box.

  Args:
    boxes: What to reach. An empty box or anchor, which only padding is, gets
      finite deltas without meaning.
    anchors: Where to start.
    weights: Factors of (dx, dy, dw, dh).
    width_offset: See the top of this file.

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
  """Returns the box that each anchor's deltas lead to; undoes `encode_boxes`.

  Args:
    deltas: (dx, dy, dw, dh). Growth is capped at `MAX_LOG_SCALE`.
    anchors: Where to start.
    weights: Factors of (dx, dy, dw, dh).
    width_offset: See the top of this file.
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
  """Cuts boxes off at the edges of an image of (height, width) pixels."""
  height, width = image_size[0], image_size[1]
  limit = jnp.stack([width, height, width, height]).astype(boxes.dtype)
  return jnp.clip(boxes, 0, limit - width_offset)


def flip_boxes(
  boxes: Float[Array, '*n 4'],
  width: Int[Array, ''],
  *,
  width_offset: float = 0.0,
) -> Float[Array, '*n 4']:
  """Mirrors boxes in an image of `width` pixels."""
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  far = width - width_offset
  return jnp.stack([far - x2, y1, far - x1, y2], axis=-1)


def has_area(
  boxes: Float[Array, '*n 4'],
  *,
  min_size: float = 0.0,
  width_offset: float = 0.0,
) -> Bool[Array, '*n']:
  """Tells which boxes have an area, and sides of `min_size` pixels or more."""
  sides = box_sides(boxes, width_offset=width_offset)
  return jnp.all((sides > 0) & (sides >= min_size), axis=-1)
