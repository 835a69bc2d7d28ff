"""Tests of recording SIGTERM and SIGINT."""

import os
import signal
import subprocess
import sys
import time

import pytest

from maskrcnn_jax.runtime.stop_signal import Stopped, StopSignal


@pytest.fixture
def received():
  """A list to which each SIGTERM that nothing records adds an entry."""
  numbers = []
  before = signal.signal(signal.SIGTERM, lambda number, _: numbers.append(1))
  yield numbers
  signal.signal(signal.SIGTERM, before)


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def test_a_later_object_takes_over_what_an_earlier_one_has_recorded(received):
  with StopSignal([signal.SIGTERM]) as early:
    terminate()
    with StopSignal(before=early) as stop:
      assert stop.requested
      assert stop.name == 'SIGTERM'
      with pytest.raises(Stopped), stop.interrupting():
        pytest.fail('a recorded signal interrupts at once')
  assert not received


def test_a_signal_interrupts_although_python_ignores_an_exception(
  received, capsys
):
  class Deleted:
    def __del__(self):
      terminate()
      # The handler raises `Stopped` here, and Python ignores it.
      time.sleep(10)

  with StopSignal() as stop:
    began = time.monotonic()
    with pytest.raises(Stopped), stop.interrupting():
      deleted = Deleted()
      del deleted
      time.sleep(10)
    assert time.monotonic() - began < 5
    assert stop.name == 'SIGTERM'
  assert not received
  assert not capsys.readouterr().err


def test_a_later_object_records_by_itself(received):
  with StopSignal([signal.SIGTERM]) as early, StopSignal(before=early) as stop:
    assert not stop.requested
    terminate()
    assert stop.requested
  assert not received


def test_an_object_that_lets_go_gives_the_signal_back(received):
  with StopSignal([signal.SIGTERM]) as early:
    terminate()
    assert not received
    early.let_go()
    assert received == [1]
    terminate()
  assert received == [1, 1]


def test_a_paused_object_records_nothing(received):
  with StopSignal([signal.SIGTERM]) as early:
    with early.paused():
      terminate()
    assert received == [1]
    assert not early.requested
    terminate()
    assert early.requested
  with StopSignal([signal.SIGTERM]) as early:
    early.let_go()
    with early.paused():
      pass
    terminate()
  assert received == [1, 1]


def test_sigterm_ends_the_other_modes_at_once():
  code = (
    'import os, signal, sys, threading, time\n'
    'from maskrcnn_jax import main, main_flags\n'
    'def check(path):\n'
    '  os.kill(os.getpid(), signal.SIGTERM)\n'
    '  return main_flags_check(path)\n'
    'main_flags_check = main_flags.check_flags\n'
    'main_flags.check_flags = check\n'
    'sys.argv = ["main", "--mode=eval", "--workdir=/nowhere"]\n'
    'main.run()\n'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True)
  assert done.returncode == -signal.SIGTERM
