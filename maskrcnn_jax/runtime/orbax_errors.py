"""Hides the stacks that orbax prints for errors that it also raises."""

import logging as standard_logging
import os
import sys

from absl import logging


def hide_orbax_errors() -> None:
  """Keeps errors of orbax's threads and callbacks off stderr.

  If a file cannot be written or read, orbax raises an error, which becomes one
  line of this program. Orbax also logs the stacks of all its threads, and
  asyncio those of all other files of the same checkpoint, which would bury the
  line. A second call changes nothing.
  """
  # A logger has a filter only once, however often it is added.
  logging.get_absl_logger().addFilter(_is_kept)
  standard_logging.getLogger('asyncio').addFilter(_is_kept)
  before = sys.unraisablehook
  if getattr(before, '__name__', '') != 'print_unless_late':

    def print_unless_late(unraisable: 'sys.UnraisableHookArgs') -> None:
      """Prints an exception of a callback, unless the callback came too late.

      This is asyncio's error when a write of tensorstore ends after another
      write has failed and has ended the save.
      """
      if str(unraisable.exc_value) != 'Event loop is closed':
        before(unraisable)

    sys.unraisablehook = print_unless_late


def _is_kept(record: standard_logging.LogRecord) -> bool:
  """Returns False for a record with the stack of an error that is also raised.

  Args:
    record: A record of absl's logger, which orbax uses, or of asyncio's.
  """
  if record.name == 'asyncio':
    return 'exception was never retrieved' not in record.getMessage()
  return not (record.exc_info and f'{os.sep}orbax{os.sep}' in record.pathname)
