"""Tests of the training step: micro-batches, float16, averaged weights."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import pytest
import tiny

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime.precision import (
  GROWTH_INTERVAL,
  INITIAL_SCALE,
  MAX_SCALE,
  MIN_SCALE,
  LossScale,
  initial_loss_scale,
  next_loss_scale,
  set_precision,
)
from maskrcnn_jax.training.optimizer import make_optimizer
from maskrcnn_jax.training.run import train
from maskrcnn_jax.training.state import (
  initial_state,
  restored_state,
  start_average,
  training_state,
  variables_of,
)
from maskrcnn_jax.training.step import (
  Trainer,
  jit_train_step,
  split_rows,
)

pytestmark = pytest.mark.usefixtures('compilation_cache')


@pytest.fixture(autouse=True)
def restored():
  """Restores JAX's matmul precision, which `set_precision` changes."""
  before = jax.config.jax_default_matmul_precision
  yield
  jax.config.update('jax_default_matmul_precision', before)


def make_step(config):
  """Returns a first state and a training step with a constant learning rate."""
  dtype = set_precision(config.precision)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=dtype)
  optimizer = make_optimizer(
    momentum=0.9,
    weight_decay=1e-4,
    schedule=lambda step: 0.01,
    bias_schedule=lambda step: 0.02,
  )
  state = start_average(initial_state(rcnn, optimizer, config), config)
  limits = GroundTruthLimits(config.data.max_objects, 64, 16, 1)
  step = jit_train_step(Trainer.from_config(config, rcnn, optimizer, limits))
  return state, functools.partial(step, padded_size=(64, 64))


def make_batch(batch_size=2, seed=0):
  """Returns a batch of 64 px images of noise with made-up objects."""
  from maskrcnn_jax.benchmark.made_up_batch import made_up_batch

  batch = made_up_batch(
    image_size=(64, 64),
    batch_size=batch_size,
    num_objects=2,
    max_objects=8,
    num_classes=4,
  )
  pixels = np.random.default_rng(seed).integers(
    0, 256, batch.images.shape, np.uint8
  )
  return batch._replace(images=pixels)


def arrays_of(*trees):
  return jax.tree.map(np.array, jax.tree.leaves(trees))


def assert_same(one, other):
  for a, b in zip(one, other, strict=True):
    assert_array_equal(a, b)


def test_split_rows_deals_the_rows_out_in_turn():
  parts = split_rows({'x': jnp.arange(6)}, 3)
  assert_array_equal(parts['x'], [[0, 3], [1, 4], [2, 5]])


def test_loss_scale_starts_as_in_nvidias_program_and_only_in_fp16():
  assert float(initial_loss_scale('fp16').scale) == 8192
  for precision in ('fp32', 'tf32', 'bf16'):
    assert float(initial_loss_scale(precision).scale) == 1


def test_loss_scale_halves_after_an_overflow_and_counts_it():
  scale = LossScale(jnp.float32(8192), jnp.int32(7), jnp.int32(2))
  after = next_loss_scale(scale, jnp.bool_(False))
  assert tuple(map(float, after)) == (4096, 0, 3)


def test_loss_scale_doubles_after_as_many_good_steps():
  scale = LossScale(jnp.float32(8192), jnp.int32(0), jnp.int32(0))
  step = jax.jit(next_loss_scale)
  for _ in range(GROWTH_INTERVAL - 1):
    scale = step(scale, jnp.bool_(True))
  assert float(scale.scale) == 8192
  scale = step(scale, jnp.bool_(True))
  assert tuple(map(float, scale)) == (16384, 0, 0)


@pytest.mark.parametrize(
  ('scale', 'is_finite'), [(MIN_SCALE, False), (MAX_SCALE, True)]
)
def test_loss_scale_has_limits(scale, is_finite):
  before = LossScale(
    jnp.float32(scale), jnp.int32(GROWTH_INTERVAL - 1), jnp.int32(0)
  )
  assert float(next_loss_scale(before, jnp.bool_(is_finite)).scale) == scale


def test_an_overflow_in_fp16_skips_the_step_and_the_next_recovers(config):
  config.precision = 'fp16'
  config.train.ema_decay = 0.5
  state, step = make_step(config)
  # The gradients overflow, because the largest number of float16 is 65504.
  state = state._replace(
    loss_scale=state.loss_scale._replace(scale=jnp.float32(2.0**40))
  )
  before = arrays_of(state.params, state.optimizer, state.average)
  state, figures = step(state, make_batch())
  assert math.isfinite(figures['loss'])
  assert not math.isfinite(figures['grad_norm'])
  assert_same(arrays_of(state.params, state.optimizer, state.average), before)
  assert int(state.step) == 1
  assert float(figures['loss_scale']) == 2.0**40
  assert tuple(map(float, state.loss_scale)) == (2.0**39, 0, 1)

  state = state._replace(
    loss_scale=state.loss_scale._replace(scale=jnp.float32(INITIAL_SCALE))
  )
  state, figures = step(state, make_batch())
  assert math.isfinite(figures['grad_norm'])
  after = arrays_of(state.params, state.optimizer, state.average)
  assert any(
    not np.array_equal(a, b) for a, b in zip(after, before, strict=True)
  )
  assert tuple(map(float, state.loss_scale)) == (INITIAL_SCALE, 1, 1)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_state_and_figures_are_float32_in_every_precision(config, precision):
  config.precision = precision
  config.train.ema_decay = 0.9
  state, step = make_step(config)
  jaxpr, (state, figures) = jax.make_jaxpr(step, return_shape=True)(
    *jax.eval_shape(lambda *x: x, state, make_batch())
  )
  for leaf in jax.tree.leaves(
    (state.params, state.optimizer, state.average, figures)
  ):
    assert leaf.dtype in (jnp.float32, jnp.int32), leaf
  wide = [
    line
    for line in str(jaxpr).splitlines()
    if 'conv_general_dilated[' in line and ':f32' in line.split('=')[0]
  ]
  assert wide == []


@pytest.mark.slow
def test_micro_batches_give_the_losses_and_the_gradients_of_the_batch(config):
  batch = make_batch(2)
  # An image without objects has fewer samples, so a plain mean of the two
  # micro-batches would be wrong.
  batch.gt_valid[1] = False
  results = []
  for parts in (1, 2):
    config.train.micro_batches = parts
    state, step = make_step(config)
    state, figures = step(state, batch)
    results.append(arrays_of(state.params, figures))
  for whole, parts in zip(*results, strict=True):
    assert_allclose(parts, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize('geometry', ['modern', 'legacy'])
def test_micro_batches_train_as_the_batch_does(config, geometry, tmp_path):
  config.geometry = geometry
  config.train.batch_size = 4
  config.train.num_steps = 20
  config.train.checkpoint_every = 20
  # At a larger rate, a training from random weights would amplify rounding
  # differences until other proposals are sampled.
  config.optimizer.learning_rate = 0.0001
  figures = {}
  for parts in (1, 2, 4):
    config.train.micro_batches = parts
    figures[parts] = tiny.run_training(config, tmp_path / str(parts))
  for parts in (2, 4):
    for one, other in zip(figures[1], figures[parts], strict=True):
      assert other['grad_norm'] == pytest.approx(one['grad_norm'], rel=2e-4)
      for name in one.keys() - {'grad_norm'}:
        # Relative to the sum of the losses, because a small loss can be a sum
        # of large terms, with their rounding errors.
        assert abs(other[name] - one[name]) < 1e-5 * one['loss'], name


def test_micro_batches_must_divide_the_batch(config, tmp_path):
  config.train.micro_batches = 4
  with pytest.raises(InputError, match=r'micro_batches \(4\) times'):
    train(config, tmp_path / 'run')


def test_a_checkpoint_holds_the_averaged_weights_as_its_model(config):
  # With these options the step is in the cache already: the test of an overflow
  # has compiled it.
  config.precision = 'fp16'
  config.train.ema_decay = 0.5
  state, step = make_step(config)
  first = arrays_of(variables_of(state))
  assert_same(
    first, arrays_of({'constants': state.constants, 'params': state.params})
  )
  before = arrays_of(state.average)
  state, _ = step(state, make_batch())
  kept = training_state(state)
  # Step 0 keeps min(0.5, 1 / 10) of the average, a tenth.
  for a, b, p in zip(
    arrays_of(state.average), before, arrays_of(kept['params']), strict=True
  ):
    assert_allclose(a, 0.1 * b + 0.9 * p, rtol=1e-6, atol=1e-7)
  used = variables_of(state)['params']
  assert_same(
    arrays_of(used['mask_head']), arrays_of(state.average['mask_head'])
  )
  # Frozen weights never change, so they have no average.
  assert_same(
    arrays_of(used['backbone']['conv1']),
    arrays_of(state.params['backbone']['conv1']),
  )
  again = restored_state(1, variables_of(state), kept)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  assert_same(arrays_of(again), arrays_of(state))


def test_a_wide_mask_head_on_one_cpu_runs_in_chunks(config):
  one, two = (
    jax.sharding.Mesh(np.array(jax.devices()[:1] * count), ('data',))
    for count in (1, 2)
  )

  def runs_in_chunks(mesh):
    return Rcnn.from_config(
      config, num_classes=4, dtype=jnp.float32, mesh=mesh
    ).mask_in_chunks

  assert not runs_in_chunks(one)
  config.model.mask_channels = 256
  assert runs_in_chunks(one)
  assert not runs_in_chunks(two)
  assert not runs_in_chunks(None)
