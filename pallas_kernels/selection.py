"""Pre-NMS selection: the best boxes of every level, decoded and clipped.

In plain JAX, for each level:

  best, index = top_k(logits, limit)
  boxes = clip(decode(deltas[index], anchors[index]))

Sorting a level of 200,000 numbers for the best 2,000 is what costs there. Here
a program finds the best of a chunk that fits its registers by bisection of
their bits; what is left of the chunks of a level is put together and cut into
chunks again, until there is one. Only then are the few that remain ranked, each
by counting the better ones, and their boxes made.
"""

from collections.abc import Sequence
import math

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.anchors import anchor_corners, anchor_layout
from pallas_kernels.launch import divide, launch, load, store

# Logits of a chunk: 16 to a thread of 16 warps.
CHUNK = 8192
# What a level may keep. For more a chunk must be larger, and its numbers spill
# out of the registers: compiled for 12,000, 5.6 KB a thread.
MAX_LIMIT = CHUNK // 2
# Boxes ranked by one program, against as many others at a time.
BLOCK = 128
LOWEST = np.int32(-(2**31))
# exp() of more would blow a 16 px anchor past 1000 px.
MAX_LOG_SCALE = math.log(1000 / 16)


def _sort_keys(logits):
  """Integers in the order of the floats; -inf is above `LOWEST`."""
  # As top_k has it, -0 is less than 0.
  bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _chunk_kernel(
  ranges_ref,
  logits_ref,
  index_ref,
  best_ref,
  best_index_ref,
  *,
  chunk,
  limit,
  interpret,
):
  """Keeps the best `limit` of a chunk, in their order."""
  del interpret  # Nothing here depends on it.
  program = pl.program_id(0)
  start, length = load(ranges_ref, program, 0), load(ranges_ref, program, 1)
  lanes = jnp.arange(chunk)
  real = lanes < length
  logits = load(logits_ref, start + lanes, mask=real, other=-jnp.inf)
  index = load(index_ref, start + lanes, mask=real)
  keys = jnp.where(real, _sort_keys(logits), LOWEST)

  def try_bit(i, threshold):
    # Adding the top bit to the lowest number wraps around to 0.
    candidate = threshold + (jnp.int32(1) << (31 - i))
    enough = jnp.sum((keys >= candidate).astype(jnp.int32)) >= limit
    return jnp.where(enough, candidate, threshold)

  # The most that `limit` keys reach. Of those equal to it the first are taken.
  threshold = jax.lax.fori_loop(0, 32, try_bit, jnp.int32(LOWEST))
  above = keys > threshold
  equal = ((keys == threshold) & real).astype(jnp.int32)
  wanted = limit - jnp.sum(above.astype(jnp.int32))
  taken = above | ((equal != 0) & (jnp.cumsum(equal) <= wanted))
  # Interpreted, a masked element would put back what its slot held before.
  slots = jnp.where(taken, jnp.cumsum(taken.astype(jnp.int32)) - 1, limit)
  store(best_ref, program, slots, value=logits, mask=taken)
  store(best_index_ref, program, slots, value=index, mask=taken)
  empty = (lanes >= jnp.sum(taken.astype(jnp.int32))) & (lanes < limit)
  store(
    best_ref,
    program,
    lanes,
    mask=empty,
    value=jnp.full(chunk, -jnp.inf, jnp.float32),
  )
  store(
    best_index_ref,
    program,
    lanes,
    mask=empty,
    value=jnp.zeros(chunk, jnp.int32),
  )


def _decode_kernel(
  best_ref,
  index_ref,
  deltas_ref,
  layout_ref,
  around_ref,
  far_ref,
  boxes_ref,
  logits_ref,
  *,
  limit,
  weights,
  width_offset,
  interpret,
):
  """Ranks a block of a level's chosen anchors and makes their boxes."""
  level, block = pl.program_id(0), pl.program_id(1)
  slots = block * BLOCK + jnp.arange(BLOCK)
  mask = slots < limit
  logits = load(best_ref, level, slots, mask=mask, other=-jnp.inf)
  keys = _sort_keys(logits)

  def count_better(other_block, rank):
    others = other_block * BLOCK + jnp.arange(BLOCK)
    other_keys = jnp.where(
      others < limit,
      _sort_keys(
        load(best_ref, level, others, mask=others < limit, other=-jnp.inf)
      ),
      LOWEST,
    )
    better = other_keys[None] > keys[:, None]
    better |= (other_keys[None] == keys[:, None]) & (
      others[None] < slots[:, None]
    )
    return rank + jnp.sum(better.astype(jnp.int32), axis=1)

  rank = jax.lax.fori_loop(
    0, pl.cdiv(limit, BLOCK), count_better, jnp.zeros(BLOCK, jnp.int32)
  )

  found = mask & (logits > -jnp.inf)
  index = load(index_ref, level, slots, mask=found)
  x1, y1, x2, y2 = anchor_corners(layout_ref, around_ref, level, index, found)
  place = load(layout_ref, level, 0) + index

  def scaled(column):
    delta = load(deltas_ref, place, column, mask=found)
    if weights[column] == 1:
      return delta
    weight = jnp.full_like(delta, weights[column])
    return divide(delta, weight, interpret=interpret)

  corners = [None] * 4
  for axis, (near, far) in enumerate(((x1, x2), (y1, y2))):
    side = far - near + width_offset
    center = near + 0.5 * side
    shift, scale = scaled(axis), scaled(2 + axis)
    center = shift * side + center
    side = jnp.exp(jnp.minimum(scale, MAX_LOG_SCALE)) * side
    is_nan = jnp.isnan(shift) | jnp.isnan(scale)
    corners[axis] = center - 0.5 * side, is_nan
    corners[2 + axis] = center + 0.5 * side - width_offset, is_nan
  for i, (corner, is_nan) in enumerate(corners):
    edge = load(far_ref, i)
    clipped = jnp.minimum(jnp.maximum(corner, 0), edge)
    # On a GPU the smaller of NaN and a number is the number.
    clipped = jnp.where(is_nan, jnp.nan, clipped)
    store(
      boxes_ref,
      level,
      rank,
      i,
      mask=mask,
      value=jnp.where(found, clipped, 0),
    )
  store(logits_ref, level, rank, value=logits, mask=mask)


def _cut(ranges, chunk):
  """Cuts the range of each level into chunks; returns them level by level."""
  return [
    [
      (start + i, min(chunk, length - i))
      for i in range(0, max(length, 1), chunk)
    ]
    for start, length in ranges
  ]


def select_boxes(
  objectness_logits: Array,
  anchor_deltas: Array,
  levels: Sequence,
  image_size: Array,
  *,
  limit: int,
  weights: tuple[float, float, float, float],
  width_offset: float = 0.0,
  fit_to: Array | None = None,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Takes the best anchors of each level and moves them by their deltas.

  Args:
    objectness_logits: [a] of all levels; -inf is never taken, NaN neither.
    anchor_deltas: [a, 4].
    levels: See `anchor_layout`.
    image_size: (height, width); boxes are clipped to it.
    limit: Boxes of a level, at most. Above `MAX_LIMIT` right, but slow.
    weights: Factors of (dx, dy, dw, dh).
    width_offset: What a box is wider than x2 - x1.
    fit_to: See `anchor_layout`.
    interpret: See `launch`.

  Returns:
    boxes: [l, limit, 4], best first; zeros where there are fewer.
    logits: [l, limit], falling, equals by number; -inf where there are fewer.
  """
  layout, around = anchor_layout(levels, fit_to)
  num_levels = len(levels)
  counts = [
    level.size[0] * level.size[1] * len(level.around) for level in levels
  ]
  chunk = max(CHUNK, pl.next_power_of_2(2 * limit))
  logits = objectness_logits.astype(jnp.float32)
  logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
  starts = np.cumsum([0, *counts[:-1]])
  index = jnp.concatenate([jnp.arange(count) for count in counts])
  ranges = list(zip(starts.tolist(), counts, strict=True))
  while True:
    chunks = _cut(ranges, chunk)
    flat = np.array([piece for level in chunks for piece in level], np.int32)
    logits, index = launch(
      _chunk_kernel,
      jnp.asarray(flat),
      logits,
      index.astype(jnp.int32),
      name='select_chunk',
      grid=(len(flat),),
      num_warps=16,
      out_shape=(
        jax.ShapeDtypeStruct((len(flat), limit), jnp.float32),
        jax.ShapeDtypeStruct((len(flat), limit), jnp.int32),
      ),
      interpret=interpret,
      chunk=chunk,
      limit=limit,
    )
    if len(flat) == num_levels:
      break
    logits, index = logits.reshape(-1), index.reshape(-1)
    lengths = [len(level) * limit for level in chunks]
    starts = np.cumsum([0, *lengths[:-1]])
    ranges = list(zip(starts.tolist(), lengths, strict=True))
  height, width = image_size[0], image_size[1]
  far = jnp.stack([width, height, width, height]).astype(jnp.float32)
  return launch(
    _decode_kernel,
    logits,
    index,
    anchor_deltas.astype(jnp.float32),
    layout,
    jnp.asarray(around),
    far - width_offset,
    name='select_decode',
    grid=(num_levels, pl.cdiv(limit, BLOCK)),
    out_shape=(
      jax.ShapeDtypeStruct((num_levels, limit, 4), jnp.float32),
      jax.ShapeDtypeStruct((num_levels, limit), jnp.float32),
    ),
    interpret=interpret,
    limit=limit,
    weights=weights,
    width_offset=width_offset,
  )
