"""Greedy non-maximum suppression with a fixed number of results."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.ops.boxes import pairwise_iou


def nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n'],
  valid: Bool[Array, 'n'],
  *,
  iou_threshold: float,
  limit: int,
  groups: Int[Array, 'n'] | None = None,
  block_size: int = 256,
  width_offset: float = 0.0,
  kernels: str = 'xla',
) -> tuple[Int[Array, 'd'], Bool[Array, 'd']]:
  """Keeps the best boxes, each of which suppresses the worse that overlap it.

  The result is that of the greedy definition: from the best score down, a box
  is kept unless a box already kept overlaps it by more than `iou_threshold`.
  It is worked out a block of boxes at a time. Inside a block, "kept unless a
  better kept one overlaps" is repeated until nothing changes; the first i boxes
  are final after i rounds, and in practice a few rounds do for all.

  Args:
    boxes: In any order.
    scores: Equal scores are ranked by index. NaN and -inf are never kept.
    valid: Boxes that take part.
    iou_threshold: Overlap of more than this suppresses.
    limit: Number of result slots.
    groups: Boxes of different groups never suppress each other.
    block_size: Boxes looked at together; memory is
      block_size * (block_size + limit) overlaps.
    width_offset: See `ops/boxes.py`.
    kernels: See `kernels.py`.

  Returns:
    indices: Of the kept boxes, best first; 0 where there are fewer.
    kept: Which of the slots hold a box.
  """
  if kernels == 'triton':
    from pallas_kernels import nms_triton

    return nms_triton.nms(
      boxes,
      scores,
      valid,
      iou_threshold=iou_threshold,
      limit=limit,
      groups=groups,
      width_offset=width_offset,
    )
  if kernels != 'xla':
    from pallas_kernels import nms as kernel

    return kernel.nms(
      boxes,
      scores,
      valid,
      iou_threshold=iou_threshold,
      limit=limit,
      groups=groups,
      width_offset=width_offset,
      interpret=kernels == 'interpret',
    )
  n = boxes.shape[0]
  block_size = max(1, min(block_size, n))
  num_blocks = -(-n // block_size)
  padding = num_blocks * block_size - n

  # Not so for NaN. -inf would rank among what is not valid.
  valid = valid & (scores > -jnp.inf)
  num_valid = jnp.sum(valid)
  # A stable sort ranks equal scores by index; what is not valid comes last.
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(
    jnp.int32
  )
  order = jnp.pad(order, (0, padding))
  sorted_boxes = boxes[order]
  sorted_groups = None if groups is None else groups[order]

  overlap = functools.partial(pairwise_iou, width_offset=width_offset)

  def cut(array, block):
    return jax.lax.dynamic_slice_in_dim(array, block * block_size, block_size)

  def unfinished(state):
    block, count, _, _ = state
    return (block * block_size < num_valid) & (count < limit)

  def take_block(state):
    block, count, kept_boxes, kept = state
    ranks = block * block_size + jnp.arange(block_size)
    block_boxes = cut(sorted_boxes, block)
    hit = overlap(kept_boxes, block_boxes) > iou_threshold
    hit &= (jnp.arange(limit) < count)[:, None]
    rival = overlap(block_boxes, block_boxes) > iou_threshold
    rival &= ranks[:, None] < ranks[None, :]
    if sorted_groups is not None:
      block_groups = cut(sorted_groups, block)
      hit &= groups[kept][:, None] == block_groups[None, :]
      rival &= block_groups[:, None] == block_groups[None, :]
    alive = (ranks < num_valid) & ~hit.any(axis=0)

    def changing(step):
      keep, before = step
      return jnp.any(keep != before)

    def suppress(step):
      keep, _ = step
      return alive & ~jnp.any(rival & keep[:, None], axis=0), keep

    keep, _ = jax.lax.while_loop(changing, suppress, suppress((alive, alive)))
    slots = jnp.where(keep, count + jnp.cumsum(keep) - 1, limit)
    return (
      block + 1,
      jnp.minimum(count + jnp.sum(keep), limit),
      kept_boxes.at[slots].set(block_boxes, mode='drop'),
      kept.at[slots].set(cut(order, block), mode='drop'),
    )

  _, count, _, kept = jax.lax.while_loop(
    unfinished,
    take_block,
    (
      jnp.int32(0),
      jnp.int32(0),
      jnp.zeros((limit, 4), boxes.dtype),
      jnp.zeros(limit, jnp.int32),
    ),
  )
  return kept, jnp.arange(limit) < count
