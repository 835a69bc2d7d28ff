"""Tests of the whole network: sizes, dtypes, gradients and initial values."""

import math

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose
import pytest

from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.model.mask_rcnn import MaskRCNN

SMALL = dict(
  num_classes=4,
  depth=18,
  width=8,
  fpn_channels=16,
  box_features=32,
  mask_channels=16,
)

# Group norm needs numbers of channels that are multiples of 32.
GROUP = dict(norm='group', width=32, fpn_channels=32, mask_channels=32)

# Functions that run once on tiny arrays take less time without optimisation.
HASTE = {'xla_backend_optimization_level': 0}


def variable_shapes(model):
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), images)


def random_variables(model):
  """Returns random variables of a model.

  This is faster than `init`, which compiles every random draw.
  """
  rng = np.random.default_rng(0)

  def draw(x):
    if len(x.shape) == 1:
      return jnp.asarray(rng.uniform(0.5, 1, x.shape), jnp.float32)
    std = (2 / math.prod(x.shape[:-1])) ** 0.5
    return jnp.asarray(rng.normal(0, std, x.shape), jnp.float32)

  return jax.tree.map(draw, variable_shapes(model))


def count(flat_params):
  return sum(math.prod(x.shape) for x in flat_params.values())


def test_parameter_count_of_r50_fpn():
  params = variable_shapes(MaskRCNN(num_classes=81))['params']
  flat = traverse_util.flatten_dict(params)
  assert set(params) == {'backbone', 'fpn', 'rpn', 'box_head', 'mask_head'}
  assert all(x.dtype == jnp.float32 for x in flat.values())
  # torchvision has 44,401,393 with 91 classes; each class costs 1025 (class)
  # + 4100 (box) + 257 (mask).
  assert count(flat) == 44_401_393 - 10 * (1025 + 4100 + 257) == 44_347_573
  trained = {
    path: x
    for path, x in flat.items()
    if not any(path[: len(p)] == p for p in frozen_prefixes(2))
  }
  # The stem, 7 * 7 * 3 * 64, and layer1 are frozen.
  assert count(trained) == 44_347_573 - 9_408 - 212_992


def test_images_must_be_padded_to_multiples_of_32():
  model = MaskRCNN(**SMALL)
  images = jax.ShapeDtypeStruct((1, 80, 64, 3), jnp.float32)
  with pytest.raises(ValueError, match='pad the images to a multiple of 32'):
    jax.eval_shape(model.init, jax.random.key(0), images)


def test_bfloat16_gives_float32_outputs_near_those_of_float32():
  model = MaskRCNN(**SMALL)
  half = MaskRCNN(**SMALL, dtype=jnp.bfloat16)
  images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
  variables = random_variables(model)
  pyramid, *outputs = jax.jit(model.apply)(variables, images)
  half_pyramid, *half_outputs = jax.jit(half.apply)(variables, images)
  assert {x.dtype for x in half_pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
  assert {x.dtype for x in jax.tree.leaves(half_outputs)} == {
    jnp.dtype(jnp.float32)
  }
  for ours, wanted in zip(
    jax.tree.leaves([half_pyramid, half_outputs]),
    jax.tree.leaves([pyramid, outputs]),
    strict=True,
  ):
    ours, wanted = np.asarray(ours, np.float32), np.asarray(wanted)
    assert_allclose(ours, wanted, atol=0.05 * np.abs(wanted).max() + 1e-6)


@pytest.mark.parametrize(
  'norm', [pytest.param('frozen_batch', marks=pytest.mark.slow), 'group']
)
def test_gradients_are_finite_and_reach_every_parameter(norm):
  sizes = GROUP | dict(norm=norm, box_convs=1 if norm == 'group' else 0)
  model = MaskRCNN(**SMALL | sizes)
  images = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
  variables = random_variables(model)
  pooled = jax.random.normal(jax.random.key(2), (1, 2, 7, 7, 32))
  large = jax.random.normal(jax.random.key(3), (1, 2, 14, 14, 32))

  def loss(params):
    def call(method, x):
      return model.apply({**variables, 'params': params}, x, method=method)

    outputs = (
      call('propose', call('extract', images)),
      call('classify', pooled),
      call('segment', large),
    )
    return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(outputs))

  gradient = jax.jit(jax.grad(loss), compiler_options=HASTE)
  gradients = traverse_util.flatten_dict(gradient(variables['params']))
  for path, g in gradients.items():
    assert np.isfinite(g).all(), path
    assert np.abs(g).max() > 0, path


@pytest.mark.slow
def test_initial_values_have_the_spread_of_nvidias_program():
  model = MaskRCNN(
    num_classes=81, depth=18, width=32, box_features=256, box_convs=1
  )
  images = jnp.zeros((1, 64, 64, 3))
  init = jax.jit(model.init, compiler_options=HASTE)
  params = init(jax.random.key(0), images)['params']
  # kaiming_uniform(a=1): 1 / sqrt(fan_in). kaiming_normal(fan_out):
  # sqrt(2 / fan_out); torch takes 4 * in for the fan-out of the 2x2 deconv.
  expected = {
    'backbone/layer4/1/conv2': 1 / math.sqrt(9 * 256),
    'fpn/inner5': 1 / math.sqrt(256),
    'fpn/layer2': 1 / math.sqrt(9 * 256),
    'rpn/conv': 0.01,
    'rpn/bbox_pred': 0.01,
    'box_head/conv1': 0.01,
    'box_head/fc6': 1 / math.sqrt(7 * 7 * 256),
    'box_head/fc7': 1 / math.sqrt(256),
    'box_head/cls_score': 0.01,
    'box_head/bbox_pred': 0.001,
    'mask_head/mask_fcn1': math.sqrt(2 / (9 * 256)),
    'mask_head/conv5_mask': math.sqrt(2 / (4 * 256)),
    'mask_head/mask_fcn_logits': math.sqrt(2 / 81),
  }
  flat = traverse_util.flatten_dict(params, sep='/')
  for name, std in expected.items():
    kernel = np.asarray(flat[f'{name}/kernel'])
    assert_allclose(kernel.std(), std, rtol=0.05, err_msg=name)
    assert abs(kernel.mean()) < 0.05 * std, name
  assert not any(x.any() for name, x in flat.items() if name.endswith('bias'))
  uniform = np.asarray(flat['box_head/fc7/kernel'])
  assert np.abs(uniform).max() <= math.sqrt(3 / 256)
