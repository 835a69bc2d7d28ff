"""Tests of the contract that every backbone keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.model.backbone import (
  BACKBONES,
  BackboneOptions,
  frozen_prefixes,
  make_backbone,
)
from maskrcnn_jax.model.resnet import ResNet
from maskrcnn_jax.ops.valid_cells import valid_cells


class Model(nn.Module):
  """A model whose only part is a backbone, named as in `MaskRCNN`."""

  name_of_backbone: str
  options: BackboneOptions

  def setup(self):
    self.backbone = make_backbone(self.name_of_backbone, self.options)

  def __call__(self, images):
    features = self.backbone(images)
    return features, self.backbone.last_stage(features[4][:, :4, :4])


def shapes(name, options):
  """Returns the shapes of (features, RoI features) and of the variables."""
  images = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
  return jax.eval_shape(
    Model(name, options).init_with_output, jax.random.key(0), images
  )


def test_a_recipe_can_choose_each_backbone():
  assert BY_NAME['model.backbone'].form.choices == tuple(BACKBONES)


@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('num_stages', [3, 4])
def test_backbone_gives_the_levels_of_its_stages(name, num_stages):
  options = BackboneOptions(num_stages=num_stages, dtype=jnp.bfloat16)
  (features, roi_features), _ = shapes(name, options)
  assert {level: x.shape[:3] for level, x in features.items()} == {
    level: (2, 64 // 2**level, 96 // 2**level)
    for level in range(2, 2 + num_stages)
  }
  assert roi_features.shape[:3] == (2, 2, 2)  # Half of 4 rows and columns.
  assert {x.dtype for x in [*features.values(), roi_features]} == {
    jnp.dtype(jnp.bfloat16)
  }


@pytest.mark.parametrize('name', BACKBONES)
def test_backbone_gives_the_same_features_on_a_larger_canvas(name):
  net = make_backbone(name, BackboneOptions())
  image = jax.random.normal(jax.random.key(0), (1, 32, 64, 3))
  canvas = jnp.pad(image, ((0, 0), (0, 32), (0, 32), (0, 0)))
  rng = np.random.default_rng(0)
  # Random statistics and biases, so that the padding does not stay zero.
  variables = jax.tree.map(
    lambda x: (
      rng.uniform(0.1, 0.5, x.shape).astype(np.float32)
      if len(x.shape) == 1
      else rng.normal(0, 1 / np.prod(x.shape[:-1]) ** 0.5, x.shape)
    ),
    jax.eval_shape(net.init, jax.random.key(0), image),
  )
  shapes = {level: (64 // 2**level, 96 // 2**level) for level in range(1, 6)}
  valid = valid_cells(jnp.array([[32, 64]]), shapes)
  apply = jax.jit(
    net.apply, compiler_options={'xla_backend_optimization_level': 0}
  )
  ours = apply(variables, canvas, valid)
  for level, expected in apply(variables, image).items():
    _, rows, columns, _ = expected.shape
    # Rounding of float32 in up to 50 layers.
    assert_allclose(
      ours[level][:, :rows, :columns],
      expected,
      atol=1e-5 * np.abs(expected).max(),
    )


@pytest.mark.parametrize('name', BACKBONES)
def test_frozen_prefixes_find_every_part_of_a_backbone(name):
  _, variables = shapes(name, BackboneOptions(norm='group'))
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
    jnp.dtype(jnp.float32)
  }
  parts = set(variables['params']['backbone'])
  stages = [f'layer{i}' for i in range(1, 5)]
  stem = parts.difference(stages)
  assert stem
  assert parts.issuperset(stages)
  for freeze_at in range(6):
    frozen = {part for _, part in frozen_prefixes(freeze_at)}
    assert parts & frozen == (
      stem.union(stages[: freeze_at - 1]) if freeze_at else set()
    )


def test_frozen_prefixes_refuses_a_number_of_parts_that_no_backbone_has():
  with pytest.raises(ValueError, match='not 6'):
    frozen_prefixes(6)


def test_make_backbone_passes_every_option_to_the_resnet():
  options = BackboneOptions(
    depth=101,
    width=32,
    groups=2,
    group_width=16,
    norm='group',
    norm_eps=0.5,
    stride_in_1x1=True,
    num_stages=3,
    dtype=jnp.bfloat16,
  )
  net = make_backbone('resnet', options)
  for field, value in options._asdict().items():
    assert getattr(net, field) == value
  assert make_backbone('resnet', BackboneOptions()) == ResNet()


def test_resnet_of_a_model_has_the_weights_of_a_resnet_named_backbone():
  class Direct(nn.Module):
    @nn.compact
    def __call__(self, images):
      return ResNet(depth=18, width=4, name='backbone')(images)

  def weights(model):
    init = jax.jit(
      model.init, compiler_options={'xla_backend_optimization_level': 0}
    )
    return init(jax.random.key(3), jnp.zeros((1, 32, 32, 3)))

  ours = weights(Model('resnet', BackboneOptions(depth=18, width=4)))
  jax.tree.map(assert_array_equal, ours, weights(Direct()))


def test_make_backbone_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="not 'vgg'"):
    make_backbone('vgg', BackboneOptions())


@pytest.mark.parametrize(
  ('option', 'value'),
  [
    ('depth', 101),
    ('width', 32),
    ('groups', 32),
    ('group_width', 8),
    ('stride_in_1x1', True),
  ],
)
def test_make_backbone_refuses_resnet_options_for_other_backbones(
  option, value
):
  with pytest.raises(ValueError, match=rf'^{option} \({value}\) describes'):
    make_backbone('convnext_tiny', BackboneOptions(**{option: value}))
