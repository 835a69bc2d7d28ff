"""Proposals: the boxes that the RPN passes on to the heads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.array_types import Proposals
from maskrcnn_jax.kernels import XLA, Kernels
from maskrcnn_jax.ops.anchors import (
  AnchorLevel,
  anchors_in_image,
  make_anchors,
)
from maskrcnn_jax.ops.boxes import has_area
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.selection import select_boxes


def make_proposals(
  objectness_logits: Float[Array, 'a'],
  anchor_deltas: Float[Array, 'a 4'],
  levels: tuple[AnchorLevel, ...],
  image_size: Int[Array, '2'],
  *,
  pre_nms: int,
  post_nms: int,
  num_proposals: int,
  iou_threshold: float,
  delta_weights: tuple[float, float, float, float],
  padding_multiple: int,
  min_size: float = 0.0,
  width_offset: float = 0.0,
  fit_to: Int[Array, '2'] | None = None,
  kernels: Kernels = XLA,
) -> Proposals:
  """Selects the proposals of one image.

  On each level, the `pre_nms` anchors with the highest objectness are moved by
  their deltas and clipped to the image. NMS then keeps at most `post_nms` of
  them. The result is the best of the boxes of all levels together.

  Args:
    objectness_logits: Logits of all anchors, level after level in the order of
      `levels`.
    anchor_deltas: Encoded offsets (dx, dy, dw, dh) of all anchors, in the same
      order.
    levels: Positions and shapes of the anchors of each level.
    image_size: (height, width) before padding, in pixels.
    pre_nms: Number of boxes of a level that enter NMS.
    post_nms: Largest number of boxes of a level that NMS keeps.
    num_proposals: Number of slots of the result. Slots without a box are not
      valid.
    iou_threshold: NMS removes a box whose IoU with a better box of the level is
      more than this.
    delta_weights: Divisors of (dx, dy, dw, dh): see `decode_boxes`.
    padding_multiple: Anchors are only used if their centre is inside the image
      after its height and width are rounded up to a multiple of this number of
      pixels. See `anchors_in_image`.
    min_size: Length of the shortest side that a proposal may have, in pixels.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    fit_to: (height, width) of the padded image that the strides are fitted to.
      `None` keeps powers of two: see `make_anchors`.
    kernels: The implementation of each operation; `kernels.select_boxes` and
      `kernels.nms` are used.

  Returns:
    Proposals in pixels of the resized image, best first, gradient stopped.

  Source:
    FPN (arXiv:1612.03144), section 4.1; detectron2
    `modeling/proposal_generator/proposal_utils.py`.
    Differs: in training, maskrcnn-benchmark chooses the best boxes of all
    images of a device together, so that the proposals of an image depend on
    the other images of the batch.
  """
  objectness_logits = jax.lax.stop_gradient(objectness_logits)
  anchor_deltas = jax.lax.stop_gradient(anchor_deltas)
  present = jnp.concatenate(
    [
      anchors_in_image(
        level_anchors, image_size, padding_multiple=padding_multiple
      )
      for level_anchors in make_anchors(levels, fit_to=fit_to)
    ]
  )
  boxes, logits = select_boxes(
    jnp.where(present, objectness_logits, -jnp.inf),
    anchor_deltas,
    levels,
    image_size,
    limit=pre_nms,
    weights=delta_weights,
    width_offset=width_offset,
    fit_to=fit_to,
    kernels=kernels.select_boxes,
  )
  valid = jnp.isfinite(logits) & has_area(
    boxes, min_size=min_size, width_offset=width_offset
  )
  kept, kept_valid = jax.vmap(
    lambda b, s, v: nms(
      b,
      s,
      v,
      iou_threshold=iou_threshold,
      limit=post_nms,
      width_offset=width_offset,
      kernels=kernels.nms,
    )
  )(boxes, logits, valid)
  boxes = jnp.take_along_axis(boxes, kept[..., None], axis=1).reshape(-1, 4)
  logits = jnp.take_along_axis(logits, kept, axis=1)
  logits = jnp.where(kept_valid, logits, -jnp.inf).reshape(-1)

  count = min(num_proposals, logits.shape[0])
  best, index = jax.lax.top_k(logits, count)
  fill = num_proposals - count
  best = jnp.pad(best, (0, fill), constant_values=-jnp.inf)
  valid = jnp.isfinite(best)
  boxes = jnp.pad(boxes[index], ((0, fill), (0, 0)))
  return Proposals(
    boxes=jnp.where(valid[:, None], boxes, 0),
    scores=jnp.where(valid, jax.nn.sigmoid(best), 0),
    valid=valid,
  )
