"""Tests of the training log."""

import re

import pytest

from maskrcnn_jax.runtime import training_log
from maskrcnn_jax.runtime.training_log import TrainingLog, peak_memory, progress


@pytest.fixture
def log(tmp_path):
  log = TrainingLog(tmp_path, num_steps=100)
  yield log
  log.close()


def read_lines(directory):
  return (directory / 'log.txt').read_text(encoding='utf-8').splitlines()


def test_report_writes_the_line_of_nvidias_program(log, tmp_path):
  # The losses 1, 2 and 9 have the median 2 and the mean 4. At half a second a
  # step, the 97 steps that are left take 48 seconds.
  for loss in (1.0, 2.0, 9.0):
    log.add(loss=loss, loss_box_reg=0.25, time=0.5, data=0.125)
  log.report(3, learning_rate=0.00666667)
  (line,) = read_lines(tmp_path)
  assert re.sub(r'mem: \d+$', 'mem: N', line) == (
    'eta: 0:00:48  iter: 3  loss: 2.0000 (4.0000)  '
    'loss_box_reg: 0.2500 (0.2500)  time: 0.5000 (0.5000)  '
    'data: 0.1250 (0.1250)  lr: 0.006667  max mem: N'
  )


def test_report_has_the_grammar_of_nvidias_readme(log, tmp_path):
  log.add(loss=1.8236, time=200.0, data=0.0099)
  log.report(20, learning_rate=0.014347)
  figure = r'\d+\.\d{4} \(\d+\.\d{4}\)'
  assert re.fullmatch(
    rf'eta: \d+:\d\d:\d\d  iter: 20  loss: {figure}  time: {figure}  '
    rf'data: {figure}  lr: 0\.014347  max mem: \d+',
    read_lines(tmp_path)[0],
  )


def test_the_median_is_of_the_last_twenty_and_the_mean_of_all(log, tmp_path):
  # The loss is 0 for 20 steps, then 1 for 20 steps. The last 20 are all 1.
  for step in range(40):
    log.add(loss=float(step >= 20), time=1.0)
  log.report(40, learning_rate=0.1)
  assert training_log.WINDOW == 20
  assert 'loss: 1.0000 (0.5000)' in read_lines(tmp_path)[0]


def test_a_percent_sign_in_a_line_stays(log, tmp_path):
  log.line('100 % of %s')
  assert read_lines(tmp_path) == ['100 % of %s']


def test_a_second_log_continues_the_file(tmp_path):
  for text in ('before', 'after the resume'):
    log = TrainingLog(tmp_path, num_steps=1)
    log.line(text)
    log.close()
  assert read_lines(tmp_path) == ['before', 'after the resume']


def test_a_line_is_on_disk_before_the_log_is_closed(log, tmp_path):
  log.line('here')
  assert read_lines(tmp_path) == ['here']


def test_report_and_scalars_write_tensorboard_events(tmp_path):
  log = TrainingLog(tmp_path, num_steps=10)
  log.add(loss=1.0, time=0.5, data=0.1)
  log.report(1, learning_rate=0.1)
  log.scalars(1, {'eval/bbox_AP': 0.5})
  log.close()
  events = b''.join(
    path.read_bytes() for path in tmp_path.glob('events.out.tfevents.*')
  )
  for tag in (
    b'train/loss',
    b'train/lr',
    b'speed/time',
    b'speed/data',
    b'eval/bbox_AP',
  ):
    assert tag in events


def test_logs_opened_in_the_same_second_keep_their_events(tmp_path):
  for name in ('first', 'second'):
    log = TrainingLog(tmp_path, num_steps=1)
    log.scalars(1, {name: 1.0})
    log.close()
  events = b''.join(
    path.read_bytes() for path in tmp_path.glob('events.out.tfevents.*')
  )
  assert b'first' in events
  assert b'second' in events


def test_peak_memory_is_that_of_a_running_program():
  # Python with JAX takes a few hundred MiB, and no machine has a TiB.
  assert 50 < peak_memory() < 2**20


def test_progress_passes_the_items_on_and_counts_them(capsys):
  assert list(progress(iter('abc'), total=3, description='Eval')) == list('abc')
  assert '3/3' in capsys.readouterr().err
