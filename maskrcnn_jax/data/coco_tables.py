"""Reads the class table and the table of images of a COCO file."""

import array
from typing import Any, NamedTuple
import urllib.parse

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings
from maskrcnn_jax.data.coco_index import (
  NUMBERS,
  SCALARS,
  Category,
  Scalar,
  normal_file_name,
  plain_id,
)

# Pillow refuses to decode larger images; this many pixels take 537 MB as RGB.
# The limit also bounds the masks that are made for an image.
MAX_PIXELS = 178_956_970


class Classes(NamedTuple):
  """The class table of a file, and its entries that were left out."""

  categories: tuple[Category, ...]
  left_out: frozenset[Any]  # ids of the entries that were left out
  # Whether an entry had no usable id, or that of another entry, so that
  # annotations of unknown categories may belong to it.
  has_lost_ids: bool


def read_categories(
  entries: list[Any],
  name: str,
  report: findings.Report,
  *,
  used_ids: set[Any],
  may_be_empty: bool = False,
) -> Classes:
  """Reads the class table of a COCO file and reports wrong categories.

  Args:
    entries: The elements of the list `categories` of the JSON.
    name: Name of the file, for messages.
    report: Receives the errors and warnings.
    used_ids: The category ids of the annotations.
    may_be_empty: Whether a file without categories is accepted.

  Returns:
    The valid categories: sorted by id if all ids are integers, otherwise in the
    order of the file; and the ids of the others.
  """
  if not entries and not may_be_empty:
    report.error('A23', name, '', "'categories' is empty; it has no class.")
  categories: list[Category] = []
  left_out: set[Any] = set()
  has_lost_ids = False
  seen_ids: set[int | str] = set()
  seen_names: set[str] = set()
  roots = _unused_roots(entries, used_ids)
  for i, entry in enumerate(entries):
    where = f'category {i} of the list'
    if not isinstance(entry, dict):
      report.error('A13', name, where, 'it is not an object.')
      has_lost_ids = True
      continue
    id_: Any = plain_id(entry.get('id'))
    category_name = entry.get('name')
    if type(category_name) in NUMBERS:
      category_name = str(category_name)
      report.warn(
        'A13', name, where, f'its name is a number; taken as {category_name!r}.'
      )
    if type(id_) not in (int, str) or not isinstance(category_name, str):
      report.error(
        'A13',
        name,
        where,
        f'its id is {id_!r} and its name is {category_name!r}; the id must be'
        ' an integer or a string, and the name a string.',
      )
      if type(id_) in SCALARS:
        left_out.add(id_)
      else:
        has_lost_ids = True
      continue
    if i in roots:
      report.warn(
        'A15',
        name,
        f'category {id_!r}',
        f'it is left out: it has no annotations, its name {category_name!r} is'
        ' the supercategory of others, and another category has the same'
        ' name.',
      )
      left_out.add(id_)
      continue
    category = Category(id_, category_name)
    if id_ in seen_ids:
      report.error('A15', name, '', f'two categories have the id {id_!r}.')
      has_lost_ids = True
    if category_name in seen_names:
      report.error(
        'A15', name, '', f'two categories have the name {category_name!r}.'
      )
    if id_ in seen_ids or category_name in seen_names:
      left_out.add(id_)
    else:
      categories.append(category)
    seen_ids.add(id_)
    seen_names.add(category_name)
  if all(type(category.id) is int for category in categories):
    categories.sort()
  return Classes(tuple(categories), frozenset(left_out), has_lost_ids)


def _unused_roots(entries: list[Any], used_ids: set[Any]) -> set[int]:
  """Finds categories that only group others and have the name of another.

  Roboflow writes a category of the name of the project without annotations, of
  which all others are parts. If a class has the same name, only one can stay.

  Args:
    entries: The elements of the list `categories` of the JSON.
    used_ids: The category ids of the annotations.

  Returns:
    The positions of such categories in the list.
  """
  names = [
    entry['name']
    for entry in entries
    if isinstance(entry, dict) and isinstance(entry.get('name'), str)
  ]
  if len(set(names)) == len(names):
    return set()
  same_name: dict[str, list[int]] = {}
  supercategories: dict[str, set[int]] = {}
  for i, entry in enumerate(entries):
    if isinstance(entry, dict) and isinstance(entry.get('name'), str):
      same_name.setdefault(entry['name'], []).append(i)
      if isinstance(entry.get('supercategory'), str):
        supercategories.setdefault(entry['supercategory'], set()).add(i)
  roots: set[int] = set()
  for name, positions in same_name.items():
    # A class of its own supercategory is rather a class than the group.
    positions.sort(key=lambda i: entries[i].get('supercategory') == name)
    for i in positions[: len(positions) - 1]:
      id_ = entries[i].get('id')
      if (
        type(id_) in (int, str)
        and id_ not in used_ids
        and supercategories.get(name, set()) - {i}
      ):
        roots.add(i)
  return roots


def file_name_of(entry: dict[str, Any]) -> str:
  """Returns the file name of an image of a COCO file, '' if it has none.

  LVIS gives the address of each image instead, of which the file name is the
  end.

  Args:
    entry: An element of the list of images.
  """
  name = entry.get('file_name')
  if name is None and isinstance(entry.get('coco_url'), str):
    address = entry['coco_url'].partition('?')[0].partition('#')[0]
    name = urllib.parse.unquote(address.rpartition('/')[2])
  return name if isinstance(name, str) else ''


class ImageTable:
  """The images of a COCO file, collected one by one.

  Attributes:
    name: Name of the file, for messages.
    report: Receives the errors and warnings.
    ids: Image ids as in the file. Position i of this list and of the three
      following ones describes row i of the index.
    file_names: File names as in the file.
    heights: Heights in pixels.
    widths: Widths in pixels.
    rows: {image id: row of the index}. The row is -1 for an image that was left
      out.
    has_lost_ids: Whether an image was left out because it has no usable id, or
      that of another image, so that annotations of unknown images may belong to
      it.
  """

  def __init__(self, name: str, report: findings.Report):
    """Makes a table without images.

    Args:
      name: Name of the file, for messages.
      report: Receives the errors and warnings.
    """
    self.name = name
    self.report = report
    self.ids: list[Scalar] = []
    self.file_names: list[str] = []
    self.heights = array.array('i')
    self.widths = array.array('i')
    self.rows: dict[Scalar, int] = {}
    self.has_lost_ids = False

  def add(self, position: int, entry: Any) -> bool:
    """Adds one element of the list of images, or reports its error.

    Args:
      position: Index of the element in the list.
      entry: The element as the JSON parser returned it.

    Returns:
      Whether the image was added. False means that it is left out.
    """
    id_: Any = entry.get('id') if isinstance(entry, dict) else None
    is_usable = type(id_) in SCALARS and id_ == id_  # NaN is not equal to NaN
    where = f'image {id_!r}' if is_usable else f'image {position} of the list'
    is_repeated = is_usable and id_ in self.rows
    try:
      file_name, height, width = self._read(entry, id_, is_usable)
    except errors.InputError as error:
      self.report.error_from_exception(self.name, where, error)
      if is_usable:
        # If two images have the id, it is not clear which of them an annotation
        # belongs to, and none is checked against the wrong one.
        self.rows[id_] = -1
      self.has_lost_ids |= not is_usable or is_repeated
      return False
    self.rows[id_] = len(self.ids)
    self.ids.append(id_)
    self.file_names.append(file_name)
    self.heights.append(height)
    self.widths.append(width)
    return True

  def finish(self) -> None:
    """Warns of each image whose file an earlier image has too."""
    first: dict[str, int] = {}
    for row, name in enumerate(self.file_names):
      other = first.setdefault(normal_file_name(name), row)
      if other != row:
        self.report.warn(
          'A20',
          self.name,
          f'image {self.ids[row]!r}',
          f'its file {name} is also the file of image {self.ids[other]!r}.',
          row=row,
        )

  def _read(
    self, entry: Any, id_: Any, is_usable: bool
  ) -> tuple[str, int, int]:
    """Checks an element of the list; returns its file name, height and width.

    Args:
      entry: The element as the JSON parser returned it.
      id_: Id of the image, `None` if it has none.
      is_usable: Whether the id has a type that an id may have.

    Raises:
      InputError: If a value is wrong. The message begins with the code.
    """
    if not isinstance(entry, dict):
      raise errors.InputError('A19: it is not an object.')
    if not is_usable:
      raise errors.InputError(
        f'A19: its id is {id_!r}; it must be a number or a string.'
      )
    if id_ in self.rows:
      raise errors.InputError(f'A17: two images have the id {id_!r}.')
    name = file_name_of(entry)
    if not name:
      raise errors.InputError("I01: it has no 'file_name'.")
    sides: list[Any] = [entry.get('height'), entry.get('width')]
    if not all(
      type(side) in NUMBERS and 0 < side < 2**31 and side == int(side)
      for side in sides
    ):
      raise errors.InputError(
        f'I05: {name} has height {sides[0]!r} and width {sides[1]!r}; both'
        ' must be positive integers.'
      )
    height, width = map(int, sides)
    if height * width > MAX_PIXELS:
      raise errors.InputError(
        f'I12: {name} has {height}x{width} pixels, more than the {MAX_PIXELS}'
        ' that can be decoded; cut or shrink it together with its annotations.'
        ' python -m maskrcnn_jax.check_data says what --fix=OUT.json would'
        ' keep without such images.'
      )
    return name, height, width
