"""The last line of a terminal: a progress bar, or the current work.

The line is redrawn every half second, so that a user sees that the program is
alive. Log lines appear above it. If the standard error output is not a
terminal, none of these functions writes anything, except `progress`.

This module must not import JAX, whose own import it announces.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
import contextlib
import os
import sys
import threading
import time
from typing import Any, TextIO

from absl import logging
import tqdm

# Seconds between two drawings of the line.
_INTERVAL = 0.5

# Moves the cursor to the start of the line, and erases from the cursor to the
# end of the line.
_START, _ERASE = '\r', '\x1b[K'

# Makes the text of a line, given the number of columns that it may have.
LineText = Callable[[int], str]


class _Screen:
  """The lines that are in use, of which the newest is drawn.

  Attributes:
    lock: Held while the terminal is written to.
    lines: The lines, the newest last.
    drawn: The text that stands in the last line of the terminal now.
    is_inside: Whether the last text of the program did not end its line. The
      line is then not drawn, because it would erase this text.
    waits: Number of `waiting` blocks that the program is inside of.
    waited: Seconds that the program has spent in such blocks.
    is_hidden: Whether no line is shown, because another process shows its own.
  """

  def __init__(self) -> None:
    """Begins without a line."""
    self.lock = threading.RLock()
    self.lines: list[LineText] = []
    self.drawn = ''
    self.is_inside = False
    self.waits = 0
    self.waited = 0.0
    self.is_hidden = False
    self._ended = threading.Event()

  def push(self, line: LineText) -> None:
    """Draws a new line over the others; starts to redraw it regularly."""
    with self.lock:
      self.lines.append(line)
      self.draw()
      if len(self.lines) == 1:
        self._ended = threading.Event()
        threading.Thread(
          target=self._redraw, args=(self._ended,), daemon=True
        ).start()

  def remove(self, line: LineText) -> None:
    """Removes a line, and draws the line below it, if there is one."""
    with self.lock:
      self.lines.remove(line)
      self.erase()
      self.draw()
      if not self.lines:
        self._ended.set()

  def draw(self) -> None:
    """Draws the newest line, if its text has changed."""
    with self.lock:
      if not self.lines or self.is_inside:
        return
      columns = _columns()
      text = self.lines[-1](columns)[:columns]
      if text != self.drawn:
        self._put(f'{_START}{text}{_ERASE}')
        self.drawn = text

  def erase(self) -> None:
    """Erases the line that is drawn."""
    with self.lock:
      if self.drawn:
        self._put(_START + _ERASE)
        self.drawn = ''

  def _put(self, text: str) -> None:
    """Writes to the terminal; if it has been closed, does nothing."""
    stream = sys.stderr
    if isinstance(stream, _Above):
      stream = stream.stream
    with contextlib.suppress(OSError, ValueError):
      stream.write(text)
      stream.flush()

  def _redraw(self, ended: threading.Event) -> None:
    """Redraws the newest line until `ended` is set; runs in a thread."""
    while not ended.wait(_INTERVAL):
      self.draw()


class _Above:
  """A stream that writes to a terminal above the status line.

  Attributes:
    stream: The stream of the terminal.
  """

  def __init__(self, stream: TextIO):
    """Wraps `sys.stdout` or `sys.stderr`."""
    self.stream = stream

  def write(self, text: str) -> int:
    """Writes text, and then draws the status line below it."""
    with _screen.lock:
      _screen.erase()
      length = self.stream.write(text)
      if text:
        _screen.is_inside = not text.endswith('\n')
      # Both streams may go to the same terminal, so the order matters.
      self.stream.flush()
      _screen.draw()
    return length

  def __getattr__(self, name: str) -> Any:
    """Returns any other attribute of the stream."""
    return getattr(self.stream, name)


_screen = _Screen()


def is_terminal() -> bool:
  """Tells whether the standard error output is a terminal with a cursor."""
  return sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'


def keep_below() -> None:
  """Makes all that is printed appear above the status line.

  `sys.stdout` and `sys.stderr` are replaced if they are terminals. Programs
  call this function once, when they start.
  """
  if not is_terminal() or isinstance(sys.stderr, _Above):
    return
  sys.stderr = _Above(sys.stderr)
  # The handler has kept the stream that it found when it was made. It writes a
  # line twice if its stream is not `sys.stderr`.
  logging.get_absl_handler().python_handler.setStream(sys.stderr)
  if sys.stdout.isatty():
    sys.stdout = _Above(sys.stdout)


def hide() -> None:
  """Shows no status line any more; for all processes of a run but the first.

  Processes that share a terminal would overwrite each other's line.
  """
  _screen.is_hidden = True


@contextlib.contextmanager
def status_line(
  text: LineText, *, shown: bool = True, stays: bool = False
) -> Iterator[None]:
  """Context manager that shows a line at the bottom of the terminal.

  Lines may be nested; the innermost is shown.

  Args:
    text: Returns the current text of the line. It is called in another thread
      too.
    shown: Whether the line is shown, if there is a terminal.
    stays: Whether the line stays on the terminal at the end, unless an
      exception ends the block.
  """
  if not shown or _screen.is_hidden or not is_terminal():
    yield
    return
  # A new function each time, so that the same text may be shown twice.
  line: LineText = lambda columns: text(columns)  # noqa: E731
  _screen.push(line)
  try:
    yield
  finally:
    _screen.remove(line)
  if stays:
    print(text(_columns()), file=sys.stderr)


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

  def line(columns: int) -> str:
    """Returns the text with the seconds, cut off if there is no room."""
    seconds = f' ... {time.monotonic() - started:.0f} s'
    return text[: max(columns - len(seconds), 0)] + seconds

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
  items: Iterable[Any], *, total: int, description: str, shown: bool = True
) -> Generator[Any, None, None]:
  """Yields items one by one and shows a progress bar with the time left.

  If the standard error output is not a terminal, a line is written every 30
  seconds.

  Args:
    items: The items, such as images.
    total: Number of items.
    description: Text in front of the bar.
    shown: Whether the bar is shown.
  """
  if not is_terminal() or not shown:
    yield from tqdm.tqdm(
      items,
      total=total,
      desc=description,
      unit='image',
      mininterval=30,
      disable=not shown,
    )
    return
  done = 0
  started, waited = time.monotonic(), _screen.waited

  def line(columns: int) -> str:
    """Returns the bar; compiling does not count for the speed."""
    seconds = time.monotonic() - started
    working = max(seconds - (_screen.waited - waited), 1e-9)
    return tqdm.tqdm.format_meter(
      done,
      total,
      seconds,
      rate=done / working if done else None,
      ncols=columns,
      prefix=description,
      unit='image',
      ascii=not shows_blocks(),
    )

  with status_line(line, stays=True):
    for item in items:
      yield item
      done += 1


def bar(done: int, total: int, *, left: str, right: str, columns: int) -> str:
  """Returns a progress bar that fills the room between two texts.

  Args:
    done: Number of items done.
    total: Number of all items.
    left: Text in front of the bar.
    right: Text after the bar.
    columns: Number of characters of the result. It is shorter if `columns` is
      more than is good for a bar, and without a bar if there is no room.
  """
  percent = f'{100 * done // max(total, 1):3d}%'
  room = min(columns - len(left) - len(percent) - len(right) - 4, 30)
  blocks = ''
  if room >= 3:
    blocks = tqdm.std.Bar(
      min(done / max(total, 1), 1),
      default_len=room,
      charset=tqdm.std.Bar.UTF if shows_blocks() else tqdm.std.Bar.ASCII,
    )
    blocks = f'|{blocks}|'
  return f'{left} {percent}{blocks} {right}'


def shows_blocks() -> bool:
  """Tells whether the terminal can show the Unicode blocks of a bar."""
  return (sys.stderr.encoding or '').lower().startswith('utf')


def _columns() -> int:
  """Returns the number of columns that a line may have.

  It is one less than the terminal has, because some terminals begin a new line
  as soon as the last column is filled.
  """
  try:
    columns = os.get_terminal_size(sys.stderr.fileno()).columns
  except (OSError, ValueError):
    columns = 0
  return (columns or 80) - 1
