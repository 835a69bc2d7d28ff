"""Tests of the ResNet and of its convolutions, norms and blocks."""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from maskrcnn_jax.model import layers
from maskrcnn_jax.model.resnet import Block, ResNet


def random_array(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def slow_conv(x, kernel, stride):
  """Convolves one image in float64, padded with k // 2 zeros on each side.

  If the kernel has fewer input channels than the image, the convolution is
  grouped: each group of input channels gives one group of output channels.
  """
  size = kernel.shape[0]
  groups = x.shape[-1] // kernel.shape[2]
  if groups > 1:
    parts = zip(
      np.split(np.asarray(x), groups, axis=-1),
      np.split(np.asarray(kernel), groups, axis=-1),
      strict=True,
    )
    return np.concatenate([slow_conv(*part, stride) for part in parts], axis=-1)
  pad = size // 2
  x = np.pad(np.asarray(x, np.float64), ((pad, pad), (pad, pad), (0, 0)))
  rows = range(0, x.shape[0] - size + 1, stride)
  columns = range(0, x.shape[1] - size + 1, stride)
  return np.array(
    [
      [np.tensordot(x[i : i + size, j : j + size], kernel, 3) for j in columns]
      for i in rows
    ]
  )


@pytest.mark.parametrize('kernel_size', [1, 3, 7])
@pytest.mark.parametrize('stride', [1, 2])
def test_conv_equals_its_definition(kernel_size, stride):
  x = random_array(0, 1, 9, 8, 3)
  kernel = random_array(1, kernel_size, kernel_size, 3, 5)
  bias = random_array(2, 5)
  conv = layers.Conv(5, kernel_size, stride)
  y = conv.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = slow_conv(x[0], kernel, stride) + bias
  assert_allclose(y[0], expected, atol=2e-5)


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('groups', [2, 6])
def test_grouped_conv_equals_its_definition(kernel_size, groups):
  x = random_array(0, 1, 9, 8, 12)
  kernel = random_array(1, kernel_size, kernel_size, 12 // groups, 18)
  conv = layers.Conv(18, kernel_size, 2, groups, use_bias=False)
  y = conv.apply({'params': {'kernel': kernel}}, x)
  assert_allclose(y[0], slow_conv(x[0], kernel, 2), atol=2e-5)


def spread(kernel, dilation):
  """Returns the kernel with `dilation - 1` zeros between its cells."""
  side = dilation * (kernel.shape[0] - 1) + 1
  wide = np.zeros((side, side, *kernel.shape[2:]), np.float32)
  wide[::dilation, ::dilation] = kernel
  return wide


@pytest.mark.parametrize('channels', [3, layers.WIDE_CHANNELS])
def test_dilated_conv_is_a_conv_with_zeros_in_its_kernel(channels):
  x = random_array(0, 1, 9, 8, channels)
  kernel = random_array(1, 3, 3, channels, 5) / channels**0.5
  conv = layers.Conv(5, 3, dilation=2, use_bias=False)
  y = conv.apply({'params': {'kernel': kernel}}, x)
  assert_allclose(y[0], slow_conv(x[0], spread(kernel, 2), 1), atol=2e-5)


def test_grouped_conv_by_hand():
  # Four channels in two groups. The first group gives channel 0, the sum of 1
  # and 2. The second gives channel 1, ten times the sum of 3 and 4.
  x = jnp.array([1.0, 2, 3, 4]).reshape(1, 1, 1, 4)
  kernel = jnp.array([[1.0, 10], [1, 10]]).reshape(1, 1, 2, 2)
  conv = layers.Conv(2, groups=2, use_bias=False)
  y = conv.apply({'params': {'kernel': kernel}}, x)
  assert y.ravel().tolist() == [3, 70]


@pytest.mark.parametrize('stride', [1, 2])
def test_conv_1x1_has_value_and_gradient_of_a_convolution(stride):
  x, kernel = random_array(0, 2, 7, 6, 3), random_array(1, 1, 1, 3, 5)
  conv = layers.Conv(5, 1, stride, use_bias=False)

  def ours(kernel, x):
    return conv.apply({'params': {'kernel': kernel}}, x)

  def convolution(kernel, x):
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  y, ours_vjp = jax.vjp(ours, kernel, x)
  expected, convolution_vjp = jax.vjp(convolution, kernel, x)
  assert_allclose(y, expected, atol=1e-5)
  cotangent = random_array(2, *y.shape)
  for gradient, wanted in zip(
    ours_vjp(cotangent), convolution_vjp(cotangent), strict=True
  ):
    assert_allclose(gradient, wanted, atol=1e-4)


def test_deconv_equals_its_definition():
  x = random_array(0, 2, 3, 4, 5)
  kernel, bias = random_array(1, 2, 2, 5, 6), random_array(2, 6)
  deconv = layers.Deconv2x2(6)
  y = deconv.apply({'params': {'kernel': kernel, 'bias': bias}}, x)
  expected = np.zeros((2, 6, 8, 6))
  for n, i, j, a, b in np.ndindex(2, 3, 4, 2, 2):
    expected[n, 2 * i + a, 2 * j + b] = x[n, i, j] @ kernel[a, b] + bias
  assert_allclose(y, expected, atol=1e-5)


def test_frozen_batch_norm_by_hand():
  constants = {
    'scale': np.array([2, 3], np.float32),
    'bias': np.array([10, 20], np.float32),
    'mean': np.array([1, -1], np.float32),
    'var': np.array([3, 8], np.float32),
  }
  norm = layers.FrozenBatchNorm(eps=1.0)
  y = norm.apply({'constants': constants}, jnp.array([[3.0, 5.0]]))
  # (3 - 1) / sqrt(3 + 1) * 2 + 10 = 12; (5 + 1) / sqrt(8 + 1) * 3 + 20 = 26.
  assert_allclose(y, [[12, 26]], rtol=1e-6)


def test_frozen_batch_norm_has_no_params_and_starts_as_identity():
  x = random_array(0, 1, 2, 2, 4)
  norm = layers.FrozenBatchNorm(eps=0.0)
  variables = norm.init(jax.random.key(0), x)
  assert set(variables) == {'constants'}
  assert_allclose(norm.apply(variables, x), x, rtol=1e-6)


@pytest.mark.parametrize('size, stride', [(1, 2), (3, 1)])
def test_a_norm_in_the_kernel_is_the_norm_of_the_output(size, stride):
  class Layer(nn.Module):
    in_kernel: bool

    @nn.compact
    def __call__(self, x):
      conv = layers.Conv(6, size, stride, use_bias=False, name='conv')
      norm = layers.FrozenBatchNorm(eps=1e-5, name='norm')
      if self.in_kernel:
        return layers.convolve_and_normalize(conv, norm, x)
      return norm(conv(x))

  x = random_array(0, 2, 5, 7, 4)
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda v: rng.uniform(0.5, 2, v.shape).astype(np.float32),
    dict(Layer(False).init(jax.random.key(0), x)),
  )
  weights = random_array(2, 2, -(-5 // stride), -(-7 // stride), 6)

  def results(in_kernel):
    def loss(params, x):
      y = Layer(in_kernel).apply(variables | {'params': params}, x)
      return jnp.sum(y * weights), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables['params'], x)

  for found, expected in zip(
    jax.tree.leaves(results(True)), jax.tree.leaves(results(False)), strict=True
  ):
    # The products are rounded in another order.
    scale = np.abs(expected).max()
    assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)


def test_make_norm_refuses_an_unknown_norm():
  with pytest.raises(ValueError, match="not 'layer'"):
    layers.make_norm('bn1', norm='layer', eps=0.0, dtype=jnp.float32)


def test_group_norm_standardises_groups_of_two_channels():
  x = random_array(0, 1, 3, 3, 64)
  norm = layers.make_group_norm('norm', dtype=jnp.float32)
  y = norm.apply(norm.init(jax.random.key(0), x), x)
  groups = x.reshape(9, 32, 2)
  mean, var = groups.mean((0, 2)), groups.var((0, 2))
  expected = (groups - mean[:, None]) / np.sqrt(var[:, None] + 1e-5)
  assert_allclose(y.reshape(9, 32, 2), expected, atol=1e-5)


def test_group_norm_leaves_padding_out_of_its_statistics():
  x = random_array(0, 2, 6, 8, 64) * 3 + 1
  valid = np.zeros((2, 6, 8, 1), bool)
  valid[0, :4, :5] = valid[1, :6, :2] = True
  norm = layers.make_group_norm('norm', dtype=jnp.float32)
  variables = norm.init(jax.random.key(0), x)
  y = norm.apply(variables, x, jnp.asarray(valid))
  for ours, image, cells in zip(y, x, [(4, 5), (6, 2)], strict=True):
    alone = image[None, : cells[0], : cells[1]]
    assert_allclose(
      ours[: cells[0], : cells[1]], norm.apply(variables, alone)[0], atol=1e-5
    )
  # An image without a size, which fills a batch up, gives finite numbers.
  nothing = jnp.zeros((2, 6, 8, 1), bool)
  assert jnp.isfinite(norm.apply(variables, x, nothing)).all()


@pytest.mark.parametrize('masked', [False, True])
def test_group_norm_has_the_results_and_gradients_of_flax(masked):
  x = jnp.asarray(random_array(0, 2, 5, 6, 64) + 0.5)
  valid = jnp.arange(6)[:, None] < 4 if masked else jnp.ones((6, 1), bool)
  valid = jnp.broadcast_to(valid, (2, 5, 6, 1))
  probe = random_array(1, *x.shape)
  parameters = {
    'scale': jnp.asarray(random_array(2, 64)),
    'bias': jnp.asarray(random_array(3, 64)),
  }

  def ours(parameters, x):
    norm = layers.make_group_norm(None, dtype=jnp.float32)
    cells = valid if masked else None
    return norm.apply({'params': parameters}, x, cells)

  def theirs(parameters, x):
    norm = nn.GroupNorm(num_groups=32, epsilon=1e-5)
    mask = jnp.broadcast_to(valid, x.shape)
    return norm.apply({'params': parameters}, x, mask=mask)

  results = []
  for function in (ours, theirs):
    y, pull_back = jax.vjp(function, parameters, x)
    results.append((y, pull_back(jnp.asarray(probe))))
  jax.tree.map(lambda a, b: assert_allclose(a, b, atol=2e-5), *results)


def test_group_norm_refuses_channels_that_its_groups_do_not_divide():
  norm = layers.make_group_norm(None, dtype=jnp.float32)
  with pytest.raises(ValueError, match='48 channels; choose a multiple of 32'):
    norm.init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))


def test_max_pool_ignores_the_border():
  x = -np.arange(1, 17, dtype=np.float32).reshape(1, 4, 4, 1)
  y = layers.max_pool_3x3(jnp.asarray(x))
  # Windows start at -1 and 1. All numbers are negative, so a border of zeros
  # would change the maxima.
  assert_allclose(y[0, :, :, 0], [[-1, -2], [-5, -6]])


def test_upsample_repeats_rows_and_columns():
  y = layers.upsample_2x(jnp.array([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None])
  assert_allclose(
    y[0, :, :, 0],
    [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]],
  )


def randomise(variables):
  """Replaces all variables by random ones; those with one axis are positive."""
  leaves, treedef = jax.tree.flatten(variables)
  leaves = [
    jnp.abs(random_array(i, *leaf.shape)) * 0.3 + 0.2
    if leaf.ndim == 1
    else random_array(i, *leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
    for i, leaf in enumerate(leaves)
  ]
  return jax.tree.unflatten(treedef, leaves)


def slow_block(x, params, constants, *, eps, strides):
  """Computes a residual block of one image with `slow_conv`.

  Args:
    x: Input, [height, width, channels].
    params: Parameters of the block.
    constants: Scales, biases, means and variances of its frozen batch norms.
    eps: Number added to the variances.
    strides: {name of a convolution: its stride}; other strides are 1.
  """

  def step(x, conv, norm):
    y = slow_conv(x, params[conv]['kernel'], strides.get(conv, 1))
    c = constants[norm]
    y = (y - c['mean']) / np.sqrt(c['var'] + eps)
    return y * c['scale'] + c['bias']

  y = x
  names = sorted(name for name in params if name.startswith('conv'))
  for name in names:
    y = step(y, name, name.replace('conv', 'bn'))
    y = np.maximum(y, 0) if name != names[-1] else y
  if 'downsample_conv' in params:
    x = step(x, 'downsample_conv', 'downsample_bn')
  return np.maximum(x + y, 0)


@pytest.mark.parametrize(
  'bottleneck, groups, stride_in_1x1, strides',
  [
    (True, 1, False, {'conv2': 2, 'downsample_conv': 2}),
    (True, 1, True, {'conv1': 2, 'downsample_conv': 2}),
    (True, 4, False, {'conv2': 2, 'downsample_conv': 2}),
    (False, 1, False, {'conv1': 2, 'downsample_conv': 2}),
    (False, 1, True, {'conv1': 2, 'downsample_conv': 2}),
    (True, 1, False, {}),
  ],
)
def test_block_equals_its_definition(
  bottleneck, groups, stride_in_1x1, strides
):
  block = Block(
    channels=4,
    bottleneck=bottleneck,
    groups=groups,
    group_width=64 if groups == 1 else 32,
    stride=2 if strides else 1,
    dilation=1,
    stride_in_1x1=stride_in_1x1,
    norm='frozen_batch',
    norm_eps=0.1,
    dtype=jnp.float32,
  )
  x = random_array(0, 1, 6, 8, 3)
  shapes = jax.eval_shape(block.init, jax.random.key(0), x)
  variables = randomise(shapes)
  y = block.apply(variables, x)
  expected = slow_block(
    x[0],
    variables['params'],
    variables['constants'],
    eps=0.1,
    strides=strides,
  )
  assert_allclose(y[0], expected, atol=1e-5)


def test_block_that_keeps_the_shape_has_no_downsampling_convolution():
  block = Block(
    channels=4,
    bottleneck=False,
    groups=1,
    group_width=64,
    stride=1,
    dilation=1,
    stride_in_1x1=False,
    norm='frozen_batch',
    norm_eps=0.0,
    dtype=jnp.float32,
  )
  x = random_array(0, 1, 4, 4, 4)
  shapes = jax.eval_shape(block.init, jax.random.key(0), x)
  assert 'downsample_conv' not in shapes['params']


@pytest.mark.parametrize(
  ('groups', 'group_width', 'count'),
  # The published counts include a classifier of 2048 * 1000 + 1000 parameters.
  # They also include two parameters of the norm for each channel, while the
  # frozen batch norm here has four constants for each channel.
  [(32, 8, 88_791_336), (64, 4, 83_455_272)],
)
def test_parameter_count_of_resnext101(groups, group_width, count):
  net = ResNet(depth=101, groups=groups, group_width=group_width)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  sizes = [x.size for x in jax.tree.leaves(variables['params'])]
  norms = [x.size for x in jax.tree.leaves(variables['constants'])]
  assert sum(sizes) + sum(norms) // 2 == count - 2_049_000


@pytest.mark.parametrize(
  'depth, blocks, channels',
  [
    (18, [2, 2, 2, 2], [8, 16, 32, 64]),
    (34, [3, 4, 6, 3], [8, 16, 32, 64]),
    (50, [3, 4, 6, 3], [32, 64, 128, 256]),
    (101, [3, 4, 23, 3], [32, 64, 128, 256]),
  ],
)
def test_resnet_shapes(depth, blocks, channels):
  net = ResNet(depth=depth, width=8)
  images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  features, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), images
  )
  assert {level: x.shape for level, x in features.items()} == {
    level: (2, 64 // 2**level, 96 // 2**level, channels[level - 2])
    for level in (2, 3, 4, 5)
  }
  for i, count in enumerate(blocks):
    stage = variables['params'][f'layer{i + 1}']
    assert set(stage) == {str(block) for block in range(count)}


def test_resnet_equals_its_definition():
  net = ResNet(depth=18, width=4, norm_eps=0.1)
  images = random_array(0, 1, 32, 32, 3)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)
  variables = randomise(shapes)
  features = net.apply(variables, images)

  params, constants = variables['params'], variables['constants']
  x = slow_conv(images[0], params['conv1']['kernel'], 2)
  c = constants['bn1']
  x = (x - c['mean']) / np.sqrt(c['var'] + 0.1) * c['scale'] + c['bias']
  # Nothing is negative after the ReLU, so padding with zeros has the same
  # maxima as padding with -inf.
  x = np.pad(np.maximum(x, 0), ((1, 1), (1, 1), (0, 0)))
  x = np.array(
    [
      [x[i : i + 3, j : j + 3].max((0, 1)) for j in range(0, 16, 2)]
      for i in range(0, 16, 2)
    ]
  )
  for stage in (1, 2, 3, 4):
    for i in ('0', '1'):
      first = {'conv1': 2, 'downsample_conv': 2}
      x = slow_block(
        x,
        params[f'layer{stage}'][i],
        constants[f'layer{stage}'][i],
        eps=0.1,
        strides=first if stage > 1 and i == '0' else {},
      )
    expected = x
    scale = np.abs(expected).max()
    assert_allclose(features[stage + 1][0], expected, atol=1e-5 * scale)


def test_the_dilated_last_stage_equals_its_definition():
  net = ResNet(depth=50, width=4, dilate_last=True, norm_eps=0.1)
  images = random_array(0, 1, 64, 64, 3)
  variables = randomise(jax.eval_shape(net.init, jax.random.key(0), images))
  features = net.apply(variables, images)
  assert sorted(features) == [2, 3, 4]
  three_stages = ResNet(depth=50, width=4, num_stages=3, norm_eps=0.1)
  x = np.asarray(three_stages.apply(variables, images)[4][0], np.float64)
  for i in ('0', '1', '2'):
    params = jax.tree.map(np.array, variables['params']['layer4'][i])
    params['conv2']['kernel'] = spread(params['conv2']['kernel'], 2)
    x = slow_block(
      x, params, variables['constants']['layer4'][i], eps=0.1, strides={}
    )
  assert_allclose(features[4][0], x, atol=1e-5 * np.abs(x).max())


def test_a_resnet_without_bottlenecks_has_no_dilated_stage():
  net = ResNet(depth=18, dilate_last=True)
  with pytest.raises(ValueError, match='no bottlenecks'):
    net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_resnet_stride_placement_changes_no_shape():
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  on_3x3, on_1x1 = (
    jax.eval_shape(
      ResNet(width=8, stride_in_1x1=stride_in_1x1).init_with_output,
      jax.random.key(0),
      images,
    )
    for stride_in_1x1 in (False, True)
  )
  assert on_3x3 == on_1x1


def test_resnet_refuses_an_unknown_depth():
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  with pytest.raises(ValueError, match='not 20'):
    jax.eval_shape(ResNet(depth=20).init, jax.random.key(0), images)


def test_resnet_with_group_norm_has_all_of_it_in_params():
  net = ResNet(depth=18, width=32, norm='group')
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(net.init, jax.random.key(0), images)
  assert set(variables) == {'params'}
  assert set(variables['params']['bn1']) == {'scale', 'bias'}
  assert set(variables['params']['conv1']) == {'kernel'}
