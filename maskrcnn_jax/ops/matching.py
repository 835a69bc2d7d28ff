"""Matching: which truth each anchor or proposal belongs to."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def match_boxes(
    iou: Float[Array, 'n g'],
    gt_valid: Bool[Array, 'g'],
    *,
    foreground_iou: float,
    background_iou: float,
    rescue: bool,
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Gives every box the truth that it overlaps most, and a label.

  Args:
    iou: Overlap of each box with each truth. A row of negative numbers is a
      box that does not take part: it can be neither label 1 nor rescued.
    gt_valid: Truths that are real.
    foreground_iou: Boxes that overlap a truth at least this much get label 1.
    background_iou: Boxes that overlap all truths less than this get label 0,
      those between the two thresholds -1.
    rescue: Whether every truth keeps the boxes that overlap it most, however
      poorly: a truth that no box reaches would otherwise never be learned.

  Returns:
    matches: Index of the truth of greatest overlap, the first of equals; 0
      where there is no truth.
    labels: 1, 0 or -1. Without any truth, all are 0.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.1.2. A rescued box goes to the
    truth that *it* overlaps most, as in detectron2 `modeling/matcher.py`.
    Differs: a truth that overlaps no box at all rescues none; in detectron2
    it would rescue every box.
  """
  iou = jnp.where(gt_valid[None, :], iou, -1)
  matches = jnp.argmax(iou, axis=1).astype(jnp.int32)
  best = jnp.max(iou, axis=1)
  labels = jnp.where(
      best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  if rescue:
    best_of_truth = jnp.max(iou, axis=0)
    rescued = (iou == best_of_truth[None, :]) & (best_of_truth > 0)[None, :]
    labels = jnp.where(rescued.any(axis=1), 1, labels)
  return matches, labels.astype(jnp.int32)
