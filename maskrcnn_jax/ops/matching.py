"""Matching: which truth each anchor or proposal belongs to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops.boxes import pairwise_iou

# Truths that share a word of 32 bits.
WORD = 32


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
    block_size: int = 8192,
    kernels: str = 'xla',
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Gives every box the truth that it overlaps most, and a label.

  The same as `pairwise_iou` and `match_boxes`, a block of boxes at a time.
  Of each block is kept what its boxes overlap each truth at most, and of each
  box one bit a truth: whether it is the one that does.

  Args:
    boxes: In pixels.
    valid: Boxes that take part; the others get label 0.
    gt_boxes: In pixels.
    gt_valid: Truths that are real.
    foreground_iou: See `match_boxes`.
    background_iou: See `match_boxes`.
    rescue: See `match_boxes`.
    width_offset: See `ops/boxes.py`.
    block_size: Boxes looked at together; memory is block_size * g overlaps.
    kernels: See `kernels.py`.

  Returns:
    matches and labels, as `match_boxes` does.
  """
  if kernels != 'xla':
    from pallas_kernels import matching as kernel

    return kernel.match_by_overlap(
        boxes, valid, gt_boxes, gt_valid, foreground_iou=foreground_iou,
        background_iou=background_iou, rescue=rescue,
        width_offset=width_offset, interpret=kernels == 'interpret',
    )
  n, g = boxes.shape[0], gt_boxes.shape[0]
  if n == 0 or g == 0:
    return jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
  block_size = max(1, min(block_size, n))
  num_blocks = -(-n // block_size)
  padding = num_blocks * block_size - n
  num_words = -(-g // WORD)
  place = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)

  def to_words(bits):
    bits = jnp.pad(bits, ((0, 0), (0, num_words * WORD - g)))
    bits = bits.reshape(-1, num_words, WORD)
    return jnp.sum(jnp.where(bits, place, 0), axis=2, dtype=jnp.uint32)

  def match_block(block):
    block_boxes, block_valid = block
    iou = pairwise_iou(block_boxes, gt_boxes, width_offset=width_offset)
    iou = jnp.where(block_valid[:, None] & gt_valid, iou, -1)
    best_of_truth = jnp.max(iou, axis=0)
    return (
        jnp.argmax(iou, axis=1).astype(jnp.int32),
        jnp.max(iou, axis=1),
        best_of_truth,
        to_words(iou == best_of_truth),
    )

  matches, best, best_of_truth, ties = jax.lax.map(match_block, (
      jnp.pad(boxes, ((0, padding), (0, 0))).reshape(-1, block_size, 4),
      jnp.pad(valid, (0, padding)).reshape(-1, block_size),
  ))
  labels = jnp.where(
      best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  if rescue:
    most = jnp.max(best_of_truth, axis=0)
    hot = to_words((best_of_truth == most) & (most > 0))
    rescued = jnp.any(ties & hot[:, None], axis=2)
    labels = jnp.where(rescued, 1, labels)
  return matches.reshape(-1)[:n], labels.reshape(-1)[:n].astype(jnp.int32)
