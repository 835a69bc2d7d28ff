"""The log on the standard error output.

This module must not import JAX, because programs use it before they announce
that import.
"""

from collections.abc import Iterator
import contextlib
import logging as standard_logging
import pathlib
import sys

from absl import flags, logging

from maskrcnn_jax.errors import printable
from maskrcnn_jax.runtime.status_line import is_terminal, keep_below

_PACKAGE = str(pathlib.Path(__file__).parents[1])


class _Formatter(standard_logging.Formatter):
  """Puts the time of day before a message.

  The messages of this program are single lines. They may have names of a
  stranger's file in them, so they are made safe here, where no caller can
  forget it. Messages of libraries may have several lines.
  """

  def formatMessage(self, record: standard_logging.LogRecord) -> str:  # noqa: N802
    """Returns the line of a record."""
    lines = [record.message]
    if not _is_own(record):
      lines = record.message.split('\n')
    record.message = '\n'.join(map(printable, lines))
    return super().formatMessage(record)


_FORMAT = _Formatter('%(asctime)s %(message)s', '%H:%M:%S')


def set_up_console() -> None:
  """Configures the log on stderr.

  It shows all messages of this program and only the warnings and errors of the
  libraries, each with the time of day. On a terminal, all output appears above
  the status line.
  """
  keep_below()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  # The handler must write to the stream that `sys.stderr` is at the time, and
  # not when absl was imported, because a status line replaces `sys.stderr`.
  flags.FLAGS.set_default('logtostderr', True)
  handler = logging.get_absl_handler()
  handler.setFormatter(_FORMAT)
  handler.addFilter(_is_shown)


def _is_shown(record: standard_logging.LogRecord) -> bool:
  """Tells whether a message is of this program, or at least a warning."""
  return record.levelno >= standard_logging.WARNING or _is_own(record)


def _is_own(record: standard_logging.LogRecord) -> bool:
  """Tells whether a message is of this program, not of a library."""
  return record.pathname.startswith(_PACKAGE)


class _StderrHandler(standard_logging.Handler):
  """Writes messages to the stream that `sys.stderr` is at the time.

  absl's own handler would print a line about flags that were not parsed.
  """

  def emit(self, record: standard_logging.LogRecord) -> None:
    """Writes a message; if the stream has been closed, does nothing."""
    with contextlib.suppress(OSError, ValueError):
      print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
  """Context manager that shows the log on stderr, as the command line does.

  At the end, logging is as before. Nothing is changed if the caller has set
  absl's verbosity, for example to show the log or to hide it.
  """
  if logging.get_verbosity() != logging.WARNING:  # the default
    yield
    return
  keep_below()
  logger = logging.get_absl_logger()
  level, propagates = logger.level, logger.propagate
  handler = _StderrHandler()
  handler.setFormatter(_FORMAT)
  handler.addFilter(_is_shown)
  logger.addHandler(handler)
  logger.setLevel(standard_logging.INFO)
  # Libraries give the root logger a handler, which would repeat the lines.
  logger.propagate = False
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagates


def announce(text: str) -> None:
  """Logs what the program is going to do, before it takes long.

  In Python, where the log is not shown, the line appears nevertheless, unless a
  status line on a terminal says the same or the caller has set absl's
  verbosity. In a notebook there is no other sign that the program works.

  Args:
    text: The work, such as 'Compiling the detector for 800x1344'.
  """
  with contextlib.nullcontext() if is_terminal() else shown_log():
    logging.info('%s', text)
