"""Tests of the command line: exit statuses and one-line error messages."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
from jax.sharding import Mesh
import numpy as np
import pytest
import tiny

from maskrcnn_jax.errors import InputError, SaveError

ROOT = pathlib.Path(__file__).parents[1]
RECIPE = f'--config={tiny.__file__}'

pytestmark = pytest.mark.usefixtures('compilation_cache')


@pytest.fixture
def train_flags(tiny_data, tmp_path):
  return [RECIPE, f'--workdir={tmp_path / "run"}', *tiny.data_flags(tiny_data)]


def program(*arguments):
  """Runs the program in a process of its own, as a user does."""
  return subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax.main', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def test_help_shows_the_flags_and_succeeds():
  done = program('--help')
  assert done.returncode == 0
  for name in (
    'config',
    'workdir',
    'mode',
    'checkpoint',
    'init_from',
    'input',
    '[no]skip_test',
    '[no]skip_eval',
    '[no]resume',
    '[no]allow_changes',
  ):
    assert f'--{name}:' in done.stdout, name
  assert done.stderr == ''


def test_a_wrong_flag_is_one_line_on_stderr():
  done = program('--confg=configs/shapes.py')
  assert done.returncode == 2
  assert done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: Unknown command line flag 'confg'")


def test_wrong_input_is_one_line_on_stderr(tmp_path):
  done = program(
    '--config=configs/shapes.py',
    f'--workdir={tmp_path}',
    f'--config.data.train.images={tmp_path}/none',
    f'--config.data.train.annotations={tmp_path}/none.json',
  )
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  lines = done.stderr.splitlines()
  (line,) = (x for x in lines if x.startswith('error: '))
  assert lines[-2:] == [
    line,
    'For more about A25: python -m maskrcnn_jax.explain A25',
  ]
  assert 'A25: ' in line and 'none.json' in line


@pytest.mark.parametrize(
  ('override', 'near'),
  [
    ('train.batchsize', 'train.batch_size'),
    ('optimiser.learning_rate', 'optimizer.learning_rate'),
    ('sead', 'seed'),
  ],
)
def test_a_misspelt_key_is_named_with_the_nearest(
  refuse, tmp_path, override, near
):
  line = refuse(RECIPE, f'--workdir={tmp_path}', f'--config.{override}=4')
  assert f"'{override}'; did you mean --config.{near}?" in line


@pytest.mark.parametrize(
  ('line', 'name', 'hint'),
  [
    ('c.train.batchsize = 8', 'train.batchsize', 'train.batch_size'),
    ('c.optimiser = 8', 'optimiser', None),
    ('c.sead = 8', 'sead', 'seed'),
    ('c.rpn.train.pre_mns = 8', 'rpn.train.pre_mns', 'rpn.train.pre_nms'),
    ('c.train.num_steps = c.train.steps_num', 'train.steps_num', None),
    ('c.train.update(batchsize=8)', 'batchsize', 'batch_size'),
    ('c.seed = c.zzz', 'zzz', None),
  ],
)
@pytest.mark.parametrize('override', [(), ('--config.train.num_steps=3',)])
def test_a_key_that_a_recipe_misspells_is_one_line(
  refuse, tmp_path, line, name, hint, override
):
  recipe = tmp_path / 'mine.py'
  recipe.write_text(f"""from maskrcnn_jax.config import default_config
def get_config():
  c = default_config()
  {line}
  return c
""")
  text = refuse(f'--config={recipe}', f'--workdir={tmp_path}', *override)
  assert f'C05: {recipe}, line 4: there is no config key {name!r}' in text
  if hint:
    assert text.endswith(f'; did you mean {hint!r}?')
  assert len(text) < 300


@pytest.mark.parametrize(
  ('argument', 'what'),
  [
    ('anchors.sizes=(8,16,32,64,128)', 'is (8, 16, 32, 64, 128); give a '),
    ('data.padded_sizes=64', 'give (height, width) pairs'),
    ('optimizer.decay_steps=abc', 'give whole numbers, for example (60000'),
    ('anchors.ratios=abc', 'give ratios, for example (0.5'),
    ('data.padded_sizes=abc', 'give (height, width) pairs'),
    ('data.scale_jitter=((0.1,2),(1,2))', 'give the least and the greates'),
    ('optimizer.learning_rate=nan', 'is nan; it must be a finite number'),
    ('optimizer.learning_rate=-1', 'is -1.0; it must be at least 0.'),
    ('model.width=0', 'is 0; it must be at least 1.'),
    ('model.fpn_channels=-1', 'is -1; it must be at least 1.'),
  ],
)
def test_a_value_that_makes_no_sense_is_one_line(
  refuse, tmp_path, argument, what
):
  line = refuse(RECIPE, f'--workdir={tmp_path / "run"}', f'--config.{argument}')
  assert f'C05: config.{argument.split("=")[0]} ' in line
  assert what in line


@pytest.mark.parametrize(
  ('argument', 'what'),
  [
    ('--config.train.batch_size=abc', '--config.train.batch_size=abc'),
    ('--config.train.batch_size=2.5', '--config.train.batch_size=2.5'),
    ('--config.data.keep_empty=perhaps', '--config.data.keep_empty'),
    ('--config.train.batch_size=0', 'train.batch_size is 0'),
    ('--config.model.depth=20', 'model.depth is 20; choose one of 18, 34'),
    ('--mode=test', '--mode=test: value should be one of <train|eval|pre'),
    ('--nosuch=1', "Unknown command line flag 'nosuch'"),
    ('stray', "Unexpected argument 'stray'"),
    ('--workdir=', '--workdir=DIR is missing'),
    (f'--workdir={__file__}', 'is a file; give a directory'),
    ('--config=configs/none.py', 'configs/none.py is not a file; give'),
    ('--config=README.md', 'README.md is not a Python or YAML file'),
    ('--config=configs/r50_fpn.py:2013', 'year of COCO, 2014 or 2017'),
    ('--mode=predict', '--input=FILE|DIR|GLOB is missing'),
    ('--config=shape', 'did you mean shapes?'),
    ('--config', '--config needs a value'),
    ('--lr=0.1', 'no option --lr: give --config.optimizer.learning_rate='),
    ('--lr', 'no option --lr: give --config.optimizer.learning_rate=RATE'),
    ('lr0=0.1', 'no option lr0: give --config.optimizer.learning_rate='),
    ('SOLVER.BASE_LR', 'SOLVER.BASE_LR needs a value'),
    ('--base_lr=1', 'no option --base_lr: give --config.optimizer.learnin'),
    ('--patience=5', 'no option --patience: a training does not end for'),
    ('--config.nc=5', "key 'nc': the number of classes comes from the"),
    ('--config.train.num_steps', '--config.train.num_steps needs a value'),
  ],
)
def test_a_wrong_argument_is_named(
  refuse, tmp_path, monkeypatch, argument, what
):
  monkeypatch.chdir(ROOT)
  assert what in refuse(RECIPE, f'--workdir={tmp_path / "run"}', argument)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('mode', 'flag', 'what'),
  [
    ('train', '--checkpoint=runs/1', '--mode=eval or predict, not for tra'),
    ('train', '--checkpoint=runs/1', '--init_from=CHECKPOINT trains from'),
    ('train', '--input=pictures', '--mode=predict, not for train.'),
    ('train', '--skip_eval', '--skip_eval is for --mode=eval, not for tra'),
    ('eval', '--init_from=runs/1', 'give --checkpoint=CHECKPOINT'),
    ('eval', '--input=pictures', '--input=pictures is for --mode=predict'),
    ('eval', '--noresume', '--noresume is for --mode=train, not for eval'),
    ('predict', '--skip_test', '--skip_test is for --mode=train'),
    ('predict', '--profile_steps=1:2', 'for --mode=train, not for predict'),
  ],
)
def test_a_flag_of_another_mode_is_refused(refuse, tmp_path, mode, flag, what):
  line = refuse(
    RECIPE,
    f'--workdir={tmp_path / "run"}',
    f'--mode={mode}',
    flag,
    *(['--input=x'] if mode == 'predict' else []),
  )
  assert what in line


def test_arguments_may_come_from_a_file(refuse, tmp_path):
  path = tmp_path / 'arguments.txt'
  path.write_text(f'{RECIPE}\n--config.seed=x\n')
  line = refuse(f'--workdir={tmp_path}', f'--flagfile={path}')
  assert 'C05: --config.seed=x: give a whole number.' in line


def test_a_missing_workdir_is_named(refuse):
  assert '--workdir=DIR is missing' in refuse(RECIPE)


def test_a_missing_recipe_is_named(refuse, tmp_path):
  assert '--config=FILE is missing' in refuse(f'--workdir={tmp_path}')


def test_a_training_takes_no_keys_without_a_recipe(refuse, tmp_path):
  line = refuse(f'--workdir={tmp_path}', '--config.detections.min_score=0.5')
  assert '--config=FILE is missing' in line


def test_a_missing_training_set_is_named(refuse, tmp_path):
  line = refuse(RECIPE, f'--workdir={tmp_path}')
  assert '--config.data.train.images=DIR' in line


def test_a_missing_image_folder_is_named(refuse, train_flags, tmp_path):
  line = refuse(*train_flags, f'--config.data.train.images={tmp_path}/gone')
  assert f'I01: there is no folder of images {tmp_path}/gone' in line


def test_a_missing_image_is_named_before_training(refuse, tiny_data, tmp_path):
  data = shutil.copytree(tiny_data, tmp_path / 'data')
  (data / 'images' / 'val_00002.jpg').unlink()
  line = refuse(RECIPE, f'--workdir={tmp_path}/run', *tiny.data_flags(data))
  assert 'val_00002.jpg' in line


@pytest.mark.parametrize(
  'text', ['[]', '{"images": []}', 'no JSON', '{"shapes": [], "x": 1}']
)
def test_annotations_that_are_not_coco_are_named(
  refuse, train_flags, tmp_path, text
):
  path = tmp_path / 'other.json'
  path.write_text(text)
  line = refuse(*train_flags, f'--config.data.train.annotations={path}')
  assert 'A25: ' in line and str(path) in line


def test_a_batch_that_the_devices_cannot_share_is_named(
  refuse, train_flags, monkeypatch
):
  mesh = Mesh(np.array(jax.devices()[:1] * 4), ('data',))
  monkeypatch.setattr('maskrcnn_jax.runtime.cluster.make_mesh', lambda: mesh)
  line = refuse(*train_flags, '--config.train.batch_size=6')
  assert 'config.train.batch_size (6) must be a multiple of' in line
  assert 'try --config.train.batch_size=4.' in line


def test_eval_of_a_folder_without_a_checkpoint(refuse, train_flags, tmp_path):
  line = refuse(*train_flags, '--mode=eval', f'--checkpoint={tmp_path}')
  assert f'{tmp_path} holds no finished checkpoint' in line
  line = refuse(*train_flags, '--mode=eval')
  assert 'run is not a checkpoint directory' in line


def test_eval_of_another_architecture(refuse, train_flags, tiny_run):
  line = refuse(
    *train_flags,
    '--mode=eval',
    f'--checkpoint={tiny_run[0]}',
    '--config.model.depth=34',
  )
  assert 'C02: ' in line
  assert 'model.depth: 34 | 18' in line
  assert line.endswith('Leave --config.model.depth out.')


def test_eval_on_an_unknown_class(
  refuse, train_flags, tiny_run, tiny_data, tmp_path
):
  content = json.loads((tiny_data / 'instances_val.json').read_text())
  content['categories'].append({'id': 50, 'name': 'star'})
  path = tmp_path / 'more.json'
  path.write_text(json.dumps(content))
  line = refuse(
    *train_flags,
    '--mode=eval',
    f'--checkpoint={tiny_run[0]}',
    f'--config.data.eval.annotations={path}',
  )
  assert 'C01: ' in line
  assert "the checkpoint lacks 50 'star'" in line


def test_init_from_another_architecture(refuse, train_flags, tiny_run):
  line = refuse(
    *train_flags,
    f'--init_from={tiny_run[0]}',
    '--config.model.fpn_channels=32',
  )
  assert 'does not fit this model' in line


def test_fine_tuning_with_another_value_than_the_weights_have(
  refuse, tiny_data, tiny_run, tmp_path
):
  line = refuse(
    '--config=finetune',
    f'--workdir={tmp_path / "run"}',
    *tiny.data_flags(tiny_data),
    f'--init_from={tiny_run[0]}',
    '--config.freeze_at=0',
    '--config.data.pixel_std=1,1,1',
  )
  assert 'C02: ' in line
  assert 'data.pixel_std: [1, 1, 1] | [58.395, 57.12, 57.375]' in line


def test_eval_without_a_recipe_uses_the_stored_one(run, tiny_run, tmp_path):
  code, out, _ = run(
    '--mode=eval',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path / "elsewhere"}',
  )
  assert code == 0
  assert 'Average Precision' in out
  name = pathlib.Path('inference', 'coco_results.json')
  assert (tmp_path / 'elsewhere' / name).read_text() == (
    tiny_run[0] / name
  ).read_text()


def test_eval_says_whether_the_ap_is_as_expected(run, tiny_run, train_flags):
  code, out, _ = run(
    *train_flags,
    '--mode=eval',
    f'--checkpoint={tiny_run[0]}',
    '--config.expected.box_ap=(0.0,1.0)',
    '--config.expected.mask_ap=(1.0,0.0)',
  )
  assert code == 0
  assert 'PASS: box AP' in out
  assert 'FAIL: mask AP' in out


def test_skip_eval_prints_no_table(run, tiny_run, tmp_path):
  code, out, _ = run(
    '--mode=eval',
    '--skip_eval',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path}',
  )
  assert code == 0
  assert out == ''
  assert not (tmp_path / 'inference' / 'coco_results.json').exists()


def test_skip_eval_of_a_test_set_without_categories(
  run, tiny_run, tiny_data, tmp_path
):
  content = json.loads((tiny_data / 'instances_val.json').read_text())
  path = tmp_path / 'test.json'
  path.write_text(json.dumps({'images': content['images']}))
  code, _, _ = run(
    '--mode=eval',
    '--skip_eval',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path}',
    f'--config.data.eval.images={tiny_data / "images"}',
    f'--config.data.eval.annotations={path}',
  )
  assert code == 0
  boxes = json.loads((tmp_path / 'inference' / 'bbox.json').read_text())
  classes = {category['id'] for category in content['categories']}
  assert boxes
  assert {box['category_id'] for box in boxes} <= classes


def test_predict_without_a_recipe_into_another_workdir(
  run, tiny_run, tiny_data, tmp_path
):
  code, _, _ = run(
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path / "new"}',
    f'--input={tiny_data / "images" / "val_00000.jpg"}',
  )
  assert code == 0
  folder = tmp_path / 'new' / 'predictions'
  assert {path.name for path in folder.iterdir()} == {
    '.lock',
    'predictions.json',
    'predictions.jsonl',
    'val_00000.png',
  }


def test_predict_with_a_broken_picture_has_status_2(
  run, tiny_run, tiny_data, tmp_path
):
  folder = tmp_path / 'pictures'
  folder.mkdir()
  shutil.copy(tiny_data / 'images' / 'val_00000.jpg', folder)
  (folder / 'broken.jpg').write_bytes(b'no picture')
  code, _, err = run(
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path / "new"}',
    f'--input={folder}',
  )
  assert code == 2
  assert 'Traceback' not in err
  assert (tmp_path / 'new' / 'predictions' / 'val_00000.png').exists()


def test_eval_and_predict_change_keys_of_the_stored_recipe(
  run, refuse, tiny_run, tiny_data, tmp_path
):
  where = (f'--checkpoint={tiny_run[0]}', f'--workdir={tmp_path / "new"}')
  truth = (
    f'--config.data.eval.images={tiny_data / "images"}',
    f'--config.data.eval.annotations={tiny_data / "instances_val.json"}',
  )
  code, out, err = run(
    '--mode=eval', *where, *truth, '--config.detections.max_detections=2'
  )
  assert code == 0, err
  assert 'detections: 10 box' in out  # 2 in each of the 5 images
  line = refuse('--mode=eval', *where, *truth, '--config.detections.min_scor=1')
  assert 'did you mean --config.detections.min_score?' in line
  line = refuse('--mode=eval', *where, *truth, '--config.geometry=legacy')
  assert 'geometry: legacy | modern' in line


def test_predict_without_pictures_is_wrong_input(refuse, tiny_run, tmp_path):
  line = refuse(
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    f'--workdir={tmp_path}',
    f'--input={tmp_path}/none',
  )
  assert f'{tmp_path}/none' in line


@pytest.mark.skipif(sys.platform != 'linux', reason='writes to /proc')
def test_predict_into_a_read_only_folder(refuse, tiny_run, tiny_data):
  line = refuse(
    '--mode=predict',
    f'--checkpoint={tiny_run[0]}',
    '--workdir=/proc/new',
    f'--input={tiny_data / "images" / "val_00000.jpg"}',
  )
  assert 'C10: cannot write to /proc/new/predictions' in line


def test_keys_that_are_given_are_not_scaled_with_the_batch(
  refuse, train_flags, monkeypatch
):
  given = []

  def scale(config, keys):
    given.append(keys)
    raise InputError('enough')

  monkeypatch.setattr('maskrcnn_jax.training.run.scaled_to_batch', scale)
  refuse(
    *train_flags, '--config.train.num_steps=7', '--config.train.batch_size=4'
  )
  assert {'train.num_steps', 'train.batch_size'} <= given[0]
  assert 'optimizer.learning_rate' not in given[0]


def test_a_save_that_fails_is_a_failure(refuse, train_flags, monkeypatch):
  def fail(*_, **__):
    raise SaveError('C10 no room')

  monkeypatch.setattr('maskrcnn_jax.training.run.train', fail)
  assert refuse(*train_flags, status=1) == 'error: C10 no room'


@pytest.mark.parametrize('line', ['', 'JAX '])
def test_ctrl_c_is_one_line_and_status_130(tiny_run, tmp_path, line):
  # The process has the default handler of Ctrl-C, as a program that a shell
  # starts in the foreground.
  process = subprocess.Popen(
    [
      sys.executable,
      '-c',
      f"""
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from maskrcnn_jax import main
begin = main._set_up_ctrl_c
main._set_up_ctrl_c = lambda: begin() or print('begins', flush=True)
import sys
sys.argv = ['main', '--mode=eval', '--workdir={tmp_path}',
            '--checkpoint={tiny_run[0]}']
main.run()
""",
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert process.stdout.readline() == 'begins\n'
  # Without a line, the signal arrives while the program imports its modules;
  # with 'JAX ', when it has started JAX.
  while line and line not in process.stderr.readline():
    pass
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=300)
  assert process.returncode == 130
  assert err.splitlines()[-1] == 'error: ended by Ctrl-C.'
  assert 'Traceback' not in err


def test_train_through_the_command_line_continues(
  run, refuse, train_flags, tiny_run, tmp_path
):
  shutil.copytree(tiny_run[0], tmp_path / 'run')
  # Keys of the evaluation may change when a run is continued.
  code, out, _ = run(
    *train_flags, '--skip_test', '--config.rpn.eval.post_nms=8'
  )
  assert (code, out) == (0, '')
  line = refuse(*train_flags, '--noresume')
  assert 'already holds a checkpoint of step 4' in line
