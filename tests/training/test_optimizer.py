"""Tests of learning rates and optimizers against their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import optax
import pytest

from maskrcnn_jax.training.optimizer import (
  join_parameters,
  learning_rate,
  make_optimizer,
  next_average,
  split_parameters,
)

recipe = functools.partial(
  learning_rate,
  base=0.02,
  warmup_steps=500,
  warmup_factor=1 / 3,
  decay_steps=(60_000, 80_000),
  decay_factor=0.1,
)


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (0, 0.02 / 3),
    # 0.02 (1/3 (1 - 19/500) + 19/500) = 0.02 * 0.358667.
    (19, 0.00717333),
    (250, 0.02 * 2 / 3),  # Halfway from 1/3 to 1.
    (499, 0.02 * (1 / 3 / 500 + 499 / 500)),
    (500, 0.02),
    (59_999, 0.02),
    (60_000, 0.002),
    (79_999, 0.002),
    (80_000, 0.0002),
    (89_999, 0.0002),
  ],
)
def test_learning_rate_follows_the_recipe(step, expected):
  assert_allclose(recipe(step), expected, rtol=1e-5)


def test_learning_rate_of_nvidias_log_line():
  # NVIDIA's Mask R-CNN For PyTorch prints lr: 0.014347 after 20 steps at a base
  # of 0.04.
  rate = recipe(jnp.int32(19), base=0.04)
  assert f'{float(rate):.6f}' == '0.014347'


@pytest.mark.parametrize('as_type', [int, np.int32, jnp.int32])
def test_learning_rate_takes_any_integer(as_type):
  rate = recipe(as_type(60_000))
  assert rate.dtype == jnp.float32
  assert_allclose(rate, 0.002, rtol=1e-5)


def test_learning_rate_without_warmup_and_decay_is_constant():
  for step in (0, 1, 10**6):
    rate = recipe(step, warmup_steps=0, decay_steps=())
    assert_allclose(rate, 0.02, rtol=1e-6)


@pytest.mark.parametrize(
  ('step', 'expected'), [(0, 0.002), (9, 0.002), (10, 0.02), (100, 0.02)]
)
def test_constant_warmup_is_one_lower_rate(step, expected):
  rate = recipe(step, warmup='constant', warmup_steps=10, warmup_factor=0.1)
  assert_allclose(rate, expected, rtol=1e-6)


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    # 0.12 - (800 - step) * 0.0001.
    (0, 0.04),
    (400, 0.08),
    (799, 0.1199),
    (800, 0.12),
    (12_000, 0.012),
    (16_000, 0.0012),
  ],
)
def test_mlperf_linear_rises_by_the_factor_a_step(step, expected):
  rate = recipe(
    step,
    base=0.12,
    warmup='mlperf_linear',
    warmup_steps=800,
    warmup_factor=1e-4,
    decay_steps=(12_000, 16_000),
  )
  assert_allclose(rate, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('step', 'expected'),
  [
    (0, 0.02 / 3),  # Only the factor of the warm-up.
    (500, 0.02 * 0.5 * (1 + np.cos(np.pi / 20))),
    (5_000, 0.01),
    (7_500, 0.02 * 0.5 * (1 - np.sqrt(0.5))),  # cos(3 pi / 4)
    (10_000, 0),
  ],
)
def test_cosine_falls_to_nothing(step, expected):
  rate = recipe(step, schedule='cosine', num_steps=10_000)
  assert_allclose(rate, expected, rtol=1e-5, atol=1e-9)


def test_learning_rate_of_an_unknown_warmup_is_an_error():
  with pytest.raises(ValueError, match='sudden'):
    recipe(0, warmup='sudden')


def test_gradients_are_clipped_all_together():
  params = {'fc': {'kernel': jnp.zeros(1), 'bias': jnp.zeros(1)}}
  # The gradients (3, 4) have norm 5. Clipping to 2.5 halves them.
  gradients = {'fc': {'kernel': jnp.array([3.0]), 'bias': jnp.array([4.0])}}
  optimizer = make_optimizer(
    momentum=0.9,
    weight_decay=0.0,
    schedule=lambda step: 1.0,
    bias_schedule=lambda step: 1.0,
    clip_norm=2.5,
  )
  updates, _ = optimizer.update(
    gradients, optimizer.init(params), params, step=0
  )
  assert_allclose(updates['fc']['kernel'], [-1.5], rtol=1e-6)
  assert_allclose(updates['fc']['bias'], [-2], rtol=1e-6)


def test_next_average_trusts_early_steps_more():
  average = {'w': jnp.array([1.0])}
  params = {'w': jnp.array([3.0])}
  # Step 0 keeps min(0.5, 1 / 10) of the average, step 90 min(0.5, 91 / 100).
  assert_allclose(
    next_average(average, params, 0, decay=0.5)['w'], [2.8], rtol=1e-6
  )
  assert_allclose(
    next_average(average, params, 90, decay=0.5)['w'], [2.0], rtol=1e-6
  )


def make_tree(random):
  def draw(*shape):
    return random.normal(size=shape).astype(np.float32)

  return {
    'backbone': {
      'conv1': {'kernel': draw(2, 3)},
      'layer1': {'norm': {'scale': draw(3), 'bias': draw(3)}},
      'layer10': {'kernel': draw(2)},
    },
    'box_head': {'fc6': {'kernel': draw(3, 2), 'bias': draw(2)}},
  }


def test_optimizer_is_torch_sgd_with_two_groups():
  random = np.random.default_rng(0)
  schedule = functools.partial(
    learning_rate,
    base=0.1,
    warmup_steps=3,
    warmup_factor=0.25,
    decay_steps=(5,),
    decay_factor=0.1,
  )
  params = make_tree(random)
  optimizer = make_optimizer(
    momentum=0.9,
    weight_decay=0.05,
    schedule=schedule,
    bias_schedule=functools.partial(schedule, base=0.2),
  )
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)

  leaves, treedef = jax.tree.flatten(params)
  names = [
    path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  expected = [leaf.astype(np.float64) for leaf in leaves]
  buffers = [None] * len(leaves)
  for step in range(8):
    gradients = make_tree(random)
    updates, state = update(gradients, state, params, step=step)
    params = optax.apply_updates(params, updates)

    # The warm-up goes from 0.25 to 1 in three steps. From step 5 on, the rate
    # is a tenth.
    rate = 0.1 * (0.25, 0.5, 0.75, 1, 1, 0.1, 0.1, 0.1)[step]
    for i, gradient in enumerate(jax.tree.leaves(gradients)):
      is_bias = names[i] == 'bias'
      d = gradient + (0 if is_bias else 0.05) * expected[i]
      buffers[i] = d if buffers[i] is None else 0.9 * buffers[i] + d
      expected[i] = expected[i] - rate * (2 if is_bias else 1) * buffers[i]
  assert jax.tree.structure(params) == treedef
  for name, leaf, slow in zip(
    names, jax.tree.leaves(params), expected, strict=True
  ):
    assert_allclose(leaf, slow, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('clip_norm', [0.0, 1.5])
def test_adamw_equals_its_definition(clip_norm):
  random = np.random.default_rng(0)
  params = make_tree(random)
  optimizer = make_optimizer(
    'adamw',
    momentum=0.8,
    beta2=0.95,
    weight_decay=0.05,
    schedule=lambda step: 0.1 / (1 + step),
    bias_schedule=lambda step: 0.2 / (1 + step),
    clip_norm=clip_norm,
  )
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)

  names = [
    path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  expected = [x.astype(np.float64) for x in jax.tree.leaves(params)]
  means = [np.zeros_like(x) for x in expected]
  squares = [np.zeros_like(x) for x in expected]
  for step in range(5):
    tree = make_tree(random)
    updates, state = update(tree, state, params, step=step)
    params = optax.apply_updates(params, updates)

    gradients = [x.astype(np.float64) for x in jax.tree.leaves(tree)]
    norm = np.sqrt(sum((x**2).sum() for x in gradients))
    assert norm > 1.5  # Otherwise, clipping would do nothing.
    for i, gradient in enumerate(gradients):
      if clip_norm:
        gradient = gradient * clip_norm / norm
      is_bias = names[i] == 'bias'
      means[i] = 0.8 * means[i] + 0.2 * gradient
      squares[i] = 0.95 * squares[i] + 0.05 * gradient**2
      mean = means[i] / (1 - 0.8 ** (step + 1))
      square = squares[i] / (1 - 0.95 ** (step + 1))
      d = mean / (np.sqrt(square) + 1e-8)
      d = d + (0 if is_bias else 0.05) * expected[i]
      expected[i] = expected[i] - (0.2 if is_bias else 0.1) / (1 + step) * d
  for name, leaf, slow in zip(
    names, jax.tree.leaves(params), expected, strict=True
  ):
    assert_allclose(leaf, slow, rtol=1e-5, atol=1e-6, err_msg=name)


def test_adamw_by_hand():
  params = {'fc': {'kernel': jnp.array([10.0]), 'bias': jnp.array([10.0])}}
  gradients = {'fc': {'kernel': jnp.array([4.0]), 'bias': jnp.array([-3.0])}}
  optimizer = make_optimizer(
    'adamw',
    momentum=0.9,
    weight_decay=0.1,
    schedule=lambda step: 0.5,
    bias_schedule=lambda step: 1.0,
  )
  updates, _ = optimizer.update(
    gradients, optimizer.init(params), params, step=0
  )
  # The first step of Adam is the sign of the gradient, whatever its size.
  # kernel: -0.5 (1 + 0.1 * 10) = -1. bias: -1 * -1 = 1.
  assert_allclose(updates['fc']['kernel'], [-1], rtol=1e-5)
  assert_allclose(updates['fc']['bias'], [1], rtol=1e-5)


def test_adamw_corrects_by_updates_and_not_by_steps():
  params = {'fc': {'kernel': jnp.array([0.0])}}
  gradients = {'fc': {'kernel': jnp.array([4.0])}}
  optimizer = make_optimizer(
    'adamw',
    momentum=0.9,
    weight_decay=0.0,
    schedule=lambda step: step,
    bias_schedule=lambda step: step,
  )
  # The seven steps before were skipped, so the state is still the initial one.
  updates, state = optimizer.update(
    gradients, optimizer.init(params), params, step=7
  )
  assert_allclose(updates['fc']['kernel'], [-7], rtol=1e-5)
  counts = [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
  assert counts == [1]


@pytest.mark.parametrize('clip_norm', [0.0, 1.5])
def test_state_of_sgd_is_the_momentum_alone(clip_norm):
  # Checkpoints hold this tree. With another tree, they could not be resumed.
  params = {'fc': {'kernel': jnp.ones(2), 'bias': jnp.ones(1)}}
  optimizer = make_optimizer(
    momentum=0.9,
    weight_decay=0.1,
    schedule=lambda step: 0.5,
    bias_schedule=lambda step: 1.0,
    clip_norm=clip_norm,
  )
  state = optimizer.init(params)
  expected = (
    optax.MaskedState(inner_state=optax.EmptyState()),
    optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params)),
    optax.EmptyState(),
  )
  if clip_norm:
    expected = (optax.EmptyState(), *expected)
  assert jax.tree.structure(state) == jax.tree.structure(expected)
  jax.tree.map(assert_array_equal, state, expected)


def test_make_optimizer_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="not 'lamb'"):
    make_optimizer(
      'lamb',
      momentum=0.9,
      weight_decay=0.1,
      schedule=lambda step: 0.5,
      bias_schedule=lambda step: 1.0,
    )


def test_a_bias_does_not_decay_and_moves_twice_as_far():
  params = {'fc': {'kernel': jnp.array([10.0]), 'bias': jnp.array([10.0])}}
  gradients = {'fc': {'kernel': jnp.array([1.0]), 'bias': jnp.array([1.0])}}
  optimizer = make_optimizer(
    momentum=0.9,
    weight_decay=0.1,
    schedule=lambda step: 0.5,
    bias_schedule=lambda step: 1.0,
  )
  updates, _ = optimizer.update(
    gradients, optimizer.init(params), params, step=0
  )
  # kernel: -0.5 (1 + 0.1 * 10) = -1. bias: -0.5 * 2 * 1 = -1.
  assert_allclose(updates['fc']['kernel'], [-1])
  assert_allclose(updates['fc']['bias'], [-1])


FROZEN = (('backbone', 'conv1'), ('backbone', 'bn1'), ('backbone', 'layer1'))


def test_split_parameters_goes_by_whole_names():
  params = make_tree(np.random.default_rng(0))
  trainable, fixed = split_parameters(params, FROZEN)
  assert set(fixed) == {'backbone'}
  assert set(fixed['backbone']) == {'conv1', 'layer1'}
  assert set(trainable) == {'backbone', 'box_head'}
  assert set(trainable['backbone']) == {'layer10'}


@pytest.mark.parametrize(
  'frozen',
  [(), FROZEN, (('backbone',), ('box_head',)), (('none',),)],
  ids=['nothing', 'some', 'all', 'unknown'],
)
def test_join_parameters_undoes_split_parameters(frozen):
  params = make_tree(np.random.default_rng(0))
  joined = join_parameters(*split_parameters(params, frozen))
  assert jax.tree.structure(joined) == jax.tree.structure(params)
  for one, other in zip(
    jax.tree.leaves(joined), jax.tree.leaves(params), strict=True
  ):
    assert_array_equal(one, other)


def test_no_gradient_is_computed_for_frozen_parameters():
  params = make_tree(np.random.default_rng(0))
  trainable, fixed = split_parameters(params, FROZEN)
  gradients = jax.grad(
    lambda t: sum(x.sum() for x in jax.tree.leaves(join_parameters(t, fixed)))
  )(jax.tree.map(jnp.asarray, trainable))
  assert jax.tree.structure(gradients) == jax.tree.structure(trainable)
