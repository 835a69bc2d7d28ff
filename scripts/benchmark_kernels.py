"""Times every operation that has a kernel, beside plain JAX.

  python scripts/benchmark_kernels.py [--size=training|quick|tiny] [--images=8]
      [--dtype=bfloat16|float32] [--only=WORD] [--repeat=10] [--json=FILE]

Prints a table: median times; the ratio of plain JAX's time to the kernel's, and
of torchvision's way of doing it, written in JAX, to plain JAX's; memory beside
arguments and results; and the share of the device's memory bandwidth that plain
JAX and the kernel would have reached by reading each argument and writing each
result once. The bandwidth is that of a copy, measured here.

On a CPU the kernels are left out: they would be interpreted. On a GPU where
jax-triton is installed NMS has a second row each, with the kernel by that.
"""

import argparse
import functools
import json
import math
import pathlib
import statistics
import sys
import time
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

# Elements of the array that is copied to measure the bandwidth: 512 MiB, too
# much for any cache.
COPIED = 2**27


# Seconds that calls are timed over: to start one and to wait for it takes as
# long as a small kernel, so that many are started, and only the last is waited
# for.
TIMED = 0.02


def time_of(compiled, arguments, repeat: int) -> float:
  """Returns the median of the seconds that a compiled function takes."""

  def run(count):
    started = time.perf_counter()
    for _ in range(count):
      results = compiled(*arguments)
    jax.block_until_ready(results)
    return (time.perf_counter() - started) / count

  run(1)
  count = max(math.ceil(TIMED / run(1)), 1)
  return statistics.median(run(count) for _ in range(repeat))


def copy_bandwidth(repeat: int) -> float:
  """Returns bytes a second, read and written."""
  numbers = jnp.ones(COPIED, jnp.float32)
  copy = jax.jit(lambda x: x + 1).lower(numbers).compile()
  return 2 * 4 * COPIED / time_of(copy, (numbers,), repeat)


def num_bytes(tree) -> int:
  """Returns how much memory the arrays of a tree take."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def measure(
  case: kernel_cases.Case,
  *,
  kernels: str | None,
  bandwidth: float,
  repeat: int,
) -> dict:
  """Returns the figures of one operation, and of a kernel if one is named."""
  arguments = jax.jit(case.make_arguments)(jax.random.key(0))
  ways = {'xla': functools.partial(case.call, kernels='xla')}
  if kernels:
    ways['kernel'] = functools.partial(case.call, kernels=kernels)
  if case.torchvision:
    ways['torchvision'] = case.torchvision
  figures = {'name': case.name, 'detail': case.detail, 'kernels': kernels}
  for way, function in ways.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    figures[f'{way}_s'] = time_of(compiled, arguments, repeat)
    memory = compiled.memory_analysis()
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


def row_of(figures: dict) -> str:
  """Formats the figures of one operation as a row of the table."""

  def cell(key, form, scale=1.0):
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
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--size', choices=SIZES, default='training')
  parser.add_argument('--images', type=int, help='of a batch')
  parser.add_argument('--dtype', choices=DTYPES, help='of features')
  parser.add_argument('--only', default='', help='operations named like this')
  parser.add_argument('--repeat', type=int, default=10)
  parser.add_argument('--json', type=pathlib.Path, help='file to write to')
  arguments = parser.parse_args()
  for name in ('images', 'repeat'):
    value = getattr(arguments, name)
    if value is not None and value < 1:
      print(f'error: --{name}={value} must be 1 or more.', file=sys.stderr)
      sys.exit(2)
  # Pallas's Triton backend says that it will go one day.
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
    ways = (None,)
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
