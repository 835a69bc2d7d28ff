"""Detections: from the heads' output to boxes with a class and a mask."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import Proposals
from maskrcnn_jax.kernels import XLA, Kernels
from maskrcnn_jax.ops.boxes import clip_boxes, decode_boxes, has_area
from maskrcnn_jax.ops.nms import nms

Weights = tuple[float, float, float, float]


def detect_boxes(
    class_logits: Float[Array, 'p k'],
    box_deltas: Float[Array, 'p k 4'],
    proposals: Proposals,
    image_size: Int[Array, '2'],
    *,
    min_score: float,
    iou_threshold: float,
    max_detections: int,
    delta_weights: Weights,
    min_size: float = 0.0,
    width_offset: float = 0.0,
    kernels: Kernels = XLA,
) -> tuple[
    Float[Array, 'd 4'], Int[Array, 'd'], Float[Array, 'd'], Bool[Array, 'd']
]:
  """Turns the box head's output for one image into its final boxes.

  Every proposal may become a box of each class that it scores above
  `min_score`; NMS inside each class; the best of all classes together.

  Args:
    class_logits: Background in column 0.
    box_deltas: One box a class.
    proposals: What was classified.
    image_size: (height, width) before padding.
    min_score: Boxes scored this much or less are dropped.
    iou_threshold: Of the NMS.
    max_detections: Boxes to keep, at most.
    delta_weights: See `decode_boxes`.
    min_size: See `has_area`.
    width_offset: See `ops/boxes.py`.
    kernels: What works it out.

  Returns:
    boxes, classes, scores and valid, best first; zeros where not valid.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3.1, "Inference"; detectron2
    `modeling/roi_heads/fast_rcnn.py`.
    Differs: a box without an area is dropped before the best are chosen;
    detectron2 drops it after, so that it may take the place of another.
  """
  num_classes = class_logits.shape[1]
  probabilities = jax.nn.softmax(class_logits, axis=-1)[:, 1:]
  # At most 1 / min_score classes of a proposal can score above min_score, so
  # no more need to be looked at.
  per_proposal = num_classes - 1
  if min_score > 0:
    per_proposal = min(per_proposal, math.ceil(1 / min_score))
  scores, index = jax.lax.top_k(probabilities, per_proposal)
  classes = index.astype(jnp.int32) + 1
  deltas = jnp.take_along_axis(box_deltas, classes[..., None], axis=1)
  boxes = decode_boxes(
      deltas, jnp.broadcast_to(proposals.boxes[:, None], deltas.shape),
      weights=delta_weights, width_offset=width_offset,
  )
  boxes = clip_boxes(boxes, image_size, width_offset=width_offset)
  valid = (scores > min_score) & proposals.valid[:, None] & has_area(
      boxes, min_size=min_size, width_offset=width_offset
  )

  boxes, classes = boxes.reshape(-1, 4), classes.reshape(-1)
  scores, valid = scores.reshape(-1), valid.reshape(-1)
  kept, kept_valid = nms(
      boxes, scores, valid, iou_threshold=iou_threshold,
      limit=max_detections, groups=classes, width_offset=width_offset,
      kernels=kernels.nms,
  )
  return (
      jnp.where(kept_valid[:, None], boxes[kept], 0),
      jnp.where(kept_valid, classes[kept], 0),
      jnp.where(kept_valid, scores[kept], 0),
      kept_valid,
  )


def select_masks(
    mask_logits: Float[Array, 'd m m k'], classes: Int[Array, 'd']
) -> Float[Array, 'd m m']:
  """Returns the probabilities of the mask of each detection's own class."""
  logits = jnp.take_along_axis(
      mask_logits, classes[:, None, None, None], axis=3
  )[..., 0]
  return jax.nn.sigmoid(logits)
