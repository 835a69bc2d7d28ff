"""Compares ids of different types: 1, 1.0 and '1' are one id."""

from collections.abc import Iterable
import re
from typing import Any

from maskrcnn_jax.data.coco_index import SCALARS, Scalar, plain_id

# Text of an integer, which may end in '.0'. The count of digits is limited,
# because Python refuses to convert very long numbers.
_INTEGER = re.compile(r'([+-]?\d{1,40})(\.0*)?', re.ASCII)


class IdTable:
  """The ids of all images or categories, which can be found in other forms."""

  def __init__(self, entries: Iterable[tuple[Scalar, str]]):
    """Makes a table.

    Args:
      entries: (id, name) of each image or category. The name is the file name
        or the name of the class.
    """
    self._ids: dict[Scalar, Scalar] = {}
    # A value is `None` if it is the text of several ids.
    self._by_text: dict[str, Scalar | None] = {}
    self._by_name: dict[str, Scalar | None] = {}
    for id_, name in entries:
      self._ids.setdefault(id_, id_)
      for table, key in (
        (self._by_text, id_text(id_)),
        (self._by_name, name),
      ):
        table[key] = id_ if table.get(key, id_) == id_ else None

  def find(self, id_: Any) -> Scalar | None:
    """Returns the id of the table that another form of it means.

    Args:
      id_: The id that an annotation has, any JSON value. Besides another type,
        it may be the name instead of the id, or a list of one id.

    Returns:
      The id as in the table. `None` if no id or more than one id fits.
    """
    if isinstance(id_, list) and len(id_) == 1:
      id_ = id_[0]
    if type(id_) not in SCALARS:
      return None
    if id_ in self._ids:
      return self._ids[id_]
    found = self._by_text.get(id_text(id_))
    if found is None and isinstance(id_, str):
      found = self._by_name.get(id_)
    return found


def id_text(id_: Scalar) -> str:
  """Returns an id as text; 1, 1.0, '1', '01' and '1.0' give the same."""
  text = str(plain_id(id_)).strip()
  number = _INTEGER.fullmatch(text)
  return str(int(number[1])) if number else text
