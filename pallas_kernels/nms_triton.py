"""Greedy NMS of `nms.py`, written in Triton and called through jax-triton.

It works with a version of JAX that has no Triton backend of Pallas. Algorithm,
block size and results are the same as in `nms.py`, which explains them; neither
`nms.py` nor Pallas is imported. It needs a GPU and the package jax-triton,
which the extra `jax-triton` installs.

The Triton functions have no type annotations, because Triton would read the
annotation of a parameter as one of its own types.
"""

import jax
from jax import Array
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl

# Boxes of a block, as in `nms.py`.
BLOCK = 64


@triton.jit
def _larger(x, y):  # type: ignore[no-untyped-def]  # see the top of the file
  """Returns the greater of two numbers; NaN if one of them is NaN."""
  return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _smaller(x, y):  # type: ignore[no-untyped-def]  # see the top of the file
  """Returns the smaller of two numbers; NaN if one of them is NaN."""
  return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _load_boxes(ref, index, mask):  # type: ignore[no-untyped-def]
  """Reads boxes from an array [n, 4].

  Args:
    ref: Pointer to the array.
    index: Rows to read.
    mask: Which of the rows to read.

  Returns:
    x1, y1, x2 and y2, each of the shape of `index`; zeros where the mask is
    false.
  """
  corner = ref + index * 4
  return (
    tl.load(corner, mask=mask, other=0.0),
    tl.load(corner + 1, mask=mask, other=0.0),
    tl.load(corner + 2, mask=mask, other=0.0),
    tl.load(corner + 3, mask=mask, other=0.0),
  )


@triton.jit
def _iou_tile(  # type: ignore[no-untyped-def]
  x1, y1, x2, y2, u1, v1, u2, v2, width_offset: tl.constexpr
):
  """Returns the IoU of each box with each of the other boxes.

  Args:
    x1: [n], left edge of each box, in pixels.
    y1: [n], upper edge.
    x2: [n], right edge.
    y2: [n], lower edge.
    u1: [m], left edge of each of the other boxes.
    v1: [m], upper edge.
    u2: [m], right edge.
    v2: [m], lower edge.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.

  Returns:
    [n, m]; 0 where the intersection is empty.
  """
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
  # Triton's plain division may be wrong in the last bit; see `launch.divide`.
  iou = tl.div_rn(intersection, tl.where(union > 0, union, 1.0))
  return tl.where(intersection > 0, iou, 0.0)


@triton.jit
def _nms_kernel(  # type: ignore[no-untyped-def]
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
  """Goes through one of b lists of boxes and writes the boxes that are kept.

  All but the constants are pointers to arrays.

  Args:
    boxes: [b, n, 4], (x1, y1, x2, y2) in pixels, in any order.
    order: [b, n], indices of the boxes of a list, best first.
    groups: [b, n], group of each box; not read unless `grouped`.
    num_valid: [b], number of boxes at the start of the order that take part.
    kept: Result [b, limit], indices of the boxes that are kept, best first.
    count: Result [b], number of boxes that are kept.
    kept_boxes: Result [b, limit, 4], the boxes that are kept.
    kept_groups: Result [b, limit], groups of the boxes that are kept; not
      written unless `grouped`.
    n: Number of boxes of a list.
    limit: Largest number of boxes to keep of a list.
    iou_threshold: A box is suppressed if its IoU with a better kept box is
      greater than this.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.
    grouped: Whether only boxes of the same group suppress each other.
    block: Number of boxes that are compared at a time.
  """
  # Program i goes through list i.
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
    # For the next block, each thread reads boxes that other threads have
    # written.
    tl.debug_barrier()
    start += block
    filled = tl.minimum(filled + tl.sum(keep, axis=0), limit)
  tl.store(count + row, filled)


def _nms_of_lists(
  boxes: Array,
  order: Array,
  groups: Array,
  num_valid: Array,
  *,
  limit: int,
  iou_threshold: float,
  width_offset: float,
  grouped: bool,
) -> tuple[Array, Array]:
  """Runs NMS on b lists of boxes, one program for each list.

  Args:
    boxes: [b, n, 4], (x1, y1, x2, y2) in pixels, in any order.
    order: [b, n] int32, indices of the boxes of a list, best first.
    groups: [b, n] int32, group of each box; not read unless `grouped`.
    num_valid: [b] int32, number of boxes at the start of the order that take
      part.
    limit: Largest number of boxes to keep of a list.
    iou_threshold: A box is suppressed if its IoU with a better kept box is
      greater than this.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.
    grouped: Whether only boxes of the same group suppress each other.

  Returns:
    indices: [b, limit] int32, indices of the boxes that are kept, best first.
      Slots after the count of a list hold arbitrary numbers.
    counts: [b] int32, number of boxes that are kept of each list.
  """

  # jax-triton has no batching rule. This one runs more programs, at any number
  # of batch axes. It has a second purpose: JAX 0.12 calls jax-triton 0.4.1's
  # rule for dead code with one argument too many, and inside of this function
  # it does not call that rule. Without it, the kernel could not be traced.
  @jax.custom_batching.custom_vmap
  def run_kernel(
    boxes: Array, order: Array, groups: Array, num_valid: Array
  ) -> tuple[Array, Array]:
    """Calls the kernel; arguments and results are those of `_nms_of_lists`."""
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
      # With more than one stage, a load could be moved ahead of a barrier.
      # Without fusion, each product is rounded before it is added.
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

  @run_kernel.def_vmap
  def _(
    size: int, batched: list[bool], *arguments: Array
  ) -> tuple[tuple[Array, ...], tuple[bool, bool]]:
    """Batches `run_kernel`: merges the new axis with the axis of lists.

    Args:
      size: Length of the new axis.
      batched: Whether each argument has the new axis, which is its first.
      *arguments: The arguments of `run_kernel`.

    Returns:
      The results with the new axis; and (True, True), which says that both
      results have this axis.
    """
    merged = [
      (x if is_batched else jnp.broadcast_to(x, (size, *x.shape))).reshape(
        -1, *x.shape[1 + is_batched :]
      )
      for x, is_batched in zip(arguments, batched, strict=True)
    ]
    split = [x.reshape(size, -1, *x.shape[1:]) for x in run_kernel(*merged)]
    return tuple(split), (True, True)

  return run_kernel(boxes, order, groups, num_valid)


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
  """Keeps the boxes that overlap no better kept box too much (greedy NMS).

  No gradient flows through this function.

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
  indices, count = _nms_of_lists(
    jax.lax.stop_gradient(boxes)[None],
    order.astype(jnp.int32)[None],
    groups[None] if groups is not None else jnp.zeros((1, 1), jnp.int32),
    jnp.sum(valid, dtype=jnp.int32)[None],
    limit=limit,
    iou_threshold=iou_threshold,
    width_offset=width_offset,
    grouped=grouped,
  )
  kept = jnp.arange(limit) < count[0]
  return jnp.where(kept, indices[0], 0), kept
