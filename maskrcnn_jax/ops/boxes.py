"""Boxes: (x1, y1, x2, y2) in pixels; pixel i covers [i, i + 1)."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# exp() of more would blow a 16 px anchor past 1000 px.
# Source: Detectron `core/config.py` BBOX_XFORM_CLIP, in every peer since.
MAX_LOG_SCALE = math.log(1000 / 16)

Weights = tuple[float, float, float, float]


def box_area(boxes: Float[Array, '*n 4']) -> Float[Array, '*n']:
  """Returns width times height; 0 for a box turned inside out."""
  sides = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)
  return sides[..., 0] * sides[..., 1]


def pairwise_iou(
    boxes: Float[Array, 'n 4'], others: Float[Array, 'm 4']
) -> Float[Array, 'n m']:
  """Returns intersection over union of each box with each other; 0 if empty."""
  corner = jnp.maximum(boxes[:, None, :2], others[None, :, :2])
  far_corner = jnp.minimum(boxes[:, None, 2:], others[None, :, 2:])
  sides = jnp.maximum(far_corner - corner, 0)
  intersection = sides[..., 0] * sides[..., 1]
  union = box_area(boxes)[:, None] + box_area(others)[None, :] - intersection
  return jnp.where(
      intersection > 0, intersection / jnp.where(union > 0, union, 1), 0
  )


def encode_boxes(
    boxes: Float[Array, '*n 4'],
    anchors: Float[Array, '*n 4'],
    *,
    weights: Weights = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, '*n 4']:
  """Returns the deltas that lead from each anchor to its box.

  Args:
    boxes: What to reach. An empty box or anchor, which only padding is, gets
      finite deltas without meaning.
    anchors: Where to start.
    weights: Factors of (dx, dy, dw, dh).

  Source:
    R-CNN (arXiv:1311.2524), appendix C, equations 6 to 9.
  """
  sides = boxes[..., 2:] - boxes[..., :2]
  anchor_sides = anchors[..., 2:] - anchors[..., :2]
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
) -> Float[Array, '*n 4']:
  """Returns the box that each anchor's deltas lead to; undoes `encode_boxes`.

  Args:
    deltas: (dx, dy, dw, dh). Growth is capped at `MAX_LOG_SCALE`.
    anchors: Where to start.
    weights: Factors of (dx, dy, dw, dh).
  """
  deltas = deltas / jnp.asarray(weights)
  anchor_sides = anchors[..., 2:] - anchors[..., :2]
  anchor_centers = anchors[..., :2] + 0.5 * anchor_sides
  centers = deltas[..., :2] * anchor_sides + anchor_centers
  sides = jnp.exp(jnp.minimum(deltas[..., 2:], MAX_LOG_SCALE)) * anchor_sides
  return jnp.concatenate([centers - 0.5 * sides, centers + 0.5 * sides], -1)


def clip_boxes(
    boxes: Float[Array, '*n 4'], image_size: Int[Array, '2']
) -> Float[Array, '*n 4']:
  """Cuts boxes off at the edges of an image of (height, width) pixels."""
  height, width = image_size[0], image_size[1]
  limit = jnp.stack([width, height, width, height]).astype(boxes.dtype)
  return jnp.clip(boxes, 0, limit)


def has_area(
    boxes: Float[Array, '*n 4'], *, min_size: float = 0.0
) -> Bool[Array, '*n']:
  """Tells which boxes are wider and higher than `min_size` pixels."""
  return jnp.all(boxes[..., 2:] - boxes[..., :2] > min_size, axis=-1)
