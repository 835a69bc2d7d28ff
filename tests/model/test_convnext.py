"""Tests of ConvNeXt, against its definition written out as loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.model.convnext import Block, ConvNeXt, PatchConv

SMALL = dict(depths=(2, 1, 1, 1), widths=(3, 4, 5, 6))

# Functions that run once on tiny arrays take less time without optimisation.
HASTE = {'xla_backend_optimization_level': 0}


def random_array(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def random_variables(net, *shape):
  """Draws parameters so large that each one changes the results visibly."""
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  leaves, treedef = jax.tree.flatten(
    jax.eval_shape(net.init, jax.random.key(0), x)
  )
  return jax.tree.unflatten(
    treedef,
    [
      random_array(i, *leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
      for i, leaf in enumerate(leaves)
    ],
  )


def apply(net, variables, x, **options):
  return jax.jit(
    lambda variables, x: net.apply(variables, x, **options),
    compiler_options=HASTE,
  )(variables, x)


def slow_layer_norm(x, params):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  x = (x - mean) / np.sqrt(variance + 1e-6)
  return x * params['scale'] + params['bias']


def slow_patch_conv(x, params):
  kernel = np.asarray(params['kernel'], np.float64)
  side = kernel.shape[0]
  y = np.zeros((x.shape[0] // side, x.shape[1] // side, kernel.shape[-1]))
  for i, j in np.ndindex(*y.shape[:2]):
    patch = x[side * i : side * (i + 1), side * j : side * (j + 1)]
    y[i, j] = np.tensordot(patch, kernel, 3) + params['bias']
  return y


def slow_block(x, params):
  """Computes a ConvNeXt block of one image in float64, pixel by pixel."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  kernel = params['dwconv']['kernel'][:, :, 0]
  padded = np.pad(x, ((3, 3), (3, 3), (0, 0)))
  y = np.zeros_like(x)
  for i, j in np.ndindex(*x.shape[:2]):
    window = padded[i : i + 7, j : j + 7]
    y[i, j] = (window * kernel).sum((0, 1)) + params['dwconv']['bias']
  y = slow_layer_norm(y, params['norm'])
  y = y @ params['pwconv1']['kernel'][0, 0] + params['pwconv1']['bias']
  y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))  # GELU
  y = y @ params['pwconv2']['kernel'][0, 0] + params['pwconv2']['bias']
  return x + params['gamma'] * y


def test_parameter_count_of_convnext_tiny():
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(ConvNeXt().init, jax.random.key(0), images)
  assert set(variables) == {'params'}
  sizes = [x.size for x in jax.tree.leaves(variables)]
  # Parameters of a block of c channels: 49 c + c (7x7 convolution), 2 c (norm),
  # 4 c c + 4 c and 4 c c + c (1x1 convolutions), c (layer scale).
  blocks = sum(
    count * (8 * c * c + 58 * c)
    for count, c in zip((3, 3, 9, 3), (96, 192, 384, 768), strict=True)
  )
  stem = 48 * 96 + 96 + 2 * 96
  halvings = sum(2 * c + 4 * c * 2 * c + 2 * c for c in (96, 192, 384))
  out_norms = 2 * (96 + 192 + 384 + 768)
  assert sum(sizes) == blocks + stem + halvings + out_norms
  # torchvision's convnext_tiny has 28,589,128 parameters. They include a layer
  # norm and a linear layer from 768 features to 1000 classes at the end.
  classifier = 2 * 768 + 768 * 1000 + 1000
  assert sum(sizes) == 28_589_128 - classifier + out_norms == 27_821_472


@pytest.mark.parametrize('side', [2, 4])
def test_patch_conv_equals_its_definition(side):
  net = PatchConv(5, side)
  x = random_array(0, 1, 9, 12, 3)  # The ninth row fills no patch.
  variables = random_variables(net, *x.shape)
  expected = slow_patch_conv(x[0], variables['params'])
  assert expected.shape == (8 // side, 12 // side, 5)
  assert_allclose(net.apply(variables, x)[0], expected, atol=1e-5)


def test_block_equals_its_definition():
  x = random_array(0, 1, 5, 9, 4)
  variables = random_variables(Block(), *x.shape)
  expected = slow_block(np.asarray(x[0], np.float64), variables['params'])
  assert np.abs(expected - x[0]).max() > 0.1  # The block does something.
  assert_allclose(apply(Block(), variables, x)[0], expected, atol=1e-5)


def test_convnext_equals_its_definition():
  net = ConvNeXt(**SMALL)
  images = random_array(0, 1, 32, 64, 3)
  variables = random_variables(net, *images.shape)
  features = apply(net, variables, images)

  params = variables['params']
  x = slow_patch_conv(np.asarray(images[0], np.float64), params['stem']['conv'])
  x = slow_layer_norm(x, params['stem']['norm'])
  for level, num_blocks in enumerate(SMALL['depths'], start=2):
    stage = params[f'layer{level - 1}']
    if level > 2:
      x = slow_layer_norm(x, stage['downsample_norm'])
      x = slow_patch_conv(x, stage['downsample_conv'])
    for i in range(num_blocks):
      x = slow_block(x, stage[str(i)])
    expected = slow_layer_norm(x, stage['out_norm'])
    assert_allclose(
      features[level][0], expected, atol=1e-4, err_msg=f'level {level}'
    )


def test_shapes_of_convnext_tiny():
  images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  features, variables = jax.eval_shape(
    ConvNeXt().init_with_output, jax.random.key(0), images
  )
  assert {level: x.shape for level, x in features.items()} == {
    2: (2, 16, 24, 96),
    3: (2, 8, 12, 192),
    4: (2, 4, 6, 384),
    5: (2, 2, 3, 768),
  }
  for i, depth in enumerate((3, 3, 9, 3), start=1):
    stage = variables['params'][f'layer{i}']
    assert {name for name in stage if name.isdigit()} == {
      str(block) for block in range(depth)
    }


def test_last_stage_is_the_fourth_stage_after_three():
  four, three = ConvNeXt(**SMALL), ConvNeXt(num_stages=3, **SMALL)
  images = random_array(0, 1, 64, 64, 3)
  variables = random_variables(four, *images.shape)
  # `out_norm` has its initial values, scale 1 and bias 0. The layer norm at the
  # start of the fourth stage then has the same result with `out_norm` before it
  # (three stages) as without (four stages).
  variables['params']['layer3']['out_norm'] = {
    'scale': jnp.ones(5),
    'bias': jnp.zeros(5),
  }
  expected = apply(four, variables, images)
  features = apply(three, variables, images)
  assert set(features) == {2, 3, 4}
  for level, array in features.items():
    assert_array_equal(array, expected[level])
  last = apply(three, variables, features[4], method='last_stage')
  # The second of two layer norms divides by sqrt(1 + 1e-6) once more.
  assert_allclose(last, expected[5], atol=1e-4)


def test_padding_reaches_no_cell_farther_than_the_kernels():
  net = ConvNeXt(**SMALL)
  images = random_array(0, 1, 32, 64, 3)
  variables = random_variables(net, *images.shape)
  padded = jnp.pad(images, ((0, 0), (0, 0), (0, 32), (0, 0)))
  level, of_padded = (apply(net, variables, x)[2] for x in (images, padded))
  # The 7x7 kernels of the two blocks reach 3 cells each, so padding changes
  # only the last 6 of 16 columns.
  assert_allclose(of_padded[:, :, :10], level[:, :, :10], atol=1e-6)
  assert np.abs(of_padded[:, :, 10] - level[:, :, 10]).max() > 1e-3


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_is_near_float32(dtype):
  # With few channels, their standard deviation can be tiny, and a layer norm
  # divides by it.
  sizes = dict(depths=(1, 1, 1, 1), widths=(32, 32, 32, 32))
  images = random_array(0, 1, 32, 64, 3)
  half = ConvNeXt(dtype=dtype, **sizes)
  variables = random_variables(half, *images.shape)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
    jnp.dtype(jnp.float32)
  }
  expected = apply(ConvNeXt(**sizes), variables, images)
  for level, array in apply(half, variables, images).items():
    assert array.dtype == dtype
    wanted = np.asarray(expected[level])
    assert_allclose(
      np.asarray(array, np.float32), wanted, atol=0.05 * np.abs(wanted).max()
    )


def test_initial_values_have_the_spread_of_the_reference():
  net = ConvNeXt(depths=(1, 1, 1, 1), widths=(8, 16, 16, 32))
  init = jax.jit(net.init, compiler_options=HASTE)
  params = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  block = params['layer4']['0']
  assert_array_equal(block['gamma'], np.full(32, 1e-6, np.float32))
  for kernel in (
    block['dwconv']['kernel'],
    block['pwconv1']['kernel'],
    block['pwconv2']['kernel'],
    params['layer4']['downsample_conv']['kernel'],
  ):
    assert_allclose(np.std(kernel), 0.02, rtol=0.05)
  for part in ('dwconv', 'pwconv1', 'pwconv2', 'norm'):
    assert not block[part]['bias'].any()
  assert (block['norm']['scale'] == 1).all()


def test_gradients_are_finite_and_reach_every_parameter():
  net = ConvNeXt(**SMALL)
  images = random_array(0, 1, 32, 64, 3)
  variables = random_variables(net, *images.shape)

  def loss(variables):
    features = net.apply(variables, images)
    return sum(jnp.sum(jnp.sin(x)) for x in features.values())

  gradients = jax.jit(jax.grad(loss), compiler_options=HASTE)(variables)
  for path, g in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0, path
