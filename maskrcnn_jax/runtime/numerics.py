"""Checks that a device computes correctly.

On some devices, some versions of JAX silently gave wrong numbers or took a
thousand times as long. Each check here is a small program that has shown one of
these faults.
"""

from collections.abc import Callable, Sequence
import time
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

from maskrcnn_jax.array_types import AnyArray

# A scatter-add of many elements to few slots may take SLOWER times as long as
# the gather of the same elements, plus SECONDS. On a GPU, two versions of JAX
# took 450 times as long as other versions.
SLOWER, SECONDS = 60, 0.02

# Convolutions to check: (side of the square kernel, stride, input channels,
# output channels).
CONVOLUTIONS = (
  (7, 2, 3, 64),
  (1, 1, 64, 64),
  (1, 2, 64, 128),
  (3, 1, 64, 64),
  (3, 2, 64, 64),
)


class Check(NamedTuple):
  """A program that shows whether a device has a certain fault."""

  name: str  # of the operations that are checked
  find_fault: Callable[[], str | None]  # describes the fault; None without one
  advice: str  # how a user can avoid the fault


def check_numerics() -> dict[str, str]:
  """Runs all checks on JAX's default device and returns the faults found.

  Returns:
    {name of the check: description of the fault and advice to the user}.
  """
  found = {}
  for check in CHECKS:
    fault = check.find_fault()
    if fault:
      found[check.name] = f'{fault}; {check.advice}'
  return found


def _eager_fault() -> str | None:
  """Checks a square root and a sum that are not jitted.

  Returns:
    A description of the fault; `None` if both results are right.
  """
  # Not jitted, so that JAX compiles each operation as a program of its own.
  root = float(jnp.sqrt(jnp.float32(512)))
  if abs(root - 22.627417) > 1e-4:
    return f'sqrt(512) is {root}'
  twos = np.asarray(jnp.ones(4) + 1)
  if not (twos == 2).all():
    return f'1 + 1 is {twos.tolist()}'
  return None


def _random_fault() -> str | None:
  """Checks that normal random numbers are finite, with mean 0 and deviation 1.

  Returns:
    A description of the fault; `None` without one.
  """
  numbers = np.asarray(jax.random.normal(jax.random.key(0), (10_000,)))
  if not np.isfinite(numbers).all():
    return 'random numbers are not finite'
  # The mean of 10,000 numbers differs from 0 by 0.1 once in 10**23 times.
  if abs(numbers.mean()) > 0.1 or abs(numbers.std() - 1) > 0.1:
    return (
      f'normal numbers have a mean of {numbers.mean():.3g} and a deviation '
      f'of {numbers.std():.3g}'
    )
  return None


def _scatter_fault() -> str | None:
  """Checks that a scatter-add of a million numbers gives right sums, and fast.

  Returns:
    A description of the fault; `None` without one.
  """
  rng = np.random.default_rng(0)
  slots, count = 1_000, 1_000_000
  index = rng.integers(0, slots, count).astype(np.int32)
  # Whole numbers, so that the sums do not depend on their order.
  values = rng.integers(-4, 5, count).astype(np.float32)
  scatter = jax.jit(lambda i, x: jnp.zeros(slots).at[i].add(x))
  gather = jax.jit(lambda i, x: x[i])
  on_device = jnp.asarray(index), jnp.asarray(values)
  expected = np.bincount(index, weights=values, minlength=slots)
  if not (np.asarray(scatter(*on_device)) == expected).all():
    return 'a sum of elements by index is wrong'
  taken, needed = (
    _least_seconds(function, *on_device) for function in (scatter, gather)
  )
  if taken > SLOWER * needed + SECONDS:
    return (
      f'a sum of elements by index takes {taken / needed:.0f} times as long '
      'as reading these elements by index'
    )
  return None


def _least_seconds(function: Callable[..., Any], *arguments: AnyArray) -> float:
  """Returns the shortest of three times of a call, in seconds.

  Args:
    function: A jitted function. A call before these three compiles it.
    *arguments: The arguments of each call.
  """
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(3):
    started = time.monotonic()
    jax.block_until_ready(function(*arguments))
    times.append(time.monotonic() - started)
  return min(times)


def _concatenate_fault() -> str | None:
  """Checks a jitted concatenation of masked, normalised arrays against NumPy.

  Returns:
    A description of the fault; `None` without one.
  """
  rng = np.random.default_rng(0)
  levels = [
    (rng.normal(size=(2, n, 8)).astype(np.float32), rng.random((2, n)) < 0.7)
    for n in (300, 75, 20, 5)
  ]

  def join(
    levels: Sequence[tuple[Float[AnyArray, 'b _ 8'], Bool[AnyArray, 'b _']]],
    xp: types.ModuleType,
  ) -> Float[AnyArray, 'b _ 8']:
    """Normalises the valid rows of each level and concatenates all levels.

    Args:
      levels: Vectors of each level, and whether they are valid.
      xp: `numpy` or `jax.numpy`, which is used for the computation.
    """
    parts = [
      xp.where(
        valid[..., None], x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True)), 0
      )
      for x, valid in levels
    ]
    fine, coarse = (
      xp.concatenate(half, axis=1) for half in (parts[:2], parts[2:])
    )
    return xp.concatenate([fine, coarse], axis=1)

  ours = np.asarray(jax.jit(lambda levels: join(levels, jnp))(levels))
  error = np.abs(ours - join(levels, np)).max()
  if not error < 1e-5:
    return f'joined levels are wrong by {error:.3g}'
  return None


def _convolution_fault() -> str | None:
  """Checks the `CONVOLUTIONS` and their gradients in bfloat16 against float32.

  Returns:
    A description of the first fault; `None` without one.
  """
  rng = np.random.default_rng(0)

  def run(
    x: Float[Array, 'b h w c'],
    kernel: Float[Array, 'side side c channels'],
    stride: int,
  ) -> Float[Array, 'b out_h out_w channels']:
    """Convolves images with a kernel, with 'SAME' padding."""
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=jax.lax.Precision.HIGHEST,
    )

  def with_gradients(
    x: Float[Array, 'b h w c'],
    kernel: Float[Array, 'side side c channels'],
    stride: int,
  ) -> tuple[Float[Array, 'b out_h out_w channels'], Array, Array]:
    """Returns a convolution, and the gradients of its sum by both arguments."""
    y, pull_back = jax.vjp(lambda x, k: run(x, k, stride), x, kernel)
    x_gradient, kernel_gradient = pull_back(jnp.ones_like(y))
    return y, x_gradient, kernel_gradient

  for side, stride, num_in, num_out in CONVOLUTIONS:
    x = rng.random((1, 32, 40, num_in)).astype(np.float32)
    kernel = rng.random((side, side, num_in, num_out)).astype(np.float32)
    compiled = jax.jit(with_gradients, static_argnums=2)
    exact = compiled(x, kernel, stride)
    half = compiled(
      jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), stride
    )
    for part, ours, theirs in zip(
      ('', ', gradient of its input', ', gradient of its kernel'),
      half,
      exact,
      strict=True,
    ):
      theirs = np.asarray(theirs)
      error = np.abs(np.asarray(ours, np.float32) - theirs).max()
      error /= np.abs(theirs).max()
      # All numbers are positive, so no sum loses precision by cancellation.
      if not error < 0.02:
        return (
          f'a {side}x{side} convolution of stride {stride} in bfloat16'
          f'{part} is wrong by {error:.2g} of its largest number'
        )
  return None


# Name of the check of half-precision convolutions, which does not matter to a
# training in float32.
CONVOLUTIONS_CHECK = 'convolutions'

OTHER_VERSION = 'take another version of jax (setup.cfg has the range)'

CHECKS = (
  Check('single operations', _eager_fault, OTHER_VERSION),
  Check('random numbers', _random_fault, OTHER_VERSION),
  Check('sums by index', _scatter_fault, OTHER_VERSION),
  Check('joined arrays', _concatenate_fault, OTHER_VERSION),
  Check(
    CONVOLUTIONS_CHECK,
    _convolution_fault,
    'train with --config.precision=fp32, or ' + OTHER_VERSION,
  ),
)
