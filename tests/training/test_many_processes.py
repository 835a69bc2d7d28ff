"""Tests of several real processes that train and evaluate together."""

import collections
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
from numpy.testing import assert_allclose
import pytest
import tiny

from maskrcnn_jax.data.shapes import write_shapes
from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]

# Runs the command line and writes the unrounded figures of each step to a file.
PROGRAM = """
import json, os, pathlib, sys
sys.path.insert(0, 'tests')
import tiny
from maskrcnn_jax import main

if __name__ == '__main__':
  with tiny.recorded_figures() as figures:
    try:
      main.run()
    finally:
      pathlib.Path(os.environ['FIGURES']).write_text(json.dumps(figures))
"""

# In seconds. On a busy machine, compiling takes minutes.
WATCHDOG = 900


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A data set of 11 and 5 images, which no number of processes divides."""
  folder = tmp_path_factory.mktemp('prime')
  write_shapes(folder, num_train=11, num_val=5, image_size=64, seed=1)
  return folder


class Run:
  """Processes of one run, started together on this machine."""

  def __init__(self, count, workdir, data, *options, last=()):
    """Starts `count` processes; `last` are extra options of the last one."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    # A single process is started without these options.
    together = (f'--coordinator=127.0.0.1:{port}', f'--num_processes={count}')
    self.logs = [workdir.with_suffix(f'.{i}.log') for i in range(count)]
    self.figures = [workdir.with_suffix(f'.{i}.json') for i in range(count)]
    self.processes = []
    for i in range(count):
      with open(self.logs[i], 'w') as log:
        self.processes.append(
          subprocess.Popen(
            [
              sys.executable,
              '-c',
              PROGRAM,
              f'--config={tiny.__file__}',
              f'--workdir={workdir}',
              *tiny.data_flags(data),
              f'--config.train.watchdog_seconds={WATCHDOG}',
              *options,
              *((*together, f'--process_id={i}') if count > 1 else ()),
              *(last if i == count - 1 else ()),
            ],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {
              'JAX_PLATFORMS': 'cpu',
              'JAX_CPU_COLLECTIVES_IMPLEMENTATION': 'gloo',
              'XLA_FLAGS': tiny.QUICK_COMPILATION,
              'FIGURES': str(self.figures[i]),
            },
          )
        )

  def wait(self, timeout=1000):
    """Waits for all processes and returns their exit statuses."""
    deadline = time.monotonic() + timeout
    try:
      return [
        process.wait(max(deadline - time.monotonic(), 1))
        for process in self.processes
      ]
    finally:
      for process in self.processes:
        process.kill()
        process.wait()

  def finish(self):
    """Waits until all processes have succeeded; returns the figures of each."""
    statuses = self.wait()
    assert not any(statuses), (
      statuses,
      [log.read_text()[-3000:] for log in self.logs],
    )
    return [json.loads(path.read_text()) for path in self.figures]

  def wait_for(self, path):
    """Waits until a file exists; fails if a process ends before."""
    deadline = time.monotonic() + 1000
    while not path.exists():
      assert [p.poll() for p in self.processes] == [None] * len(
        self.processes
      ), [log.read_text()[-3000:] for log in self.logs]
      assert time.monotonic() < deadline
      time.sleep(0.05)


def assert_same_figures(some, others, rtol=1e-5, of_norm=None):
  assert len(some) == len(others)
  for step, (one, other) in enumerate(zip(some, others, strict=True)):
    assert one.keys() == other.keys()
    for name in one:
      assert_allclose(
        one[name],
        other[name],
        rtol=of_norm if of_norm and name == 'grad_norm' else rtol,
        err_msg=f'{name} of step {step}',
      )


def assert_told_in_one_line(log, victim, state):
  """Checks that a process names another one, and prints no stack.

  Args:
    log: The output of the process.
    victim: `(number, PID)` of the other process.
    state: 'has ended' or 'is stopped'.
  """
  text = log.read_text()
  (line,) = [x for x in text.splitlines() if x.startswith('error: ')]
  number, pid = victim
  assert line.startswith(
    f'error: process {number} (PID {pid} on {socket.gethostname()}) {state}. '
  ), line
  assert 'stack trace' not in text
  assert 'Traceback' not in text


def check_results(workdir, data):
  """Checks that each image was evaluated once; returns the boxes found."""
  truth = json.loads((data / 'instances_val.json').read_text())
  ids = [image['id'] for image in truth['images']]
  boxes = json.loads((workdir / 'inference' / 'bbox.json').read_text())
  # The tiny recipe finds the largest number of boxes in each image, 8.
  counts = collections.Counter(result['image_id'] for result in boxes)
  assert sorted(counts) == sorted(ids)
  assert max(counts.values()) <= 8
  results = json.loads(
    (workdir / 'inference' / 'coco_results.json').read_text()
  )
  assert results['bbox']['num_images'] == len(ids)
  with np.load(workdir / 'inference' / 'predictions.npz') as arrays:
    assert arrays['image_ids'].tolist() == [r['image_id'] for r in boxes]
    assert arrays['masks'].shape == (len(boxes), 28, 28)
  assert not list((workdir / 'inference').glob('*.partial'))
  return boxes


def test_two_processes_train_and_evaluate_as_one_does(
  tiny_run, tiny_data, tmp_path, compilation_cache
):
  alone, figures = tiny_run
  workdir = tmp_path / 'run'
  run = Run(2, workdir, tiny_data, '--config.train.num_steps=2')
  one, two = run.finish()
  assert one == two
  assert_same_figures(one, figures[:2])
  check_results(workdir, tiny_data)
  # Only process 0 writes.
  lines = (workdir / 'log.txt').read_text().splitlines()
  assert sum(line.startswith('Training on 8 images') for line in lines) == 1
  assert '2 a step on 2 cpu device(s)' in lines[0]
  assert 'iter: ' not in run.logs[1].read_text()
  assert 'Average Precision' not in run.logs[1].read_text()
  saved = tiny.saved_arrays(workdir, 2)
  wanted = tiny.saved_arrays(alone, 2)
  assert saved.keys() == wanted.keys()
  for name in saved:
    assert_allclose(
      saved[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name
    )


OPTIONS = (
  '--config.train.batch_size=4',
  '--config.train.num_steps=6',
)


@pytest.fixture(scope='module')
def straight(tmp_path_factory, data, compilation_cache):
  """A run of one process without interruption, to compare other runs with."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  (figures,) = Run(1, workdir, data, *OPTIONS).finish()
  return workdir, figures


@pytest.mark.slow
def test_four_processes_train_and_evaluate_as_one_does(
  straight, data, tmp_path
):
  alone, figures = straight
  workdir = tmp_path / 'run'
  everywhere = Run(4, workdir, data, *OPTIONS).finish()
  for here in everywhere:
    assert_same_figures(here, figures)
  results = check_results(workdir, data)
  wanted = check_results(alone, data)
  assert [r['image_id'] for r in results] == [r['image_id'] for r in wanted]
  assert_allclose(
    [r['score'] for r in results], [r['score'] for r in wanted], rtol=1e-3
  )


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_number_of_processes(
  straight, data, tmp_path
):
  options = ('--mode=eval', f'--checkpoint={straight[0]}')
  Run(2, tmp_path / 'two', data, *options).finish()
  ours = check_results(tmp_path / 'two', data)
  wanted = check_results(straight[0], data)
  for name in ('image_id', 'category_id'):
    assert [r[name] for r in ours] == [r[name] for r in wanted]
  # Only the order of sums may differ, which changes the last digits.
  for name in ('score', 'bbox'):
    assert_allclose(
      [r[name] for r in ours],
      [r[name] for r in wanted],
      rtol=1e-5,
      atol=1e-5 if name == 'bbox' else 0,
    )
  # A probability between two of the 256 levels may be rounded up or down.
  two, one = (
    np.load(workdir / 'inference' / 'predictions.npz')['masks'].astype(int)
    for workdir in (tmp_path / 'two', straight[0])
  )
  assert_allclose(two, one, rtol=0, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'victim'), [(2, 0), (2, 1), (4, 2)])
def test_a_killed_process_ends_all_and_the_run_goes_on(
  straight, data, tmp_path, count, victim
):
  workdir = tmp_path / 'run'
  # So many steps that the run cannot end before the kill.
  endless = Run(
    count, workdir, data, *OPTIONS, '--config.train.num_steps=100000'
  )
  endless.wait_for(workdir / 'checkpoints' / '2')
  endless.processes[victim].send_signal(signal.SIGKILL)
  started = time.monotonic()
  statuses = endless.wait()
  assert time.monotonic() - started < 100
  assert statuses.pop(victim) == -signal.SIGKILL
  assert statuses == [1] * (count - 1)
  pid = endless.processes[victim].pid
  for i in set(range(count)) - {victim}:
    assert_told_in_one_line(endless.logs[i], (victim, pid), 'has ended')

  done = checkpoint.saved_steps(workdir / 'checkpoints')[-1]
  num_steps = f'--config.train.num_steps={done + 2}'
  one, two = Run(2, workdir, data, *OPTIONS, num_steps).finish()
  assert one == two
  assert len(one) == 2
  check_results(workdir, data)
  if done < 6:
    wanted = straight[1][done : done + 2]
    assert_same_figures(one[: len(wanted)], wanted, rtol=1e-4)


@pytest.mark.slow
def test_a_stuck_process_ends_the_others_by_the_watchdog(data, tmp_path):
  # This run fills the cache of compiled programs, so that the next one starts
  # without compiling.
  workdir = tmp_path / 'run'
  Run(2, workdir, data, '--config.train.num_steps=1', '--skip_test').finish()
  run = Run(
    2,
    workdir,
    data,
    '--config.train.num_steps=100000',
    '--config.train.watchdog_seconds=60',
  )
  run.wait_for(workdir / 'checkpoints' / '2')
  run.processes[1].send_signal(signal.SIGSTOP)
  started = time.monotonic()
  assert run.processes[0].wait(120) == 1
  assert 30 < time.monotonic() - started < 90
  run.processes[1].kill()
  run.wait()
  text = run.logs[0].read_text()
  assert 'error: no progress for 6' in text
  assert 'the last progress was ' in text
  assert (
    'maskrcnn_jax/training/loop.py", line' in text.partition('no progress')[2]
  )


@pytest.mark.slow
def test_a_stopped_process_ends_the_others_with_status_1(data, tmp_path):
  workdir = tmp_path / 'run'
  run = Run(2, workdir, data, '--config.train.num_steps=100000', '--skip_test')
  run.wait_for(workdir / 'checkpoints' / '2')
  run.processes[1].send_signal(signal.SIGSTOP)
  started = time.monotonic()
  # JAX waits 100 s for a heartbeat.
  assert run.processes[0].wait(300) == 1
  assert 60 < time.monotonic() - started < 180
  run.processes[1].kill()
  run.wait()
  victim = (1, run.processes[1].pid)
  assert_told_in_one_line(run.logs[0], victim, 'is stopped')


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(
  straight, data, tmp_path
):
  workdir = tmp_path / 'run'
  figures = []
  for count, num_steps in ((4, 2), (1, 4), (2, 6)):
    figures += Run(
      count,
      workdir,
      data,
      *OPTIONS,
      f'--config.train.num_steps={num_steps}',
    ).finish()[-1]
  # At the kink of an L1 loss or a ReLU, rounding changes the sign of a gradient
  # but hardly the loss.
  assert_same_figures(figures, straight[1], of_norm=2e-4)
  check_results(workdir, data)
  saved = tiny.saved_arrays(workdir, 6)
  wanted = tiny.saved_arrays(straight[0], 6)
  assert saved.keys() == wanted.keys()
  for name in saved:
    # The momentum is a sum of gradients, which such a change of sign affects.
    atol = 5e-4 if name.startswith('optimizer/') else 1e-5
    assert_allclose(
      saved[name], wanted[name], rtol=1e-3, atol=atol, err_msg=name
    )


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(
  data, tmp_path, compilation_cache
):
  workdir = tmp_path / 'run'
  options = (*OPTIONS, '--skip_test', '--config.train.eval_every=2')
  endless = Run(2, workdir, data, *options, '--config.train.num_steps=100000')
  endless.wait_for(workdir / 'evaluations.json')
  endless.processes[1].send_signal(signal.SIGTERM)
  one, two = endless.finish()
  assert one == two
  done = checkpoint.saved_steps(workdir / 'checkpoints')[-1]
  assert done == len(one)
  assert 'SIGTERM' in (workdir / 'interrupted').read_text()
  evaluated = json.loads((workdir / 'evaluations.json').read_text())
  assert [e['step'] for e in evaluated] == list(range(2, done + 1, 2))
  assert len(checkpoint.saved_steps(workdir / 'best')) == 1

  (rest,) = Run(
    1, workdir, data, *options, f'--config.train.num_steps={done + 2}'
  ).finish()
  assert len(rest) == 2
  assert not (workdir / 'interrupted').exists()


def test_processes_that_disagree_are_told_apart(data, tmp_path):
  run = Run(2, tmp_path / 'run', data, last=('--config.seed=1',))
  assert 2 in run.wait()
  assert any(
    'error: Process 1 differs from process 0 in config.seed: 1 instead of 0'
    in log.read_text()
    for log in run.logs
  )
