"""Tests of the convolutions of the model and of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.model import convolutions, layers
from maskrcnn_jax.model.resnet import Stage
from maskrcnn_jax.rcnn import Rcnn


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
# two bands that are filled with no zeros, because they are equally high; rows
# wider than a band; a kernel of 1 position; a kernel of 25 positions.
@pytest.mark.parametrize(
  ('shape', 'side', 'positions'),
  [
    ((2, 5, 7, 3), 3, 2048),
    ((2, 6, 7, 3), 3, 28),
    ((2, 5, 7, 3), 3, 28),
    ((2, 6, 7, 3), 3, 56),
    ((3, 4, 5, 2), 3, 1),
    ((1, 4, 5, 2), 1, 10),
    ((1, 6, 6, 2), 5, 12),
  ],
)
def test_wide_conv_has_the_gradients_of_its_definition(
  monkeypatch, shape, side, positions
):
  monkeypatch.setattr(convolutions, 'BAND_POSITIONS', positions)
  monkeypatch.setattr(convolutions, 'WINOGRAD_POSITIONS', 1)
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  kernel = rng.normal(size=(side, side, shape[-1], 4))
  gradient = rng.normal(size=(*shape[:-1], 4))
  y, pull = jax.vjp(convolutions.wide_conv, jnp.float32(x), jnp.float32(kernel))
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


# The cases are: one band; bands that are filled with rows; an odd height and
# width, so that the last tiles are not full; rows wider than a band.
@pytest.mark.parametrize(
  ('shape', 'positions'),
  [
    ((2, 6, 4, 3), 4096),
    ((2, 10, 4, 3), 40),
    ((1, 7, 5, 3), 4096),
    ((3, 5, 6, 2), 1),
  ],
)
def test_winograd_equals_its_definition(monkeypatch, shape, positions):
  monkeypatch.setattr(convolutions, 'WINOGRAD_BAND', positions)
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  kernel = rng.normal(size=(3, 3, shape[-1], 4))
  y = jax.jit(convolutions.winograd)(jnp.float32(x), jnp.float32(kernel))
  # Sums of 16 products of sums of 16 numbers of about 1.
  assert_allclose(y, by_the_definition(x, kernel), rtol=0, atol=2e-5)


# The narrower operand of the gradient of the kernel is the input, the gradient
# of the output, or neither.
@pytest.mark.parametrize('shape', [(7, 3), (2, 5, 4, 6), (1, 9, 4)])
def test_pointwise_conv_has_the_gradients_of_its_definition(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  kernel = rng.normal(size=(shape[-1], 4))
  gradient = rng.normal(size=(*shape[:-1], 4))
  y, pull = jax.vjp(
    convolutions.pointwise_conv, jnp.float32(x), jnp.float32(kernel)
  )
  of_x, of_kernel = pull(jnp.float32(gradient))
  assert_allclose(y, x @ kernel, rtol=1e-5, atol=1e-5)
  assert_allclose(of_x, gradient @ kernel.T, rtol=1e-5, atol=1e-5)
  expected = x.reshape(-1, shape[-1]).T @ gradient.reshape(-1, 4)
  assert_allclose(of_kernel, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('function', 'shape'),
  [
    (convolutions.wide_conv, (3, 3, 2, 2)),
    (convolutions.pointwise_conv, (2, 2)),
    (convolutions.pointwise_conv, (2, 1)),
  ],
)
def test_convolutions_keep_the_dtype_of_their_arguments(function, shape):
  x = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
  y, pull = jax.vjp(function, x, jnp.ones(shape, jnp.bfloat16))
  assert {y.dtype, *(g.dtype for g in pull(y))} == {jnp.dtype('bfloat16')}


def use_plain_convolutions(monkeypatch):
  """Lets the layers use XLA's convolution and its own gradients everywhere."""
  monkeypatch.setattr(layers, 'wide_conv', convolutions.convolve)
  monkeypatch.setattr(
    layers,
    'pointwise_conv',
    lambda x, kernel: convolutions.convolve(x, kernel[None, None]),
  )


def assert_same_gradients(found, expected):
  """Checks that gradients differ by the rounding of float32 only.

  Sums of up to 10,000 terms are added in another order, and the differences
  pass through several layers. The largest element of an array is the scale of
  its terms.
  """
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    assert np.abs(b).max() > 0
    assert_allclose(a, b, rtol=0, atol=5e-5 * np.abs(b).max())


def slow(options):
  return pytest.param(options, marks=pytest.mark.slow)


# A bottleneck as in ResNet, in the dilated stage of DC5, with the stride in the
# 1x1 convolution and as in ResNeXt; a plain block; group norm.
@pytest.mark.parametrize(
  'options',
  [
    {},
    slow({'stride': 1, 'dilation': 2}),
    slow({'stride_in_1x1': True}),
    slow({'groups': 2, 'group_width': 32}),
    slow({'bottleneck': False}),
    slow({'norm': 'group'}),
  ],
)
def test_a_stage_has_the_gradients_of_plain_convolutions(
  key, monkeypatch, options
):
  monkeypatch.setattr(layers, 'WIDE_CHANNELS', 32)
  monkeypatch.setattr(convolutions, 'BAND_POSITIONS', 30)
  monkeypatch.setattr(convolutions, 'WINOGRAD_POSITIONS', 1)
  usual = {
    'bottleneck': True,
    'groups': 1,
    'group_width': 64,
    'stride': 2,
    'dilation': 1,
    'stride_in_1x1': False,
    'norm': 'frozen_batch',
  }
  stage = Stage(
    num_blocks=1,
    channels=32,
    norm_eps=1e-5,
    dtype=jnp.float32,
    **(usual | options),
  )
  x = jax.random.normal(key, (2, 10, 12, 64))
  variables = stage.init(key, x)
  constants = variables.get('constants', {})

  def gradients():
    return jax.jit(
      jax.value_and_grad(
        lambda params, x: jnp.sum(
          jnp.sin(stage.apply({'params': params, 'constants': constants}, x))
        ),
        argnums=(0, 1),
      )
    )(variables['params'], x)

  found = gradients()
  use_plain_convolutions(monkeypatch)
  assert_same_gradients(found, gradients())


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('r50_fpn', {}),
    ('r50_fpn', {'stride_in_1x1': True}),
    ('r50_fpn_gn', {}),
    ('x101_32x8d_fpn', {'depth': 50}),
    ('r50_dc5', {}),
    ('r50_c4', {}),
  ],
)
def test_recipes_have_the_losses_and_gradients_of_plain_convolutions(
  key, monkeypatch, name, options
):
  monkeypatch.setattr(layers, 'WIDE_CHANNELS', 32)
  monkeypatch.setattr(convolutions, 'WINOGRAD_POSITIONS', 256)
  config = read_recipe(name).config
  config.model.update(options)
  tiny.narrow(config, 32)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
  batch = made_up_batch(
    image_size=(64, 64),
    batch_size=2,
    num_objects=3,
    max_objects=8,
    num_classes=4,
  )
  inputs = rcnn.prepare(batch, padded_size=(64, 64))
  variables = rcnn.init(key)
  keys = jax.random.split(key, (2, 2))
  samples = jax.jit(
    lambda: rcnn.sample(
      rcnn.rate_anchors(
        variables,
        rcnn.extract(variables, inputs.images, inputs.image_sizes),
        inputs.image_sizes,
      ),
      inputs,
      keys,
    )
  )()

  def gradients():
    def total(params):
      losses = rcnn.compute_losses(
        variables | {'params': params},
        inputs,
        keys,
        limits=GroundTruthLimits(8, 512, 64, 1),
        samples=samples,
      )
      return sum(jax.tree.leaves(losses)), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))(variables['params'])

  found = gradients()
  use_plain_convolutions(monkeypatch)
  assert_same_gradients(found, gradients())


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
