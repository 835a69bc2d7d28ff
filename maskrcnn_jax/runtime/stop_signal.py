"""SIGTERM, which clusters send before they take a machine, and Ctrl-C."""

import contextlib
import os
import signal
import threading

_CTRL_C = (
  '\nCtrl-C: the step is finished and saved, then the run stops. Ctrl-C once '
  'more ends it at once; then the last checkpoint is what is left.\n'
)


class Stopped(Exception):
  """Raised by a signal inside `StopSignal.interrupting`."""


class StopSignal:
  """Context manager that records SIGTERM and SIGINT; the process goes on.

  A second SIGINT ends the process at once. A program that a shell starts in the
  background ignores SIGINT, and goes on doing so.

  Attributes:
    requested: Whether a signal has come.
    name: Name of the signal. Another process may have received it.
  """

  def __init__(self):
    """Starts without a signal."""
    self.requested = False
    self.name = 'SIGTERM or Ctrl-C'
    self._interrupts = False
    self._before = {}

  def __enter__(self):
    """Listens, unless in a thread, which no signal reaches."""
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if number == signal.SIGTERM or before != signal.SIG_IGN:
          signal.signal(number, self._take)
          self._before[number] = before
    return self

  def __exit__(self, *_):
    """Listens no more."""
    for number, before in self._before.items():
      signal.signal(number, before)
    self._before = {}

  @contextlib.contextmanager
  def interrupting(self):
    """Has the signal raise `Stopped` inside; for work that loses nothing."""
    self._interrupts = True
    try:
      if self.requested:
        raise Stopped
      yield
    finally:
      self._interrupts = False

  def _take(self, number, _):
    self.requested = True
    self.name = 'SIGTERM'
    if number == signal.SIGINT:
      self.name = 'Ctrl-C'
      # Also while XLA compiles, when no handler would be called.
      signal.signal(signal.SIGINT, signal.SIG_DFL)
      # Past Python's buffers, which may be in the middle of a line.
      os.write(2, _CTRL_C.encode())
    if self._interrupts:
      self._interrupts = False
      raise Stopped
