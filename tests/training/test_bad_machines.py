"""Tests of trainings, by the command line, on machines that make trouble."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import tiny

from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compilation_cache')]

ENDLESS = ('--config.train.num_steps=100000', '--config.train.log_every=1')

# A file sitecustomize.py, which Python runs at its start: the clock is a year
# back from the moment on at which a file appears.
CLOCK_SET_BACK = """
import os, time

seconds = time.time

def set_back():
  is_back = os.path.exists(os.environ['SET_BACK_WHEN'])
  return seconds() - (365 * 86400 if is_back else 0)

time.time = set_back
time.time_ns = lambda: int(set_back() * 1e9)
"""


@pytest.fixture
def start(tiny_data, tmp_path):
  """A function that starts the command line, and ends it after the test."""
  with contextlib.ExitStack() as ends:

    def start(*options, workdir=tmp_path / 'run', before=(), **popen):
      process = ends.enter_context(
        subprocess.Popen(
          [
            *before,
            sys.executable,
            '-m',
            'maskrcnn_jax.main',
            f'--config={tiny.__file__}',
            f'--workdir={workdir}',
            *tiny.data_flags(tiny_data),
            *options,
          ],
          cwd=ROOT,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.PIPE,
          text=True,
          env=os.environ | {'JAX_PLATFORMS': 'cpu'},
          **popen,
        )
      )
      ends.callback(process.kill)
      return process

    yield start


def num_steps_logged(workdir):
  path = workdir / 'log.txt'
  return path.read_text().count('eta: ') if path.exists() else 0


def wait_for_steps(workdir, number):
  deadline = time.monotonic() + 300
  while num_steps_logged(workdir) < number:
    assert time.monotonic() < deadline
    time.sleep(0.1)


def error_of(process):
  """Returns the line of the error of a process that ends, and its status."""
  _, err = process.communicate(timeout=300)
  assert 'Traceback' not in err, err
  (line,) = [line for line in err.splitlines() if line.startswith('error: ')]
  return line, process.returncode


@pytest.mark.parametrize('seconds', [0, 10])
def test_of_two_starts_in_one_workdir_the_second_is_refused(
  start, tmp_path, seconds
):
  workdir = tmp_path / 'run'
  first = start(*ENDLESS, '--skip_test')
  time.sleep(seconds)
  second = start(*ENDLESS, '--skip_test')
  deadline = time.monotonic() + 300
  while first.poll() is None and second.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  if first.poll() is not None and not seconds:
    # If both start in the same second, either may have been the first.
    first, second = second, first
  line, status = error_of(second)
  assert status == 2
  assert f'C17: {workdir} is in use by another training (' in line
  assert f'process {first.pid} on {socket.gethostname()});' in line
  wait_for_steps(workdir, num_steps_logged(workdir) + 3)

  # An evaluation beside the training is allowed.
  evaluation = start(
    '--mode=eval', f'--checkpoint={workdir}', workdir=tmp_path / 'eval'
  )
  _, err = evaluation.communicate(timeout=300)
  assert evaluation.returncode == 0, err
  assert first.poll() is None

  first.kill()
  first.communicate()
  third = start(*ENDLESS, '--skip_test')
  wait_for_steps(workdir, num_steps_logged(workdir) + 3)
  third.send_signal(signal.SIGTERM)
  _, err = third.communicate(timeout=300)
  assert third.returncode == 0, err
  assert 'Resuming from step' in err
  assert 'for a heartbeat' not in err
  assert (workdir / 'interrupted').exists()


def test_a_workdir_on_a_read_only_disk_is_named(start, tmp_path):
  unshare = ['unshare', '--user', '--map-root-user', '--mount']
  if (
    not shutil.which('unshare') or subprocess.run([*unshare, 'true']).returncode
  ):
    pytest.skip('needs namespaces of users')
  (tmp_path / 'run').mkdir()
  mount = (
    f'mount --bind {tmp_path / "run"} {tmp_path / "run"} && '
    f'mount -o remount,bind,ro {tmp_path / "run"} && exec "$@"'
  )
  process = start(before=[*unshare, 'sh', '-c', mount, 'sh'])
  line, status = error_of(process)
  assert status == 2
  assert f'C10: {tmp_path / "run"} cannot be written (Read-only file' in line


def test_a_save_that_fails_is_told_in_one_line(start, tmp_path):
  # A limit of the size of files stands for a full disk.
  limit = 'ulimit -f 64; exec "$@"'
  process = start('--skip_test', before=['sh', '-c', limit, 'sh'])
  line, status = error_of(process)
  assert status == 1
  assert f'C10: Saving step 2 in {tmp_path / "run" / "checkpoints"}' in line
  assert 'File too large' in line
  assert 'Make room' not in line


@pytest.mark.parametrize('mode', ['train', 'eval', 'predict'])
@pytest.mark.parametrize('mib', [700, 1000, 1300, 1600])
def test_too_little_memory_is_told_in_one_line(
  start, tiny_run, tiny_data, tmp_path, mib, mode
):
  # With these limits, C and C++ code ends the program in several ways.
  limit = f'ulimit -v {1024 * mib}; exec "$@"'
  options = {
    'train': ['--skip_test'],
    'eval': ['--mode=eval', f'--checkpoint={tiny_run[0]}'],
    'predict': [
      '--mode=predict',
      f'--checkpoint={tiny_run[0]}',
      f'--input={tiny_data / "images"}',
    ],
  }
  process = start(*options[mode], before=['sh', '-c', limit, 'sh'])
  _, err = process.communicate(timeout=300)
  assert process.returncode == 1, err
  (line,) = [line for line in err.splitlines() if line.startswith('error: ')]
  assert 'memory' in line, err
  assert err.rstrip().endswith(line)
  assert not (tmp_path / 'run' / 'damaged').exists()


def test_a_workdir_that_vanishes_is_named(start, tmp_path):
  workdir = tmp_path / 'run'
  process = start('--skip_test', *ENDLESS)
  wait_for_steps(workdir, 1)
  # Orbax would make a missing folder again, but it cannot replace a file.
  workdir.rename(tmp_path / 'moved')
  workdir.touch()
  started = time.monotonic()
  line, status = error_of(process)
  assert status == 1
  assert 'C10: ' in line
  assert 'no longer exists' in line
  # Threads of orbax would wait for five minutes.
  assert time.monotonic() - started < 120


def test_a_clock_that_is_set_back_changes_nothing(
  start, tmp_path, tiny_run, monkeypatch
):
  folder = tmp_path / 'site'
  folder.mkdir()
  (folder / 'sitecustomize.py').write_text(CLOCK_SET_BACK)
  monkeypatch.setenv(
    'PYTHONPATH', f'{folder}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
  )
  monkeypatch.setenv(
    'SET_BACK_WHEN', str(tmp_path / 'run' / 'checkpoints' / '2')
  )
  # The first run lives through the change, the second one only knows the past.
  for num_steps in (4, 5):
    process = start(f'--config.train.num_steps={num_steps}')
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert checkpoint.saved_steps(tmp_path / 'run' / 'checkpoints')[-1] == (
      num_steps
    )
  # The last save removes no step, so that step 4 is still there.
  tiny.assert_same_arrays(
    tiny.saved_arrays(tmp_path / 'run', 4), tiny.saved_arrays(tiny_run[0], 4)
  )
