"""The values that a key of a recipe may have, and how text becomes a value."""

import ast
import math
import numbers
from typing import Any, NamedTuple

# Spellings of the values of a boolean key on the command line.
TRUE_WORDS = ('true', 't', '1', 'yes', 'on')
FALSE_WORDS = ('false', 'f', '0', 'no', 'off')


class Form(NamedTuple):
  """The values that a key may have.

  Attributes:
    kind: Type of the value: bool, int, float, str or tuple.
    least: Smallest number that is allowed, also inside of a tuple.
    most: Largest number that is allowed, also inside of a tuple.
    above_least: Whether numbers must be greater than `least`, not equal to it.
    choices: All the values there are; empty if they cannot be listed.
    items: Type of the items of a tuple, in the notation of `_has_items`.
    length: For a tuple: how many items it has; None for any number.
    may_be_none: Whether None is a value of its own. A recipe may still leave
      any other key open with None, to be filled in by a fine-tuning.
    what: The end of the sentence 'give ...' in a message about a wrong value.
  """

  kind: type
  least: int | float = -math.inf
  most: int | float = math.inf
  above_least: bool = False
  choices: tuple = ()
  items: Any = None
  length: int | None = None
  may_be_none: bool = False
  what: str = ''


def text() -> Form:
  """Returns the form of a key that is any text."""
  return Form(str, what='a text')


def switch(may_be_none: bool = False) -> Form:
  """Returns the form of a key that is True or False."""
  return Form(bool, may_be_none=may_be_none, what='True or False')


def choice(*choices) -> Form:
  """Returns the form of a key that is one of a few values."""
  return Form(type(choices[0]), choices=choices)


def whole(
  least: int | float,
  most: int | float = math.inf,
  *,
  may_be_none: bool = False,
  what: str = '',
) -> Form:
  """Returns the form of a key that is a whole number in a range."""
  return Form(int, least, most, may_be_none=may_be_none, what=what)


def number(least: int | float, most: int | float = math.inf) -> Form:
  """Returns the form of a key that is a number in a range."""
  return Form(float, least, most)


def sequence(
  items,
  what: str,
  least: int | float = -math.inf,
  most: int | float = math.inf,
  *,
  above_least: bool = False,
  length: int | None = None,
  may_be_none: bool = False,
) -> Form:
  """Returns the form of a key that is a tuple.

  Args:
    items: Type of the items, as `_has_items` writes it: [float] for numbers.
    what: The end of the sentence 'give ...', with an example.
    least: Smallest number in it.
    most: Largest number in it.
    above_least: Whether numbers must be greater than `least`.
    length: How many items it has; None for any number.
    may_be_none: Whether None is a value of its own.
  """
  return Form(
    tuple,
    least,
    most,
    above_least,
    items=items,
    length=length,
    may_be_none=may_be_none,
    what=what,
  )


def problem_with(form: Form, value) -> str | None:
  """Returns a request for a right value; None if the value is right.

  Args:
    form: Of the key.
    value: Not None.
  """
  wanted = f'give {form.what}' if form.what else None
  if form.choices:
    if value in form.choices and isinstance(value, form.kind):
      return None
    return f'choose one of {", ".join(map(repr, form.choices))}'
  if form.kind in (str, bool):
    return None if isinstance(value, form.kind) else wanted
  if not _has_items(value, form.items if form.kind is tuple else form.kind):
    return wanted or f'give a {_NAMES[form.kind]}'
  values = numbers_in(value)
  # A whole number is finite, and may be too large to become a float.
  if not all(isinstance(x, int) or math.isfinite(x) for x in values):
    return (
      'all numbers must be finite'
      if form.kind is tuple
      else ('it must be a finite number')
    )
  if form.length is not None and len(value) != form.length:
    return wanted
  if form.kind is tuple:
    return _problem_with_numbers(form, values)
  if form.least <= value <= form.most:
    return None
  if wanted:
    return wanted
  if form.most == math.inf:
    return f'it must be at least {form.least}'
  return f'it must be between {form.least} and {form.most}'


def parse(form: Form, written: str):
  """Returns the value that a text on the command line stands for.

  The value is of the right type but for 'None', which gives None, and for the
  items of a tuple: `problem_with` finds those that are wrong.

  Raises:
    ValueError: If the text does not give a value of this type. The message is
      the end of a sentence that begins with the text.
  """
  if written.lower() == 'none' and form.kind is not str:
    return None
  if form.kind is str:
    return written
  if form.kind is bool:
    word = written.lower()
    if word not in TRUE_WORDS + FALSE_WORDS:
      raise ValueError('give True or False')
    return word in TRUE_WORDS
  if form.kind is tuple:
    return _parse_tuple(written)
  try:
    return form.kind(written)
  except ValueError:
    raise ValueError(
      f'give a {_NAMES[form.kind]}' + (' or None' if form.may_be_none else '')
    ) from None


def describe(form: Form) -> str:
  """Returns the values of a form in words, for the documentation."""
  if form.choices:
    words = ', '.join(f'`{choice!r}`' for choice in form.choices)
  elif form.kind is tuple:
    words = form.what
  else:
    words = {
      str: 'a text',
      bool: '`True`, `False`',
      int: 'a whole number',
      float: 'a number',
    }[form.kind]
    if form.most < math.inf:
      words += f' from {form.least} to {form.most}'
    elif form.least > -math.inf:
      words += f', at least {form.least}'
  return f'{words}, or `None`' if form.may_be_none else words


def numbers_in(value) -> list[numbers.Real]:
  """Returns the numbers in nested tuples and lists."""
  if isinstance(value, tuple | list):
    return [number for item in value for number in numbers_in(item)]
  return [value] if isinstance(value, numbers.Real) else []


_NAMES = {int: 'whole number', float: 'number'}


def _parse_tuple(written: str) -> tuple:
  """Reads a Python literal, or values with commas between them."""
  try:
    value = ast.literal_eval(written.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = tuple(written.split(','))
  return tuple(value) if isinstance(value, tuple | list) else (value,)


def _problem_with_numbers(form: Form, values: list) -> str | None:
  """Returns the fault of the numbers in a tuple, or None."""
  if form.above_least and (not values or min(values) <= form.least):
    return f'give numbers above {form.least:g}'
  if values and min(values) < form.least:
    return f'give numbers of at least {form.least:g}'
  if values and max(values) > form.most:
    return f'give {form.what}'
  return None


def _has_items(value, items) -> bool:
  """Tells whether a value has a type, item by item.

  Args:
    value: The value of a key, or one of its items.
    items: [items] for a tuple of any length, (items, items) for one of that
      length, or str, int or float.
  """
  if isinstance(items, list):
    return isinstance(value, tuple | list) and all(
      _has_items(item, items[0]) for item in value
    )
  if isinstance(items, tuple):
    return (
      isinstance(value, tuple | list)
      and len(value) == len(items)
      and all(map(_has_items, value, items))
    )
  if isinstance(value, bool):
    return False
  return isinstance(value, numbers.Integral if items is int else numbers.Real)
