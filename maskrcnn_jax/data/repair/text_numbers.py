"""Reads numbers and lists that a JSON file holds as text."""

import json
import math
import re
from typing import Any

# The count of digits is limited, because Python refuses to convert very long
# integers.
_NUMBER = re.compile(r'[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})(e[+-]?\d{1,3})?')


def to_number(value: Any) -> int | float | None:
  """Returns the finite number that a JSON value is, also if it is text.

  Args:
    value: Any JSON value.

  Returns:
    A number as it is, and 3 for '3', 3.5 for ' 3.5 '. `None` for any other
    value, for NaN, and for infinite numbers.
  """
  if isinstance(value, str):
    text = value.strip().lower()
    if len(text) > 100 or not text.isascii() or not _NUMBER.fullmatch(text):
      return None
    value = float(text)
    if value.is_integer() and abs(value) < 2**53:
      value = int(value)
  if type(value) is int:
    return value
  return value if type(value) is float and math.isfinite(value) else None


def parsed_text(value: Any) -> Any:
  """Returns the list or object that a text holds as JSON.

  Args:
    value: Any JSON value. It is returned as it is if it is not such a text.
  """
  if isinstance(value, str) and value.strip()[:1] in ('[', '{'):
    try:
      return json.loads(value)
    except (ValueError, RecursionError):
      pass
  return value
