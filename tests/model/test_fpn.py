"""Tests of the feature pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.model.fpn import Fpn


def make_features(size, channels=(4, 8, 16, 32)):
  """Returns the shapes of feature maps of levels 2 to 5.

  Args:
    size: (height, width) of the image, in pixels.
    channels: Number of channels of each level.
  """
  return {
    level: jax.ShapeDtypeStruct(
      (1, size[0] // 2**level, size[1] // 2**level, c), jnp.float32
    )
    for level, c in zip((2, 3, 4, 5), channels, strict=True)
  }


def identity_variables():
  """Returns variables of one channel whose convolutions change nothing."""
  center = np.zeros((3, 3, 1, 1), np.float32)
  center[1, 1] = 1
  zero = np.zeros(1, np.float32)
  params = {}
  for level in (2, 3, 4, 5):
    params[f'inner{level}'] = {
      'kernel': np.ones((1, 1, 1, 1), np.float32),
      'bias': zero,
    }
    params[f'layer{level}'] = {'kernel': center, 'bias': zero}
  return {'params': params}


def test_fpn_shapes():
  pyramid = jax.eval_shape(
    lambda x: Fpn(channels=8).init_with_output(jax.random.key(0), x)[0],
    make_features((96, 160)),
  )
  # An image of 96x160 pixels has 3x5 cells at level 5. Level 6 keeps every
  # other row and column of them.
  assert {level: x.shape for level, x in pyramid.items()} == {
    2: (1, 24, 40, 8),
    3: (1, 12, 20, 8),
    4: (1, 6, 10, 8),
    5: (1, 3, 5, 8),
    6: (1, 2, 3, 8),
  }
  assert list(pyramid) == [2, 3, 4, 5, 6]


def test_fpn_adds_the_coarser_level_to_the_four_cells_it_covers():
  features = {
    5: jnp.array([[1000.0, 2000.0]]).reshape(1, 1, 2, 1),
    4: 100.0 * jnp.arange(8.0).reshape(1, 2, 4, 1),
    3: jnp.zeros((1, 4, 8, 1)),
    2: jnp.zeros((1, 8, 16, 1)),
  }
  pyramid = Fpn(channels=1).apply(identity_variables(), features)
  assert_allclose(pyramid[5][0, :, :, 0], [[1000, 2000]])
  p4 = np.array([[1000, 1100, 2200, 2300], [1400, 1500, 2600, 2700]])
  assert_allclose(pyramid[4][0, :, :, 0], p4)
  p3 = p4.repeat(2, 0).repeat(2, 1)
  assert_allclose(pyramid[3][0, :, :, 0], p3)
  assert_allclose(pyramid[2][0, :, :, 0], p3.repeat(2, 0).repeat(2, 1))
  assert_allclose(pyramid[6][0, :, :, 0], [[1000]])


def test_fpn_top_down_path_skips_the_output_convolution():
  variables = identity_variables()
  kernel = variables['params']['layer5']['kernel']
  variables['params']['layer5']['kernel'] = 7 * kernel
  features = {
    level: jnp.full((1, 64 // 2**level, 64 // 2**level, 1), float(level))
    for level in (2, 3, 4, 5)
  }
  pyramid = Fpn(channels=1).apply(variables, features)
  # The output convolution multiplies by 7 at level 5 only: 7 * 5. The levels
  # below are 4 + 5, 3 + 9 and 2 + 12.
  assert [float(pyramid[i][0, 0, 0, 0]) for i in (5, 4, 3, 2)] == [
    35,
    9,
    12,
    14,
  ]


def test_fpn_level_6_is_every_other_cell_of_level_5():
  features = {
    level: jnp.zeros((1, 96 // 2**level, 96 // 2**level, 1))
    for level in (2, 3, 4)
  }
  features[5] = jnp.arange(9.0).reshape(1, 3, 3, 1)
  pyramid = Fpn(channels=1).apply(identity_variables(), features)
  assert_array_equal(pyramid[6][0, :, :, 0], [[0, 2], [6, 8]])


def test_fpn_refuses_levels_that_are_not_halves():
  features = make_features((64, 64))
  features[5] = jax.ShapeDtypeStruct((1, 3, 2, 32), jnp.float32)
  with pytest.raises(ValueError, match='pad the images to a multiple of 32'):
    jax.eval_shape(Fpn().init, jax.random.key(0), features)


def test_fpn_with_group_norm_has_no_conv_bias():
  fpn = Fpn(channels=32, norm='group')
  params = jax.eval_shape(fpn.init, jax.random.key(0), make_features((64, 64)))[
    'params'
  ]
  assert set(params['inner2']) == set(params['layer5']) == {'kernel'}
  assert set(params['layer5_norm']) == {'scale', 'bias'}
