"""Defines the values that a key may have, and converts text to such values."""

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
    above_least: Whether the numbers in a tuple must be greater than `least`;
      otherwise they may be equal to it.
    choices: The allowed values; empty if they cannot be listed.
    items: For a tuple: types of its items. [float] is any number of floats,
      [(int, int)] any number of pairs.
    length: For a tuple: number of its items; `None` if any number is allowed.
    may_be_none: Whether `None` is a value with a meaning. A recipe of a
      fine-tuning may also leave other keys open by setting them to `None`.
    wanted: The allowed values in words. Messages about a wrong value end with
      'give ' and this text. It may be empty for a number.
    several: For a text: whether a tuple of texts is allowed too.
  """

  kind: type
  least: int | float = -math.inf
  most: int | float = math.inf
  above_least: bool = False
  choices: tuple[int | str, ...] = ()
  items: Any = None
  length: int | None = None
  may_be_none: bool = False
  wanted: str = ''
  several: bool = False


def text() -> Form:
  """Returns the form of a key whose value is any text."""
  return Form(str, wanted='a text')


def texts() -> Form:
  """Returns the form of a key whose value is a text or a tuple of texts.

  The tuple must not be empty, and none of its texts may be.
  """
  return Form(str, wanted='a text, or a tuple of texts', several=True)


def switch(may_be_none: bool = False) -> Form:
  """Returns the form of a key whose value is True or False.

  Args:
    may_be_none: Whether `None` is a value with a meaning too.
  """
  return Form(bool, may_be_none=may_be_none, wanted='True or False')


def choice(*choices: int | str) -> Form:
  """Returns the form of a key whose value is one of a few listed values."""
  return Form(type(choices[0]), choices=choices)


def whole(
  least: int | float,
  most: int | float = math.inf,
  *,
  may_be_none: bool = False,
  wanted: str = '',
) -> Form:
  """Returns the form of a key whose value is a whole number.

  Args:
    least: Smallest number that is allowed.
    most: Largest number that is allowed.
    may_be_none: Whether `None` is a value with a meaning too.
    wanted: The allowed values in words, for a message that begins with 'give '.
      By default the message names the range.
  """
  return Form(int, least, most, may_be_none=may_be_none, wanted=wanted)


def number(least: int | float, most: int | float = math.inf) -> Form:
  """Returns the form of a key whose value is a number in a range."""
  return Form(float, least, most)


def sequence(
  items: Any,
  wanted: str,
  least: int | float = -math.inf,
  most: int | float = math.inf,
  *,
  above_least: bool = False,
  length: int | None = None,
  may_be_none: bool = False,
) -> Form:
  """Returns the form of a key whose value is a tuple.

  Args:
    items: Types of the items: [float] for any number of floats, [(int, int)]
      for any number of pairs.
    wanted: The allowed values in words, with an example, for a message that
      begins with 'give '.
    least: Smallest number that is allowed in the tuple.
    most: Largest number that is allowed in the tuple.
    above_least: Whether the numbers must be greater than `least`; otherwise
      they may be equal to it.
    length: Number of items; `None` if any number is allowed.
    may_be_none: Whether `None` is a value with a meaning too.
  """
  return Form(
    tuple,
    least,
    most,
    above_least,
    items=items,
    length=length,
    may_be_none=may_be_none,
    wanted=wanted,
  )


def problem_with(form: Form, value: Any) -> str | None:
  """Checks a value of a key.

  Args:
    form: The values that the key may have.
    value: The value to check, not `None`.

  Returns:
    `None` if the value is allowed, otherwise a clause that names the allowed
    values, such as 'it must be at least 1'.
  """
  request = f'give {form.wanted}' if form.wanted else None
  if form.choices:
    if value in form.choices and isinstance(value, form.kind):
      return None
    return f'choose one of {", ".join(map(repr, form.choices))}'
  if form.several and isinstance(value, tuple | list):
    is_allowed = value and all(isinstance(x, str) and x for x in value)
    return None if is_allowed else request
  if form.kind in (str, bool):
    return None if isinstance(value, form.kind) else request
  if not _has_items(value, form.items if form.kind is tuple else form.kind):
    return request or f'give a {_NAMES[form.kind]}'
  values = numbers_in(value)
  # A whole number of Python is always finite, and math.isfinite fails if it is
  # too large for a float.
  if not all(isinstance(x, int) or math.isfinite(x) for x in values):
    return (
      'all numbers must be finite'
      if form.kind is tuple
      else 'it must be a finite number'
    )
  if form.length is not None and len(value) != form.length:
    return request
  if form.kind is tuple:
    return _problem_with_numbers(form, values)
  if form.least <= value <= form.most:
    return None
  if request:
    return request
  if form.most == math.inf:
    return f'it must be at least {form.least}'
  return f'it must be between {form.least} and {form.most}'


def may_have_type(form: Form, value: Any) -> bool:
  """Tells whether a value has a type that the key may have, in any range.

  `None` may stand for the value of any key, as in an open recipe of a
  fine-tuning.
  """
  free = form._replace(
    least=-math.inf, most=math.inf, above_least=False, choices=(), length=None
  )
  return value is None or problem_with(free, value) is None


def parse(form: Form, written: str) -> Any:
  """Converts a text of the command line to a value of a key.

  The value has the type `form.kind`, or is a tuple of texts for a key that may
  have several. Except for a key whose value is a text, the text 'None' in any
  case of letters becomes `None`. The range of the value and the items of a
  tuple are not checked here but by `problem_with`.

  Args:
    form: The values that the key may have.
    written: The text.

  Raises:
    ValueError: If the text cannot be converted to this type. The message is a
      clause such as 'give a whole number'.
  """
  if written.lower() == 'none' and form.kind is not str:
    return None
  if form.kind is str:
    return _parse_texts(written) if form.several else written
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
  """Describes the allowed values in words, for docs/recipe_keys.md."""
  if form.choices:
    words = ', '.join(f'`{choice!r}`' for choice in form.choices)
  elif form.kind is tuple:
    words = form.wanted
  else:
    words = {
      str: form.wanted,
      bool: '`True`, `False`',
      int: 'a whole number',
      float: 'a number',
    }[form.kind]
    if form.most < math.inf:
      words += f' from {form.least} to {form.most}'
    elif form.least > -math.inf:
      words += f', at least {form.least}'
  return f'{words}, or `None`' if form.may_be_none else words


def numbers_in(value: Any) -> list[numbers.Real]:
  """Returns all numbers in a value: a number, or nested tuples and lists."""
  if isinstance(value, tuple | list):
    return [number for item in value for number in numbers_in(item)]
  return [value] if isinstance(value, numbers.Real) else []


_NAMES = {int: 'whole number', float: 'number'}


def _parse_tuple(written: str) -> tuple[Any, ...]:
  """Converts '(640, 800)', '640,800' or 'a,b' to a tuple.

  A text that is not a Python literal is split at the commas.
  """
  value: Any
  try:
    value = ast.literal_eval(written.strip())
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = tuple(written.split(','))
  return tuple(value) if isinstance(value, tuple | list) else (value,)


def _parse_texts(written: str) -> str | tuple[str, ...]:
  """Converts '(a,b)' or "('a', 'b')" to a tuple; other texts stay as they are.

  Only a text in parentheses that has a comma is converted, because the name of
  a file may have a comma too.
  """
  inside = written.strip()
  if not (inside.startswith('(') and inside.endswith(')') and ',' in inside):
    return written
  try:
    value = ast.literal_eval(inside)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
    value = None
  if isinstance(value, tuple) and all(isinstance(x, str) for x in value):
    return value
  items = [item.strip() for item in inside[1:-1].split(',')]
  return tuple(items if items[-1] else items[:-1])


def _problem_with_numbers(form: Form, values: list[numbers.Real]) -> str | None:
  """Checks the range of all numbers in a tuple.

  Args:
    form: The values that the key may have.
    values: The numbers in the tuple, at every depth.

  Returns:
    `None` if they are allowed, otherwise a clause that names the allowed range.
  """
  if form.above_least and (not values or min(values) <= form.least):
    return f'give numbers above {form.least:g}'
  if values and min(values) < form.least:
    return f'give numbers of at least {form.least:g}'
  # Written with <=, because the type Real has no >.
  if values and not max(values) <= form.most:
    return f'give {form.wanted}'
  return None


def _has_items(value: Any, items: Any) -> bool:
  """Tells whether a value is a number, or a nested tuple of numbers, as wanted.

  Args:
    value: The value of a key, or an item of such a value. Lists count as
      tuples.
    items: int or float for a number; [items] for a tuple of any length whose
      items are all of that kind; (items, items) for a tuple of that length.
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
