"""Matching fused with IoU, so that the matrix of overlaps is never in memory.

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

# Number of boxes of a program, and number of ground-truth boxes that it
# compares with them at a time: 4096 overlaps, as in `boxes.py`. A flag for each
# of 32 ground-truth boxes is a bit of one int32 word.
BLOCK, WORD = 128, 32


def _match_kernel(
  boxes_ref: jax.Ref,
  valid_ref: jax.Ref,
  gt_boxes_ref: jax.Ref,
  gt_valid_ref: jax.Ref,
  matches_ref: jax.Ref,
  best_ref: jax.Ref,
  ties_ref: jax.Ref,
  block_best_ref: jax.Ref,
  *,
  n: int,
  g: int,
  width_offset: float,
  interpret: bool,
) -> None:
  """Compares a block of boxes with all ground-truth boxes.

  With `block_best_ref` and `ties_ref`, the rescued boxes are found without
  computing an overlap twice. Two computations could be rounded differently.

  Args:
    boxes_ref: [n, 4], (x1, y1, x2, y2) in pixels.
    valid_ref: [n], 0 for boxes that do not take part.
    gt_boxes_ref: [g, 4], (x1, y1, x2, y2) in pixels.
    gt_valid_ref: [g], 0 for padding.
    matches_ref: Result [n], index of the ground-truth box that each box
      overlaps most.
    best_ref: Result [n], IoU of each box with that ground-truth box; -1 if the
      box does not take part or there is no ground truth.
    ties_ref: Result [words, n]. Bit i of word w tells whether a box has the
      greatest IoU of its block with ground-truth box 32 w + i.
    block_best_ref: Result [blocks, 32 words], the greatest IoU of a box of the
      block with each ground-truth box.
    n: Number of boxes.
    g: Number of ground-truth slots.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.
    interpret: Whether the kernel is interpreted.
  """
  block = pl.program_id(0)
  rows = block * BLOCK + jnp.arange(BLOCK)
  real = rows < n
  boxes = load_boxes(boxes_ref, rows, real)
  valid = load(valid_ref, rows, mask=real) != 0

  def compare(word: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
    """Compares the boxes with 32 ground-truth boxes.

    Args:
      word: Number of the group of 32 ground-truth boxes.
      state: Best match of each box so far, and the IoU with it.

    Returns:
      The same after the comparison.
    """
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
    # Only a greater IoU replaces a match: of equals, the first stays.
    word_best = jnp.max(iou, axis=1)
    word_matches = word * WORD + jnp.argmax(iou, axis=1).astype(jnp.int32)
    return (
      jnp.where(word_best > best, word_matches, matches),
      jnp.maximum(word_best, best),
    )

  matches, best = jax.lax.fori_loop(
    0,
    pl.cdiv(g, WORD),
    compare,
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
  """Matches every box to the ground-truth box that it overlaps most.

  Args:
    boxes: [n, 4], (x1, y1, x2, y2) in pixels.
    valid: [n], which boxes take part; the others get match 0 and label 0.
    gt_boxes: [g, 4], (x1, y1, x2, y2) in pixels.
    gt_valid: [g], which ground-truth slots are real.
    foreground_iou: A box gets label 1 if its IoU with a ground-truth box is at
      least this.
    background_iou: A box gets label 0 if its IoU with all ground-truth boxes is
      less than this, and -1 if it is between the two thresholds.
    rescue: Whether, for each ground-truth box, the boxes with the largest IoU,
      if it is above 0, get label 1 even if it is below `foreground_iou`.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    matches: [n] int32, index of the ground-truth box with the largest IoU, the
      first of equals.
    labels: [n] int32, 1 foreground, 0 background, -1 ignored.
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
    is_best = (block_best == best_of_truth) & (best_of_truth > 0)
    bits = jnp.where(
      is_best.reshape(blocks, words, WORD), jnp.int32(1) << jnp.arange(WORD), 0
    ).sum(axis=2, dtype=jnp.int32)
    bits = jnp.repeat(bits.T, BLOCK, axis=1)[:, :n]
    labels = jnp.where(jnp.any(ties & bits, axis=0), 1, labels)
  return matches, labels.astype(jnp.int32)
