"""Whether a device computes what it should.

Some versions of JAX gave wrong numbers, or took a thousand times as long, on
some devices, and said nothing. Each check here is a small program that such a
fault was seen in.
"""

from collections.abc import Callable
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A contended scatter-add may take this many times as long as the gather of the
# same elements, and this many seconds more. Two versions took 450 times as long
# as others on a GPU.
SLOWER, SECONDS = 60, 0.02

# Of convolutions: (rows and columns of the kernel, stride, channels in, out).
CONVOLUTIONS = (
  (7, 2, 3, 64),
  (1, 1, 64, 64),
  (1, 2, 64, 128),
  (3, 1, 64, 64),
  (3, 2, 64, 64),
)


class Check(NamedTuple):
  """Something that a device can get wrong."""

  name: str
  find_fault: Callable[[], str | None]  # a sentence, or None where all is well
  advice: str


def check_numerics() -> dict[str, str]:
  """Returns what is wrong on JAX's default device: {name: what, and advice}."""
  found = {}
  for check in CHECKS:
    fault = check.find_fault()
    if fault:
      found[check.name] = f'{fault}; {check.advice}'
  return found


def _eager_fault():
  # Not jitted: each is a program of its own.
  root = float(jnp.sqrt(jnp.float32(512)))
  if abs(root - 22.627417) > 1e-4:
    return f'sqrt(512) is {root}'
  twos = np.asarray(jnp.ones(4) + 1)
  if not (twos == 2).all():
    return f'1 + 1 is {twos.tolist()}'
  return None


def _random_fault():
  numbers = np.asarray(jax.random.normal(jax.random.key(0), (10_000,)))
  if not np.isfinite(numbers).all():
    return 'random numbers are not finite'
  # The mean of so many is this far from 0 once in 10**23 times.
  if abs(numbers.mean()) > 0.1 or abs(numbers.std() - 1) > 0.1:
    return (
      f'normal numbers have a mean of {numbers.mean():.3g} and a deviation '
      f'of {numbers.std():.3g}'
    )
  return None


def _scatter_fault():
  rng = np.random.default_rng(0)
  slots, count = 1_000, 1_000_000
  index = rng.integers(0, slots, count).astype(np.int32)
  # Whole numbers, so that the order of the sums does not matter.
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
      'as taking them'
    )
  return None


def _least_seconds(function, *arguments):
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(3):
    started = time.monotonic()
    jax.block_until_ready(function(*arguments))
    times.append(time.monotonic() - started)
  return min(times)


def _concatenate_fault():
  rng = np.random.default_rng(0)
  levels = [
    (rng.normal(size=(2, n, 8)).astype(np.float32), rng.random((2, n)) < 0.7)
    for n in (300, 75, 20, 5)
  ]

  def join(levels, xp):
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


def _convolution_fault():
  rng = np.random.default_rng(0)

  def run(x, kernel, stride):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=jax.lax.Precision.HIGHEST,
    )

  def with_gradients(x, kernel, stride):
    y, pull_back = jax.vjp(lambda x, k: run(x, k, stride), x, kernel)
    return y, *pull_back(jnp.ones_like(y))

  for side, stride, num_in, num_out in CONVOLUTIONS:
    x = rng.random((1, 32, 40, num_in)).astype(np.float32)
    kernel = rng.random((side, side, num_in, num_out)).astype(np.float32)
    compiled = jax.jit(with_gradients, static_argnums=2)
    exact = compiled(x, kernel, stride)
    half = compiled(
      jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), stride
    )
    for what, ours, theirs in zip(
      ('', ', gradient of its input', ', gradient of its kernel'),
      half,
      exact,
      strict=True,
    ):
      theirs = np.asarray(theirs)
      error = np.abs(np.asarray(ours, np.float32) - theirs).max()
      error /= np.abs(theirs).max()
      # All numbers are positive: nothing cancels.
      if not error < 0.02:
        return (
          f'a {side}x{side} convolution of stride {stride} in bfloat16'
          f'{what} is wrong by {error:.2g} of its largest number'
        )
  return None


# Of the check that concerns half precision alone.
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
