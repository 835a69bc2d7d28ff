"""A watchdog: ends a run that makes no progress, and says where it hung."""

from collections.abc import Iterator
import contextlib
import faulthandler
import math
import os
import sys
import threading
import time

from maskrcnn_jax.runtime.status_line import is_terminal

# Seconds after which faulthandler ends the process if the watchdog's own thread
# hangs too. It hangs if another thread is in C code that holds Python's global
# lock.
GRACE = 20

# The running watchdog; None if there is none.
_watch: '_Watch | None' = None


class _Watch:
  """The state of a watchdog, and the function that its thread runs.

  Attributes:
    seconds: Longest time without progress.
    stopped: Set when the watchdog is no longer needed.
    done: Text that names the last progress.
    last: Time of the last progress, by the monotonic clock.
    armed: Time at which faulthandler's timer was last set.
  """

  def __init__(self, seconds: float):
    """Starts the time from now.

    Args:
      seconds: Longest time without progress.
    """
    self.seconds = seconds
    self.stopped = threading.Event()
    self.armed = -math.inf
    self.advance('the start')

  def advance(self, done: str) -> None:
    """Records progress, from which the time counts anew.

    Args:
      done: Names the progress in the message of the watchdog.
    """
    self.done, self.last = done, time.monotonic()
    # At most once a second, because faulthandler starts a thread each time.
    if self.last - self.armed > 1:
      self.armed = self.last
      faulthandler.dump_traceback_later(
        self.seconds + GRACE, exit=True, file=sys.__stderr__ or sys.stderr
      )

  def run(self) -> None:
    """Ends the process when there is no progress; runs until `stopped`."""
    while not self.stopped.wait(min(1.0, self.seconds / 10)):
      idle = time.monotonic() - self.last
      if idle < self.seconds:
        continue
      print(
        # On a terminal, a status line may stand in the last line.
        '\n' * is_terminal() + f'error: no progress for {idle:.0f} s '
        f'(config.train.watchdog_seconds={self.seconds:g}); the last progress '
        f'was {self.done}. Stacks of all threads:',
        file=sys.__stderr__,
        flush=True,
      )
      faulthandler.dump_traceback(
        file=sys.__stderr__ or sys.stderr, all_threads=True
      )
      # An orderly exit could hang: it waits for other threads and processes.
      os._exit(1)


@contextlib.contextmanager
def watchdog(seconds: float | int) -> Iterator[None]:
  """Context manager that ends the process if it makes no progress for a time.

  The code inside reports progress by calling `progress`. If it does not, the
  watchdog prints the stacks of all threads and ends the process with status 1.
  Without a watchdog, a process that hangs would keep all other processes of its
  run waiting for ever.

  Args:
    seconds: Longest time without progress. It must be longer than compiling the
      training step and computing the AP of a data set take. 0 for no watchdog.
  """
  global _watch
  if not seconds:
    yield
    return
  watch = _watch = _Watch(seconds)
  thread = threading.Thread(target=watch.run, name='watchdog', daemon=True)
  thread.start()
  try:
    yield
  finally:
    watch.stopped.set()
    faulthandler.cancel_dump_traceback_later()
    _watch = None
    thread.join()


def progress(done: str) -> None:
  """Reports progress to the watchdog; does nothing if there is none.

  Args:
    done: Names the progress, such as 'step 7', in the message of the watchdog.
  """
  if _watch is not None:
    _watch.advance(done)
