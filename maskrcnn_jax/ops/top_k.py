"""The largest numbers of a long list, without sorting the list."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def top_k(
  numbers: Float[Array, 'n'], count: int
) -> tuple[Float[Array, 'k'], Int[Array, 'k']]:
  """Returns the largest numbers and their indices, as `jax.lax.top_k` does.

  `jax.lax.top_k` sorts the whole list on a GPU. This function divides the list
  into blocks, and finds the `count` blocks with the largest maxima. No other
  block can hold one of the largest numbers. Only the maxima and the numbers of
  these blocks are sorted, about sqrt(n * count) each.

  Args:
    numbers: Float32 numbers. -0 is less than 0, and NaN is larger than inf, or
      less than -inf if its sign is set.
    count: Number k of results, at most n.

  Returns:
    The numbers, the largest first, and their indices. If numbers are equal, the
    one with the smallest index comes first.
  """
  n = numbers.shape[0]
  # Both sorts are shortest together if they are equally long.
  block = max(math.isqrt(n // max(count, 1)), 1)
  num_blocks = -(-n // block)
  if block < 4 or count >= num_blocks:
    values, indices = jax.lax.top_k(numbers, count)
    return values, indices.astype(jnp.int32)
  # Integers in the order that `top_k` sorts by. The maximum of floats is not
  # always the same of -0 and 0, or of NaN and another number.
  keys = _flip(jax.lax.bitcast_convert_type(numbers, jnp.int32))
  # The padding comes last in every order, also after other NaN.
  keys = jnp.pad(
    keys,
    (0, num_blocks * block - n),
    constant_values=jnp.iinfo(jnp.int32).min,
  ).reshape(num_blocks, block)
  _, best = jax.lax.top_k(_as_numbers(keys.max(axis=1)), count)
  # In the order of their indices, so that the order of equal numbers is right.
  best = jnp.sort(best)
  candidates = _as_numbers(keys[best].reshape(-1))
  values, places = jax.lax.top_k(candidates, count)
  return values, (best[places // block] * block + places % block).astype(
    jnp.int32
  )


def _as_numbers(keys: Int[Array, '*n']) -> Float[Array, '*n']:
  """Returns the float32 numbers whose order the integers have."""
  return jax.lax.bitcast_convert_type(_flip(keys), jnp.float32)


def _flip(bits: Int[Array, '*n']) -> Int[Array, '*n']:
  """Turns the bits of float32 numbers into integers of the same order, or back.

  The bits of a negative number increase with its absolute value; all but the
  sign are inverted.
  """
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
