"""Times the loading of batches, from files to the device.

It also measures how long training steps would wait for their batches.
"""

from collections.abc import Callable, Generator, Iterator
import contextlib
import functools
import math
import multiprocessing
import os
import pathlib
import time
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import Int
import ml_collections
import numpy as np

from maskrcnn_jax.benchmark.training_set import open_training_set
from maskrcnn_jax.data import canvases
from maskrcnn_jax.data.source import Source
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import cluster

# A made-up step takes this many times as long as loading a batch. The step
# should then never wait for its batch.
_SLACK = 1.25

# A batch as the loader gives it, and the rows of its images in the index.
_Loaded = tuple[Any, Int[np.ndarray, 'b']]


class LoaderSpeed(NamedTuple):
  """The speed of loading with one number of worker processes."""

  num_workers: int  # with 0 the threads of the main process load
  num_threads: int  # threads in each process
  images_per_s: float  # images that arrive on the device in a second
  images_per_core_s: float  # images per second of CPU time of all processes
  bytes_per_image: float  # sent to the device, ground truth included
  worker_mib: float  # largest memory of a worker; 0 without workers
  step_s: float  # seconds that a made-up step takes
  num_steps: int  # number of made-up steps
  num_waits: int  # number of steps whose batch came too late
  longest_wait_s: float  # longest time that a step waited for its batch
  share_waited: float  # time of all waits, as a share of the time of all steps


def benchmark_loader(
  config: ml_collections.ConfigDict,
  source: Source,
  *,
  option: str = '--',
  batch_size: int,
  num_steps: int,
  workers: list[int],
  num_threads: int,
  step_s: float | None,
) -> dict[str, Any]:
  """Times the loading of training batches with several numbers of workers.

  Args:
    config: The recipe.
    source: The data set to load.
    option: Prefix of the option names in messages, such as
      '--config.data.train.'; '--' if --images and --annotations give the data
      set.
    batch_size: Number of images of a batch, on all devices together.
    num_steps: Number of batches to time for each number of workers, once as
      fast as they come and once at the pace of a training.
    workers: Numbers of worker processes to try, one after the other. With 0
      the threads of this process load.
    num_threads: Number of threads in each process.
    step_s: Seconds that a made-up training step takes. `None` means 1.25 times
      the mean time of loading a batch, measured with the same number of
      workers.

  Returns:
    mode: 'loader'.
    num_images: Number of images that are trained on.
    batch_size: The argument.
    static_sizes: Number of different padded sizes.
    share_padding: Share of padding in the pixels of the padded images.
    speeds: The `LoaderSpeed` of each number of workers.

  Raises:
    InputError: If a number is out of its range, or the data set is damaged.
  """
  if batch_size < 1 or num_steps < 1 or num_threads < 1 or min(workers) < 0:
    raise InputError(
      '--batch_size, --steps and --threads must be at least 1, and --workers '
      'at least 0.'
    )
  if step_s is not None and not 0 <= step_s < math.inf:
    raise InputError(f'--step_seconds={step_s} must be 0 or more.')
  mesh = cluster.make_mesh()
  cluster.check_batch_size(batch_size, mesh, key='batch_size')
  data = open_training_set(config, source, option=option)
  load = functools.partial(data.load, batch_size=batch_size)
  return {
    'mode': 'loader',
    'num_images': len(data.rows),
    'batch_size': batch_size,
    'static_sizes': len(np.unique(data.plan.canvas_of_image[data.rows])),
    'share_padding': canvases.share_padding(data.plan, data.rows),
    'speeds': [
      measure(
        load,
        mesh,
        batch_size=batch_size,
        num_steps=num_steps,
        num_workers=count,
        num_threads=num_threads,
        step_s=step_s,
      )
      for count in workers
    ],
  }


def measure(
  load: Callable[..., Generator[_Loaded, None, None]],
  mesh: Mesh,
  *,
  batch_size: int,
  num_steps: int,
  num_workers: int,
  num_threads: int,
  step_s: float | None = None,
) -> LoaderSpeed:
  """Loads batches as fast as possible, then at the pace of a training.

  The training is made up: a step takes `step_s` seconds from the moment when
  its batch is on the device and the step before has ended. As in a real
  training, the host asks for the next batch while a step runs.

  Args:
    load: Generator function with the arguments num_steps, num_workers and
      num_threads. It yields batches and the rows of their images.
    mesh: The devices.
    batch_size: Number of images of a batch, on all devices together.
    num_steps: Number of batches to time, once without and once with steps.
    num_workers: Number of worker processes. With 0 the threads of this process
      load.
    num_threads: Number of threads in each process.
    step_s: Seconds that a step takes. `None` means 1.25 times the mean time of
      loading a batch as fast as possible.
  """
  # The first batches are not timed, because the loader fills its buffers with
  # them before anybody asks for a batch.
  buffered = 2 * num_threads + 3 * num_workers
  loading = load(
    # There are more steps than are timed, so that the loading of further
    # batches slows the timed ones down until the end, as in a training.
    num_steps=2 * (num_steps + buffered) + 1,
    num_workers=num_workers,
    num_threads=num_threads,
  )
  # Closing the generator ends its threads and workers.
  with contextlib.closing(loading) as batches:
    for _ in range(buffered + 1):
      batch = _next_on_device(batches, mesh)
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    # `pid` is None only before a process has started.
    workers = [
      child.pid for child in multiprocessing.active_children() if child.pid
    ]
    cpu, started = _cpu_seconds(workers), time.monotonic()
    for _ in range(num_steps):
      _next_on_device(batches, mesh)
    seconds = time.monotonic() - started
    cpu = _cpu_seconds(workers) - cpu
    if step_s is None:
      step_s = _SLACK * seconds / num_steps
    # A training compiles its first step, during which the buffers get full.
    time.sleep(min(buffered * seconds / num_steps, 10))
    waits, total = _made_up_steps(
      batches, mesh, num_steps=num_steps, step_s=step_s
    )
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
  """Formats the speeds as a table with one line for each number of workers."""
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


def _next_on_device(batches: Iterator[_Loaded], mesh: Mesh) -> Any:
  """Moves the next batch to the devices, waits for its arrival, returns it."""
  batch, _ = next(batches)
  return jax.block_until_ready(cluster.shard_batch(batch, mesh))


def _made_up_steps(
  batches: Iterator[_Loaded], mesh: Mesh, *, num_steps: int, step_s: float
) -> tuple[list[float], float]:
  """Takes batches at the pace of a training and measures how late they come.

  Args:
    batches: Yields at least `num_steps` + 1 batches.
    mesh: The devices.
    num_steps: Number of steps.
    step_s: Seconds that a step takes.

  Returns:
    The seconds that the device waited before each step, and the seconds that
    all steps with their waits took.
  """
  _next_on_device(batches, mesh)
  started = time.monotonic()
  ends = started + step_s  # when the running step ends
  waits = []
  for _ in range(num_steps):
    _next_on_device(batches, mesh)
    waits.append(max(time.monotonic() - ends, 0.0))
    time.sleep(max(ends - time.monotonic(), 0.0))
    ends += waits[-1] + step_s
  return waits, ends - step_s - started


def _cpu_seconds(workers: list[int]) -> float:
  """Returns the CPU time in seconds of this process and of others so far.

  Args:
    workers: Process ids of the others.
  """
  seconds = time.process_time()
  for pid in workers:
    # The name of the process may hold spaces, but it is in brackets; see
    # proc(5).
    fields = _read_proc(pid, 'stat').rpartition(')')[2].split()
    ticks = int(fields[11]) + int(fields[12])  # user and system
    seconds += ticks / os.sysconf('SC_CLK_TCK')
  return seconds


def _peak_mib(pid: int) -> float:
  """Returns the largest memory that a process has used so far, in MiB."""
  for line in _read_proc(pid, 'status').splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) / 2**10
  return 0.0


def _read_proc(pid: int, name: str) -> str:
  """Reads a file of the kernel about a process, such as /proc/123/stat."""
  return pathlib.Path(f'/proc/{pid}/{name}').read_text(encoding='utf-8')
