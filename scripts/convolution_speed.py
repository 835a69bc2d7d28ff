r"""Compares the speed of convolutions here, in plain JAX and in PyTorch.

  python scripts/convolution_speed.py --torch_python=ENV/bin/python \
      [--size=512x512] [--repeat=5] [--clock=cpu]

ENV is another Python environment, with torch, whose convolutions on a CPU are
those of oneDNN. The cases are the ten convolutions and matrix products of
R50-FPN that take the most arithmetic for one image, with its 1,000 proposals
and 100 masks. For each, the program prints the speed in GFLOP/s of the forward
pass and of the gradients for the input and for the weights: ours, XLA's own
(`lax.conv_general_dilated` and its gradients), and PyTorch's in both memory
layouts. The calls alternate, so that a change of the machine's speed meets all.
The fastest library is the limit that this project can reach on the CPU.

On cores that other programs use too, --clock=cpu counts the seconds of all
cores, and the figures are GFLOP/s of one core.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# JAX reads this when it is imported.
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from jax import Array  # noqa: E402

from maskrcnn_jax.model import convolutions, layers  # noqa: E402

WORKS = ('forward', 'input', 'weight')
LAYOUTS = ('default', 'channels_last')


@dataclasses.dataclass(frozen=True)
class Case:
  """A convolution with stride 1, or a product of matrices."""

  name: str  # of the layer
  count: int  # of such layers in the network
  images: int  # number of images or RoIs
  height: int  # of the input, in cells
  width: int  # of the input, in cells
  inputs: int  # number of input channels
  outputs: int  # number of output channels
  side: int  # of the kernel; 0 is a product of matrices

  def flops(self) -> int:
    """Returns the number of multiplications and additions of one pass."""
    positions = self.images * self.height * self.width
    return 2 * positions * self.inputs * self.outputs * max(self.side, 1) ** 2


def costliest_cases(height: int, width: int, number: int) -> list[Case]:
  """Returns the layers of R50-FPN that take the most arithmetic together.

  Strided convolutions are left out; each has at most as much arithmetic as a
  convolution with stride 1 of the same stage.

  Args:
    height: Height of the image in pixels, a multiple of 32.
    width: Width of the image in pixels, a multiple of 32.
    number: Number of layers to return.
  """
  cases = [
    Case('fc6', 1, 1000, 1, 1, 256 * 7 * 7, 1024, 0),
    Case('fc7', 1, 1000, 1, 1, 1024, 1024, 0),
    Case('mask_fcn', 4, 100, 14, 14, 256, 256, 3),
    Case('conv5_mask', 1, 100, 14, 14, 256, 1024, 0),
  ]
  for level, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
    cells = height // 2**level, width // 2**level
    channels = 64 * 2 ** (level - 2)
    stage = f'layer{level - 1}'
    cases += [
      Case(f'{stage}.conv1', blocks - 1, 1, *cells, 4 * channels, channels, 1),
      Case(f'{stage}.conv2', blocks - 1, 1, *cells, channels, channels, 3),
      Case(f'{stage}.conv3', blocks, 1, *cells, channels, 4 * channels, 1),
      Case(f'fpn.inner{level}', 1, 1, *cells, 4 * channels, 256, 1),
      Case(f'fpn.layer{level}, rpn', 2, 1, *cells, 256, 256, 3),
    ]
  cases.sort(key=lambda case: case.count * case.flops(), reverse=True)
  return cases[:number]


def convolve_here(x: Array, kernel: Array) -> Array:
  """Convolves as `layers.Conv` does."""
  if kernel.ndim == 2:
    return x @ kernel
  if kernel.shape[0] == 1:
    return convolutions.pointwise_conv(x, kernel[0, 0])
  if x.shape[-1] >= layers.WIDE_CHANNELS:
    return convolutions.wide_conv(x, kernel)
  return convolutions.convolve(x, kernel)


def convolve_plainly(x: Array, kernel: Array) -> Array:
  """Convolves with XLA's own gradients."""
  return x @ kernel if kernel.ndim == 2 else convolutions.convolve(x, kernel)


class Seconds(NamedTuple):
  """The seconds that a call took."""

  wall: float  # on a clock
  cpu: float  # of all cores together


def compiled_calls(case: Case) -> dict[tuple[str, str], Callable[[], Seconds]]:
  """Compiles the works of a case.

  Returns:
    {(program, work): function that does the work once and times it}.
  """
  positions: tuple[int, ...] = (case.images, case.height, case.width)
  sides = (case.side,) * 2 if case.side else ()
  if not case.side:
    positions = (case.images * case.height * case.width,)
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (*positions, case.inputs))
  kernel = jax.random.normal(keys[1], (*sides, case.inputs, case.outputs))
  gradient = jax.random.normal(keys[2], (*positions, case.outputs))

  def timed(function: Callable[..., Array]) -> Callable[[], Seconds]:
    """Compiles a function of (x, kernel, gradient), and runs it once."""
    program = jax.jit(function).lower(x, kernel, gradient).compile()
    jax.block_until_ready(program(x, kernel, gradient))

    def call() -> Seconds:
      """Runs the program once."""
      started, cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(program(x, kernel, gradient))
      return Seconds(time.perf_counter() - started, time.process_time() - cpu)

    return call

  calls = {}
  for name, convolve in (('ours', convolve_here), ('XLA', convolve_plainly)):
    calls[name, 'forward'] = timed(lambda x, k, _, f=convolve: f(x, k))
    calls[name, 'input'] = timed(
      lambda x, k, g, f=convolve: jax.vjp(f, x, k)[1](g)[0]
    )
    calls[name, 'weight'] = timed(
      lambda x, k, g, f=convolve: jax.vjp(f, x, k)[1](g)[1]
    )
  return calls


class Torch:
  """The process that computes with PyTorch."""

  def __init__(self, python: str, libraries: str, cases: list[Case]):
    """Starts the process and waits until it has imported torch.

    Args:
      python: Python of the environment of torch.
      libraries: Folder that is put before LD_LIBRARY_PATH; '' for none.
      cases: The cases.

    Raises:
      SystemExit: If the process does not start.
    """
    paths = [libraries, os.environ.get('LD_LIBRARY_PATH', '')]
    environment = os.environ | {
      'LD_LIBRARY_PATH': os.pathsep.join(filter(None, paths))
    }
    # The paths of this process's packages do not suit another Python.
    environment.pop('PYTHONPATH', None)
    self.process = subprocess.Popen(
      [
        python,
        str(HERE / 'convolutions' / 'torch_worker.py'),
        json.dumps([dataclasses.asdict(case) for case in cases]),
      ],
      env=environment,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.version = self._line()

  def _line(self) -> str:
    """Reads the next line of the process."""
    assert self.process.stdout is not None  # It is a pipe.
    line = self.process.stdout.readline()
    if not line:
      sys.exit('error: torch_worker.py failed; its messages are above.')
    return line.strip()

  def call(self, layout: str, work: str, number: int) -> Seconds:
    """Does a work of a case once and times it."""
    assert self.process.stdin is not None  # It is a pipe.
    print(layout, work, number, file=self.process.stdin, flush=True)
    return Seconds(*map(float, self._line().split()))


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--torch_python', required=True, help='Python with torch')
  parser.add_argument(
    '--torch_libraries', default='', help='folder put before LD_LIBRARY_PATH'
  )
  parser.add_argument('--size', default='512x512', help='HEIGHTxWIDTH')
  parser.add_argument('--repeat', type=int, default=5, help='calls of each')
  parser.add_argument('--clock', choices=('wall', 'cpu'), default='wall')
  parser.add_argument('--cases', type=int, default=10, help='number of layers')
  arguments = parser.parse_args()
  height, width = map(int, arguments.size.split('x'))
  if arguments.clock == 'cpu':
    # Threads that wait actively would count as work.
    os.environ['OMP_WAIT_POLICY'] = 'passive'
  cases = costliest_cases(height, width, arguments.cases)
  torch = Torch(arguments.torch_python, arguments.torch_libraries, cases)
  programs = ('ours', 'XLA', *LAYOUTS)
  print(f'GFLOP/s ({arguments.clock}), torch {torch.version}')
  columns = ('layer', 'n x h x w, channels, kernel', 'work', *programs)
  print('|', ' | '.join(columns), '| best / ours |')
  print('|---' * (len(columns) + 1) + '|')
  for number, case in enumerate(cases):
    calls = compiled_calls(case)
    for work in WORKS:
      seconds: dict[str, list[float]] = {name: [] for name in programs}
      for _ in range(arguments.repeat):
        for name in programs:
          taken = (
            torch.call(name, work, number)
            if name in LAYOUTS
            else calls[name, work]()
          )
          seconds[name].append(getattr(taken, arguments.clock))
      speeds = {
        name: case.flops() / statistics.median(times) / 1e9
        for name, times in seconds.items()
      }
      print(
        f'| {case.count} x {case.name}',
        f'{case.images}x{case.height}x{case.width}, '
        f'{case.inputs} to {case.outputs}, {case.side}',
        work,
        *(f'{speed:.0f}' for speed in speeds.values()),
        f'{max(speeds.values()) / speeds["ours"]:.2f} |',
        sep=' | ',
        flush=True,
      )


if __name__ == '__main__':
  main()
