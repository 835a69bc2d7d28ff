"""All hostile files of the field cases, each in a process of its own."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

GENERATORS = pathlib.Path(__file__).parents[2] / 'shared/field_cases/hostile'
# Writes the memory that a program needed, in KiB, to a file, and ends with the
# program's status; the two are its first arguments.
MEASURE = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
open(sys.argv[1], 'w').write(f'{usage.ru_maxrss} {usage.ru_utime}')
sys.exit(status)
"""
# MiB that a program may need, and seconds of computing, beside those of its
# imports. Larger files may take more seconds.
MEMORY, SECONDS, SECONDS_OF_LARGE_FILES = 500, 2, 10
LARGE = 50_000_000


class Run(NamedTuple):
  """The result of a program."""

  status: int
  output: str  # stdout and stderr
  memory: float  # MiB
  seconds: float  # of computing


def run(folder, *arguments):
  """Runs a module of the package in a folder and measures it."""
  measured = folder / 'measured'
  done = subprocess.run(
    [sys.executable, '-c', MEASURE, measured, sys.executable, '-m', *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    errors='surrogateescape',
    timeout=60,
  )
  memory, seconds = measured.read_text().split()
  output = done.stdout + done.stderr
  return Run(done.returncode, output, int(memory) / 1024, float(seconds))


def faults_of(result, file, base):
  """Returns descriptions of all that is wrong with the result of a program.

  Args:
    result: The result.
    file: The hostile file.
    base: The result for a sound file, or for one that is refused at once.
  """
  is_large = file.is_file() and os.path.getsize(file) > LARGE
  limit = SECONDS_OF_LARGE_FILES if is_large else SECONDS
  faults = []
  if result.status not in (0, 2) or 'Traceback' in result.output:
    faults.append(f'status {result.status}: {result.output[-300:]}')
  if not result.output.replace('\n', '').replace('\r', '').isprintable():
    faults.append('control characters')
  if result.memory > MEMORY:
    faults.append(f'{result.memory:.0f} MiB')
  if result.seconds - base.seconds > limit:
    faults.append(f'{result.seconds - base.seconds:.1f} s')
  return [f'{file.name!r}: {fault}' for fault in faults]


def generate(kind, folder):
  """Writes the hostile files of a kind into a folder; skips if it cannot."""
  generator = GENERATORS / f'{kind}.py'
  if not generator.exists():
    pytest.skip(f'{generator} is not there.')
  subprocess.run([sys.executable, generator, folder], check=True)


@pytest.mark.slow
def test_convert_weights_survives_all_hostile_files(tmp_path):
  generate('weights', tmp_path / 'files')
  base = run(tmp_path, 'maskrcnn_jax.convert_weights', 'none.pth', 'out')
  faults = []
  for file in sorted((tmp_path / 'files').iterdir()):
    result = run(tmp_path, 'maskrcnn_jax.convert_weights', file, 'out')
    faults += faults_of(result, file, base)
    faults += [f'{file}: converted'] if result.status == 0 else []
  assert faults == []
  # No code was run, and nothing was written.
  assert {p.name for p in tmp_path.iterdir()} == {'files', 'measured'}


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['json_files', 'images'])
def test_check_data_survives_all_hostile_files(tmp_path, kind):
  generate(kind, tmp_path / 'files')
  is_json = kind == 'json_files'
  folder = tmp_path / 'files'
  images = folder / 'images' if is_json else folder
  files = folder if is_json else folder / 'json'
  arguments = ('maskrcnn_jax.check_data', f'--images={images}', '--workers=1')
  first = sorted(files.glob('*.json'))[0]
  base = run(tmp_path, *arguments, f'--annotations={first}')
  faults = []
  for file in sorted(files.glob('*.json')):
    result = run(tmp_path, *arguments, f'--annotations={file}')
    faults += faults_of(result, file, base)
  assert faults == []
  kept = {p.name for p in tmp_path.iterdir()}
  assert kept == {'files', 'measured', 'check_data'}
