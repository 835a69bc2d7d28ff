"""Tests of plans for GPUs that are not here."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
from jax.sharding import Mesh
import numpy as np
import pytest
import tiny

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.plan import compiling, gpu_plan
from maskrcnn_jax.plan.work import read_work
from maskrcnn_jax.runtime.gpu_peaks import GPUS

GIB = 2**30


def largest_by_trying_all(memory, limit, multiple):
  """Returns the largest multiple that fits, by trying one after the other."""
  count = 0
  while memory(count + multiple) <= limit:
    count += multiple
  return count


@pytest.mark.parametrize('first', [2, 4, 96])
@pytest.mark.parametrize('multiple', [1, 2])
@pytest.mark.parametrize(
  'memory',
  [
    lambda n: 3_000 + 700 * n,
    # Padding of arrays and other choices of the compiler make it uneven.
    lambda n: 3_000 + 700 * n + 311 * (n % 3),
    lambda n: int(3_000 + 600 * n + 3 * n**1.5),
    # From some number on, the compiler chooses another algorithm.
    lambda n: 1_000 + 830 * n + 15_000 * (n > 36),
    lambda n: 90_000,  # One image does not fit.
  ],
)
def test_largest_that_fits_finds_what_trying_all_numbers_finds(
  memory, multiple, first
):
  limit = 40_000.0
  calls = []

  def counted(count):
    calls.append(count)
    return memory(count)

  room = gpu_plan.largest_that_fits(
    counted, limit, first=first, first_bytes=memory(first), multiple=multiple
  )
  expected = largest_by_trying_all(memory, limit, multiple)
  assert room.is_exact
  # The line through two uneven points can end one step too early.
  assert expected - multiple <= room.largest <= expected
  assert room.largest % multiple == 0
  assert room.largest == 0 or memory(room.largest) <= limit
  assert len(set(calls)) == len(calls) <= 7
  assert all(room.tried[count] == memory(count) for count in calls)


def test_largest_that_fits_of_an_even_memory_compiles_three_times():
  calls = []

  def memory(count):
    calls.append(count)
    return 1_000 + 100 * count

  room = gpu_plan.largest_that_fits(memory, 7_777.0, first=2, first_bytes=1_200)
  assert room.largest == 67  # 1000 + 100 * 67 = 7700
  assert calls == [12, 67]  # 12 images would fit if each needed 600.


def test_usable_memory_is_the_part_that_jax_reserves(monkeypatch):
  for name in ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'):
    monkeypatch.delenv(name, raising=False)
  assert gpu_plan.usable_memory('a100_40') == 0.75 * 42331013120
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')
  assert gpu_plan.usable_memory('a100_40') == 0.9 * 42331013120
  for wrong in ('2', '-1', 'most', 'nan'):
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', wrong)
    with pytest.raises(InputError, match=f'XLA_CLIENT_MEM_FRACTION={wrong} '):
      gpu_plan.usable_memory('h100')


PROGRAM = """
ENTRY %main (x: bf16[1000,1000]) -> bf16[1000,1000] {
  %x = bf16[1000,1000]{1,0} parameter(0)
  %y = bf16[1000,1000]{1,0} dot(%x, %x), lhs_contracting_dims={1}, \
rhs_contracting_dims={0}
  ROOT %z = bf16[1000,1000]{1,0} all-reduce(%y), to_apply=%add
}
"""


@pytest.fixture
def work():
  config = tiny.get_config()
  config.train.batch_size = 16
  config.train.num_steps = 7200
  config.precision = 'auto'
  return read_work(config, frozenset({'train.num_steps'}))


def plan(work, monkeypatch, **options):
  """Plans with a compiler that needs 2 GiB and 3 GiB an image."""
  batch_sizes = []

  def compile_step(config, mesh, *, batch_size, **_):
    batch_sizes.append(batch_size)
    assert config.precision == 'tf32'
    memory = compiling.Memory(GIB, GIB, 3 * GIB * batch_size // mesh.size)
    return compiling.CompiledStep(PROGRAM, memory, 0, 1.5, 400, 100)

  mesh = Mesh(np.array(jax.devices() * 8), ('data',))
  monkeypatch.setattr(compiling, 'gpu_mesh', lambda *_, **__: mesh)
  monkeypatch.setattr(compiling, 'compile_step', compile_step)
  figures = gpu_plan.plan_for_gpus(
    work, target='h100', num_devices=8, **options
  )
  return figures, batch_sizes


def test_plan_for_gpus_adds_up_the_figures_of_the_program(work, monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  figures, batch_sizes = plan(work, monkeypatch)
  # 2 images on each of 8 GPUs; the next batch is counted with 0 bytes.
  assert figures['memory_mib'] == 8 * 1024
  assert figures['usable_mib'] == 0.75 * 84942979072 / 2**20
  assert figures['fits']
  # 59.3 GiB hold 19 images: 2 + 3 * 19 = 59. If all memory grew with the
  # images, 59.3 / 4 = 14 would fit.
  assert figures['largest_batch'] == 19 * 8
  assert batch_sizes == [16, 14 * 8, 152]
  # 2 * 10^9 FLOPs take 2.02 us at 989.4 TFLOP/s. Moving 3 arrays of 2 MB takes
  # 1.79 us at 3.35 TB/s. The exchange runs beside.
  assert figures['flops'] == 2_000_000_000
  seconds = 2e9 / 989.4e12
  assert figures['roofline_ms']['data_sheet'] == pytest.approx(1e3 * seconds)
  assert figures['images_per_s']['data_sheet'] == pytest.approx(16 / seconds)
  # 7200 steps.
  assert figures['least_hours']['data_sheet'] == pytest.approx(2 * seconds)
  assert figures['roofline_ms']['measured'] == pytest.approx(2e12 / 790e12)
  assert figures['collective_bytes'] == 2_000_000
  json.dumps(figures)
  text = '\n'.join(gpu_plan.lines_of(figures))
  assert '8.0 GiB of 59.3 GiB that JAX may use: fits' in text
  assert '152 images' in text


def test_plan_for_gpus_without_room_says_so(work, monkeypatch):
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '0.05')
  figures, batch_sizes = plan(work, monkeypatch)
  assert not figures['fits']
  assert figures['largest_batch'] == 0
  assert batch_sizes == [16, 8]
  text = '\n'.join(gpu_plan.lines_of(figures))
  assert 'DOES NOT FIT' in text
  assert 'not even one image a GPU' in text


def test_plan_for_gpus_refuses_a_batch_that_they_cannot_share(
  work, monkeypatch
):
  work.config.train.batch_size = 12
  with pytest.raises(InputError, match='config.train.batch_size .12. must be'):
    plan(work, monkeypatch)


def has_compiler():
  try:
    return importlib.util.find_spec('jax_plugins.xla_cuda13') is not None
  except ModuleNotFoundError:
    return False


@pytest.mark.skipif(has_compiler(), reason='the packages are installed')
def test_plan_without_the_packages_says_which_are_missing(capsys):
  from maskrcnn_jax.plan.command_line import main

  with pytest.raises(SystemExit) as exit_:
    main([f'--config={tiny.__file__}', '--target=h200'])
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: To compile for GPUs, ')
  assert "pip install 'jax[cuda13-local]' nvidia-cuda-nvcc" in line


@pytest.mark.slow
@pytest.mark.skipif(
  not has_compiler(), reason='the extra `plan` is not installed'
)
@pytest.mark.parametrize('target', GPUS)
def test_plan_compiles_a_small_training_for_each_gpu(target):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'maskrcnn_jax.plan'),
      *(f'--config={tiny.__file__}', f'--target={target}'),
      *('--devices=2', '--batch_size=4', '--json'),
    ],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ
    | {
      'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
      # Without this, thousands of the tiny images would fit.
      'XLA_CLIENT_MEM_FRACTION': '0.0005',
    },
  )
  figures = json.loads(done.stdout)
  assert figures['fits']
  assert 4 < figures['largest_batch'] < 1000
  assert 'about' in done.stderr
  # The gradients of all parameters, and a few sums.
  assert figures['collective_bytes'] > 100_000
  assert math.isfinite(figures['roofline_ms']['data_sheet'])
