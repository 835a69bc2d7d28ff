"""Exact greedy NMS; one program does the whole list of boxes.

In plain JAX, for boxes in the order of falling scores:

  for i in range(n):
    keep[i] = valid[i] & ~any(keep[:i] & (iou[:i, i] > iou_threshold))

A program goes through its boxes a block at a time. First it compares the block
with the boxes kept so far, which it reads from its own results. Then it decides
which boxes of the block suppress each other: it repeats "a box is kept unless a
better kept box overlaps it" until nothing changes. The first i boxes are final
after i rounds. No matrix of overlaps is in memory, and only about n * kept of
the n * n overlaps are computed.
"""

import jax
from jax import Array
import jax.numpy as jnp

from pallas_kernels.boxes import iou_tile, load_boxes
from pallas_kernels.launch import barrier, launch, load, store

# Boxes of a block. A tile of 64 * 64 overlaps is 16 numbers for each of 256
# threads. Smaller blocks take fewer rounds, larger blocks fewer barriers.
BLOCK = 64


def _nms_kernel(
  boxes_ref: jax.Ref,
  order_ref: jax.Ref,
  groups_ref: jax.Ref,
  num_valid_ref: jax.Ref,
  kept_ref: jax.Ref,
  count_ref: jax.Ref,
  kept_boxes_ref: jax.Ref,
  kept_groups_ref: jax.Ref,
  *,
  limit: int,
  iou_threshold: float,
  width_offset: float,
  grouped: bool,
  interpret: bool,
) -> None:
  """Goes through the boxes in the order of their scores and writes those kept.

  Args:
    boxes_ref: [n, 4], (x1, y1, x2, y2) in pixels, in any order.
    order_ref: [n], indices of the boxes, best first.
    groups_ref: [n], group of each box; not read unless `grouped`.
    num_valid_ref: [1], number of boxes at the start of the order that take
      part.
    kept_ref: Result [limit], indices of the boxes that are kept, best first.
    count_ref: Result [1], number of boxes that are kept.
    kept_boxes_ref: Result [limit, 4], the boxes that are kept.
    kept_groups_ref: Result [limit], groups of the boxes that are kept; not
      written unless `grouped`.
    limit: Largest number of boxes to keep.
    iou_threshold: A box is suppressed if its IoU with a better kept box is
      greater than this.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.
    grouped: Whether only boxes of the same group suppress each other.
    interpret: Whether the kernel is interpreted.
  """
  num_valid = load(num_valid_ref, 0)
  lanes = jnp.arange(BLOCK)

  def can_suppress(
    boxes: tuple[Array, ...],
    others: tuple[Array, ...],
    groups: Array | None,
    other_groups: Array | None,
  ) -> Array:
    """Tells which boxes can suppress which of the other boxes, [n, m].

    Args:
      boxes: x1, y1, x2 and y2 of n boxes.
      others: x1, y1, x2 and y2 of m boxes.
      groups: [n], group of each box; `None` if there are no groups.
      other_groups: [m], group of each of the other boxes, or `None`.
    """
    iou = iou_tile(
      boxes, others, width_offset=width_offset, interpret=interpret
    )
    overlaps = iou > iou_threshold
    if groups is not None and other_groups is not None:
      overlaps &= groups[:, None] == other_groups[None]
    return overlaps

  def any_row(flags: Array) -> Array:
    """Returns 1 for each column of flags that has one set, and 0 otherwise."""
    return jnp.max(flags.astype(jnp.int32), axis=0)

  def load_groups(ref: jax.Ref, index: Array, mask: Array) -> Array | None:
    """Reads the groups of boxes; `None` if there are no groups."""
    return load(ref, index, mask=mask) if grouped else None

  def is_unfinished(state: tuple[Array, Array]) -> Array:
    """Tells whether boxes and result slots are left."""
    block, count = state
    return (block * BLOCK < num_valid) & (count < limit)

  def take_block(state: tuple[Array, Array]) -> tuple[Array, Array]:
    """Finds and writes the boxes of a block that are kept.

    Args:
      state: Number of the block, and number of boxes kept before it.

    Returns:
      Number of the next block, and number of boxes kept before it.
    """
    block, count = state
    ranks = block * BLOCK + lanes
    real = ranks < num_valid
    index = load(order_ref, ranks, mask=real)
    boxes = load_boxes(boxes_ref, index, real)
    groups = load_groups(groups_ref, index, real)

    def compare(kept_block: Array, hit: Array) -> Array:
      """Compares the block with one block of the boxes kept before it.

      Args:
        kept_block: Number of that block.
        hit: 1 for each box of the block that is suppressed so far.

      Returns:
        `hit` after the comparison.
      """
      slots = kept_block * BLOCK + lanes
      filled = slots < count
      hits = can_suppress(
        load_boxes(kept_boxes_ref, slots, filled),
        boxes,
        load_groups(kept_groups_ref, slots, filled),
        groups,
      )
      return jnp.maximum(hit, any_row(hits & filled[:, None]))

    hit = jax.lax.fori_loop(
      0,
      jax.lax.div(count + BLOCK - 1, jnp.int32(BLOCK)),
      compare,
      jnp.zeros(BLOCK, jnp.int32),
    )
    alive = jnp.where(real & (hit == 0), 1, 0)
    rival = can_suppress(boxes, boxes, groups, groups)
    rival &= lanes[:, None] < lanes[None]

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
      """Suppresses boxes of the block by those that the last round kept.

      Args:
        state: Flags of the boxes kept in the last round, and in the round
          before.

      Returns:
        Flags of the boxes kept in this round, and in the last round.
      """
      keep, _ = state
      beaten = any_row(rival & (keep != 0)[:, None])
      return jnp.where(beaten != 0, 0, alive), keep

    def changing(state: tuple[Array, Array]) -> Array:
      """Tells whether the last round changed a flag."""
      keep, before = state
      return jnp.max(jnp.abs(keep - before)) > 0

    keep, _ = jax.lax.while_loop(changing, settle, settle((alive, alive)))
    # The interpreter writes the old value of a slot where the mask is false.
    # Slot `limit` does not exist, so that these writes are dropped.
    slots = jnp.where(keep != 0, count + jnp.cumsum(keep) - 1, limit)
    written = slots < limit
    for i, corner in enumerate(boxes):
      store(kept_boxes_ref, slots, i, value=corner, mask=written)
    if groups is not None:
      store(kept_groups_ref, slots, value=groups, mask=written)
    store(kept_ref, slots, value=index, mask=written)
    # For the next block, each thread reads boxes that other threads have
    # written.
    barrier(interpret=interpret)
    return block + 1, jnp.minimum(count + jnp.sum(keep), limit)

  _, count = jax.lax.while_loop(
    is_unfinished, take_block, (jnp.int32(0), jnp.int32(0))
  )
  store(count_ref, 0, value=count)


def nms(
  boxes: Array,
  scores: Array,
  valid: Array,
  *,
  iou_threshold: float,
  limit: int,
  groups: Array | None = None,
  width_offset: float = 0.0,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Keeps the boxes that overlap no better kept box too much (greedy NMS).

  Args:
    boxes: [n, 4], (x1, y1, x2, y2) in pixels, in any order.
    scores: [n]. Equal scores are ranked by index. Boxes with NaN or -inf are
      never kept.
    valid: [n], which boxes take part; the others are never kept.
    iou_threshold: A box is suppressed if its IoU with a better kept box is
      greater than this.
    limit: Number of result slots.
    groups: [n] int32. Boxes of different groups never suppress each other.
      `None` means that all boxes are in one group.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    indices: [limit] int32, indices of the kept boxes, best first; 0 in slots
      without a box.
    kept: [limit], which of the slots hold a box.
  """
  if boxes.shape[0] == 0:
    return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
  valid = valid & (scores > -jnp.inf)
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
  grouped = groups is not None
  indices, count, _, _ = launch(
    _nms_kernel,
    boxes,
    order.astype(jnp.int32),
    groups if groups is not None else jnp.zeros(1, jnp.int32),
    jnp.sum(valid, dtype=jnp.int32)[None],
    name='nms',
    grid=(1,),
    num_warps=8,
    out_shape=(
      jax.ShapeDtypeStruct((limit,), jnp.int32),
      jax.ShapeDtypeStruct((1,), jnp.int32),
      jax.ShapeDtypeStruct((limit, 4), jnp.float32),
      jax.ShapeDtypeStruct((limit if grouped else 1,), jnp.int32),
    ),
    interpret=interpret,
    limit=limit,
    iou_threshold=iou_threshold,
    width_offset=width_offset,
    grouped=grouped,
  )
  kept = jnp.arange(limit) < count
  return jnp.where(kept, indices, 0), kept
