"""Records what a user sees on a terminal in each mode, without any cache."""

import json
import os
import pathlib
import re
import sys

import pytest
import terminal
import tiny

from maskrcnn_jax.config.recipe import read_recipe

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
NUM_STEPS = 60
# Seconds after which a user wonders whether the program still runs.
LONGEST_SILENCE = 10


def run_on_terminal(folder, name, *arguments):
  """Runs main.py in a pseudo-terminal, with an empty compilation cache.

  The recording is written to FOLDER/NAME.txt, and printed for `pytest -s`.
  """
  environment = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith('JAX_COMPILATION_CACHE')
  }
  recording = terminal.record(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.main',
      f'--workdir={folder / "run"}',
      f'--compilation_cache={folder / f"cache_{name}"}',
      *arguments,
    ],
    cwd=ROOT,
    env=environment
    | {'JAX_PLATFORMS': 'cpu', 'TERM': 'xterm', 'PYTHONIOENCODING': 'utf-8'},
  )
  text = terminal.describe(recording)
  (folder / f'{name}.txt').write_text(text, encoding='utf-8')
  print(text)
  assert recording.status == 0, text
  return recording


def check_no_silence(recording):
  """Checks that no pause was long, unless a line had announced the work."""
  for seconds, start, shown in terminal.silences(recording):
    assert seconds < LONGEST_SILENCE or shown.startswith(
      ('Compiling', 'Loading', 'Computing')
    ), f'{seconds:.1f} s of silence from second {start:.1f} on, after {shown}'


def first_time(recording, pattern):
  """Returns when the screen first had a line that a pattern matches."""
  screen = terminal.Screen()
  for at, text in recording.chunks:
    screen.write(text)
    if any(re.search(pattern, line) for line in screen.lines[-40:]):
      return at
  raise AssertionError(f'{pattern} never appeared')


def check_announced(recording, name):
  """Checks that the compilation is announced at once and counts seconds.

  There is no number at first, because nothing was measured on this machine
  before, in the sense of an empty folder of compiled programs.
  """
  announced = first_time(recording, rf'\d Compiling the {name} for 64x64$')
  ticked = first_time(recording, rf'^Compiling the {name} for 64x64 \.\.\. 2 s')
  assert 1 < ticked - announced < 4
  return announced


def test_no_mode_is_silent_on_a_terminal(tiny_data, tmp_path):
  training = run_on_terminal(
    tmp_path,
    'train',
    f'--config={tiny.__file__}',
    *tiny.data_flags(tiny_data),
    f'--config.train.num_steps={NUM_STEPS}',
    '--config.train.log_every=20',
    '--config.train.checkpoint_every=30',
  )
  evaluation = run_on_terminal(tmp_path, 'eval', '--mode=eval')
  prediction = run_on_terminal(
    tmp_path,
    'predict',
    '--mode=predict',
    f'--input={tiny_data / "images" / "val_*.jpg"}',
  )
  for recording in (training, evaluation, prediction):
    check_no_silence(recording)
    # Something is said while JAX is imported, which may take long.
    assert first_time(recording, r'^Starting JAX') < LONGEST_SILENCE

  announced = check_announced(training, 'training step')
  assert announced < first_time(training, r'\d Compiled the step for 64x64')
  assert announced < first_time(training, r'^Training +[1-9]\d*%')
  for recording, bar in (
    (training, 'Evaluating'),
    (evaluation, 'Evaluating'),
    (prediction, 'Predicting'),
  ):
    announced = check_announced(recording, 'detector')
    # The bar leaves 0 only after the compilation.
    assert announced < first_time(recording, rf'^{bar}: +[1-9]\d*%')

  lines = terminal.screen_of(training).lines
  # The long lines with all figures are in log.txt only.
  assert not any('eta: ' in line for line in lines)
  log = (tmp_path / 'run' / 'log.txt').read_text(encoding='utf-8')
  assert re.findall(r'^eta: .*  iter: (\d+)  ', log, re.MULTILINE) == [
    *('20', '40', '60')
  ]
  # One bar remains of the training.
  (bar,) = (line for line in lines if line.startswith('Training '))
  assert re.fullmatch(
    r'Training 100% ━+ 60/60  loss [\d.]+  [\d.]+ images/s  ETA 0:00:00',
    bar,
  )
  shown = [
    int(number)
    for _, text in training.chunks
    for number in re.findall(r'Training .*? (\d+)/60', text)
  ]
  # The steps take a twentieth of a second, and the bar is drawn twice a second.
  assert shown[0] == 0
  assert shown == sorted(shown)
  for recording in (training, evaluation, prediction):
    for text in terminal.screen_of(recording).lines:
      if text.startswith(('Training ', 'Evaluating', 'Predicting')):
        assert len(text) < terminal.COLUMNS

  metrics = [
    json.loads(line)
    for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  ]
  assert [(line['step'], line['kind']) for line in metrics] == [
    (20, 'train'),
    (40, 'train'),
    (60, 'train'),
    (60, 'eval'),
  ]
  recipe = read_recipe(str(tmp_path / 'run' / 'config.yaml')).config
  assert recipe.train.num_steps == NUM_STEPS


def test_the_second_time_the_announcement_has_the_measured_seconds(
  tiny_data, tmp_path
):
  arguments = (
    f'--config={tiny.__file__}',
    *tiny.data_flags(tiny_data),
    '--skip_test',
    '--config.train.num_steps=2',
  )
  pattern = r'\d ((?:Compiling|Loading) the training step .*)'
  announced, took = [], []
  # The second run has the compiled program; in the third, the model differs.
  for number, more in enumerate(((), (), ('--config.roi.num_samples=8',))):
    recording = run_on_terminal(
      tmp_path,
      'train',
      *arguments,
      f'--workdir={tmp_path / str(number)}',
      *more,
    )
    text = '\n'.join(terminal.screen_of(recording).lines)
    announced += re.findall(pattern, text)
    took += map(float, re.findall(r'images in ([\d.]+) s', text))
  first, second, third = announced
  assert first == 'Compiling the training step for 64x64'
  assert second == (
    'Loading the training step for 64x64, which was compiled before'
  )
  assert took[1] < took[0]
  match = re.fullmatch(
    r'Compiling the training step for 64x64 \(about (\d+) s\)', third
  )
  # The number is rounded, and the log measures a little more than the work.
  assert match and abs(int(match[1]) - took[0]) <= 1
