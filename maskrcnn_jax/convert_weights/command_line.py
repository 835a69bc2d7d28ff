"""Converts weights of other programs to checkpoints, and checkpoints back.

  python -m maskrcnn_jax.convert_weights SOURCE DEST [--source_format=FORMAT]
  python -m maskrcnn_jax.convert_weights CHECKPOINT DEST --to=FORMAT

In the first form, SOURCE is a .pth, .pkl or .safetensors file of torchvision,
detectron2, maskrcnn-benchmark or Caffe2 (Detectron), or the name of published
weights, which are downloaded (python -m maskrcnn_jax.main --list_weights lists
them). DEST becomes a checkpoint directory for --checkpoint and --init_from. In
the second form, CHECKPOINT is a checkpoint directory and DEST becomes a .pth
file; for detectron2 it may also be a .pkl file. None of these programs needs to
be installed. No code that a file contains or names is run.

Exit status: 0 done, 1 failed while running, 2 wrong input.
"""

import argparse
import pathlib
import sys
from typing import NoReturn

import numpy as np

from maskrcnn_jax import named_weights
from maskrcnn_jax.config.command_line import with_underscores
from maskrcnn_jax.convert_weights.convert import convert
from maskrcnn_jax.convert_weights.export_weights import export
from maskrcnn_jax.convert_weights.peer_models import Conventions
from maskrcnn_jax.convert_weights.weight_names import NAMINGS
from maskrcnn_jax.data import coco
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.console import shown_log
from maskrcnn_jax.runtime.status_line import waiting

# Flags that have no meaning if a file is written for another program.
_FLAGS_OF_READING = (
  'source_format',
  'categories',
  'key',
  'prefix',
  'norm_eps',
  'stride_in_1x1',
  'pixel_order',
  'pixel_mean',
  'pixel_std',
)


class _Parser(argparse.ArgumentParser):
  """Reports a wrong argument in one line, as other wrong input is reported."""

  def error(self, message: str) -> NoReturn:
    """Prints the message and ends the program with exit status 2."""
    _fail(message, 2)


def main() -> None:
  """Converts the file or the checkpoint that the command line names."""
  parser = _Parser(
    prog='python -m maskrcnn_jax.convert_weights',
    description=__doc__.split('\n\n')[0],
  )
  parser.add_argument(
    'source',
    help='weight file or name of published weights, or a checkpoint with --to',
  )
  parser.add_argument(
    'dest',
    type=pathlib.Path,
    help='checkpoint directory to write, or a weight file with --to',
  )
  parser.add_argument(
    '--source_format',
    choices=NAMINGS,
    help='program that the weight file must come from; recognised by default',
  )
  parser.add_argument(
    '--to',
    choices=('torchvision', 'detectron2'),
    help='program to write a weight file for; SOURCE is then a checkpoint',
  )
  parser.add_argument(
    '--categories',
    type=pathlib.Path,
    metavar='FILE.json',
    help='COCO JSON file with the names of the classes',
  )
  parser.add_argument(
    '--coco_rows',
    type=int,
    choices=(81, 91),
    default=81,
    help='number of rows of the class scores, with background. torchvision has '
    "91, one for each id up to COCO's largest, but only 80 ids are classes: "
    '91 keeps all rows, or writes all with --to. Default: 81',
  )
  parser.add_argument(
    '--key',
    help='path of the dictionary in the file that holds the weights, such as '
    'ema.module; if the file has several, one is chosen by default, and the '
    'others are printed',
  )
  parser.add_argument(
    '--prefix',
    help='text before the names of the weights, such as module.; found by '
    'default. It may lead to the ResNet of a detector, which is taken alone',
  )
  parser.add_argument(
    '--norm_eps',
    type=float,
    help='epsilon of the frozen batch norm, if not the usual one of the '
    "program; 0 for torchvision's COCO_V1 weights that a later torchvision "
    'has saved again',
  )
  parser.add_argument(
    '--stride_in_1x1',
    choices=('true', 'false'),
    help='whether the first 1x1 convolution of a bottleneck has the stride, if '
    'not as usual for the program',
  )
  parser.add_argument(
    '--pixel_order',
    choices=('rgb', 'bgr'),
    help='channel order that the first convolution expects, if not the usual '
    'one of the program',
  )
  for name, what in (
    ('mean', 'mean'),
    ('std', 'standard deviation'),
  ):
    parser.add_argument(
      f'--pixel_{name}',
      type=_three_numbers,
      metavar='R,G,B',
      help=f'{what} of the pixels, which are in [0, 255], if not the usual one '
      'of the program; red, green, blue',
    )
  flags = parser.parse_args(with_underscores(sys.argv[1:]))
  if flags.pixel_std and min(flags.pixel_std) <= 0:
    parser.error('--pixel_std: standard deviations must be greater than 0')
  if flags.to:
    for name in _FLAGS_OF_READING:
      if getattr(flags, name) is not None:
        parser.error(
          f'--{name} is about the weights of another program; leave it out '
          'with --to'
        )
    with waiting('Exporting the weights'):
      export(
        pathlib.Path(flags.source),
        flags.dest,
        to=flags.to,
        coco_91=flags.coco_rows == 91,
      )
    return
  source = pathlib.Path(flags.source)
  if named_weights.is_name(flags.source):
    source = named_weights.find_file(flags.source)
    # The flags that the user gives come last, so that they count.
    flags = parser.parse_args(
      [
        *named_weights.conventions(flags.source),
        *with_underscores(sys.argv[1:]),
      ]
    )
  names = None
  if flags.categories:
    index = coco.read_coco(flags.categories, require_masks=False)
    names = [list(category) for category in index.categories]
  stride = flags.stride_in_1x1
  with waiting('Converting the weights'):
    convert(
      source,
      flags.dest,
      source_format=flags.source_format,
      names=names,
      keep_91=flags.coco_rows == 91,
      given=Conventions(
        flags.norm_eps,
        None if stride is None else stride == 'true',
        flags.pixel_order,
        flags.pixel_mean,
        flags.pixel_std,
      ),
      key=flags.key,
      prefix=flags.prefix,
    )


def _three_numbers(text: str) -> tuple[float, ...]:
  """Reads the value of a flag, three numbers such as '123.7,116.3,103.5'.

  Raises:
    argparse.ArgumentTypeError: If the text is anything else.
  """
  try:
    numbers = tuple(map(float, text.split(',')))
  except ValueError:
    numbers = ()
  if len(numbers) != 3 or not np.isfinite(numbers).all():
    raise argparse.ArgumentTypeError(
      f'{text!r} is not three numbers, for red, green and blue, such as '
      '123.675,116.28,103.53'
    )
  return numbers


def run() -> NoReturn:
  """Runs the tool; an error ends it with a line of text and an exit status."""
  try:
    with shown_log():
      main()
    sys.exit(0)
  except InputError as error:
    _fail(str(error), 2)
  except OSError as error:
    _fail(str(error), 1)


def _fail(message: str, status: int) -> NoReturn:
  """Prints an error message and ends the program with an exit status."""
  print_error(message)
  sys.exit(status)
