"""Tests of errors.py: the table of codes against package and documentation."""

import pathlib
import re

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings

ROOT = pathlib.Path(__file__).parents[1]

# A code as messages have it, 'A01: ...', or as a string by itself.
CODE = re.compile(r"\b([AIC]\d\d)(?=: |')")
# Dtypes of safetensors.
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
    assert not any('|' in text or '\n' in text for text in row), code


def test_the_documentation_is_that_of_the_table():
  written = (ROOT / 'docs' / 'error_codes.md').read_text()
  assert written == errors.as_markdown(), (
    'run python -m maskrcnn_jax.errors > docs/error_codes.md'
  )
  for code in errors.CODES:
    assert written.count(f'\n| {code} | ') == 1


def test_the_codes_of_data_keep_their_meaning():
  assert findings.MEANINGS['A01'] == 'box without area'
  assert findings.MEANINGS['I15'] == 'file name leads out of the folder'
  assert {code[0] for code in findings.MEANINGS} == {'A', 'I'}
