"""Converts damaged annotations of every format."""

import pathlib
import subprocess
import sys

import pytest

WORKER = pathlib.Path(__file__).with_name('converter_fuzzing.py')

# Files for each process.
COUNT = 100


@pytest.mark.slow
@pytest.mark.parametrize('first', range(0, 2000, COUNT))
def test_no_damaged_file_ends_in_a_traceback(first, tmp_path):
  done = subprocess.run(
    [sys.executable, WORKER, tmp_path / 'fuzz', str(first), str(COUNT)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr
  # Some files must be good enough to be converted.
  converted = int(done.stdout.splitlines()[-1].split()[0])
  assert COUNT // 3 < converted < COUNT
