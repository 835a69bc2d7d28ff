"""Tests of the cases that kernels are checked and timed with."""

import functools

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax import kernel_check

CASES = kernel_check.make_cases(kernel_check.TINY)


def name_of(case):
  return f'{case.name} {case.detail}'


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES, ids=name_of)
def test_kernels_interpreted_agree(case, key):
  assert kernel_check.make_check(case, 'interpret')(key) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    'case', [case for case in CASES if case.define], ids=name_of
)
def test_plain_jax_agrees_with_the_way_of_torchvision(case, key):
  arguments = case.make(key)
  ours, theirs = (
      jax.jit(way)(*arguments)
      for way in (functools.partial(case.call, kernels='xla'), case.define)
  )
  assert kernel_check.difference(case, ours, theirs) is None


def test_difference_says_what_differs():
  case = CASES[0]._replace(may_differ=0.15, tolerance=0.01)
  some = jnp.arange(10)
  assert kernel_check.difference(case, some, some.at[3].set(0)) is None
  assert kernel_check.difference(case, some, some.at[3:5].set(0)) == (
      '20.00% of the elements differ'
  )
  far = jnp.array([jnp.inf, 100.0, -jnp.inf])
  assert kernel_check.difference(case, far, far) is None
  assert kernel_check.difference(case, far.at[1].set(99.5), far) is None
  for wrong in (98.0, jnp.nan, jnp.inf):
    assert 'of the largest number' in kernel_check.difference(
        case, far.at[1].set(wrong), far
    )
