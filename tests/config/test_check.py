"""Tests of the check of a recipe."""

import pytest

from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.defaults import set_value
from maskrcnn_jax.errors import InputError


def test_the_defaults_pass_their_own_check():
  check_config(default_config())


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
    ('roi', 'sampling_ratio', 'two'),
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
    ('kernels', 'cuda', r"kernels is 'cuda'; choose one of 'auto', 'xla'"),
    ('model.depth', 51, r'config.model.depth is 51; .*18, 34, 50, 101'),
    ('model.norm', 'batch', r"model.norm is 'batch'; .*'frozen_batch'"),
    ('model.output', 'all', r"output is 'all'; .*'masks', 'boxes', 'prop"),
    ('model.body', 'c6', r"body is 'c6'; choose one of 'fpn', 'c4', 'c5'"),
    ('model.backbone', 'vgg', r"is 'vgg'; choose one of 'resnet', 'convn"),
    ('eval.backend', 'slow', r"backend is 'slow'; .*'pycocotools', 'fast"),
    ('freeze_at', 6, r'freeze_at is 6; .*0 to 5'),
    ('freeze_at', -1, r'freeze_at is -1'),
    ('anchors.sizes', ((32.0,),) * 4, r'has 4 entries; .*levels 2 to 6'),
    (
      'anchors.sizes',
      ((32.0,),) * 4 + ((1.0, 2.0),),
      r'same number of sizes',
    ),
    ('train.batch_size', 0, r'train.batch_size is 0; .*at least 1'),
    ('train.batch_size', True, r'batch_size is True; give a whole number'),
    ('data.num_threads', 0, r'data.num_threads is 0'),
    ('train.micro_batches', 0, r'train.micro_batches is 0'),
    ('train.watchdog_seconds', -1.0, r'watchdog_seconds is -1.0; it m'),
    ('train.ema_decay', 1.0, r'train.ema_decay is 1'),
    ('train.min_box_ap', 0.4, r'--config.train.eval_every=STEPS'),
    ('train.eval_every', -1, r'train.eval_every is -1; .*at least 0'),
    ('train.reference_batch_size', 0, r'batch_size is 0; give the batch'),
    ('expected.box_ap', (0.4,), r'expected.box_ap is .*mean, tolerance'),
    ('optimizer.clip_norm', -1.0, r'optimizer.clip_norm is -1'),
    ('optimizer.warmup', 'slow', r"warmup is 'slow'; .*'mlperf_linear'"),
    ('optimizer.schedule', 'step', r"schedule is 'step'; .*'cosine'"),
    ('optimizer.name', 'adam', r"name is 'adam'; choose one of 'sgd', 'ad"),
    ('optimizer.beta2', 1.5, r'beta2 is 1.5; it must be between 0 and 1'),
    ('loss_weights.mask', -1.0, r'loss_weights.mask is -1.0; .*at least 0'),
    ('roi.num_samples', -4, r'roi.num_samples is -4'),
    ('roi.num_samples', 3, r'is less than 1; no mask would ever'),
    ('roi.sampling_ratio', -1, r'is -1; give the number of samples along'),
    ('data.pixel_range', (0,), r'pixel_range is .0,.; give the values'),
    ('data.pixel_range', (9, 9), r'pixel_range is .9, 9.; give the val'),
    ('data.pixel_range', (0, 1e11), r'give the values that become black'),
    ('data.padded_sizes', ((800, 1333),), r'\(800, 1333\); .*multiples'),
    ('data.padded_sizes', ((0, 32),), r'\(0, 32\)'),
    ('data.padded_sizes', (), r'padded_sizes is empty; give at least one'),
    ('data.padded_sizes', ((32,),), r'\(\(32,\),\); .*pairs in whole pixe'),
    ('data.padded_sizes', ((32.0, 64.0),), r'pairs in whole pixels'),
    ('anchors.sizes', (32.0,) * 5, r'give a tuple of sizes for each level'),
    ('anchors.sizes', ((),) * 5, r'give numbers above 0'),
    ('anchors.sizes', ((0.0,),) * 5, r'give numbers above 0'),
    ('anchors.ratios', ('1',), r'give ratios'),
    ('data.pixel_std', (0.0, 1.0, 1.0), r'give numbers above 0'),
    ('data.pixel_std', (1.0, 1.0), r'give three numbers, for red'),
    ('data.pixel_mean', (-1.0, 1.0, 1.0), r'numbers of at least 0'),
    ('optimizer.decay_steps', (-1,), r'numbers of at least 0'),
    ('optimizer.decay_steps', (1.5,), r'give whole numbers'),
    ('optimizer.decay_steps', (True,), r'give whole numbers'),
    ('optimizer.momentum', float('inf'), r'is inf; .*finite number'),
    ('expected.box_ap', (0.4, float('nan')), r'must be finite'),
    ('expected.box_ap', ('a', 'b'), r'mean, tolerance'),
    ('optimizer.weight_decay', -1e-4, r'weight_decay is -0.0001'),
    ('detections.min_score', 1.5, r'is 1.5; it must be between 0 and 1'),
    ('model.mask_convs', -1, r'mask_convs is -1; .*at least 0'),
    ('data.short_sides', (640, 801), r'is .640, 801.; give whole .*\(800'),
    ('data.short_sides', (0,), r'give numbers of at least 1'),
    ('data.short_sides', (64.5,), r'give whole numbers, for example'),
    ('data.scale_jitter', (0.1,), r'give the least and the greatest'),
    ('data.scale_jitter', (0.0, 2.0), r'give the least and the greatest'),
    ('data.scale_jitter', (2.0, 0.1), r'give the least and the greatest'),
    ('data.color_jitter', (0.4, 0.4), r'give three numbers'),
    ('data.color_jitter', (0.4, 0.4, 1.5), r'give three numbers'),
    ('train.num_steps', None, r'num_steps is None; .*may leave keys open'),
  ],
)
def test_check_config_explains_a_wrong_value(key, value, message):
  config = default_config()
  set_value(config, key, value)
  with pytest.raises(InputError, match=f'^C05: .*{message}'):
    check_config(config)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'model.groups': 2, 'model.depth': 18}, 'has no bottleneck blocks'),
    ({'train.eval_every': 1, 'train.eval_every_epochs': 1.0}, 'not both'),
    ({'optimizer.name': 'adamw', 'optimizer.momentum': 1.0}, 'below 1 for'),
    ({'optimizer.name': 'adamw', 'optimizer.beta2': 1.0}, 'beta2 is 1.0'),
    (
      {'data.short_sides': (640, 800), 'data.scale_jitter': (0.1, 2.0)},
      'so give only one',
    ),
    ({'model.body': 'c4'}, 'the only level of a body'),
    ({'model.body': 'c5'}, 'the only level of a body'),
    ({'model.body': 'dc5', 'model.depth': 34}, 'alone can be dilated'),
  ],
)
def test_check_config_compares_keys(values, message):
  config = default_config()
  for key, value in values.items():
    set_value(config, key, value)
  with pytest.raises(InputError, match=message):
    check_config(config)


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('model.depth', 18),
    ('model.groups', 32),
    ('model.group_width', 8),
    ('model.stride_in_1x1', True),
    ('model.width', 32),
    ('model.body', 'c4'),
    ('model.body', 'dc5'),
  ],
)
def test_keys_of_the_resnet_are_refused_for_another_backbone(key, value):
  config = default_config()
  config.model.backbone = 'convnext_tiny'
  check_config(config)
  set_value(config, key, value)
  with pytest.raises(InputError, match=f'C05: config.{key} is .*ResNet'):
    check_config(config)


def test_check_config_looks_at_the_values_of_an_open_recipe_too():
  config = default_config()
  config.train.fine_tune = True
  set_value(config, 'anchors.sizes', None)
  check_config(config)
  config.anchors.ratios = ('wide',)
  with pytest.raises(InputError, match='C05: config.anchors.ratios'):
    check_config(config)


def test_the_use_of_a_model_does_not_compare_keys_of_training():
  config = default_config()
  config.data.short_sides = (640, 960)
  with pytest.raises(InputError, match='short_sides'):
    check_config(config)
  check_config(config, for_training=False)
