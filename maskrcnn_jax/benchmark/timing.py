"""Times steps, one by one, and summarises their times."""

from collections.abc import Callable, Sequence
import contextlib
import itertools
import time
from typing import Any, NamedTuple

import numpy as np

from maskrcnn_jax.benchmark.images import TimedBatch
from maskrcnn_jax.benchmark.programs import Program
from maskrcnn_jax.benchmark.training_set import TrainingSet
from maskrcnn_jax.runtime import cluster

# Number of steps that are made before the timed ones. The first uses the
# results of the compilation for the first time, and memory is allocated.
WARM_UP = 2

# Smallest number of steps that are timed, however long they take.
_FEWEST = 2

# Number of batches that the loader is asked for if the number of steps is not
# known beforehand.
_MANY = 10**6


class Limit(NamedTuple):
  """How many steps are timed: a number of steps, or the seconds of all."""

  num_steps: int | None  # None if `seconds` limits the steps
  seconds: float | None = None  # sum of the times; at least two steps are timed

  def is_reached(self, times: Sequence[float]) -> bool:
    """Tells whether enough steps have been timed.

    Args:
      times: Seconds of each step so far.
    """
    if self.num_steps is not None:
      return len(times) >= self.num_steps
    assert self.seconds is not None  # One of the two is given.
    return len(times) >= _FEWEST and sum(times) >= self.seconds


def time_steps(step: Callable[[int], None], limit: Limit) -> list[float]:
  """Times steps that do not overlap; returns the seconds of each.

  Args:
    step: Makes the step of a number, counted from 0, and waits for its end.
    limit: Limits the number of steps.
  """
  for i in range(WARM_UP):
    step(i)
  times: list[float] = []
  while not limit.is_reached(times):
    times.append(seconds_of(step, WARM_UP + len(times)))
  return times


def seconds_of(step: Callable[[int], None], number: int) -> float:
  """Makes a step and returns its seconds.

  Args:
    step: Makes the step of a number and waits for its end.
    number: The number.
  """
  started = time.perf_counter()
  step(number)
  return time.perf_counter() - started


def time_with_loader(
  program: Program,
  data: TrainingSet,
  *,
  batch_size: int,
  limit: Limit,
) -> tuple[list[float], list[float]]:
  """Times steps whose batches come from the loader, as in a training.

  While the device works on a step, the host asks for the next batch and starts
  the next step. The time of a step is the time from the end of the step before
  to its own end.

  Args:
    program: The program; it is compiled for each padded size of the set.
    data: The data set. Its recipe gives the numbers of processes and threads
      that load.
    batch_size: Number of images of a batch.
    limit: Limits the number of steps.

  Returns:
    The seconds of each step, and the seconds that the host waited for each
    batch.
  """
  options = data.config.data
  mesh = cluster.make_mesh()
  # The buffers of the loader are full when the first step begins, so as many
  # steps as they hold batches are not timed.
  untimed = WARM_UP + 2 * options.num_threads + 3 * options.num_workers
  loading = data.load(
    batch_size=batch_size,
    num_steps=(limit.num_steps or _MANY) + untimed + 1,
    num_workers=options.num_workers,
    num_threads=options.num_threads,
  )
  times: list[float] = []
  waits: list[float] = []
  pending: tuple[Any, Any] | None = None
  last = 0.0
  # Closing the generator ends its threads and workers.
  with contextlib.closing(loading) as batches:
    for count in itertools.count():
      if limit.is_reached(times):
        break
      asked = time.perf_counter()
      batch, rows = next(batches)
      waited = time.perf_counter() - asked
      results = program.start(
        cluster.shard_batch(batch, mesh), data.padded_size(int(rows[0]))
      )
      if pending:
        program.finish(*pending)
      now = time.perf_counter()
      if count > untimed:
        times.append(now - last)
        waits.append(waited)
      last, pending = now, (results, batch)
    if pending:
      program.finish(*pending)
  return times, waits


def summarize(times: Sequence[float]) -> dict[str, Any]:
  """Returns percentiles of the times of steps.

  Args:
    times: Seconds of each step, at least one.

  Returns:
    `num_steps`; and in seconds `least_s`, `median_s`, `p90_s`, `p99_s` and
    `most_s`. Percentiles between two times are interpolated.
  """
  values = np.asarray(times)
  p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
  return {
    'num_steps': len(values),
    'least_s': float(values.min()),
    'median_s': p50,
    'p90_s': p90,
    'p99_s': p99,
    'most_s': float(values.max()),
  }


def stepper(
  program: Program, batches: Sequence[TimedBatch]
) -> Callable[[int], None]:
  """Returns a function that makes step i with batch i, and waits for its end.

  The batches are put on the devices first, and steps take them in turn.

  Args:
    program: The program; it is compiled for all batches.
    batches: The batches.
  """
  mesh = cluster.make_mesh()
  placed = [cluster.shard_batch(timed.batch, mesh) for timed in batches]

  def step(i: int) -> None:
    """Makes step i."""
    turn = i % len(batches)
    results = program.start(placed[turn], batches[turn].padded_size)
    program.finish(results, batches[turn].batch)

  return step
