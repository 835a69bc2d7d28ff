"""Plans a training on GPUs that are not here: compiles its step for them."""

from collections.abc import Callable
import importlib.resources
import math
import os
import re
from typing import Any, NamedTuple

from absl import logging

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.plan import compiling
from maskrcnn_jax.plan.hlo import read_program
from maskrcnn_jax.plan.summary import summarize
from maskrcnn_jax.plan.work import Work
from maskrcnn_jax.runtime.gpu_peaks import GPUS
from maskrcnn_jax.training.checks import check_batch_size

# Compilations of the search for the largest batch, besides the first.
_MOST_COMPILATIONS = 8

# Part of a GPU's memory that JAX reserves for its arrays.
# Source: JAX's documentation, "GPU memory allocation".
_DEFAULT_FRACTION = 0.75
_FRACTION_VARIABLES = (
  'XLA_CLIENT_MEM_FRACTION',
  'XLA_PYTHON_CLIENT_MEM_FRACTION',
)


class Room(NamedTuple):
  """The result of `largest_that_fits`."""

  largest: int  # number of images of a device; 0 if one does not fit
  is_exact: bool  # False if larger numbers might fit too
  tried: dict[int, int]  # {number of images: bytes}


def plan_for_gpus(
  work: Work, *, target: str, num_devices: int, finds_largest: bool = True
) -> dict[str, Any]:
  """Compiles a training step for GPUs; predicts its memory and shortest time.

  `compiling.find_compiler` must have been called.

  Args:
    work: The training.
    target: Kind of GPU, a key of `GPUS`.
    num_devices: Number of GPUs, all in one machine.
    finds_largest: Whether to look for the largest batch that fits, which takes
      two or three more compilations.

  Returns:
    The figures, which JSON can store; `lines_of` explains them.

  Raises:
    InputError: If the batch cannot be divided over the GPUs.
  """
  config = work.config.copy_and_resolve_references()
  if config.precision == 'auto':
    config.precision = 'tf32'  # All targets have it.
  gpu = GPUS[target]
  mesh = compiling.gpu_mesh(target, num_gpus=num_devices)
  check_batch_size(config, mesh)
  size = work.sizes[0].canvas
  example = work.load(size, 1)
  limit = usable_memory(target)
  seconds: list[float] = []

  def compile_step(images: int) -> compiling.CompiledStep:
    """Compiles the step for a number of images on each GPU."""
    batch_size = images * num_devices
    _announce(batch_size, num_devices, gpu.title, size.padded, seconds)
    step = compiling.compile_step(
      config,
      mesh,
      batch_size=batch_size,
      padded_size=size.padded,
      num_classes=work.num_classes,
      example=example,
      limits=work.limits,
    )
    seconds.append(step.seconds)
    return step

  def memory(images: int) -> int:
    """Returns the bytes that a GPU needs for a number of images."""
    return _needed(compile_step(images))

  images = config.train.batch_size // num_devices
  step = compile_step(images)
  peaks = {'data_sheet': gpu.data_sheet}
  if gpu.measured:
    peaks['measured'] = gpu.measured
  summary, _ = summarize(read_program(step.text), peaks)
  times = summary['roofline_ms']
  figures = {
    'target': target,
    'device': f'{num_devices} x {gpu.title}',
    'num_devices': num_devices,
    'batch_size': config.train.batch_size,
    'size': list(size.padded),
    'precision': config.precision,
    'kernels': config.kernels,
    'num_images': work.num_images,
    'memory_mib': _needed(step) / 2**20,
    'usable_mib': limit / 2**20,
    'fits': _needed(step) <= limit,
    'flops': sum(summary['flops'].values()),
    'roofline_ms': times,
    'images_per_s': {
      name: 1e3 * config.train.batch_size / ms for name, ms in times.items()
    },
    'num_steps': config.train.num_steps,
    'least_hours': {
      name: config.train.num_steps * ms / 3.6e6 for name, ms in times.items()
    },
    'collective_bytes': sum(map(sum, summary['collectives'].values())),
    'data_dependent_loops': summary['data_dependent_loops'],
    'launches': summary['launches'],
  }
  if finds_largest:
    room = largest_that_fits(
      memory,
      limit,
      first=images,
      first_bytes=_needed(step),
      multiple=config.train.micro_batches,
    )
    figures |= {
      'largest_batch': room.largest * num_devices,
      'largest_is_exact': room.is_exact,
      'memory_by_batch_mib': {
        str(count * num_devices): size / 2**20
        for count, size in sorted(room.tried.items())
      },
    }
  return figures | {'compile_s': seconds}


def _needed(step: compiling.CompiledStep) -> int:
  """Returns the bytes that a training step needs on each GPU.

  The next batch arrives while the step works on this one.
  """
  return step.memory.total + step.batch_bytes


def usable_memory(target: str) -> float:
  """Returns the bytes of a GPU that JAX uses for arrays and programs.

  Args:
    target: Kind of GPU, a key of `GPUS`.

  Raises:
    InputError: If $XLA_CLIENT_MEM_FRACTION is no part of 1.
  """
  file = importlib.resources.files('maskrcnn_jax.plan') / 'targets'
  text = (file / f'{target}.txtpb').read_text(encoding='utf-8')
  found = re.search(r'\bdevice_memory_size: (\d+)', text)
  assert found is not None  # All descriptions have it.
  fraction = _DEFAULT_FRACTION
  for name in _FRACTION_VARIABLES:
    if os.environ.get(name):
      try:
        fraction = float(os.environ[name])
      except ValueError:
        fraction = math.nan
      if not 0 < fraction <= 1:
        raise InputError(
          f'{name}={os.environ[name]} must be more than 0 and at most 1; '
          'unset it, or set 0.9.'
        )
      break
  return fraction * int(found[1])


def largest_that_fits(
  memory: Callable[[int], int],
  limit: float,
  *,
  first: int,
  first_bytes: int,
  multiple: int = 1,
) -> Room:
  """Finds the largest number of images of a device that fits in its memory.

  The memory grows almost evenly with the number of images, and a part of it,
  such as the parameters, does not grow. The second number that is compiled is
  the largest that would fit if all of it grew. The third is where the line
  through the two meets the limit, and so on until the next larger number does
  not fit, or is expected not to. If a number is too large although the line
  says that it fits, the middle of the numbers that are left comes next.

  Args:
    memory: Compiles for a number of images; returns the bytes that it needs.
    limit: Bytes that there are.
    first: A number of images whose bytes are known.
    first_bytes: Its bytes.
    multiple: Only multiples of this number are possible; `first` is one.
  """
  tried = {first: first_bytes}
  for _ in range(_MOST_COMPILATIONS):
    fitting = [count for count in tried if tried[count] <= limit]
    too_large = [count for count in tried if tried[count] > limit]
    low = max(fitting, default=0)
    high = min(too_large, default=math.inf)
    if high - low <= multiple:
      return Room(low, True, tried)
    guess = _next_guess(tried, limit, multiple)
    if too_large and fitting:
      if list(tried)[-1] in too_large:
        guess = (low + int(high)) // 2 // multiple * multiple
      guess = max(guess, low + multiple)
    elif guess <= low:
      # The line says that not one more fits.
      return Room(low, True, tried)
    guess = int(min(guess, high - multiple))
    tried[guess] = memory(guess)
  return Room(low, False, tried)


def _next_guess(tried: dict[int, int], limit: float, multiple: int) -> int:
  """Returns the number of images to compile for next.

  Args:
    tried: {number of images: bytes}, at least one.
    limit: Bytes that there are.
    multiple: The result is a multiple of this number, at least 1 times it.
  """
  if len(tried) == 1:
    ((count, size),) = tried.items()
    guess = int(count * limit / max(size, 1))
    if size <= limit:
      guess = max(guess, count + multiple)
    return max(guess // multiple, 1) * multiple
  # The line through the two numbers that are nearest to the limit, one on each
  # side if there are two.
  nearest = sorted(tried.items(), key=lambda item: abs(item[1] - limit))
  sides = [
    next((item for item in nearest if (item[1] <= limit) == fits), None)
    for fits in (True, False)
  ]
  (one, one_bytes), (two, two_bytes) = (
    [side for side in sides if side] if all(sides) else nearest[:2]
  )
  slope = (two_bytes - one_bytes) / (two - one)
  if slope <= 0:  # Choices of the compiler hide how the memory grows.
    if min(tried.values()) <= limit:
      return 2 * max(tried)
    return max(min(tried) // 2 // multiple, 1) * multiple
  where_they_meet = int(one + (limit - one_bytes) / slope)
  return max(where_they_meet // multiple, 0) * multiple


def _announce(
  batch_size: int,
  num_devices: int,
  title: str,
  size: tuple[int, int],
  seconds: list[float],
) -> None:
  """Logs which compilation begins, and about how long it takes.

  Args:
    batch_size: Number of images of all GPUs.
    num_devices: Number of GPUs.
    title: The kind of GPU.
    size: (height, width) of the images in pixels.
    seconds: The times of the compilations before it.
  """
  length = (
    f'about {seconds[-1]:.0f} s' if seconds else 'one minute to six minutes'
  )
  logging.info(
    'Compiling the training step for %d x %s, %d images of %dx%d (%s)',
    num_devices,
    title,
    batch_size,
    *size,
    length,
  )


def lines_of(figures: dict[str, Any]) -> list[str]:
  """Returns the lines of a table that explains the figures of a plan.

  Args:
    figures: The result of `plan_for_gpus`.
  """
  usable, needed = figures['usable_mib'] / 2**10, figures['memory_mib'] / 2**10
  images = figures['batch_size']
  height, width = figures['size']
  rows = [
    (
      'training step',
      f'{images} images of {height}x{width}, {figures["precision"]}, kernels '
      f'{figures["kernels"]}',
    ),
    ('GPUs', f'{figures["device"]}; compiled, not run'),
    (
      'memory of a GPU',
      f'{needed:.1f} GiB of {usable:.1f} GiB that JAX may use: '
      + ('fits' if figures['fits'] else 'DOES NOT FIT'),
    ),
  ]
  if 'largest_batch' in figures:
    largest = figures['largest_batch']
    text = f'{largest} images' if largest else 'not even one image a GPU'
    if not figures['largest_is_exact']:
      text += ' or more'
    rows.append(('largest batch that fits', text))
  rows.append(
    (
      'arithmetic',
      f'{figures["flops"] * figures["num_devices"] / images / 1e12:.2f} TFLOP '
      'an image',
    )
  )
  for name, title in (
    ('data_sheet', 'the data sheet'),
    ('measured', 'measured peaks'),
  ):
    if name in figures['roofline_ms']:
      rows.append(
        (
          f'limit by {title}',
          f'{figures["roofline_ms"][name]:.1f} ms a step, '
          f'{figures["images_per_s"][name]:.0f} images/s; '
          f'{figures["num_steps"]:,} steps in '
          f'{figures["least_hours"][name]:.1f} hours',
        )
      )
  rows.append(
    (
      'exchanged by the GPUs',
      f'{figures["collective_bytes"] / 1e6:,.1f} MB a step',
    )
  )
  return format_rows(rows) + [
    'The limits are the shortest possible times. A real step takes longer: '
    'launching kernels, loading and exchanging data are not in them, and '
    'cuDNN may take more memory. '
    'XLA_CLIENT_MEM_FRACTION=0.9 lets JAX use 90 % of the memory, not 75 %.'
  ]


def format_rows(rows: list[tuple[str, str]]) -> list[str]:
  """Returns lines in which the texts of each column begin below each other.

  Args:
    rows: (name, text) pairs.
  """
  width = max(len(name) for name, _ in rows)
  return [f'{name:<{width}}  {text}' for name, text in rows]
