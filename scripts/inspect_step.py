r"""Shows where a training step or inference would spend its time on GPUs.

  python scripts/inspect_step.py --config=configs/r50_fpn.py \
      [--target=h100] [--mode=inference] [--json=FILE] [--before=FILE]
  python scripts/inspect_step.py --before=OLD.json --after=NEW.json

The step is compiled, not run. No GPU is needed: XLA compiles for the
description of a GPU. `pip install -e '.[plan]'` installs the packages for it.

Prints the data that the GPUs exchange; the numbers of kernels, loops, sorts and
scatters; the operations that cost most by time, bytes and FLOPs, with the layer
that each comes from; the shortest possible time by the data sheets of GPUs
(roofline); and a line of JSON. It does not show the speed, because no operation
reaches these limits, and launching kernels takes time too.

--json=FILE keeps the figures, and --before=FILE compares them with those of
another version of the step, as a table in Markdown.
"""

import argparse
import json
import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
# JAX reads this when it is imported. It must not look for GPUs.
os.environ['JAX_PLATFORMS'] = 'cpu'

from maskrcnn_jax.config.command_line import (  # noqa: E402
  refuse_unexpected,
  split_arguments,
)
from maskrcnn_jax.config.recipe import read_recipe  # noqa: E402
from maskrcnn_jax.errors import InputError, print_error  # noqa: E402
from maskrcnn_jax.plan import compiling, report  # noqa: E402
from maskrcnn_jax.plan.costs import Cost  # noqa: E402
from maskrcnn_jax.plan.hlo import read_program  # noqa: E402
from maskrcnn_jax.plan.summary import costliest, summarize  # noqa: E402
from maskrcnn_jax.runtime import cluster  # noqa: E402
from maskrcnn_jax.runtime.gpu_peaks import GPUS, Peaks  # noqa: E402


def inspect(
  path: str, overrides: list, arguments: argparse.Namespace
) -> tuple[dict[str, Any], list[Cost]]:
  """Compiles the step; returns its figures and the costs of its operations.

  Args:
    path: The recipe.
    overrides: (key, text) pairs that change it.
    arguments: The arguments of the command line.

  Raises:
    InputError: If an argument is wrong or a package is missing.
  """
  config = read_recipe(path, overrides).config
  if arguments.batch_size:
    config.train.batch_size = arguments.batch_size
  if arguments.precision:
    config.precision = arguments.precision
  if config.precision == 'auto':
    config.precision = 'tf32'  # All targets have it.
  try:
    height, width = map(int, arguments.size.split('x'))
  except ValueError:
    raise InputError(
      f'--size={arguments.size}: give HEIGHTxWIDTH in pixels.'
    ) from None
  compiling.find_compiler()
  mesh = compiling.gpu_mesh(
    arguments.target, num_gpus=arguments.gpus, num_hosts=arguments.hosts
  )
  cluster.check_batch_size(
    config.train.batch_size, mesh, key='config.train.batch_size'
  )
  step = compiling.compile_step(
    config,
    mesh,
    batch_size=config.train.batch_size,
    padded_size=(height, width),
    num_classes=arguments.classes + 1,
    mode=arguments.mode,
  )
  if arguments.hlo:
    arguments.hlo.write_text(step.text)
  figures, costs = summarize(read_program(step.text), peaks_by_name())
  memory = step.memory
  return figures | {
    'config': path,
    'mode': arguments.mode,
    'target': arguments.target,
    'precision': config.precision,
    'kernels': config.kernels,
    'batch_size': config.train.batch_size,
    'size': arguments.size,
    'devices': mesh.size,
    'trainable_parameters': step.num_trainable,
    'trainable_bytes': step.trainable_bytes,
    'all_reduce_bytes': sum(figures['collectives'].get('all-reduce', [])),
    'compile_s': round(step.seconds, 1),
    'device_mib': round(memory.total / 2**20),
  }, costs


def peaks_by_name() -> dict[str, Peaks]:
  """Returns {name of a GPU, with how its speeds are known: its speeds}."""
  peaks = {}
  for gpu in GPUS.values():
    peaks[gpu.title] = gpu.data_sheet
    if gpu.measured:
      peaks[f'{gpu.title}, measured speeds'] = gpu.measured
  return peaks


def print_figures(
  figures: dict[str, Any], costs: list[Cost], *, count: int
) -> None:
  """Prints all that is known of a compiled step.

  Args:
    figures: The figures of `inspect`.
    costs: The costs of its operations.
    count: Number of operations that each list of costs has.
  """
  work = 'training step' if figures['mode'] == 'train' else 'inference'
  print(
    f'The {work} of {figures["config"]}, {figures["batch_size"]} images of '
    f'{figures["size"]}, {figures["precision"]}, kernels '
    f'{figures["kernels"]}, for {figures["devices"]} x {figures["target"]}: '
    f'compiled in {figures["compile_s"]:.0f} s, not run; '
    f'{figures["device_mib"]} MiB a device.'
  )
  lines = report.exchange_lines(figures) + report.count_lines(figures)
  print('\n'.join(f'  {line}' for line in lines))
  peaks = GPUS[figures['target']].data_sheet
  for title, chosen in costliest(costs, peaks, count).items():
    print(f'The {len(chosen)} operations with the most {title}:')
    print('\n'.join(report.cost_lines(chosen, peaks)))
  print('The shortest possible time of the step (roofline):')
  for name, milliseconds in figures['roofline_ms'].items():
    speed = 1e3 * figures['batch_size'] / figures['devices'] / milliseconds
    print(f'  {name}: {milliseconds:.2f} ms, {speed:.0f} images/s a GPU')


def main() -> None:
  """Inspects a step, compares two, or both, as the command line says."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config', help='the recipe; --config.KEY=VALUE changes a key of it'
  )
  parser.add_argument(
    '--mode',
    choices=('train', 'inference'),
    default='train',
    help='the step to compile',
  )
  parser.add_argument(
    '--target', choices=tuple(GPUS), default='h200', help='the kind of GPU'
  )
  parser.add_argument('--hosts', type=int, default=1, help='number of machines')
  parser.add_argument(
    '--gpus', type=int, default=8, help='number of GPUs of each machine'
  )
  parser.add_argument(
    '--batch_size', type=int, help="images of all GPUs; the recipe's by default"
  )
  parser.add_argument(
    '--size', default='800x1344', help='padded size of images, HEIGHTxWIDTH'
  )
  parser.add_argument(
    '--classes', type=int, default=80, help='number of classes'
  )
  parser.add_argument('--precision', help="the recipe's by default")
  parser.add_argument(
    '--costs', type=int, default=15, help='number of operations in each list'
  )
  parser.add_argument(
    '--hlo', type=pathlib.Path, help='file to write the compiled program to'
  )
  parser.add_argument(
    '--json', type=pathlib.Path, help='file to write the figures to'
  )
  parser.add_argument(
    '--before',
    type=pathlib.Path,
    help='file that --json has written, to compare with',
  )
  parser.add_argument(
    '--after',
    type=pathlib.Path,
    help='compare this file with that of --before, and compile nothing',
  )
  try:
    run(parser, sys.argv[1:])
  except InputError as error:
    print_error(str(error))
    sys.exit(2)


def run(parser: argparse.ArgumentParser, argv: list[str]) -> None:
  """Does the work of `main`, but raises an InputError for wrong input.

  Args:
    parser: Parser of the arguments other than those of the recipe.
    argv: The arguments of the command line.
  """
  path, overrides, others = split_arguments(argv)
  arguments, unexpected = parser.parse_known_args(others)
  refuse_unexpected(unexpected)
  before = read_figures(arguments.before) if arguments.before else None
  if arguments.after:
    if before is None:
      raise InputError('--after needs --before=FILE, to compare with.')
    print(
      '\n'.join(report.comparison_table(before, read_figures(arguments.after)))
    )
    return
  if path is None:
    raise InputError('--config=RECIPE is missing, for example r50_fpn.')
  figures, costs = inspect(path, overrides, arguments)
  if arguments.json:
    arguments.json.write_text(json.dumps(figures) + '\n', encoding='utf-8')
  print_figures(figures, costs, count=arguments.costs)
  if before is not None:
    print('\n'.join(report.comparison_table(before, figures)))
  print(json.dumps(figures))


def read_figures(file: pathlib.Path) -> dict[str, Any]:
  """Reads a file that --json has written.

  Raises:
    InputError: If the file is missing or has other contents.
  """
  try:
    figures = json.loads(file.read_text(encoding='utf-8'))
    report.rows_of(figures)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{file} is no file that inspect_step.py --json has written: {error!r}.'
    ) from None
  return figures


if __name__ == '__main__':
  main()
