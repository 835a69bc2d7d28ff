"""Tests of programs under a limit of their memory."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from maskrcnn_jax.runtime import memory_limit
from maskrcnn_jax.runtime.memory_limit import lacks_memory

ROOT = pathlib.Path(__file__).parents[2]


def start(code, limit='4000000'):
  """Starts a program with a guard, and a limit in KiB."""
  begin = (
    'import ctypes, os, signal, sys, time\n'
    'from maskrcnn_jax.runtime.memory_limit import guard_memory_limit\n'
    'guard_memory_limit()\n'
  )
  return subprocess.Popen(
    [
      *('sh', '-c', f'ulimit -v {limit}; exec "$@"', 'sh'),
      *(sys.executable, '-c', begin + code),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('code', ['ctypes.string_at(0)', 'os._exit(127)'])
def test_a_program_that_dies_under_a_limit_leaves_a_line(code):
  process = start(code)
  _, err = process.communicate()
  assert process.returncode == 1
  assert err.startswith('error: the program has died, most likely because')
  assert 'ulimit -v allows 3.8 GiB' in err
  assert len(err.splitlines()) == 1


def test_other_ends_stay_as_they_are():
  process = start('print("out"); sys.exit(3)')
  assert process.communicate() == ('out\n', '')
  assert process.returncode == 3
  process = start('os.kill(os.getpid(), signal.SIGKILL)')
  assert process.communicate() == ('', '')
  assert process.returncode == -signal.SIGKILL


def test_without_a_limit_there_is_no_child():
  process = start('print(os.getpid())', limit='unlimited')
  assert process.communicate()[0] == f'{process.pid}\n'


def test_signals_reach_the_program():
  process = start(
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n'
    'print(os.getpid(), flush=True)\n'
    'time.sleep(100)'
  )
  process.stdout.readline()
  # A terminal would send it to the child too.
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGTERM)
  process.communicate()
  assert process.returncode == 5


def test_the_program_ends_with_its_parent():
  process = start('print(os.getpid(), flush=True)\ntime.sleep(100)')
  child = int(process.stdout.readline())
  assert child != process.pid
  process.kill()
  process.communicate()
  deadline = time.monotonic() + 20
  while os.path.exists(f'/proc/{child}'):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_lacks_memory_knows_the_texts():
  assert lacks_memory(MemoryError())
  assert lacks_memory(OSError(12, 'Cannot allocate memory'))
  assert lacks_memory(RuntimeError("can't start new thread"))
  assert not lacks_memory(ValueError('checksum is wrong'))


def test_the_remark_names_the_limit(monkeypatch):
  monkeypatch.setattr(
    memory_limit.resource,
    'getrlimit',
    lambda _: (3 * 2**30, memory_limit.resource.RLIM_INFINITY),
  )
  assert ' 3.0 GiB' in memory_limit.remark_on_limit()
  monkeypatch.setattr(
    memory_limit.resource,
    'getrlimit',
    lambda _: (memory_limit.resource.RLIM_INFINITY,) * 2,
  )
  assert not memory_limit.remark_on_limit()


def test_lacks_memory_looks_at_the_cause():
  try:
    try:
      raise MemoryError
    except MemoryError as error:
      raise RuntimeError('cannot read an array') from error
  except RuntimeError as error:
    assert lacks_memory(error)
