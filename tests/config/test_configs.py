"""Tests of the recipes in configs/."""

import importlib.util
import re

import pytest

from maskrcnn_jax.config import (
  default_config,
  facts_of,
  fine_tuning,
  geometry_of,
  plain,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe import packaged_recipes, read_recipe
from maskrcnn_jax.errors import InputError
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
  if path.stem == 'r50_fpn_1gpu':
    # As in NVIDIA's file, the second decay comes when the training has ended.
    assert steps.pop() == steps[-1]
  assert steps == sorted(set(steps))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_recipe_freezes_nothing_that_starts_random(path):
  module = load(path)
  if '--init_from' not in module.__doc__:
    assert frozen_prefixes(module.get_config().freeze_at) == ()


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


FOR_COCO = [
  path for path in CONFIGS if 'coco_arguments' in path.read_text('utf-8')
]


def test_there_is_a_recipe_for_each_model_of_nvidias_program():
  assert {path.stem for path in FOR_COCO} == {
    'r50_fpn',
    'r50_fpn_bs32',
    'r50_fpn_bs64',
    'r50_fpn_bs96',
    'r50_fpn_1gpu',
    'r101_fpn',
    'x101_32x8d_fpn',
    'r50_c4',
    'r101_c4',
    'r50_c5',
    'r101_c5',
    'r50_dc5',
    'r50_fpn_gn',
    'r101_fpn_gn',
    'r50_fpn_gn_scratch',
    'faster_rcnn_r50_fpn',
    'faster_rcnn_r50_c4',
    'rpn_r50_fpn',
  }


@pytest.mark.parametrize('path', FOR_COCO, ids=lambda path: path.stem)
def test_a_recipe_for_coco_says_hardware_and_ap(path):
  text = load(path).__doc__
  assert re.search(r'Hardware: (8 GPUs|1 GPU)', text)
  assert 'Not run here' in text or 'has not been run here' in text
  assert re.search('Expected|publishe', text)
  assert f'--config=configs/{path.stem}.py' in text


@pytest.mark.parametrize('path', FOR_COCO, ids=lambda path: path.stem)
def test_a_recipe_for_coco_takes_a_year_and_legacy(path):
  make = load(path).get_config
  assert plain(make()) == plain(make('2017'))
  assert plain(make('legacy')) == plain(make('legacy,2017'))
  for year, is_legacy, config in (
    ('2017', False, make()),
    ('2014', False, make('2014')),
    ('2017', True, make('legacy')),
    ('2014', True, make('legacy,2014')),
    ('2014', True, make('2014,legacy')),
  ):
    check_config(config)
    files = 'data/coco/annotations/instances_'
    assert (config.data.train.images, config.data.train.annotations) == (
      (
        ('data/coco/train2014', 'data/coco/val2014'),
        (f'{files}train2014.json', f'{files}valminusminival2014.json'),
      )
      if year == '2014'
      else ('data/coco/train2017', f'{files}train2017.json')
    )
    assert config.data.eval.images == f'data/coco/val{year}'
    assert config.data.eval.annotations == (
      f'{files}{"minival" if year == "2014" else "val"}{year}.json'
    )
    assert config.geometry == ('legacy' if is_legacy else 'modern')
    # The stride of a ResNeXt is in the 3x3 convolution in NVIDIA's program too.
    assert config.model.stride_in_1x1 == (
      is_legacy and config.model.groups == 1
    )
    assert config.eval.batch_size == (
      1 if path.stem == 'r50_fpn_1gpu' else 8  # TEST.IMS_PER_BATCH
    )
    # Both years train and evaluate on the same images.
    other = make('legacy' if is_legacy else '2017')
    assert plain(config.expected) == plain(other.expected)


@pytest.mark.parametrize('path', FOR_COCO, ids=lambda path: path.stem)
@pytest.mark.parametrize('arguments', ['2013', '', 'Legacy', '2014,2017', 'a'])
def test_a_recipe_for_coco_refuses_other_arguments(path, arguments):
  with pytest.raises(
    InputError,
    match=rf'^--config={path.stem}:{arguments}: .* 2014 or 2017, or legacy ',
  ):
    read_recipe(f'{path.stem}:{arguments}')


def test_legacy_given_twice_is_refused():
  with pytest.raises(ValueError, match="'legacy,legacy' is not an argument"):
    load_named('r50_fpn').get_config('legacy,legacy')


@pytest.mark.parametrize('name', ['', '_bs32', '_bs64', '_bs96'])
def test_r50_fpn_expects_the_published_ap(name):
  make = load_named(f'r50_fpn{name}').get_config
  expected = make().expected
  assert expected.box_ap == (0.378, 0.004)
  assert expected.mask_ap == (0.349, 0.004)
  # The mean of NVIDIA's five runs.
  expected = make('legacy').expected
  assert expected.box_ap == (0.377, 0.004)
  assert expected.mask_ap == (0.342, 0.004)


def test_legacy_is_the_detector_of_nvidias_program():
  config = load_named('r50_fpn').get_config('legacy')
  # Caffe2's batch norm was folded into a scale and a bias.
  assert config.model.norm_eps == 0.0
  geometry = geometry_of(config)
  assert geometry.sampling_ratio == 2
  assert geometry.roi_smooth_l1_beta == 1.0
  assert geometry.input_format.mean == (122.7717, 115.9465, 102.9801)
  assert geometry.input_format.std == (1.0, 1.0, 1.0)
  # 2000 for the two images of each of eight GPUs.
  assert config.rpn.train.num_proposals == 1000


def test_group_norm_starts_from_weights_for_pixels_without_a_deviation():
  for name in ('r50_fpn_gn', 'r101_fpn_gn'):
    config = load_named(name).get_config()
    assert config.data.pixel_std == (1.0, 1.0, 1.0)
    assert config.freeze_at == 2
    # Four convolutions and a fully connected layer.
    assert (config.model.box_convs, config.model.box_fcs) == (4, 1)
  assert load_named('r50_fpn_gn_scratch').get_config().freeze_at == 0


@pytest.mark.parametrize(
  ('name', 'model'),
  [
    ('r101_fpn', {'depth': 101}),
    ('x101_32x8d_fpn', {'depth': 101, 'groups': 32, 'group_width': 8}),
    ('r50_c4', {'body': 'c4', 'depth': 50}),
    ('r101_c4', {'body': 'c4', 'depth': 101}),
    ('r50_c5', {'body': 'c5', 'depth': 50}),
    ('r101_c5', {'body': 'c5', 'depth': 101}),
    ('r50_dc5', {'body': 'dc5', 'depth': 50}),
    ('r50_fpn_gn', {'norm': 'group', 'depth': 50}),
    ('r101_fpn_gn', {'norm': 'group', 'depth': 101}),
    ('faster_rcnn_r50_fpn', {'output': 'boxes', 'body': 'fpn'}),
    ('faster_rcnn_r50_c4', {'output': 'boxes', 'body': 'c4'}),
    ('rpn_r50_fpn', {'output': 'proposals', 'body': 'fpn'}),
  ],
)
def test_a_recipe_has_the_model_of_its_name(name, model):
  config = load_named(name).get_config()
  assert model.items() <= dict(config.model).items()


@pytest.mark.parametrize('name', ['r50_fpn', 'r101_fpn', 'nuclei', 'shapes'])
def test_a_pyramid_that_becomes_c4_names_the_recipe_to_take(name):
  with pytest.raises(InputError, match='begin with a recipe .*: r50_c4, r101_'):
    read_recipe(name, [('model.body', 'c4')])


def test_c4_that_becomes_a_pyramid_names_the_recipe_to_take():
  with pytest.raises(InputError, match='begin with a recipe .*: r50_fpn, '):
    read_recipe('r50_c4', [('model.body', 'fpn')])
