"""Tests of the messages about another process of the run that has ended."""

import os
import signal
import subprocess
import sys

import pytest

from maskrcnn_jax.runtime import peers

LOST = ValueError('UNKNOWN: Gloo AllReduce failed: Connection closed by peer')


@pytest.fixture
def other(monkeypatch):
  """Another process, which this one, number 0, remembers as number 1."""
  monkeypatch.setattr(peers, '_peers', [])
  monkeypatch.setattr(peers, '_first', [])
  monkeypatch.setattr(peers, '_INTERVAL', 0.05)
  monkeypatch.setattr(peers, '_PATIENCE', 0.5)
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)
  place = peers.own_entry()[2]
  peers.remember(
    [peers.own_entry(), [process.pid, 'here', place]], own_number=0
  )
  yield process
  process.kill()
  process.communicate()


def test_a_killed_process_is_named(other):
  other.kill()
  assert peers.describe_loss(LOST).startswith(
    f'process 1 (PID {other.pid} on here) has ended. '
  )


def test_a_stopped_process_is_named(other):
  other.send_signal(signal.SIGSTOP)
  assert f'process 1 (PID {other.pid} on here) is stopped. ' in (
    peers.describe_loss()
  )


def test_the_cause_of_an_error_counts(other):
  other.kill()
  error = RuntimeError('saving failed')
  error.__cause__ = LOST
  assert 'has ended' in peers.describe_loss(error)


def test_an_error_of_this_process_is_not_a_loss(other):
  other.kill()
  assert peers.describe_loss(ValueError('batch_size must be even')) == ''


def test_a_failure_of_collectives_alone_is_not_a_loss(other):
  assert peers.describe_loss(LOST) == ''
  assert 'cannot be reached: 1 on here. ' in peers.describe_loss()


def test_processes_on_other_machines_are_listed(other):
  peers.remember(
    [
      peers.own_entry(),
      [os.getpid(), 'node2', 'elsewhere'],
      [other.pid, 'here', peers.own_entry()[2]],
    ],
    own_number=0,
  )
  text = peers.describe_loss(LOST)
  assert 'cannot be reached: 1 on node2. ' in text
  assert '(ValueError: UNKNOWN: Gloo AllReduce' in text


def test_a_process_that_works_alone_has_lost_none(monkeypatch):
  monkeypatch.setattr(peers, '_peers', [])
  assert peers.describe_loss(LOST) == ''
