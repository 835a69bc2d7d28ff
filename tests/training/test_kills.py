"""Tests that a run that is killed many times ends with the same result."""

import functools
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import tiny

from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
NUM_KILLS = 40
NUM_STEPS = 320
# The command line, but every evaluation counts as the best one, so that there
# are many moments at which the best model is written.
PROGRAM = """
from maskrcnn_jax import main
from maskrcnn_jax.training.evaluations import TrainEvaluations

if __name__ == '__main__':
  TrainEvaluations.best = lambda self: self.done[-1]
  main.run()
"""
OPTIONS = [
  f'--config.train.num_steps={NUM_STEPS}',
  '--config.train.log_every=1',
  '--config.train.checkpoint_every=3',
  '--config.train.keep_checkpoints=2',
  '--config.train.eval_every=6',
  '--config.train.ema_decay=0.9',
  '--config.precision=fp16',
  '--config.eval.batch_size=1',
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compilation_cache')]


def start(workdir, data, log):
  return subprocess.Popen(
    [
      sys.executable,
      '-c',
      PROGRAM,
      '--config=tests/tiny.py',
      f'--workdir={workdir}',
      '--skip_test',
      *tiny.data_flags(data),
      *OPTIONS,
    ],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=log,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def steps_logged(workdir):
  path = workdir / 'log.txt'
  return (
    len(re.findall('^eta: ', path.read_text(), re.M)) if (path.exists()) else 0
  )


def is_saving(workdir):
  return any((workdir / 'checkpoints').glob('*tmp*'))


def is_saving_the_best(workdir):
  return any((workdir / 'best').glob('*tmp*'))


def is_evaluating(workdir):
  """Tells whether the evaluation of the newest saved step is not yet done."""
  newest = checkpoint.saved_steps(workdir / 'checkpoints')[-1:]
  path = workdir / 'evaluations.json'
  text = path.read_text() if path.exists() else ''
  return (
    bool(newest)
    and newest[0] % 6 == 0
    and (f'"step": {newest[0]},' not in text)
  )


def listens(process):
  """Tells whether a process has a handler for SIGTERM."""
  try:
    text = pathlib.Path(f'/proc/{process.pid}/status').read_text()
  except OSError:
    return False
  match = re.search(r'^SigCgt:\s*(\w+)', text, re.M)
  return bool(match and int(match[1], 16) >> (signal.SIGTERM - 1) & 1)


def kill_when(process, signal_, condition, delay):
  """Sends a signal `delay` seconds after a condition holds.

  Returns the exit status of the process.
  """
  deadline = time.monotonic() + 900
  while not condition():
    assert process.poll() is None, process.poll()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  time.sleep(delay)
  process.send_signal(signal_)
  return process.wait()


@pytest.fixture(scope='module')
def straight(tiny_data, tmp_path_factory, compilation_cache):
  """The workdir of a run that nothing interrupted."""
  folder = tmp_path_factory.mktemp('straight')
  with open(folder / 'stderr', 'w') as log:
    assert start(folder / 'run', tiny_data, log).wait() == 0
  return folder / 'run'


def moment_comes(moment, process, workdir, before, wanted):
  """Tells whether a moment of a run has come.

  Args:
    moment: 'start', 'step', 'save', 'evaluation' or 'best'.
    process: The process of the run.
    workdir: Its workdir.
    before: Number of steps in the log when the process was started.
    wanted: For 'step', the number of steps to wait for.
  """
  if moment == 'start':
    return listens(process)
  # Before its first step, the files in the workdir are still those of the
  # process before.
  if steps_logged(workdir) <= before:
    return False
  match moment:
    case 'step':
      return steps_logged(workdir) >= wanted
    case 'save':
      return is_saving(workdir)
    case 'best':
      return is_saving_the_best(workdir)
  return is_evaluating(workdir)


def check_equal(killed, straight):
  """Checks that a run that was killed has the results of the straight run."""
  assert not (killed / 'interrupted').exists()
  assert (killed / 'evaluations.json').read_text() == (
    straight / 'evaluations.json'
  ).read_text()
  for workdir in (straight, killed):
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    reports = [json.loads(line) for line in lines]
    # Each step has one report, also steps that were made several times.
    assert [r['step'] for r in reports if r['kind'] == 'train'] == [
      *range(1, NUM_STEPS + 1)
    ]
  (best,) = checkpoint.saved_steps(straight / 'best')
  assert checkpoint.saved_steps(killed / 'best') == [best]
  assert not (killed / 'damaged').exists()
  tiny.assert_same_arrays(
    tiny.saved_arrays(killed, NUM_STEPS),
    tiny.saved_arrays(straight, NUM_STEPS),
  )


def test_forty_kills_change_nothing(straight, tiny_data, tmp_path):
  killed = tmp_path / 'killed'
  draw = random.Random(0)
  seen = []
  with open(tmp_path / 'stderr', 'w') as log:
    for i in range(NUM_KILLS):
      process = start(killed, tiny_data, log)
      before = steps_logged(killed)
      moment = ('step', 'save', 'evaluation', 'best')[i % 4]
      signal_ = draw.choice([signal.SIGKILL, signal.SIGTERM])
      holds = functools.partial(
        moment_comes,
        moment,
        process,
        killed,
        before,
        before + draw.randint(1, 5),
      )
      delay = draw.uniform(0, 0.02 if moment in ('save', 'best') else 0.3)
      status = kill_when(process, signal_, holds, delay)
      # After SIGTERM, the process ends by itself with status 0.
      assert status == (0 if signal_ == signal.SIGTERM else -signal_)
      assert (killed / 'interrupted').exists() == (status == 0)
      seen.append((moment, signal_))
    # The last kill came before the end of the run.
    assert checkpoint.saved_steps(killed / 'checkpoints')[-1] < NUM_STEPS
    assert start(killed, tiny_data, log).wait() == 0
  assert len(set(seen)) == 8, seen
  check_equal(killed, straight)


def test_thirty_times_sigterm_changes_nothing(straight, tiny_data, tmp_path):
  killed = tmp_path / 'killed'
  draw = random.Random(1)
  for i in range(30):
    other = ('step', 'save', 'evaluation')[i // 3 % 3]
    moment = ('best', 'start', other)[i % 3]
    before = steps_logged(killed)
    with open(tmp_path / f'stderr-{i}', 'w') as log:
      process = start(killed, tiny_data, log)
      holds = functools.partial(
        moment_comes,
        moment,
        process,
        killed,
        before,
        before + draw.randint(1, 5),
      )
      # The start takes some seconds until the first step.
      longest = {'best': 0.02, 'save': 0.02, 'start': 8.0}.get(moment, 0.3)
      delay = draw.uniform(0, longest)
      status = kill_when(process, signal.SIGTERM, holds, delay)
    text = (tmp_path / f'stderr-{i}').read_text()
    print(
      f'SIGTERM {i}: {moment} + {delay:.2f} s, steps {before} to '
      f'{steps_logged(killed)}, status {status}'
    )
    assert status == 0, text
    assert text.splitlines()[-1].endswith(
      ' Stopped by SIGTERM; all finished steps are saved. The same command '
      'continues from there.'
    )
    assert 'Traceback' not in text
    assert 'SIGTERM' in (killed / 'interrupted').read_text()
  assert steps_logged(killed) < NUM_STEPS
  with open(tmp_path / 'stderr', 'w') as log:
    assert start(killed, tiny_data, log).wait() == 0
  check_equal(killed, straight)
