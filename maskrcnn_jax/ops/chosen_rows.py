"""A function of rows that is computed for the chosen rows only."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Literal
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

# A function of parameters and of some rows: arrays whose first axis is the
# rows. Each row of its result depends on the parameters and on the same row of
# its second argument only.
RowFunction = Callable[[PyTree, PyTree], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def apply_to_chosen(
  function: RowFunction,
  params: PyTree,
  rows: PyTree,
  chosen: Bool[Array, 'n'],
  chunk: int,
) -> Float[Array, 'n ...']:
  """Computes `function(params, rows)` for the chosen rows; the others are zero.

  The chosen rows are gathered and computed in chunks of `chunk` rows. The last
  chunk is filled up with other rows, whose results are discarded. The number of
  chunks depends on the number of chosen rows, so that few chosen rows mean
  little work, although array shapes are static.

  If a gradient is computed, the intermediate results of each chunk are kept for
  the backward pass. They take as much memory as those of `function` for all n
  rows, rounded up to a multiple of `chunk`, however few rows are chosen.

  This function is meant for a single device: rows that are distributed over
  several devices would be gathered on each.

  Args:
    function: Function of `params` and of some rows. Each row of its result
      depends on `params` and on the same row of its second argument only.
    params: Parameters of the function, with gradients.
    rows: Second argument of the function: an array with gradients, or a tree of
      arrays. Integers, such as the classes of the rows, have no gradients.
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
    return result.at[at].set(function(params, _take(rows, at)), mode='drop')

  return lax.fori_loop(
    0, num_chunks, add_chunk, jnp.zeros(shape.shape, shape.dtype)
  )


class _Saved(NamedTuple):
  """Values that the forward pass keeps for the backward pass."""

  params: PyTree  # the argument of `apply_to_chosen`
  rows: PyTree  # the argument of `apply_to_chosen`
  chosen: Bool[Array, 'n']  # the argument of `apply_to_chosen`
  # Intermediate results that depend on the rows: `[chunks, ...]`. Those of
  # chunks that were not computed are zero.
  kept: list[Array]


def _forward(
  function: RowFunction,
  params: PyTree,
  rows: PyTree,
  chosen: Bool[Array, 'n'],
  chunk: int,
) -> tuple[Array, _Saved]:
  """Returns the result of `apply_to_chosen`, and values for `_backward`.

  The arguments are those of `apply_to_chosen`.
  """
  indices, num_chunks = _order(chosen, chunk)
  depends = _depends_on_rows(function, params, _take(rows, indices[:chunk]))

  def compute(at: Int[Array, 'chunk']) -> tuple[Array, list[Array]]:
    """Returns the results of some rows, and `_Saved.kept` of these rows."""
    result, pull_back = jax.vjp(function, params, _take(rows, at))
    leaves = jax.tree.leaves(pull_back)
    return result, [x for x, kept in zip(leaves, depends, strict=True) if kept]

  def add_chunk(
    i: Int[Array, ''], carry: tuple[Array, list[Array]]
  ) -> tuple[Array, list[Array]]:
    """Writes the results and the intermediate results of chunk i."""
    result, kept = carry
    at = lax.dynamic_slice_in_dim(indices, i * chunk, chunk)
    of_chunk, to_keep = compute(at)
    return result.at[at].set(of_chunk, mode='drop'), [
      lax.dynamic_update_index_in_dim(every, one, i, axis=0)
      for every, one in zip(kept, to_keep, strict=True)
    ]

  shape = jax.eval_shape(function, params, rows)
  _, kept_shapes = jax.eval_shape(compute, indices[:chunk])
  most_chunks = indices.size // chunk
  result, kept = lax.fori_loop(
    0,
    num_chunks,
    add_chunk,
    (
      jnp.zeros(shape.shape, shape.dtype),
      [jnp.zeros((most_chunks, *x.shape), x.dtype) for x in kept_shapes],
    ),
  )
  return result, _Saved(params, rows, chosen, kept)


def _backward(
  function: RowFunction,
  chunk: int,
  saved: _Saved,
  gradient: Float[Array, 'n ...'],
) -> tuple[PyTree, PyTree, None]:
  """Returns the gradients of `apply_to_chosen` for `params` and `rows`.

  Args:
    function: Function of the rows.
    chunk: Number of rows that are computed at once.
    saved: Values that `_forward` kept.
    gradient: Gradient for the result of `apply_to_chosen`.

  Returns:
    The gradients for `params` and for `rows`, with `None` for integers; `None`
    for `chosen`.
  """
  params, rows, chosen, kept = saved
  indices, num_chunks = _order(chosen, chunk)
  some_rows = _take(rows, indices[:chunk])
  depends = _depends_on_rows(function, params, some_rows)
  # Only intermediate results that do not depend on the rows are used from this
  # call, such as transposed kernels. XLA computes nothing else of it.
  leaves, structure = jax.tree.flatten(jax.vjp(function, params, some_rows)[1])

  def add_chunk(
    i: Int[Array, ''], gradients: tuple[PyTree, PyTree]
  ) -> tuple[PyTree, PyTree]:
    """Adds the gradients that come from chunk i."""
    params_gradient, rows_gradient = gradients
    at = lax.dynamic_slice_in_dim(indices, i * chunk, chunk)
    of_chunk = iter(
      [lax.dynamic_index_in_dim(x, i, axis=0, keepdims=False) for x in kept]
    )
    pull_back = jax.tree.unflatten(
      structure,
      [
        next(of_chunk) if is_kept else x
        for x, is_kept in zip(leaves, depends, strict=True)
      ],
    )
    for_params, for_rows = pull_back(
      gradient.at[at].get(mode='fill', fill_value=0)
    )
    return (
      jax.tree.map(jnp.add, params_gradient, for_params),
      jax.tree.map(
        lambda total, x: total.at[at].set(x, mode='drop'),
        rows_gradient,
        _with_gradient(rows, for_rows),
      ),
    )

  params_gradient, rows_gradient = lax.fori_loop(
    0,
    num_chunks,
    add_chunk,
    jax.tree.map(jnp.zeros_like, (params, _with_gradient(rows, rows))),
  )
  return params_gradient, rows_gradient, None


apply_to_chosen.defvjp(_forward, _backward)


def _take(rows: PyTree, at: Int[Array, 'm']) -> PyTree:
  """Returns rows by their indices; an index too high means the last row."""
  return jax.tree.map(lambda x: x.at[at].get(mode='clip'), rows)


def _with_gradient(rows: PyTree, tree: PyTree) -> PyTree:
  """Returns `tree` with `None` in the places of the integers of `rows`."""
  return jax.tree.map(
    lambda row, x: x if jnp.issubdtype(row.dtype, jnp.inexact) else None,
    rows,
    tree,
  )


def _depends_on_rows(
  function: RowFunction, params: PyTree, rows: PyTree
) -> list[bool]:
  """Tells which intermediate results of a function depend on the rows.

  Args:
    function: Function of the rows.
    params: Its parameters.
    rows: Some rows.

  Returns:
    For each leaf of the function that `jax.vjp` returns for `function`, whether
    it depends on the rows. The others depend on `params` only, or are
    constants.
  """

  def leaves(rows: PyTree, params: PyTree) -> list[Array]:
    """Returns the intermediate results that the gradients need."""
    return jax.tree.leaves(jax.vjp(function, params, rows)[1])

  jaxpr = jax.make_jaxpr(leaves)(rows, params).jaxpr
  dependent: set[Any] = set(jaxpr.invars[: len(jax.tree.leaves(rows))])

  def depends(variable: Any) -> bool:
    """Tells whether a variable or a literal of the jaxpr depends on rows."""
    return not isinstance(variable, Literal) and variable in dependent

  for equation in jaxpr.eqns:
    if any(map(depends, equation.invars)):
      dependent.update(equation.outvars)
  return [depends(variable) for variable in jaxpr.outvars]


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
