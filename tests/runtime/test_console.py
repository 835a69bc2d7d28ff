"""Tests of the log on the standard error output."""

import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  ('verbosity', 'expected'),
  [(None, ['00:00:00 Compiling']), ('ERROR', []), ('INFO', ['I Compiling'])],
  ids=['default', 'hidden', 'shown by the caller'],
)
def test_an_announcement_appears_unless_the_caller_shows_or_hides_the_log(
  verbosity, expected
):
  # A process of its own has logging as users have it. Its output is a pipe, as
  # in a notebook.
  given = f'logging.set_verbosity(logging.{verbosity})' if verbosity else ''
  code = f"""
from absl import logging
from maskrcnn_jax.runtime.console import announce
logging.use_absl_handler()
{given}
announce('Compiling')
announce('')  # The second line has no warning about flags before it.
logging.info('not shown by default')
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  lines = [
    re.sub(r'\d', '0', re.sub(r'^I\d.*\]', 'I', line))
    for line in done.stderr.splitlines()
  ]
  assert [line for line in lines if 'Compiling' in line] == expected
  assert ('not shown' in done.stderr) == (verbosity == 'INFO')


def test_a_message_goes_to_the_stream_of_the_time():
  # A status line replaces the stream while it is shown.
  code = """
import io, sys
from absl import logging
from maskrcnn_jax.runtime import console
with console.shown_log():
  sys.stderr = io.StringIO()
  logging.warning('above the line')
  written, sys.stderr = sys.stderr.getvalue(), sys.__stderr__
  print(written, end='')
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout.endswith(' above the line\n'), done.stderr
  assert done.stderr == ''
