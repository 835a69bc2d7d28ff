"""Damaged annotation files must end in a clear message or a correct report."""

import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name('fuzz_coco.py')


@pytest.mark.parametrize(
  'seed', [pytest.param(i, marks=pytest.mark.slow) for i in range(20)]
)
def test_check_data_survives_a_hundred_damaged_files(tmp_path, seed):
  folder = tmp_path / 'data'
  folder.mkdir()
  done = subprocess.run(
    [sys.executable, str(PROGRAM), str(seed), str(folder)],
    capture_output=True,
    text=True,
    # A program that waits computes nothing, so the limit of the program itself
    # does not end it.
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout == 'done\n'
