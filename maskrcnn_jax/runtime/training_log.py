"""The log of a training: console, log.txt, metrics.jsonl and TensorBoard.

Every few steps a line shows the figures of a step: named numbers such as losses
and seconds. On a terminal, a bar shows the main ones, and the line is written
to log.txt only.
"""

import collections
from collections.abc import Iterator
import contextlib
import datetime
import os
import pathlib
import resource
import statistics
import time

from absl import logging
import jax
from rich.console import RenderableType

from maskrcnn_jax.errors import printable
from maskrcnn_jax.runtime import status_line
from maskrcnn_jax.runtime.events_file import EventsFile
from maskrcnn_jax.runtime.metrics_file import MetricsFile

# Number of steps whose median the log shows.
# Source: NVIDIA's Mask R-CNN For PyTorch and maskrcnn-benchmark,
# `utils/metric_logger.py`, SmoothedValue.
WINDOW = 20

# Number of first steps whose times the bar does not use: they are too short,
# because the device works on them while the next size is compiled.
_UNTIMED = 2


class TrainingLog:
  """Collects the figures of each step and writes them when asked to.

  Attributes:
    directory: Folder of `log.txt`, `metrics.jsonl` and the TensorBoard events.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    num_steps: int,
    batch_size: int,
    first_step: int = 0,
    writes: bool = True,
  ):
    """Opens the log of a run. New lines are appended to an existing `log.txt`.

    Args:
      directory: Folder of `log.txt`, `metrics.jsonl` and the TensorBoard
        events.
      num_steps: Number of steps of the whole run, for the time left.
      batch_size: Number of images of a step, for the speed.
      first_step: Number of steps done when the run starts or resumes. Lines of
        `metrics.jsonl` about later steps are removed, because these steps are
        made again.
      writes: Whether to write files and show a bar, as only process 0 does.
    """
    self.directory = directory
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._writes = writes
    # For the bar, which is drawn in another thread.
    self._done = first_step
    self._changed = time.monotonic()
    self._timed = 0.0  # seconds of all steps but the first `_UNTIMED`
    self._loss = ''
    self._speed = ''
    self._left = 0.0  # seconds
    self._recent: dict[str, collections.deque[float]] = collections.defaultdict(
      lambda: collections.deque(maxlen=WINDOW)
    )
    self._sums: dict[str, float] = collections.defaultdict(float)
    self._counts: dict[str, int] = collections.defaultdict(int)
    self._file = open(
      directory / 'log.txt' if writes else os.devnull, 'a', encoding='utf-8'
    )
    self._metrics = MetricsFile(
      directory / 'metrics.jsonl' if writes else None, first_step=first_step
    )
    self._events = EventsFile(directory if writes else None)

  def add(self, **figures: float) -> None:
    """Adds the figures of one step to the medians and means of `report`.

    Args:
      **figures: Numbers by name. They include 'time', the seconds of the step.
    """
    for name, figure in figures.items():
      self._recent[name].append(figure)
      self._sums[name] += figure
      self._counts[name] += 1

  @contextlib.contextmanager
  def bar(self) -> Iterator[None]:
    """Context manager that shows the progress of the training on a terminal.

    The bar has the number of steps done, the loss, the images per second and
    the time left.
    """
    self._changed = time.monotonic()
    with status_line.status_line(self._bar, shown=self._writes, stays=True):
      yield

  def advance(self, done: int) -> None:
    """Tells the bar how many steps are done; their figures have been added."""
    if losses := self._recent.get('loss'):
      self._loss = f'  loss {statistics.median(losses):.4f}'
    num_timed = self._counts['time'] - _UNTIMED
    if num_timed > 0:
      times = list(self._recent['time'])
      self._timed += times[-1]
      self._left = self._timed / num_timed * (self._num_steps - done)
      seconds = statistics.median(times[-num_timed:])
      speed = self._batch_size / max(seconds, 1e-9)
      self._speed = f'  {status_line.format_speed(speed)} images/s'
    self._done = done
    self._changed = time.monotonic()

  def line(self, text: str) -> None:
    """Writes a line to the console and to the file."""
    self._write(text, to_console=True)

  def _write(self, text: str, *, to_console: bool) -> None:
    """Writes a line to the file, and to the console if asked to."""
    if to_console:
      logging.info(text)
    self._file.write(printable(text) + '\n')
    self._file.flush()

  def _bar(self) -> RenderableType:
    """Returns the bar of the training."""
    since = time.monotonic() - self._changed
    right = f'{self._done}/{self._num_steps}{self._loss}{self._speed}'
    if self._speed:
      # The time left goes on while a step runs.
      left = datetime.timedelta(seconds=int(max(self._left - since, 0)))
      right += f'  ETA {left}'
    elif self._done < self._num_steps:
      right += f'  step {self._done + 1}: {since:.0f} s'
    return status_line.bar(
      self._done, self._num_steps, left='Training', right=right
    )

  def report(
    self, step: int, *, learning_rate: float, skipped: int | None = None
  ) -> None:
    """Writes the figures so far to all places.

    For each figure, the line in `log.txt` has the median of the last 20 steps
    and, in parentheses, the mean of all steps since the log was opened.
    `metrics.jsonl` and TensorBoard get the median. The console gets the line
    too, unless it is a terminal, where the bar shows the main figures.

    Args:
      step: Number of steps done.
      learning_rate: Learning rate of the last step.
      skipped: Number of steps that were skipped because of an overflow. `None`
        if the training never skips steps; the line then does not show it.
    """
    mean_time = self._sums['time'] / self._counts['time']
    seconds_left = int(mean_time * (self._num_steps - step))
    medians: dict[str, float] = {}
    scalars: dict[str, float] = {}
    figures = []
    for name, recent in self._recent.items():
      median = statistics.median(recent)
      mean = self._sums[name] / self._counts[name]
      figures.append(f'{name}: {median:.4f} ({mean:.4f})')
      medians[name] = median
      group = 'speed' if name in ('time', 'data') else 'train'
      scalars[f'{group}/{name}'] = median
    self._events.write(scalars | {'train/lr': learning_rate}, step)
    memory = peak_memory()
    counts = {} if skipped is None else {'skipped': skipped}
    self._metrics.write(
      step,
      'train',
      medians
      | counts
      | {
        'lr': learning_rate,
        'images_per_second': self._batch_size / max(medians['time'], 1e-9),
        'eta_seconds': seconds_left,
        'max_memory_mib': memory,
      },
    )
    self._write(
      '  '.join(
        [
          f'eta: {datetime.timedelta(seconds=seconds_left)}',
          f'iter: {step}',
          *figures,
          *(f'{name}: {count}' for name, count in counts.items()),
          f'lr: {learning_rate:.6f}',
          f'max mem: {memory:.0f}',
        ]
      ),
      to_console=not status_line.is_terminal(),
    )

  def evaluation(self, step: int, figures: dict[str, float]) -> None:
    """Adds the figures of an evaluation to TensorBoard and `metrics.jsonl`.

    Args:
      step: Number of steps done.
      figures: {name, such as 'bbox_AP': number}. TensorBoard gets them as
        'eval/bbox_AP'.
    """
    self._metrics.write(step, 'eval', figures)
    self._events.write(
      {f'eval/{name}': figure for name, figure in figures.items()}, step
    )

  def close(self) -> None:
    """Closes the log and the TensorBoard events, with all that is pending."""
    self._events.close()
    self._metrics.close()
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
    file.write(printable(text) + '\n')


def peak_memory() -> float:
  """Returns the largest amount of memory used so far, in MiB.

  It is the memory of the first device of this process. For a device that does
  not count it, such as a CPU, it is the memory of this process.
  """
  statistics_ = jax.local_devices()[0].memory_stats()
  if statistics_ and 'peak_bytes_in_use' in statistics_:
    return statistics_['peak_bytes_in_use'] / 2**20
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
