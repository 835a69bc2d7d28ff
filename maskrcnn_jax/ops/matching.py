"""Matching: which truth each anchor or proposal belongs to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops.boxes import iou_of_corners

# Boxes of a row: a whole number of vectors of any CPU.
LANES = 1024


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


def match_by_overlap(
  boxes: Float[Array, 'n 4'],
  valid: Bool[Array, 'n'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  foreground_iou: float,
  background_iou: float,
  rescue: bool,
  width_offset: float = 0.0,
  kernels: str = 'xla',
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Gives every box the truth that it overlaps most, and a label.

  The same as `pairwise_iou` and `match_boxes`, one truth at a time, so that
  the matrix of overlaps is never in memory: a row of it is enough to tell which
  boxes the truth improves on, and which it rescues.

  Args:
    boxes: In pixels.
    valid: Boxes that take part; the others get label 0.
    gt_boxes: In pixels.
    gt_valid: Truths that are real.
    foreground_iou: See `match_boxes`.
    background_iou: See `match_boxes`.
    rescue: See `match_boxes`.
    width_offset: See `ops/boxes.py`.
    kernels: See `kernels.py`.

  Returns:
    matches and labels, as `match_boxes` does.
  """
  if kernels != 'xla':
    from pallas_kernels import matching as kernel

    return kernel.match_by_overlap(
      boxes,
      valid,
      gt_boxes,
      gt_valid,
      foreground_iou=foreground_iou,
      background_iou=background_iou,
      rescue=rescue,
      width_offset=width_offset,
      interpret=kernels == 'interpret',
    )
  n, g = boxes.shape[0], gt_boxes.shape[0]
  if n == 0 or g == 0:
    return jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
  # Rows, for the largest of a row is then found lane by lane: on a CPU the
  # largest of a list takes ten times as long.
  rows = -(-n // LANES)
  padding = rows * LANES - n
  corners = jnp.pad(boxes, ((0, padding), (0, 0))).T.reshape(4, rows, LANES)
  valid = jnp.pad(valid, (0, padding)).reshape(rows, LANES)

  def look_at(truth, state):
    matches, best, rescued = state
    iou = iou_of_corners(
      corners, gt_boxes[truth][:, None, None], width_offset=width_offset
    )
    iou = jnp.where(valid & gt_valid[truth], iou, -1)
    # Worked out once: of two computations that are rounded differently, none
    # of the second might be as large as the largest of the first.
    iou = jax.lax.optimization_barrier(iou)
    # Strictly more: the first of equals stays.
    matches = jnp.where(iou > best, truth, matches)
    best = jnp.maximum(best, iou)
    if rescue:
      most = jnp.max(jnp.max(iou, axis=0))
      rescued |= (iou == most) & (most > 0)
    return matches, best, rescued

  matches, best, rescued = jax.lax.fori_loop(
    0,
    _end_of_truths(gt_valid),
    look_at,
    (
      jnp.zeros((rows, LANES), jnp.int32),
      jnp.full((rows, LANES), -1, boxes.dtype),
      jnp.zeros((rows, LANES), bool),
    ),
  )
  labels = jnp.where(
    best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  labels = jnp.where(rescued, 1, labels)
  return matches.reshape(-1)[:n], labels.reshape(-1)[:n].astype(jnp.int32)


@jax.custom_batching.custom_vmap
def _end_of_truths(gt_valid):
  """Returns where the last real truth is, and 1; what follows does nothing."""
  places = jnp.arange(1, gt_valid.shape[0] + 1)
  return jnp.max(jnp.where(gt_valid, places, 0))


@_end_of_truths.def_vmap
def _end_of_all_truths(axis_size, in_batched, gt_valid):
  """Returns that of the image that has most, for one loop serves them all."""
  del axis_size
  return _end_of_truths(gt_valid.any(axis=0) if in_batched[0] else gt_valid), (
    False
  )
