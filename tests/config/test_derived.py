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


def scaled(batch_size, given=(), **optimizer):
  """Returns the defaults, which are for 16 images, and the log line."""
  config = default_config()
  config.optimizer.update(optimizer)
  config.train.reference_batch_size = 16
  config.train.batch_size = batch_size
  config, (line,) = scaled_to_batch(config, frozenset(given))
  return config, line


def test_scaled_to_batch_is_the_linear_rule():
  config, line = scaled(24)
  assert config.optimizer.learning_rate == pytest.approx(0.03)
  assert config.optimizer.warmup_steps == 333  # 500 / 1.5
  assert config.optimizer.warmup_factor == pytest.approx(1 / 3)
  assert config.optimizer.decay_steps == (40_000, 53_333)
  assert config.train.num_steps == 60_000
  assert '24 images a step, the recipe is for 16' in line
  assert 'train.num_steps = 60000 (recipe: 90000)' in line
  assert 'warm-up' not in line


def test_scaled_to_batch_returns_a_recipe_for_the_new_batch_size():
  config = default_config()
  config.train.reference_batch_size = 16
  config.train.batch_size = 24
  result, _ = scaled_to_batch(config)
  # Scaling again changes nothing, and the original recipe is unchanged.
  assert scaled_to_batch(result)[1] == []
  assert config.optimizer.learning_rate == 0.02


@pytest.mark.parametrize(
  ('batch_size', 'warmup_steps', 'warmup_factor'),
  [
    (8, 1000, 1 / 3),
    (31, 258, 1 / 3),  # 500 * 16 / 31
    (32, 625, 0.01),
    (64, 625, 0.01),
    (96, 625, 0.01),
    # The first decay is after 60,000 * 16 / 1024 = 937.5 steps.
    (1024, 469, 0.01),
  ],
)
def test_a_large_batch_has_the_warmup_that_nvidia_advises(
  batch_size, warmup_steps, warmup_factor
):
  config, line = scaled(batch_size)
  assert config.optimizer.warmup_steps == warmup_steps
  assert config.optimizer.warmup_factor == pytest.approx(warmup_factor)
  is_large = batch_size >= 32
  assert ('The warm-up is that for 32 images a step and more.' in line) == (
    is_large
  )
  # The learning rate follows the rule for all batch sizes.
  assert config.optimizer.learning_rate == pytest.approx(0.02 * batch_size / 16)


def test_a_given_warmup_is_kept_for_a_large_batch_too():
  config, line = scaled(
    64, ['optimizer.warmup_steps', 'optimizer.warmup_factor']
  )
  assert config.optimizer.warmup_steps == 500
  assert config.optimizer.warmup_factor == pytest.approx(1 / 3)
  assert 'optimizer.warmup_steps = 500 (given, not scaled)' in line


def test_the_warmup_of_a_large_batch_leaves_half_of_a_short_training():
  # Half of the 188 steps that are left of 750.
  config, _ = scaled(64, decay_steps=(750, 900))
  assert config.optimizer.decay_steps == (188, 225)
  assert config.optimizer.warmup_steps == 94
  # A cosine has no decays, so that only the end counts: 90,000 / 4 steps.
  config, _ = scaled(64, decay_steps=(750, 900), schedule='cosine')
  assert config.optimizer.warmup_steps == 625


@pytest.mark.parametrize(
  ('warmup', 'warmup_steps', 'expected'),
  [('constant', 500, 125), ('mlperf_linear', 800, 200), ('linear', 0, 0)],
)
def test_other_warmups_of_a_large_batch_are_scaled(
  warmup, warmup_steps, expected
):
  config, line = scaled(64, warmup=warmup, warmup_steps=warmup_steps)
  assert config.optimizer.warmup_steps == expected
  assert 'The warm-up is' not in line


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
