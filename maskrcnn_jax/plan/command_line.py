r"""Predicts the memory and the time that a training needs.

  python -m maskrcnn_jax.plan --config=RECIPE [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.plan --config=r50_fpn --target=h100 --devices=8 \
      [--batch_size=N] [--json]

Without --target, it does a few steps of the training on this machine, with
images of the training set (--config.data.train.images and .annotations), or
with made-up images. It prints the memory, the seconds of a step and the hours
of the training. It keeps only the compiled step, in ~/.cache/maskrcnn_jax,
where the training finds it.

With --target=h200, h100, a100_80 or a100_40, it compiles the step for GPUs that
need not be here. It prints whether the step fits in their memory, the largest
batch that fits, the number of FLOPs, the shortest possible time and the data
that the GPUs exchange. This needs no GPU, but the packages of the extra `plan`
(270 MB to download, 760 MB on disk):
  pip install 'jax[cuda13-local]' nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt
A compilation takes minutes, and there are three or four of them.

Exit status: 0 done, 1 failed while running, 2 wrong input.
"""

import argparse
import json
import os
import sys
from typing import NoReturn

from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.gpu_peaks import GPUS
from maskrcnn_jax.runtime.status_line import waiting


class _Parser(argparse.ArgumentParser):
  """Reports a wrong argument as other wrong input is reported."""

  def error(self, message: str) -> NoReturn:
    """Raises an InputError with the message."""
    raise InputError(message)


def main(argv: list[str] | None = None) -> None:
  """Plans a training and prints the plan.

  If the input is wrong, prints the error and ends the process with status 2.

  Args:
    argv: The command-line arguments. `None` means those of the process.
  """
  try:
    _run(sys.argv[1:] if argv is None else argv)
  except InputError as error:
    print_error(str(error))
    sys.exit(2)


def _run(argv: list[str]) -> None:
  """Does the work of `main`, but raises an InputError instead of printing it.

  Args:
    argv: The command-line arguments.
  """
  from maskrcnn_jax.config.command_line import (
    refuse_unexpected,
    split_arguments,
  )

  path, overrides, others = split_arguments(argv)
  arguments, unexpected = _parser().parse_known_args(others)
  refuse_unexpected(unexpected)
  if path is None:
    raise InputError(
      '--config=RECIPE is missing, for example --config=r50_fpn.'
    )
  is_here = arguments.target in (None, 'cpu')
  if is_here and arguments.devices is not None:
    raise InputError(
      '--devices is for --target=' + '|'.join(GPUS) + '; on this machine, a '
      'training uses all devices.'
    )
  if arguments.devices is not None and arguments.devices < 1:
    raise InputError(f'--devices={arguments.devices} must be at least 1.')
  if arguments.batch_size is not None:
    overrides.append(('train.batch_size', str(arguments.batch_size)))
  if arguments.target is not None:
    # A GPU that is described is not looked for.
    os.environ['JAX_PLATFORMS'] = 'cpu'
  with waiting('Starting JAX'):
    from maskrcnn_jax.config.recipe import read_recipe

  recipe = read_recipe(path, overrides)
  for line in recipe.notes:
    print(line, file=sys.stderr)
  with waiting('Starting JAX'):
    from maskrcnn_jax.plan import gpu_plan, this_machine
    from maskrcnn_jax.plan.compiling import find_compiler
    from maskrcnn_jax.plan.work import read_work
    from maskrcnn_jax.runtime import cluster

  if is_here:
    cluster.find_devices()
    cluster.keep_compiled(None)
  else:
    find_compiler()
  work = read_work(
    recipe.config, frozenset(recipe.given), data_may_be_missing=not is_here
  )
  for line in work.remarks:
    print(line, file=sys.stderr)
  if is_here:
    figures = this_machine.plan_for_this_machine(work)
    lines = this_machine.lines_of(figures)
  else:
    figures = gpu_plan.plan_for_gpus(
      work, target=arguments.target, num_devices=arguments.devices or 1
    )
    lines = gpu_plan.lines_of(figures)
  print(json.dumps(figures) if arguments.json else '\n'.join(lines))


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all arguments except the keys of the recipe."""
  parser = _Parser(
    prog='python -m maskrcnn_jax.plan',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  # --config and --config.KEY are taken out before these arguments are parsed.
  # They are listed here so that --help shows them.
  parser.add_argument('--config', help='the recipe; it must be given')
  parser.add_argument(
    '--config.KEY',
    metavar='VALUE',
    help='change a key of the recipe, for example\n'
    '--config.train.micro_batches=2',
  )
  parser.add_argument(
    '--target',
    choices=('cpu', *GPUS),
    help='the device: a kind of GPU, which need not be here, or the\n'
    'CPU of this machine (default: the devices of this machine)',
  )
  parser.add_argument(
    '--devices', type=int, help='number of GPUs, in one machine (default: 1)'
  )
  parser.add_argument(
    '--batch_size',
    type=int,
    help='images of a step on all devices together, the same as\n'
    '--config.train.batch_size (default: that of the recipe)',
  )
  parser.add_argument(
    '--json', action='store_true', help='print the plan as a line of JSON'
  )
  return parser
