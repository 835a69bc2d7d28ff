"""Tests of compiling the kernels for GPUs on a machine without a GPU."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HAS_JAX_TRITON = importlib.util.find_spec('jax_triton') is not None
SCRIPT = ROOT / 'scripts' / 'compile_kernels.py'


def run(*arguments, **environment):
  """Runs the script, with the tools of the CUDA packages on PATH."""
  tools = pathlib.Path(sys.prefix).glob('lib/*/site-packages/nvidia/*/bin')
  return subprocess.run(
    [sys.executable, str(SCRIPT), *arguments],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ
    | environment
    | {
      'PYTHONPATH': str(ROOT),
      'JAX_PLATFORMS': 'cpu',
      'PATH': os.pathsep.join([*map(str, tools), os.environ['PATH']]),
    },
  )


needs_plugin = pytest.mark.skipif(
  importlib.util.find_spec('jax_plugins') is None,
  reason='the CUDA plugin of jax is not installed',
)


@needs_plugin
@pytest.mark.slow
def test_kernels_and_training_step_compile_for_h200_and_a100():
  done = run('--quick')
  assert done.returncode == 0, done.stderr[-3000:]
  lines = done.stdout.splitlines()
  for target in ('h200', 'a100_40'):
    for title in (
      f'{target} pairwise_iou',
      f'{target} match_by_overlap',
      f'{target} anchors_at',
      f'{target} select_boxes',
      f'{target} nms',
      f'{target} roi_align',
      f'{target} rasterize_outlines',
      f'training step, 1 x {target}',
      f'inference, 1 x {target}',
    ):
      found = [line for line in lines if line.startswith(title)]
      assert len(found) >= 2, title  # One is the kernel, another plain JAX.
      assert all(' MiB; compiled in ' in line for line in found)
    by_triton = [
      line
      for line in lines
      if line.startswith(f'{target} nms') and ' triton: ' in line
    ]
    assert len(by_triton) == (2 if HAS_JAX_TRITON else 0)
  left_out = 'NMS by jax-triton is left out: it is not installed'
  assert (left_out in lines) != HAS_JAX_TRITON
  title = 'training step, 8 x h200, pallas'
  assert any(line.startswith(title) for line in lines)


def memory_in_table():
  """Returns {recipe: GiB} of scripts/recipe_table.py."""
  path = ROOT / 'scripts' / 'recipe_table.py'
  spec = importlib.util.spec_from_file_location('recipe_table', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.MEMORY


@needs_plugin
@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe',
  [
    'r50_fpn',
    'r101_fpn',
    'x101_32x8d_fpn',
    'r50_c4',
    'r50_c5',
    'r50_dc5',
    'r50_fpn_gn',
    'faster_rcnn_r50_fpn',
    'faster_rcnn_r50_c4',
    'rpn_r50_fpn',
  ],
)
def test_a_recipe_compiles_for_h200_in_full_size(recipe):
  done = run('--targets=h200', f'--recipes={recipe}')
  assert done.returncode == 0, done.stderr[-3000:]
  [line] = re.findall(r'training step, .*', done.stdout)
  arguments, temporary = (
    float(re.search(f'{word} ([0-9.]+)', line)[1])
    for word in ('arguments', 'temporary')
  )
  # Another version of XLA may need more or less.
  memory = (arguments + temporary) / 1024
  assert memory == pytest.approx(memory_in_table()[recipe], rel=0.15)
  assert 'of 800x1344, bf16' in line


@pytest.mark.skipif(
  importlib.util.find_spec('jax_plugins') is not None, reason='it is installed'
)
def test_without_the_plugin_the_script_says_what_is_missing():
  done = run('--quick')
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: To compile for GPUs, the packages of the ')
  assert "pip install 'jax[cuda13-local]' nvidia-cuda-nvcc" in line
