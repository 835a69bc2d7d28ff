r"""Exports a trained model to a folder that needs only JAX and NumPy.

  python -m maskrcnn_jax.export --checkpoint=CHECKPOINT --out=DIR \
      [--platforms=cpu,cuda,tpu] [--batch=1] [--sizes=800x1344,1344x800] \
      [--config.KEY=VALUE ...]

DIR gets a StableHLO program for each size and platform, from the bytes of a
picture to boxes in the picture; weights.npz, the weights; export.json, with the
names of the classes, the recipe, and the arguments and results of the programs;
and loader.py, which shows how to run them. A program takes pictures that fit
into its size and lie the same way: wide, upright, or both if the size is a
square.

Exit status: 0 done, 1 failed while running, 2 wrong input.
"""

import argparse
import os
import pathlib
import re
import sys
from typing import NoReturn

from maskrcnn_jax import named_weights
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.console import shown_log
from maskrcnn_jax.runtime.status_line import waiting

PLATFORMS = ('cpu', 'cuda', 'tpu')

# Pillow, and therefore --mode=predict, decodes no larger pictures.
MAX_PIXELS = 178_956_970


class _Parser(argparse.ArgumentParser):
  """Reports a wrong argument as other wrong input is reported."""

  def error(self, message: str) -> NoReturn:
    """Raises an InputError with the message."""
    raise InputError(message)


def main(argv: list[str]) -> None:
  """Exports the model that the arguments name.

  Args:
    argv: The arguments, without the name of the program.

  Raises:
    InputError: If an argument or the checkpoint is wrong, or if the folder
      cannot be written to.
  """
  from maskrcnn_jax.config.command_line import (
    refuse_unexpected,
    split_arguments,
  )

  path, overrides, others = split_arguments(argv)
  arguments, unexpected = _parser().parse_known_args(others)
  refuse_unexpected(unexpected)
  platforms = _parse_platforms(arguments.platforms)
  sizes = _parse_sizes(arguments.sizes)
  if arguments.batch < 1:
    raise InputError(f'--batch={arguments.batch} must be at least 1.')
  if arguments.out.is_dir() and any(arguments.out.iterdir()):
    raise InputError(f'--out={arguments.out} is not empty; give a new folder.')

  # A GPU is not needed. On a CPU, precision 'auto' is fp32, whichever machine
  # exports the model.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  with waiting('Starting JAX'):
    from maskrcnn_jax.config.recipe import read_overrides, read_recipe
    from maskrcnn_jax.detector import load_detector
    from maskrcnn_jax.export.artifact import write_artifact

  recipe = (
    read_recipe(path, overrides, for_training=False)
    if path
    else read_overrides(overrides)
  )
  for line in recipe.notes:
    print(line)
  checkpoint = arguments.checkpoint
  if named_weights.is_name(checkpoint):
    checkpoint = named_weights.find_checkpoint(checkpoint)
  write_artifact(
    load_detector(pathlib.Path(checkpoint), recipe),
    arguments.out,
    sizes=sizes,
    batch_size=arguments.batch,
    platforms=platforms,
  )


def _parse_platforms(text: str) -> tuple[str, ...]:
  """Converts the value of --platforms to a tuple of JAX's platform names.

  Raises:
    InputError: If a name is unknown or is given twice.
  """
  platforms = tuple(text.split(','))
  if not set(platforms) <= set(PLATFORMS) or len(set(platforms)) < len(
    platforms
  ):
    raise InputError(
      f'--platforms={text}: give some of {",".join(PLATFORMS)}, each once, '
      'with commas between them.'
    )
  return platforms


def _parse_sizes(text: str | None) -> list[tuple[int, int]] | None:
  """Converts the value of --sizes to (height, width) pairs, the smallest first.

  Args:
    text: HEIGHTxWIDTH in pixels, several with commas between them; `None` if
      --sizes is not given.

  Raises:
    InputError: If the text has another form, a side is 0, a size is given
      twice, or a picture of that size would be refused.
  """
  if text is None:
    return None
  parts = text.split(',')
  matches = [re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', part) for part in parts]
  if not all(matches) or len(set(parts)) < len(parts):
    raise InputError(
      f'--sizes={text}: give HEIGHTxWIDTH in pixels, such as 800x1344; several '
      'with commas between them, each once.'
    )
  sizes = [(int(match[1]), int(match[2])) for match in matches if match]
  for height, width in sizes:
    if height * width > MAX_PIXELS:
      raise InputError(
        f'--sizes: {height}x{width} has more than {MAX_PIXELS} pixels, as many '
        'as a picture may have.'
      )
  return sorted(sizes, key=lambda size: size[0] * size[1])


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all arguments except the keys of the recipe."""
  parser = _Parser(
    prog='python -m maskrcnn_jax.export',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--checkpoint',
    required=True,
    help='the model: a workdir, a checkpoint, a converted model, or the name\n'
    'of published weights, such as torchvision:maskrcnn_resnet50_fpn_v2',
  )
  parser.add_argument(
    '--out',
    type=pathlib.Path,
    required=True,
    metavar='DIR',
    help='the folder to write; it must be new or empty',
  )
  parser.add_argument(
    '--platforms',
    default=','.join(PLATFORMS),
    help='where the programs can run (default: %(default)s)',
  )
  parser.add_argument(
    '--batch',
    type=int,
    default=1,
    help='number of pictures in a batch (default: 1)',
  )
  parser.add_argument(
    '--sizes',
    metavar='HxW,...',
    help='HEIGHTxWIDTH of the largest picture of each program, in pixels\n'
    '(default: the sizes that the recipe pads resized pictures to, once\n'
    'for wide and once for upright pictures)',
  )
  # --config and --config.KEY are taken out before these arguments are parsed.
  # They are listed here so that --help shows them.
  parser.add_argument(
    '--config', help='a recipe (default: the one of the checkpoint)'
  )
  parser.add_argument(
    '--config.KEY',
    metavar='VALUE',
    help='change a key, for example --config.detections.min_score=0.5 or\n'
    '--config.precision=bf16; precision "auto" is fp32 here',
  )
  return parser


def run() -> NoReturn:
  """Runs the tool; an error ends it with a line of text and an exit status."""
  try:
    with shown_log():
      main(sys.argv[1:])
    sys.exit(0)
  except InputError as error:
    print_error(str(error))
    sys.exit(2)
  except OSError as error:
    print_error(str(error))
    sys.exit(1)
