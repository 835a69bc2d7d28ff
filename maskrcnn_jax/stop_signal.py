"""SIGTERM: what a cluster sends before it takes a machine away."""

import contextlib
import signal
import threading


class Stopped(Exception):
  """Raised by SIGTERM inside `StopSignal.interrupting`."""


class StopSignal:
  """Takes note of SIGTERM in place of dying of it, as long as it is entered.

  Attributes:
    requested: Whether the signal has come.
  """

  def __init__(self):
    """Starts without a signal."""
    self.requested = False
    self._interrupts = False
    self._before = None

  def __enter__(self):
    """Listens, unless in a thread, which no signal reaches."""
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._take)
    return self

  def __exit__(self, *_):
    """Listens no more."""
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)
      self._before = None

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

  def _take(self, *_):
    self.requested = True
    if self._interrupts:
      self._interrupts = False
      raise Stopped
