"""Test of the data that eight GPUs exchange in a compiled training step."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def has_plugin():
  try:
    return importlib.util.find_spec('jax_plugins.xla_cuda13') is not None
  except ModuleNotFoundError:
    return False


@pytest.mark.slow
@pytest.mark.skipif(
  not has_plugin(),
  reason="needs JAX's plugin for GPUs: scripts/inspect_collectives.py --help",
)
def test_a_step_for_eight_gpus_exchanges_gradients_and_little_else():
  done = subprocess.run(
    [
      sys.executable,
      'scripts/inspect_collectives.py',
      '--config=configs/r50_fpn.py',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  figures = json.loads(done.stdout.splitlines()[-1])
  assert figures['devices'] == 8
  assert figures['collectives'].keys() == {'all-reduce'}
  sizes = figures['collectives']['all-reduce']
  # A few large exchanges are the gradients of all parameters. The small ones
  # are five losses, and the numbers of samples that these are averaged over.
  large = [size for size in sizes if size >= 1024]
  assert len(large) <= 10
  assert 0 <= sum(sizes) - figures['trainable_bytes'] <= 256
  assert figures['in_loops'] == {}
  assert figures['transfers'] == {}
  assert figures['callbacks'] == {}
