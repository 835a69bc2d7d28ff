"""Tests of the convolutions of the model and of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from maskrcnn_jax.model import layers


def by_the_definition(x, kernel):
  """Convolves with zero padding in float64, one kernel position at a time."""
  side = kernel.shape[0]
  margin = side // 2
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)))
  return sum(
    x[:, i : i + height, j : j + width] @ kernel[i, j]
    for i in range(side)
    for j in range(side)
  )


# The cases are: one band; several full bands; a last band that is not full;
# rows wider than a band; a kernel of 1 position; a kernel of 25 positions.
@pytest.mark.parametrize(
  ('shape', 'side', 'positions'),
  [
    ((2, 5, 7, 3), 3, 2048),
    ((2, 6, 7, 3), 3, 28),
    ((2, 5, 7, 3), 3, 28),
    ((3, 4, 5, 2), 3, 1),
    ((1, 4, 5, 2), 1, 10),
    ((1, 6, 6, 2), 5, 12),
  ],
)
def test_wide_conv_has_the_gradients_of_its_definition(
  monkeypatch, shape, side, positions
):
  monkeypatch.setattr(layers, 'BAND_POSITIONS', positions)
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  kernel = rng.normal(size=(side, side, shape[-1], 4))
  gradient = rng.normal(size=(*shape[:-1], 4))
  y, pull = jax.vjp(layers.wide_conv, jnp.float32(x), jnp.float32(kernel))
  of_x, of_kernel = pull(jnp.float32(gradient))

  # The convolution is linear in both arguments. Element i of a gradient is the
  # product of `gradient` with the result for unit vector i.
  units_x = np.eye(x.size).reshape(-1, *x.shape)
  expected_x = [
    (by_the_definition(unit, kernel) * gradient).sum() for unit in units_x
  ]
  units = np.eye(kernel.size).reshape(-1, *kernel.shape)
  expected_kernel = [
    (by_the_definition(x, unit) * gradient).sum() for unit in units
  ]
  assert_allclose(y, by_the_definition(x, kernel), rtol=1e-5, atol=1e-5)
  assert_allclose(of_x.ravel(), expected_x, rtol=1e-4, atol=1e-4)
  assert_allclose(of_kernel.ravel(), expected_kernel, rtol=1e-4, atol=1e-4)


def test_wide_conv_keeps_the_dtype_of_its_arguments():
  x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  kernel = jnp.ones((3, 3, 2, 2), jnp.bfloat16)
  y, pull = jax.vjp(layers.wide_conv, x, kernel)
  assert {y.dtype, *(g.dtype for g in pull(y))} == {jnp.dtype('bfloat16')}


def test_conv_is_the_same_through_either_path(key, monkeypatch):
  x = jax.random.normal(key, (2, 9, 8, 4))
  conv = layers.Conv(5, 3)
  variables = conv.init(key, x)

  def gradients():
    return jax.grad(
      lambda v, x: jnp.sum(jnp.sin(conv.apply(v, x))), argnums=(0, 1)
    )(variables, x)

  narrow = gradients()
  monkeypatch.setattr(layers, 'WIDE_CHANNELS', 4)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradients(),
    narrow,
  )
