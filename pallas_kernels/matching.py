"""Matching fused with IoU: the matrix of overlaps is never in memory.

In plain JAX:

  iou = where(valid[:, None] & gt_valid, pairwise_iou(boxes, gt_boxes), -1)
  matches, best = argmax(iou, axis=1), max(iou, axis=1)
  labels = where(best >= foreground_iou, 1, where(best < background_iou, 0, -1))
  if rescue:
    best_of_truth = max(iou, axis=0)
    rescued = (iou == best_of_truth) & (best_of_truth > 0)
    labels = where(rescued.any(axis=1), 1, labels)
"""

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp

from pallas_kernels.boxes import iou_tile, load_boxes
from pallas_kernels.launch import launch, load, store

# As for the IoU: 4096 overlaps at a time. The bits of 32 truths are a word.
BLOCK, WORD = 128, 32


def _match_kernel(
  boxes_ref,
  valid_ref,
  gt_boxes_ref,
  gt_valid_ref,
  matches_ref,
  best_ref,
  ties_ref,
  block_best_ref,
  *,
  n,
  g,
  width_offset,
  interpret,
):
  """Looks at all truths for a block of boxes.

  `block_best_ref` gets the most that a box of the block overlaps each truth,
  `ties_ref` a bit for each box and truth: whether it is that box. To find the
  rescued boxes then takes neither a second look at the boxes nor a comparison
  of overlaps that were computed twice.
  """
  block = pl.program_id(0)
  rows = block * BLOCK + jnp.arange(BLOCK)
  real = rows < n
  boxes = load_boxes(boxes_ref, rows, real)
  valid = load(valid_ref, rows, mask=real) != 0

  def look_at(word, state):
    matches, best = state
    lanes = jnp.arange(WORD)
    columns = word * WORD + lanes
    exists = columns < g
    iou = iou_tile(
      boxes,
      load_boxes(gt_boxes_ref, columns, exists),
      width_offset=width_offset,
      interpret=interpret,
    )
    gt_valid = load(gt_valid_ref, columns, mask=exists) != 0
    iou = jnp.where(valid[:, None] & gt_valid[None], iou, -1)
    block_best = jnp.max(iou, axis=0)
    store(block_best_ref, block, columns, value=block_best)
    ties = jnp.where(iou == block_best[None], jnp.int32(1) << lanes[None], 0)
    store(ties_ref, word, rows, value=jnp.sum(ties, axis=1), mask=real)
    # Strictly more: the first of equals stays.
    word_best = jnp.max(iou, axis=1)
    word_matches = word * WORD + jnp.argmax(iou, axis=1).astype(jnp.int32)
    return (
      jnp.where(word_best > best, word_matches, matches),
      jnp.maximum(word_best, best),
    )

  matches, best = jax.lax.fori_loop(
    0,
    pl.cdiv(g, WORD),
    look_at,
    (jnp.zeros(BLOCK, jnp.int32), jnp.full(BLOCK, -1, jnp.float32)),
  )
  store(matches_ref, rows, value=matches, mask=real)
  store(best_ref, rows, value=best, mask=real)


def match_by_overlap(
  boxes: Array,
  valid: Array,
  gt_boxes: Array,
  gt_valid: Array,
  *,
  foreground_iou: float,
  background_iou: float,
  rescue: bool,
  width_offset: float = 0.0,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Gives every box the truth that it overlaps most, and a label.

  Args:
    boxes: [n, 4].
    valid: [n], boxes that take part.
    gt_boxes: [g, 4].
    gt_valid: [g], truths that are real.
    foreground_iou: Boxes that overlap a truth at least this much get label 1.
    background_iou: Boxes that overlap all truths less than this get label 0,
      those between the two thresholds -1.
    rescue: Whether every truth labels the boxes 1 that overlap it most.
    width_offset: What a box is wider than x2 - x1.
    interpret: See `launch`.

  Returns:
    matches and labels, [n] int32 each.
  """
  n, g = boxes.shape[0], gt_boxes.shape[0]
  if n == 0 or g == 0:
    return jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
  blocks, words = pl.cdiv(n, BLOCK), pl.cdiv(g, WORD)
  matches, best, ties, block_best = launch(
    _match_kernel,
    boxes,
    valid.astype(jnp.int8),
    gt_boxes,
    gt_valid.astype(jnp.int8),
    name='match_by_overlap',
    grid=(blocks,),
    out_shape=(
      jax.ShapeDtypeStruct((n,), jnp.int32),
      jax.ShapeDtypeStruct((n,), jnp.float32),
      jax.ShapeDtypeStruct((words, n), jnp.int32),
      jax.ShapeDtypeStruct((blocks, words * WORD), jnp.float32),
    ),
    interpret=interpret,
    n=n,
    g=g,
    width_offset=width_offset,
  )
  labels = jnp.where(
    best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  if rescue:
    best_of_truth = jnp.max(block_best, axis=0)
    hot = (block_best == best_of_truth) & (best_of_truth > 0)
    bits = jnp.where(
      hot.reshape(blocks, words, WORD), jnp.int32(1) << jnp.arange(WORD), 0
    ).sum(axis=2, dtype=jnp.int32)
    bits = jnp.repeat(bits.T, BLOCK, axis=1)[:, :n]
    labels = jnp.where(jnp.any(ties & bits, axis=0), 1, labels)
  return matches, labels.astype(jnp.int32)
