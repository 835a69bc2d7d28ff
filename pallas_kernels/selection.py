"""Selection before NMS: the best boxes of each level, decoded and clipped.

In plain JAX, for each level:

  best, index = top_k(logits, limit)
  boxes = clip(decode(deltas[index], anchors[index]))

In plain JAX, `ops/top_k.py` sorts 20,000 numbers twice to find the best 2,000
of the 200,000 of a level. Here, a program finds the best numbers of a chunk
that fits its registers, by bisection of their bits. The best numbers of all
chunks of a level are joined and cut into chunks again, until one chunk is left.
Only then are the few numbers that remain ranked, each by counting the greater
numbers, and their boxes decoded.
"""

from collections.abc import Sequence
import math

import jax
from jax import Array
from jax.experimental import pallas as pl
import jax.numpy as jnp
import numpy as np

from pallas_kernels.anchors import Level, anchor_corners, anchor_layout
from pallas_kernels.launch import divide, launch, load, store

# Logits of a chunk: 16 for each thread of 16 warps.
CHUNK = 8192
# Largest `limit` for which the kernel is fast. A larger limit needs larger
# chunks, whose numbers do not fit into the registers: compiled for 12,000, each
# thread stores 5.6 KB of them in memory.
MAX_LIMIT = CHUNK // 2
# Number of boxes that one program ranks, and number of boxes that it compares
# with them at a time.
BLOCK = 128
# The smallest int32: a key below those of all logits.
LOWEST = np.int32(-(2**31))
# Largest logarithm of a growth factor. It enlarges an anchor of 16 pixels to
# 1000 pixels.
MAX_LOG_SCALE = math.log(1000 / 16)


def _sort_keys(logits: Array) -> Array:
  """Returns int32 numbers that are in the same order as the float32 logits.

  The key of -inf is greater than `LOWEST`. As in `jax.lax.top_k`, -0 is less
  than 0.
  """
  bits = jax.lax.bitcast_convert_type(logits, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _chunk_kernel(
  ranges_ref: jax.Ref,
  logits_ref: jax.Ref,
  index_ref: jax.Ref,
  best_ref: jax.Ref,
  best_index_ref: jax.Ref,
  *,
  chunk: int,
  limit: int,
  interpret: bool,
) -> None:
  """Finds the `limit` greatest logits of each chunk, without sorting them.

  Args:
    ranges_ref: [chunks, 2], for each chunk the index of its first element in
      the next two arrays, and the number of its elements.
    logits_ref: [n], logits of all chunks.
    index_ref: [n], index of the anchor of each logit among the anchors of the
      level.
    best_ref: Result [chunks, limit], the greatest logits of each chunk; -inf in
      slots without a logit.
    best_index_ref: Result [chunks, limit], entry of `index_ref` for each of
      these logits; 0 in slots without a logit.
    chunk: Largest number of elements of a chunk.
    limit: Number of logits to keep of a chunk.
    interpret: Whether the kernel is interpreted.
  """
  del interpret  # Nothing here depends on it.
  program = pl.program_id(0)
  start, length = load(ranges_ref, program, 0), load(ranges_ref, program, 1)
  lanes = jnp.arange(chunk)
  real = lanes < length
  logits = load(logits_ref, start + lanes, mask=real, other=-jnp.inf)
  index = load(index_ref, start + lanes, mask=real)
  keys = jnp.where(real, _sort_keys(logits), LOWEST)

  def try_bit(i: Array, threshold: Array) -> Array:
    """Sets bit i of the threshold if `limit` keys are still at least as great.

    Args:
      i: Number of the bit, from the most significant one, 0.
      threshold: A number that `limit` keys, or all, are at least as great as.
    """
    # Adding the most significant bit to `LOWEST` gives 0, by overflow.
    candidate = threshold + (jnp.int32(1) << (31 - i))
    enough = jnp.sum((keys >= candidate).astype(jnp.int32)) >= limit
    return jnp.where(enough, candidate, threshold)

  # The greatest number that `limit` keys are at least as great as. If more keys
  # equal it than are wanted, the first of them are taken.
  threshold = jax.lax.fori_loop(0, 32, try_bit, jnp.int32(LOWEST))
  above = keys > threshold
  equal = ((keys == threshold) & real).astype(jnp.int32)
  wanted = limit - jnp.sum(above.astype(jnp.int32))
  taken = above | ((equal != 0) & (jnp.cumsum(equal) <= wanted))
  # The interpreter writes the old value of a slot where the mask is false. Slot
  # `limit` does not exist, so that these writes are dropped.
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
  best_ref: jax.Ref,
  index_ref: jax.Ref,
  deltas_ref: jax.Ref,
  layout_ref: jax.Ref,
  around_ref: jax.Ref,
  far_ref: jax.Ref,
  boxes_ref: jax.Ref,
  logits_ref: jax.Ref,
  *,
  limit: int,
  weights: tuple[float, float, float, float],
  width_offset: float,
  interpret: bool,
) -> None:
  """Ranks a block of the selected anchors of a level and decodes their boxes.

  Args:
    best_ref: [l, limit], the selected logits of each level, not sorted; -inf in
      slots without a logit.
    index_ref: [l, limit], index of the anchor of each of these logits among the
      anchors of the level.
    deltas_ref: [a, 4], encoded offsets (dx, dy, dw, dh) of the anchors of all
      levels.
    layout_ref: First result of `anchor_layout`.
    around_ref: Second result of `anchor_layout`.
    far_ref: [4], largest x, y, x and y of a box in the image, in pixels.
    boxes_ref: Result [l, limit, 4], (x1, y1, x2, y2) in pixels, best first; 0
      in slots without a box.
    logits_ref: Result [l, limit], logits of these boxes, the greatest first;
      -inf in slots without a box.
    limit: Number of slots of a level.
    weights: Factors by which the deltas are multiplied when they are encoded.
    width_offset: The width of a box is x2 - x1 plus this, in pixels.
    interpret: Whether the kernel is interpreted.
  """
  level, block = pl.program_id(0), pl.program_id(1)
  slots = block * BLOCK + jnp.arange(BLOCK)
  mask = slots < limit
  logits = load(best_ref, level, slots, mask=mask, other=-jnp.inf)
  keys = _sort_keys(logits)

  def count_better(other_block: Array, rank: Array) -> Array:
    """Adds the number of better logits in another block to each rank.

    If two logits are equal, the one in the smaller slot is better.

    Args:
      other_block: Number of the other block.
      rank: Number of better logits so far.
    """
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

  def unweighted(column: int) -> Array:
    """Returns a column of the anchors' deltas, divided by its weight."""
    delta = load(deltas_ref, place, column, mask=found)
    if weights[column] == 1:
      return delta
    weight = jnp.full_like(delta, weights[column])
    return divide(delta, weight, interpret=interpret)

  # (coordinate, whether the deltas are NaN): x1 and y1, then x2 and y2.
  near_corners, far_corners = [], []
  for axis, (near, far) in enumerate(((x1, x2), (y1, y2))):
    side = far - near + width_offset
    center = near + 0.5 * side
    shift, scale = unweighted(axis), unweighted(2 + axis)
    center = shift * side + center
    side = jnp.exp(jnp.minimum(scale, MAX_LOG_SCALE)) * side
    is_nan = jnp.isnan(shift) | jnp.isnan(scale)
    near_corners.append((center - 0.5 * side, is_nan))
    far_corners.append((center + 0.5 * side - width_offset, is_nan))
  for i, (corner, is_nan) in enumerate(near_corners + far_corners):
    edge = load(far_ref, i)
    clipped = jnp.minimum(jnp.maximum(corner, 0), edge)
    # On a GPU, minimum() and maximum() of NaN and a number are the number.
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


def _cut(
  ranges: list[tuple[int, int]], chunk: int
) -> list[list[tuple[int, int]]]:
  """Cuts the range of each level into chunks.

  Args:
    ranges: (first element, number of elements) of each level.
    chunk: Largest number of elements of a chunk.

  Returns:
    For each level, (first element, number of elements) of its chunks; at least
    one.
  """
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
  levels: Sequence[Level],
  image_size: Array,
  *,
  limit: int,
  weights: tuple[float, float, float, float],
  width_offset: float = 0.0,
  fit_to: Array | None = None,
  interpret: bool = False,
) -> tuple[Array, Array]:
  """Selects the best anchors of each level and decodes their boxes.

  Args:
    objectness_logits: [a], logits of the anchors of all levels. Anchors with
      -inf or NaN are never selected.
    anchor_deltas: [a, 4], encoded offsets (dx, dy, dw, dh).
    levels: Positions of the anchors, level after level.
    image_size: (height, width) that boxes are clipped to, in pixels.
    limit: Number of result slots of a level. A limit above `MAX_LIMIT` gives
      correct results, but slowly.
    weights: Factors by which (dx, dy, dw, dh) are multiplied when they are
      encoded.
    width_offset: The width of a box is x2 - x1 plus this, in pixels; its height
      is y2 - y1 plus this.
    fit_to: (height, width) of the padded image, if the strides are fitted to
      it; see `anchor_layout`.
    interpret: Whether to run the kernel as plain JAX, which is slow.

  Returns:
    boxes: [l, limit, 4], (x1, y1, x2, y2) in pixels, best first; zeros in slots
      without a box.
    logits: [l, limit], logits of these boxes, the greatest first. Of two equal
      logits, the logit of the anchor with the smaller index comes first. -inf
      in slots without a box.
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
