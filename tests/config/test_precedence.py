"""Tests of the value that each key has when a trained model is used."""

import pathlib

import pytest
import tiny

from maskrcnn_jax.config import default_config, plain
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.command_line import apply_overrides, parse_overrides
from maskrcnn_jax.config.defaults import set_value, value_of
from maskrcnn_jax.config.precedence import config_for_use
from maskrcnn_jax.config.recipe import Recipe, read_recipe
from maskrcnn_jax.errors import InputError


def use(*, stored=(), file=None, given=()):
  """Makes the recipe for evaluating a checkpoint with `config_for_use`.

  Args:
    stored: {key: value} that the checkpoint has instead of the defaults.
    file: {key: value} that a recipe file has instead of the defaults; or the
      name of a recipe; or `None` for no recipe file.
    given: {key: text} of the command line.

  Returns:
    The recipe, and the lines for the log.
  """
  there = default_config()
  for key, value in dict(stored).items():
    set_value(there, key, value)
  path = None if file is None else 'recipe.py'
  config = default_config()
  if isinstance(file, str):
    config = read_recipe(file).config
  else:
    for key, value in (file or {}).items():
      set_value(config, key, value)
  values = parse_overrides(list(dict(given).items()))
  apply_overrides(config, values)
  config, lines = config_for_use(Recipe(config, values, path), plain(there))
  check_config(config, for_training=False)
  return config, lines


# `stored`, `file` and `given` are the values of the key in the checkpoint, in
# the recipe file and on the command line; `expected` is the value that is used.
# `None` means that there is no recipe file, or that the key is not given.
@pytest.mark.parametrize(
  ('key', 'stored', 'file', 'given', 'expected'),
  [
    # Keys of the weights: the value of the checkpoint.
    ('model.mask_convs', 2, None, None, 2),
    ('model.mask_convs', 2, 3, None, 2),
    ('model.mask_convs', 2, 3, '2', 2),
    ('model.mask_convs', 2, None, '2', 2),
    ('model.mask_convs', 2, 3, '3', InputError),
    ('model.mask_convs', 2, 2, '3', InputError),
    ('model.mask_convs', 2, None, '3', InputError),
    ('geometry', 'legacy', 'modern', None, 'legacy'),
    ('geometry', 'legacy', None, 'modern', InputError),
    ('roi.sampling_ratio', 2, None, '0', InputError),
    ('anchors.ratios', (1.0,), (2.0,), None, (1.0,)),
    ('anchors.ratios', (1.0,), None, '2', InputError),
    ('data.pixel_std', None, None, '1,1,1', InputError),
    # The value of the preset, written out, does not count as another value.
    (
      'data.pixel_std',
      None,
      None,
      '58.395,57.12,57.375',
      (58.395, 57.12, 57.375),
    ),
    # Image sizes: the value on the command line; without one, the checkpoint's.
    ('data.short_side', 320, None, None, 320),
    ('data.short_side', 320, 640, None, 320),
    ('data.short_side', 320, 640, '480', 480),
    ('data.short_side', 320, None, '480', 480),
    # Keys of the evaluation: the value on the command line; without one, the
    # recipe file's; without a file, the checkpoint's.
    ('detections.min_score', 0.1, None, None, 0.1),
    ('detections.min_score', 0.1, 0.2, None, 0.2),
    ('detections.min_score', 0.1, 0.2, '0.3', 0.3),
    ('detections.min_score', 0.1, None, '0.3', 0.3),
    ('rpn.eval.post_nms', 10, 20, None, 20),
    ('data.eval.images', 'a', 'b', None, 'b'),
    ('data.eval.images', 'a', None, '2017', '2017'),
    ('expected.box_ap', (0.3, 0.1), 'none', None, None),
    # Keys of the machine, with the same rule.
    ('kernels', 'xla', 'pallas', None, 'pallas'),
    ('data.num_workers', 3, None, '1', 1),
    # Keys of the training that also have an effect on the evaluation.
    ('precision', 'bf16', None, None, 'bf16'),
    ('precision', 'bf16', 'tf32', None, 'tf32'),
    ('precision', 'bf16', 'tf32', 'fp32', 'fp32'),
    ('data.pixel_range', (0, 9), None, None, (0, 9)),
    ('data.pixel_range', (0, 9), (0, 7), '0,5', (0, 5)),
  ],
)
def test_the_value_that_is_used(key, stored, file, given, expected):
  options = {
    'stored': {key: stored},
    'file': file if file is None else {key: None if file == 'none' else file},
    'given': {} if given is None else {key: given},
  }
  if expected is InputError:
    with pytest.raises(InputError, match=rf'^C02: .*{key}: .* \| .*--config.'):
      use(**options)
  else:
    assert value_of(use(**options)[0], key) == expected


def test_keys_of_the_file_that_are_not_used_are_named_in_one_line():
  stored = {'model.depth': 18, 'data.long_side': 96, 'seed': 3}
  _, lines = use(stored=stored, file={'model.depth': 34, 'seed': 4})
  (line,) = lines
  assert line.endswith(': data.long_side: 1333 | 96; model.depth: 34 | 18')
  assert use(stored=stored, file=stored)[1] == []
  assert use(stored=stored)[1] == []


def test_keys_of_training_in_the_file_need_not_fit_the_checkpoint():
  config, _ = use(
    stored={'data.short_side': 320}, file={'data.short_sides': (640, 800)}
  )
  assert config.data.short_side == 320


def test_a_recipe_of_a_fine_tuning_leaves_open_keys_to_the_checkpoint():
  stored = {
    'rpn.eval.pre_nms': 30,
    'detections.max_detections': 7,
    'precision': 'bf16',
    'model.depth': 18,
    'predict.min_score': 0.9,
    'freeze_at': 1,
  }
  config, lines = use(
    stored=stored,
    file='finetune',
    given={'predict.min_score': '0.25', 'data.eval.images': 'here'},
  )
  assert lines == []
  assert config.predict.min_score == 0.25
  assert config.data.eval.images == 'here'
  assert config.model.depth == 18
  assert config.rpn.eval.pre_nms == 30
  assert config.detections.max_detections == 7
  assert config.precision == 'bf16'
  assert config.freeze_at == 1
  assert not config.train.fine_tune


@pytest.fixture
def used(monkeypatch):
  """Returns a list to which each prediction adds its recipe.

  Nothing is predicted.
  """
  configs = []

  def predict(detector, **_):
    configs.append(detector.config)
    return []

  monkeypatch.setattr('maskrcnn_jax.prediction.predict.predict', predict)
  return configs


# The same rule through the command line. If `file` is True, the recipe file is
# `tiny`, with which the checkpoint was trained.
@pytest.mark.usefixtures('compilation_cache')
@pytest.mark.parametrize(
  ('file', 'arguments', 'key', 'expected'),
  [
    (False, '', 'detections.max_detections', 8),
    (
      True,
      '--config.detections.max_detections=3',
      'detections.max_detections',
      3,
    ),
    (
      False,
      '--config.detections.max_detections 3',
      'detections.max_detections',
      3,
    ),
    (False, '--config.data.short_side=48', 'data.short_side', 48),
    (True, '--config.model.depth=18', 'model.depth', 18),
    (False, '--config.model.depth=34', 'model.depth', 'C02: '),
    (True, '--config.geometry=legacy', 'geometry', 'legacy | modern'),
    (False, '--config.anchors.ratios=1,2', 'anchors.ratios', 'C02: '),
    (False, '--config.anchors.sizes=8,16', 'anchors.sizes', 'C05: '),
  ],
)
def test_the_command_line_follows_the_rule(
  run, refuse, used, tiny_run, tmp_path, file, arguments, key, expected
):
  arguments = [
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path}',
    '--input=none',
    *([f'--config={tiny.__file__}'] if file else []),
    *arguments.split(),
  ]
  if isinstance(expected, str):
    assert expected in refuse(*arguments)
  else:
    code, _, err = run(*arguments)
    assert code == 0, err
    assert value_of(used[0], key) == expected


@pytest.mark.usefixtures('compilation_cache')
def test_a_file_of_another_network_is_named_and_the_checkpoint_used(
  run, used, tiny_run, tmp_path, caplog
):
  recipe = pathlib.Path(tmp_path / 'other.py')
  recipe.write_text(
    pathlib.Path(tiny.__file__).read_text()
    + '\n_tiny = get_config\ndef get_config():\n  config = _tiny()\n'
    '  config.model.depth = 34\n  config.detections.min_score = 0.5\n'
    '  return config\n'
  )
  with caplog.at_level('INFO'):
    code, _, err = run(
      f'--config={recipe}',
      '--mode=predict',
      '--input=none',
      f'--checkpoint={tiny_run[0]}',
      f'--workdir={tmp_path}',
    )
  assert code == 0, err
  assert 'model.depth: 34 | 18' in caplog.text
  assert used[0].model.depth == 18
  assert used[0].detections.min_score == 0.5
