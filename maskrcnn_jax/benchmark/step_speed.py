"""Measures the training step and inference: time, FLOPs and memory."""

from collections.abc import Sequence
import functools
import gc
import pathlib
import time
from typing import Any, NamedTuple

import jax
import ml_collections

from maskrcnn_jax.benchmark import timing
from maskrcnn_jax.benchmark.images import (
  MAX_BATCHES,
  Images,
  check_numbers,
  make_up,
  read_images,
)
from maskrcnn_jax.benchmark.profile import largest_costs
from maskrcnn_jax.benchmark.programs import (
  Inference,
  Program,
  Setup,
  Training,
  set_up,
)
from maskrcnn_jax.data.source import Source
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.gpu_peaks import peak_flops
from maskrcnn_jax.runtime.training_log import peak_memory


class Options(NamedTuple):
  """The work that a benchmark of the device times, and the way it is timed."""

  mode: str  # 'train' or 'inference'
  batch_size: int = 1  # number of images of a step, on all devices together
  # (height, width) of made-up images, in pixels; padded to multiples of 32.
  image_size: tuple[int, int] = (800, 1333)
  num_objects: int = 8  # number of objects in each made-up image
  num_classes: int = 81  # of made-up images, background included
  source: Source | None = None  # data set; None makes images up
  option: str = '--'  # prefix of the option names of the data set in messages
  with_loader: bool = False  # whether a step waits for its batch
  pastes: bool = False  # whether inference pastes the masks into the images
  limit: timing.Limit = timing.Limit(5)  # number of timed steps
  num_costs: int = 0  # number of the most expensive operations to list
  trace: pathlib.Path | None = None  # folder that keeps the profile of a step


def benchmark_step(
  config: ml_collections.ConfigDict, options: Options
) -> dict[str, Any]:
  """Compiles and times the training step, or inference.

  The program is the one that a training with this recipe, or an evaluation,
  runs: its precision, loss scale, optimizer, augmentation and kernels. Only the
  learning rate is another number.

  Args:
    config: The recipe.
    options: The work to time.

  Returns:
    `num_steps`; `least_s`, `median_s`, `p90_s`, `p99_s` and `most_s`, the
    seconds of a step, with the end of its work on the device; `images_per_s`
    at the median; `compile_s`; `program_mib`, the memory that the compiler
    reserves on a device; `peak_memory_mib`; `flops` of a step on a device, as
    the compiler counts them, `flops_per_s` at the median, and `utilization`,
    their share of the device's peak, each `None` if unknown; `loss`,
    `loss_scale` and `skipped` of the last training step, or `detections` in
    the last batch; with the loader `share_waited`; and `costs`, the most
    expensive operations as `largest_costs` returns them. `mode`, `images`,
    `image_size`, `batch_size`, `precision`, `kernels`, `device` (number and
    kind) and `jax` (its version) describe the conditions.

  Raises:
    InputError: If a number is out of its range, if the batch size is not a
      multiple of the number of devices, or if the data set is wrong.
  """
  images = get_images(config, options)
  setup = set_up(images, batch_size=options.batch_size)
  program = make_program(setup, options)
  compiled = compile_all(program, images)
  step = timing.stepper(program, images.batches)
  waits: dict[str, float] = {}
  if options.with_loader:
    assert images.training_set is not None  # `get_images` has read one.
    times, waited = timing.time_with_loader(
      program,
      images.training_set._replace(config=setup.config),
      batch_size=options.batch_size,
      limit=options.limit,
    )
    waits['share_waited'] = sum(waited) / sum(times)
  else:
    times = timing.time_steps(step, options.limit)
  return (
    describe(setup, images, options)
    | speed(
      times,
      compiled,
      precision=setup.config.precision,
      batch_size=options.batch_size,
    )
    | program.facts()
    | waits
    | {
      'costs': largest_costs(
        functools.partial(step, 0), options.num_costs, folder=options.trace
      )
      if options.num_costs
      else []
    }
  )


def get_images(config: ml_collections.ConfigDict, options: Options) -> Images:
  """Makes up or reads the images to time; checks the numbers of the options.

  Args:
    config: The recipe.
    options: The work to time.

  Raises:
    InputError: If a number is out of its range, or if the data set is wrong.
  """
  big = float('inf')
  check_numbers(('costs', options.num_costs, 0, big))
  num_steps, seconds = options.limit
  if num_steps is not None:
    check_numbers(('steps', num_steps, 1, big))
  if seconds is not None:
    check_numbers(('seconds', seconds, 0, 1e9))
  if options.source is None:
    return make_up(
      config,
      image_size=options.image_size,
      batch_size=options.batch_size,
      num_objects=options.num_objects,
      num_classes=options.num_classes,
    )
  return read_images(
    config,
    options.source,
    option=options.option,
    batch_size=options.batch_size,
    num_batches=min(num_steps or MAX_BATCHES, MAX_BATCHES),
    with_loader=options.with_loader,
  )


def make_program(setup: Setup, options: Options) -> Program:
  """Makes the program that the options name."""
  if options.mode == 'train':
    return Training(setup)
  return Inference(setup, pastes=options.pastes)


class Compiled(NamedTuple):
  """Facts of a program that was compiled for the batches of a benchmark."""

  seconds: float  # time that the compilation took
  flops: float | None  # of a step on a device, the mean over the batches
  mib: float | None  # memory of a device for arguments and intermediate arrays


def compile_all(program: Program, images: Images) -> Compiled:
  """Compiles a program for the batches of a benchmark.

  Args:
    program: The program.
    images: The batches.

  Returns:
    The time of the compilation, and the FLOPs and the memory that the compiler
    states. It counts no FLOPs of kernels in Pallas. There are no FLOPs for a
    CPU, where large convolutions are computed in loops: the compiler counts
    the body of a loop once.
  """
  mesh = cluster.make_mesh()
  started = time.perf_counter()
  compiled = [
    program.compile(cluster.shard_batch(timed.batch, mesh), timed.padded_size)
    for timed in images.batches
  ]
  seconds = time.perf_counter() - started
  flops = [0.0]
  if jax.default_backend() != 'cpu':
    flops = [sum(map(_flops_of, parts)) for parts in compiled]
  mib = [sum(map(_mib_of, parts)) for parts in compiled]
  return Compiled(seconds, sum(flops) / len(flops) or None, max(mib) or None)


def _flops_of(compiled: jax.stages.Compiled) -> float:
  """Returns the FLOPs of a compiled program; 0 if the compiler states none."""
  costs = compiled.cost_analysis()
  if isinstance(costs, Sequence):  # One dict for each program, on some devices.
    costs = costs[0] if costs else {}
  return max(float((costs or {}).get('flops', 0)), 0.0)


def _mib_of(compiled: jax.stages.Compiled) -> float:
  """Returns the memory of a compiled program in MiB; 0 if it is unknown."""
  memory = compiled.memory_analysis()
  if memory is None:
    return 0.0
  return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20


def describe(setup: Setup, images: Images, options: Options) -> dict[str, Any]:
  """Returns the conditions of a benchmark, as `benchmark_step` lists them."""
  return {
    'mode': options.mode,
    'images': images.description,
    'image_size': None if options.source else list(options.image_size),
    'batch_size': options.batch_size,
    'precision': setup.config.precision,
    'kernels': setup.rcnn.kernel_choice,
    'pastes': options.pastes,
    'device': f'{setup.mesh.size} x {jax.devices()[0].device_kind}',
    'jax': jax.__version__,
  }


def speed(
  times: Sequence[float],
  compiled: Compiled,
  *,
  precision: str,
  batch_size: int,
) -> dict[str, Any]:
  """Returns the figures of speed and memory, as `benchmark_step` lists them.

  Args:
    times: Seconds of each step.
    compiled: Facts of the compiled program.
    precision: Precision of the program, such as 'bf16'.
    batch_size: Number of images of a step.
  """
  summary = timing.summarize(times)
  median = summary['median_s']
  rate = compiled.flops / median if compiled.flops else None
  peak = peak_flops(jax.devices()[0].device_kind, precision)
  return summary | {
    'images_per_s': batch_size / median,
    'compile_s': compiled.seconds,
    'program_mib': compiled.mib,
    'peak_memory_mib': peak_memory(),
    'flops': compiled.flops,
    'flops_per_s': rate,
    'utilization': rate / peak if rate and peak else None,
  }


def largest_batch(
  config: ml_collections.ConfigDict,
  options: Options,
  first: dict[str, Any],
  *,
  max_batch_size: int,
) -> dict[str, Any] | None:
  """Times the largest batch that fits into the memory of the device.

  The sizes are those of the first batch times a power of two. A size whose
  memory, in proportion to that of a smaller batch, exceeds the memory of the
  device is not tried.

  Args:
    config: The recipe.
    options: The work to time; its batch size is that of the first batch.
    first: Figures of the first batch, from `benchmark_step`.
    max_batch_size: Largest batch size to try.

  Returns:
    The figures of the largest batch; `None` if none is larger than the first.
  """
  room = _memory_mib()
  best = first
  found = None
  too_large = max_batch_size + 1

  def fits(size: int) -> bool:
    """Tells whether a batch size may fit, as far as that can be predicted."""
    needed = (best['program_mib'] or 0) * size / best['batch_size']
    return size < too_large and (room is None or needed <= room)

  size = 2 * options.batch_size
  while fits(2 * size):
    size *= 2
  while size > best['batch_size'] and fits(size):
    gc.collect()  # Memory of the program before
    try:
      found = best = benchmark_step(config, options._replace(batch_size=size))
      size *= 2
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      too_large = size
      size //= 2
  return found


def _memory_mib() -> float | None:
  """Returns the memory of a device, or of the machine, that can be used; MiB.

  `None` if it is unknown.
  """
  statistics = jax.local_devices()[0].memory_stats()
  if statistics and 'bytes_limit' in statistics:
    return statistics['bytes_limit'] / 2**20
  try:
    lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  free = next((x for x in lines if x.startswith('MemAvailable:')), None)
  return int(free.split()[1]) / 2**10 if free else None
