"""Tests of data/prefetch.py. Tests with workers run a program of their own."""

import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import prefetch

ROOT = pathlib.Path(__file__).parents[2]

# Workers import the main module again, which does not work with that of pytest.
PROGRAM = """
import contextlib, signal, sys
import numpy as np
from maskrcnn_jax.data import prefetch
from maskrcnn_jax.runtime.stop_signal import StopSignal

def load(i):
  return np.full((300, 400), i), np.arange(i), str(i)

def main(count, taken):
  # SIGINT is ignored in a program that a shell starts in the background.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  kept = []
  with StopSignal() as stop, contextlib.closing(
      prefetch.load_ahead(load, int(count), num_threads=2, num_workers=2)
  ) as loaded:
    for i, (full, rising, text) in enumerate(loaded):
      if i < 20:
        kept.append(full)
      assert (full == i).all() and full.shape == (300, 400)
      assert rising.tolist() == list(range(i)) and text == str(i)
      print(i, flush=True)
      if stop.requested or i + 1 == int(taken):
        break
  assert all((full == i).all() for i, full in enumerate(kept))
  print('done')

if __name__ == '__main__':
  main(*sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path):
  """Returns a function that starts PROGRAM in a process group of its own.

  Its workers are in the same group. The group is killed after the test.
  """
  (tmp_path / 'program.py').write_text(PROGRAM)
  started = []

  def start_program(count, taken):
    started.append(
      subprocess.Popen(
        [sys.executable, 'program.py', str(count), str(taken)],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
      )
    )
    return started[-1]

  yield start_program
  for process in started:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()


def shared_memory_files():
  """Returns the files in shared memory of all processes of the machine."""
  return set(pathlib.Path('/dev/shm').glob('psm_*'))


def parcel_of(outcome):
  return pickle.loads(pickle.dumps(prefetch._Parcel(outcome)))


def test_a_parcel_arrives_and_leaves_nothing_in_shared_memory():
  arrays = (
    np.arange(7, dtype=np.int8),
    np.zeros((0, 2)),
    np.ones((3, 5), bool),
    np.arange(12.0).reshape(3, 4).T,
  )
  value, *texts = parcel_of((arrays, 'wrong', ''))
  assert texts == ['wrong', '']
  for array, expected in zip(value, arrays, strict=True):
    assert_array_equal(array, expected, strict=True)
    array[...] = 0  # may be written to
  assert parcel_of((None, '', 'failed')) == (None, '', 'failed')


def test_a_parcel_that_shared_memory_has_no_room_for_says_so(monkeypatch):
  def fail(**_):
    raise OSError(28, os.strerror(28))

  monkeypatch.setattr(prefetch.shared_memory, 'SharedMemory', fail)
  value, wrong_input, failure = parcel_of((np.ones(3), '', ''))
  assert value is None
  assert not wrong_input
  assert 'No space left on device' in failure


@pytest.mark.parametrize('count', [-1, 0, 1, 30])
def test_load_ahead_keeps_the_order(count):
  loaded = prefetch.load_ahead(lambda i: i * i, count, num_threads=3)
  assert list(loaded) == [i * i for i in range(count)]


def test_load_ahead_raises_what_loading_raises():
  def load(i):
    raise errors.InputError('I02') if i == 2 else ValueError('unheard of')

  with pytest.raises(RuntimeError, match='unheard of'):
    next(prefetch.load_ahead(load, 9, num_threads=2))
  with pytest.raises(errors.InputError, match='I02'):
    next(prefetch.load_ahead(lambda _: load(2), 9, num_threads=2))


@pytest.mark.skipif(sys.platform != 'linux', reason='looks into /dev/shm')
@pytest.mark.parametrize(
  'end',
  [
    'all',
    signal.SIGKILL,
    pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    pytest.param('few', marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
  ],
)
def test_workers_leave_nothing_in_shared_memory(start, end):
  before = shared_memory_files()
  process = start(9 if end == 'all' else 10**6, 3 if end == 'few' else 10**6)
  if isinstance(end, signal.Signals):
    for _ in range(5):
      process.stdout.readline()
    # Ctrl-C and some clusters send a signal to all processes of the group. But
    # if only the main process is killed, the workers must end too.
    if end == signal.SIGKILL:
      process.kill()
    else:
      os.killpg(process.pid, end)
  # The pipes are closed only after all workers have ended.
  out, err = process.communicate(timeout=300)
  match end:
    case signal.SIGKILL:
      assert process.returncode == -signal.SIGKILL
    case _:
      assert process.returncode == 0, err
      assert out.endswith('done\n')
      said = err.strip()
      assert said.startswith('Ctrl-C: ') == (end == signal.SIGINT)
      assert len(said.splitlines()) == (end == signal.SIGINT)
  if end != signal.SIGKILL:
    assert 'leaked' not in err
  # After a kill, a process of `multiprocessing` removes the files, ending last.
  deadline = time.monotonic() + 10
  # Tests that run at the same time have files too, which disappear as well.
  left = shared_memory_files() - before
  while left & shared_memory_files() and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not left & shared_memory_files()
