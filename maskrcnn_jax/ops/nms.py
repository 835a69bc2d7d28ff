"""Greedy non-maximum suppression with a fixed number of results."""

from collections.abc import Callable
import functools
from typing import Any

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

# Number of boxes of a step of `_suppress_in_steps`, the bits of an integer.
WORD = 32

# Largest number of boxes for which `_suppress_in_steps` is used. It compares
# all boxes, also after enough are kept, so that it is slow for many.
MAX_IN_STEPS = 4096


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
  # The comparison is also False for NaN. -inf must be excluded because it would
  # be sorted among the boxes that are not valid.
  valid = valid & (scores > -jnp.inf)
  # A stable sort ranks equal scores by index. Boxes that are not valid come
  # last.
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True).astype(
    jnp.int32
  )
  arguments = (
    boxes[order],
    None if groups is None else groups[order],
    jnp.sum(valid),
  )
  options: dict[str, Any] = {
    'iou_threshold': iou_threshold,
    'limit': limit,
    'width_offset': width_offset,
  }
  by_blocks: Callable[..., Any] = functools.partial(
    _suppress_by_blocks, block_size=block_size, **options
  )
  if boxes.shape[0] > MAX_IN_STEPS:
    ranks, kept = by_blocks(*arguments)
  else:
    ranks, kept = jax.lax.platform_dependent(
      *arguments,
      cpu=by_blocks,
      # A GPU would wait for the CPU before each trip of a loop whose number of
      # trips depends on the boxes.
      default=functools.partial(_suppress_in_steps, **options),
    )
  return jnp.where(kept, order[ranks], 0), kept


def _suppress_by_blocks(
  boxes: Float[Array, 'n 4'],
  groups: Int[Array, 'n'] | None,
  num_valid: Int[Array, ''],
  *,
  iou_threshold: float,
  limit: int,
  width_offset: float,
  block_size: int,
) -> tuple[Int[Array, 'd'], Bool[Array, 'd']]:
  """Suppresses sorted boxes block by block, until enough are kept.

  A box that overlaps a box kept from an earlier block is removed. Inside a
  block, the rule "kept unless a better kept box of the block overlaps it" is
  applied to all boxes at once and repeated until nothing changes. After i
  rounds, the first i boxes of the block are final; in practice a few rounds are
  enough for all.

  Args:
    boxes: Boxes in pixels, best first; those that take part come before the
      others.
    groups: Group of each box, or `None`.
    num_valid: Number of boxes that take part.
    iou_threshold: As in `nms`.
    limit: As in `nms`.
    width_offset: As in `nms`.
    block_size: As in `nms`.

  Returns:
    ranks: Indices of the kept boxes in `boxes`, best first; 0 in slots without
      a box.
    kept: Which slots hold a box.
  """
  n = boxes.shape[0]
  block_size = max(1, min(block_size, n))
  padding = -n % block_size
  boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
  if groups is not None:
    groups = jnp.pad(groups, (0, padding))
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
    block_boxes = block_of(boxes, block)
    # Row i, column j of `hit`: kept box i removes box j of the block; of
    # `rival`: box i of the block removes box j if box i itself is kept.
    hit = overlap(kept_boxes, block_boxes) > iou_threshold
    hit &= (jnp.arange(limit) < count)[:, None]
    rival = overlap(block_boxes, block_boxes) > iou_threshold
    rival &= ranks[:, None] < ranks[None, :]
    if groups is not None:
      block_groups = block_of(groups, block)
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
      kept.at[slots].set(ranks, mode='drop'),
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


def _suppress_in_steps(
  boxes: Float[Array, 'n 4'],
  groups: Int[Array, 'n'] | None,
  num_valid: Int[Array, ''],
  *,
  iou_threshold: float,
  limit: int,
  width_offset: float,
) -> tuple[Int[Array, 'd'], Bool[Array, 'd']]:
  """Suppresses sorted boxes in a number of steps that depends on n only.

  A step decides about the next 32 boxes, one after the other, and removes all
  later boxes that they suppress. The 32 decisions are the bits of an integer,
  and whom a box may be suppressed by are the bits of another, so that the
  decisions are a few operations without a loop.

  The arguments and the results are those of `_suppress_by_blocks`.
  """
  padding = -boxes.shape[0] % WORD
  boxes = jnp.pad(boxes, ((0, padding), (0, 0)))
  if groups is not None:
    groups = jnp.pad(groups, (0, padding))
  ranks, lanes = jnp.arange(boxes.shape[0]), jnp.arange(WORD)
  bits = jnp.uint32(1) << lanes.astype(jnp.uint32)

  def take_step(step: Int[Array, ''], alive: Bool[Array, 'n']) -> Array:
    """Decides about the boxes of a step, and removes those they suppress."""
    start = step * WORD

    def of_step(array: Shaped[Array, 'n ...']) -> Array:
      """Returns the rows of an array that belong to the step."""
      return jax.lax.dynamic_slice_in_dim(array, start, WORD)

    def overlaps(others: Array, other_groups: Array | None) -> Array:
      """Tells which boxes of the step may suppress which of the others."""
      iou = pairwise_iou(of_step(boxes), others, width_offset=width_offset)
      found = iou > iou_threshold
      if groups is not None and other_groups is not None:
        found &= of_step(groups)[:, None] == other_groups[None, :]
      return found

    rival = overlaps(
      of_step(boxes), None if groups is None else of_step(groups)
    )
    rival &= lanes[:, None] < lanes[None, :]
    rivals = jnp.sum(
      jnp.where(rival, bits[:, None], 0), axis=0, dtype=jnp.uint32
    )

    def decide(
      decided: Array, box: tuple[Array, Array, Array]
    ) -> tuple[Array, None]:
      """Sets the bit of the next box if no box with a set bit suppresses it."""
      is_alive, rivals, bit = box
      is_kept = is_alive & ((rivals & decided) == 0)
      return decided | jnp.where(is_kept, bit, 0), None

    decided, _ = jax.lax.scan(
      decide, jnp.uint32(0), (of_step(alive), rivals, bits), unroll=True
    )
    keep = (decided & bits) != 0
    suppressed = jnp.any(overlaps(boxes, groups) & keep[:, None], axis=0)
    lane_of = ranks - start
    bit = jnp.clip(lane_of, 0, WORD - 1).astype(jnp.uint32)
    kept_in_step = (decided >> bit) & 1 != 0
    after = jnp.where(lane_of < WORD, kept_in_step, alive & ~suppressed)
    return jnp.where(lane_of < 0, alive, after)

  keep = jax.lax.fori_loop(
    0, boxes.shape[0] // WORD, take_step, ranks < num_valid
  )
  slots = jnp.where(keep, jnp.cumsum(keep) - 1, limit)
  kept = (
    jnp.zeros(limit, jnp.int32)
    .at[slots]
    .set(ranks.astype(jnp.int32), mode='drop')
  )
  return kept, jnp.arange(limit) < jnp.sum(keep)
