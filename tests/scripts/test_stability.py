"""Tests of the script that trains a recipe with several seeds."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from PIL import Image
import pytest
import tiny

from maskrcnn_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))

import stability  # noqa: E402

LOG = """\
Training on 8 images of 3 classes, 2 a step on 1 cpu device, from step 0 to 80
eta: 0:01:00  iter: 20  loss: 4.0000 (5.0000)  time: 1.5000 (2.0000)  lr: 0.01
eta: 0:00:40  iter: 40  loss: 3.0000 (4.5000)  time: 1.0000 (1.5000)  lr: 0.01
"""
CONTINUED = """\
Training on 8 images of 3 classes, 2 a step on 1 cpu device, from step 20 to 80
eta: 0:00:20  iter: 40  loss: 2.5000 (2.5000)  time: 0.5000 (0.5000)  lr: 0.01
Evaluation at step 80: box AP 0.1000, mask AP 0.1000
"""


def test_read_losses_takes_the_later_lines_of_a_continued_training():
  assert stability.read_losses(LOG + CONTINUED) == [
    {'step': 20, 'loss': 4.0, 'time': 1.5},
    {'step': 40, 'loss': 2.5, 'time': 0.5},
  ]


def test_seconds_left_counts_the_waiting_trainings():
  progress = stability.read_progress(LOG)
  assert progress == (40, 80, 1.5)
  # 40 steps of this training and 2 * 80 of the next two.
  assert stability.seconds_left(progress, 2) == 200 * 1.5
  assert stability.read_progress(LOG.splitlines()[0]) is None


def test_format_table_by_hand():
  figures = {
    3: {'box AP': 0.5, 'mask AP': 0.25},
    1: {'box AP': 0.7, 'mask AP': None},
  }
  # The deviation is sqrt((0.1**2 + 0.1**2) / (2 - 1)).
  assert stability.format_table(figures) == (
    '| seed | box AP | mask AP |\n'
    '| --- | --- | --- |\n'
    '| 3 | 0.5000 | 0.2500 |\n'
    '| 1 | 0.7000 | n/a |\n'
    '| mean | 0.6000 | n/a |\n'
    '| standard deviation | 0.1414 | n/a |\n'
  )


def test_one_seed_has_no_deviation():
  lines = stability.format_table({0: {'box AP': 0.5}}).splitlines()
  assert lines[-2:] == ['| mean | 0.5000 |', '| standard deviation | n/a |']


def test_loss_figure_has_a_line_for_each_seed():
  curves = {0: [(10, 4.0), (40, 3.0)], 7: [(10, 2.0), (40, 2.5)]}
  (axes,) = stability.loss_figure(curves).axes
  for line, (seed, curve) in zip(axes.lines, curves.items(), strict=True):
    assert line.get_label() == f'seed {seed}'
    assert line.get_xydata().tolist() == [list(point) for point in curve]
  assert axes.get_ylim()[0] == axes.get_xlim()[0] == 0


def test_seeds_are_different_whole_numbers():
  assert stability.parse_seeds('4,-1,0') == [4, -1, 0]
  for text in ('', '1,,2', '1,1', '0.5', '0-4'):
    with pytest.raises(InputError, match='--seeds='):
      stability.parse_seeds(text)


def test_recipe_arguments_keep_their_order_and_meaning():
  overrides = [('eval.proposals', None), ('SOLVER.BASE_LR', '0.1')]
  assert stability.recipe_arguments('shapes', overrides) == [
    '--config=shapes',
    '--config.eval.proposals=True',
    'SOLVER.BASE_LR',
    '0.1',
  ]


@pytest.mark.parametrize(
  ('arguments', 'text'),
  [
    (['--config=shapes'], '--out=DIR is missing'),
    (['--out=x'], '--config=RECIPE is missing'),
    (['--config=shapes', '--out=x', '--config.seed=1'], 'with --seeds'),
    (['--config=shapes', '--out=x'], 'evaluation set'),
    (['--config=shapes', '--out=x', '--workdir=y'], "'--workdir=y'"),
  ],
)
def test_wrong_arguments_are_refused_before_a_folder_is_made(
  arguments, text, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError) as error:
    stability.run(arguments)
  assert text in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_training_that_fails_ends_the_script_with_its_status(
  tmp_path, capsys
):
  code = 'import sys; print("error: no data"); sys.exit(2)'
  with pytest.raises(SystemExit) as end:
    stability.train([sys.executable, '-c', code], tmp_path / 'seed_0', 0)
  assert end.value.code == 2
  out = capsys.readouterr().out
  assert 'error: no data' in out and str(tmp_path / 'seed_0.txt') in out


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_training_and_the_script_waits_for_it(
  number, tmp_path, capsys
):
  workdir = tmp_path / 'seed_0'
  workdir.mkdir()
  code = f"""
import pathlib, signal, sys, time
def stop(number, _):
  time.sleep(0.5)  # saves a checkpoint
  pathlib.Path('{workdir}/interrupted').write_text(str(int(number)))
  sys.exit(0)
signal.signal({int(number)}, stop)
pathlib.Path('{workdir}/ready').touch()
time.sleep(60)
"""

  def send():
    while not (workdir / 'ready').exists():
      time.sleep(0.05)
    os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  thread = threading.Thread(target=send, daemon=True)
  thread.start()
  with pytest.raises(SystemExit) as end:
    stability.train([sys.executable, '-c', code], workdir, 0)
  thread.join()
  assert end.value.code == 130
  assert (workdir / 'interrupted').read_text() == str(int(number))
  assert 'The same command continues' in capsys.readouterr().out
  assert signal.getsignal(number) == before


@pytest.mark.slow
def test_two_seeds_of_a_tiny_recipe(tiny_data, tmp_path):
  out = tmp_path / 'out'
  command = [
    sys.executable,
    ROOT / 'scripts' / 'stability.py',
    f'--config={tiny.__file__}',
    '--seeds=5,2',
    f'--out={out}',
    *tiny.data_flags(tiny_data),
    '--config.train.num_steps=6',
  ]
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    'XLA_FLAGS': tiny.QUICK_COMPILATION,
  }

  def run():
    done = subprocess.run(
      command, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  printed = run()
  table = (out / 'stability.md').read_text()
  assert table in printed and ' 6 steps, ' in table
  report = json.loads((out / 'stability.json').read_text())
  assert list(report['runs']) == ['5', '2']
  losses = []
  for seed, run_ in report['runs'].items():
    (evaluation,) = json.loads(
      (out / f'seed_{seed}' / 'evaluations.json').read_text()
    )
    box, mask = (run_['results'][kind]['stats'] for kind in ('bbox', 'segm'))
    assert evaluation['step'] == run_['results']['step'] == 6
    assert (box['AP'], mask['AP']) == (
      evaluation['box_ap'],
      evaluation['mask_ap'],
    )
    assert (
      f'| {seed} | {box["AP"]:.4f} | {box["AP50"]:.4f} | '
      f'{mask["AP"]:.4f} | {mask["AP50"]:.4f} |\n'
    ) in table
    assert [line['step'] for line in run_['steps']] == [1, 2, 3, 4, 5, 6]
    losses.append([line['loss'] for line in run_['steps']])
  assert losses[0] != losses[1]
  with Image.open(out / 'losses.png') as picture:
    assert picture.size == (900, 520)
  # The trainings are complete, so the second run only evaluates.
  assert 'step 1 of 6' not in run()
  assert json.loads((out / 'stability.json').read_text()) == report
