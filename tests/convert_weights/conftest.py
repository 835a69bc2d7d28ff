"""Fixtures that run the tool as the command line does."""

import sys

import pytest

from maskrcnn_jax.convert_weights import command_line


@pytest.fixture
def run(monkeypatch, capsys):
  """Returns a function that runs the tool in this process with arguments.

  The function returns the exit status, stdout and stderr.
  """

  def run_with(*arguments):
    monkeypatch.setattr(sys, 'argv', ['convert', *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
      command_line.run()
    out, err = capsys.readouterr()
    assert 'Traceback' not in err
    return exit_.value.code, out, err

  return run_with


@pytest.fixture
def refuse(run, tmp_path):
  """Returns a function that runs the tool with arguments that it must refuse.

  The function returns the single line of the error message.
  """

  def refuse_with(*arguments):
    code, _, err = run(*arguments)
    assert code == 2
    line, *more = err.splitlines()
    assert len(more) <= 1  # The command that explains a code.
    assert line.startswith('error: ')
    return line

  return refuse_with
