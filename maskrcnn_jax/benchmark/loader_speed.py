"""How fast batches come from disk to the device, and whether a step waits."""

from collections.abc import Callable, Iterator
import contextlib
import multiprocessing
import os
import pathlib
import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from maskrcnn_jax.runtime import cluster

# With a step this much longer than a batch takes to load, none should wait.
_SLACK = 1.25


class LoaderSpeed(NamedTuple):
  """What was measured with one number of workers."""

  num_workers: int  # processes; 0: threads of this one
  num_threads: int  # of each of them
  images_per_s: float  # on the device
  images_per_core_s: float  # for each second of CPU, of all processes together
  bytes_per_image: float  # that go to the device, truth included
  worker_mib: float  # the most that a worker held; 0 without workers
  step_s: float  # that the device was then made to take for a batch
  num_steps: int
  num_waits: int  # steps that found the device idle
  longest_wait_s: float
  share_waited: float  # of the time of these steps


def measure(
    load: Callable[..., Iterator], mesh: Mesh, *, batch_size: int,
    num_steps: int, num_workers: int, num_threads: int,
    step_s: float | None = None,
) -> LoaderSpeed:
  """Loads batches as fast as can be, then as a step of a given time asks.

  The step is made up: the device is taken to be busy for `step_s` from when
  its batch is there and the step before has ended. As in training, the host
  asks for the next batch when the step before the running one has ended.

  Args:
    load: Called with num_steps, num_workers and num_threads; yields batches
      and their rows.
    mesh: The devices.
    batch_size: Images of a batch, on all devices together.
    num_steps: Batches to time, for either figure.
    num_workers: See `loader.train_batches`.
    num_threads: See `loader.train_batches`.
    step_s: Seconds of a step. None: 1.25 times what loading its batch took.
  """
  # What the buffers hold was loaded before its time was taken.
  buffered = 2 * num_threads + 3 * num_workers
  loading = load(
      # More than will be asked for, that loading goes on to the end.
      num_steps=2 * (num_steps + buffered) + 1, num_workers=num_workers,
      num_threads=num_threads,
  )
  with contextlib.closing(loading) as batches:
    for _ in range(buffered + 1):
      batch = _next_on_device(batches, mesh)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    workers = [child.pid for child in multiprocessing.active_children()]
    cpu, started = _cpu_seconds(workers), time.monotonic()
    for _ in range(num_steps):
      _next_on_device(batches, mesh)
    seconds = time.monotonic() - started
    cpu = _cpu_seconds(workers) - cpu
    if step_s is None:
      step_s = _SLACK * seconds / num_steps
    # From full buffers, as a training starts that has compiled.
    time.sleep(min(buffered * seconds / num_steps, 10))
    waits, total = _waits(batches, mesh, num_steps=num_steps, step_s=step_s)
    worker_mib = max(map(_peak_mib, workers), default=0.0)
  num_images = num_steps * batch_size
  return LoaderSpeed(
      num_workers=num_workers,
      num_threads=num_threads,
      images_per_s=num_images / seconds,
      images_per_core_s=num_images / cpu,
      bytes_per_image=num_bytes / batch_size,
      worker_mib=worker_mib,
      step_s=step_s,
      num_steps=num_steps,
      num_waits=sum(wait > 0 for wait in waits),
      longest_wait_s=max(waits),
      share_waited=sum(waits) / total,
  )


def format_speeds(speeds: list[LoaderSpeed]) -> str:
  """Lays out figures as a table, a line for each number of workers."""
  lines = [
      'workers threads  images/s  images/s a core  MB an image  MiB a worker'
      '  step     steps that waited'
  ]
  for speed in speeds:
    lines.append(
        f'{speed.num_workers:>7} {speed.num_threads:>7}'
        f' {speed.images_per_s:>9.1f} {speed.images_per_core_s:>16.1f}'
        f' {speed.bytes_per_image / 1e6:>12.2f} {speed.worker_mib:>13.0f}'
        f' {speed.step_s:>6.3f} s  {speed.num_waits} of {speed.num_steps}'
        f' ({100 * speed.share_waited:.1f} % of the time,'
        f' {speed.longest_wait_s * 1e3:.0f} ms at most)'
    )
  return '\n'.join(lines)


def _next_on_device(batches, mesh):
  """Takes a batch to the device and waits until it is there."""
  batch, _ = next(batches)
  return jax.block_until_ready(cluster.shard_batch(batch, mesh))


def _waits(batches, mesh, *, num_steps, step_s) -> tuple[list[float], float]:
  """Plays steps; returns how long the device waited for each, and all took."""
  _next_on_device(batches, mesh)
  started = time.monotonic()
  ends = started + step_s  # the step that runs
  waits = []
  for _ in range(num_steps):
    _next_on_device(batches, mesh)
    waits.append(max(time.monotonic() - ends, 0.0))
    time.sleep(max(ends - time.monotonic(), 0.0))
    ends += waits[-1] + step_s
  return waits, ends - step_s - started


def _cpu_seconds(workers: list[int]) -> float:
  """The CPU time of this process and of workers so far."""
  seconds = time.process_time()
  for pid in workers:
    # proc(5): the name, which may hold spaces, is in brackets.
    fields = _read_proc(pid, 'stat').rpartition(')')[2].split()
    ticks = int(fields[11]) + int(fields[12])  # user and system
    seconds += ticks / os.sysconf('SC_CLK_TCK')
  return seconds


def _peak_mib(pid: int) -> float:
  """The most memory that a process has held so far, in MiB."""
  for line in _read_proc(pid, 'status').splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) / 2**10
  return 0.0


def _read_proc(pid: int, name: str) -> str:
  """Reads what Linux says of a process."""
  return pathlib.Path(f'/proc/{pid}/{name}').read_text(encoding='utf-8')
