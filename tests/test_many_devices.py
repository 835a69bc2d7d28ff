"""The same training on any number of devices, simulated on the CPU."""

import json
import os
import pathlib
import subprocess
import sys

from numpy.testing import assert_allclose
import pytest

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = '''
import json, pathlib, sys
sys.path.insert(0, 'tests')
import jax, numpy as np, tiny
from jax.sharding import Mesh
from maskrcnn_jax import cluster

data, workdir, num_steps, *counts = sys.argv[1:]
figures = {}
for count in map(int, counts):
  mesh = Mesh(np.array(jax.devices()[:count]), ('data',))
  cluster.make_mesh = lambda axes: mesh
  config = tiny.with_data(tiny.get_config(), pathlib.Path(data))
  config.train.batch_size = 8
  config.train.num_steps = int(num_steps)
  config.train.checkpoint_every = 1000
  figures[count] = tiny.run_training(config, pathlib.Path(workdir, str(count)))
print(json.dumps(figures))
'''


def train_on(counts, *, num_steps, data, workdir):
  """Trains on so many devices each, and compares with the first."""
  done = subprocess.run(
      [sys.executable, '-c', PROGRAM, data, workdir, str(num_steps),
       *map(str, counts)],
      cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True,
      env=os.environ | {
          'JAX_PLATFORMS': 'cpu',
          'XLA_FLAGS': '--xla_force_host_platform_device_count=8 '
                       '--xla_backend_optimization_level=0',
      },
  )
  one, *others = json.loads(done.stdout.splitlines()[-1]).values()
  assert len(one) == num_steps
  assert len({step['loss'] for step in one}) == num_steps
  for count, other in zip(counts[1:], others, strict=True):
    for step, (wanted, got) in enumerate(zip(one, other, strict=True)):
      assert wanted.keys() == got.keys()
      for name in wanted:
        assert_allclose(
            got[name], wanted[name], rtol=1e-5,
            err_msg=f'{name} of step {step} on {count} devices',
        )


def test_eight_devices_train_as_one_does(
    tiny_data, tmp_path, compilation_cache
):
  train_on([1, 8], num_steps=3, data=tiny_data, workdir=tmp_path)


@pytest.mark.slow
def test_any_number_of_devices_trains_as_one_does(
    tiny_data, tmp_path, compilation_cache
):
  train_on([1, 2, 4, 8], num_steps=20, data=tiny_data, workdir=tmp_path)
