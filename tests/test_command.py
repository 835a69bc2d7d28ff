"""Tests of the command `maskrcnn`, __main__.py, through the command line."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from maskrcnn_jax import __main__ as command

PACKAGE = pathlib.Path(command.__file__).parent


def maskrcnn(*arguments, cwd=None):
  return subprocess.run(
    [sys.executable, '-m', 'maskrcnn_jax', *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


def test_every_tool_of_the_package_is_named():
  there = {path.parent.name for path in PACKAGE.glob('*/__main__.py')} | {
    'main',
    'data.shapes',
    'explain',
  }
  assert {module for module, _ in command.TOOLS.values()} == there


@pytest.mark.parametrize('arguments', [(), ('--help',), ('-h',)])
def test_without_a_tool_it_shows_an_overview(arguments, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['maskrcnn', *arguments])
  command.main()
  lines = capsys.readouterr().out.splitlines()
  assert all(len(line) <= 80 for line in lines)
  named = re.findall(r'^  (\w+) ', '\n'.join(lines), re.MULTILINE)
  assert named == list(command.TOOLS)


def test_the_overview_does_not_wait_for_jax():
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'maskrcnn_jax', '--help'],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  assert 'runpy' in done.stderr
  assert not {'jax', 'numpy', 'absl'} & {
    line.split()[-1] for line in done.stderr.splitlines()
  }


@pytest.mark.parametrize(
  ('typed', 'hint'),
  [
    ('chek_data', 'did you mean check_data? '),
    ('check-data', 'did you mean check_data? '),
    ('xyzzy', ''),
  ],
)
def test_a_misspelt_tool_is_one_line(typed, hint, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['maskrcnn', typed, '--images=DIR'])
  with pytest.raises(SystemExit) as exit_:
    command.main()
  assert exit_.value.code == 2
  assert capsys.readouterr().err == (
    f"error: there is no tool '{typed}'; {hint}maskrcnn --help lists all.\n"
  )


@pytest.mark.parametrize(
  'tool', ['check_data', 'convert_to_coco', 'build_tfds', 'shapes']
)
def test_help_of_a_tool_names_the_command(tool):
  done = maskrcnn(tool, '--help')
  assert done.returncode == 0
  usage, rest = done.stdout.split('\n\n', 1)
  first, *others = usage.splitlines()
  assert first.startswith(f'usage: maskrcnn {tool} [-h] ')
  indent = ' ' * len(f'usage: maskrcnn {tool} ')
  assert others
  assert all(
    line.startswith(indent) and line[len(indent)] != ' ' for line in others
  )
  assert 'python -m' not in rest
  assert '__main__' not in done.stdout


@pytest.mark.parametrize('arguments', [('main', '--help'), ('--mode=a', '-h')])
def test_help_of_the_program_is_that_of_main(arguments):
  done = maskrcnn(*arguments)
  assert done.returncode == 0
  assert '  maskrcnn main --config=' in done.stdout
  assert '--workdir' in done.stdout
  assert '--[no]resume' in done.stdout


def test_an_option_goes_to_main_and_its_status_comes_back():
  done = maskrcnn('--confg=shapes')
  assert done.returncode == 2
  assert done.stderr == (
    "error: Unknown command line flag 'confg'. Did you mean: config ?\n"
  )


def test_the_status_of_a_tool_comes_back(tmp_path):
  done = maskrcnn(
    'check_data', '--images=.', '--annotations=none.json', cwd=tmp_path
  )
  assert done.returncode == 2
  assert 'there is no file of annotations none.json' in done.stdout


def test_tools_may_start_processes(tmp_path):
  assert (
    maskrcnn(
      'shapes', 'drawn', '--train=24', '--val=1', '--size=64', cwd=tmp_path
    ).returncode
    == 0
  )
  # check_data starts worker processes only for 24 images or more.
  done = maskrcnn(
    'check_data',
    '--images=drawn/images',
    '--workers=2',
    '--out=.',
    '--annotations=drawn/instances_train.json',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert '24 images' in done.stdout
  assert 'maskrcnn_jax' not in done.stderr  # no traceback of a worker process
