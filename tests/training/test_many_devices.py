"""Tests that the number of devices, simulated on a CPU, does not matter."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import json, pathlib, sys
sys.path.insert(0, 'tests')
import jax, numpy as np, tiny
from jax.sharding import Mesh
from maskrcnn_jax.runtime import cluster

data, workdir, num_steps, rate, *cases = sys.argv[1:]
figures = {}
for case in cases:
  count, parts = map(int, case.split('x'))
  mesh = Mesh(np.array(jax.devices()[:count]), ('data',))
  cluster.make_mesh = lambda: mesh
  config = tiny.with_data(tiny.get_config(), pathlib.Path(data))
  config.train.batch_size = 8
  config.train.micro_batches = parts
  config.train.num_steps = int(num_steps)
  config.train.checkpoint_every = 1000
  config.optimizer.learning_rate = float(rate)
  figures[case] = tiny.run_training(config, pathlib.Path(workdir, case))
print(json.dumps(figures))
"""


def train_on(cases, *, num_steps, rate, data, workdir):
  """Trains in several cases and compares the figures with the first case.

  Args:
    cases: Strings 'DxM': number of devices, number of micro-batches.
    num_steps: Number of steps of each training.
    rate: Learning rate.
    data: Folder of the data set.
    workdir: Folder of the runs.

  Returns:
    {case: (largest difference of a loss relative to this loss, largest
    difference of a loss relative to the sum of the losses, largest relative
    difference of the gradient's norm)}, over all steps.
  """
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      PROGRAM,
      data,
      workdir,
      str(num_steps),
      str(rate),
      *cases,
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=8 '
      + tiny.QUICK_COMPILATION,
    },
  )
  one, *others = json.loads(done.stdout.splitlines()[-1]).values()
  assert len(one) == num_steps
  assert len({step['loss'] for step in one}) == num_steps
  largest = {}
  for case, other in zip(cases[1:], others, strict=True):
    by_itself, by_sum, of_norm = [], [], []
    for wanted, got in zip(one, other, strict=True):
      assert wanted.keys() == got.keys()
      for name in wanted:
        difference = abs(got[name] - wanted[name])
        if name == 'grad_norm':
          of_norm.append(difference / wanted[name])
        else:
          by_itself.append(difference / wanted[name])
          by_sum.append(difference / wanted['loss'])
    largest[case] = max(by_itself), max(by_sum), max(of_norm)
  print(f'Relative differences (loss, loss to sum, norm): {largest}')
  return largest


# The tests that are not slow train on two devices: see test_many_processes.py.
@pytest.mark.slow
def test_eight_devices_train_as_one_does(
  tiny_data, tmp_path, compilation_cache
):
  ((of_loss, _, of_norm),) = train_on(
    ['1x1', '8x1'], num_steps=3, rate=0.01, data=tiny_data, workdir=tmp_path
  ).values()
  assert of_loss < 1e-5
  assert of_norm < 1e-5


@pytest.mark.slow
def test_any_number_of_devices_and_micro_batches_trains_as_one_does(
  tiny_data, tmp_path, compilation_cache
):
  differences = train_on(
    ['1x1', '2x1', '4x1', '8x1', '1x2', '1x4', '2x2'],
    # At a larger rate, a training from random weights would amplify rounding
    # differences until other proposals are sampled.
    num_steps=20,
    rate=0.0001,
    data=tiny_data,
    workdir=tmp_path,
  )
  for case, (_, of_loss, of_norm) in differences.items():
    # A small loss can be a sum of large terms, with their rounding errors. At
    # the kink of an L1 loss or a ReLU, rounding changes the sign of a gradient
    # but hardly the loss.
    assert of_loss < 1e-5, case
    assert of_norm < 2e-4, case
