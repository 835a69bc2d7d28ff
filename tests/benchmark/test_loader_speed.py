"""Tests of the loader's figures with a clock that only advances in sleep()."""

import types

import numpy as np
import pytest

from maskrcnn_jax.benchmark import loader_speed
from maskrcnn_jax.runtime import cluster


@pytest.fixture
def clock(monkeypatch):
  """Replaces the clock: only sleep() advances it, the CPU time by a quarter."""
  now = [0.0]

  def sleep(seconds):
    assert seconds >= 0
    now[0] += seconds

  clock = types.SimpleNamespace(
    monotonic=lambda: now[0], sleep=sleep, process_time=lambda: now[0] / 4
  )
  monkeypatch.setattr(loader_speed, 'time', clock)
  return clock


def measure(clock, seconds, step_s=None):
  """Measures a loader of batches with 2 images of 12 bytes each.

  Args:
    clock: The clock of the test.
    seconds: The times that the loading of a batch takes, in turn.
    step_s: The argument of `loader_speed.measure`.
  """

  def load(*, num_steps, num_workers, num_threads):
    assert (num_workers, num_threads) == (0, 1)
    for i in range(num_steps):
      clock.sleep(seconds[i % len(seconds)])
      yield {'images': np.zeros((2, 2, 2, 3), np.uint8)}, np.arange(2)

  return loader_speed.measure(
    load,
    cluster.make_mesh(),
    batch_size=2,
    num_steps=10,
    num_workers=0,
    num_threads=1,
    step_s=step_s,
  )


def test_measure_counts_what_is_loaded(clock):
  speed = measure(clock, [0.1])
  assert speed.images_per_s == pytest.approx(20)
  assert speed.images_per_core_s == pytest.approx(80)
  assert speed.bytes_per_image == 12
  assert speed.step_s == pytest.approx(0.125)
  assert speed.worker_mib == 0


def test_a_step_slower_than_the_loader_does_not_wait(clock):
  speed = measure(clock, [0.1], step_s=0.11)
  assert (speed.num_steps, speed.num_waits) == (10, 0)
  assert speed.longest_wait_s == speed.share_waited == 0


def test_a_step_faster_than_the_loader_waits_each_time(clock):
  # The loader begins with a batch when a step of 0.4 s starts, and takes 1 s.
  speed = measure(clock, [1], step_s=0.4)
  assert speed.num_waits == 10
  assert speed.longest_wait_s == pytest.approx(0.6)
  assert speed.share_waited == pytest.approx(0.6)


def test_a_step_waits_for_the_batches_that_are_late(clock):
  speed = measure(clock, [0, 0.75], step_s=0.5)
  assert speed.num_waits == 5
  assert speed.longest_wait_s == pytest.approx(0.25)
  # Two steps take 1 s together, and the device waits 0.25 s.
  assert speed.share_waited == pytest.approx(0.25 / 1.25, abs=0.02)


def test_the_table_has_a_line_for_each_number_of_workers(clock):
  speed = measure(clock, [1])
  _, line, other = loader_speed.format_speeds(
    [speed, speed._replace(num_workers=3, num_waits=4)]
  ).splitlines()
  assert line.split()[0] == '0'
  assert other.split()[0] == '3'
  assert ' 4 of 10 ' in other
