"""Tests of the values that follow from a recipe."""

import pathlib
import re

import pytest

from maskrcnn_jax.config import default_config, heads_of, scaled_to_batch

PACKAGE = pathlib.Path(__file__).parents[2] / 'maskrcnn_jax'


def test_only_heads_of_compares_the_output():
  for path in PACKAGE.rglob('*.py'):
    # `convert_weights` determines the output of a file of weights.
    if path != PACKAGE / 'convert_weights' / 'peer_models.py':
      text = path.read_text(encoding='utf-8')
      assert not re.search(r'\boutput\b[\'\]]* (==|!=|in) ', text), path


@pytest.mark.parametrize(
  ('output', 'boxes', 'masks'),
  [
    ('masks', True, True),
    ('boxes', True, False),
    ('proposals', False, False),
  ],
)
def test_heads_of_an_output(output, boxes, masks):
  config = default_config()
  config.model.output = output
  assert heads_of(config) == (boxes, masks)


def test_scaled_to_batch_is_the_linear_rule():
  config = default_config()
  config.train.reference_batch_size = 16
  config.train.batch_size = 64
  scaled, lines = scaled_to_batch(config)
  assert scaled.optimizer.learning_rate == pytest.approx(0.08)
  assert scaled.optimizer.warmup_steps == 125
  assert scaled.optimizer.decay_steps == (15_000, 20_000)
  assert scaled.train.num_steps == 22_500
  (line,) = lines
  assert '64 images a step, the recipe is for 16' in line
  assert 'train.num_steps = 22500 (recipe: 90000)' in line
  # Scaling again changes nothing, and the original recipe is unchanged.
  assert scaled_to_batch(scaled)[1] == []
  assert config.optimizer.learning_rate == 0.02


def test_scaled_to_batch_keeps_the_values_that_the_user_gave():
  config = default_config()
  config.train.reference_batch_size = 16
  config.train.batch_size = 4
  config.train.num_steps = 100
  scaled, lines = scaled_to_batch(config, frozenset({'train.num_steps'}))
  assert scaled.train.num_steps == 100
  assert scaled.optimizer.warmup_steps == 2_000
  assert 'train.num_steps = 100 (given, not scaled)' in lines[0]


def test_scaled_to_batch_keeps_the_shape_of_mlperfs_warmup():
  config = default_config()
  config.train.reference_batch_size = 64
  config.train.batch_size = 128
  config.optimizer.learning_rate = 0.08
  config.optimizer.warmup = 'mlperf_linear'
  config.optimizer.warmup_steps = 800
  config.optimizer.warmup_factor = 1e-4
  scaled, _ = scaled_to_batch(config)
  # The first rate is the last rate minus steps times rise: 0.08 - 800 * 0.0001
  # = 0 before scaling, 0.16 - 400 * 0.0004 = 0 after it.
  assert scaled.optimizer.warmup_steps == 400
  assert scaled.optimizer.warmup_factor == pytest.approx(4e-4)


@pytest.mark.parametrize(
  'reason', ['no reference', 'same batch size', 'switched off']
)
def test_scaled_to_batch_may_have_nothing_to_do(reason):
  config = default_config()
  config.train.batch_size = 8
  match reason:
    case 'same batch size':
      config.train.reference_batch_size = 8
    case 'switched off':
      config.train.reference_batch_size = 16
      config.train.auto_scale = False
  scaled, lines = scaled_to_batch(config)
  assert lines == []
  assert scaled.optimizer.learning_rate == config.optimizer.learning_rate
  assert scaled.train.num_steps == config.train.num_steps
