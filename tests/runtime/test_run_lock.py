"""Tests of the lock that keeps a second training out of a workdir."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import run_lock
from maskrcnn_jax.runtime.run_lock import LOCK_FILE, only_training

HOLD = """
import pathlib, sys, time
from maskrcnn_jax.runtime.run_lock import only_training
with only_training(pathlib.Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(600)
"""


def write_record(workdir, **changes):
  record = {'host': 'far', 'pid': 7, 'machine': 'another', 'start': 1}
  partial = workdir / 'partial'
  partial.write_text(json.dumps(record | changes))
  partial.replace(workdir / LOCK_FILE)


def test_a_second_training_is_refused_and_the_first_goes_on(tmp_path):
  with only_training(tmp_path):
    for _ in range(2):
      with (
        pytest.raises(
          InputError,
          match=f'C17: {tmp_path} is in use .*process {os.getpid()} on '
          f'{socket.gethostname()}\\)',
        ),
        only_training(tmp_path),
      ):
        raise AssertionError
    assert (tmp_path / LOCK_FILE).exists()
  assert not (tmp_path / LOCK_FILE).exists()
  with only_training(tmp_path):
    pass


def test_the_lock_is_released_by_an_error(tmp_path):
  with pytest.raises(ValueError, match='it'), only_training(tmp_path):
    raise ValueError('it')
  with only_training(tmp_path):
    pass


def test_a_killed_holder_is_no_obstacle_on_the_same_machine(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', HOLD, tmp_path],
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  ) as process:
    assert process.stdout.readline() == 'held\n'
    with (
      pytest.raises(InputError, match=f'C17: .*process {process.pid} '),
      only_training(tmp_path),
    ):
      raise AssertionError
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == process.pid
  started = time.monotonic()
  with only_training(tmp_path):
    # Far less than the wait for a heartbeat.
    assert time.monotonic() - started < 5


def test_a_silent_holder_on_another_machine_is_waited_for(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(run_lock, 'PATIENCE', 1.2)
  write_record(tmp_path)
  started = time.monotonic()
  with caplog.at_level('INFO', 'absl'), only_training(tmp_path):
    assert time.monotonic() - started >= 1.2
    assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == os.getpid()
  assert 'process 7 on far' in caplog.text
  assert 'taken over' in caplog.text


def test_a_heartbeat_on_another_machine_refuses_the_start(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(run_lock, 'PATIENCE', 60.0)
  write_record(tmp_path, heartbeats=1)
  timer = threading.Timer(0.7, write_record, [tmp_path], {'heartbeats': 2})
  timer.start()
  started = time.monotonic()
  with (
    pytest.raises(InputError, match='C17: .*process 7 on far'),
    only_training(tmp_path),
  ):
    raise AssertionError
  assert time.monotonic() - started < 10
  timer.join()
  assert json.loads((tmp_path / LOCK_FILE).read_text())['heartbeats'] == 2


def test_the_holder_counts_heartbeats(tmp_path, monkeypatch):
  monkeypatch.setattr(run_lock, 'HEARTBEAT', 0.01)
  path = tmp_path / LOCK_FILE
  with only_training(tmp_path):
    before = json.loads(path.read_text())['heartbeats']
    deadline = time.monotonic() + 10
    while json.loads(path.read_text())['heartbeats'] < before + 3:
      assert time.monotonic() < deadline
      time.sleep(0.01)


@pytest.mark.parametrize('content', ['', '{', '[]', '{"pid": 1}'])
def test_a_lock_file_that_names_nobody_is_no_obstacle(tmp_path, content):
  (tmp_path / LOCK_FILE).write_text(content)
  with only_training(tmp_path):
    pass


def test_a_holder_whose_lock_was_taken_over_ends(tmp_path):
  code = HOLD.replace(
    'with only',
    'from maskrcnn_jax.runtime import run_lock\n'
    'run_lock.HEARTBEAT = 0.1\n'
    'with only',
  )
  with subprocess.Popen(
    [sys.executable, '-c', code, tmp_path],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  ) as process:
    assert process.stdout.readline() == 'held\n'
    write_record(tmp_path)
    _, err = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'error: C17: another training (process 7 on far) has taken' in err
  assert json.loads((tmp_path / LOCK_FILE).read_text())['pid'] == 7
