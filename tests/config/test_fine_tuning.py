"""Tests of fine_tuning.py and configs/finetune.py."""

import pytest
import tiny

from maskrcnn_jax.config import default_config, fine_tuning, plain
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.command_line import apply_overrides, parse_overrides
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.keys import KEYS
from maskrcnn_jax.config.recipe import Recipe, read_recipe
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import checkpoint


def recipe():
  return read_recipe('finetune').config


def fitted(num_images, *, most_objects=5, config=None):
  config, _ = fine_tuning.adopt(config or recipe(), plain(default_config()))
  return fine_tuning.fit(
    config, num_images=num_images, most_objects=most_objects
  )


@pytest.mark.parametrize(
  ('num_images', 'num_steps'),
  [
    (3, 100),  # the smallest number; 60 epochs would be 45 steps
    (50, 750),  # 60 * 50 / 4
    (500, 3355),  # 60 * sqrt(1 / 5) = 26.83 epochs
    (5_000, 15_000),  # 12 epochs
    (50_000, 150_000),
  ],
)
def test_fit_takes_the_steps_from_the_number_of_images(num_images, num_steps):
  config, line = fitted(num_images)
  assert config.train.num_steps == num_steps
  assert config.optimizer.warmup_steps == min(num_steps // 10, 500)
  assert config.optimizer.decay_steps == (
    num_steps * 2 // 3,
    num_steps * 8 // 9,
  )
  assert config.train.checkpoint_every == num_steps // 10
  check_config(config)
  assert f'train.num_steps {num_steps}' in line
  assert not config.train.fine_tune


def test_adopt_defaults_fills_open_keys_and_keeps_the_others():
  given = recipe()
  given.model.output = 'boxes'
  given.data.short_side = 320
  config = fine_tuning.adopt_defaults(given)
  assert config.model.output == 'boxes'
  assert config.data.short_side == 320
  assert config.data.long_side == default_config().data.long_side
  assert len(config.anchors.sizes) == 5
  config, _ = fine_tuning.fit(config, num_images=10, most_objects=3)
  check_config(config)


def test_fit_keeps_given_values():
  given = recipe()
  given.train.num_steps = 30
  given.optimizer.learning_rate = 0.5
  given.data.max_objects = 3
  config, line = fitted(500, config=given)
  assert config.train.num_steps == 30
  assert config.optimizer.decay_steps == (20, 26)
  assert config.optimizer.learning_rate == 0.5
  assert config.data.max_objects == 3
  assert 'learning_rate 0.5' in line
  # The recipe itself stays open.
  assert given.optimizer.decay_steps is None


@pytest.mark.parametrize(
  ('most', 'slots', 'detections'),
  [(0, 8, 100), (8, 8, 100), (9, 16, 100), (150, 152, 152), (2000, 512, 512)],
)
def test_fit_makes_room_for_the_objects(most, slots, detections):
  config, _ = fitted(50, most_objects=most)
  assert config.data.max_objects == slots
  assert config.detections.max_detections == detections


def test_adopt_takes_half_the_rate_per_image_of_the_checkpoint():
  # 0.02 for 16 images is 0.005 for 4 images; half of that is 0.0025.
  assert fitted(50)[0].optimizer.learning_rate == 0.0025


def test_adopt_takes_the_keys_of_the_network_from_the_checkpoint():
  stored = tiny.get_config()
  stored.geometry = 'legacy'
  stored.freeze_at = 1
  given = recipe()
  given.data.padded_sizes = ((96, 96),)
  config, lines = fine_tuning.adopt(given, plain(stored))
  assert lines == []
  assert config.model.to_dict() == stored.model.to_dict()
  assert config.geometry == 'legacy'
  assert config.freeze_at == 1
  assert plain(config.anchors) == plain(stored.anchors)
  assert plain(config.rpn) == plain(stored.rpn)
  assert config.roi.num_samples == stored.roi.num_samples
  assert config.data.short_side == 64
  assert config.data.padded_sizes == ((96, 96),)  # as the recipe sets it


def test_these_keys_are_taken_from_the_checkpoint():
  assert set(fine_tuning.FROM_CHECKPOINT) == {
    'geometry',
    'roi.box_side',
    'roi.mask_side',
    'roi.sampling_ratio',
    'data.pixel_mean',
    'data.pixel_std',
    'data.antialias',
    *(key.name for key in KEYS if key.name.startswith('model.')),
  }
  config = recipe()
  open_keys = {
    key.name
    for key in KEYS
    if value_of(config, key.name) is None and not key.form.may_be_none
  }
  assert open_keys - set(fine_tuning.COMPUTED) == {
    'anchors.sizes',
    'anchors.ratios',
    'data.short_side',
    'data.long_side',
    'detections.min_score',
    'detections.iou_threshold',
    'data.padded_sizes',
    'data.max_source_side',
    'rpn.num_samples',
    'roi.num_samples',
    'freeze_at',
    *(
      f'rpn.{mode}.{name}'
      for mode in ('train', 'eval')
      for name in ('pre_nms', 'post_nms', 'num_proposals')
    ),
  }


@pytest.mark.parametrize(
  ('key', 'written', 'expected'),
  [
    ('freeze_at', '0', 0),
    ('data.short_side', '480', 480),
    ('anchors.ratios', '1,2', (1, 2)),
    ('train.num_steps', '7', 7),
    ('rpn.eval.post_nms', '9', 9),
    ('optimizer.name', 'adamw', 'adamw'),
    ('geometry', 'modern', 'modern'),
    ('model.depth', '50', 50),
    # The preset's own value, written out.
    ('data.antialias', 'true', None),
    ('model.depth', '18', InputError),
    ('model.output', 'boxes', InputError),
    ('data.pixel_std', '1,1,1', InputError),
    ('geometry', 'legacy', InputError),
  ],
)
def test_a_given_value_is_used_or_refused(key, written, expected):
  config = recipe()
  given = parse_overrides([(key, written)])
  apply_overrides(config, given)
  stored = plain(default_config())
  if expected is InputError:
    message = f'^C02: .*{key}.*Leave --config.{key} out'
    with pytest.raises(InputError, match=message):
      fine_tuning.adopt(config, stored, frozenset(given))
  else:
    adopted, _ = fine_tuning.adopt(config, stored, frozenset(given))
    assert value_of(adopted, key) == expected


def test_keys_of_the_file_that_differ_from_the_checkpoint_are_named():
  config = recipe()
  config.model.depth = 101
  adopted, (line,) = fine_tuning.adopt(config, plain(default_config()))
  assert adopted.model.depth == 50
  assert 'model.depth: 101 | 50' in line


@pytest.mark.usefixtures('compilation_cache')
def test_fine_tuning_needs_paths_and_a_checkpoint_only(
  tiny_data, tiny_run, tmp_path, monkeypatch
):
  # The training step is not run here; test_packaging.py runs it.
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.jit_train_step', lambda _: tiny.IdleStep()
  )
  config = tiny.with_data(recipe(), tiny_data)
  config.train.num_steps = 2
  config.train.batch_size = 2
  workdir = tmp_path / 'run'
  first = tiny.run_training(config, workdir, init_from=tiny_run[0])
  assert len(first) == 2
  log = (workdir / 'log.txt').read_text()
  assert 'Fine-tuning on 8 images of at most' in log
  stored = checkpoint.read_metadata(checkpoint.find_checkpoint(workdir)).recipe
  assert stored['train']['num_steps'] == 2
  assert stored['model']['width'] == 8

  # The same command continues the training, and the recipe can be used to
  # evaluate the model too.
  config.train.num_steps = 3
  config.optimizer.decay_steps = (1,)
  config.optimizer.warmup_steps = 0
  config.train.checkpoint_every = 1
  with pytest.raises(InputError, match='decay_steps'):
    tiny.run_training(config, workdir, init_from=tiny_run[0])
  config.expected.box_ap = (30.0, 1.0)
  detector = load_detector(workdir, Recipe(config, {}, 'finetune'))
  assert detector.config.model.width == 8
  assert detector.config.data.eval.annotations == config.data.eval.annotations
  assert detector.config.expected.box_ap == (30.0, 1.0)


def test_fine_tuning_without_a_checkpoint_is_refused(tiny_data, tmp_path):
  config = tiny.with_data(recipe(), tiny_data)
  with pytest.raises(InputError, match='--init_from=CHECKPOINT is missing'):
    tiny.run_training(config, tmp_path)


@pytest.mark.parametrize(('short_side', 'warns'), [(24, True), (40, False)])
def test_a_fine_tuning_warns_if_the_data_are_shrunk(
  tiny_run, tiny_data, tmp_path, monkeypatch, caplog, short_side, warns
):
  def end(*_, **__):
    """Ends the training after it has read the data."""
    raise InputError('read')

  monkeypatch.setattr('maskrcnn_jax.training.run.first_state', end)
  config = tiny.with_data(recipe(), tiny_data)
  # The images are of 64 x 64 pixels.
  config.data.short_side = short_side
  with pytest.raises(InputError, match='^read$'):
    tiny.run_training(config, tmp_path / 'run', init_from=tiny_run[0])
  # 24 / 64 is 0.375.
  warnings = [text for text in caplog.messages if 'SHRUNK to 0.38' in text]
  assert len(warnings) == warns
