"""A function of rows, computed for as many of them as are wanted."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def apply_to_chosen(
  function: Callable[[Any, Array], Array],
  params: Any,
  rows: Float[Array, 'n ...'],
  chosen: Bool[Array, 'n'],
  chunk: int,
) -> Float[Array, 'n ...']:
  """Returns `function(params, rows)`, with zeros in rows that are not chosen.

  The work is done in chunks, as many as the chosen rows fill, so that its
  amount follows their number although shapes are static. The backward pass
  computes each chunk once more rather than keep what is between. Meant for a
  single device: rows that are spread over several are gathered.

  Args:
    function: Computes each row by itself.
    params: Its parameters.
    rows: What it is applied to.
    chosen: Which of them count.
    chunk: Rows computed at once.
  """
  place, num_chunks = _order(chosen, chunk)
  shape = jax.eval_shape(function, params, rows)

  def add_chunk(i, result):
    at = lax.dynamic_slice_in_dim(place, i * chunk, chunk)
    return result.at[at].set(
      function(params, rows.at[at].get(mode='clip')), mode='drop'
    )

  return lax.fori_loop(
    0, num_chunks, add_chunk, jnp.zeros(shape.shape, shape.dtype)
  )


def _forward(function, params, rows, chosen, chunk):
  result = apply_to_chosen(function, params, rows, chosen, chunk)
  return result, (params, rows, chosen)


def _backward(function, chunk, saved, gradient):
  params, rows, chosen = saved
  place, num_chunks = _order(chosen, chunk)

  def add_chunk(i, gradients):
    of_params, of_rows = gradients
    at = lax.dynamic_slice_in_dim(place, i * chunk, chunk)
    _, pull = jax.vjp(function, params, rows.at[at].get(mode='clip'))
    more, here = pull(gradient.at[at].get(mode='fill', fill_value=0))
    return (
      jax.tree.map(jnp.add, of_params, more),
      of_rows.at[at].set(here, mode='drop'),
    )

  of_params, of_rows = lax.fori_loop(
    0,
    num_chunks,
    add_chunk,
    jax.tree.map(jnp.zeros_like, (params, rows)),
  )
  return of_params, of_rows, None


apply_to_chosen.defvjp(_forward, _backward)


def _order(chosen, chunk):
  """Returns the chosen rows' numbers, then n's, and the chunks they fill."""
  n = chosen.shape[0]
  place = jnp.nonzero(chosen, size=-(-n // chunk) * chunk, fill_value=n)[0]
  return place, -(-jnp.sum(chosen) // chunk)
