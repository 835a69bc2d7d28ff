"""Holds every kernel against its plain JAX reference on fresh random input.

  python scripts/check_kernels.py [--size=training|quick|tiny] [--seed=N]
      [--repeat=3] [--only=WORD]

Values, and for RoIAlign gradients. On a CPU the kernels are interpreted, which
is slow: take --size=tiny. NMS by jax-triton is held against it too, on a GPU
where that is installed. Exit status: 0 all agree, 1 some do not.
"""

import argparse
import sys
import time
import warnings

import jax

from maskrcnn_jax.doctor import kernel_cases, kernel_check
from maskrcnn_jax.kernels import kernels_on_gpu

SIZES = {
  'training': kernel_cases.TRAINING,
  'quick': kernel_cases.QUICK,
  'tiny': kernel_cases.TINY,
}


def main() -> None:
  """Prints a line for each operation."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--size', choices=SIZES, default='training')
  parser.add_argument('--seed', type=int, default=int(time.time()))
  parser.add_argument('--repeat', type=int, default=3, help='inputs of each')
  parser.add_argument('--only', default='', help='operations named like this')
  arguments = parser.parse_args()
  # Pallas's Triton backend says that it will go one day.
  warnings.simplefilter('ignore', DeprecationWarning)
  device = jax.devices()[0]
  on_gpu = device.platform in ('gpu', 'cuda')
  print(
    f'{device.device_kind}, jax {jax.__version__}, size {arguments.size}, '
    f'seed {arguments.seed}',
    flush=True,
  )
  if on_gpu and 'triton' not in kernels_on_gpu('nms'):
    print('NMS by jax-triton is left out: it is not installed', flush=True)
  key = jax.random.key(arguments.seed)
  well = True
  for case in kernel_cases.make_cases(SIZES[arguments.size]):
    if arguments.only not in case.name:
      continue
    ways = ('interpret',)
    if on_gpu:
      ways = kernels_on_gpu(case.name)
    for kernels in ways:
      check = kernel_check.make_check(case, kernels)
      found = (
        check(jax.random.fold_in(key, i)) for i in range(arguments.repeat)
      )
      faults = [fault for fault in found if fault]
      print(
        f'{case.name} ({case.detail}), {kernels}: '
        f'{"; ".join(faults) or "equal"}',
        flush=True,
      )
      well &= not faults
  if not well:
    sys.exit(1)


if __name__ == '__main__':
  main()
