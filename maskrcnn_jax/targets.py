"""Targets: samples of anchors and RoIs, and the outputs desired for them."""

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

# Factors that encoded offsets (dx, dy, dw, dh) are multiplied by.
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
  """Samples the anchors of one image that the RPN's losses are computed for.

  Args:
    anchors: Anchors of all levels, in pixels of the resized image. Padding is
      added at the right and the bottom, so coordinates are the same with it.
    image_size: (height, width) of the resized image before padding, in pixels.
    gt_boxes: Boxes of the objects, in pixels of the resized image.
    gt_valid: Which slots hold an object; the others are padding. In an image
      without objects, all samples are background.
    sample_key: Random key of the sample.
    num_samples: Number of anchors to sample.
    foreground_fraction: Largest share of the samples that may be foreground,
      in [0, 1].
    foreground_iou: An anchor whose IoU with an object is at least this is
      foreground. So are the anchors with the largest IoU with an object, if it
      is above 0: see `match_boxes`.
    background_iou: An anchor whose IoU with every object is below this is
      background. Anchors between the two thresholds are ignored.
    delta_weights: Factors of (dx, dy, dw, dh): see `encode_boxes`.
    padding_multiple: Anchors are only used if their centre is inside the image
      after its height and width are rounded up to a multiple of this number of
      pixels. See `anchors_in_image`.
    ignore_straddling: Whether anchors that cross an edge of the image before
      padding are ignored. They are still matched: if an object's best anchor is
      ignored, the object does not get its second best anchor instead.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    kernels: The implementation of each operation; `kernels.match_by_overlap` is
      used.

  Returns:
    Indices of the sampled anchors, foreground first, and the deltas that the
    foreground anchors should predict.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.1.2. Straddling anchors are
    treated as in maskrcnn-benchmark `modeling/rpn/loss.py`.
  """
  present = anchors_in_image(
    anchors, image_size, padding_multiple=padding_multiple
  )
  matches, labels = match_by_overlap(
    anchors,
    present,
    gt_boxes,
    gt_valid,
    foreground_iou=foreground_iou,
    background_iou=background_iou,
    rescue=True,
    width_offset=width_offset,
    kernels=kernels.match_by_overlap,
  )
  if ignore_straddling:
    present &= anchors_inside_image(anchors, image_size)
  labels = jnp.where(present, labels, -1)
  sample = sample_labels(
    labels,
    sample_key,
    size=num_samples,
    foreground_fraction=foreground_fraction,
  )
  deltas = encode_boxes(
    gt_boxes[matches[sample.indices]],
    anchors[sample.indices],
    weights=delta_weights,
    width_offset=width_offset,
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
  """Samples the RoIs of one image that the heads' losses are computed for.

  The ground-truth boxes are appended to the proposals, so that the heads are
  trained on well-placed boxes even before the RPN proposes any.

  Args:
    proposals: Proposals of the image.
    gt_boxes: Boxes of the objects, in pixels of the resized image.
    gt_classes: Class numbers of the objects, 1 to k - 1.
    gt_valid: Which slots hold an object; the others are padding. In an image
      without objects, all RoIs are background.
    sample_key: Random key of the sample.
    num_samples: Number of RoIs to sample.
    foreground_fraction: Largest share of the RoIs that may be foreground, in
      [0, 1]. Foreground takes the first `num_samples * foreground_fraction`
      slots at most.
    foreground_iou: RoIs that overlap an object at least this much are
      foreground; all others are background.
    delta_weights: Factors of (dx, dy, dw, dh): see `encode_boxes`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    kernels: The implementation of each operation; `kernels.pairwise_iou` is
      used.

  Returns:
    The sampled RoIs, foreground first, with the class and the deltas that the
    heads should predict for them.

  Source:
    Fast R-CNN (arXiv:1504.08083), section 2.3; Mask R-CNN (arXiv:1703.06870),
    section 3.1.
  """
  # Ground truth comes last, so that adding padding slots to it does not change
  # which samples are drawn.
  candidates = jnp.concatenate([proposals.boxes, gt_boxes])
  valid = jnp.concatenate([proposals.valid, gt_valid])
  iou = pairwise_iou(
    candidates,
    gt_boxes,
    width_offset=width_offset,
    kernels=kernels.pairwise_iou,
  )
  iou = jnp.where(valid[:, None], iou, -1)
  matches, labels = match_boxes(
    iou,
    gt_valid,
    foreground_iou=foreground_iou,
    background_iou=foreground_iou,
    rescue=False,
  )
  labels = jnp.where(valid, labels, -1)
  sample = sample_labels(
    labels,
    sample_key,
    size=num_samples,
    foreground_fraction=foreground_fraction,
  )
  rois = jnp.where(sample.valid[:, None], candidates[sample.indices], 0)
  objects = jnp.where(sample.foreground, matches[sample.indices], 0)
  deltas = encode_boxes(
    gt_boxes[objects],
    rois,
    weights=delta_weights,
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
  """Draws the mask that the mask head should predict for each RoI.

  Args:
    outlines: Outlines of all objects of the image, in pixels of the resized
      image.
    rois: RoIs, in pixels of the resized image.
    objects: Index of the object of each RoI.
    foreground: Which RoIs have an object. The others get an empty mask.
    side: Number of cells along each side of the mask.
    max_object_vertices: Upper limit of the number of vertices of an object.
    max_parts: Upper limit of the number of parts (polygons) of an object.
    min_roi_side: Smallest side of a RoI, in pixels. A RoI with a shorter side
      is drawn as if the side were this long.
    image_size: (height, width) before padding, in pixels. If it is given,
      objects are drawn on the pixels of the image, and these are pooled. If it
      is `None`, objects are drawn on the cells of the mask.
    padded_size: (height, width) of the padded image, in pixels. Required with
      `image_size`.
    kernels: The implementation of each operation. If `image_size` is `None`,
      `kernels.rasterize_outlines` is used; otherwise plain JAX is.

  Returns:
    1 inside the object, 0 outside. Pooled masks also have values between.

  Source:
    Mask R-CNN (arXiv:1703.06870), section 3.
  """
  masks: Array
  if image_size is None:
    masks = rasterize_outlines(
      outlines,
      objects,
      rois,
      side=side,
      max_object_vertices=max_object_vertices,
      max_parts=max_parts,
      min_box_side=min_roi_side,
      kernels=kernels.rasterize_outlines,
    )
  else:
    assert padded_size is not None, 'image_size needs padded_size.'
    masks = pool_outlines(
      outlines,
      objects,
      rois,
      side=side,
      image_size=image_size,
      padded_size=padded_size,
      max_object_vertices=max_object_vertices,
      max_parts=max_parts,
      min_box_side=min_roi_side,
    )
  return jnp.where(foreground[:, None, None], masks, 0).astype(jnp.float32)
