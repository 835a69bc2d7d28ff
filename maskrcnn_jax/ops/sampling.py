"""Random sampling of a fixed number of labelled boxes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskrcnn_jax.ops.top_k import top_k


class Sample(NamedTuple):
  """The sampled boxes, in a fixed number s of slots.

  Foreground comes first, then background, then slots without a box.
  """

  indices: Int[Array, 's']  # into the labels; 0 where not valid
  foreground: Bool[Array, 's']  # whether the slot holds a foreground box
  valid: Bool[Array, 's']  # False if the slot holds no box


def sample_labels(
  labels: Int[Array, 'n'],
  key: Key[Array, ''],
  *,
  size: int,
  foreground_fraction: float,
) -> Sample:
  """Draws a random sample of foreground boxes and of background boxes.

  Foreground boxes take at most `size * foreground_fraction` slots. Background
  boxes take all slots that are left, as far as there are enough. All boxes of a
  label are equally likely.

  Args:
    labels: Label of each box: 1 foreground, 0 background, -1 never drawn.
    key: Random key. The random number of box i depends only on the key and on
      i, so that padding at the end of `labels` does not change the sample.
    size: Number of slots.
    foreground_fraction: Largest share of the slots that foreground may take, in
      [0, 1].

  Source:
    Fast R-CNN (arXiv:1504.08083), section 2.3; detectron2
    `modeling/sampling.py`.
  """
  priorities = jax.random.uniform(key, labels.shape)
  max_foreground = int(size * foreground_fraction)
  foreground, num_foreground = _draw(
    priorities, labels == 1, limit=max_foreground
  )
  background, num_background = _draw(priorities, labels == 0, limit=size)

  slots = jnp.arange(size)
  is_foreground = slots < num_foreground
  from_background = slots - num_foreground
  valid = is_foreground | (from_background < num_background)
  # `where` evaluates both alternatives; the clip keeps the indices of the one
  # that is not used in range.
  indices = jnp.where(
    is_foreground,
    foreground[jnp.clip(slots, 0, foreground.shape[0] - 1)],
    background[jnp.clip(from_background, 0, background.shape[0] - 1)],
  )
  return Sample(jnp.where(valid, indices, 0), is_foreground, valid)


def _draw(
  priorities: Float[Array, 'n'], eligible: Bool[Array, 'n'], *, limit: int
) -> tuple[Int[Array, 'd'], Int[Array, '']]:
  """Draws at most `limit` of the eligible elements, all equally likely.

  The elements with the highest priorities are drawn, the highest first.

  Args:
    priorities: Random numbers in [0, 1), one for each of the n elements.
    eligible: Which elements may be drawn.
    limit: Largest number of elements to draw, at least 0.

  Returns:
    The indices of the drawn elements in d slots, and the number of elements
    drawn. The slots beyond that number have indices without a meaning. There
    are `limit` slots, but at least one and at most n.
  """
  # At least one index, because an empty array cannot be indexed.
  count = min(max(limit, 1), priorities.shape[0])
  _, indices = top_k(jnp.where(eligible, priorities, -1), count)
  return indices, jnp.minimum(jnp.sum(eligible), limit)
