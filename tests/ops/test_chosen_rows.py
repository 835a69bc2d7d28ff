"""Tests of computing a function for chosen rows only."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.ops.chosen_rows import apply_to_chosen


def double_then_turn(matrix, rows):
  return jnp.tanh(2 * rows @ matrix)


# The cases are: no row, all rows, fewer rows than a chunk, exactly one chunk,
# and chunks that do not divide the number of rows.
@pytest.mark.parametrize('chunk', [3, 4, 16])
@pytest.mark.parametrize(
  'chosen', [[], [3], [0, 6], [0, 2, 4, 6], [1, 2, 3, 5], range(7)]
)
def test_apply_to_chosen_equals_computing_and_masking_all(key, chosen, chunk):
  keys = jax.random.split(key, 3)
  matrix = jax.random.normal(keys[0], (3, 2))
  rows = jax.random.normal(keys[1], (7, 3))
  weight = jax.random.normal(keys[2], (7, 2))
  is_chosen = jnp.zeros(7, bool).at[jnp.array(chosen, int)].set(True)

  def whole(matrix, rows):
    return jnp.where(is_chosen[:, None], double_then_turn(matrix, rows), 0)

  def chunked(matrix, rows):
    return apply_to_chosen(double_then_turn, matrix, rows, is_chosen, chunk)

  assert_allclose(
    jax.jit(chunked)(matrix, rows), whole(matrix, rows), rtol=1e-6
  )
  gradients = [
    jax.jit(
      jax.grad(lambda m, r, f=f: jnp.sum(f(m, r) * weight), argnums=(0, 1))
    )(matrix, rows)
    for f in (chunked, whole)
  ]
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), *gradients
  )


def test_apply_to_chosen_ignores_nan_and_inf_in_other_rows():
  rows = jnp.array([[jnp.nan], [1.0], [jnp.inf], [2.0], [jnp.nan]])
  chosen = jnp.array([False, True, False, True, False])

  def total(factor, rows):
    return apply_to_chosen(jnp.multiply, factor, rows, chosen, 1).sum()

  value, (of_factor, of_rows) = jax.value_and_grad(total, argnums=(0, 1))(
    3.0, rows
  )
  assert (float(value), float(of_factor)) == (9.0, 3.0)
  assert_array_equal(of_rows[:, 0], np.array([0, 3, 0, 3, 0]))


def test_apply_to_chosen_takes_a_tree_of_rows_and_keeps_integers():
  rows = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  columns = jnp.array([1, 0, 1])
  chosen = jnp.array([True, False, True])

  def pick(factors, rows_and_columns):
    rows, columns = rows_and_columns
    return jnp.take_along_axis(rows * factors, columns[:, None], axis=1)[:, 0]

  def picked(factors, rows):
    return apply_to_chosen(pick, factors, (rows, columns), chosen, 2)

  y, pull = jax.vjp(jax.jit(picked), jnp.array([10.0, 100.0]), rows)
  of_factors, of_rows = pull(jnp.ones(3))
  # Rows 0 and 2 give 100 times their second element.
  assert_array_equal(y, [200, 0, 600])
  assert_array_equal(of_factors, [0, 8])
  assert_array_equal(of_rows, [[0, 100], [0, 0], [0, 100]])


def test_apply_to_chosen_computes_no_row_again_for_the_gradient(key):
  matrix, rows = jnp.ones((3, 2)), jnp.ones((7, 3))

  def total(matrix, rows):
    chosen = rows[:, 0] > 0
    return apply_to_chosen(double_then_turn, matrix, rows, chosen, 4).sum()

  gradients = jax.value_and_grad(total, argnums=(0, 1))
  hlo = jax.jit(gradients).lower(matrix, rows).compile().as_text()
  assert hlo.count(' tanh(') == 1
