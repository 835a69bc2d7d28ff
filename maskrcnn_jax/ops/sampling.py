"""Sampling of a fixed number of labelled boxes, foreground first."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


class Sample(NamedTuple):
  """A fixed number of slots; foreground first, then background, then none."""

  indices: Int[Array, 's']  # into the sampled array; 0 where not valid
  foreground: Bool[Array, 's']
  valid: Bool[Array, 's']


def sample_labels(
  labels: Int[Array, 'n'],
  key: Key[Array, ''],
  *,
  size: int,
  foreground_fraction: float,
) -> Sample:
  """Draws boxes: foreground up to a share of slots, background for the rest.

  Args:
    labels: 1 foreground, 0 background, -1 never drawn.
    key: Element i's luck depends on the key and on i alone, so that padding at
      the end changes nothing.
    size: Number of slots.
    foreground_fraction: The most slots that foreground may take, as a share.

  Source:
    Fast R-CNN (arXiv:1504.08083), section 2.3; detectron2
    `modeling/sampling.py`.
  """
  luck = jax.random.uniform(key, labels.shape)
  max_foreground = int(size * foreground_fraction)
  foreground, num_foreground = _draw(luck, labels == 1, limit=max_foreground)
  background, num_background = _draw(luck, labels == 0, limit=size)

  slots = jnp.arange(size)
  is_foreground = slots < num_foreground
  from_background = slots - num_foreground
  valid = is_foreground | (from_background < num_background)
  # The clip keeps the index legal in the branch that is not taken.
  indices = jnp.where(
    is_foreground,
    foreground[jnp.clip(slots, 0, foreground.shape[0] - 1)],
    background[jnp.clip(from_background, 0, background.shape[0] - 1)],
  )
  return Sample(jnp.where(valid, indices, 0), is_foreground, valid)


def _draw(luck, eligible, *, limit):
  """Indices of the luckiest eligible elements, and how many there are."""
  count = min(max(limit, 1), luck.shape[0])  # at least one, to index into
  _, indices = jax.lax.top_k(jnp.where(eligible, luck, -1), count)
  return indices.astype(jnp.int32), jnp.minimum(jnp.sum(eligible), limit)
