"""Tests of the largest numbers of a list: against sorting the whole list."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax.ops.top_k import top_k

# (length of the list, how many are asked for). The first three lists are sorted
# whole; the others are divided into blocks, with and without a rest.
SIZES = [(1, 1), (7, 7), (300, 100), (256, 16), (257, 16), (4097, 3), (5000, 1)]


def sort_whole(numbers, count):
  """Returns the indices of the largest numbers by a stable sort of all."""
  return np.argsort(-numbers, kind='stable')[:count]


@pytest.mark.parametrize('n, count', SIZES)
@pytest.mark.parametrize('different', [1, 2, 40, 1_000_000])
def test_top_k_equals_a_stable_sort(n, count, different):
  rng = np.random.default_rng(n + different)
  find = jax.jit(functools.partial(top_k, count=count))
  for _ in range(4):
    # With few different numbers, the order of equal ones decides.
    numbers = rng.integers(-different, different, n).astype(np.float32)
    values, indices = find(numbers)
    expected = sort_whole(numbers, count)
    assert_array_equal(indices, expected)
    assert_array_equal(values, numbers[expected])


def test_top_k_finds_numbers_that_are_all_in_one_block():
  numbers = np.zeros(4096, np.float32)
  numbers[1600:1616] = np.arange(16)
  _, indices = top_k(jnp.asarray(numbers), 16)
  assert_array_equal(indices, [*range(1615, 1600, -1), 0])


@pytest.mark.parametrize('n, count', SIZES[3:6])
def test_top_k_orders_infinity_and_nan_as_jax_does(n, count):
  rng = np.random.default_rng(n)
  special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1, -1], np.float32)
  special = np.append(special, -special[4])  # NaN with the other sign
  find = jax.jit(functools.partial(top_k, count=count))
  for _ in range(5):
    numbers = jnp.asarray(rng.choice(special, n))
    found, expected = find(numbers), jax.lax.top_k(numbers, count)
    assert_array_equal(found[1], expected[1])
    # Compared as bits, because -0 equals 0.
    bits = [np.asarray(x[0]).view(np.int32) for x in (found, expected)]
    assert_array_equal(*bits)


def test_top_k_of_several_lists():
  lists = np.random.default_rng(0).normal(size=(3, 2000)).astype(np.float32)
  _, indices = jax.vmap(lambda x: top_k(x, 20))(lists)
  for found, numbers in zip(indices, lists, strict=True):
    assert_array_equal(found, sort_whole(numbers, 20))
