r"""Compiles every kernel and the training step for GPUs, without a GPU.

  pip install -e '.[plan]'
  JAX_PLATFORMS=cpu python scripts/compile_kernels.py [--only=WORD] \
      [--targets=h200,a100_40]

  python scripts/compile_kernels.py --recipes=r50_fpn,r50_c4    # whole recipes

To compile for a GPU, XLA needs only its description, and no GPU. Prints the
memory that each program needs, with kernels and with plain JAX, and with NMS by
jax-triton if that is installed. The programs are not run, so that this shows
neither speed nor results.
"""

import argparse
import functools
import sys
import time

import jax
import ml_collections

from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.doctor import kernel_cases
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.kernels import kernels_on_gpu
from maskrcnn_jax.plan.compiling import (
  Memory,
  compile_for,
  compile_step,
  find_compiler,
  gpu_mesh,
  memory_of,
  shapes_on,
)
from maskrcnn_jax.runtime.gpu_peaks import GPUS


def report(title: str, memory: Memory, seconds: float) -> None:
  """Prints the memory that a compiled program needs, and the compile time.

  Args:
    title: Name of the program.
    memory: The memory.
    seconds: The time that compiling it took.
  """
  arguments, results, temporary = (size / 2**20 for size in memory)
  print(
    f'{title}: arguments {arguments:.1f}, results {results:.1f}, temporary '
    f'{temporary:.1f} MiB; compiled in {seconds:.1f} s',
    flush=True,
  )


def compile_cases(target: str, size: kernel_cases.Size, only: str) -> None:
  """Compiles each operation that has a kernel, with kernels and in plain JAX.

  Args:
    target: Kind of GPU, a key of `GPUS`.
    size: Sizes of the arguments.
    only: Compiles only operations whose name contains this word.
  """
  mesh = gpu_mesh(target)
  for case in kernel_cases.make_cases(size):
    if only not in case.name:
      continue
    arguments = shapes_on(
      mesh, jax.eval_shape(case.make_arguments, jax.random.key(0))
    )
    for kernels in (*kernels_on_gpu(case.name), 'xla'):
      started = time.monotonic()
      compiled = compile_for(
        mesh,
        jax.jit(functools.partial(case.call, kernels=kernels)),
        *arguments,
      )
      report(
        f'{target} {case.name} ({case.detail}) {kernels}',
        memory_of(compiled),
        time.monotonic() - started,
      )


def compile_model(
  config: ml_collections.ConfigDict,
  target: str,
  num_gpus: int,
  *,
  batch_size: int,
  padded_size: tuple[int, int],
  implementations: tuple[str, ...] = ('pallas', 'xla'),
) -> None:
  """Compiles the training step and inference.

  Args:
    config: Recipe; its key `kernels` is changed.
    target: Kind of GPU, a key of `GPUS`.
    num_gpus: Number of GPUs, all in one machine.
    batch_size: Number of images of all GPUs together.
    padded_size: (height, width) of the images, in pixels.
    implementations: Values of the key `kernels` to compile with.
  """
  mesh = gpu_mesh(target, num_gpus)
  for kernels in implementations:
    config.kernels = kernels
    title = (
      f'{num_gpus} x {target}, {kernels}, {batch_size} images of '
      f'{padded_size[0]}x{padded_size[1]}, {config.precision}'
    )
    for mode, work in (('train', 'training step'), ('inference', 'inference')):
      step = compile_step(
        config,
        mesh,
        batch_size=batch_size,
        padded_size=padded_size,
        num_classes=81,
        mode=mode,
      )
      report(f'{work}, {title}', step.memory, step.seconds)


def compile_recipe(
  name: str, target: str, padded_size: tuple[int, int]
) -> None:
  """Compiles the training step and inference of a recipe for one GPU, in bf16.

  A GPU has an eighth of the images of the recipe's batch, or the whole batch of
  a recipe for one GPU.

  Args:
    name: Name or file of the recipe.
    target: Kind of GPU, a key of `GPUS`.
    padded_size: (height, width) of the images, in pixels.
  """
  config = read_recipe(name).config
  config.precision = 'bf16'
  num_images = config.train.batch_size
  if '1gpu' not in name:
    num_images = max(num_images // 8, 1)
  print(f'{name}:', flush=True)
  compile_model(
    config,
    target,
    1,
    batch_size=num_images,
    padded_size=padded_size,
    implementations=('pallas',),
  )


def main() -> None:
  """Compiles the programs that the command line selects."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--targets',
    default='h200,a100_40',
    help='kinds of GPU: ' + ', '.join(GPUS),
  )
  parser.add_argument(
    '--only', default='', help='only operations whose name contains this word'
  )
  parser.add_argument(
    '--recipes',
    default='',
    help='only training step and inference of these recipes, in bf16',
  )
  parser.add_argument(
    '--no_model',
    action='store_true',
    help='leave out the training step and inference',
  )
  parser.add_argument(
    '--quick', action='store_true', help='small images and few boxes'
  )
  arguments = parser.parse_args()
  try:
    find_compiler()
  except InputError as error:
    print_error(str(error))
    sys.exit(2)
  targets = arguments.targets.split(',')
  if not set(targets) <= set(GPUS):
    parser.error(f'--targets: the kinds of GPU are {", ".join(GPUS)}')
  padded_size = (128, 160) if arguments.quick else (800, 1344)
  if arguments.recipes:
    for target in targets:
      for name in arguments.recipes.split(','):
        compile_recipe(name, target, padded_size)
    return
  if 'triton' not in kernels_on_gpu('nms'):
    print('NMS by jax-triton is left out: it is not installed', flush=True)
  size = kernel_cases.QUICK if arguments.quick else kernel_cases.TRAINING
  for target in targets:
    compile_cases(target, size, arguments.only)
  if arguments.no_model:
    return
  config = default_config()
  config.roi.sampling_ratio = 2
  config.precision = 'bf16'
  for target in targets:
    compile_model(config, target, 1, batch_size=8, padded_size=padded_size)
  compile_model(
    config,
    targets[0],
    8,
    batch_size=64,
    padded_size=padded_size,
  )


if __name__ == '__main__':
  main()
