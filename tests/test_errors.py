"""Tests of the table of error codes and of its two explanations."""

import pathlib
import re
import subprocess
import sys

import pytest

from maskrcnn_jax import errors, explain
from maskrcnn_jax.data import findings

ROOT = pathlib.Path(__file__).parents[1]

# A code in a message, 'A01: ...', or as a string by itself.
CODE = re.compile(r"\b([AIC]\d\d)(?=: |')")
# Names of dtypes in safetensors files that look like codes.
NO_CODES = {'I16', 'I32', 'I64'}


def test_the_table_has_every_code_of_the_package_and_no_other():
  table = ROOT / 'maskrcnn_jax' / 'errors.py'
  used = {
    code
    for path in (ROOT / 'maskrcnn_jax').rglob('*.py')
    if path != table
    for code in CODE.findall(path.read_text())
  }
  assert used - NO_CODES == set(errors.CODES)


def test_codes_are_in_order_and_complete():
  for letter in 'AIC':
    codes = [code for code in errors.CODES if code[0] == letter]
    assert codes == sorted(codes)
  for code, row in errors.CODES.items():
    assert all(row), code
    assert len(row.meaning) <= 60, code
    assert not any('\n' in text for text in row), code
    # Cause and remedy are sentences.
    for text in (row.cause, row.remedy):
      assert text[0] in '`' or text[0].isupper(), code
      assert text.endswith('.'), code


def test_the_documentation_is_that_of_the_table():
  written = (ROOT / 'docs' / 'error_codes.md').read_text()
  assert written == explain.as_markdown(), (
    'run python -m maskrcnn_jax.explain > docs/error_codes.md'
  )
  for code in errors.CODES:
    # The anchor of this heading is #a01 for A01.
    assert written.count(f'\n### {code}\n') == 1


def test_the_codes_of_data_keep_their_meaning():
  assert findings.MEANINGS['A01'] == 'box without area'
  assert findings.MEANINGS['I15'] == 'file name leads out of the folder'
  assert {code[0] for code in findings.MEANINGS} == {'A', 'I'}


@pytest.mark.parametrize(
  ('message', 'code'),
  [
    ('A07: segmentation is a flat list.', 'A07'),
    ('val.json: annotation 3: A14: image_id 8 is no image.', 'A14'),
    ('C10: cannot write to A01/x.', 'C10'),
    ('A08: there is no such code.', None),
    ('--workdir=DIR is missing.', None),
  ],
)
def test_print_error_names_the_command_that_explains_a_code(
  message, code, capsys
):
  errors.print_error(message)
  out, err = capsys.readouterr()
  lines = [f'error: {message}']
  if code:
    lines.append(
      f'For more about {code}: python -m maskrcnn_jax.explain {code}'
    )
  assert (out, err.splitlines()) == ('', lines)


@pytest.mark.parametrize('code', errors.CODES)
def test_explain_prints_cause_and_remedy(code, capsys):
  assert explain.main([code.lower()]) == 0
  text = capsys.readouterr().out
  assert all(len(line) <= 80 for line in text.splitlines())
  words = ' '.join(text.split())
  for part in errors.CODES[code]:
    assert ' '.join(part.split()) in words
  # Whoever reads only this text learns which program has the option --fix.
  assert ('--fix' in errors.CODES[code].remedy) == (
    'check_data --images' in text
  )


def test_explain_refuses_an_unknown_code(capsys):
  assert explain.main(['A99']) == 2
  assert "error: there is no code 'A99'" in capsys.readouterr().err


def test_explain_without_a_code_prints_the_page(capsys):
  assert explain.main([]) == 0
  assert capsys.readouterr().out == explain.as_markdown()


def test_the_command_in_a_message_explains_its_code(tmp_path):
  def run(*arguments):
    return subprocess.run(
      [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
    )

  failed = run(
    '-m',
    'maskrcnn_jax.main',
    '--config=shapes',
    f'--workdir={tmp_path}',
    '--config.train.batch_size=0',
  )
  assert failed.returncode == 2
  error, hint = failed.stderr.splitlines()
  assert error.startswith('error: C05: config.train.batch_size is 0; ')
  command = hint.partition(': python ')[2].split()
  done = run(*command)
  assert done.returncode == 0
  assert done.stdout.startswith('C05: recipe key unknown or value wrong\n')
  # The command `maskrcnn` has the same tool.
  assert run('-m', 'maskrcnn_jax', 'explain', 'C05').stdout == done.stdout
