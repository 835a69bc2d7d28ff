"""Tests of scripts/gpu_check.sh with a Python that only records its calls."""

import os
import pathlib
import stat
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / 'scripts' / 'gpu_check.sh'

# A program that stands for Python. If it is asked which modules are missing, it
# names those of $MISSING. Otherwise it records its arguments in $CALLS, and
# fails or hangs if they match $FAILS or $HANGS.
PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then
  for name in "${@:3}"; do
    [[ " $MISSING " != *" $name "* ]] || printf '%s ' "$name"
  done
  exit
fi
echo "$*" >> "$CALLS"
echo "output of $*"
[ -z "$HANGS" ] || [[ "$*" != *$HANGS* ]] || exec sleep 60
[ -z "$FAILS" ] || [[ "$*" != *$FAILS* ]]
"""


@pytest.fixture
def check(tmp_path):
  """A function that runs the script with arguments and environment variables.

  It returns the finished process and the calls of Python. The results are in
  the folder `results` of `tmp_path`.
  """
  python, calls = tmp_path / 'python', tmp_path / 'calls.txt'
  python.write_text(PYTHON)
  python.chmod(python.stat().st_mode | stat.S_IXUSR)

  def run(*arguments, **environment):
    calls.write_text('')
    done = subprocess.run(
      ['bash', SCRIPT, f'--folder={tmp_path / "results"}', *arguments],
      env=os.environ
      | {'MISSING': '', 'FAILS': '', 'HANGS': ''}
      | {'PYTHON': str(python), 'CALLS': str(calls)}
      | environment,
      capture_output=True,
      text=True,
      timeout=60,
    )
    return done, calls.read_text().splitlines()

  return run


def results(tmp_path):
  return {path.name for path in (tmp_path / 'results').iterdir()}


def test_all_parts_run_in_the_order_of_their_worth(check, tmp_path):
  done, calls = check('--size=tiny')
  assert done.returncode == 0, done.stderr
  order = (
    'maskrcnn_jax.doctor',
    'check_kernels.py',
    '--mode=train --precision=bf16 --kernels=xla',
    '--mode=inference --precision=bf16 --kernels=pallas',
    '--compare=torchvision',
    '--trace=',
    '--max_batch_size=',
    '--precision=fp16',
    'maskrcnn_jax.main',
    '--precision=fp32',
    'benchmark_kernels.py',
  )
  first = [
    next(i for i, call in enumerate(calls) if part in call) for part in order
  ]
  assert first == sorted(first)
  assert len(results(tmp_path)) == 25
  text = (tmp_path / 'results' / 'doctor.txt').read_text()
  assert text == 'output of -m maskrcnn_jax.doctor\n'


def test_a_second_call_takes_up_what_the_first_has_left(check, tmp_path):
  arguments = '--parts=doctor,train', '--limits=train:2'
  done, calls = check(*arguments, HANGS='--kernels=pallas')
  assert done.returncode == 1
  assert len(calls) == 3
  assert 'FAILED (train-pallas: its time of' in done.stdout
  assert results(tmp_path) == {
    'doctor.txt',
    'train-xla.txt',
    'train-pallas.partial.txt',
  }

  done, calls = check(*arguments)
  assert done.returncode == 0
  assert len(calls) == 1
  assert '--kernels=pallas' in calls[0]
  assert results(tmp_path) == {
    'doctor.txt',
    'train-xla.txt',
    'train-pallas.txt',
  }

  done, calls = check(*arguments, '--again')
  assert len(calls) == 3


def test_a_failure_does_not_end_the_call(check, tmp_path):
  done, calls = check('--parts=doctor,check', FAILS='doctor')
  assert done.returncode == 1
  assert len(calls) == 2
  assert 'FAILED (doctor: exit status 1)' in done.stdout
  assert 'NOT COMPLETE: doctor;' in done.stdout
  assert results(tmp_path) == {'doctor.partial.txt', 'check.txt'}


def test_the_total_ends_the_call(check, tmp_path):
  done, calls = check('--parts=doctor,check', '--total=1', HANGS='doctor')
  assert done.returncode == 1
  assert len(calls) == 1
  assert 'NOT RUN (check: no time is left)' in done.stdout


@pytest.mark.parametrize(
  ('missing', 'left_out'),
  [
    (
      'grain',
      [
        'cpu, because these packages are missing: grain',
        'trace, because these packages are missing: grain',
      ],
    ),
    ('torchvision', ['cpu, because', 'cannot import: torchvision']),
  ],
)
def test_a_part_that_lacks_something_is_left_out(missing, left_out, check):
  done, _ = check('--parts=trace,cpu,kernels', MISSING=missing)
  assert done.returncode == 0
  lines = [x for x in done.stdout.splitlines() if x.startswith('NOT RUN: ')]
  for text in left_out:
    assert any(text in line for line in lines), lines
  assert ('== trace' in done.stdout) == (missing != 'grain')
  # The results that need nothing else are there.
  assert '== kernels' in done.stdout


def test_the_learning_is_left_out_without_data(check):
  done, calls = check('--parts=learning')
  assert done.returncode == 0
  assert 'learning, because no data set was given with --data=' in done.stdout
  assert not calls


def test_the_data_are_trained_on_without_and_with_kernels(check, tmp_path):
  data = tmp_path / 'nuclei'
  (data / 'images').mkdir(parents=True)
  (data / 'instances_train.json').touch()
  done, _ = check('--parts=learning', f'--data={data}')
  assert done.returncode == 2
  assert done.stderr == (
    f'error: --data: there is no {data}/instances_val.json\n'
  )
  (data / 'instances_val.json').touch()
  done, calls = check('--parts=learning', f'--data={data}')
  assert done.returncode == 0
  for call, kernels in zip(calls, ('xla', 'pallas'), strict=True):
    assert f'--config.kernels={kernels}' in call
    assert f'--config.data.eval.annotations={data}/instances_val.json' in call
    assert '--config.train.num_steps=300' in call


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--parts=doctor,tests', '--parts: there is no part tests; the parts are'),
    ('--limits=train', '--limits: train is not PART:SECONDS'),
    ('--limits=tests:5', '--limits: there is no part tests'),
    ('--total=soon', '--total=soon: give seconds'),
    ('--size=huge', '--size=huge is not understood; see --help'),
    ('--data=/none', '--data: there is no /none/images'),
  ],
)
def test_wrong_arguments_are_one_line(argument, message, check):
  done, calls = check(argument)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f'error: {message}')
  assert not calls


def test_help_describes_each_part():
  done = subprocess.run(
    ['bash', SCRIPT, '--help'], capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 0
  for part in ('doctor 60', 'torchvision 320', 'cpu 150', 'kernels 120'):
    assert f'\n  {part}' in done.stdout
  assert 'pipefail' not in done.stdout
