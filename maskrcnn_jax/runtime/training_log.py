"""The training log: one line every few steps, on the console and in a file."""

import collections
from collections.abc import Iterable
import datetime
import os
import pathlib
import resource
import statistics
import sys
import time

from absl import logging
import jax
import tensorboardX
import tqdm

# The seed smooths over as many steps.
# Source: maskrcnn-benchmark `utils/metric_logger.py`, SmoothedValue.
WINDOW = 20


class TrainingLog:
  """Collects the figures of each step and writes them now and then.

  Attributes:
    directory: Where `log.txt` and the TensorBoard events go.
  """

  def __init__(
    self, directory: pathlib.Path, *, num_steps: int, writes: bool = True
  ):
    """Opens the log of a run of `num_steps`, appending to an earlier one.

    Without `writes`, for all processes but one, it writes no file.
    """
    self.directory = directory
    self._num_steps = num_steps
    self._recent = collections.defaultdict(
      lambda: collections.deque(maxlen=WINDOW)
    )
    self._sums = collections.Counter()
    self._counts = collections.Counter()
    self._file = open(
      directory / 'log.txt' if writes else os.devnull, 'a', encoding='utf-8'
    )
    # Without the suffix, a second log in the same second overwrites the first.
    self._events = tensorboardX.SummaryWriter(
      str(directory),
      filename_suffix=f'.{time.time_ns()}',
      write_to_disk=writes,
    )

  def add(self, **figures: float) -> None:
    """Takes the figures of one step."""
    for name, figure in figures.items():
      self._recent[name].append(figure)
      self._sums[name] += figure
      self._counts[name] += 1

  def line(self, text: str) -> None:
    """Writes a line to the console and to the file."""
    logging.info(text)
    self._file.write(text + '\n')
    self._file.flush()

  def report(
    self, step: int, *, learning_rate: float, skipped: int | None = None
  ) -> None:
    """Writes the line of a step: each figure's recent median (overall mean).

    Args:
      step: Steps done.
      learning_rate: Of the last of them.
      skipped: How many changed no parameter, where that can be.
    """
    mean_time = self._sums['time'] / self._counts['time']
    left = datetime.timedelta(seconds=int(mean_time * (self._num_steps - step)))
    figures = []
    for name, recent in self._recent.items():
      median = statistics.median(recent)
      mean = self._sums[name] / self._counts[name]
      figures.append(f'{name}: {median:.4f} ({mean:.4f})')
      group = 'speed' if name in ('time', 'data') else 'train'
      self._events.add_scalar(f'{group}/{name}', median, step)
    self._events.add_scalar('train/lr', learning_rate, step)
    self.line(
      '  '.join(
        [
          f'eta: {left}',
          f'iter: {step}',
          *figures,
          *([] if skipped is None else [f'skipped: {skipped}']),
          f'lr: {learning_rate:.6f}',
          f'max mem: {peak_memory():.0f}',
        ]
      )
    )

  def scalars(self, step: int, figures: dict[str, float]) -> None:
    """Writes figures such as AP to the TensorBoard events."""
    for name, figure in figures.items():
      self._events.add_scalar(name, figure, step)
    self._events.flush()

  def close(self) -> None:
    """Writes pending lines and closes the files."""
    self._events.close()
    self._file.close()


def progress(
  items: Iterable, *, total: int, description: str, shown: bool = True
) -> Iterable:
  """Shows a bar with the time left while items are worked through.

  Where nobody watches, in a log file, it says so only twice a minute.
  """
  return tqdm.tqdm(
    items,
    total=total,
    desc=description,
    unit='image',
    mininterval=0.1 if sys.stderr.isatty() else 30,
    disable=not shown,
  )


def peak_memory() -> float:
  """Returns the most memory used so far, in MiB: the device's, or our own."""
  statistics_ = jax.local_devices()[0].memory_stats()
  if statistics_ and 'peak_bytes_in_use' in statistics_:
    return statistics_['peak_bytes_in_use'] / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
