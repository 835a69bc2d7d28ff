"""Measures every kernel, beside plain JAX and the way of torchvision.

  python scripts/benchmark_kernels.py [--size=training|quick|tiny] [--images=8]
      [--dtype=bfloat16|float32] [--only=WORD] [--repeat=10] [--json=FILE]

Torchvision's way is the algorithm of torchvision, written in JAX. Prints a
table with these columns:
  times: medians, in milliseconds.
  ratios: time of plain JAX over that of the kernel; time of torchvision's way
    over that of plain JAX.
  memory: in MiB, without arguments and results.
  share of bandwidth: bytes of all arguments and results over the time, as a
    share of the bandwidth of the device's memory. That bandwidth is measured by
    a copy.

On a CPU there are no kernels in the table, because they would be interpreted.
On a GPU where jax-triton is installed, each NMS has a second row with the
kernel of jax-triton.
"""

import argparse
from collections.abc import Callable
import functools
import json
import math
import pathlib
import statistics
import sys
import time
from typing import Any
import warnings

import jax
import jax.numpy as jnp

from maskrcnn_jax.doctor import kernel_cases
from maskrcnn_jax.kernels import kernels_on_gpu

SIZES = {
  'training': kernel_cases.TRAINING,
  'quick': kernel_cases.QUICK,
  'tiny': kernel_cases.TINY,
}
DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}

# Number of elements of the array that is copied to measure the bandwidth: 512
# MiB, more than any cache.
COPIED = 2**27


# Seconds of each time measurement. Starting a call and waiting for it takes as
# long as a small kernel. Hence a measurement starts many calls, and waits for
# the last of them only.
TIMED = 0.02


def time_of(
  compiled: jax.stages.Compiled, arguments: tuple[Any, ...], repeat: int
) -> float:
  """Returns the time of one call of a compiled function, in seconds.

  Each measurement takes the mean over as many calls as fill about 20 ms. The
  result is the median of the measurements.

  Args:
    compiled: The function.
    arguments: Arguments of the function.
    repeat: Number of measurements.
  """

  def run(count: int) -> float:
    """Returns the mean time of `count` calls, in seconds."""
    started = time.perf_counter()
    for _ in range(count):
      results = compiled(*arguments)
    jax.block_until_ready(results)
    return (time.perf_counter() - started) / count

  run(1)
  count = max(math.ceil(TIMED / run(1)), 1)
  return statistics.median(run(count) for _ in range(repeat))


def copy_bandwidth(repeat: int) -> float:
  """Measures the memory bandwidth, in bytes read and written per second.

  Args:
    repeat: Number of measurements; the result is their median.
  """
  numbers = jnp.ones(COPIED, jnp.float32)
  copy = jax.jit(lambda x: x + 1).lower(numbers).compile()
  return 2 * 4 * COPIED / time_of(copy, (numbers,), repeat)


def num_bytes(tree: Any) -> int:
  """Returns the number of bytes of all arrays of a tree."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(
  case: kernel_cases.Case,
  *,
  kernels: str | None,
  bandwidth: float,
  repeat: int,
) -> dict[str, Any]:
  """Measures one operation.

  Args:
    case: The operation.
    kernels: Kernel to measure, 'pallas' or 'triton'; `None` measures plain JAX
      and torchvision's way only.
    bandwidth: Memory bandwidth of the device, in bytes per second.
    repeat: Number of time measurements.

  Returns:
    Seconds ('..._s'), MiB ('..._mib') and shares of the bandwidth ('..._share')
    of 'xla', 'kernel' and 'torchvision', and the ratios of the times.
  """
  arguments = jax.jit(case.make_arguments)(jax.random.key(0))
  ways: dict[str, Callable[..., Any]] = {
    'xla': functools.partial(case.call, kernels='xla')
  }
  if kernels:
    ways['kernel'] = functools.partial(case.call, kernels=kernels)
  if case.torchvision:
    ways['torchvision'] = case.torchvision
  figures: dict[str, Any] = {
    'name': case.name,
    'detail': case.detail,
    'kernels': kernels,
  }
  for way, function in ways.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    figures[f'{way}_s'] = time_of(compiled, arguments, repeat)
    memory = compiled.memory_analysis()
    assert memory is not None  # CPUs and GPUs have it.
    figures[f'{way}_mib'] = memory.temp_size_in_bytes / 2**20
    if way == 'xla':
      moved = num_bytes(arguments) + num_bytes(compiled(*arguments))
      figures['moved_mib'] = moved / 2**20
    figures[f'{way}_share'] = moved / bandwidth / figures[f'{way}_s']
  if kernels:
    figures['xla_over_kernel'] = figures['xla_s'] / figures['kernel_s']
  if case.torchvision:
    ratio = figures['torchvision_s'] / figures['xla_s']
    figures['torchvision_over_xla'] = ratio
  return figures


def row_of(figures: dict[str, Any]) -> str:
  """Formats the figures of one operation, from `measure`, as a table row."""

  def cell(key: str, form: str, scale: float = 1.0) -> str:
    """Formats one figure times `scale`; '' if it was not measured."""
    return form.format(figures[key] * scale) if key in figures else ''

  return (
    '| '
    + ' | '.join(
      [
        f'{figures["name"]}: {figures["detail"]}'
        + (', jax-triton' if figures['kernels'] == 'triton' else ''),
        *(
          cell(f'{way}_s', '{:.2f}', 1e3)
          for way in ('kernel', 'xla', 'torchvision')
        ),
        cell('xla_over_kernel', '{:.2f}'),
        cell('torchvision_over_xla', '{:.2f}'),
        *(
          cell(f'{way}_mib', '{:.0f}')
          for way in ('kernel', 'xla', 'torchvision')
        ),
        cell('kernel_share', '{:.1%}'),
        cell('xla_share', '{:.1%}'),
      ]
    )
    + ' |'
  )


HEADER = (
  "| operation | kernel, ms | plain JAX, ms | torchvision's way, ms "
  "| plain JAX / kernel | torchvision's / plain JAX "
  "| kernel, MiB | plain JAX, MiB | torchvision's, MiB "
  '| kernel, of bandwidth | plain JAX, of bandwidth |\n' + '|---' * 11 + '|'
)


def main() -> None:
  """Measures the operations that the command line selects; prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--size', choices=SIZES, default='training', help='sizes of the input'
  )
  parser.add_argument(
    '--images', type=int, help='images of a batch; by default as --size has it'
  )
  parser.add_argument(
    '--dtype', choices=DTYPES, help='of features; by default as --size has it'
  )
  parser.add_argument(
    '--only', default='', help='only operations whose name contains this word'
  )
  parser.add_argument(
    '--repeat', type=int, default=10, help='number of time measurements'
  )
  parser.add_argument(
    '--json', type=pathlib.Path, help='file to write all figures to'
  )
  arguments = parser.parse_args()
  for name in ('images', 'repeat'):
    value = getattr(arguments, name)
    if value is not None and value < 1:
      print(f'error: --{name}={value} must be 1 or more.', file=sys.stderr)
      sys.exit(2)
  # JAX warns that Pallas's Triton backend will be removed.
  warnings.simplefilter('ignore', DeprecationWarning)
  size = SIZES[arguments.size]
  if arguments.images:
    size = size._replace(num_images=arguments.images)
  if arguments.dtype:
    size = size._replace(dtype=DTYPES[arguments.dtype])
  device = jax.devices()[0]
  bandwidth = copy_bandwidth(arguments.repeat)
  print(
    f'{device.device_kind}, jax {jax.__version__}, {size.num_images} images '
    f'of {size.padded_size[0]}x{size.padded_size[1]}, features in '
    f'{jnp.dtype(size.dtype).name}, copies at {bandwidth / 1e9:.0f} GB/s, '
    f'median of {arguments.repeat}\n\n{HEADER}',
    flush=True,
  )
  rows = []
  for case in kernel_cases.make_cases(size):
    if arguments.only not in case.name:
      continue
    ways: tuple[str | None, ...] = (None,)
    if device.platform in ('gpu', 'cuda'):
      ways = kernels_on_gpu(case.name) or ways
    for kernels in ways:
      rows.append(
        measure(
          case, kernels=kernels, bandwidth=bandwidth, repeat=arguments.repeat
        )
      )
      print(row_of(rows[-1]), flush=True)
  if arguments.json:
    arguments.json.write_text(
      json.dumps(
        {
          'device': device.device_kind,
          'jax': jax.__version__,
          'bandwidth': bandwidth,
          'rows': rows,
        },
        indent=1,
      )
    )


if __name__ == '__main__':
  main()
