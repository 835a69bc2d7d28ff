"""Compares the results of a kernel with those of plain JAX."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key
import numpy as np

from maskrcnn_jax.doctor.kernel_cases import Case


def difference(case: Case, results: Any, expected: Any) -> str | None:
  """Describes how results differ from those expected by more than is allowed.

  Args:
    case: The operation; it says how much its results may differ.
    results: Tree of arrays, each with a leading axis of images.
    expected: Tree of arrays of the same shapes.

  Returns:
    The difference in words; `None` if it is within the limits of the case.
  """
  for ours, theirs in zip(
    jax.tree.leaves(results), jax.tree.leaves(expected), strict=True
  ):
    if not jnp.issubdtype(theirs.dtype, jnp.floating):
      # Each image by itself: an error in one image must not be lost among many
      # correct images.
      differs = (ours != theirs).reshape(theirs.shape[0], -1)
      share = float(jnp.max(jnp.mean(differs, axis=1)))
      if share > case.may_differ:
        return f'{share:.2%} of the elements of an image differ'
      continue
    ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
    # The difference of two equal infinities would be NaN.
    same = (ours == theirs) | jnp.isnan(ours) & jnp.isnan(theirs)
    largest_gap = jnp.max(jnp.where(same, 0, jnp.abs(ours - theirs)))
    finite = jnp.where(jnp.isfinite(theirs), jnp.abs(theirs), 0)
    gap = float(largest_gap / jnp.maximum(jnp.max(finite), 1e-6))
    # Written so that a NaN counts as a difference.
    if not gap <= case.tolerance:
      return f'the largest difference is {gap:.2g} of the largest number'
  return None


def make_check(
  case: Case, kernels: str
) -> Callable[[Key[Array, '']], str | None]:
  """Returns a function that compares a kernel with plain JAX on random input.

  It takes a random key for the input, and returns the difference in words or
  `None`, as `difference` does. It runs the kernel twice: a kernel computes the
  same in the same order however its programs are scheduled, so if two runs
  differ in a bit, it has a race.

  Args:
    case: The operation.
    kernels: Implementation to check: 'pallas', 'interpret' or 'triton'.
  """
  make_arguments = jax.jit(case.make_arguments)
  run_kernel, run_plain = (
    jax.jit(functools.partial(case.call, kernels=implementation))
    for implementation in (kernels, 'xla')
  )

  def check(key: Key[Array, '']) -> str | None:
    """Compares on the input that a random key gives; see `make_check`."""
    arguments = make_arguments(key)
    results, again = run_kernel(*arguments), run_kernel(*arguments)
    for one, other in zip(
      jax.tree.leaves(results), jax.tree.leaves(again), strict=True
    ):
      if np.asarray(one).tobytes() != np.asarray(other).tobytes():
        return 'the same input gives different results when it comes again'
    return difference(case, results, run_plain(*arguments))

  return check
