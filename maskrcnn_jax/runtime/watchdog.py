"""A watchdog: ends a run that makes no progress, and says where it hung."""

import contextlib
import faulthandler
import math
import os
import sys
import threading
import time

# Should even this module's thread hang, as when one in foreign code holds
# Python's lock, the interpreter itself ends the run so many seconds later.
GRACE = 20

_watch = None


class _Watch:
  """What the running watchdog knows."""

  def __init__(self, seconds):
    self.seconds = seconds
    self.stopped = threading.Event()
    self.armed = -math.inf
    self.advance('the start')

  def advance(self, done):
    self.done, self.last = done, time.monotonic()
    # It starts a thread each time.
    if self.last - self.armed > 1:
      self.armed = self.last
      faulthandler.dump_traceback_later(
        self.seconds + GRACE, exit=True, file=sys.__stderr__
      )

  def run(self):
    while not self.stopped.wait(min(1.0, self.seconds / 10)):
      idle = time.monotonic() - self.last
      if idle < self.seconds:
        continue
      print(
        f'error: no progress for {idle:.0f} s '
        f'(config.train.watchdog_seconds={self.seconds:g}); the last was '
        f'{self.done}. Stacks of all threads:',
        file=sys.__stderr__,
        flush=True,
      )
      faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
      # Nothing that an orderly exit waits for can be relied on.
      os._exit(1)


@contextlib.contextmanager
def watchdog(seconds: float | int):
  """Ends the process unless `progress` is called every so many seconds.

  A process that is stuck keeps all others waiting, in collectives that XLA
  does not end. The exit status is 1.

  Args:
    seconds: More than it takes to compile, or to compute the AP of a set; 0
      for no watchdog.
  """
  global _watch
  if not seconds:
    yield
    return
  _watch = _Watch(seconds)
  thread = threading.Thread(target=_watch.run, name='watchdog', daemon=True)
  thread.start()
  try:
    yield
  finally:
    _watch.stopped.set()
    faulthandler.cancel_dump_traceback_later()
    _watch = None
    thread.join()


def progress(done: str) -> None:
  """Tells the watchdog, if there is one, what has just been done."""
  if _watch is not None:
    _watch.advance(done)
