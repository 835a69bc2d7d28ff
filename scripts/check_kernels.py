"""Compares every kernel with plain JAX on new random input.

  python scripts/check_kernels.py [--size=training|quick|tiny] [--seed=N]
      [--repeat=3] [--only=WORD]

The results are compared, and for RoIAlign the gradients too. On a CPU, kernels
are interpreted, which is slow: use --size=tiny. On a GPU where jax-triton is
installed, its NMS is compared too. Prints one line for each operation.
Exit status: 0 all kernels agree, 1 some do not, 2 wrong arguments.
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
  """Compares the kernels that the command line selects; prints the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--size', choices=SIZES, default='training', help='sizes of the input'
  )
  parser.add_argument(
    '--seed',
    type=int,
    default=int(time.time()),
    help='of the random input; the time by default',
  )
  parser.add_argument(
    '--repeat', type=int, default=3, help='number of inputs for each kernel'
  )
  parser.add_argument(
    '--only', default='', help='only operations whose name contains this word'
  )
  arguments = parser.parse_args()
  # JAX warns that Pallas's Triton backend will be removed.
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
  all_agree = True
  for case in kernel_cases.make_cases(SIZES[arguments.size]):
    if arguments.only not in case.name:
      continue
    for kernels in kernels_on_gpu(case.name) if on_gpu else ('interpret',):
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
      all_agree &= not faults
  if not all_agree:
    sys.exit(1)


if __name__ == '__main__':
  main()
