"""Tests of the heads: RPN, box and mask."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest

from maskrcnn_jax.model.box_head import BoxHead
from maskrcnn_jax.model.mask_head import MaskHead, MaskLogits
from maskrcnn_jax.model.rpn_head import RpnHead


def test_rpn_orders_level_then_row_then_column_then_anchor():
  # Channels 0, 1 and 2 hold the level, the row and the column. The 3x3
  # convolution changes nothing.
  pyramid = {}
  for level, (h, w) in {6: (1, 2), 2: (3, 4)}.items():
    rows, columns = np.mgrid[:h, :w]
    cells = np.stack([np.full((h, w), level), rows, columns], -1)
    pyramid[level] = jnp.asarray(cells[None], jnp.float32)
  conv = np.zeros((3, 3, 3, 3), np.float32)
  conv[1, 1] = np.eye(3)
  # The logit of anchor i is 1000 level + 100 row + 10 column + i. Its delta j
  # is 10 times that number plus j.
  place = np.array([1000, 100, 10], np.float32)[:, None]
  variables = {
    'params': {
      'conv': {'kernel': conv, 'bias': np.zeros(3, np.float32)},
      'cls_logits': {
        'kernel': place.repeat(2, 1)[None, None],
        'bias': np.arange(2, dtype=np.float32),
      },
      'bbox_pred': {
        'kernel': 10 * place.repeat(8, 1)[None, None],
        'bias': np.array([0, 1, 2, 3, 10, 11, 12, 13], np.float32),
      },
    }
  }
  logits, deltas = RpnHead(anchors_per_cell=2).apply(variables, pyramid)
  expected = [
    1000 * level + 100 * row + 10 * column + anchor
    for level, (h, w) in ((2, (3, 4)), (6, (1, 2)))
    for row in range(h)
    for column in range(w)
    for anchor in range(2)
  ]
  assert_array_equal(logits, [expected])
  assert_array_equal(
    deltas, 10 * np.array([expected])[:, :, None] + np.arange(4)
  )


def test_rpn_hidden_layer_is_rectified():
  variables = {
    'params': {
      'conv': {
        'kernel': np.full((3, 3, 1, 1), -1, np.float32),
        'bias': np.zeros(1, np.float32),
      },
      'cls_logits': {
        'kernel': np.ones((1, 1, 1, 1), np.float32),
        'bias': np.full(1, 5, np.float32),
      },
      'bbox_pred': {
        'kernel': np.ones((1, 1, 1, 4), np.float32),
        'bias': np.zeros(4, np.float32),
      },
    }
  }
  logits, deltas = RpnHead(anchors_per_cell=1).apply(
    variables, {2: jnp.ones((1, 2, 2, 1))}
  )
  assert_array_equal(logits, np.full((1, 4), 5))
  assert_array_equal(deltas, np.zeros((1, 4, 4)))


def test_box_head_flattens_row_then_column_then_channel():
  head = BoxHead(num_classes=2, num_fcs=1, features=1)
  pooled = jnp.arange(2 * 3 * 2 * 2 * 3.0).reshape(2, 3, 2, 2, 3)
  # fc6 picks row 1, column 0, channel 2: index (1 * 2 + 0) * 3 + 2 = 8.
  pick = np.zeros((12, 1), np.float32)
  pick[8] = 1
  variables = {
    'params': {
      'fc6': {'kernel': pick, 'bias': np.zeros(1, np.float32)},
      'cls_score': {
        'kernel': np.array([[1, 2]], np.float32),
        'bias': np.zeros(2, np.float32),
      },
      'bbox_pred': {
        'kernel': np.zeros((1, 8), np.float32),
        'bias': np.arange(8, dtype=np.float32),
      },
    }
  }
  class_logits, box_deltas = head.apply(variables, pooled)
  picked = np.asarray(pooled)[:, :, 1, 0, 2]
  assert_array_equal(class_logits, np.stack([picked, 2 * picked], -1))
  # Output 4 * class + j of `bbox_pred` is delta j of a class.
  assert_array_equal(box_deltas[1, 2], [[0, 1, 2, 3], [4, 5, 6, 7]])


@pytest.mark.parametrize(
  'num_convs, num_fcs, norm, names',
  [
    (0, 2, None, {'fc6', 'fc7'}),
    (
      2,
      1,
      'group',
      {'conv1', 'conv1_norm', 'conv2', 'conv2_norm', 'fc6'},
    ),
  ],
)
def test_box_head_shapes(num_convs, num_fcs, norm, names):
  head = BoxHead(
    num_classes=5,
    num_convs=num_convs,
    num_fcs=num_fcs,
    features=16,
    norm=norm,
  )
  pooled = jax.ShapeDtypeStruct((2, 3, 7, 7, 32), jnp.float32)
  output, variables = jax.eval_shape(
    head.init_with_output, jax.random.key(0), pooled
  )
  assert output.class_logits.shape == (2, 3, 5)
  assert output.box_deltas.shape == (2, 3, 5, 4)
  params = variables['params']
  assert set(params) == names | {'cls_score', 'bbox_pred'}
  assert params['fc6']['kernel'].shape == (7 * 7 * 32, 16)
  if norm:
    assert set(params['conv1']) == {'kernel'}


def test_mask_head_doubles_the_side_and_keeps_rois_apart():
  head = MaskHead(num_classes=3, num_convs=1, channels=1)
  center = np.zeros((3, 3, 1, 1), np.float32)
  center[1, 1] = 1
  variables = {
    'params': {
      'mask_fcn1': {'kernel': center, 'bias': np.zeros(1, np.float32)},
      'conv5_mask': {
        'kernel': np.ones((2, 2, 1, 1), np.float32),
        'bias': np.zeros(1, np.float32),
      },
      'mask_fcn_logits': {
        'kernel': np.array([1, 10, 100], np.float32)[None, None, None],
        'bias': np.zeros(3, np.float32),
      },
    }
  }
  pooled = jnp.arange(16.0).reshape(2, 2, 2, 2, 1)
  mask_logits = head.apply(variables, pooled)
  doubled = np.asarray(pooled).repeat(2, 2).repeat(2, 3)
  assert_allclose(mask_logits, doubled * [1, 10, 100], rtol=1e-6)


def pick_masks(mask_logits, classes):
  """Returns the mask of the class of each RoI, [b, r, m, m]."""
  index = classes[:, :, None, None, None]
  return jnp.take_along_axis(mask_logits, index, axis=4)[..., 0]


def test_mask_head_computes_the_mask_of_a_class_alone():
  head = MaskHead(num_classes=7, num_convs=1, channels=8)
  pooled = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 5))
  classes = jnp.array([[0, 6, 2], [2, 1, 2]])
  variables = head.init(jax.random.key(0), pooled)
  found = head.apply(variables, pooled, classes)[..., 0]
  expected = pick_masks(head.apply(variables, pooled), classes)
  assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_the_mask_of_a_class_has_the_gradients_of_that_class(dtype):
  # The gradients of the layer with all classes, of which one is picked.
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(size=(6, 8, 8, 5)), dtype)
  weights = random.normal(size=(6, 8, 8)).astype(np.float32)
  classes = jnp.array([0, 6, 2, 2, 1, 2])
  params = {
    'kernel': random.normal(size=(1, 1, 5, 7)).astype(np.float32),
    'bias': random.normal(size=7).astype(np.float32),
  }

  def gradients(masks):
    return jax.jit(
      jax.value_and_grad(
        lambda params, x: jnp.sum(jnp.sin(masks(params, x)) * weights),
        argnums=(0, 1),
      )
    )(params, x.astype(jnp.float32))

  def alone(params, x):
    layer = MaskLogits(7, dtype=dtype)
    return layer.apply({'params': params}, x, classes)[..., 0]

  def picked(params, x):
    masks = MaskLogits(7).apply({'params': params}, x)
    return pick_masks(masks[None], classes[None])[0]

  # Sums in another order, or several roundings to 8 bits.
  tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
  for found, expected in zip(
    jax.tree.leaves(gradients(alone)),
    jax.tree.leaves(gradients(picked)),
    strict=True,
  ):
    assert found.dtype == expected.dtype
    scale = np.abs(expected).max()
    assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
  # Only the classes that a row has get a gradient.
  (_, (found, _)) = gradients(alone)
  assert_array_equal(
    np.abs(found['kernel']).sum((0, 1, 2)) > 0, [1, 1, 1, 0, 0, 0, 1]
  )


def test_mask_head_shapes():
  head = MaskHead(num_classes=4, channels=32, norm='group')
  pooled = jax.ShapeDtypeStruct((2, 3, 14, 14, 16), jnp.float32)
  mask_logits, variables = jax.eval_shape(
    head.init_with_output, jax.random.key(0), pooled
  )
  assert mask_logits.shape == (2, 3, 28, 28, 4)
  assert set(variables['params']['mask_fcn4']) == {'kernel'}
  assert set(variables['params']['mask_fcn4_norm']) == {'scale', 'bias'}


@pytest.mark.parametrize('head', [BoxHead, MaskHead])
def test_heads_accept_no_rois(head):
  head = head(num_classes=3)
  full = jax.ShapeDtypeStruct((1, 1, 4, 4, 8), jnp.float32)
  variables = jax.eval_shape(head.init, jax.random.key(0), full)
  empty = jax.ShapeDtypeStruct((1, 0, 4, 4, 8), jnp.float32)
  output = jax.eval_shape(head.apply, variables, empty)
  assert all(x.shape[:2] == (1, 0) for x in jax.tree.leaves(output))
