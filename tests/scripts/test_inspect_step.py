"""Tests of the script that inspects a compiled step."""

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
  reason='the extra `plan` is not installed',
)
def test_a_step_for_eight_gpus_exchanges_gradients_and_little_else():
  done = subprocess.run(
    [
      sys.executable,
      'scripts/inspect_step.py',
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
  # The counts of the layers, with some arithmetic beside them, are those of the
  # README's table for one image, three times for a training.
  assert figures['launches'] > 500
  assert figures['data_dependent_loops'] <= 3


SMALL = {
  'launches': 7,
  'bytes': 12_000,
  'flops': {'bf16': 2e9, 'f32': 5e8},
  'kinds': {'copy': {'kernels': 7, 'bytes': 12_000, 'flops': 0}},
  'loops': [16, None],
  'data_dependent_loops': 1,
  'sorts': [{'length': 1000, 'rows': 8, 'times': 2, 'source': 'top_k'}],
  'scatters': [
    {'into': 'f32[9]', 'values': 3_000_000, 'times': 16, 'source': 'roi'}
  ],
  'collectives': {'all-reduce': [100, 20]},
  'roofline_ms': {'H100 SXM': 12.3456},
  'device_mib': 2345,
}


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs the script in this process, which has imported JAX already.

  Returns:
    A function of the arguments, which returns the exit status, the lines of
    stdout and those of stderr.
  """
  path = ROOT / 'scripts' / 'inspect_step.py'
  spec = importlib.util.spec_from_file_location('inspect_step', path)
  script = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(script)
  monkeypatch.chdir(ROOT)

  def call(*arguments):
    monkeypatch.setattr(sys, 'argv', ['inspect_step.py', *arguments])
    status = 0
    try:
      script.main()
    except SystemExit as exit_:
      status = exit_.code
    out, err = capsys.readouterr()
    return status, out.splitlines(), err.splitlines()

  return call


def test_two_files_are_compared_in_a_table(run, tmp_path):
  before, after = tmp_path / 'before.json', tmp_path / 'after.json'
  before.write_text(json.dumps(SMALL))
  after.write_text(
    json.dumps(SMALL | {'loops': [], 'data_dependent_loops': 0, 'sorts': []})
  )
  status, lines, errors = run(f'--before={before}', f'--after={after}')
  assert (status, errors) == (0, [])
  assert lines[:2] == [
    '| property of the compiled step | before | after |',
    '|---|---|---|',
  ]
  for line in (
    '| kernels launched | 7 | 7 |',
    '| while loops | 2 | 0 |',
    '| of these, number of iterations depends on data | 1 | 0 |',
    '| sorts | 2 | 0 |',
    '| elements of the longest sort | 1,000 | 0 |',
    '| scatters | 16 | 16 |',
    '| values scattered, million | 48 | 48 |',
    '| GFLOP, float32, highest precision | 0.50 | 0.50 |',
    '| bytes exchanged between devices | 120 | 120 |',
    '| roofline H100 SXM, ms | 12.35 | 12.35 |',
  ):
    assert line in lines


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--after=a.json'], '--after needs --before'),
    ([], '--config=RECIPE is missing'),
    (['--config=r50_fpn', '--before=none.json'], 'none.json is no file that'),
    (['--config=r50_fpn', '--before=setup.cfg'], 'setup.cfg is no file that'),
    (['--config=r50_fpn', '--size=800'], '--size=800: give HEIGHTxWIDTH'),
    (['--config=r50_fpn', '--fast'], "Unexpected argument '--fast'"),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message, run):
  status, _, (line,) = run(*arguments)
  assert status == 2
  assert line.startswith('error: ')
  assert message in line
