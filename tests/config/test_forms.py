"""Tests of converting the text of a command line to the value of a key."""

import pytest

from maskrcnn_jax.config.forms import (
  choice,
  number,
  parse,
  sequence,
  switch,
  text,
  whole,
)


@pytest.mark.parametrize(
  ('form', 'written', 'value'),
  [
    (text(), '2017', '2017'),
    (text(), 'None', 'None'),
    (text(), '', ''),
    (text(), 'a=b, c', 'a=b, c'),
    (choice('fp32', 'bf16'), 'bf16', 'bf16'),
    (choice(18, 50), '18', 18),
    (switch(), 'true', True),
    (switch(), 'False', False),
    (switch(), '1', True),
    (switch(may_be_none=True), 'None', None),
    (whole(0), '90_000', 90_000),
    (whole(0), '-3', -3),
    (number(0), '1', 1.0),
    (number(0), '1e-4', 1e-4),
    (sequence([int], ''), '640,800', (640, 800)),
    (sequence([int], ''), '(640, 800)', (640, 800)),
    (sequence([int], ''), '[640, 800]', (640, 800)),
    (sequence([int], ''), '640', (640,)),
    (sequence([int], ''), '()', ()),
    (sequence([(int, int)], ''), '((64, 96), (96, 64))', ((64, 96), (96, 64))),
    (sequence([(int, int)], ''), '(64,96),(96,64)', ((64, 96), (96, 64))),
    (sequence([float], ''), 'abc', ('abc',)),
    (sequence([float], ''), 'None', None),
  ],
)
def test_parse_reads_by_the_form(form, written, value):
  parsed = parse(form, written)
  assert parsed == value
  assert type(parsed) is type(value)


@pytest.mark.parametrize(
  ('form', 'written', 'message'),
  [
    (whole(1), 'abc', 'give a whole number'),
    (whole(1), '2.5', 'give a whole number'),
    (whole(1, may_be_none=True), 'x', 'give a whole number or None'),
    (number(0), 'fast', 'give a number'),
    (switch(), 'perhaps', 'give True or False'),
  ],
)
def test_parse_explains_a_wrong_text(form, written, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    parse(form, written)
