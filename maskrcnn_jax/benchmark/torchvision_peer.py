"""Runs torchvision in a process of its own, one step at a time.

In one process, the threads of torch would go on spinning after a step, for as
long as OMP_WAIT_POLICY tells them to, and take cores from JAX; and torch may
need another Python. On a CPU, the process of torchvision is stopped while this
program works.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from maskrcnn_jax.benchmark.torchvision_job import Setting
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.huge_pages import with_huge_pages


class PeerFailed(Exception):
  """The program of torchvision has ended with an error."""


class Peer(NamedTuple):
  """The running program of torchvision."""

  process: subprocess.Popen
  versions: dict[str, Any]  # torch, torchvision, and the number of threads
  stops: bool  # whether the process is stopped between two steps
  errors: pathlib.Path  # its standard error output

  def step(self, number: int) -> dict[str, Any]:
    """Makes a step; returns its figures, among them `seconds`.

    Args:
      number: Number of the step; steps take the batches in turn.

    Raises:
      PeerFailed: If the program ends instead.
    """
    if self.stops:
      self.process.send_signal(signal.SIGCONT)
    assert self.process.stdin is not None  # `started` has opened it.
    try:
      self.process.stdin.write(f'{number}\n')
      self.process.stdin.flush()
      figures = _answer(self.process, self.errors)
    except BrokenPipeError:
      raise PeerFailed(_last_line(self.errors)) from None
    if self.stops:
      self.process.send_signal(signal.SIGSTOP)
    return figures


@contextlib.contextmanager
def started(
  python: str, job: dict[str, Any], setting: Setting, folder: pathlib.Path
) -> Iterator[Peer]:
  """Context manager that starts the program of torchvision, and ends it.

  Args:
    python: A Python that has torch and torchvision.
    job: The entries of the job that do not depend on the setting.
    setting: The setting.
    folder: Folder for the files of the job.

  Raises:
    PeerFailed: If the program ends with an error.
    InputError: If torchvision cannot be imported.
  """
  chosen = setting._asdict()
  policy = chosen.pop('wait_policy')
  has_huge_pages = chosen.pop('huge_pages')
  file = folder / 'job.json'
  file.write_text(json.dumps(job | chosen), encoding='utf-8')
  environment = dict(os.environ)
  environment.pop('OMP_WAIT_POLICY', None)
  if policy:
    environment['OMP_WAIT_POLICY'] = policy
  if has_huge_pages:
    environment = with_huge_pages(environment)
  if python != sys.executable:
    # The packages of this Python do not suit another one.
    environment.pop('PYTHONPATH', None)
  # Otherwise Python looks for modules in the folder of the script, where
  # profile.py hides a module of Python that torch imports.
  environment['PYTHONSAFEPATH'] = '1'
  script = pathlib.Path(__file__).with_name('torchvision_steps.py')
  errors = folder / 'errors.txt'
  with open(errors, 'w', encoding='utf-8') as error_file:
    try:
      process = subprocess.Popen(
        [python, str(script), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=error_file,
        env=environment,
        text=True,
      )
    except OSError as error:
      raise InputError(f'--torch_python={python}: {error.strerror}.') from None
  try:
    versions = _answer(process, errors)
    if 'error' in versions:
      raise InputError(
        f'--compare=torchvision: {python} cannot run torchvision '
        f'({versions["error"]}); install torch and torchvision, or name a '
        'Python that has them with --torch_python.'
      )
    yield Peer(process, versions, job['device'] == 'cpu', errors)
  finally:
    process.kill()
    process.communicate()


def _answer(process: subprocess.Popen, errors: pathlib.Path) -> dict[str, Any]:
  """Reads the next line of the program of torchvision.

  Args:
    process: The program.
    errors: Its standard error output.

  Raises:
    PeerFailed: If there is none, because the program has ended.
  """
  assert process.stdout is not None
  line = process.stdout.readline()
  if not line:
    raise PeerFailed(_last_line(errors))
  return json.loads(line)


def _last_line(errors: pathlib.Path) -> str:
  """Returns the last line of an error output; it names a Python exception."""
  lines = errors.read_text(encoding='utf-8', errors='replace').split('\n')
  return next(
    (line.strip()[:300] for line in reversed(lines) if line.strip()),
    'torchvision ended without a message',
  )
