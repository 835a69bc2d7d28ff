"""Tests of the recipes in configs/."""

import importlib.util

from ml_collections import ConfigDict
import pytest

from maskrcnn_jax.config import default_config, facts_of, fine_tuning, plain
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe import packaged_recipes
from maskrcnn_jax.model.backbone import frozen_prefixes

CONFIGS = list(packaged_recipes().values())


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def complete(config):
  """Fills in the open keys of a fine-tuning, as from a checkpoint and data."""
  if config.train.fine_tune:
    stored = load_named('r50_fpn').get_config()
    config, _ = fine_tuning.adopt(config, plain(stored))
    config, _ = fine_tuning.fit(config, num_images=500, most_objects=20)
  return config


def load_named(name):
  return load(CONFIGS[0].parent / f'{name}.py')


def test_there_are_recipes():
  assert {'r50_fpn', 'shapes'} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_is_complete_and_locked(path):
  config = complete(load(path).get_config())
  check_config(config)
  assert config.is_locked
  assert config.optimizer.is_locked
  assert facts_of(config).keys() == facts_of(default_config()).keys()


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_makes_a_new_config_each_time(path):
  module = load(path)
  module.get_config().train.batch_size = 999
  assert module.get_config().train.batch_size != 999


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_names_the_batch_size_that_its_steps_are_for(path):
  train = load(path).get_config().train
  # A fine-tuning computes its learning rate and steps for any batch size.
  expected = None if train.fine_tune else train.batch_size
  assert train.reference_batch_size == expected


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_says_how_it_is_run(path):
  text = load(path).__doc__
  assert 'maskrcnn_jax.main' in text or 'scripts/quickstart.sh' in text


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_has_a_canvas_for_pictures_lying_and_standing(path):
  data = complete(load(path).get_config()).data
  sides = data.short_side, data.long_side
  for height, width in (sides, sides[::-1]):
    assert any(h >= height and w >= width for h, w in data.padded_sizes)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_decays_within_its_steps_and_after_its_warmup(path):
  config = complete(load(path).get_config())
  steps = [
    config.optimizer.warmup_steps,
    *config.optimizer.decay_steps,
    config.train.num_steps,
  ]
  assert steps == sorted(set(steps))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_freezes_nothing_that_starts_random(path):
  # A recipe with group normalization is trained from scratch.
  config = load(path).get_config()
  if config.model.norm == 'group':
    assert frozen_prefixes(config.freeze_at) == ()


def test_r50_fpn_is_the_1x_recipe_of_nvidias_readme():
  config = load_named('r50_fpn').get_config()
  # Recipe A, "README 1x": 16 images a step, 0.02 falling at 60k and 80k of
  # 90k steps, 500 steps of warm-up from a third.
  assert config.train.batch_size == 16
  assert config.train.num_steps == 90_000
  assert config.train.checkpoint_every == 2_500
  assert config.optimizer.to_dict() == {
    'name': 'sgd',
    'learning_rate': 0.02,
    'momentum': 0.9,
    'beta2': 0.999,
    'weight_decay': 1e-4,
    'bias_rate_factor': 2.0,
    'clip_norm': 0.0,
    'warmup': 'linear',
    'warmup_steps': 500,
    'warmup_factor': pytest.approx(1 / 3),
    'schedule': 'multistep',
    'decay_steps': (60_000, 80_000),
    'decay_factor': 0.1,
  }
  assert (config.data.short_side, config.data.long_side) == (800, 1333)
  assert config.data.flip_probability == 0.5
  assert not config.data.keep_empty
  assert config.model.depth == 50
  assert config.freeze_at == 2


def test_r50_fpn_has_the_published_detector():
  config = load_named('r50_fpn').get_config()
  assert config.anchors.sizes == ((32,), (64,), (128,), (256,), (512,))
  assert config.anchors.ratios == (0.5, 1.0, 2.0)
  assert (config.rpn.num_samples, config.roi.num_samples) == (256, 512)
  assert (config.rpn.foreground_iou, config.rpn.background_iou) == (0.7, 0.3)
  assert config.roi.foreground_fraction == 0.25
  assert (config.roi.box_side, config.roi.mask_side) == (7, 14)
  assert config.detections.to_dict() == {
    'min_score': 0.05,
    'iou_threshold': 0.5,
    'max_detections': 100,
  }


@pytest.mark.parametrize('year', ['2014', '2017'])
def test_r50_fpn_reads_coco_of_either_year(year):
  config = load_named('r50_fpn').get_config(year)
  assert isinstance(config, ConfigDict)
  assert config.data.train.images == f'data/coco/train{year}'
  assert config.data.eval.annotations == (
    f'data/coco/annotations/instances_val{year}.json'
  )


def test_r50_fpn_expects_the_published_ap_of_2017_and_none_for_2014():
  expected = load_named('r50_fpn').get_config('2017').expected
  assert (expected.box_ap[0], expected.mask_ap[0]) == (0.378, 0.349)
  expected = load_named('r50_fpn').get_config('2014').expected
  assert expected.box_ap is None
  assert expected.mask_ap is None


def test_r50_fpn_refuses_another_year():
  with pytest.raises(ValueError, match='2014 or 2017'):
    load_named('r50_fpn').get_config('2013')
