"""Each bad recipe, checkpoint or machine gives its code and exit status.

The codes of the data are tested in test_bad_inputs.py. test_convert_weights.py
tests that converted weights keep the conventions of their program (C13).
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import jax
from jax.sharding import Mesh
import numpy as np
import pytest
import tiny

from maskrcnn_jax.config import scaled_to_batch
from maskrcnn_jax.convert_weights import convert as convert_weights
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import evaluate_detections
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.run_lock import only_training
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training import run as train
from maskrcnn_jax.training.figures import PendingStep, take_figures

pytestmark = pytest.mark.usefixtures('compilation_cache')

RECIPE = f'--config={tiny.__file__}'


@pytest.fixture
def flags_of_run(tiny_data, tmp_path):
  return [RECIPE, f'--workdir={tmp_path / "run"}', *tiny.data_flags(tiny_data)]


@pytest.fixture
def workdir(tiny_run, tmp_path):
  return shutil.copytree(tiny_run[0], tmp_path / 'run')


@pytest.fixture
def change(tiny_data, tmp_path):
  """A function that writes a changed copy of the annotations of a split.

  Its arguments are the function that changes the content, and the split. It
  returns the file.
  """

  def write(function, split='val'):
    content = json.loads((tiny_data / f'instances_{split}.json').read_text())
    function(content)
    path = tmp_path / f'{split}.json'
    path.write_text(json.dumps(content))
    return path

  return write


@pytest.mark.parametrize('are_as_many', [True, False])
def test_c01_tells_how_to_name_the_classes_of_converted_weights(
  refuse, flags_of_run, workdir, change, are_as_many
):
  path = workdir / 'checkpoints/4/metadata/metadata'
  content = json.loads(path.read_text())
  content['categories'] = [
    [i + 1, f'class {i + 1}'] for i in range(len(content['categories']))
  ]
  # A changed file with checksums would be a damaged one.
  del content['checksum'], content['array_checksums']
  path.write_text(json.dumps(content))
  more = (
    []
    if are_as_many
    else [f'--config.data.eval.annotations={change(more_classes)}']
  )
  line = refuse(*flags_of_run, '--mode=eval', f'--checkpoint={workdir}', *more)
  assert 'C01: ' in line
  assert ('with --categories=FILE.json' in line) == are_as_many


def more_classes(content):
  content['categories'].append({'id': 50, 'name': 'star'})


def test_c01_a_checkpoint_of_other_classes(
  refuse, flags_of_run, tiny_run, change
):
  line = refuse(
    *flags_of_run,
    '--mode=eval',
    f'--checkpoint={tiny_run[0]}',
    f'--config.data.eval.annotations={change(more_classes)}',
  )
  assert 'C01: ' in line


@pytest.mark.parametrize(
  'options', ['--mode=eval --checkpoint', '--mode=train --init_from']
)
def test_c02_a_checkpoint_of_another_architecture(
  refuse, flags_of_run, tiny_run, options
):
  line = refuse(
    *flags_of_run,
    '--config.model.fpn_channels=32',
    *f'{options}={tiny_run[0]}'.split(),
  )
  assert 'C02: ' in line
  assert 'fpn' in line


def test_c03_a_class_that_the_table_lacks(refuse, flags_of_run, change):
  # Class numbers are made from the table of categories, so that a class beyond
  # the table can only come from an unknown category_id, which is A14.
  def spoil(content):
    content['annotations'][0]['category_id'] = 81

  line = refuse(
    *flags_of_run,
    f'--config.data.train.annotations={change(spoil, "train")}',
  )
  assert 'A14: ' in line
  assert '81' in line


def test_c04_a_loss_that_is_not_finite(
  refuse, flags_of_run, tiny_run, tmp_path
):
  tiny.save_with_value(
    tiny_run[0], tmp_path / 'bad', 'mask_fcn_logits', tiny.TOO_LARGE
  )
  line = refuse(
    *flags_of_run, '--skip_test', f'--init_from={tmp_path / "bad"}', status=1
  )
  assert 'C04: ' in line
  assert 'loss_mask is nan' in line
  # In the first step, the learning rate cannot be the cause.
  assert 'the weights that the run began with' in line


@pytest.mark.parametrize('step', [1, 99, 100])
def test_c04_a_loss_that_is_not_finite_early_on(step, tmp_path):
  figures = {'loss': np.nan, 'grad_norm': 1.0}
  pending = PendingStep(step, figures, np.array([1, 0]), False, 0.5, 0.1)
  log = TrainingLog(tmp_path, num_steps=100, batch_size=2, writes=False)
  with contextlib.closing(log), pytest.raises(FloatingPointError) as error:
    take_figures(
      pending,
      log,
      image_ids=[7, 8],
      schedule=lambda step: 0.25,
      scales_loss=False,
    )
  message = str(error.value)
  assert message.startswith(f'C04: loss is nan at step {step} (learning rate')
  assert 'learning rate 0.25, images [8, 7]' in message
  assert (
    'the likely cause is the learning rate, for 2 images a step' in message
  ) == (step < 100)


def test_c04_the_learning_rate_follows_the_batch():
  config = tiny.get_config()
  config.train.reference_batch_size = 8
  config.optimizer.learning_rate = 0.02
  config.train.batch_size = 2
  scaled, (line,) = scaled_to_batch(config)
  assert scaled.optimizer.learning_rate == pytest.approx(0.005)
  assert 'optimizer.learning_rate = 0.005 (recipe: 0.02)' in line


@pytest.mark.parametrize(
  'override',
  [
    'optimiser.learning_rate=1',
    'train.batch_size=abc',
    'train.batch_size=0',
    'data.keep_empty=perhaps',
    'model.depth=20',
  ],
)
def test_c05_a_key_or_value_that_is_none(refuse, flags_of_run, override):
  line = refuse(*flags_of_run, f'--config.{override}')
  assert line.startswith('error: C05: ')


def test_c06_a_batch_that_devices_cannot_share(
  refuse, flags_of_run, monkeypatch
):
  mesh = Mesh(np.array(jax.devices()[:1] * 4), ('data',))
  monkeypatch.setattr('maskrcnn_jax.runtime.cluster.make_mesh', lambda: mesh)
  assert 'C06: ' in refuse(*flags_of_run, '--config.train.batch_size=6')


@pytest.mark.parametrize(
  'override', ['optimizer.learning_rate=0.5', 'train.num_steps=2']
)
def test_c07_a_run_that_is_continued_with_another_recipe(
  refuse, flags_of_run, workdir, override
):
  assert 'C07: ' in refuse(*flags_of_run, f'--config.{override}')


ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('devices', 'overrides', 'code'),
  [
    pytest.param(
      2,
      ['train.num_steps=6', 'data.num_workers=1'],
      '',
      marks=pytest.mark.slow,  # another device count compiles anew
    ),
    (4, ['train.num_steps=6'], 'C06: '),
  ],
)
def test_c07_a_run_that_is_continued_on_other_devices_and_workers(
  flags_of_run, workdir, tiny_run, devices, overrides, code
):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.main',
      *flags_of_run,
      '--skip_test',
      *(f'--config.{override}' for override in overrides),
    ],
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
      + tiny.QUICK_COMPILATION,
    },
  )
  if code:
    assert done.returncode == 2, done.stderr
    assert f'error: {code}' in done.stderr
    steps = 4
  else:
    # The run continues and leaves no temporary files behind.
    assert done.returncode == 0, done.stderr
    assert 'Resuming from step 4 of ' in done.stderr
    assert '2 cpu device(s), from step 4 to 6' in done.stderr
    assert 'leaked' not in done.stderr
    assert not list(workdir.glob('*index_*'))
    steps = 6
  assert checkpoint.saved_steps(workdir / 'checkpoints')[-1] == steps


def remove_an_object(content):
  content['annotations'].pop()


@pytest.mark.parametrize('function', [more_classes, remove_an_object])
def test_c07_a_run_that_is_continued_on_other_data(
  refuse, flags_of_run, workdir, change, function
):
  line = refuse(
    *flags_of_run,
    '--skip_test',
    f'--config.data.train.annotations={change(function, "train")}',
  )
  assert 'C07: ' in line


def remove_steps(workdir):
  shutil.rmtree(workdir / 'checkpoints')


def leave_an_unfinished_step(workdir):
  for step in (workdir / 'checkpoints').iterdir():
    shutil.rmtree(step)
  (workdir / 'checkpoints/4.orbax-checkpoint-tmp').mkdir()


def cut_the_arrays(workdir):
  largest = max(
    (p for p in workdir.rglob('checkpoints/4/model/**/*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size // 2)


def flip_a_bit(workdir):
  largest = max(
    (p for p in workdir.rglob('checkpoints/4/model/**/*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 8
  largest.write_bytes(content)


def damage_metadata(workdir):
  for path in workdir.rglob('checkpoints/4/metadata/*'):
    path.write_text('{')


def remove_all(workdir):
  shutil.rmtree(workdir)


@pytest.mark.parametrize(
  'spoil',
  [
    remove_steps,
    leave_an_unfinished_step,
    cut_the_arrays,
    damage_metadata,
    remove_all,
  ],
)
def test_c08_a_checkpoint_that_is_not_whole(
  refuse, flags_of_run, workdir, spoil
):
  spoil(workdir)
  assert 'C08: ' in refuse(*flags_of_run, '--mode=eval')


@pytest.mark.parametrize(
  'options',
  ['--mode=eval', '--mode=predict --input={images}', '--init_from={run}'],
)
def test_c08_a_flipped_bit_is_found_before_the_weights_are_used(
  refuse, flags_of_run, workdir, tiny_data, tmp_path, options
):
  flip_a_bit(workdir)
  options = options.format(images=tiny_data / 'images', run=workdir)
  if 'init_from' in options:
    options += f' --skip_test --workdir={tmp_path / "new"}'
  line = refuse(*flags_of_run, *options.split())
  assert 'C08: ' in line
  # The bit may be in the parts of a file that its format needs.
  assert 'checksum' in line or 'cannot be read' in line


def test_c08_c09_weights_that_are_damaged_or_not_there(tmp_path):
  (tmp_path / 'a.pth').write_bytes(b'PK\3\4' + bytes(100))
  with pytest.raises(InputError, match='C08: '):
    convert_weights.convert(tmp_path / 'a.pth', tmp_path / 'out')
  url = pathlib.Path('https://example.com/r50.pth')
  with pytest.raises(InputError, match='C09: .*on this machine'):
    convert_weights.convert(url, tmp_path / 'out')


@pytest.mark.parametrize('option', ['--init_from', '--mode=eval --checkpoint'])
def test_c09_weights_at_an_address(refuse, flags_of_run, option):
  url = 'https://example.com/r50.pth'
  line = refuse(*flags_of_run, *f'{option}={url}'.split())
  assert 'C09: ' in line
  assert 'example.com/r50.pth' in line
  assert 'on this machine' in line


def test_c09_the_checksum_of_weights_is_told(tmp_path, capsys):
  # The checksum matters most for a damaged download, so that the file is one.
  (tmp_path / 'a.pth').write_bytes(b'abc')
  with pytest.raises(InputError, match='C08: '):
    convert_weights.convert(tmp_path / 'a.pth', tmp_path / 'out')
  # FIPS 180-2, appendix B.1: the SHA-256 of 'abc'.
  assert (
    'a.pth: sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f2'
    '0015ad' in capsys.readouterr().out
  )


def test_c10_a_folder_that_cannot_be_written_to(
  refuse, flags_of_run, monkeypatch, tmp_path
):
  (tmp_path / 'file').touch()
  line = refuse(*flags_of_run, f'--workdir={tmp_path / "file"}')
  assert 'C10: ' in line
  line = refuse(*flags_of_run, f'--workdir={tmp_path / "file/run"}')
  assert 'C10: ' in line

  def fail(**_):
    raise OSError(30, os.strerror(30))

  # Tests may run as root, who may write anywhere, so the failure is made up.
  monkeypatch.setattr(tempfile, 'TemporaryFile', fail)
  line = refuse(*flags_of_run)
  assert 'C10: cannot write to' in line
  assert 'Read-only file system' in line


def test_c10_a_disk_that_gets_full(refuse, flags_of_run, workdir, monkeypatch):
  before = checkpoint.saved_steps(workdir / 'checkpoints')

  def fail(*_, **__):
    # This is the message of tensorstore.
    raise ValueError('RESOURCE_EXHAUSTED: [28: No space left on device]')

  monkeypatch.setattr(train.checkpoint, 'save_checkpoint', fail)
  monkeypatch.setattr(train, 'jit_train_step', lambda _: tiny.IdleStep())
  line = refuse(
    *flags_of_run, '--skip_test', '--config.train.num_steps=6', status=1
  )
  assert 'C10: ' in line
  assert checkpoint.saved_steps(workdir / 'checkpoints') == before


def test_c10_a_workdir_that_is_taken(refuse, flags_of_run, workdir):
  assert 'C10: ' in refuse(*flags_of_run, '--noresume')


@pytest.mark.parametrize(
  'result',
  [
    {'image_id': -7},
    {'score': float('nan')},
    {'category_id': 99},
    {'bbox': [0, 0, 1]},
    {'bbox': None},
  ],
)
def test_c11_results_that_do_not_fit(tiny_data, result):
  truth = json.loads((tiny_data / 'instances_val.json').read_text())
  entry = truth['annotations'][0]
  sound = {key: entry[key] for key in ('image_id', 'category_id', 'bbox')}
  sound['score'] = 0.5
  assert evaluate_detections(truth, [sound], kind='bbox').stats['AP'] > 0
  with pytest.raises(InputError, match='^C11: '):
    evaluate_detections(truth, [sound | result], kind='bbox')


def test_c11_no_results_have_an_ap_of_zero(tiny_data):
  truth = json.loads((tiny_data / 'instances_val.json').read_text())
  assert evaluate_detections(truth, [], kind='bbox').stats['AP'] == 0


def test_c12_a_gpu_that_is_asked_for_and_not_there(
  refuse, flags_of_run, monkeypatch
):
  def fail():
    raise RuntimeError("Unable to initialize backend 'cuda'")

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  assert 'C12: ' in refuse(*flags_of_run)


def test_c12_a_gpu_that_was_meant_and_is_not_there(
  refuse, flags_of_run, monkeypatch
):
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(
    cluster.importlib.util, 'find_spec', lambda name: 'cuda' in name
  )
  assert 'C12: ' in refuse(*flags_of_run)


def test_c13_weights_that_expect_other_pixels(
  tiny_run, config, tmp_path, caplog, monkeypatch
):
  def stop(*_, **__):
    raise InputError('before the first step')

  monkeypatch.setattr(train, 'TrainingLog', stop)
  config.data.pixel_mean = (1.0, 2.0, 3.0)
  with caplog.at_level('WARNING'), pytest.raises(InputError, match='before'):
    train.train(config, tmp_path / 'new', init_from=tiny_run[0], skip_test=True)
  assert any('C13: ' in r.getMessage() for r in caplog.records)


@pytest.fixture
def config(tiny_data):
  return tiny.with_data(tiny.get_config(), tiny_data)


@pytest.mark.parametrize(
  'segmentation', [[], [[1, 1, 9, 1, 9, 9], [1, 1, 2, 2]]]
)
def test_masks_that_would_stop_the_evaluation_stop_the_training(
  refuse, flags_of_run, change, segmentation
):
  def spoil(content):
    # One bad mask among so many is only left out with a warning by a training.
    while len(content['annotations']) < 150:
      content['annotations'] += [
        entry | {'id': entry['id'] + 1000 + len(content['annotations'])}
        for entry in content['annotations']
      ]
    content['annotations'][0]['segmentation'] = segmentation

  line = refuse(
    *flags_of_run, f'--config.data.eval.annotations={change(spoil)}'
  )
  assert 'A06: ' in line or 'A05: ' in line


@pytest.mark.parametrize(
  'options', ['--mode=eval --checkpoint', '--skip_test --init_from']
)
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_c14_a_checkpoint_that_is_not_finite(
  refuse, flags_of_run, tiny_run, tmp_path, options, value
):
  tiny.save_with_value(tiny_run[0], tmp_path / 'bad', 'fc6', value)
  line = refuse(*flags_of_run, *f'{options}={tmp_path / "bad"}'.split())
  assert 'C14: ' in line
  assert 'in params/box_head/fc6/bias and 1 more arrays' in line


def test_c17_a_workdir_in_which_another_training_runs(
  refuse, flags_of_run, workdir
):
  with only_training(workdir):
    line = refuse(*flags_of_run, '--skip_test')
    assert 'C17: ' in line
    assert f'process {os.getpid()} on {socket.gethostname()}' in line
