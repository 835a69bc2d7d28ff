"""The last line of a terminal: a progress bar, or the current work.

The line is redrawn every half second, so that a user sees that the program is
alive. Log lines appear above it. If the standard error output is not a
terminal, none of these functions writes anything, except `progress`.

This module must not import JAX, whose own import it announces.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import contextlib
import datetime
import os
import sys
import threading
import time
from typing import Any

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text
import tqdm

# Largest number of columns of a line.
_WIDEST = 100

# Text is shown as it is: names of files and classes may contain brackets, and a
# long line that is wrapped by the terminal can be copied.
_console = Console(
  stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True
)


class _Screen:
  """The lines that are in use, of which the newest is drawn.

  Attributes:
    lock: Held while the lines change.
    lines: The lines, the newest last.
    live: Draws the newest line; None if there is no line.
    redirects: Whether all that is printed appears above the line.
    waits: Number of `waiting` blocks that the program is inside of.
    waited: Seconds that the program has spent in such blocks.
    is_hidden: Whether no line is shown, because another process shows its own.
  """

  def __init__(self) -> None:
    """Begins without a line."""
    self.lock = threading.RLock()
    self.lines: list[Callable[[], RenderableType]] = []
    self.live: Live | None = None
    self.redirects = False
    self.waits = 0
    self.waited = 0.0
    self.is_hidden = False

  def push(self, line: Callable[[], RenderableType]) -> None:
    """Draws a new line in the place of the others."""
    with self.lock:
      self.lines.append(line)
      if self.live is None:
        self.live = Live(
          get_renderable=self.newest,
          console=_console,
          refresh_per_second=2,
          transient=True,
          redirect_stdout=self.redirects and sys.stdout.isatty(),
          redirect_stderr=self.redirects,
        )
        self.live.start()
        # A process that is killed could not show the cursor again.
        _console.show_cursor()
      self.live.refresh()

  def remove(self, line: Callable[[], RenderableType]) -> None:
    """Removes a line, and draws the line before it, if there is one."""
    with self.lock:
      self.lines.remove(line)
      if self.live and self.lines:
        self.live.refresh()
      elif self.live:
        self.live.stop()
        self.live = None

  def newest(self) -> RenderableType:
    """Returns the newest line."""
    lines = self.lines[-1:]
    return _fitted(lines[0]()) if lines else ''


_screen = _Screen()


def is_terminal() -> bool:
  """Tells whether the standard error output is a terminal with a cursor."""
  # It is not `sys.stderr`, which is replaced while a line is shown.
  return _console.file.isatty() and os.environ.get('TERM') != 'dumb'


def keep_below() -> None:
  """Makes all that is printed appear above the status line.

  `sys.stdout` and `sys.stderr` are replaced while a line is shown, if they are
  terminals. Programs call this function once, when they start.
  """
  _screen.redirects = True


def hide() -> None:
  """Shows no status line any more; for all processes of a run but the first.

  Processes that share a terminal would overwrite each other's line.
  """
  _screen.is_hidden = True


@contextlib.contextmanager
def status_line(
  line: Callable[[], RenderableType],
  *,
  shown: bool = True,
  stays: bool = False,
) -> Iterator[None]:
  """Context manager that shows a line at the bottom of the terminal.

  Lines may be nested; the innermost is shown.

  Args:
    line: Returns the current line. It is called in another thread too.
    shown: Whether the line is shown, if there is a terminal.
    stays: Whether the line stays on the terminal at the end, unless an
      exception ends the block.
  """
  if not shown or _screen.is_hidden or not is_terminal():
    yield
    return
  _screen.push(line)
  try:
    yield
  finally:
    _screen.remove(line)
  if stays:
    _console.print(_fitted(line()))


@contextlib.contextmanager
def waiting(text: str, *, shown: bool = True) -> Iterator[None]:
  """Context manager that says on a terminal what the program is doing.

  The line is shown before the work begins, with the seconds since then, and
  disappears when the work is done. The time does not count for the speed that a
  bar below shows.

  Args:
    text: The work, such as 'Reading the training set'.
    shown: Whether the line is shown.
  """
  started = time.monotonic()

  def line() -> RenderableType:
    """Returns the text with the seconds, cut off if there is no room."""
    grid = Table.grid(Column(), Column(no_wrap=True))
    grid.add_row(
      Text(text, no_wrap=True, overflow='ellipsis'),
      f' ... {time.monotonic() - started:.0f} s',
    )
    return grid

  with status_line(line, shown=shown):
    _screen.waits += 1
    try:
      yield
    finally:
      _screen.waits -= 1
      # Work inside of other work is counted only once.
      if not _screen.waits:
        _screen.waited += time.monotonic() - started


def progress(
  items: Iterable[Any],
  *,
  total: int,
  description: str,
  shown: bool = True,
  unit: str = 'image',
) -> Generator[Any, None, None]:
  """Yields items one by one and shows a progress bar with the time left.

  If the standard error output is not a terminal, a line is written every 30
  seconds.

  Args:
    items: The items, such as images.
    total: Number of items.
    description: Text in front of the bar.
    shown: Whether the bar is shown.
    unit: Name of one item.
  """
  if not is_terminal() or not shown:
    yield from tqdm.tqdm(
      items,
      total=total,
      desc=description,
      unit=unit,
      mininterval=30,
      disable=not shown,
    )
    return
  done = 0
  started, waited = time.monotonic(), _screen.waited

  def line() -> RenderableType:
    """Returns the bar; compiling does not count for the speed."""
    seconds = time.monotonic() - started - (_screen.waited - waited)
    right = f'{done}/{total}'
    if done:
      left = datetime.timedelta(seconds=int(seconds / done * (total - done)))
      speed = done / max(seconds, 1e-9)
      right += f'  {format_speed(speed)} {unit}s/s  ETA {left}'
    return bar(done, total, left=f'{description}:', right=right)

  with status_line(line, stays=True):
    for item in items:
      yield item
      done += 1


def bar(done: int, total: int, *, left: str, right: str) -> RenderableType:
  """Returns a progress bar that fills the room between two texts.

  Args:
    done: Number of items done.
    total: Number of all items.
    left: Text in front of the bar.
    right: Text after the bar.
  """
  grid = Table.grid(
    Column(no_wrap=True), Column(), Column(no_wrap=True), padding=(0, 1)
  )
  grid.add_row(
    Text(f'{left} {100 * done // max(total, 1):3d}%'),
    ProgressBar(
      total=max(total, 1),
      completed=done,
      style='bright_black',
      complete_style='cyan',
      finished_style='cyan',
    ),
    Text(right),
  )
  return grid


def format_speed(speed: float) -> str:
  """Returns a speed with about three digits."""
  return f'{speed:.{2 if speed < 10 else 1 if speed < 100 else 0}f}'


def _fitted(line: RenderableType) -> RenderableType:
  """Makes a line one column shorter than the terminal, or shorter.

  Some terminals begin a new line as soon as the last column is filled.
  """
  return Constrain(line, min(_console.width - 1, _WIDEST))
