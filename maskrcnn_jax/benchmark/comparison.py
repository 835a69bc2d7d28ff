"""Times this program and torchvision's Mask R-CNN, step by step in turn."""

from collections.abc import Callable
import pathlib
import tempfile
from typing import Any

import jax
import ml_collections
import numpy as np

from maskrcnn_jax.benchmark import step_speed, timing
from maskrcnn_jax.benchmark.programs import set_up
from maskrcnn_jax.benchmark.torchvision_job import (
  Setting,
  model_settings,
  read_weights,
  settings_for,
  write_batches,
)
from maskrcnn_jax.benchmark.torchvision_peer import Peer, PeerFailed, started
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.training_log import peak_memory

# Number of times that the pairs of steps are drawn again for the interval of
# the ratio.
_DRAWS = 10_000


def compare(
  config: ml_collections.ConfigDict, options: step_speed.Options, python: str
) -> dict[str, Any]:
  """Times steps of this program and of torchvision in turn.

  Both have the same images, the same weights (random weights of torchvision,
  scaled so that both detect many objects, and converted) and as many boxes and
  samples as the recipe says. Both resize the images in the timed step.

  Args:
    config: The recipe.
    options: The work to time. `limit` counts the steps of each program for each
      setting of torchvision; its seconds are those of both programs together.
    python: A Python that has torch and torchvision.

  Returns:
    The figures of `benchmark_step`, over all steps of this program; and `peer`:
    `name`, `torch`, `torchvision` (versions), `threads`, and `settings`, a list
    with a dict for each setting: `setting`, `ours_s`, `theirs_s` (medians),
    `ratio` of the medians, ours over theirs, with the 95 % interval `low` and
    `high`, `num_steps`, `ours_detections`, `theirs_detections` of the last
    batch or `ours_loss`, `theirs_loss` of the last step, `ours_mib`,
    `theirs_mib` (peak memory). A setting that failed has `setting` and
    `failed`, a message, only.

  Raises:
    InputError: If torchvision has no counterpart of the recipe, cannot be
      imported or fails in all settings, or if the options are wrong.
  """
  images = step_speed.get_images(config, options)
  settings = model_settings(images, options)
  platform = _platform()
  setup = set_up(images, batch_size=options.batch_size)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    write_batches(images, path / 'batches.npz')
    job = {
      'settings': settings,
      'batches': str(path / 'batches.npz'),
      'weights': str(path / 'weights.npz'),
      'device': platform,
      'mode': options.mode,
      'pastes': options.pastes,
      'optimizer': {
        name: setup.config.optimizer[name]
        for name in ('name', 'learning_rate', 'momentum', 'weight_decay')
      },
    }
    try:
      with started(python, job, Setting('weights'), path) as peer:
        versions = peer.versions
    except PeerFailed as failure:
      raise InputError(f'--compare=torchvision: {failure}') from None
    variables = read_weights(path / 'weights.npz', setup.rcnn, setup.config)
    setup = setup._replace(variables=variables)
    program = step_speed.make_program(setup, options)
    compiled = step_speed.compile_all(program, images)
    step = timing.stepper(program, images.batches)
    rows: list[dict[str, Any]] = []
    times: list[float] = []
    for setting in settings_for(platform, setup.config.precision):
      try:
        with started(python, job, setting, path) as peer:
          ours, theirs, figures = alternate(step, peer, options.limit)
      except PeerFailed as failure:
        rows.append({'setting': setting.name, 'failed': str(failure)})
        continue
      times += ours
      row = ratio(ours, theirs) | {'ours_mib': peak_memory()}
      facts = program.facts()
      for name in ('detections', 'loss'):
        if name in facts:
          row |= {f'ours_{name}': facts[name], f'theirs_{name}': figures[name]}
      rows.append(
        {'setting': setting.name} | row | {'theirs_mib': figures['peak_mib']}
      )
  if not times:
    raise InputError(f'--compare=torchvision: {rows[0]["failed"]}')
  return (
    step_speed.describe(setup, images, options)
    | step_speed.speed(
      times,
      compiled,
      precision=setup.config.precision,
      batch_size=options.batch_size,
    )
    | program.facts()
    | {'costs': []}
    | {'peer': {'name': 'torchvision'} | versions | {'settings': rows}}
  )


def alternate(
  step: Callable[[int], None], peer: Peer, limit: timing.Limit
) -> tuple[list[float], list[float], dict[str, Any]]:
  """Makes steps of both programs in turn.

  On a CPU, each timed step follows a step of the same program that is not
  timed, as in a training. A program that has just waited for the other one may
  be slower: its part of the cache is used by the other, and a virtual machine
  may have given its free memory back to the host.

  Args:
    step: Makes a step of this program and waits for its end.
    peer: torchvision.
    limit: Limits the number of pairs of timed steps, or the seconds of both.

  Returns:
    The seconds of the steps of this program and of torchvision, and the figures
    of torchvision's last step.
  """
  for i in range(timing.WARM_UP):
    step(i)
    peer.step(i)
  ours: list[float] = []
  theirs: list[float] = []
  figures: dict[str, Any] = {}

  def run_peer(i: int) -> None:
    """Makes a step of torchvision; it measures its own time."""
    nonlocal figures
    if peer.stops:
      peer.step(i)
    figures = peer.step(i)
    theirs.append(figures['seconds'])

  def run_own(i: int) -> None:
    """Makes a step of this program."""
    if peer.stops:
      step(i)
    ours.append(timing.seconds_of(step, i))

  while not limit.is_reached(list(map(sum, zip(ours, theirs, strict=True)))):
    number = timing.WARM_UP + len(ours)
    # Each program is first as often as the other.
    pair = (run_own, run_peer) if number % 2 else (run_peer, run_own)
    for run in pair:
      run(number)
  return ours, theirs, figures


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
  """Compares the times of two programs that made their steps in turn.

  Args:
    ours: Seconds of each step of this program.
    theirs: Seconds of each step of the other, as many.

  Returns:
    `ours_s` and `theirs_s`, the medians; `ratio`, ours over theirs; `low` and
    `high`, the ends of its 95 % interval; and `num_steps`.

  Source:
    Percentile bootstrap over the pairs of steps: Efron and Tibshirani, An
    Introduction to the Bootstrap (1993), section 13.3.
  """
  pairs = np.array([ours, theirs])
  drawn = np.random.default_rng(0).integers(
    pairs.shape[1], size=(_DRAWS, pairs.shape[1])
  )
  medians = np.median(pairs[:, drawn], axis=-1)
  low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5)).tolist()
  own, other = np.median(pairs, axis=1).tolist()
  return {
    'num_steps': pairs.shape[1],
    'ours_s': own,
    'theirs_s': other,
    'ratio': own / other,
    'low': low,
    'high': high,
  }


def _platform() -> str:
  """Returns torch's name of the device that JAX uses: 'cpu' or 'cuda'.

  Raises:
    InputError: If there are several devices, or devices of another kind.
  """
  devices = jax.devices()
  if len(devices) > 1:
    raise InputError(
      f'--compare=torchvision runs on one device, and JAX has {len(devices)}; '
      'CUDA_VISIBLE_DEVICES=0 hides the others.'
    )
  names = {'cpu': 'cpu', 'gpu': 'cuda', 'cuda': 'cuda'}
  if devices[0].platform not in names:
    raise InputError(
      '--compare=torchvision runs on a CPU or an NVIDIA GPU, not on '
      f'{devices[0].platform}.'
    )
  return names[devices[0].platform]
