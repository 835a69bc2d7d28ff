"""Pre-NMS selection: the best anchors of every level, moved by their deltas."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops.anchors import AnchorLevel, anchors_at, count_anchors
from maskrcnn_jax.ops.boxes import Weights, clip_boxes, decode_boxes


def select_boxes(
  objectness_logits: Float[Array, 'a'],
  anchor_deltas: Float[Array, 'a 4'],
  levels: tuple[AnchorLevel, ...],
  image_size: Int[Array, '2'],
  *,
  limit: int,
  weights: Weights,
  width_offset: float = 0.0,
  fit_to: Int[Array, '2'] | None = None,
  kernels: str = 'xla',
) -> tuple[Float[Array, 'l {limit} 4'], Float[Array, 'l {limit}']]:
  """Takes the best anchors of each level and moves them by their deltas.

  Args:
    objectness_logits: Of all levels; -inf is never taken, NaN neither.
    anchor_deltas: In the same order.
    levels: Where the anchors are.
    image_size: (height, width); boxes are clipped to it.
    limit: Boxes of a level, at most.
    weights: See `decode_boxes`.
    width_offset: See `ops/boxes.py`.
    fit_to: See `make_anchors`.
    kernels: See `kernels.py`. Plain JAX serves limits that the kernel is slow
      for.

  Returns:
    boxes: Best first; zeros where there are fewer.
    logits: Falling, equals by number; -inf where there are fewer.
  """
  if kernels != 'xla':
    from pallas_kernels import selection as kernel

    if limit <= kernel.MAX_LIMIT:
      return kernel.select_boxes(
        objectness_logits,
        anchor_deltas,
        levels,
        image_size,
        limit=limit,
        weights=weights,
        width_offset=width_offset,
        fit_to=fit_to,
        interpret=kernels == 'interpret',
      )
  # top_k would rank NaN first.
  objectness_logits = jnp.where(
    jnp.isnan(objectness_logits), -jnp.inf, objectness_logits
  )
  boxes, logits = [], []
  end = 0
  for level in levels:
    start, end = end, end + count_anchors(level)
    count = min(limit, end - start)
    best, index = jax.lax.top_k(objectness_logits[start:end], count)
    decoded = decode_boxes(
      anchor_deltas[start:end][index],
      anchors_at(level, index, fit_to=fit_to),
      weights=weights,
      width_offset=width_offset,
    )
    clipped = clip_boxes(decoded, image_size, width_offset=width_offset)
    clipped = jnp.where(best[:, None] > -jnp.inf, clipped, 0)
    boxes.append(jnp.pad(clipped, ((0, limit - count), (0, 0))))
    logits.append(jnp.pad(best, (0, limit - count), constant_values=-jnp.inf))
  return jnp.stack(boxes), jnp.stack(logits)
