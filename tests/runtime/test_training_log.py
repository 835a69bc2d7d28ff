"""Tests of the training log."""

import contextlib
import json
import re

import pytest

from maskrcnn_jax.runtime import training_log
from maskrcnn_jax.runtime.training_log import TrainingLog, peak_memory


def open_log(directory, **options):
  return TrainingLog(directory, **{'num_steps': 100, 'batch_size': 4} | options)


@pytest.fixture
def log(tmp_path):
  log = open_log(tmp_path, num_steps=100)
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
    log = open_log(tmp_path, num_steps=1)
    log.line(text)
    log.close()
  assert read_lines(tmp_path) == ['before', 'after the resume']


def test_a_line_is_on_disk_before_the_log_is_closed(log, tmp_path):
  log.line('here')
  assert read_lines(tmp_path) == ['here']


def test_report_and_scalars_write_tensorboard_events(tmp_path):
  log = open_log(tmp_path, num_steps=10)
  log.add(loss=1.0, time=0.5, data=0.1)
  log.report(1, learning_rate=0.1)
  log.evaluation(1, {'bbox_AP': 0.5})
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
    log = open_log(tmp_path, num_steps=1)
    log.evaluation(1, {name: 1.0})
    log.close()
  events = b''.join(
    path.read_bytes() for path in tmp_path.glob('events.out.tfevents.*')
  )
  assert b'first' in events
  assert b'second' in events


def test_peak_memory_is_that_of_a_running_program():
  # Python with JAX takes a few hundred MiB, and no machine has a TiB.
  assert 50 < peak_memory() < 2**20


def read_metrics(directory):
  text = (directory / 'metrics.jsonl').read_text(encoding='utf-8')
  return [json.loads(line) for line in text.splitlines()]


def test_metrics_have_the_figures_of_a_report(log, tmp_path):
  # 4 images a step in half a second are 8 images a second, and the 98 steps
  # that are left take 49 seconds.
  for loss in (1.0, 2.0):
    log.add(loss=loss, time=0.5, data=0.125)
  log.report(2, learning_rate=0.01, skipped=3)
  log.evaluation(2, {'bbox_AP': 0.25})
  train, evaluated = read_metrics(tmp_path)
  assert train.pop('max_memory_mib') > 50
  assert train == {
    'step': 2,
    'kind': 'train',
    'loss': 1.5,
    'time': 0.5,
    'data': 0.125,
    'skipped': 3,
    'lr': 0.01,
    'images_per_second': 8.0,
    'eta_seconds': 49,
  }
  assert evaluated == {'step': 2, 'kind': 'eval', 'bbox_AP': 0.25}


def write_reports(directory, steps, *, first_step, loss):
  """Logs reports of some steps, as a run that begins at `first_step` does."""
  log = open_log(directory, first_step=first_step)
  with contextlib.closing(log):
    for step in steps:
      log.add(loss=loss, time=1.0)
      log.report(step, learning_rate=0.1)


def test_metrics_survive_a_resume_without_duplicates(tmp_path):
  # The run is killed after step 40 while it writes a line; its last checkpoint
  # is that of step 20.
  write_reports(tmp_path, (10, 20, 30, 40), first_step=0, loss=1.0)
  with open(tmp_path / 'metrics.jsonl', 'a', encoding='utf-8') as file:
    file.write('{"step": 50, "ki')
  write_reports(tmp_path, (30, 40, 50), first_step=20, loss=2.0)
  assert [(line['step'], line['loss']) for line in read_metrics(tmp_path)] == [
    (10, 1.0),
    (20, 1.0),
    (30, 2.0),
    (40, 2.0),
    (50, 2.0),
  ]


def test_metrics_of_a_run_that_starts_anew_are_its_own(tmp_path):
  # Without a checkpoint, the same command begins at step 0 again.
  write_reports(tmp_path, (10, 20), first_step=0, loss=1.0)
  write_reports(tmp_path, (10,), first_step=0, loss=2.0)
  (line,) = read_metrics(tmp_path)
  assert (line['step'], line['loss']) == (10, 2.0)


def test_an_evaluation_that_is_repeated_has_one_line(tmp_path):
  write_reports(tmp_path, (10, 20), first_step=0, loss=1.0)
  for ap in (0.1, 0.2):
    log = open_log(tmp_path, first_step=20)
    log.evaluation(20, {'bbox_AP': ap})
    log.close()
  assert [
    (line['step'], line['kind'], line.get('bbox_AP'))
    for line in read_metrics(tmp_path)
  ] == [(10, 'train', None), (20, 'train', None), (20, 'eval', 0.2)]


def test_other_processes_write_no_metrics(tmp_path):
  log = open_log(tmp_path, writes=False)
  log.add(loss=1.0, time=1.0)
  log.report(1, learning_rate=0.1)
  log.evaluation(1, {'bbox_AP': 0.1})
  log.close()
  assert not list(tmp_path.iterdir())
