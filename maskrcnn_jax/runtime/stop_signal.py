"""Stopping a run by SIGTERM or Ctrl-C, without losing the current step.

Clusters send SIGTERM before they take a machine away. Ctrl-C sends SIGINT.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sys import UnraisableHookArgs

# A signal handler as `signal.getsignal` returns it.
_Handler = Callable[[int, FrameType | None], Any] | int | None

_CTRL_C = (
  '\nCtrl-C: the run finishes and saves the current step, then it stops. '
  'Ctrl-C once more ends it at once and keeps only the last checkpoint.\n'
)


class Stopped(BaseException):
  """Raised inside `StopSignal.interrupting` when a signal comes.

  It is no `Exception`, like KeyboardInterrupt: code that turns any exception
  into an error message must let it pass.
  """


class StopSignal:
  """Context manager that records signals; the process goes on.

  The signals are SIGTERM and SIGINT unless others are given. A second SIGINT
  ends the process at once. If SIGINT is ignored, as in a program that a shell
  has started in the background, it stays ignored.

  Attributes:
    requested: Whether a signal has come.
    name: Name of the signal for messages. If another process has received the
      signal, it is 'SIGTERM or Ctrl-C'.
  """

  def __init__(
    self,
    numbers: Sequence[int] = (signal.SIGTERM, signal.SIGINT),
    *,
    before: 'StopSignal | None' = None,
  ) -> None:
    """Makes an object that listens only once it is entered.

    Args:
      numbers: The signals to record.
      before: The object that records signals until this one is entered. A
        signal that it has recorded counts for this object too.
    """
    self.requested = False
    self.name = 'SIGTERM or Ctrl-C'
    self._numbers = numbers
    self._earlier = before
    self._interrupts = False
    self._before: dict[int, _Handler] = {}

  def __enter__(self) -> 'StopSignal':
    """Starts to record signals, in the main thread only.

    Python calls signal handlers in the main thread and allows no other thread
    to set them.
    """
    if threading.current_thread() is threading.main_thread():
      for number in self._numbers:
        before = signal.getsignal(number)
        if number == signal.SIGTERM or before != signal.SIG_IGN:
          signal.signal(number, self._record)
          self._before[number] = before
    # The earlier object records nothing more, so that no signal is lost.
    if self._earlier is not None and self._earlier.requested:
      self.requested, self.name = True, self._earlier.name
    return self

  def __exit__(self, *_: object) -> None:
    """Restores the signal handlers from before."""
    for number, before in self._before.items():
      signal.signal(number, before)
    self._before = {}

  def let_go(self) -> None:
    """Restores the signal handlers; a recorded signal then has its effect."""
    numbers = list(self._before)
    self.__exit__()
    if self.requested and numbers:
      os.kill(os.getpid(), numbers[0])

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Context manager in which signals have their usual effect.

    It is for a wait in C++ code, which runs no signal handler of Python. A
    signal that has come before stays recorded. An object that does not listen
    will not listen afterwards either.
    """
    listens = bool(self._before)
    self.__exit__()
    try:
      yield
    finally:
      if listens:
        self.__enter__()

  @contextlib.contextmanager
  def interrupting(self) -> Iterator[None]:
    """Context manager in which a signal raises `Stopped` at once.

    For work that can be interrupted because a later run can repeat it, such as
    an evaluation. If a signal has come before, `Stopped` is raised on entry.

    Python ignores exceptions in `__del__` and in callbacks of the garbage
    collector. If it has ignored `Stopped`, it is raised again a moment later.
    """
    tell_ignored = sys.unraisablehook

    def raise_again() -> None:
      """Sends SIGTERM to this process if it can still be interrupted."""
      if self._interrupts:
        os.kill(os.getpid(), signal.SIGTERM)

    def look_for_stopped(ignored: 'UnraisableHookArgs') -> None:
      """Handles an exception that Python has ignored."""
      if ignored.exc_type is not Stopped:
        tell_ignored(ignored)
      else:
        self._interrupts = True
        threading.Timer(0.01, raise_again).start()

    self._interrupts = True
    sys.unraisablehook = look_for_stopped
    try:
      if self.requested:
        raise Stopped
      yield
    finally:
      self._interrupts = False
      sys.unraisablehook = tell_ignored

  def _record(self, number: int, _: FrameType | None) -> None:
    """Records a signal; the signal handler while this object is entered."""
    if not self.requested:
      self.requested = True
      self.name = 'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'
    if number == signal.SIGINT:
      # The default action also works while XLA compiles. A Python handler would
      # be called only after that.
      signal.signal(signal.SIGINT, signal.SIG_DFL)
      # Not by print: the signal may have interrupted a print, and its buffer
      # cannot be used twice at a time.
      os.write(2, _CTRL_C.encode())
    if self._interrupts:
      self._interrupts = False
      raise Stopped
