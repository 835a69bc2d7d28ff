"""Greedy NMS of `nms.py` in Triton itself, called through jax-triton.

The way on for a JAX without Pallas's Triton backend. Design, blocks and results
are those of `nms.py`, where they are explained; nothing of it or of Pallas is
imported. Needs jax-triton, which is an extra, and a GPU.
"""

import jax
from jax import Array
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

# See `nms.py`.
BLOCK = 64


@triton.jit
def _larger(x, y):
  return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(x, y):
  return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _load_boxes(ref, index, mask):
  """Returns x1, y1, x2, y2; zeros where masked."""
  corner = ref + index * 4
  return (
    tl.load(corner, mask=mask, other=0.0),
    tl.load(corner + 1, mask=mask, other=0.0),
    tl.load(corner + 2, mask=mask, other=0.0),
    tl.load(corner + 3, mask=mask, other=0.0),
  )


@triton.jit
def _iou_tile(x1, y1, x2, y2, u1, v1, u2, v2, width_offset: tl.constexpr):
  """Returns the overlaps of two lists of boxes; 0 if they share nothing."""
  area = _larger(x2 - x1 + width_offset, 0.0) * _larger(
    y2 - y1 + width_offset, 0.0
  )
  other_area = _larger(u2 - u1 + width_offset, 0.0) * _larger(
    v2 - v1 + width_offset, 0.0
  )
  width = _smaller(x2[:, None], u2[None, :]) - _larger(x1[:, None], u1[None, :])
  height = _smaller(y2[:, None], v2[None, :]) - _larger(
    y1[:, None], v1[None, :]
  )
  intersection = _larger(width + width_offset, 0.0) * _larger(
    height + width_offset, 0.0
  )
  union = area[:, None] + other_area[None, :] - intersection
  # Plain division may be off in the last bit; see `launch.divide`.
  iou = tl.div_rn(intersection, tl.where(union > 0, union, 1.0))
  return tl.where(intersection > 0, iou, 0.0)


@triton.jit
def _nms_kernel(
  boxes,
  order,
  groups,
  num_valid,
  kept,
  count,
  kept_boxes,
  kept_groups,
  n: tl.constexpr,
  limit: tl.constexpr,
  iou_threshold: tl.constexpr,
  width_offset: tl.constexpr,
  grouped: tl.constexpr,
  block: tl.constexpr,
):
  """Takes boxes in the order of their scores; writes which are kept."""
  # Of many lists, each program has one.
  row = tl.program_id(0)
  boxes += row * n * 4
  order += row * n
  kept += row * limit
  kept_boxes += row * limit * 4
  if grouped:
    groups += row * n
    kept_groups += row * limit
  end = tl.load(num_valid + row)
  lanes = tl.arange(0, block)
  start = 0
  filled = 0
  while (start < end) & (filled < limit):
    real = start + lanes < end
    index = tl.load(order + start + lanes, mask=real, other=0)
    x1, y1, x2, y2 = _load_boxes(boxes, index, real)
    rival = (
      _iou_tile(x1, y1, x2, y2, x1, y1, x2, y2, width_offset) > iou_threshold
    )
    rival &= lanes[:, None] < lanes[None, :]
    if grouped:
      group = tl.load(groups + index, mask=real, other=0)
      rival &= group[:, None] == group[None, :]

    hit = tl.zeros([block], tl.int32)
    for first in range(0, filled, block):
      slots = first + lanes
      taken = slots < filled
      u1, v1, u2, v2 = _load_boxes(kept_boxes, slots, taken)
      hits = (
        _iou_tile(u1, v1, u2, v2, x1, y1, x2, y2, width_offset) > iou_threshold
      )
      hits &= taken[:, None]
      if grouped:
        other = tl.load(kept_groups + slots, mask=taken, other=0)
        hits &= other[:, None] == group[None, :]
      hit = tl.maximum(hit, tl.max(hits.to(tl.int32), axis=0))

    alive = (real & (hit == 0)).to(tl.int32)
    keep = alive
    changing = 1
    while changing != 0:
      beaten = tl.max((rival & (keep != 0)[:, None]).to(tl.int32), axis=0)
      settled = tl.where(beaten != 0, 0, alive)
      changing = tl.max((settled != keep).to(tl.int32), axis=0)
      keep = settled

    slots = filled + tl.cumsum(keep, axis=0) - 1
    written = (keep != 0) & (slots < limit)
    tl.store(kept_boxes + slots * 4, x1, mask=written)
    tl.store(kept_boxes + slots * 4 + 1, y1, mask=written)
    tl.store(kept_boxes + slots * 4 + 2, x2, mask=written)
    tl.store(kept_boxes + slots * 4 + 3, y2, mask=written)
    if grouped:
      tl.store(kept_groups + slots, group, mask=written)
    tl.store(kept + slots, index, mask=written)
    # The next block reads what all threads have written.
    tl.debug_barrier()
    start += block
    filled = tl.minimum(filled + tl.sum(keep, axis=0), limit)
  tl.store(count + row, filled)


def _nms_of_many(
  boxes,
  order,
  groups,
  num_valid,
  *,
  limit,
  iou_threshold,
  width_offset,
  grouped,
):
  """Returns indices [b, limit] and counts [b] of many lists at once."""

  # jax-triton does not batch; this batches by more programs, at any depth. It
  # also keeps jax-triton 0.4.1's rule for dead code, which JAX 0.12 calls with
  # an argument too many, from being called: bare, the kernel would not trace.
  @jax.custom_batching.custom_vmap
  def of_many(boxes, order, groups, num_valid):
    b, n = order.shape
    indices, count, _, _ = jax_triton.triton_call(
      boxes,
      order,
      groups,
      num_valid,
      kernel=_nms_kernel,
      name='nms',
      out_type=(
        jax.ShapeDtypeStruct((b, limit), jnp.int32),
        jax.ShapeDtypeStruct((b,), jnp.int32),
        jax.ShapeDtypeStruct((b, limit, 4), jnp.float32),
        jax.ShapeDtypeStruct((b, limit if grouped else 1), jnp.int32),
      ),
      # With one stage no load is moved ahead of a barrier. Each product is
      # rounded, whatever Triton's default is.
      grid=(b,),
      num_warps=8,
      num_stages=1,
      backend_options={'enable_fp_fusion': False},
      n=n,
      limit=limit,
      iou_threshold=iou_threshold,
      width_offset=width_offset,
      grouped=grouped,
      block=BLOCK,
    )
    return indices, count

  @of_many.def_vmap
  def _(size, batched, *arguments):
    merged = [
      (x if is_batched else jnp.broadcast_to(x, (size, *x.shape))).reshape(
        -1, *x.shape[1 + is_batched :]
      )
      for x, is_batched in zip(arguments, batched, strict=True)
    ]
    split = [x.reshape(size, -1, *x.shape[1:]) for x in of_many(*merged)]
    return tuple(split), (True, True)

  return of_many(boxes, order, groups, num_valid)


def nms(
  boxes: Array,
  scores: Array,
  valid: Array,
  *,
  iou_threshold: float,
  limit: int,
  groups: Array | None = None,
  width_offset: float = 0.0,
) -> tuple[Array, Array]:
  """Keeps the best boxes, each of which suppresses the worse that overlap it.

  No gradient flows through it. Arguments and results are those of `nms.nms`.
  """
  if boxes.shape[0] == 0:
    return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
  valid = valid & (scores > -jnp.inf)
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
  grouped = groups is not None
  indices, count = _nms_of_many(
    jax.lax.stop_gradient(boxes)[None],
    order.astype(jnp.int32)[None],
    groups[None] if grouped else jnp.zeros((1, 1), jnp.int32),
    jnp.sum(valid, dtype=jnp.int32)[None],
    limit=limit,
    iou_threshold=iou_threshold,
    width_offset=width_offset,
    grouped=grouped,
  )
  kept = jnp.arange(limit) < count[0]
  return jnp.where(kept, indices[0], 0), kept
