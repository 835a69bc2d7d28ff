r"""Measures how fast a recipe trains, detects, or loads its data.

  python -m maskrcnn_jax.benchmark --config=r50_fpn \
      --mode=train --size=800x1333 --batch_size=1 [--config.KEY=VALUE ...]
  python -m maskrcnn_jax.benchmark --config=r50_fpn \
      --mode=loader --images=DIR --annotations=FILE.json --workers=0,1,2 \
      --batch_size=16 --steps=30

--mode=train and --mode=inference time the work of the device for a batch of
made-up images: resizing and the network, then the losses and the update of the
weights, or the detections. The work of the host (decoding images, pasting
masks) is not timed.

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
import sys

import ml_collections

from maskrcnn_jax.errors import InputError, print_error


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
  from maskrcnn_jax.benchmark.step_speed import benchmark_step
  from maskrcnn_jax.runtime import cluster

  cluster.find_devices()
  figures = benchmark_step(
    config,
    mode=arguments.mode,
    image_size=_parse_size(arguments.size),
    batch_size=arguments.batch_size,
    num_steps=arguments.steps,
    num_objects=arguments.objects,
    num_classes=arguments.classes + 1,
    num_costs=arguments.costs,
  )
  print(
    f'{figures["mode"]} {arguments.size}, batch {arguments.batch_size}, '
    f'{figures["precision"]}, {figures["device"]}: '
    f'{figures["median_s"]:.3f} s a step '
    f'({figures["least_s"]:.3f} to {figures["most_s"]:.3f}), '
    f'{figures["images_per_s"]:.2f} images/s; compiled in '
    f'{figures["compile_s"]:.0f} s; peak memory '
    f'{figures["peak_memory_mib"]:.0f} MiB'
  )
  for cost in figures['costs']:
    print(
      f'{cost["share"]:6.1%} {cost["ms"]:9.2f} ms {cost["operation"]}: '
      f'{cost["source"]}'
    )
  print(json.dumps(figures))


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
    workers = [int(count) for count in arguments.workers.split(',')]
  except ValueError:
    raise InputError(
      f'--workers={arguments.workers}: give whole numbers, such as 0,1,2.'
    ) from None
  figures = benchmark_loader(
    config,
    source,
    option=option,
    batch_size=arguments.batch_size,
    num_steps=arguments.steps,
    workers=workers,
    num_threads=arguments.threads,
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
  parser.add_argument(
    '--size',
    default='800x1333',
    help='HEIGHTxWIDTH of the made-up images in pixels',
  )
  parser.add_argument(
    '--batch_size', type=int, default=1, help='number of images in a step'
  )
  parser.add_argument(
    '--steps', type=int, default=5, help='number of steps to time'
  )
  parser.add_argument(
    '--objects',
    type=int,
    default=8,
    help='number of objects in each made-up image',
  )
  parser.add_argument(
    '--classes',
    type=int,
    default=80,
    help='number of classes without background',
  )
  parser.add_argument(
    '--precision',
    choices=('auto', 'fp32', 'tf32', 'bf16', 'fp16'),
    help='the precision (default: the one of the recipe); auto is\n'
    'tf32 on GPUs that have it, otherwise fp32',
  )
  parser.add_argument('--images', help='loader: folder of the images')
  parser.add_argument('--annotations', help='loader: COCO JSON of the images')
  parser.add_argument(
    '--workers',
    default='0',
    help='loader: numbers of worker processes to try, one after\n'
    'the other, for example 0,1,2; with 0 the threads of the main\n'
    'process load',
  )
  parser.add_argument(
    '--threads',
    type=int,
    default=2,
    help='loader: number of threads in each process',
  )
  parser.add_argument(
    '--step_seconds',
    type=float,
    help='loader: seconds that a step takes\n'
    '(default: 1.25 times the time to load its batch)',
  )
  parser.add_argument(
    '--kernels',
    choices=('auto', 'xla', 'pallas'),
    help='the kernels (default: those of the recipe)',
  )
  parser.add_argument(
    '--costs',
    type=int,
    default=0,
    help='profile one more step, and print this number of operations\n'
    'that take most of its time',
  )
  return parser
