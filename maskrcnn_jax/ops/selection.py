"""Selection of the boxes that enter the NMS of the RPN."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from maskrcnn_jax.ops.anchors import AnchorLevel, anchors_at, count_anchors
from maskrcnn_jax.ops.boxes import Weights, clip_boxes, decode_boxes
from maskrcnn_jax.ops.top_k import top_k


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
  """Selects the best anchors of each level and decodes their boxes.

  The best anchors are the anchors with the largest logits. Their boxes are
  decoded from the deltas and clipped to the image.

  Args:
    objectness_logits: Logits of the anchors of all levels. Anchors with -inf or
      NaN are never selected.
    anchor_deltas: Encoded offsets (dx, dy, dw, dh) of the same anchors.
    levels: Positions and shapes of the anchors of each level.
    image_size: (height, width) that boxes are clipped to, in pixels: the size
      of the image before padding.
    limit: Number of slots for the boxes of a level.
    weights: Divisors of (dx, dy, dw, dh); see `decode_boxes`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    fit_to: (height, width) of the padded image, in pixels, if the stride of a
      level is to be the side of this image divided by the number of cells; see
      `make_anchors`. `None` keeps the strides of `levels`.
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests. If
      `limit` is above the kernel's `MAX_LIMIT`, plain JAX is always used,
      because it is faster.

  Returns:
    boxes: In pixels, in the order of falling logits. Slots without a box hold
      zeros.
    logits: Logits of these boxes. If two are equal, that of the anchor with the
      smaller index comes first. Slots without a box hold -inf.
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
  # Without this, top_k would rank NaN first.
  objectness_logits = jnp.where(
    jnp.isnan(objectness_logits), -jnp.inf, objectness_logits
  )
  boxes, logits = [], []
  end = 0
  for level in levels:
    start, end = end, end + count_anchors(level)
    count = min(limit, end - start)
    best, index = top_k(objectness_logits[start:end], count)
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
