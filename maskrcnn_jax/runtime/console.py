"""The log on the standard error output.

This module must not import JAX, because programs use it before they announce
that import.
"""

from collections.abc import Iterator
import contextlib
import logging as standard_logging
import pathlib
import sys

from absl import logging

from maskrcnn_jax.runtime.status_line import keep_below


def set_up_console() -> None:
  """Configures the log on stderr.

  It shows all messages of this program and only the warnings and errors of the
  libraries, each with the time of day. On a terminal, all output appears above
  the status line.
  """
  keep_below()
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  logging.set_stderrthreshold(logging.INFO)
  handler = logging.get_absl_handler()
  handler.setFormatter(
    standard_logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S')
  )
  ours = str(pathlib.Path(__file__).parents[1])
  handler.addFilter(
    lambda record: (
      record.levelno >= standard_logging.WARNING
      or record.pathname.startswith(ours)
    )
  )


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
  """Context manager that shows the log as the command line does.

  If the caller's program has configured logging, with a handler of the root
  logger, nothing is changed. Otherwise, everything is as before at the end.
  """
  root = standard_logging.getLogger()
  if root.handlers:
    yield
    return
  handler = logging.get_absl_handler()
  streams, filters = (sys.stdout, sys.stderr), list(handler.filters)
  verbosity, formatter = logging.get_verbosity(), handler.formatter
  set_up_console()
  try:
    yield
  finally:
    sys.stdout, sys.stderr = streams
    handler.python_handler.setStream(sys.stderr)
    handler.filters[:] = filters
    handler.setFormatter(formatter)
    logging.set_verbosity(verbosity)
    root.removeHandler(handler)
