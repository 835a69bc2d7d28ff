"""Tests of `huge_pages.py`: a program starts again with huge pages."""

import os
import subprocess
import sys

import pytest

from maskrcnn_jax.runtime import huge_pages

# Prints how often it was started, its value of GLIBC_TUNABLES, the number of
# its process, its arguments and the huge pages of a large array, in kB.
PROGRAM = """
import os, pathlib, sys
from maskrcnn_jax.runtime import huge_pages

policy = pathlib.Path(sys.argv[1])
huge_pages._POLICY = policy
with open(sys.argv[2], 'a') as file:
  print(os.getpid(), file=file)
huge_pages.restart_with_huge_pages()
import numpy as np

block = np.ones(2**24)
lines = pathlib.Path('/proc/self/smaps_rollup').read_text().splitlines()
huge = next(line for line in lines if line.startswith('AnonHugePages'))
print(os.environ.get('GLIBC_TUNABLES'), sys.argv[3:], huge.split()[1])
"""


def run_program(tmp_path, *, policy, name='maskrcnn', **environment):
  """Runs the program above; returns what it printed and its process numbers.

  Args:
    tmp_path: Folder for the files of the program.
    policy: Text of the file that says which programs get huge pages.
    name: Name of the program's file.
    environment: Further variables of the environment.
  """
  file = tmp_path / 'policy'
  file.write_text(policy)
  starts = tmp_path / 'starts'
  starts.unlink(missing_ok=True)
  program = tmp_path / name
  program.write_text(PROGRAM)
  clean = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  done = subprocess.run(
    [sys.executable, program, str(file), str(starts), 'a b', '--c=$d'],
    env=clean | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.strip(), starts.read_text().split()


@pytest.fixture
def on_glibc():
  """Skips the test if the C library does not know the tunable."""
  if not huge_pages._would_help():
    pytest.skip('The system gives no huge pages to programs that ask for them.')


def test_the_program_starts_again_once_with_the_same_arguments(
  tmp_path, on_glibc
):
  printed, starts = run_program(tmp_path, policy='always [madvise] never\n')
  first, second = starts
  assert first == second
  assert printed.startswith("None ['a b', '--c=$d'] ")
  # The array has 128 MiB.
  assert int(printed.split()[-1]) > 100_000


def test_other_tunables_are_kept(tmp_path, on_glibc):
  tunables = 'glibc.malloc.arena_max=3'
  printed, starts = run_program(
    tmp_path, policy='always [madvise] never\n', GLIBC_TUNABLES=tunables
  )
  assert len(starts) == 2
  assert printed.startswith(tunables)


def test_another_program_is_not_started_again(tmp_path):
  printed, starts = run_program(
    tmp_path, policy='always [madvise] never\n', name='notebook.py'
  )
  assert len(starts) == 1
  assert printed.startswith('None')


@pytest.mark.parametrize(
  'arguments',
  [
    ['-m', 'maskrcnn_jax.main', '--mode=eval'],
    ['-u', '-mmaskrcnn_jax'],
    ['-m', 'cProfile', '-m', 'maskrcnn_jax.main'],
    ['/opt/bin/maskrcnn', 'plan'],
  ],
)
def test_commands_of_this_package_are_recognised(arguments, monkeypatch):
  monkeypatch.setattr(sys, 'orig_argv', ['python', *arguments])
  assert huge_pages._is_own_process()
  other = ['python', '-c', 'import maskrcnn_jax', 'runs/maskrcnn']
  monkeypatch.setattr(sys, 'orig_argv', other)
  assert not huge_pages._is_own_process()
  monkeypatch.setattr(sys, 'orig_argv', ['python'])
  assert not huge_pages._is_own_process()


@pytest.mark.parametrize(
  ('policy', 'tunables'),
  [
    ('[always] madvise never\n', {}),
    ('always madvise [never]\n', {}),
    (
      'always [madvise] never\n',
      {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'},
    ),
  ],
)
def test_nothing_happens_if_it_would_not_help(tmp_path, policy, tunables):
  printed, starts = run_program(tmp_path, policy=policy, **tunables)
  assert len(starts) == 1
  assert printed.startswith(str(tunables.get('GLIBC_TUNABLES')))


def test_an_older_or_another_c_library_is_recognised(tmp_path, monkeypatch):
  policy = tmp_path / 'policy'
  policy.write_text('always [madvise] never\n')
  monkeypatch.setattr(huge_pages, '_POLICY', policy)

  def library(name):
    monkeypatch.setattr(os, 'confstr', lambda _: name, raising=False)
    return huge_pages._would_help()

  assert library('glibc 2.35')
  assert library('glibc 2.41')
  assert not library('glibc 2.34')
  assert not library(None)
  monkeypatch.setattr(huge_pages, '_POLICY', tmp_path / 'missing')
  assert not library('glibc 2.35')


def test_a_process_that_cannot_start_again_goes_on(tmp_path, monkeypatch):
  policy = tmp_path / 'policy'
  policy.write_text('always [madvise] never\n')
  monkeypatch.setattr(huge_pages, '_POLICY', policy)
  monkeypatch.setattr(os, 'confstr', lambda _: 'glibc 2.36', raising=False)
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'maskrcnn_jax.main'])
  monkeypatch.delenv('GLIBC_TUNABLES', raising=False)
  calls = []

  def fails(*arguments):
    calls.append(arguments)
    raise OSError('there is no memory')

  monkeypatch.setattr(os, 'execve', fails)
  huge_pages.restart_with_huge_pages()
  ((_, arguments, environment),) = calls
  assert arguments[1:3] == ['-X', 'huge_pages']
  assert environment['GLIBC_TUNABLES'] == 'glibc.malloc.hugetlb=1'
  assert 'GLIBC_TUNABLES' not in os.environ
