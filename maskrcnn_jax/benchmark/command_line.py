r"""Measures how fast a recipe trains, detects, or loads its data.

  python -m maskrcnn_jax.benchmark --config=r50_fpn \
      --mode=train --size=800x1333 --batch_size=1 [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.benchmark --config=r50_fpn --mode=inference \
      --size=512x512 --paste --compare=torchvision --torch_python=ENV/bin/python
  python -m maskrcnn_jax.benchmark --config=r50_fpn --mode=loader \
      --images=DIR --annotations=FILE.json --workers=0,1,2 \
      --batch_size=16 --steps=30

--mode=train and --mode=inference time the program that a training or an
evaluation runs on the device: resizing and the network, then the losses and the
update of the weights, or the detections. Each step is timed to the end of its
work on the device. The images are made up; --images and --annotations, or
--real_images, take those of a data set. With --with_loader a step also waits
for its batch, and with --paste inference also pastes the masks into the images.
On GPUs, FLOPs are those of the compiled program, without kernels in Pallas;
their share of the peak is shown for A100, H100 and H200.

--compare=torchvision times steps of torchvision's Mask R-CNN and of this
program in turn, with equal images and weights, in torchvision's default setting
and in faster ones. The ratio is the median time of this program over that of
torchvision, with a 95 % interval from a bootstrap.

--mode=loader times the work of the host for a training, from files to a batch
on the device, with each number of worker processes. It also counts how often a
training step would wait for its batch, if the step takes 1.25 times as long as
loading a batch, or --step_seconds. Without --images and --annotations the
training set of the recipe is loaded: --config.data.train.images and
.annotations, or --config.data.train.tfds and --config.data.tfds_dir.
"""

# The worker processes of --mode=loader import this module, so everything that
# is slow to import is imported late.
import argparse
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import ml_collections

from maskrcnn_jax.errors import InputError, print_error

if TYPE_CHECKING:
  from maskrcnn_jax.benchmark.step_speed import Options


# Number of steps that are timed if neither --steps nor --seconds is given.
_STEPS = 5

# Arguments that belong to some modes only.
_LOADER_ONLY = ('workers', 'threads', 'step_seconds')
_STEPS_ONLY = (
  'size',
  'seconds',
  'objects',
  'classes',
  'max_batch_size',
  'real_images',
  'with_loader',
  'compare',
  'costs',
)


def main(argv: list[str] | None = None) -> None:
  """Runs one benchmark and prints its figures as text and as a line of JSON.

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
  _check_combination(arguments)
  if path is None:
    raise InputError(
      '--config=RECIPE is missing, for example --config=r50_fpn.'
    )

  from maskrcnn_jax.config.recipe import read_recipe

  overrides += [
    (key, value)
    for key, value in (
      ('precision', arguments.precision),
      ('kernels', arguments.kernels),
    )
    if value is not None
  ]
  recipe = read_recipe(path, overrides)
  config = recipe.config
  for line in recipe.notes:
    print(line, file=sys.stderr)
  if arguments.mode == 'loader':
    _time_loader(arguments, config)
  else:
    _time_step(arguments, config)


def _check_combination(arguments: argparse.Namespace) -> None:
  """Refuses arguments that would have no effect, instead of ignoring them.

  Args:
    arguments: The parsed arguments of the command line.

  Raises:
    InputError: If an argument does not belong to the mode, or two exclude each
      other.
  """
  given = {
    name
    for name, value in vars(arguments).items()
    if value is not None and value is not False
  }
  of_images = {'images', 'annotations', 'real_images', 'with_loader'} & given
  is_loader = arguments.mode == 'loader'
  for names, applies, needs in (
    (_LOADER_ONLY, is_loader, '--mode=loader'),
    (_STEPS_ONLY, not is_loader, '--mode=train or --mode=inference'),
    (('paste',), arguments.mode == 'inference', '--mode=inference'),
    (('torch_python',), arguments.compare, '--compare=torchvision'),
    (('trace',), arguments.costs, '--costs=N'),
    (
      ('size', 'objects', 'classes', 'max_batch_size'),
      not of_images,
      f'made-up images, without --{min(of_images, default="")}',
    ),
    (
      ('max_batch_size', 'costs', 'with_loader'),
      not arguments.compare,
      'a benchmark without --compare',
    ),
    (('steps',), arguments.seconds is None, 'a benchmark without --seconds'),
  ):
    for name in names:
      if name in given and not applies:
        raise InputError(f'--{name} is for {needs}.')


def _time_step(
  arguments: argparse.Namespace, config: ml_collections.ConfigDict
) -> None:
  """Times the training step or inference and prints the figures.

  Args:
    arguments: The parsed arguments of the command line.
    config: The recipe.

  Raises:
    InputError: If an argument is wrong.
  """
  if arguments.compare:
    # JAX would take most of the GPU's memory, and torchvision needs some too.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from maskrcnn_jax.benchmark import comparison, report, step_speed
  from maskrcnn_jax.runtime import cluster

  options = _options(arguments, config)
  cluster.find_devices()
  if arguments.compare:
    figures = comparison.compare(
      config, options, arguments.torch_python or sys.executable
    )
    print(report.format_figures(figures))
    print(report.format_peer(figures))
    print(json.dumps(figures))
    return
  figures = step_speed.benchmark_step(config, options)
  print(report.format_figures(figures))
  print(json.dumps(figures), flush=True)
  if arguments.max_batch_size is None:
    return
  largest = step_speed.largest_batch(
    config, options, figures, max_batch_size=arguments.max_batch_size
  )
  if largest is None:
    print(
      f'No larger batch up to {arguments.max_batch_size} fits.',
      file=sys.stderr,
    )
    return
  print(report.format_figures(largest))
  print(json.dumps(largest))


def _options(
  arguments: argparse.Namespace, config: ml_collections.ConfigDict
) -> 'Options':
  """Converts the arguments of the command line to the options of a benchmark.

  Args:
    arguments: The parsed arguments; they do not contradict each other.
    config: The recipe, which may name a data set.

  Raises:
    InputError: If --size is wrong, or if there is no data set.
  """
  from maskrcnn_jax.benchmark.step_speed import Options
  from maskrcnn_jax.benchmark.timing import Limit
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.data.source import choose_source

  options = Options(
    mode=arguments.mode,
    batch_size=arguments.batch_size,
    with_loader=arguments.with_loader,
    pastes=arguments.paste,
    limit=Limit(
      _default(arguments.steps, _STEPS) if arguments.seconds is None else None,
      arguments.seconds,
    ),
    num_costs=_default(arguments.costs, 0),
    trace=arguments.trace,
  )
  if (
    arguments.images is not None
    or arguments.annotations is not None
    or arguments.real_images
    or arguments.with_loader
  ):
    source, option = choose_source(
      arguments.images, arguments.annotations, source_of(config, 'train')
    )
    return options._replace(source=source, option=option)
  return options._replace(
    image_size=_parse_size(_default(arguments.size, '800x1333')),
    num_objects=_default(arguments.objects, 8),
    num_classes=_default(arguments.classes, 80) + 1,
  )


def _default(value: Any, default: Any) -> Any:
  """Returns the value of an argument, or its default if it was not given."""
  return default if value is None else value


def _time_loader(
  arguments: argparse.Namespace, config: ml_collections.ConfigDict
) -> None:
  """Times the loading of batches and prints the figures.

  Args:
    arguments: The parsed arguments of the command line.
    config: The recipe.

  Raises:
    InputError: If there is no data set, or if an argument is wrong.
  """
  from maskrcnn_jax.benchmark.loader_speed import (
    benchmark_loader,
    format_speeds,
  )
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.data.source import choose_source

  source, option = choose_source(
    arguments.images, arguments.annotations, source_of(config, 'train')
  )
  try:
    workers = [
      int(count) for count in _default(arguments.workers, '0').split(',')
    ]
  except ValueError:
    raise InputError(
      f'--workers={arguments.workers}: give whole numbers, such as 0,1,2.'
    ) from None
  figures = benchmark_loader(
    config,
    source,
    option=option,
    batch_size=arguments.batch_size,
    num_steps=_default(arguments.steps, _STEPS),
    workers=workers,
    num_threads=_default(arguments.threads, 2),
    step_s=arguments.step_seconds,
  )
  speeds = figures['speeds']
  print(
    f'loader: {figures["num_images"]} images, batches of '
    f'{figures["batch_size"]}, {figures["static_sizes"]} static sizes, '
    f'{100 * figures["share_padding"]:.1f} % of the pixels are padding'
  )
  print(format_speeds(speeds))
  print(json.dumps(figures | {'speeds': [s._asdict() for s in speeds]}))


def _parse_size(text: str) -> tuple[int, int]:
  """Converts the text HEIGHTxWIDTH, in pixels, to (height, width).

  Raises:
    InputError: If the text has another form, or a side is less than 1.
  """
  try:
    height, width = map(int, text.split('x'))
    if min(height, width) < 1:
      raise ValueError
  except ValueError:
    raise InputError(f'--size={text}: give HEIGHTxWIDTH in pixels.') from None
  return height, width


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all arguments except the keys of the recipe."""
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.benchmark',
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
    '--mode',
    choices=('train', 'inference', 'loader'),
    required=True,
    help='the work to time',
  )
  add = parser.add_argument
  add(
    '--size',
    help='HEIGHTxWIDTH of the made-up images in pixels (default: 800x1333)',
  )
  add('--batch_size', type=int, default=1, help='number of images in a step')
  add(
    '--max_batch_size',
    type=int,
    help='also time the largest batch that fits into the memory: up to\n'
    'this number of images, --batch_size times a power of two',
  )
  add('--steps', type=int, help='number of steps to time (default: 5)')
  add('--seconds', type=float, help='time steps for so long instead')
  add(
    '--objects',
    type=int,
    help='number of objects in each made-up image (default: 8)',
  )
  add(
    '--classes',
    type=int,
    help='number of classes of made-up images, without background\n'
    '(default: 80)',
  )
  add(
    '--precision',
    choices=('auto', 'fp32', 'tf32', 'bf16', 'fp16'),
    help='the precision (default: the one of the recipe); auto is\n'
    'tf32 on GPUs that have it, otherwise fp32',
  )
  add(
    '--kernels',
    choices=('auto', 'xla', 'pallas'),
    help='the kernels (default: those of the recipe)',
  )
  add('--images', help='folder of the images of a data set')
  add('--annotations', help='COCO JSON of these images')
  add(
    '--real_images',
    action='store_true',
    help="train, inference: take images of the recipe's training set",
  )
  add(
    '--with_loader',
    action='store_true',
    help='train, inference: the time of a step includes waiting for its\n'
    'batch, which the loader reads from the data set;\n'
    '--config.data.num_workers and .num_threads are used',
  )
  add(
    '--paste',
    action='store_true',
    help='inference: a step includes pasting the masks into the images',
  )
  add(
    '--compare',
    choices=('torchvision',),
    help='time steps of this program in turn with steps of torchvision',
  )
  add(
    '--torch_python',
    metavar='PYTHON',
    help='Python 3.11 or newer that has torch and torchvision\n'
    '(default: this one)',
  )
  add(
    '--costs',
    type=int,
    help='profile one more step, and print this number of operations\n'
    'that take most of its time',
  )
  add(
    '--trace',
    type=pathlib.Path,
    metavar='DIR',
    help='folder to keep that profile in, for TensorBoard or\nui.perfetto.dev',
  )
  add(
    '--workers',
    help='loader: numbers of worker processes to try, one after\n'
    'the other, for example 0,1,2; with 0, the default, the threads\n'
    'of the main process load',
  )
  add(
    '--threads',
    type=int,
    help='loader: number of threads in each process (default: 2)',
  )
  add(
    '--step_seconds',
    type=float,
    help='loader: seconds that a step takes\n'
    '(default: 1.25 times the time to load its batch)',
  )
  return parser
