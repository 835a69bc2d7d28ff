"""Compares the losses and the AP of two programs that trained the same model.

It reads the files that `learn_beside_torchvision.py` and
`torchvision_jobs.py` write. In the names of the axes, n counts trainings and
t steps.
"""

import json
import math
import pathlib
from typing import Any

from jaxtyping import Float
from matplotlib.figure import Figure
import numpy as np

# The order of the losses in all arrays.
LOSSES = (
  'loss_box_reg',
  'loss_classifier',
  'loss_mask',
  'loss_objectness',
  'loss_rpn_box_reg',
)
COUNTS = (
  'foreground anchors',
  'background anchors',
  'foreground RoIs',
  'background RoIs',
)
# Losses without a random part differ by rounding only, at most by this factor.
ROUNDING = 1e-5
# Two means differ if they are more standard errors apart than this.
LIMIT = 2.0
# The long test asks that so many windows are within this limit.
SHARE = 0.9
# Number of random groups that `chances` draws.
NUM_DRAWS = 4000

Curves = Float[np.ndarray, 'n t']


def z_score(difference: float, error: float) -> float:
  """Returns a difference in standard errors; 0 if both are 0."""
  if difference == 0:
    return 0.0
  return difference / error if error else math.copysign(math.inf, difference)


def compare_draws(
  ours: Float[np.ndarray, 'b n'], theirs: Float[np.ndarray, 'b n']
) -> dict[str, Any]:
  """Compares a loss at fixed weights over many draws of the samples.

  Args:
    ours: The loss of this program, for b batches and n draws.
    theirs: The loss of the other program for the same batches.

  Returns:
    The means, the relative difference, the difference in standard errors 'z',
    and whether the programs agree. The standard error is that of the draws;
    batches do not count as random, because both programs have the same.
  """
  num_batches, num_draws = ours.shape
  difference = float(ours.mean() - theirs.mean())
  variance = ours.var(axis=1, ddof=1) + theirs.var(axis=1, ddof=1)
  error = math.sqrt(float(variance.sum()) / num_draws) / num_batches
  mean = float(theirs.mean())
  relative = difference / mean if mean else 0.0
  is_rounding = abs(relative) < ROUNDING
  z = 0.0 if is_rounding else z_score(difference, error)
  return {
    'ours': float(ours.mean()),
    'torchvision': mean,
    'relative': relative,
    'z': z,
    'agrees': abs(z) <= LIMIT,
  }


def window_means(curves: Curves, width: int) -> Float[np.ndarray, 'n w']:
  """Returns the mean loss of each training in every window.

  Args:
    curves: Loss of each step of each training.
    width: Number of successive steps of a window. Windows begin at every step.
  """
  windows = np.lib.stride_tricks.sliding_window_view(curves, width, axis=1)
  return windows.mean(axis=-1)


def window_scores(
  ours: Float[np.ndarray, 'n w'], theirs: Float[np.ndarray, 'm w']
) -> Float[np.ndarray, 'w']:
  """Compares the mean losses of two groups of trainings in every window.

  Args:
    ours: Mean loss of each training of the first group in each window.
    theirs: The same for the second group.

  Returns:
    For each window, the difference of the two groups' means in standard errors.
    The error is estimated from the differences between trainings.
  """
  variance = sum(x.var(axis=0, ddof=1) / len(x) for x in (ours, theirs))
  return (ours.mean(axis=0) - theirs.mean(axis=0)) / np.sqrt(variance)


def share_within(scores: Float[np.ndarray, 'w']) -> float:
  """Returns the share of the windows that are within the limit."""
  return float(np.mean(np.abs(scores) <= LIMIT))


def chances(
  ours: Float[np.ndarray, 'n w'], theirs: Float[np.ndarray, 'm w']
) -> dict[str, float]:
  """Returns how often chance alone gives results like those of the long test.

  Neighbouring windows share most of their steps, and a training that is ahead
  stays ahead for a while. So the windows are not independent. How much chance
  alone changes is therefore counted for random groups of the same trainings.

  Args:
    ours: Mean loss of each training of this program in each window.
    theirs: The same for all trainings of the other program.

  Returns:
    'as few windows': If the trainings of both programs are mixed and divided
    into two groups at random, how often as few windows are within the limit as
    between the programs (a permutation test). 'torchvision misses': How often
    two random halves of the other program's trainings have less than `SHARE` of
    their windows within the limit.
  """
  rng = np.random.default_rng(0)
  found = share_within(window_scores(ours, theirs))
  mixed = np.concatenate([ours, theirs])
  as_few = misses = 0
  for _ in range(NUM_DRAWS):
    order = rng.permutation(len(mixed))
    groups = mixed[order[: len(ours)]], mixed[order[len(ours) :]]
    as_few += share_within(window_scores(*groups)) <= found
    order, half = rng.permutation(len(theirs)), len(theirs) // 2
    groups = theirs[order[:half]], theirs[order[half:]]
    misses += share_within(window_scores(*groups)) < SHARE
  return {
    'as few windows': as_few / NUM_DRAWS,
    'torchvision misses': misses / NUM_DRAWS,
  }


def compare_means(ours: list[float], theirs: list[float]) -> dict[str, float]:
  """Returns two means, their standard errors, and their difference as 'z'.

  Args:
    ours: A figure of each training of the first group.
    theirs: The same for the second group.
  """
  errors = [
    float(np.std(x, ddof=1)) / math.sqrt(len(x)) for x in (ours, theirs)
  ]
  difference = float(np.mean(ours) - np.mean(theirs))
  return {
    'mean': float(np.mean(ours)),
    'error': errors[0],
    'mean of the other': float(np.mean(theirs)),
    'error of the other': errors[1],
    'z': z_score(difference, math.hypot(*errors)),
  }


def sharp_test(folder: pathlib.Path, weights: str) -> dict[str, Any]:
  """Compares the losses at fixed weights.

  Args:
    folder: Folder with the files of both programs.
    weights: Name of the weights: 'initial' or 'trained'.
  """
  with (
    np.load(folder / f'ours_{weights}.npz') as ours,
    np.load(folder / f'torchvision_{weights}.npz') as theirs,
  ):
    losses = [ours['losses'], theirs['losses']]
    counts = [
      file['counts'].sum(axis=(0, 1)).tolist() for file in (ours, theirs)
    ]
    differ = int((ours['counts'] != theirs['counts']).any(axis=-1).sum())
    num_draws = math.prod(ours['counts'].shape[:2])
  result: dict[str, Any] = {
    name: compare_draws(losses[0][..., i], losses[1][..., i])
    for i, name in enumerate(LOSSES)
  }
  result['loss'] = compare_draws(losses[0].sum(-1), losses[1].sum(-1))
  return {
    'losses': result,
    'counts': {
      name: {'ours': counts[0][i], 'torchvision': counts[1][i]}
      for i, name in enumerate(COUNTS)
    },
    'draws': num_draws,
    'draws with other counts': differ,
  }


def long_test(
  folder: pathlib.Path, groups: dict[str, list[str]], window: int
) -> dict[str, Any]:
  """Compares the losses and the AP of whole trainings.

  Args:
    folder: Folder with the files of both programs.
    groups: Names of the trainings of each group: 'ours', 'torchvision' and
      'control'.
    window: Number of steps of a window.
  """
  curves = {name: read_curves(folder, runs) for name, runs in groups.items()}
  theirs = curves['torchvision']
  means = {name: window_means(x.sum(-1), window) for name, x in curves.items()}
  everything = np.concatenate([means['torchvision'], means['control']])
  result: dict[str, Any] = {
    'windows within, beside all of torchvision': share_within(
      window_scores(means['ours'], everything)
    ),
    'chances': chances(means['ours'], everything),
  }
  for name in ('ours', 'control'):
    scores = window_scores(means[name], means['torchvision'])
    terms = {
      term: compare_means(
        curves[name][..., i].mean(1).tolist(), theirs[..., i].mean(1).tolist()
      )
      for i, term in enumerate(LOSSES)
    }
    terms['loss'] = compare_means(
      curves[name].sum(-1).mean(1).tolist(), theirs.sum(-1).mean(1).tolist()
    )
    result[name] = {
      'windows': len(scores),
      'windows within': share_within(scores),
      'mean |z|': float(np.abs(scores).mean()),
      'z': [float(scores.min()), float(scores.max())],
      'losses': terms,
    }
  aps: dict[str, Any] = {}
  largest = 0.0
  for name, runs in groups.items():
    found = {
      judge: [
        json.loads((folder / f'{run}_ap_{judge}.json').read_text())
        for run in runs
      ]
      for judge in ('ours', 'torchvision')
    }
    for kind in ('bbox', 'segm'):
      for i, figure in enumerate(('AP', 'AP50')):
        values = {
          judge: [model[kind][i] for model in models]
          for judge, models in found.items()
        }
        largest = max(
          largest,
          *np.abs(np.subtract(values['ours'], values['torchvision'])).tolist(),
        )
        aps.setdefault(f'{kind} {figure}', {})[name] = values
  for by_group in aps.values():
    for name in ('ours', 'control'):
      by_group[f'{name} beside torchvision'] = compare_means(
        by_group[name]['ours'], by_group['torchvision']['ours']
      )
  return result | {'ap': aps, 'largest difference of an AP': largest}


def read_curves(
  folder: pathlib.Path, runs: list[str]
) -> Float[np.ndarray, 'n t l']:
  """Returns the losses of each step of some trainings, by name."""
  curves = []
  for run in runs:
    with np.load(folder / f'{run}.npz') as file:
      curves.append(file['losses'])
  return np.stack(curves)


def report(folder: pathlib.Path, *, seeds: int, window: int) -> None:
  """Prints all comparisons and writes figures.json and curves.png.

  Args:
    folder: Folder with the files of both programs; the results go there too.
    seeds: Number of trainings of a group.
    window: Number of steps of a window.
  """
  groups = {
    'ours': [f'ours_{i}' for i in range(seeds)],
    'torchvision': [f'torchvision_{i}' for i in range(seeds)],
    'control': [f'torchvision_{i}' for i in range(seeds, 2 * seeds)],
  }
  figures: dict[str, Any] = {
    'sharp': {
      name: sharp_test(folder, name) for name in ('initial', 'trained')
    },
    'long': long_test(folder, groups, window),
  }
  (folder / 'figures.json').write_text(json.dumps(figures, indent=1))
  curves = {
    name: read_curves(folder, runs).sum(-1) for name, runs in groups.items()
  }
  loss_figure(curves, window).savefig(folder / 'curves.png')
  print('\n'.join(format_figures(figures)))


def format_figures(figures: dict[str, Any]) -> list[str]:
  """Returns the lines of the tables, in Markdown.

  Args:
    figures: As `report` writes them.
  """
  lines = []
  for name, test in figures['sharp'].items():
    lines += [
      '',
      f'{name} weights, {test["draws"]} draws of each program; '
      f'{test["draws with other counts"]} draws with other numbers of samples',
      '',
      '| loss | torchvision | ours | difference | z |',
      '|---|---|---|---|---|',
    ]
    lines += [
      f'| {term} | {row["torchvision"]:.4f} | {row["ours"]:.4f} | '
      f'{100 * row["relative"]:.3f} % | {row["z"]:.2f} |'
      for term, row in test['losses'].items()
    ]
  test = figures['long']
  for name in ('ours', 'control'):
    part = test[name]
    lines += [
      '',
      f'{name} beside torchvision: {100 * part["windows within"]:.0f} % of '
      f'{part["windows"]} windows within {LIMIT:g} standard errors; z from '
      f'{part["z"][0]:.2f} to {part["z"][1]:.2f}, mean |z| '
      f'{part["mean |z|"]:.2f}',
      '',
      f'| mean loss of all steps | torchvision | {name} | z |',
      '|---|---|---|---|',
    ]
    lines += [
      f'| {term} | {row["mean of the other"]:.4f} ± '
      f'{row["error of the other"]:.4f} | {row["mean"]:.4f} ± '
      f'{row["error"]:.4f} | {row["z"]:.2f} |'
      for term, row in part['losses'].items()
    ]
  chance = test['chances']
  lines += [
    '',
    'ours beside all trainings of torchvision: '
    f'{100 * test["windows within, beside all of torchvision"]:.0f} % of the '
    'windows within. If the trainings of both programs are divided at random, '
    f'{100 * chance["as few windows"]:.0f} % of the divisions have as few.',
    f'Two random halves of the trainings of torchvision have less than '
    f'{100 * SHARE:.0f} % within in {100 * chance["torchvision misses"]:.0f} % '
    'of the divisions.',
    '',
    '| figure | torchvision | ours | z | control | z |',
    '|---|---|---|---|---|---|',
  ]
  for kind, by_group in test['ap'].items():
    ours, control = (
      by_group[f'{name} beside torchvision'] for name in ('ours', 'control')
    )
    lines.append(
      f'| {kind} | {ours["mean of the other"]:.3f} ± '
      f'{ours["error of the other"]:.3f} | {ours["mean"]:.3f} ± '
      f'{ours["error"]:.3f} | {ours["z"]:.2f} | {control["mean"]:.3f} ± '
      f'{control["error"]:.3f} | {control["z"]:.2f} |'
    )
  lines += [
    '',
    'Largest difference between the evaluations of a model by the two '
    f'programs: {test["largest difference of an AP"]:.1e}',
  ]
  return lines


COLORS = {
  'torchvision': 'tab:orange',
  'control': 'tab:gray',
  'ours': 'tab:blue',
}
NAMES = {
  'torchvision': 'torchvision',
  'control': 'torchvision, other seeds',
  'ours': 'this project',
}


def loss_figure(curves: dict[str, Curves], window: int) -> Figure:
  """Draws the mean loss of each group, and bands of two standard errors.

  Args:
    curves: {group: loss of each step of each training}.
    window: Number of steps that each point of a curve is averaged over.
  """
  figure = Figure(figsize=(9, 5.2), layout='constrained')
  axes = figure.subplots()
  for name in ('ours', 'torchvision', 'control'):
    smooth = window_means(curves[name], window)
    mean = smooth.mean(axis=0)
    margin = LIMIT * smooth.std(axis=0, ddof=1) / math.sqrt(len(smooth))
    steps = np.arange(len(mean)) + (window + 1) / 2
    axes.plot(steps, mean, color=COLORS[name], label=NAMES[name])
    axes.fill_between(
      steps, mean - margin, mean + margin, color=COLORS[name], alpha=0.2
    )
  axes.set(xlabel='step', ylabel=f'sum of the losses, mean of {window} steps')
  axes.grid(color='0.9')
  axes.legend(title='bands: two standard errors')
  return figure
