"""The class table and the images of a COCO file."""

import array
from typing import Any

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings
from maskrcnn_jax.data.coco_index import (
  NUMBERS,
  SCALARS,
  Category,
  same_image,
)

# Larger images are not decoded, and no mask is made for them: the limit of
# Pillow, 537 MB as RGB.
MAX_PIXELS = 178_956_970


def read_categories(
  entries: list, name: str, report: findings.Report
) -> tuple[Category, ...]:
  """Reads the class table.

  Args:
    entries: The list of the JSON.
    name: Of the file, for messages.
    report: Gets what is wrong.
  """
  if not entries:
    report.error(
      'A23', name, '', "'categories' is empty; there is nothing to learn."
    )
  categories: list[Category] = []
  seen: dict[str, set] = {field: set() for field in Category._fields}
  for i, entry in enumerate(entries):
    where = f'category {i} of the list'
    if not isinstance(entry, dict):
      report.error('A13', name, where, 'it is not an object.')
      continue
    category = entry.get('id'), entry.get('name')
    if type(category[0]) not in (int, str) or not isinstance(category[1], str):
      report.error(
        'A13',
        name,
        where,
        f'its id is {category[0]!r} and its name {category[1]!r}; there must'
        ' be an integer or string, and a string.',
      )
      continue
    category = Category(*category)
    twice = [f for f in seen if getattr(category, f) in seen[f]]
    for field in twice:
      report.error(
        'A15',
        name,
        '',
        f'two categories have the {field} {getattr(category, field)!r}.',
      )
    if not twice:
      categories.append(category)
    for field, values in seen.items():
      values.add(getattr(category, field))
  if all(type(category.id) is int for category in categories):
    categories.sort()
  return tuple(categories)


class ImageTable:
  """The images of a file: rows of the index by id."""

  def __init__(self, name: str, report: findings.Report):
    """Starts without images.

    Args:
      name: Of the file, for messages.
      report: Gets what is wrong.
    """
    self.name = name
    self.report = report
    self.ids: list = []
    self.file_names: list[str] = []
    self.heights = array.array('i')
    self.widths = array.array('i')
    self.rows: dict = {}  # -1: an image that was left out

  def add(self, position: int, entry: Any) -> bool:
    """Adds an entry of the JSON's list; False if it is left out."""
    id_ = entry.get('id') if isinstance(entry, dict) else None
    usable = type(id_) in SCALARS and id_ == id_
    where = f'image {id_!r}' if usable else f'image {position} of the list'
    try:
      file_name, height, width = self._read(entry, id_, usable)
    except errors.InputError as error:
      self.report.error_of(self.name, where, error)
      if usable:
        self.rows.setdefault(id_, -1)
      return False
    self.rows[id_] = len(self.ids)
    self.ids.append(id_)
    self.file_names.append(file_name)
    self.heights.append(height)
    self.widths.append(width)
    return True

  def finish(self) -> None:
    """Looks at all images together."""
    first: dict[str, int] = {}
    for row, name in enumerate(self.file_names):
      other = first.setdefault(same_image(name), row)
      if other != row:
        self.report.warn(
          'A20',
          self.name,
          f'image {self.ids[row]!r}',
          f'it has the file {name} that image {self.ids[other]!r} has.',
          row=row,
        )

  def _read(self, entry: Any, id_: Any, usable: bool) -> tuple[str, int, int]:
    """Returns file name, height and width."""
    if not isinstance(entry, dict):
      raise errors.InputError('A19: it is not an object.')
    if not usable:
      raise errors.InputError(
        f'A19: it has the id {id_!r}; there must be a number or a string.'
      )
    if id_ in self.rows:
      raise errors.InputError(f'A17: two images have the id {id_!r}.')
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
      raise errors.InputError("I01: it has no 'file_name'.")
    size = entry.get('height'), entry.get('width')
    if not all(
      type(side) in NUMBERS and 0 < side < 2**31 and side == int(side)
      for side in size
    ):
      raise errors.InputError(
        f'I05: {name} has height {size[0]!r} and width {size[1]!r}; both'
        ' must be positive integers.'
      )
    height, width = map(int, size)
    if height * width > MAX_PIXELS:
      raise errors.InputError(
        f'I12: {name} has {height}x{width} pixels, more than the {MAX_PIXELS}'
        ' that can be decoded; cut or shrink it, and its annotations alike.'
        ' python -m maskrcnn_jax.check_data --fix=OUT.json leaves it out.'
      )
    return name, height, width
