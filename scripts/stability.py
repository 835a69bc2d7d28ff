"""Trains a recipe with several seeds, to show how much its AP varies.

  python scripts/stability.py --config=RECIPE --seeds=0,1,2,3,4 --out=DIR
      [--init_from=CHECKPOINT] [--config.KEY=VALUE ...]

The trainings run one after another, each in its workdir DIR/seed_N with its
console output in DIR/seed_N.txt. The script shows the time that is left as soon
as the first steps have been timed. If it is interrupted, the same command
continues; a training that is complete is only evaluated again.

The script writes DIR/stability.md, the table of AP by seed with mean and
standard deviation; DIR/stability.json, all figures; and DIR/losses.png, the
loss curves, drawn with matplotlib (pip install matplotlib). A curve consists of
the medians that log.txt shows.
"""

import argparse
from collections.abc import Sequence
import datetime
import json
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
from matplotlib.figure import Figure

from maskrcnn_jax.config import has_eval_set
from maskrcnn_jax.config.command_line import (
  Override,
  refuse_unexpected,
  split_arguments,
)
from maskrcnn_jax.config.nvidia_keys import is_nvidia_key
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.training.run import INTERRUPTED

# Seconds between two lines about the progress.
LINE_EVERY = 60

# (kind and name of a figure in coco_results.json, its name in the table)
FIGURES = (
  ('bbox', 'AP', 'box AP'),
  ('bbox', 'AP50', 'box AP50'),
  ('segm', 'AP', 'mask AP'),
  ('segm', 'AP50', 'mask AP50'),
  ('proposals', 'AR@1000', 'recall of proposals'),
)


class Progress(NamedTuple):
  """The state of a training, as its log.txt shows it."""

  step: int  # number of steps done
  num_steps: int  # number of steps of the whole training
  seconds: float  # mean time of a step


def read_losses(log: str) -> list[dict[str, float]]:
  """Reads the figures of the training steps from a log.txt.

  Args:
    log: Text of the file. If the training was killed and continued, the log
      shows some steps twice; the later lines count.

  Returns:
    {'step': number of steps done, name: median of the last 20 steps} for each
    line about the training, in the order of the steps. The names are those of
    the log: 'loss', the terms of the loss, 'time' and others.
  """
  lines = {}
  for line in log.splitlines():
    match = re.match(r'eta: .*?  iter: (\d+)  ', line)
    if match:
      step = int(match[1])
      medians = re.findall(r'(\w+): (\S+) \(\S+\)', line)
      lines[step] = {'step': step} | {k: float(v) for k, v in medians}
  return [lines[step] for step in sorted(lines)]


def read_progress(log: str) -> Progress | None:
  """Finds out how far a training has come since it was started or continued.

  Args:
    log: Text of its log.txt from the last start on.

  Returns:
    The progress; `None` before the first line about the training steps.
  """
  total = re.search(r'from step \d+ to (\d+)', log)
  steps = re.findall(r'  iter: (\d+)  .*?\btime: \S+ \((\S+)\)', log)
  if not total or not steps:
    return None
  return Progress(int(steps[-1][0]), int(total[1]), float(steps[-1][1]))


def seconds_left(progress: Progress, num_waiting: int) -> float:
  """Estimates the time until all trainings are complete.

  Evaluations are not counted.

  Args:
    progress: Progress of the current training.
    num_waiting: Number of trainings that have not begun.
  """
  steps = progress.num_steps - progress.step + num_waiting * progress.num_steps
  return steps * progress.seconds


def train(command: list[str], workdir: pathlib.Path, num_waiting: int) -> None:
  """Trains with one seed, and prints the progress.

  SIGTERM and Ctrl-C are passed on to the training, which saves a checkpoint
  before it ends.

  Args:
    command: The command of the training.
    workdir: Workdir of the training. The console output is appended to the file
      of the same name with the suffix .txt.
    num_waiting: Number of trainings that follow.

  Raises:
    SystemExit: If the training fails, with its exit status; or with status 130
      if it is interrupted.
  """
  log = workdir / 'log.txt'
  console = workdir.with_suffix('.txt')
  start = log.stat().st_size if log.is_file() else 0
  with open(console, 'a', encoding='utf-8') as output:
    process = subprocess.Popen(
      command,
      stdout=output,
      stderr=subprocess.STDOUT,
      # Ctrl-C reaches this script only, which passes it on.
      start_new_session=True,
    )
  handlers = {
    number: signal.signal(number, lambda n, _: process.send_signal(n))
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  shown = -float(LINE_EVERY)
  try:
    while process.poll() is None:
      time.sleep(0.5)
      if time.monotonic() - shown < LINE_EVERY or not log.is_file():
        continue
      progress = read_progress(log.read_bytes()[start:].decode())
      if progress:
        left = int(seconds_left(progress, num_waiting))
        print(
          f'{workdir.name}: step {progress.step} of {progress.num_steps}; '
          f'about {datetime.timedelta(seconds=left)} left for all trainings, '
          'without evaluations',
          flush=True,
        )
        shown = time.monotonic()
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
  if process.returncode:
    lines = console.read_text(encoding='utf-8').splitlines()[-3:]
    print('\n'.join([*lines, f'The whole output is in {console}.']))
    sys.exit(process.returncode if process.returncode > 0 else 1)
  if (workdir / INTERRUPTED).exists():
    print('Interrupted. The same command continues from there.')
    sys.exit(130)


def figures_of(results: dict[str, Any]) -> dict[str, float | None]:
  """Picks the figures of the table from an evaluation.

  Args:
    results: Content of a coco_results.json.

  Returns:
    {name in the table: figure in [0, 1]}, without the figures that the model
    does not have. A figure is `None` if there is no ground truth for it.
  """
  return {
    title: results[kind]['stats'][name]
    for kind, name, title in FIGURES
    if kind in results
  }


def format_table(figures: dict[int, dict[str, float | None]]) -> str:
  """Formats the table of the figures by seed, in Markdown.

  Args:
    figures: {seed: result of `figures_of`}; all seeds have the same names.

  Returns:
    A line for each seed, then the mean and the sample standard deviation, in
    which the squares are divided by the number of seeds minus 1. 'n/a' stands
    for a figure that does not exist.
  """
  names = list(next(iter(figures.values())))
  columns = [[by_name[name] for by_name in figures.values()] for name in names]
  rows = [['seed', *names], ['---'] * (1 + len(names))]
  rows += [
    [str(seed), *map(_format, by_name.values())]
    for seed, by_name in figures.items()
  ]
  for title, function, least in (
    ('mean', statistics.mean, 1),
    ('standard deviation', statistics.stdev, 2),
  ):
    cells = []
    for column in columns:
      known = [figure for figure in column if figure is not None]
      is_complete = len(known) == len(column) >= least
      cells.append(_format(function(known) if is_complete else None))
    rows.append([title, *cells])
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _format(figure: float | None) -> str:
  """Returns a figure with four decimals; 'n/a' for `None`."""
  return 'n/a' if figure is None else f'{figure:.4f}'


def loss_figure(curves: dict[int, list[tuple[int, float]]]) -> Figure:
  """Draws the loss of each training against the number of steps.

  Args:
    curves: {seed: [(step, loss), ...]}; there is at least one point.
  """
  figure = Figure(figsize=(9, 5.2), layout='constrained')
  axes = figure.subplots()
  for seed, curve in curves.items():
    axes.plot(*zip(*curve, strict=True), label=f'seed {seed}')
  axes.set(xlabel='step', ylabel='sum of the losses', xlim=(0, None))
  axes.set_ylim(bottom=0)
  axes.grid(color='0.9')
  axes.legend()
  return figure


def write_report(
  out: pathlib.Path, seeds: Sequence[int], arguments: list[str]
) -> str:
  """Writes the table, all figures and the curves of complete trainings.

  Args:
    out: The folder of the trainings; the files are written to it.
    seeds: The seeds.
    arguments: The arguments that all trainings had.

  Returns:
    The content of stability.md.
  """
  runs = {}
  for seed in seeds:
    workdir = out / f'seed_{seed}'
    results = (workdir / 'inference' / 'coco_results.json').read_text()
    runs[seed] = {
      'results': json.loads(results),
      'steps': read_losses((workdir / 'log.txt').read_text()),
    }
  curves = {
    seed: [(line['step'], line['loss']) for line in run['steps']]
    for seed, run in runs.items()
  }
  loss_figure(curves).savefig(out / 'losses.png')
  table = format_table(
    {seed: figures_of(run['results']) for seed, run in runs.items()}
  )
  steps = sorted({run['results']['step'] for run in runs.values()})
  text = (
    f'`{" ".join(arguments)}`, {" or ".join(map(str, steps))} steps, '
    f'jax {jax.__version__}\n\n{table}'
  )
  (out / 'stability.md').write_text(text)
  write_json(
    out / 'stability.json',
    {'arguments': arguments, 'jax': jax.__version__, 'runs': runs},
  )
  return text


def parse_seeds(text: str) -> list[int]:
  """Parses the value of --seeds, different whole numbers with commas between.

  Raises:
    InputError: If the text has another form.
  """
  try:
    seeds = [int(part) for part in text.split(',')]
  except ValueError:
    seeds = []
  if not seeds or len(set(seeds)) < len(seeds):
    raise InputError(
      f'--seeds={text}: give different whole numbers, for example --seeds=0,1,2'
    )
  return seeds


def recipe_arguments(path: str, overrides: Sequence[Override]) -> list[str]:
  """Returns the arguments that give a recipe to a program.

  Args:
    path: The value of --config.
    overrides: (key, text) pairs, as `split_arguments` returns them.
  """
  arguments = [f'--config={path}']
  for key, text in overrides:
    if is_nvidia_key(key):
      arguments += [key, str(text)]
    else:
      arguments.append(f'--config.{key}={"True" if text is None else text}')
  return arguments


def run(argv: Sequence[str]) -> None:
  """Trains with all seeds and writes the report.

  Args:
    argv: The command-line arguments.

  Raises:
    InputError: If an argument or the recipe is wrong.
    SystemExit: If a training fails or is interrupted.
  """
  path, overrides, others = split_arguments(argv)
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--seeds', default='0,1,2,3,4', help='the seeds')
  parser.add_argument('--out', help='folder for the trainings and the report')
  parser.add_argument('--init_from', help='checkpoint to begin with')
  flags, unexpected = parser.parse_known_args(others)
  refuse_unexpected(unexpected)
  if path is None:
    raise InputError('--config=RECIPE is missing, for example --config=shapes.')
  if not flags.out:
    raise InputError('--out=DIR is missing: the folder for the trainings.')
  seeds = parse_seeds(flags.seeds)
  recipe = read_recipe(path, overrides)
  if 'seed' in recipe.given:
    raise InputError('Give the seeds with --seeds, not with --config.seed.')
  if not has_eval_set(recipe.config):
    raise InputError(
      'The AP needs an evaluation set: give --config.data.eval.images=DIR and '
      '--config.data.eval.annotations=FILE.json.'
    )
  out = pathlib.Path(flags.out)
  make_writable(out)
  arguments = recipe_arguments(path, overrides)
  if flags.init_from:
    arguments.insert(1, f'--init_from={flags.init_from}')
  print(
    f'{len(seeds)} trainings, one after another. The time that they need is '
    'shown after the first steps.',
    flush=True,
  )
  for i, seed in enumerate(seeds):
    workdir = out / f'seed_{seed}'
    command = [sys.executable, '-m', 'maskrcnn_jax.main', *arguments]
    command[3:3] = [f'--workdir={workdir}', f'--config.seed={seed}']
    train(command, workdir, len(seeds) - 1 - i)
    results = json.loads((workdir / 'inference/coco_results.json').read_text())
    figures = ', '.join(
      f'{k} {_format(v)}' for k, v in figures_of(results).items()
    )
    print(f'{workdir.name} is complete: {figures}', flush=True)
  print(f'\n{write_report(out, seeds, arguments)}')
  print(f'The figures and the curves are in {out}.')


def main() -> None:
  """Runs the script; wrong input gives one line and the exit status 2."""
  try:
    run(sys.argv[1:])
  except InputError as error:
    print_error(str(error))
    sys.exit(2)


if __name__ == '__main__':
  main()
