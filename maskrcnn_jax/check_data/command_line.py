"""Finds the faults of a data set before a training does.

  python -m maskrcnn_jax.check_data --images=DIR --annotations=FILE.json
      [--against=VAL.json] [--config=r50_fpn] [--fix=OUT.json]
      [--config.KEY=VALUE ...]

Decodes every image, reads every annotation, and prints the faults, each with a
code that never changes its meaning. The report also lists the classes and the
sizes of images and objects, and tells how well the anchors of the recipe cover
the objects. A contact sheet shows pictures with their masks. A training runs
the same checks, but it does not decode all images first, and it stops at the
first error.

Without --images and --annotations the training set of the recipe is checked:
--config.data.train.images and .annotations, or --config.data.train.tfds and
--config.data.tfds_dir.

Exit status: 0 no errors; 1 the check itself failed; 2 the data set has errors,
or the arguments are wrong. With --fix, 0 means that the repaired copy has no
errors, and 2 means that it has errors, or that it was not written because no
object or no image would be left.
"""

# The processes that decode import this module, so everything that is slow to
# import is imported late.
import argparse
import io
import json
import pathlib
import sys

from maskrcnn_jax.errors import InputError, print_error

# A report of more classes than this is written without line breaks.
_MANY_CLASSES = 10_000


def main(argv: list[str] | None = None) -> int:
  """Checks a data set, prints the report and writes it to files.

  Args:
    argv: The command-line arguments. `None` means those of the process.

  Returns:
    The exit status of the program.
  """
  # File names may hold characters that the terminal cannot show. A test or a
  # notebook may have replaced stdout by an object without `reconfigure`.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  try:
    return _run(sys.argv[1:] if argv is None else argv)
  except InputError as error:
    print_error(str(error))
    return 2


def _run(argv: list[str]) -> int:
  """Does the work of `main`, but raises an InputError instead of printing it.

  Args:
    argv: The command-line arguments.

  Returns:
    The exit status of the program.
  """
  from maskrcnn_jax.config.command_line import (
    refuse_unexpected,
    split_arguments,
  )

  path, overrides, others = split_arguments(argv)
  arguments, unexpected = _parser().parse_known_args(others)
  refuse_unexpected(unexpected)

  from maskrcnn_jax.check_data.check import check_data
  from maskrcnn_jax.check_data.report import format_report
  from maskrcnn_jax.config import source_of
  from maskrcnn_jax.config.recipe import read_recipe
  from maskrcnn_jax.data.source import choose_source
  from maskrcnn_jax.runtime.status_line import keep_below, waiting

  recipe = read_recipe(path, overrides)
  config = recipe.config
  for line in recipe.notes:
    print(line, file=sys.stderr)
  source, option = choose_source(
    arguments.images, arguments.annotations, source_of(config, 'train')
  )
  out = pathlib.Path(arguments.out)
  keep_below()
  with waiting('Checking the data'):
    result = check_data(
      source,
      config=config,
      option=option,
      against=pathlib.Path(arguments.against) if arguments.against else None,
      boxes_only=arguments.boxes_only,
      fix=pathlib.Path(arguments.fix) if arguments.fix else None,
      num_workers=arguments.workers,
      sheet=out / 'contact_sheet.png',
    )
  print(format_report(result))
  report = pathlib.Path(arguments.json or out / 'report.json')
  try:
    report.parent.mkdir(parents=True, exist_ok=True)
    # With `indent`, Python's slow encoder is used.
    is_long = len(result.get('classes', ())) > _MANY_CLASSES
    text = json.dumps(result, indent=None if is_long else 1)
    report.write_text(text, encoding='utf-8')
  except OSError as error:
    raise InputError(
      f'Cannot write {report}: {error.strerror or error}.'
    ) from error
  line = f'The report is in {report}'
  if 'contact_sheet' in result:
    line += f', and the contact sheet is {result["contact_sheet"]}'
  print(f'{line}.')
  if 'fix' in result:
    return 0 if result['fix']['file'] and not result['fix']['left'] else 2
  return 0 if result['is_ok'] else 2


def _parser() -> argparse.ArgumentParser:
  """Returns the parser of all arguments except the keys of the recipe."""
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.check_data',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--images', help='folder of the images')
  parser.add_argument(
    '--annotations', help='annotations of the images: COCO JSON'
  )
  parser.add_argument(
    '--against',
    help='COCO JSON of another split of the same data, which must\n'
    'have the same classes and other images',
  )
  # --config and --config.KEY are taken out before these arguments are parsed.
  # They are listed here so that --help shows them.
  parser.add_argument('--config', help='the recipe to train with')
  parser.add_argument(
    '--config.KEY',
    metavar='VALUE',
    help='change a key of the recipe, for example\n'
    '--config.data.short_side=640',
  )
  parser.add_argument(
    '--boxes_only',
    action='store_true',
    help='accept objects without masks, as a recipe with\n'
    '--config.model.output=boxes does',
  )
  parser.add_argument(
    '--fix',
    help='write a copy of the annotations to this file, in which\n'
    'faults are repaired, or left out if they cannot be',
  )
  parser.add_argument(
    '--out',
    default='check_data',
    help='folder for report.json and contact_sheet.png\n(default: %(default)s)',
  )
  parser.add_argument(
    '--json', help='write the report to this file instead of report.json'
  )
  parser.add_argument(
    '--workers',
    type=int,
    help='number of processes that decode images\n(default: one for each core)',
  )
  return parser
