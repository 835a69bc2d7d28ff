"""Greedy non-maximum suppression with a fixed number of results."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from maskrcnn_jax.ops.boxes import pairwise_iou

# Number of blocks processed, number of boxes kept, the kept boxes and their
# indices.
_State = tuple[
  Int[Array, ''], Int[Array, ''], Float[Array, 'd 4'], Int[Array, 'd']
]

# Which boxes of a block are kept, after a round and before it.
_Rounds = tuple[Bool[Array, 'n'], Bool[Array, 'n']]


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
  """Keeps the best boxes that do not overlap a better kept box too much.

  The result is exactly that of greedy non-maximum suppression: from the best
  score down, a box is kept unless a box already kept overlaps it by more than
  `iou_threshold`.

  The sorted boxes are processed block by block. A box that overlaps a box kept
  from an earlier block is removed. Inside a block, the rule "kept unless a
  better kept box of the block overlaps it" is applied to all boxes at once and
  repeated until nothing changes. After i rounds, the first i boxes of the block
  are final; in practice a few rounds are enough for all.

  Args:
    boxes: In pixels, in any order.
    scores: Equal scores are ranked by index. NaN and -inf are never kept.
    valid: Boxes that take part. The others neither are kept nor remove a box.
    iou_threshold: A kept box removes the worse boxes whose intersection over
      union with it is more than this.
    limit: Number d of slots of the result: at most this many boxes are kept.
    groups: Group of each box. Boxes of different groups never remove each
      other. `None` puts all boxes into one group.
    block_size: Number of boxes in a block; it does not change the result. The
      overlaps in memory are block_size * (block_size + limit) numbers. Only the
      implementation 'xla' uses it.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    kernels: Implementation; all give the same result. 'xla' is plain JAX and
      runs anywhere. The others are in `pallas_kernels`: 'pallas' is the GPU
      kernel, 'interpret' is this kernel interpreted by JAX, slow and for tests,
      and 'triton' is this kernel compiled by the optional package jax-triton.

  Returns:
    indices: Indices of the kept boxes, best first. Slots without a box hold 0.
    kept: Which slots hold a box.
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

  # The comparison is also False for NaN. -inf must be excluded because it would
  # be sorted among the boxes that are not valid.
  valid = valid & (scores > -jnp.inf)
  num_valid = jnp.sum(valid)
  # A stable sort ranks equal scores by index. Boxes that are not valid come
  # last.
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(
    jnp.int32
  )
  order = jnp.pad(order, (0, padding))
  sorted_boxes = boxes[order]
  sorted_groups = None if groups is None else groups[order]

  overlap = functools.partial(pairwise_iou, width_offset=width_offset)

  def block_of(array: Shaped[Array, 'n ...'], block: Int[Array, '']) -> Array:
    """Returns the rows of a sorted array that belong to a block."""
    return jax.lax.dynamic_slice_in_dim(array, block * block_size, block_size)

  def is_unfinished(state: _State) -> Bool[Array, '']:
    """Tells whether valid boxes and free slots are left."""
    block, count, _, _ = state
    return (block * block_size < num_valid) & (count < limit)

  def process_block(state: _State) -> _State:
    """Appends the boxes that are kept from the next block."""
    block, count, kept_boxes, kept = state
    ranks = block * block_size + jnp.arange(block_size)
    block_boxes = block_of(sorted_boxes, block)
    # Row i, column j of `hit`: kept box i removes box j of the block; of
    # `rival`: box i of the block removes box j if box i itself is kept.
    hit = overlap(kept_boxes, block_boxes) > iou_threshold
    hit &= (jnp.arange(limit) < count)[:, None]
    rival = overlap(block_boxes, block_boxes) > iou_threshold
    rival &= ranks[:, None] < ranks[None, :]
    if groups is not None and sorted_groups is not None:
      block_groups = block_of(sorted_groups, block)
      hit &= groups[kept][:, None] == block_groups[None, :]
      rival &= block_groups[:, None] == block_groups[None, :]
    alive = (ranks < num_valid) & ~hit.any(axis=0)

    def has_changed(rounds: _Rounds) -> Bool[Array, '']:
      """Tells whether the last round changed which boxes are kept."""
      keep, before = rounds
      return jnp.any(keep != before)

    def suppress(rounds: _Rounds) -> _Rounds:
      """Returns the boxes kept after one more round, and those before it."""
      keep, _ = rounds
      return alive & ~jnp.any(rival & keep[:, None], axis=0), keep

    keep, _ = jax.lax.while_loop(
      has_changed, suppress, suppress((alive, alive))
    )
    slots = jnp.where(keep, count + jnp.cumsum(keep) - 1, limit)
    return (
      block + 1,
      jnp.minimum(count + jnp.sum(keep), limit),
      kept_boxes.at[slots].set(block_boxes, mode='drop'),
      kept.at[slots].set(block_of(order, block), mode='drop'),
    )

  _, count, _, kept = jax.lax.while_loop(
    is_unfinished,
    process_block,
    (
      jnp.int32(0),
      jnp.int32(0),
      jnp.zeros((limit, 4), boxes.dtype),
      jnp.zeros(limit, jnp.int32),
    ),
  )
  return kept, jnp.arange(limit) < count
