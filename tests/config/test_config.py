"""Tests of the configuration and of how two are compared."""

import json
import pathlib

import pytest

from maskrcnn_jax.config import (
  FREE_KEYS,
  config_difference,
  default_config,
  is_free,
  plain,
  scaled_to_batch,
  stored_config,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.errors import InputError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def keys_of(tree, prefix=''):
  for name, value in tree.items():
    if hasattr(value, 'items'):
      yield f'{prefix}{name}'
      yield from keys_of(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}'


def test_the_defaults_pass_their_own_check():
  check_config(default_config())


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_each_recipe_passes_the_check(path):
  read_recipe(str(path))


@pytest.mark.parametrize(
    ('section', 'name'),
    [(None, 'sed'), ('model', 'dept'), ('optimizer', 'lr'), ('rpn', 'train_')],
)
def test_an_unknown_key_is_refused(section, name):
  config = default_config()
  part = config[section] if section else config
  with pytest.raises((AttributeError, KeyError)):
    part[name] = 1


@pytest.mark.parametrize(
    ('section', 'name', 'value'),
    [
        ('train', 'batch_size', 'four'),
        ('train', 'batch_size', 1.5),
        ('optimizer', 'learning_rate', 'fast'),
        ('anchors', 'ratios', 1.0),
    ],
)
def test_a_value_of_another_type_is_refused(section, name, value):
  with pytest.raises(TypeError):
    default_config()[section][name] = value


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('geometry', 'antique', r"config.geometry is 'antique'; .*'modern'"),
        ('precision', 'int8', r"config.precision is 'int8'; .*'fp32', 'tf32'"),
        ('model.depth', 51, r'config.model.depth is 51; .*18, 34, 50, 101'),
        ('model.norm', 'batch', r"model.norm is 'batch'; .*'frozen_batch'"),
        ('freeze_at', 6, r'freeze_at is 6; .*0 to 5'),
        ('freeze_at', -1, r'freeze_at is -1'),
        ('anchors.sizes', ((32.0,),) * 4, r'has 4 entries; .*levels 2 to 6'),
        (
            'anchors.sizes', ((32.0,),) * 4 + ((1.0, 2.0),),
            r'same number of sizes',
        ),
        ('train.batch_size', 0, r'train.batch_size is 0; .*at least 1'),
        ('data.num_threads', 0, r'data.num_threads is 0'),
        ('train.micro_batches', 0, r'train.micro_batches is 0'),
        ('train.ema_decay', 1.0, r'train.ema_decay is 1'),
        ('train.min_box_ap', 0.4, r'--config.train.eval_every=STEPS'),
        ('train.eval_every', -1, r'train.eval_every is -1; .*at least 0'),
        ('train.reference_batch_size', 0, r'reference_batch_size is 0'),
        ('expected.box_ap', (0.4,), r'expected.box_ap is .*mean, tolerance'),
        ('optimizer.clip_norm', -1.0, r'optimizer.clip_norm is -1'),
        ('optimizer.warmup', 'slow', r"warmup is 'slow'; .*'mlperf_linear'"),
        ('optimizer.schedule', 'step', r"schedule is 'step'; .*'cosine'"),
        ('roi.num_samples', -4, r'roi.num_samples is -4'),
        ('data.pixel_range', (0,), r'pixel_range is .0,.; give the values'),
        ('data.pixel_range', (9, 9), r'pixel_range is .9, 9.; give the val'),
        ('data.padded_sizes', ((800, 1333),), r'\(800, 1333\); .*multiples'),
        ('data.padded_sizes', ((0, 32),), r'\(0, 32\)'),
        ('data.padded_sizes', ((32,),), r'\(32,\),\); .*pairs in whole pixels'),
        ('data.padded_sizes', ((32.0, 64.0),), r'pairs in whole pixels'),
        ('anchors.sizes', (32.0,) * 5, r'give a tuple of sizes for each level'),
        ('anchors.sizes', ((),) * 5, r'give numbers above 0'),
        ('anchors.sizes', ((0.0,),) * 5, r'give numbers above 0'),
        ('anchors.ratios', ('1',), r'give ratios'),
        ('data.pixel_std', (0.0, 1.0, 1.0), r'give numbers above 0'),
        ('data.pixel_mean', (-1.0, 1.0, 1.0), r'numbers of at least 0'),
        ('optimizer.decay_steps', (-1,), r'numbers of at least 0'),
        ('optimizer.decay_steps', (1.5,), r'give whole numbers'),
        ('optimizer.decay_steps', (True,), r'give whole numbers'),
        ('optimizer.momentum', float('inf'), r'is inf; .*finite number'),
        ('expected.box_ap', (0.4, float('nan')), r'finite number'),
        ('expected.box_ap', ('a', 'b'), r'mean, tolerance'),
        ('optimizer.weight_decay', -1e-4, r'weight_decay is -0.0001'),
        ('model.mask_convs', -1, r'mask_convs is -1; .*at least 0'),
        ('mesh', (('data', 1, 2),), r'\(name, size\) pairs'),
    ],
)
def test_check_config_says_what_is_wrong(key, value, message):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=message):
    check_config(config)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_the_same_after_json(path):
  config = read_recipe(str(path))
  stored = json.loads(json.dumps(plain(config)))
  assert stored == plain(config)
  assert config_difference(config, stored) == []


def test_config_difference_names_each_key_that_differs():
  config = default_config()
  stored = json.loads(json.dumps(plain(config)))
  stored['seed'] = 7
  stored['data']['padded_sizes'][0] = [32, 64]
  del stored['roi']['box_side']
  stored['model']['beard'] = True
  sizes = '[[800, 1088], [800, 1344], [1088, 800], [1344, 800]]'
  assert config_difference(config, stored) == [
      f'data.padded_sizes: {sizes} | '
      '[[32, 64], [800, 1344], [1088, 800], [1344, 800]]',
      'model.beard: nothing | True',
      'roi.box_side: 7 | nothing',
      'seed: 0 | 7',
  ]


@pytest.mark.parametrize(
    ('key', 'free'),
    [
        ('train.num_steps', True),
        ('data.eval.images', True),
        ('eval.batch_size', True),
        ('detections.min_score', True),
        ('seed', False),
        ('train.batch_size', False),
        ('optimizer.learning_rate', False),
        # Not data.eval, whatever it begins with.
        ('data.evaluation', False),
        ('data.flip_probability', False),
        ('rpn.eval.pre_nms', False),
    ],
)
def test_is_free_goes_by_whole_names(key, free):
  assert is_free(f'{key}: 1 | 2') is free


def test_every_free_key_exists():
  assert set(FREE_KEYS) <= set(keys_of(default_config()))


def test_stored_config_is_the_recipe_that_was_stored():
  config = default_config()
  config.model.depth = 18
  config.anchors.sizes = ((8.0, 12.0),) * 5
  stored = json.loads(json.dumps(plain(config)))
  assert config_difference(stored_config(stored), stored) == []


def test_stored_config_gives_later_keys_their_default():
  stored = json.loads(json.dumps(plain(default_config())))
  del stored['predict'], stored['rpn']['eval']['pre_nms']
  config = stored_config(stored)
  assert config.predict.min_score == default_config().predict.min_score
  assert config.rpn.eval.pre_nms == default_config().rpn.eval.pre_nms


def test_scaled_to_batch_is_the_linear_rule():
  config = default_config()
  config.train.reference_batch_size = 16
  config.train.batch_size = 64
  scaled, lines = scaled_to_batch(config)
  assert scaled.optimizer.learning_rate == pytest.approx(0.08)
  assert scaled.optimizer.warmup_steps == 125
  assert scaled.optimizer.decay_steps == (15_000, 20_000)
  assert scaled.train.num_steps == 22_500
  line, = lines
  assert '64 images a step, the recipe is for 16' in line
  assert 'train.num_steps = 22500 (recipe: 90000)' in line
  # Once is enough, and the recipe itself is as it was.
  assert scaled_to_batch(scaled)[1] == []
  assert config.optimizer.learning_rate == 0.02


def test_scaled_to_batch_leaves_what_the_user_gave():
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
  # From 0.08 - 800 * 0.0001 = 0 before, from 0.16 - 400 * 0.0004 = 0 now.
  assert scaled.optimizer.warmup_steps == 400
  assert scaled.optimizer.warmup_factor == pytest.approx(4e-4)


@pytest.mark.parametrize('why', ['no reference', 'the same', 'switched off'])
def test_scaled_to_batch_does_nothing_unasked(why):
  config = default_config()
  config.train.batch_size = 8
  match why:
    case 'the same':
      config.train.reference_batch_size = 8
    case 'switched off':
      config.train.reference_batch_size = 16
      config.train.auto_scale = False
  scaled, lines = scaled_to_batch(config)
  assert lines == []
  assert scaled.optimizer.learning_rate == config.optimizer.learning_rate
  assert scaled.train.num_steps == config.train.num_steps


@pytest.mark.parametrize(
    ('key', 'value', 'what'),
    [
        ('short_sides', (640, 801), 'short_sides is .640, 801.; give whole'),
        ('short_sides', (0,), 'give whole numbers up to'),
        ('scale_jitter', (0.1,), 'give the least and the greatest'),
        ('scale_jitter', (0.0, 2.0), 'give the least and the greatest'),
        ('scale_jitter', (2.0, 0.1), 'give the least and the greatest'),
        ('color_jitter', (0.4, 0.4), 'give three numbers'),
        ('color_jitter', (0.4, 0.4, 1.5), 'give three numbers'),
    ],
)
def test_check_config_refuses_augmentation_that_makes_no_sense(
    key, value, what
):
  config = default_config()
  config.data[key] = value
  with pytest.raises(InputError, match=what):
    check_config(config)


def test_check_config_looks_at_the_types_of_an_open_recipe_too():
  config = default_config()
  config.train.fine_tune = True
  check_config(config)
  config.anchors.ratios = ('wide',)
  with pytest.raises(InputError, match='C05: config.anchors.ratios'):
    check_config(config)


def test_check_config_refuses_two_ways_to_size_an_image():
  config = default_config()
  config.data.short_sides = (640, 800)
  check_config(config)
  config.data.scale_jitter = (0.1, 2.0)
  with pytest.raises(InputError, match='so give one'):
    check_config(config)
