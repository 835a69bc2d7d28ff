"""Tests of fine_tuning.py and configs/finetune.py."""

import importlib.util
import pathlib

import pytest
import tiny

from maskrcnn_jax.config import default_config, fine_tuning, plain
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import checkpoint

RECIPE = pathlib.Path(__file__).parents[2] / 'configs' / 'finetune.py'


def recipe():
  spec = importlib.util.spec_from_file_location('finetune', RECIPE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def fitted(num_images, *, most_objects=5, config=None, **stored):
  given = default_config()
  given.update(stored)
  config = fine_tuning.adopt(config or recipe(), plain(given))
  return fine_tuning.fit(
      config, num_images=num_images, most_objects=most_objects
  )


@pytest.mark.parametrize(
    ('num_images', 'num_steps'),
    [
        (3, 100),  # 60 epochs are 45
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
      num_steps * 2 // 3, num_steps * 8 // 9
  )
  assert config.train.checkpoint_every == num_steps // 10
  check_config(config)
  assert f'train.num_steps {num_steps}' in line
  assert not config.train.fine_tune


def test_adopt_defaults_fills_what_is_open_and_keeps_the_rest():
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


def test_fit_keeps_what_is_given():
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
    [(0, 8, 100), (8, 8, 100), (9, 16, 100), (150, 152, 152),
     (2000, 512, 512)],
)
def test_fit_makes_room_for_the_objects(most, slots, detections):
  config, _ = fitted(50, most_objects=most)
  assert config.data.max_objects == slots
  assert config.detections.max_detections == detections


def test_adopt_takes_half_the_rate_per_image_of_the_checkpoint():
  # 0.02 for 16 images; 0.005 for 4, of which half.
  assert fitted(50)[0].optimizer.learning_rate == 0.0025


def test_adopt_takes_what_the_weights_ask_for():
  stored = tiny.get_config()
  stored.geometry = 'legacy'
  stored.freeze_at = 1
  given = recipe()
  given.data.padded_sizes = ((96, 96),)
  config = fine_tuning.adopt(given, plain(stored))
  assert config.model.to_dict() == stored.model.to_dict()
  assert config.geometry == 'legacy'
  assert config.freeze_at == 1
  assert plain(config.anchors) == plain(stored.anchors)
  assert plain(config.rpn) == plain(stored.rpn)
  assert config.roi.num_samples == stored.roi.num_samples
  assert config.data.short_side == 64
  assert config.data.padded_sizes == ((96, 96),)  # as given


@pytest.mark.usefixtures('compilation_cache')
def test_fine_tuning_needs_paths_and_a_checkpoint_only(
    tiny_data, tiny_run, tmp_path
):
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

  # The same command goes on, and the recipe is good for using the model too.
  config.train.num_steps = 3
  config.optimizer.decay_steps = (1,)
  config.optimizer.warmup_steps = 0
  config.train.checkpoint_every = 1
  with pytest.raises(InputError, match='decay_steps'):
    tiny.run_training(config, workdir, init_from=tiny_run[0])
  config.expected.box_ap = (30.0, 1.0)
  detector = load_detector(workdir, config)
  assert detector.config.model.width == 8
  assert detector.config.data.eval.annotations == config.data.eval.annotations
  assert detector.config.expected.box_ap == (30.0, 1.0)


def test_what_is_given_holds_for_the_use_of_a_fine_tuned_model(tiny_run):
  config = recipe()
  # As --config.KEY=VALUE does: into the recipe too.
  config.predict.min_score = 0.25
  changes = {
      'detections.max_detections': 3, 'data.short_side': 48,
      'predict.min_score': 0.25,
  }
  detector = load_detector(tiny_run[0], config, changes)
  assert detector.config.detections.max_detections == 3
  assert detector.config.data.short_side == 48
  assert detector.config.predict.min_score == 0.25
  assert detector.config.detections.min_score == 0.0  # the checkpoint's
  with pytest.raises(InputError, match='max_detections is 0'):
    load_detector(tiny_run[0], config, {'detections.max_detections': 0})
  with pytest.raises(InputError, match='geometry: legacy | modern'):
    load_detector(tiny_run[0], config, {'geometry': 'legacy'})


def test_fine_tuning_without_a_checkpoint_is_refused(tiny_data, tmp_path):
  config = tiny.with_data(recipe(), tiny_data)
  with pytest.raises(InputError, match='--init_from=CHECKPOINT is missing'):
    tiny.run_training(config, tmp_path)
