"""Tests of the comparison of speed with torchvision.

The slow test needs a Python with torch and torchvision. The environment
variable MASKRCNN_TORCH_PYTHON names it, and MASKRCNN_TORCH_LIBRARIES a folder
for its LD_LIBRARY_PATH. Without them it is looked for in the folder `tv` beside
this checkout.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny

from maskrcnn_jax.benchmark import comparison, images, report
from maskrcnn_jax.benchmark import torchvision_job as job
from maskrcnn_jax.benchmark.command_line import main
from maskrcnn_jax.benchmark.step_speed import Options
from maskrcnn_jax.benchmark.timing import Limit
from maskrcnn_jax.benchmark.torchvision_peer import Peer, PeerFailed, started
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT.parent / 'tv'
PYTHON = os.environ.get('MASKRCNN_TORCH_PYTHON', str(FOLDER / 'bin' / 'python'))
LIBRARIES = os.environ.get('MASKRCNN_TORCH_LIBRARIES', str(FOLDER / 'stub'))


def made_up(config, **options):
  """Returns made-up images of 64x96 with three ellipses each."""
  return images.make_up(
    config,
    **{
      'image_size': (64, 96),
      'batch_size': 2,
      'num_objects': 3,
      'num_classes': 4,
    }
    | options,
  )


def test_ratio_is_that_of_the_medians():
  found = comparison.ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])
  assert found['ours_s'] == 2 and found['theirs_s'] == 4
  assert found['ratio'] == 0.5
  # A drawn median is 1, 2 or 9.
  assert found['low'] == 0.25
  assert found['high'] == 2.25


def test_ratio_covers_the_true_ratio_of_noisy_times():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(20):
    # Both programs are slow at the same time, as on a machine that is shared.
    load = rng.uniform(1, 2, 25)
    ours, theirs = (
      (load * seconds * rng.normal(1, 0.05, 25)).tolist()
      for seconds in (0.6, 1.0)
    )
    found = comparison.ratio(ours, theirs)
    covered += found['low'] <= 0.6 <= found['high']
  # 95 % of 20 are 19, with a standard deviation of 1.
  assert covered >= 16


def test_settings_begin_with_the_default_of_torchvision():
  cpu = job.settings_for('cpu', 'fp32')
  assert cpu[0] == job.Setting('default')
  assert {setting.wait_policy for setting in cpu} == {'', 'PASSIVE', 'ACTIVE'}
  assert [setting.huge_pages for setting in cpu] == [False] * 4 + [True]
  assert not any(setting.autocast for setting in cpu)
  default, *fast = job.settings_for('cuda', 'bf16')
  assert default == job.Setting('default (TF32 in convolutions)')
  assert all(setting.autocast == 'bf16' for setting in fast)
  assert any(setting.channels_last for setting in fast)
  assert all(s.tf32 for s in job.settings_for('cuda', 'tf32')[1:])
  assert all(s.tf32 is False for s in job.settings_for('cuda', 'fp32')[1:])


@pytest.mark.parametrize(
  ('recipe', 'message'),
  [
    ('nuclei', 'config.model.width=32'),
    ('r50_c4', 'config.model.body=c4'),
    ('r50_fpn:legacy', 'config.model.stride_in_1x1=True'),
    ('rpn_r50_fpn', 'config.model.output=proposals'),
    (tiny.__file__, 'config.model.width=8'),
  ],
)
def test_a_recipe_without_a_counterpart_is_refused(recipe, message):
  found = made_up(read_recipe(recipe).config)
  with pytest.raises(InputError, match=message):
    job.model_settings(found, Options('train'))


def test_model_settings_of_a_recipe():
  found = made_up(read_recipe('r50_fpn').config)
  settings = job.model_settings(
    found, Options('train', image_size=(96, 64), num_objects=3)
  )
  assert settings['depth'] == 50 and settings['num_classes'] == 4
  options = settings['options']
  # The images keep their size.
  assert (options['min_size'], options['max_size']) == (64, 96)
  assert options['rpn_pre_nms_top_n_train'] == 2000
  assert options['box_detections_per_img'] == 100
  # The mean of ImageNet as torchvision has it.
  assert options['image_mean'] == pytest.approx([0.485, 0.456, 0.406])


def test_the_images_of_torchvision_are_those_of_the_batch(tmp_path):
  found = made_up(tiny.get_config())
  job.write_batches(found, tmp_path / 'batches.npz')
  batch = found.batches[0].batch
  with np.load(tmp_path / 'batches.npz') as arrays:
    assert arrays['count'].tolist() == [2]
    for i in range(2):
      assert (arrays[f'image_{i}'] == batch.images[i]).all()
      boxes = arrays[f'boxes_{i}']
      assert boxes.shape == (3, 4)
      masks = np.unpackbits(arrays[f'masks_{i}'], axis=-1, count=96)
      width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
      # The area of an ellipse is pi / 4 of its box; that of a polygon of 23
      # corners is 1 % less. The mask has whole pixels.
      area = np.pi / 4 * width * height
      assert masks.sum((1, 2)) == pytest.approx(area, rel=0.1)
      assert arrays[f'labels_{i}'].tolist() == batch.gt_classes[i, :3].tolist()


@pytest.mark.parametrize('stops', [False, True])
def test_the_programs_take_turns(stops):
  events = []

  class Torchvision(Peer):
    """A peer that makes its steps at once."""

    def step(self, number):
      events.append(f'theirs {number}')
      return {'seconds': 2.0, 'loss': 3.0}

  peer = Torchvision(None, {}, stops, pathlib.Path())
  ours, theirs, figures = comparison.alternate(
    lambda i: events.append(f'ours {i}'), peer, Limit(3)
  )
  assert theirs == [2, 2, 2] and len(ours) == 3
  assert figures['loss'] == 3
  # Two steps of each come first, which are not timed. Then each is first in
  # turn. If the peer is stopped meanwhile, a step that is not timed precedes.
  turns = ['theirs 2', 'ours 2', 'ours 3', 'theirs 3', 'theirs 4', 'ours 4']
  times = 2 if stops else 1
  assert events[4:] == [turn for turn in turns for _ in range(times)]


def stand_in(tmp_path, text):
  """Returns the path of a program that stands for Python with torchvision."""
  path = tmp_path / 'python'
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)
  return str(path)


def test_a_peer_that_dies_shows_its_last_message(tmp_path):
  python = stand_in(
    tmp_path,
    'echo \'{"torch": "2"}\'; read; echo "{}"; read;'
    ' echo "RuntimeError: no memory" >&2',
  )
  with started(python, {'device': 'cpu'}, job.Setting('x'), tmp_path) as peer:
    assert peer.versions == {'torch': '2'}
    assert peer.step(0) == {}
    # It is stopped while the other program works.
    status = pathlib.Path(f'/proc/{peer.process.pid}/status')
    deadline = time.monotonic() + 10
    while 'State:\tT (stopped)' not in status.read_text():
      assert time.monotonic() < deadline
    with pytest.raises(PeerFailed, match='RuntimeError: no memory'):
      peer.step(1)
  assert peer.process.poll() is not None


@pytest.mark.parametrize(
  ('python', 'message'),
  [
    (sys.executable, f'{sys.executable} cannot run torchvision (ModuleNotFou'),
    ('/no/python', '--torch_python=/no/python: No such file or directory'),
  ],
)
def test_torchvision_that_is_missing_is_one_line(python, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    main(
      [
        f'--config={tiny.__file__}',
        '--config.model.width=64',
        '--config.model.box_fcs=2',
        '--mode=train',
        '--size=64x64',
        '--objects=3',
        '--compare=torchvision',
        f'--torch_python={python}',
      ]
    )
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and message in line


def test_the_table_has_a_row_for_each_setting():
  row = {
    'setting': 'default',
    'num_steps': 5,
    'ours_s': 1.0,
    'theirs_s': 2.0,
    'ratio': 0.5,
    'low': 0.4,
    'high': 0.6,
    'ours_detections': 100,
    'theirs_detections': 99,
    'ours_mib': 1000.0,
    'theirs_mib': 2000.0,
  }
  text = report.format_peer(
    {
      'mode': 'inference',
      'pastes': True,
      'peer': {
        'torch': '2.13',
        'torchvision': '0.28',
        'threads': 2,
        'settings': [row, {'setting': 'fast', 'failed': 'no memory'}],
      },
    }
  )
  conditions, _, first, second = text.splitlines()
  assert 'both paste the masks' in conditions
  assert '0.500 (0.400 to 0.600)' in first
  assert '100, 99' in first and '1000, 2000' in first
  assert second.split()[0] == 'fast' and 'failed: no memory' in second


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path(PYTHON).exists(),
  reason='needs a Python with torchvision: MASKRCNN_TORCH_PYTHON',
)
@pytest.mark.parametrize('mode', ['train', 'inference'])
def test_both_programs_compute_the_same(mode, tmp_path):
  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'import tiny\n'
    'def get_config():\n'
    '  config = tiny.get_config()\n'
    '  config.geometry = "torchvision"\n'
    '  config.model.width = 64\n'
    '  config.model.box_fcs = 2\n'
    '  config.detections.min_score = 0.05\n'
    '  config.detections.max_detections = 100\n'
    '  config.data.flip_probability = 0.0\n'
    '  # Samples that take every candidate, so that nothing is random.\n'
    '  config.rpn.num_samples = 4096\n'
    '  config.roi.num_samples = 256\n'
    '  config.roi.foreground_fraction = 0.5\n'
    '  return config\n'
  )
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.benchmark',
      f'--config={recipe}',
      f'--mode={mode}',
      '--size=96x96',
      '--objects=3',
      '--steps=2',
      '--compare=torchvision',
      f'--torch_python={PYTHON}',
      *(['--paste'] if mode == 'inference' else []),
    ],
    env=os.environ
    | {
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
      'LD_LIBRARY_PATH': LIBRARIES,
      'JAX_PLATFORMS': 'cpu',
    },
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  rows = json.loads(done.stdout.splitlines()[-1])['peer']['settings']
  assert [row['setting'] for row in rows] == [
    setting.name for setting in job.settings_for('cpu', 'fp32')
  ]
  for row in rows:
    assert 'failed' not in row
    assert 0 < row['low'] <= row['ratio'] <= row['high'] < math.inf
    assert min(row['ours_mib'], row['theirs_mib']) > 100
    if mode == 'train':
      assert row['ours_loss'] == pytest.approx(row['theirs_loss'], rel=1e-3)
    else:
      # Boxes whose scores are almost equal may be suppressed in another order.
      assert row['ours_detections'] >= 20
      assert row['ours_detections'] == pytest.approx(
        row['theirs_detections'], abs=2
      )
