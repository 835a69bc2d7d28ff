"""Measures how the time of a step grows with the work, and draws it.

  python scripts/growth.py --config=RECIPE --out=DIR [--size=256x256]
      [--steps=5] [--config.KEY=VALUE ...]

The picture is drawn with matplotlib (pip install matplotlib).

The training step and inference of a recipe are timed by `python -m
maskrcnn_jax.benchmark` while one of these numbers grows: the images of a batch,
the pixels of an image, the objects in an image, and the classes. The script
writes DIR/growth.json, all figures; DIR/growth.md, a table; and
DIR/growth.png, the curves. A timing that DIR/growth.json has already is not
repeated, so that an interrupted run can be continued.

The last column of the table is the steepest growth: the exponent p if the time
grows like the number to the power of p from one number to the next. Linear
growth has 1, and a time that does not depend on the number has 0.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
from typing import Any

from matplotlib.figure import Figure
from stability import recipe_arguments

from maskrcnn_jax.config.command_line import refuse_unexpected, split_arguments
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.status_line import progress

# {number that grows: its values}. `pixels` are sides of square images.
NUMBERS = {
  'batch_size': (1, 2, 4, 8),
  'pixels': (128, 192, 256, 384, 512, 768),
  'objects': (1, 4, 16, 64),
  'classes': (1, 10, 100, 1000),
}
MODES = ('train', 'inference')

# {mode: {number: {value: seconds of a step}}}. JSON turns values into text.
Times = dict[str, dict[str, dict[str, float]]]


def arguments_for(number: str, value: int) -> list[str]:
  """Returns the arguments of the benchmark that set one number to a value."""
  if number == 'pixels':
    return [f'--size={value}x{value}']
  return [f'--{number}={value}']


def work_of(number: str, value: float) -> float:
  """Returns the amount of work that should be proportional to the time.

  Args:
    number: A key of `NUMBERS`.
    value: One of its values.
  """
  return value**2 if number == 'pixels' else value


def measure(arguments: list[str]) -> float:
  """Returns the median seconds of a step by the benchmark program.

  Args:
    arguments: Its arguments.

  Raises:
    InputError: If it fails; the message is its last line.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax.benchmark', *arguments],
    capture_output=True,
    text=True,
  )
  if done.returncode:
    last = (done.stderr.strip() or 'no message').splitlines()[-1]
    raise InputError(
      f'The benchmark with {" ".join(arguments)} ended with the status '
      f'{done.returncode}: {last.removeprefix("error: ")}'
    )
  return json.loads(done.stdout.splitlines()[-1])['median_s']


def steepest(number: str, seconds: dict[str, float]) -> float:
  """Returns the largest exponent of growth between neighbouring values.

  Args:
    number: A key of `NUMBERS`.
    seconds: {value: seconds of a step}, for at least two values.
  """
  points = sorted((work_of(number, float(v)), s) for v, s in seconds.items())
  return max(
    math.log(after[1] / before[1]) / math.log(after[0] / before[0])
    for before, after in zip(points, points[1:], strict=False)
  )


def format_table(times: Times) -> str:
  """Returns a Markdown table with a row for each mode and number."""
  rows = [
    '| mode | number | seconds of a step | steepest growth |',
    '|---|---|---|---|',
  ]
  for mode, numbers in times.items():
    for number, seconds in numbers.items():
      cells = ', '.join(f'{v}: {s:.3g}' for v, s in seconds.items())
      growth = f'{steepest(number, seconds):.2f}' if len(seconds) > 1 else 'n/a'
      rows.append(f'| {mode} | {number} | {cells} | {growth} |')
  return '\n'.join(rows) + '\n'


def growth_figure(times: Times) -> Figure:
  """Draws the time of a step against each number; both axes start at 0."""
  figure = Figure(figsize=(10, 7), layout='constrained')
  for axes, number in zip(figure.subplots(2, 2).flat, NUMBERS, strict=True):
    for mode, numbers in times.items():
      seconds = numbers.get(number, {})
      works = [work_of(number, float(value)) for value in seconds]
      axes.plot(works, list(seconds.values()), marker='o', label=mode)
    label = 'pixels of an image' if number == 'pixels' else number
    axes.set(xlabel=label.replace('_', ' '), ylabel='seconds of a step')
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(color='0.9')
    axes.legend()
  return figure


def _run(argv: list[str]) -> None:
  """Does the work of `main`, but raises an InputError instead of printing it.

  Args:
    argv: The command-line arguments.
  """
  path, overrides, others = split_arguments(argv)
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--config', help='the recipe; it must be given')
  parser.add_argument(
    '--config.KEY', metavar='VALUE', help='change a key of the recipe'
  )
  parser.add_argument('--out', type=pathlib.Path, help='folder of the results')
  parser.add_argument(
    '--size', default='256x256', help='size of the images, if it does not grow'
  )
  parser.add_argument('--steps', default=5, type=int, help='steps to time')
  arguments, unexpected = parser.parse_known_args(others)
  refuse_unexpected(unexpected)
  if path is None or arguments.out is None:
    raise InputError('--config=RECIPE and --out=DIR must be given.')
  make_writable(arguments.out)
  recipe = [*recipe_arguments(path, overrides), f'--size={arguments.size}']
  recipe += [f'--steps={arguments.steps}', '--objects=8', '--classes=80']
  # The arrays of all timings have room for the largest number of objects.
  config = read_recipe(path, overrides).config
  room = max(config.data.max_objects, *NUMBERS['objects'])
  recipe.append(f'--config.data.max_objects={room}')
  file = arguments.out / 'growth.json'
  known: dict[str, Any] = {'arguments': recipe, 'times': {}}
  if file.exists():
    known = json.loads(file.read_text())
    if known['arguments'] != recipe:
      raise InputError(
        f'{file} is of another run, with {" ".join(known["arguments"])}; give '
        'another --out.'
      )
  times: Times = known['times']
  jobs = [
    (mode, number, value)
    for mode in MODES
    for number, values in NUMBERS.items()
    for value in values
    if str(value) not in times.get(mode, {}).get(number, {})
  ]
  for mode, number, value in progress(
    iter(jobs), total=len(jobs), description='Timing', unit='program'
  ):
    seconds = times.setdefault(mode, {}).setdefault(number, {})
    # If an argument is given twice, the benchmark takes the last one.
    options = [f'--mode={mode}', *recipe, *arguments_for(number, value)]
    seconds[str(value)] = measure(options)
    write_json(file, known)
  table = format_table(times)
  (arguments.out / 'growth.md').write_text(table)
  growth_figure(times).savefig(arguments.out / 'growth.png')
  print(table, end='')


def main(argv: list[str] | None = None) -> None:
  """Times, writes and prints; ends with status 2 if an argument is wrong.

  Args:
    argv: The command-line arguments. `None` means those of the process.
  """
  try:
    _run(sys.argv[1:] if argv is None else argv)
  except InputError as error:
    print_error(str(error))
    sys.exit(2)


if __name__ == '__main__':
  main()
