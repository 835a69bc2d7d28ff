"""Targets: which anchors and proposals to learn from, and what to predict."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskrcnn_jax.array_types import (
  Outlines,
  Proposals,
  RoiTargets,
  RpnTargets,
)
from maskrcnn_jax.kernels import XLA, Kernels
from maskrcnn_jax.ops.anchors import anchors_in_image, anchors_inside_image
from maskrcnn_jax.ops.boxes import encode_boxes, pairwise_iou
from maskrcnn_jax.ops.matching import match_boxes, match_by_overlap
from maskrcnn_jax.ops.outlines import pool_outlines, rasterize_outlines
from maskrcnn_jax.ops.sampling import sample_labels

Weights = tuple[float, float, float, float]


def make_rpn_targets(
    anchors: Float[Array, 'a 4'],
    image_size: Int[Array, '2'],
    gt_boxes: Float[Array, 'g 4'],
    gt_valid: Bool[Array, 'g'],
    sample_key: Key[Array, ''],
    *,
    num_samples: int,
    foreground_fraction: float,
    foreground_iou: float,
    background_iou: float,
    delta_weights: Weights,
    padding_multiple: int,
    ignore_straddling: bool = False,
    width_offset: float = 0.0,
    kernels: Kernels = XLA,
) -> RpnTargets:
  """Chooses the anchors of one image to learn from.

  Args:
    anchors: All levels, in pixels of the padded image.
    image_size: (height, width) before padding.
    gt_boxes: In pixels of the resized image.
    gt_valid: Real objects. Without any, all samples are background.
    sample_key: Decides the sample.
    num_samples: Anchors to choose.
    foreground_fraction: The most that may be foreground, as a share.
    foreground_iou: See `match_boxes`.
    background_iou: See `match_boxes`.
    delta_weights: See `encode_boxes`.
    padding_multiple: See `anchors_in_image`.
    ignore_straddling: Whether anchors that cross an edge of the image are
      neither foreground nor background. They keep their part in the matching:
      a truth that such an anchor overlaps most rescues no other.
    width_offset: See `ops/boxes.py`.
    kernels: What works it out.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.1.2; straddling anchors as in
    maskrcnn-benchmark `modeling/rpn/loss.py`.
  """
  present = anchors_in_image(
      anchors, image_size, padding_multiple=padding_multiple
  )
  matches, labels = match_by_overlap(
      anchors, present, gt_boxes, gt_valid, foreground_iou=foreground_iou,
      background_iou=background_iou, rescue=True, width_offset=width_offset,
      kernels=kernels.match_by_overlap,
  )
  if ignore_straddling:
    present &= anchors_inside_image(anchors, image_size)
  labels = jnp.where(present, labels, -1)
  sample = sample_labels(
      labels, sample_key, size=num_samples,
      foreground_fraction=foreground_fraction,
  )
  deltas = encode_boxes(
      gt_boxes[matches[sample.indices]], anchors[sample.indices],
      weights=delta_weights, width_offset=width_offset,
  )
  return RpnTargets(
      indices=sample.indices,
      foreground=sample.foreground,
      delta_targets=jnp.where(sample.foreground[:, None], deltas, 0),
      valid=sample.valid,
  )


def make_roi_targets(
    proposals: Proposals,
    gt_boxes: Float[Array, 'g 4'],
    gt_classes: Int[Array, 'g'],
    gt_valid: Bool[Array, 'g'],
    sample_key: Key[Array, ''],
    *,
    num_samples: int,
    foreground_fraction: float,
    foreground_iou: float,
    delta_weights: Weights,
    width_offset: float = 0.0,
    kernels: Kernels = XLA,
) -> RoiTargets:
  """Chooses the RoIs of one image to learn from.

  The truth is appended to the proposals, so that the heads see well-placed
  boxes before the RPN makes any.

  Args:
    proposals: Of one image.
    gt_boxes: In pixels of the resized image.
    gt_classes: 1 to k - 1.
    gt_valid: Real objects. Without any, all RoIs are background.
    sample_key: Decides the sample.
    num_samples: RoIs to choose.
    foreground_fraction: The most that may be foreground, as a share; these
      are the first `num_samples * foreground_fraction` slots.
    foreground_iou: RoIs that overlap a truth at least this much are
      foreground, all others background.
    delta_weights: See `encode_boxes`.
    width_offset: See `ops/boxes.py`.
    kernels: What works it out.

  Source:
    Fast R-CNN (arXiv:1504.08083), section 2.3; Mask R-CNN (arXiv:1703.06870),
    section 3.1.
  """
  # In this order, for more slots of truth then change no element's luck.
  candidates = jnp.concatenate([proposals.boxes, gt_boxes])
  valid = jnp.concatenate([proposals.valid, gt_valid])
  iou = pairwise_iou(
      candidates, gt_boxes, width_offset=width_offset,
      kernels=kernels.pairwise_iou,
  )
  iou = jnp.where(valid[:, None], iou, -1)
  matches, labels = match_boxes(
      iou, gt_valid, foreground_iou=foreground_iou,
      background_iou=foreground_iou, rescue=False,
  )
  labels = jnp.where(valid, labels, -1)
  sample = sample_labels(
      labels, sample_key, size=num_samples,
      foreground_fraction=foreground_fraction,
  )
  rois = jnp.where(sample.valid[:, None], candidates[sample.indices], 0)
  objects = jnp.where(sample.foreground, matches[sample.indices], 0)
  deltas = encode_boxes(
      gt_boxes[objects], rois, weights=delta_weights,
      width_offset=width_offset,
  )
  return RoiTargets(
      rois=rois,
      class_targets=jnp.where(sample.foreground, gt_classes[objects], 0),
      delta_targets=jnp.where(sample.foreground[:, None], deltas, 0),
      objects=objects,
      foreground=sample.foreground,
      valid=sample.valid,
  )


def make_mask_targets(
    outlines: Outlines,
    rois: Float[Array, 'r 4'],
    objects: Int[Array, 'r'],
    foreground: Bool[Array, 'r'],
    *,
    side: int,
    max_object_vertices: int,
    max_parts: int,
    min_roi_side: float = 0.1,
    image_size: Int[Array, '2'] | None = None,
    padded_size: tuple[int, int] | None = None,
    kernels: Kernels = XLA,
) -> Float[Array, 'r {side} {side}']:
  """Draws the object of every foreground RoI, as seen through the RoI.

  Args:
    outlines: Of one image.
    rois: In pixels of the resized image.
    objects: The truth of each RoI.
    foreground: RoIs that have one; the others get an empty mask.
    side: Of the mask that is predicted.
    max_object_vertices: See `rasterize_outlines`.
    max_parts: See `rasterize_outlines`.
    min_roi_side: A smaller side of a RoI, in pixels, is taken to be this long.
    image_size: (height, width) before padding. If given, objects are drawn on
      the image's pixels and these are pooled; if not, they are drawn on the
      cells of the mask.
    padded_size: (height, width) of the canvas; needed with `image_size`.
    kernels: What works it out.

  Returns:
    1 inside, 0 outside; of a bitmap also what lies between.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3.
  """
  limits = dict(
      max_object_vertices=max_object_vertices, max_parts=max_parts,
      min_box_side=min_roi_side,
  )
  if image_size is None:
    masks = rasterize_outlines(
        outlines, objects, rois, side=side,
        kernels=kernels.rasterize_outlines, **limits
    )
  else:
    masks = pool_outlines(
        outlines, objects, rois, side=side, image_size=image_size,
        padded_size=padded_size, **limits
    )
  return jnp.where(foreground[:, None, None], masks, 0).astype(jnp.float32)
