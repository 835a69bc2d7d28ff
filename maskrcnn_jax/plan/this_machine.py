"""Plans a training on this machine: does a few steps and measures them."""

import math
import os
import pathlib
import statistics
import time
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch
from maskrcnn_jax.config import compilation_facts
from maskrcnn_jax.plan.compiling import memory_of
from maskrcnn_jax.plan.gpu_plan import format_rows
from maskrcnn_jax.plan.work import Work
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.compilation import compiling
from maskrcnn_jax.runtime.precision import choose_precision, set_precision
from maskrcnn_jax.runtime.run_checkpoints import tree_bytes
from maskrcnn_jax.runtime.training_log import peak_memory
from maskrcnn_jax.training import state as train_state
from maskrcnn_jax.training import step as train_step
from maskrcnn_jax.training.checks import check_batch_size
from maskrcnn_jax.training.optimizer import make_recipe_optimizer

# While a checkpoint is written, the training goes on with its own arrays, and
# there are a copy of them, their compressed bytes, and the bytes on their way
# to the file. Measured with R50-FPN on a CPU: 2.8 times the size of the arrays.
_COPIES_WHILE_SAVING = 3

# The first step of each size of images is not timed, because only then the
# system gives the memory. Then this number of steps is timed, but no further
# one begins after this number of seconds.
_MOST_STEPS = 3
_ENOUGH_SECONDS = 10.0


def plan_for_this_machine(work: Work) -> dict[str, Any]:
  """Does some training steps on this machine; predicts memory and time.

  The trained weights are thrown away.

  Args:
    work: The training.

  Returns:
    The figures, which JSON can store; `lines_of` explains them.

  Raises:
    InputError: If the batch cannot be divided over the devices, or an image
      cannot be loaded.
  """
  config = work.config.copy_and_resolve_references()
  config.precision = choose_precision(config.precision)
  mesh = cluster.make_mesh()
  check_batch_size(config, mesh)
  rcnn = Rcnn.from_config(
    config,
    num_classes=work.num_classes,
    dtype=set_precision(config.precision),
    mesh=mesh,
  )
  _, optimizer = make_recipe_optimizer(config)
  state = cluster.replicate(
    train_state.start_average(
      train_state.initial_state(rcnn, optimizer, config), config
    ),
    mesh,
  )
  saved = _COPIES_WHILE_SAVING * tree_bytes(
    (train_state.variables_of(state), train_state.training_state(state))
  )
  step = train_step.jit_train_step(
    train_step.Trainer.from_config(config, rcnn, optimizer, work.limits)
  )
  limit = memory_limit()
  sizes: list[dict[str, Any]] = []
  memory = 0.0
  for size in work.sizes:
    started = time.monotonic()
    batch = work.load(size.canvas, config.train.batch_size)
    loading = time.monotonic() - started
    batch = cluster.shard_batch(batch, mesh)
    started = time.monotonic()
    run = _compile(config, step, state, batch, size.canvas.padded)
    sizes.append(
      {
        'size': list(size.canvas.padded),
        'share': size.share,
        'load_s': loading,
        'compile_s': time.monotonic() - started,
        'step_s': None,
      }
    )
    memory = max(memory, _expected_peak(run) + saved)
    if memory > limit:
      # The system would end this program in the middle of the step.
      logging.info('The step is not run, because the memory is too small.')
      break
    state, sizes[-1]['step_s'] = _time_steps(run, state, batch)
    memory = peak_memory() * 2**20 + saved
  figures = {
    'target': 'this machine',
    'device': f'{mesh.size} x {jax.devices()[0].device_kind}',
    'num_devices': mesh.size,
    'cores': os.cpu_count(),
    'batch_size': config.train.batch_size,
    'precision': config.precision,
    'kernels': config.kernels,
    'num_images': work.num_images,
    'memory_mib': memory / 2**20,
    'usable_mib': limit / 2**20,
    'fits': memory <= limit,
    'num_steps': config.train.num_steps,
    'sizes': sizes,
  }
  return figures | _speed(figures, num_threads=config.data.num_threads)


def _expected_peak(run: jax.stages.Compiled) -> float:
  """Returns the largest memory of this process if it ran a step, in bytes."""
  return peak_memory() * 2**20 + memory_of(run).temporary


def _compile(
  config: ml_collections.ConfigDict,
  step: train_step.JittedStep,
  state: train_state.TrainState,
  batch: Batch,
  padded_size: tuple[int, int],
) -> jax.stages.Compiled:
  """Compiles the training step for one size of images, and announces it.

  Args:
    config: The recipe.
    step: The jitted step.
    state: A state of the training.
    batch: A batch of this size.
    padded_size: (height, width) of the padded images, in pixels.
  """
  kind, program = compilation_facts(config, for_training=True)
  shapes = [list(np.shape(array)) for array in jax.tree.leaves(batch)]
  with compiling(
    'training step', padded_size, kind=kind, program=[program, shapes]
  ):
    return step.lower(state, batch, padded_size=padded_size).compile()


def _time_steps(
  run: jax.stages.Compiled, state: train_state.TrainState, batch: Batch
) -> tuple[train_state.TrainState, float]:
  """Does a step, and then some that are timed.

  Args:
    run: The compiled step.
    state: The state to begin with; its memory is reused.
    batch: The images of each step.

  Returns:
    The last state, and the median time of the timed steps in seconds.
  """
  logging.info('Doing some steps')
  times: list[float] = []
  began = time.monotonic()
  while len(times) < 2 or (
    len(times) <= _MOST_STEPS and time.monotonic() - began < _ENOUGH_SECONDS
  ):
    started = time.monotonic()
    state, figures = run(state, batch)
    jax.block_until_ready(figures)
    times.append(time.monotonic() - started)
  return state, statistics.median(times[1:])


def _speed(figures: dict[str, Any], *, num_threads: int) -> dict[str, Any]:
  """Returns the time of a mean step and of the training.

  Args:
    figures: The figures so far.
    num_threads: Number of batches that are loaded at the same time.

  Returns:
    `step_s`, `images_per_s` and `hours`; `None` if a size was not timed.
  """
  sizes = figures['sizes']
  if any(size['step_s'] is None for size in sizes):
    return dict.fromkeys(('step_s', 'images_per_s', 'hours'))
  # Batches are loaded while the device works, so that the slower of the two
  # decides.
  seconds = math.fsum(
    size['share'] * max(size['step_s'], size['load_s'] / max(num_threads, 1))
    for size in sizes
  )
  compiling_s = math.fsum(size['compile_s'] for size in sizes)
  return {
    'step_s': seconds,
    'images_per_s': figures['batch_size'] / seconds,
    'hours': (figures['num_steps'] * seconds + compiling_s) / 3600,
  }


def memory_limit() -> float:
  """Returns the bytes that this program can use on this machine.

  For a GPU they are those that JAX has reserved. For a CPU they are the memory
  that no other program uses, but not more than the limit of the container.
  """
  statistics_ = jax.local_devices()[0].memory_stats()
  if statistics_ and 'bytes_limit' in statistics_:
    return float(statistics_['bytes_limit'])
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  own = pages * os.sysconf('SC_PAGE_SIZE')  # The memory of this program.
  limits = [math.inf]
  for file, word in (
    ('/proc/meminfo', 'MemAvailable:'),
    ('/sys/fs/cgroup/memory.max', ''),
  ):
    try:
      text = pathlib.Path(file).read_text(encoding='utf-8')
    except OSError:
      continue
    number = text.partition(word)[2].split()[0] if word else text.strip()
    if number.isdigit():
      limits.append(float(number) * 2**10 + own if word else float(number))
  return min(limits)


def lines_of(figures: dict[str, Any]) -> list[str]:
  """Returns the lines of a table that explains the figures of a plan.

  Args:
    figures: The result of `plan_for_this_machine`.
  """
  needed, usable = figures['memory_mib'] / 2**10, figures['usable_mib'] / 2**10
  images = (
    f'{figures["num_images"]:,} images'
    if figures['num_images']
    else 'made-up images of 80 classes'
  )
  rows = [
    (
      'training',
      f'{images}, {figures["batch_size"]} a step, {figures["precision"]}, '
      f'kernels {figures["kernels"]}',
    ),
    ('device', f'{figures["device"]}, {figures["cores"]} cores'),
    (
      'memory',
      f'{needed:.2f} GiB of {usable:.2f} GiB: '
      + ('fits' if figures['fits'] else 'DOES NOT FIT'),
    ),
  ]
  for size in figures['sizes']:
    height, width = size['size']
    text = f'{100 * size["share"]:.0f} % of the steps; '
    text += (
      'not run'
      if size['step_s'] is None
      else f'{size["step_s"]:.2f} s a step, loading {size["load_s"]:.2f} s'
    )
    text += f'; compiled in {size["compile_s"]:.0f} s'
    rows.append((f'images of {height}x{width}', text))
  if figures['step_s'] is not None:
    rows += [
      (
        'speed',
        f'{figures["step_s"]:.2f} s a step, '
        f'{figures["images_per_s"]:.2f} images/s',
      ),
      (
        'training time',
        f'{figures["num_steps"]:,} steps in {_length(figures["hours"])}, '
        'without evaluations',
      ),
    ]
  return format_rows(rows)


def _length(hours: float) -> str:
  """Returns a time in hours, or in minutes if it is short."""
  return f'{hours:.1f} hours' if hours >= 1 else f'{60 * hours:.1f} minutes'
