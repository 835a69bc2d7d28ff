"""Greedy NMS, exactly, one program for each list of boxes.

In plain JAX, over boxes that fall in score:

  for i in range(n):
    keep[i] = valid[i] & ~any(keep[:i] & (iou[:i, i] > iou_threshold))

A program goes through its boxes a block at a time. It compares the block with
the boxes kept so far, which it has written down, and then settles the block in
itself: "kept unless a better kept one overlaps" is repeated until nothing
changes, which makes the first i boxes final after i rounds. No matrix of
overlaps is in memory; of the n * n overlaps only n * kept are computed.
"""

import jax
from jax import Array
import jax.numpy as jnp

from pallas_kernels.boxes import iou_tile, load_boxes
from pallas_kernels.launch import barrier, launch, load, store

# A tile of 64 * 64 overlaps is 16 numbers to each of 256 threads; smaller
# blocks settle in fewer rounds, larger ones need fewer barriers.
BLOCK = 64


def _nms_kernel(
  boxes_ref,
  order_ref,
  groups_ref,
  num_valid_ref,
  kept_ref,
  count_ref,
  kept_boxes_ref,
  kept_groups_ref,
  *,
  limit,
  iou_threshold,
  width_offset,
  grouped,
  interpret,
):
  """Takes boxes in the order of their scores; writes which are kept."""
  num_valid = load(num_valid_ref, 0)
  lanes = jnp.arange(BLOCK)

  def overlap(boxes, others, groups, other_groups):
    iou = iou_tile(
      boxes, others, width_offset=width_offset, interpret=interpret
    )
    too_much = iou > iou_threshold
    if grouped:
      too_much &= groups[:, None] == other_groups[None]
    return too_much

  def any_of(hit):
    return jnp.max(hit.astype(jnp.int32), axis=0)

  def load_groups(ref, index, mask):
    return load(ref, index, mask=mask) if grouped else None

  def unfinished(state):
    block, count = state
    return (block * BLOCK < num_valid) & (count < limit)

  def take_block(state):
    block, count = state
    ranks = block * BLOCK + lanes
    real = ranks < num_valid
    index = load(order_ref, ranks, mask=real)
    boxes = load_boxes(boxes_ref, index, real)
    groups = load_groups(groups_ref, index, real)

    def compare(kept_block, hit):
      slots = kept_block * BLOCK + lanes
      filled = slots < count
      hits = overlap(
        load_boxes(kept_boxes_ref, slots, filled),
        boxes,
        load_groups(kept_groups_ref, slots, filled),
        groups,
      )
      return jnp.maximum(hit, any_of(hits & filled[:, None]))

    hit = jax.lax.fori_loop(
      0,
      jax.lax.div(count + BLOCK - 1, jnp.int32(BLOCK)),
      compare,
      jnp.zeros(BLOCK, jnp.int32),
    )
    alive = jnp.where(real & (hit == 0), 1, 0)
    rival = overlap(boxes, boxes, groups, groups)
    rival &= lanes[:, None] < lanes[None]

    def settle(state):
      keep, _ = state
      beaten = any_of(rival & (keep != 0)[:, None])
      return jnp.where(beaten != 0, 0, alive), keep

    def changing(state):
      keep, before = state
      return jnp.max(jnp.abs(keep - before)) > 0

    keep, _ = jax.lax.while_loop(changing, settle, settle((alive, alive)))
    # Interpreted, a masked element would put back what its slot held before.
    slots = jnp.where(keep != 0, count + jnp.cumsum(keep) - 1, limit)
    written = slots < limit
    for i, corner in enumerate(boxes):
      store(kept_boxes_ref, slots, i, value=corner, mask=written)
    if grouped:
      store(kept_groups_ref, slots, value=groups, mask=written)
    store(kept_ref, slots, value=index, mask=written)
    # The next block reads what all threads have written.
    barrier(interpret=interpret)
    return block + 1, jnp.minimum(count + jnp.sum(keep), limit)

  _, count = jax.lax.while_loop(
    unfinished, take_block, (jnp.int32(0), jnp.int32(0))
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
  """Keeps the best boxes, each of which suppresses the worse that overlap it.

  Args:
    boxes: [n, 4].
    scores: [n]; equal scores are ranked by index, NaN and -inf never kept.
    valid: [n], boxes that take part.
    iou_threshold: Overlap of more than this suppresses.
    limit: Number of result slots.
    groups: [n]; boxes of different groups never suppress each other.
    width_offset: What a box is wider than x2 - x1.
    interpret: See `launch`.

  Returns:
    indices: [limit] of the kept boxes, best first; 0 where there are fewer.
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
    groups if grouped else jnp.zeros(1, jnp.int32),
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
