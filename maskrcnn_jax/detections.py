"""Detections: turns the output of the heads into boxes, classes and masks."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import Proposals
from maskrcnn_jax.kernels import XLA, Kernels
from maskrcnn_jax.ops.boxes import clip_boxes, decode_boxes, has_area
from maskrcnn_jax.ops.nms import nms

# Factors that encoded offsets (dx, dy, dw, dh) are multiplied by.
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
  """Turns the box head's output for one image into the detected boxes.

  A proposal becomes one box for each class with a score above `min_score`. NMS
  runs inside each class. The result is the best of the boxes of all classes
  together.

  Args:
    class_logits: Logits of each proposal; column 0 is background.
    box_deltas: Encoded offsets (dx, dy, dw, dh) of each proposal, one box for
      each class.
    proposals: The boxes that the head has classified.
    image_size: (height, width) before padding, in pixels.
    min_score: Boxes with this score or less are dropped; [0, 1].
    iou_threshold: NMS removes a box that overlaps a better one of the same
      class more than this.
    max_detections: Number of slots of the result. Slots without a box are not
      valid.
    delta_weights: Divisors of (dx, dy, dw, dh): see `decode_boxes`.
    min_size: Length of the shortest side that a detection may have, in pixels.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    kernels: The implementation of each operation; `kernels.nms` is used.

  Returns:
    boxes: In pixels of the resized image, best first.
    classes: Class numbers, 1 to k - 1.
    scores: Probabilities, falling.
    valid: Which slots hold a box. In the other slots, all values are 0.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3.1, "Inference"; detectron2
    `modeling/roi_heads/fast_rcnn.py`.
    Differs: a box without an area is dropped before the best boxes are chosen.
    detectron2 drops it afterwards, so that it may take the place of another
    box.
  """
  num_classes = class_logits.shape[1]
  probabilities = jax.nn.softmax(class_logits, axis=-1)[:, 1:]
  # The scores of a proposal add up to 1, so at most 1 / min_score classes can
  # have a score above min_score. The other classes are skipped.
  per_proposal = num_classes - 1
  if min_score > 0:
    per_proposal = min(per_proposal, math.ceil(1 / min_score))
  scores, index = jax.lax.top_k(probabilities, per_proposal)
  classes = index.astype(jnp.int32) + 1
  deltas = jnp.take_along_axis(box_deltas, classes[..., None], axis=1)
  boxes = decode_boxes(
    deltas,
    jnp.broadcast_to(proposals.boxes[:, None], deltas.shape),
    weights=delta_weights,
    width_offset=width_offset,
  )
  boxes = clip_boxes(boxes, image_size, width_offset=width_offset)
  valid = (
    (scores > min_score)
    & proposals.valid[:, None]
    & has_area(boxes, min_size=min_size, width_offset=width_offset)
  )

  boxes, classes = boxes.reshape(-1, 4), classes.reshape(-1)
  scores, valid = scores.reshape(-1), valid.reshape(-1)
  kept, kept_valid = nms(
    boxes,
    scores,
    valid,
    iou_threshold=iou_threshold,
    limit=max_detections,
    groups=classes,
    width_offset=width_offset,
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
  """Picks, for each detection, the mask of its class, and applies the sigmoid.

  Args:
    mask_logits: For each detection, the logits of one mask for each of the k
      classes, as the mask head returns them.
    classes: Class of each detection, 1 to k - 1. It is 0 for padding, whose
      masks have no meaning.

  Returns:
    One mask for each detection: the probability, in [0, 1], that a cell of its
    box belongs to the object. The box is divided into m x m cells.
  """
  logits = jnp.take_along_axis(
    mask_logits, classes[:, None, None, None], axis=3
  )[..., 0]
  return jax.nn.sigmoid(logits)
