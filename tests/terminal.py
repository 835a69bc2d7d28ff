"""Runs a program in a pseudo-terminal and records what appears each second."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import NamedTuple

COLUMNS = 80


class Recording(NamedTuple):
  """What a program has written to its terminal.

  Attributes:
    status: The exit status of the program.
    chunks: (seconds since the start, text) of each piece that was written.
    seconds: Seconds from the start to the end of the program.
  """

  status: int
  chunks: list[tuple[float, str]]
  seconds: float


class Screen:
  """The lines of a terminal, as far as this program uses it.

  It knows the line feed, the carriage return, and the sequences that erase the
  line and that move the cursor up to the line above an empty last line. It
  ignores colors, and sequences that show or hide the cursor. It does not wrap
  long lines.

  Attributes:
    lines: The lines so far; the cursor is in the last line.
    column: The position of the cursor in this line, from 0.
  """

  def __init__(self):
    """Begins with an empty line."""
    self.lines = ['']
    self.column = 0

  def write(self, text):
    """Shows text that a program has written."""
    for part in re.findall(r'\x1b\[[?\d;]*[A-Za-z]|.', text, re.DOTALL):
      line = self.lines[-1]
      if re.fullmatch(r'\x1b.+[mhl]', part):
        continue
      if part == '\n':
        self.lines.append('')
        self.column = 0
      elif part == '\r':
        self.column = 0
      elif part == '\x1b[2K':
        self.lines[-1] = ''
      elif part == '\x1b[1A':
        assert self.lines.pop() == ''
      else:
        assert len(part) == 1, f'an unknown sequence: {part!r}'
        line = line.ljust(self.column)
        self.lines[-1] = line[: self.column] + part + line[self.column + 1 :]
        self.column += 1


def record(command, *, timeout=900, **options) -> Recording:
  """Runs a program in a pseudo-terminal of 80 columns until it ends.

  Args:
    command: The program and its arguments.
    timeout: Seconds after which the program is killed.
    **options: Options of `subprocess.Popen`, such as `cwd` and `env`.
  """
  ours, its = pty.openpty()
  fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack('HHHH', 30, COLUMNS, 0, 0))
  started = time.monotonic()
  process = subprocess.Popen(
    command, stdin=its, stdout=its, stderr=its, close_fds=True, **options
  )
  os.close(its)
  chunks = []
  try:
    while True:
      if time.monotonic() - started > timeout:
        process.kill()
      if not select.select([ours], [], [], 10)[0]:
        continue
      try:
        text = os.read(ours, 1 << 16)
      except OSError:  # The program has closed the terminal.
        break
      if not text:
        break
      chunks.append(
        (time.monotonic() - started, text.decode('utf-8', 'replace'))
      )
  finally:
    os.close(ours)
  status = process.wait()
  return Recording(status, chunks, time.monotonic() - started)


def screen_of(recording: Recording) -> Screen:
  """Returns the screen after the end of the program."""
  screen = Screen()
  for _, text in recording.chunks:
    screen.write(text)
  return screen


def silences(recording: Recording) -> list[tuple[float, float, str]]:
  """Lists the pauses in which the screen did not change.

  Returns:
    (seconds, start, text) of each pause, the longest first. The text is the
    last line of the screen that is not empty, in front of the pause.
  """
  screen, found = Screen(), []
  last, shown, text = 0.0, [''], '(nothing)'
  for at, chunk in [*recording.chunks, (recording.seconds, '')]:
    screen.write(chunk)
    if screen.lines[-2:] == shown and at != recording.seconds:
      continue
    found.append((at - last, last, text))
    last, shown = at, screen.lines[-2:]
    text = next((x for x in reversed(screen.lines) if x.strip()), '(nothing)')
  return sorted(found, reverse=True)


def describe(recording: Recording) -> str:
  """Returns what the screen showed at each second, one line or more a second.

  New lines are shown in full. The last line, in which a bar may stand, is shown
  after '>' if it is not empty.
  """
  screen, out, seen = Screen(), [], 0
  chunks = list(recording.chunks)
  for second in range(1, int(recording.seconds) + 2):
    while chunks and chunks[0][0] < second:
      screen.write(chunks.pop(0)[1])
    new = screen.lines[seen:-1]
    seen = len(screen.lines) - 1
    now = [f'> {screen.lines[-1]}'] if screen.lines[-1].strip() else []
    for line in [*new, *now] or ['']:
      out.append(f'{second:4d} s  {line}'.rstrip())
  return '\n'.join(out) + '\n'
