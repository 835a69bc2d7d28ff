"""Tests that a run that is killed many times ends with the same result."""

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


def kill_when(process, signal_, condition, delay):
  """Sends a signal `delay` seconds after a condition holds.

  Returns the exit status of the process.
  """
  deadline = time.monotonic() + 300
  while not condition():
    assert process.poll() is None, process.poll()
    assert time.monotonic() < deadline
    time.sleep(0.001)
  time.sleep(delay)
  process.send_signal(signal_)
  return process.wait()


def test_forty_kills_change_nothing(tiny_data, tmp_path):
  straight, killed = tmp_path / 'straight', tmp_path / 'killed'
  draw = random.Random(0)
  seen = []
  with open(tmp_path / 'stderr', 'w') as log:
    assert start(straight, tiny_data, log).wait() == 0
    for i in range(NUM_KILLS):
      process = start(killed, tiny_data, log)
      before = steps_logged(killed)
      wanted = before + draw.randint(1, 5)
      moment = ('step', 'save', 'evaluation', 'best')[i % 4]
      signal_ = draw.choice([signal.SIGKILL, signal.SIGTERM])

      def holds(moment=moment, before=before, wanted=wanted):
        # Before its first step, the files in the workdir are still those of the
        # process before.
        if steps_logged(killed) <= before:
          return False
        match moment:
          case 'step':
            return steps_logged(killed) >= wanted
          case 'save':
            return is_saving(killed)
          case 'best':
            return is_saving_the_best(killed)
        return is_evaluating(killed)

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
  tiny.assert_same_arrays(
    tiny.saved_arrays(killed, NUM_STEPS),
    tiny.saved_arrays(straight, NUM_STEPS),
  )
