"""Tests of a recipe file used with a checkpoint of another network.

The checkpoints are converted from weight files of other programs. Each command
is that of a user.
"""

import json
import pathlib

from peer_files import draw_small, peer_shapes, write_weights
import pytest
import tiny

from maskrcnn_jax.config import c4_config, default_config, stored_config
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.keys import KEYS, WEIGHTS
from maskrcnn_jax.convert_weights.convert import convert
from maskrcnn_jax.data import coco
from maskrcnn_jax.runtime import checkpoint

pytestmark = pytest.mark.usefixtures('compilation_cache')

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
RECIPE = f'--config={CONFIGS / "r50_fpn.py"}'
LINE = 'The checkpoint decides keys that its weights depend on '

# {name: (program, depth of the ResNet, geometry)}
MODELS = {
  'torchvision18': ('torchvision', 18, 'torchvision'),
  'detectron50': ('detectron2', 50, 'modern'),
  'benchmark101': ('maskrcnn_benchmark', 101, 'legacy'),
  'c4': ('detectron2', 18, 'modern'),
}


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory, tiny_data):
  """A function that returns the converted checkpoint of one of `MODELS`."""
  folder = tmp_path_factory.mktemp('converted')
  names = coco.read_coco(tiny_data / 'instances_val.json').categories

  def checkpoint_of(model):
    if not (folder / model).exists():
      program, depth, _ = MODELS[model]
      config = default_config()
      sizes = dict(fpn_channels=4, box_features=8, mask_convs=1)
      if model == 'c4':
        config, sizes = c4_config(), {}
      config.model.update(sizes | dict(depth=depth, width=2, mask_channels=4))
      write_weights(
        folder / f'{model}.pkl',
        peer_shapes(config, len(names) + 1, program),
        draw_small,
      )
      convert(
        folder / f'{model}.pkl',
        folder / model,
        names=[list(name) for name in names],
      )
    return folder / model

  return checkpoint_of


def run_mode(run, mode, model_dir, workdir, data, *arguments):
  """Runs the program with a checkpoint and small images.

  Args:
    run: The fixture `run`.
    mode: 'predict' or 'eval'.
    model_dir: The checkpoint.
    workdir: Folder for the results.
    data: Folder of `tiny_data`.
    *arguments: Further arguments.

  Returns:
    The predictions, or the detections and the AP of the evaluation.
  """
  code, _, err = run(
    f'--mode={mode}',
    f'--checkpoint={model_dir}',
    f'--workdir={workdir}',
    *([f'--input={data / "images"}'] if mode == 'predict' else []),
    *(x for x in tiny.data_flags(data) if '.eval.' in x),
    '--config.data.short_side=64',
    '--config.data.padded_sizes=((96,96),)',
    '--config.detections.min_score=0.01',
    '--config.detections.max_detections=5',
    '--config.rpn.eval.num_proposals=20',
    # Numbers are rounded otherwise in batches of another size.
    '--config.eval.batch_size=1',
    *arguments,
  )
  assert code == 0, err
  names = {
    'predict': ['predictions/predictions.json'],
    'eval': ['inference/bbox.json', 'inference/coco_results.json'],
  }[mode]
  return [json.loads((workdir / name).read_text()) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['predict', 'eval'])
@pytest.mark.parametrize('model', ['torchvision18', 'detectron50'])
def test_a_recipe_of_another_network_changes_no_result(
  run, checkpoints, tiny_data, tmp_path, caplog, model, mode
):
  arguments = (mode, checkpoints(model), tmp_path, tiny_data)
  alone = run_mode(run, *arguments)
  assert alone[0]  # Something was found, or nothing would be compared.
  assert LINE not in caplog.text
  with caplog.at_level('INFO'):
    assert run_mode(run, *arguments, RECIPE) == alone
  assert sum(LINE in record.getMessage() for record in caplog.records) == 1


@pytest.fixture
def used(monkeypatch):
  """Returns a list to which each prediction and evaluation adds its recipe.

  Nothing is predicted or evaluated.
  """
  configs = []

  def predict(detector, **_):
    configs.append(detector.config)
    return 0

  def evaluate(detector, **_):
    configs.append(detector.config)
    return {}

  monkeypatch.setattr('maskrcnn_jax.prediction.predict.predict', predict)
  monkeypatch.setattr('maskrcnn_jax.training.evaluations.evaluate', evaluate)
  return configs


@pytest.mark.parametrize('mode', ['predict', 'eval'])
@pytest.mark.parametrize(
  'model',
  [
    'torchvision18',
    pytest.param('detectron50', marks=pytest.mark.slow),
    pytest.param('benchmark101', marks=pytest.mark.slow),
    'c4',
  ],
)
def test_one_line_names_the_keys_that_the_checkpoint_decides(
  run, used, checkpoints, tiny_data, tmp_path, caplog, model, mode
):
  _, depth, geometry = MODELS[model]
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    (CONFIGS / 'r50_fpn.py').read_text()
    + '\n_file = get_config\ndef get_config():\n  config = _file()\n'
    '  config.data.short_side, config.data.long_side = 320, 640\n'
    '  config.data.padded_sizes = ((640, 640),)\n'
    '  config.detections.max_detections = 7\n'
    '  return config\n'
  )
  with caplog.at_level('INFO'):
    code, _, err = run(
      f'--config={recipe}',
      f'--mode={mode}',
      *(['--input=none'] if mode == 'predict' else []),
      *(x for x in tiny.data_flags(tiny_data) if '.eval.' in x),
      f'--checkpoint={checkpoints(model)}',
      f'--workdir={tmp_path / "run"}',
      '--config.data.long_side=1000',
    )
  assert code == 0, err
  (config,) = used
  stored = stored_config(
    checkpoint.read_metadata(
      checkpoint.find_checkpoint(checkpoints(model))
    ).recipe
  )
  for key in KEYS:
    if key.role == WEIGHTS and key.name != 'data.long_side':
      assert value_of(config, key.name) == value_of(stored, key.name), key.name
  assert config.data.short_side == 800
  assert config.data.long_side == 1000
  assert config.detections.max_detections == 7

  (line,) = (
    record.getMessage()
    for record in caplog.records
    if LINE in record.getMessage()
  )
  keys, facts = line.split('(recipe file | checkpoint): ')
  assert keys == LINE
  named = dict(fact.split(': ') for fact in facts.split('; '))
  assert named['data.short_side'] == '320 | 800'
  assert 'data.long_side' not in named
  assert named['model.width'] == '64 | 2'
  assert named.get('model.depth', '50 | 50') == f'50 | {depth}'
  assert named.get('geometry', 'modern | modern') == f'modern | {geometry}'


# A key of the command line that agrees with the weights is accepted, and one
# that contradicts them is refused, whatever the recipe file says.
@pytest.mark.parametrize(
  ('model', 'given', 'refused'),
  [
    ('c4', 'model.body=c4', None),
    pytest.param(
      'c4', 'anchors.sizes=((32,64,128,256,512),)', None, marks=pytest.mark.slow
    ),
    ('c4', 'model.body=fpn', 'model.body: fpn | c4'),
    ('c4', 'roi.box_side=7', 'roi.box_side: 7 | 14'),
    pytest.param(
      'benchmark101', 'model.depth=101', None, marks=pytest.mark.slow
    ),
    pytest.param(
      'benchmark101',
      'model.depth=50',
      'model.depth: 50 | 101',
      marks=pytest.mark.slow,
    ),
    ('benchmark101', 'geometry=modern', 'geometry: modern | legacy'),
    ('torchvision18', 'geometry=legacy', 'geometry: legacy | torchvision'),
    pytest.param(
      'torchvision18', 'model.groups=1', None, marks=pytest.mark.slow
    ),
    pytest.param(
      'detectron50', 'data.pixel_std=1,1,1', None, marks=pytest.mark.slow
    ),
    ('detectron50', 'data.pixel_std=58,57,57', 'pixel_std: [58, 57, 57] |'),
  ],
)
def test_a_given_key_must_be_that_of_the_weights(
  run, refuse, used, checkpoints, tmp_path, model, given, refused
):
  arguments = [
    RECIPE,
    '--mode=predict',
    '--input=none',
    f'--checkpoint={checkpoints(model)}',
    f'--workdir={tmp_path}',
    f'--config.{given}',
  ]
  if refused:
    line = refuse(*arguments)
    assert 'C02: ' in line and refused in line
    assert f'Leave --config.{given.split("=")[0]} out.' in line
  else:
    code, _, err = run(*arguments)
    assert code == 0, err
    assert len(used) == 1


def test_a_given_image_size_need_not_fit_the_training_of_the_file(
  run, used, checkpoints, tmp_path
):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    (CONFIGS / 'r50_fpn.py').read_text()
    + '\n_file = get_config\ndef get_config():\n  config = _file()\n'
    '  config.data.short_sides = (640, 800)\n  return config\n'
  )
  code, _, err = run(
    f'--config={recipe}',
    '--mode=predict',
    '--input=none',
    f'--checkpoint={checkpoints("torchvision18")}',
    f'--workdir={tmp_path / "run"}',
    '--config.data.short_side=480',
  )
  assert code == 0, err
  assert used[0].data.short_side == 480
