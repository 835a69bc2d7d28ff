"""Tests of the watchdog, in separate processes because it ends its process."""

import pathlib
import subprocess
import sys
import time

import pytest

from maskrcnn_jax.runtime import watchdog

ROOT = pathlib.Path(__file__).parents[2]

HANGS = """
import time
from maskrcnn_jax.runtime import watchdog

def step_that_hangs():
  time.sleep(60)

with watchdog.watchdog(0.5):
  for step in range(3):
    time.sleep(0.3)
    watchdog.progress(f'step {step}')
  step_that_hangs()
"""

# The sleep of ctypes' PyDLL keeps Python's global lock, as some C code does.
HOLDS_THE_LOCK = """
import ctypes
from maskrcnn_jax.runtime import watchdog

watchdog.GRACE = 0.5
with watchdog.watchdog(0.5):
  ctypes.PyDLL(None).sleep(60)
"""


def run(code):
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=50,
  )
  assert time.monotonic() - started < 40
  return done


def test_watchdog_ends_a_process_that_hangs_and_says_where():
  done = run(HANGS)
  assert done.returncode == 1
  assert 'error: no progress for 1 s' in done.stderr
  assert 'the last progress was step 2.' in done.stderr
  assert 'in step_that_hangs' in done.stderr
  # The stacks of two threads: the main one and that of the watchdog.
  assert done.stderr.count('hread 0x') == 2


def test_watchdog_ends_a_process_whose_interpreter_is_locked():
  done = run(HOLDS_THE_LOCK)
  assert done.returncode == 1
  assert 'Timeout (' in done.stderr
  assert 'File "<string>", line 7' in done.stderr


@pytest.mark.parametrize('seconds', [0, 0.2])
def test_watchdog_leaves_a_process_alone(seconds):
  with watchdog.watchdog(seconds):
    for step in range(4):
      time.sleep(0.1)
      watchdog.progress(f'step {step}')
  # After the context, nothing is watched.
  time.sleep(0.4)
  watchdog.progress('nothing')
