"""The log of a training: lines on the console and in a file, and TensorBoard.

Every few steps a line shows the figures of a step: named numbers such as losses
and seconds.
"""

import collections
from collections.abc import Iterable
import datetime
import os
import pathlib
import resource
import statistics
import sys
import time
from typing import Any

from absl import logging
import jax
import tensorboardX
import tqdm

# Number of steps whose median the log shows.
# Source: NVIDIA's Mask R-CNN For PyTorch and maskrcnn-benchmark,
# `utils/metric_logger.py`, SmoothedValue.
WINDOW = 20


class TrainingLog:
  """Collects the figures of each step and writes them when asked to.

  Attributes:
    directory: Folder of `log.txt` and of the TensorBoard events.
  """

  def __init__(
    self, directory: pathlib.Path, *, num_steps: int, writes: bool = True
  ):
    """Opens the log of a run. New lines are appended to an existing `log.txt`.

    Args:
      directory: Folder of `log.txt` and of the TensorBoard events.
      num_steps: Number of steps of the whole run, for the time left.
      writes: Whether to write files, as only process 0 does.
    """
    self.directory = directory
    self._num_steps = num_steps
    self._recent: dict[str, collections.deque[float]] = collections.defaultdict(
      lambda: collections.deque(maxlen=WINDOW)
    )
    self._sums: dict[str, float] = collections.defaultdict(float)
    self._counts: dict[str, int] = collections.defaultdict(int)
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
    """Adds the figures of one step to the medians and means of `report`.

    Args:
      **figures: Numbers by name. They include 'time', the seconds of the step.
    """
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
    """Writes a line with the figures so far, and adds them to TensorBoard.

    For each figure, the line shows the median of the last 20 steps and, in
    parentheses, the mean of all steps since the log was opened.

    Args:
      step: Number of steps done.
      learning_rate: Learning rate of the last step.
      skipped: Number of steps that were skipped because of an overflow. `None`
        if the training never skips steps; the line then does not show it.
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
    """Adds figures such as AP to the TensorBoard events.

    Args:
      step: Number of steps done.
      figures: {tag of TensorBoard: number}.
    """
    for name, figure in figures.items():
      self._events.add_scalar(name, figure, step)
    self._events.flush()

  def close(self) -> None:
    """Closes the log and the TensorBoard events, with all that is pending."""
    self._events.close()
    self._file.close()


def log_line(directory: pathlib.Path, text: str) -> None:
  """Writes a line to the console and adds it to the file log.txt of a folder.

  The folder may be the workdir of a training, which has the file open.

  Args:
    directory: The folder; it must exist.
    text: The line.
  """
  logging.info(text)
  with open(directory / 'log.txt', 'a', encoding='utf-8') as file:
    file.write(text + '\n')


def progress(
  items: Iterable[Any], *, total: int, description: str, shown: bool = True
) -> Iterable[Any]:
  """Yields items one by one and shows a progress bar with the time left.

  Args:
    items: The items, such as images.
    total: Number of items.
    description: Text in front of the bar.
    shown: Whether the bar is shown.
  """
  return tqdm.tqdm(
    items,
    total=total,
    desc=description,
    unit='image',
    # In a log file, a new line every 30 seconds is enough.
    mininterval=0.1 if sys.stderr.isatty() else 30,
    disable=not shown,
  )


def peak_memory() -> float:
  """Returns the largest amount of memory used so far, in MiB.

  It is the memory of the first device of this process. For a device that does
  not count it, such as a CPU, it is the memory of this process.
  """
  statistics_ = jax.local_devices()[0].memory_stats()
  if statistics_ and 'peak_bytes_in_use' in statistics_:
    return statistics_['peak_bytes_in_use'] / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
