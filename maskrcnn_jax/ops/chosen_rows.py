"""A function of rows that is computed for the chosen rows only."""

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

# A function of parameters and of some rows. Each row of its result depends on
# the parameters and on the same row of its second argument only.
RowFunction = Callable[[PyTree, Array], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def apply_to_chosen(
  function: RowFunction,
  params: PyTree,
  rows: Float[Array, 'n ...'],
  chosen: Bool[Array, 'n'],
  chunk: int,
) -> Float[Array, 'n ...']:
  """Computes `function(params, rows)` for the chosen rows; the others are zero.

  The chosen rows are gathered and computed in chunks of `chunk` rows. The last
  chunk is filled up with other rows, whose results are discarded. The number of
  chunks depends on the number of chosen rows, so that few chosen rows mean
  little work, although array shapes are static. The backward pass computes each
  chunk once more instead of keeping its intermediate results. This function is
  meant for a single device: rows that are distributed over several devices
  would be gathered on each.

  Args:
    function: Function of `params` and of some rows. Each row of its result
      depends on `params` and on the same row of its second argument only.
    params: Parameters of the function, with gradients.
    rows: Second argument of the function, with gradients.
    chosen: Which rows to compute.
    chunk: Number of rows that are computed at once, at least 1.

  Returns:
    The result of the function for all n rows; rows that are not chosen are
    zero.
  """
  indices, num_chunks = _order(chosen, chunk)
  shape = jax.eval_shape(function, params, rows)

  def add_chunk(i: Int[Array, ''], result: Array) -> Array:
    """Writes the rows of chunk i into the result."""
    at = lax.dynamic_slice_in_dim(indices, i * chunk, chunk)
    return result.at[at].set(
      function(params, rows.at[at].get(mode='clip')), mode='drop'
    )

  return lax.fori_loop(
    0, num_chunks, add_chunk, jnp.zeros(shape.shape, shape.dtype)
  )


def _forward(
  function: RowFunction,
  params: PyTree,
  rows: Float[Array, 'n ...'],
  chosen: Bool[Array, 'n'],
  chunk: int,
) -> tuple[Array, tuple[PyTree, Array, Array]]:
  """Returns the result of `apply_to_chosen`, and its arguments for `_backward`.

  The arguments are those of `apply_to_chosen`.
  """
  result = apply_to_chosen(function, params, rows, chosen, chunk)
  return result, (params, rows, chosen)


def _backward(
  function: RowFunction,
  chunk: int,
  saved: tuple[PyTree, Array, Array],
  gradient: Float[Array, 'n ...'],
) -> tuple[PyTree, Array, None]:
  """Returns the gradients of `apply_to_chosen` for `params` and `rows`.

  Args:
    function: Function of the rows.
    chunk: Number of rows that are computed at once.
    saved: The arguments (params, rows, chosen) of `apply_to_chosen`.
    gradient: Gradient for the result of `apply_to_chosen`.

  Returns:
    The gradients for `params` and for `rows`; `None` for `chosen`.
  """
  params, rows, chosen = saved
  indices, num_chunks = _order(chosen, chunk)

  def add_chunk(
    i: Int[Array, ''], gradients: tuple[PyTree, Array]
  ) -> tuple[PyTree, Array]:
    """Adds the gradients that come from chunk i."""
    params_gradient, rows_gradient = gradients
    at = lax.dynamic_slice_in_dim(indices, i * chunk, chunk)
    _, pull_back = jax.vjp(function, params, rows.at[at].get(mode='clip'))
    for_params, for_rows = pull_back(
      gradient.at[at].get(mode='fill', fill_value=0)
    )
    return (
      jax.tree.map(jnp.add, params_gradient, for_params),
      rows_gradient.at[at].set(for_rows, mode='drop'),
    )

  params_gradient, rows_gradient = lax.fori_loop(
    0,
    num_chunks,
    add_chunk,
    jax.tree.map(jnp.zeros_like, (params, rows)),
  )
  return params_gradient, rows_gradient, None


apply_to_chosen.defvjp(_forward, _backward)


def _order(
  chosen: Bool[Array, 'n'], chunk: int
) -> tuple[Int[Array, 'm'], Int[Array, '']]:
  """Returns the indices of the chosen rows, and how many chunks they fill.

  The indices are padded to a multiple of `chunk` with n, the number of rows,
  which is no row's index.
  """
  n = chosen.shape[0]
  indices = jnp.nonzero(chosen, size=-(-n // chunk) * chunk, fill_value=n)[0]
  return indices, -(-jnp.sum(chosen) // chunk)
