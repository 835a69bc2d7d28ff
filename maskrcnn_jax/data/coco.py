"""Reads COCO annotation files into the index, and explains unsuitable files."""

from collections.abc import Callable, Iterable, Iterator
import functools
import os
import pathlib
import shlex
from typing import Any

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings, json_stream, mask_values
from maskrcnn_jax.data.coco_index import Category, CocoIndex, normal_file_name
from maskrcnn_jax.data.coco_objects import ObjectColumns
from maskrcnn_jax.data.coco_tables import ImageTable, read_categories
from maskrcnn_jax.data.image_files import case_hint

_LISTS = 'images', 'annotations', 'categories'

# {Python type of a JSON value: its name in messages}; other types are numbers.
_JSON_TYPES = {
  'dict': 'an object whose values are no objects',
  'str': 'a text',
  'NoneType': 'null',
  'bool': 'a truth value',
}

# Yields the elements of a JSON document as `json_stream.walk` does. It can be
# called more than once.
Walk = Callable[[], Iterable[tuple[str | None, int, Any]]]


def read_coco(
  path: str | pathlib.Path,
  *,
  require_masks: bool = True,
  require_annotations: bool = True,
  width_offset: float = 0.0,
  report: findings.Report | None = None,
) -> CocoIndex:
  """Reads and checks a COCO instances file.

  Args:
    path: The JSON file.
    require_masks: Whether to leave out objects without a segmentation. Crowd
      regions may lack it, because they are not trained on.
    require_annotations: Whether to refuse a file without the lists
      `annotations` and `categories`. Images in which objects are only detected
      need none.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box. With 1, a box that is only one pixel wide or high
      has no area and is left out.
    report: Receives the errors and warnings. If it is `None`, the first error
      is raised and warnings are dropped.

  Returns:
    The images in the order of the file, and the objects sorted by image; the
    objects of an image keep the order of the file. Classes are sorted by
    category id if all ids are integers, and have the order of the file
    otherwise. Images and objects with an error are left out.

  Raises:
    InputError: If the file is not COCO. Without a report also if the file
      contradicts itself, or if too many objects have the same one of the
      faults A01, A02, A05 and A06, for which objects are left out.
  """
  path = pathlib.Path(path)
  return _index(
    functools.partial(json_stream.walk, path),
    str(path),
    report or findings.Report(stop=True),
    require_masks,
    require_annotations,
    width_offset,
  )


def index_coco(
  content: dict[str, Any],
  name: str,
  *,
  require_masks: bool = True,
  require_annotations: bool = True,
  width_offset: float = 0.0,
  report: findings.Report | None = None,
) -> CocoIndex:
  """Makes the index of COCO annotations that are in memory already.

  Args:
    content: The JSON document. The elements of its list of annotations are
      replaced by None while they are read, to save memory.
    name: Name of the document, for messages.
    require_masks: Whether to leave out objects without a segmentation.
    require_annotations: Whether to refuse a document without the lists
      `annotations` and `categories`.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box.
    report: Receives the errors and warnings. If it is `None`, the first error
      is raised and warnings are dropped.

  Returns:
    The index, as `read_coco` returns it. Images and objects with an error are
    left out.

  Raises:
    InputError: If the document is not COCO. Without a report also if the
      document contradicts itself, or if too many objects have the same one of
      the faults A01, A02, A05 and A06, for which objects are left out.
  """
  return _index(
    functools.partial(_walk_loaded, content),
    name,
    report or findings.Report(stop=True),
    require_masks,
    require_annotations,
    width_offset,
  )


def class_table_difference(
  here: tuple[Category, ...],
  there: tuple[Category, ...],
  *,
  there_name: str = 'the checkpoint',
) -> list[str]:
  """Describes the classes that differ in two class tables, one line for each.

  Classes are compared by id and name, not by their places in the tables.

  Args:
    here: The table of the data at hand.
    there: The table that it must be equal to.
    there_name: Name of the second table, for the lines.

  Returns:
    The lines. The list is empty if the tables are equal.
  """
  lines = []
  names_here = {category.id: category.name for category in here}
  names_there = {category.id: category.name for category in there}
  ids_here = {category.name: category.id for category in here}
  ids_there = {category.name: category.id for category in there}
  for id_, name in there:
    if id_ in names_here and names_here[id_] != name:
      lines.append(
        f'{id_!r} is {names_here[id_]!r} here and {name!r} in {there_name}'
      )
    elif id_ not in names_here and name in ids_here:
      lines.append(
        f'{name!r} has the id {ids_here[name]!r} here and {id_!r} in'
        f' {there_name}'
      )
    elif id_ not in names_here:
      lines.append(f'it lacks {id_!r} {name!r}')
  for id_, name in here:
    if id_ not in names_there and name not in ids_there:
      lines.append(f'{there_name} lacks {id_!r} {name!r}')
  if not lines and here != there:
    # Ids that are text have the order of the file.
    i = next(i for i, category in enumerate(here) if category != there[i])
    lines.append(
      f'the order differs: class {i + 1} is {here[i].name!r} here and'
      f' {there[i].name!r} in {there_name}'
    )
  return lines


def format_difference(lines: list[str]) -> str:
  """Joins the lines of `class_table_difference` for a message.

  Args:
    lines: At least one line. If there are more than 10, the rest is counted.
  """
  more = f'; and {len(lines) - 10} more' if len(lines) > 10 else ''
  return '; '.join(lines[:10]) + more


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Loads a JSON file that has the lists images, annotations and categories.

  Raises:
    InputError: If the file cannot be read, or is not a COCO instances file.
  """
  content: dict[str | None, Any] = {}
  clues = _Clues()
  for key, position, element in json_stream.walk(path):
    if position <= 0:
      clues.note(key, position, element)
    if position == json_stream.LIST:
      content[key] = []
    elif position == json_stream.OTHER:
      content[key] = element
    else:
      content[key].append(element)
  problem = clues.why_not_coco(str(path))
  if problem:
    raise errors.InputError(f'{path}: A25: {problem}')
  mask_values.add_missing_boxes(content)
  # A document of COCO is an object, so each of its values has a name.
  return {key: value for key, value in content.items() if key is not None}


def check_is_there(path: str | pathlib.Path, option: str) -> None:
  """Checks that a file of annotations exists.

  Args:
    path: The JSON file.
    option: The command-line option that gives the path, for the message.

  Raises:
    InputError: If the file does not exist.
  """
  if not os.path.exists(path):
    raise errors.InputError(
      f'A25: there is no file of annotations {path}{case_hint(path)};'
      f' {option} says where it is{download_hint(path)}.'
    )


def check_set_is_there(images: str, annotations: str, option: str) -> None:
  """Checks that a folder of images was given and the annotations exist.

  Args:
    images: Path of the folder; '' if it was not given.
    annotations: Path of the annotations.
    option: The beginning of the options that give the two, for messages.

  Raises:
    InputError: If no folder was given, or if the annotations do not exist.
  """
  if not images:
    raise errors.InputError(
      f'I01: {option}images=DIR is missing: the folder of the images of'
      f' {annotations}.'
    )
  check_is_there(annotations, f'{option}annotations')


def download_hint(path: str | pathlib.Path) -> str:
  """Returns a hint how to download COCO, to be added to a message.

  Args:
    path: The missing file or folder.

  Returns:
    The hint, if the path contains the folder data/coco in which the recipes
    expect COCO. Otherwise ''.
  """
  parts = pathlib.Path(path).parts
  for i in range(len(parts) - 1):
    if parts[i : i + 2] == ('data', 'coco'):
      folder = pathlib.Path(*parts[: i + 2])
      if 'minival' in parts[-1]:
        return (
          "; COCO's archives do not have it, and README.md in the source"
          ' repository says where it comes from; a recipe without :2014 has the'
          ' same images, of COCO 2017'
        )
      year = ' 2014' if '2014' in parts[-1] else ''
      return (
        '; in the source repository, bash scripts/download_dataset.sh'
        f' {folder}{year} downloads COCO'
      )
  return ''


def is_outside(name: str) -> bool:
  """Tells whether a file name leads out of the folder that it is relative to.

  Only the name is looked at. Links inside the folder are not followed, because
  the owner of the folder put them there.
  """
  inside = os.path.normpath(name)
  return os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir


def shared_images(index: CocoIndex, other: CocoIndex) -> list[str]:
  """Returns the sorted file names that two data sets have in common.

  Different spellings of a name, such as './a.jpg' and 'a.jpg', are the same.
  """
  names = set(map(normal_file_name, index.file_names))
  return sorted(names.intersection(map(normal_file_name, other.file_names)))


class _Clues:
  """Looks at the elements of a JSON document for signs of its format."""

  def __init__(self, needed: tuple[str, ...] = _LISTS):
    """Starts a document.

    Args:
      needed: Names of the lists that the document must have.
    """
    self._needed = needed
    # {name of a list: its first element, `None` if it has none}
    self._first_elements: dict[str | None, Any] = {}
    # {name of a value that is not a list: its type}
    self._other_types: dict[str | None, str] = {}
    self._is_via = False

  def note(self, key: str | None, position: int, element: Any) -> None:
    """Looks at one value of the document, and remembers signs of its format.

    Args:
      key: Name of the list or of the value, as `json_stream.walk` yields it.
      position: `LIST` or `OTHER` of `json_stream`, or the index of a list
        element. Elements other than the first need not be passed.
      element: The list element or the value.
    """
    if position == json_stream.LIST:
      self._first_elements[key] = None
    elif position == 0:
      self._first_elements[key] = element
    elif position == json_stream.OTHER:
      self._is_via |= str(key).startswith('_via_') or (
        isinstance(element, dict) and 'regions' in element
      )
      self._other_types[key] = type(element).__name__

  def has_list(self, key: str) -> bool:
    """Tells whether the document has a list of that name, so far."""
    return key in self._first_elements

  def why_not_coco(self, name: str) -> str:
    """Returns why the document is not a COCO instances file, or '' if it is.

    Args:
      name: Path of the file, for messages.
    """
    problem = _other_task(
      self._first_elements.get('annotations')
    ) or self._problem(name)
    return problem and f'this is not a COCO instances file: {problem}.'

  def _problem(self, name: str) -> str:
    """Returns which list is missing and the likely format, or '' if none is.

    Args:
      name: Path of the file, for messages.
    """
    if None in self._first_elements:
      first = self._first_elements[None]
      if isinstance(first, dict) and 'score' in first:
        return (
          'it is a list with scores, so looks like COCO detection results;'
          ' give the ground truth'
        )
      return 'it is a list, not an object with images and annotations'
    if None in self._other_types:
      return f'it holds a {self._other_types[None]}, not an object'
    for key in self._needed:
      if key in self._other_types and not self._is_via:
        kind = _JSON_TYPES.get(self._other_types[key], 'a number')
        return f"no list '{key}' in it: '{key}' is {kind}"
    missing = [
      f"'{key}'" for key in self._needed if key not in self._first_elements
    ]
    if missing:
      problem = f'no list {" or ".join(missing)} in it'
      if self._is_via:
        problem += _convert_hint('a VIA export', 'via', name)
      elif (
        'shapes' in self._first_elements and 'imagePath' in self._other_types
      ):
        problem += _convert_hint(
          'a LabelMe file', 'labelme', pathlib.Path(name).parent
        )
      elif 'images' in self._first_elements and "'annotations'" in missing:
        problem += (
          '; without annotations, only --mode=eval --skip_eval is possible,'
          ' which detects objects in the images'
        )
      return problem
    return ''


def _convert_hint(
  description: str, converter: str, path: str | pathlib.Path
) -> str:
  """Returns a hint how to convert annotations of another format to COCO.

  Args:
    description: The other format in words, for example 'a VIA export'.
    converter: Name of the format on the command line of `convert_to_coco`.
    path: The file or folder to convert.
  """
  return (
    f'; it looks like {description}: python -m'
    f' maskrcnn_jax.convert_to_coco {converter}'
    f' --images=DIR --annotations={shlex.quote(str(path))} --out=COCO.json'
    ' converts it'
  )


def _other_task(annotation: Any) -> str:
  """Returns a message if an annotation is of another COCO task, otherwise ''.

  COCO also has annotations for panoptic segmentation and for captions.

  Args:
    annotation: The first annotation of a file; any JSON value.
  """
  if isinstance(annotation, dict):
    if 'segments_info' in annotation:
      return 'it looks like COCO panoptic; give the instances file'
    if 'caption' in annotation and 'bbox' not in annotation:
      return 'it looks like COCO captions; give the instances file'
  return ''


def _walk_loaded(content: dict[str, Any]) -> Iterator[tuple[str, int, Any]]:
  """Yields the lists of a loaded document element by element, and other values.

  The items have the form that `json_stream.walk` yields. The annotations come
  last, and each is replaced by None in its list before it is yielded, to save
  memory.
  """
  for key in sorted(content, key=('annotations').__eq__):
    if isinstance(content[key], list):
      yield key, json_stream.LIST, None
      entries = content[key]
      for position, entry in enumerate(entries):
        if key == 'annotations':
          entries[position] = None
        yield key, position, entry
    else:
      yield key, json_stream.OTHER, content[key]


def _index(
  walk: Walk,
  name: str,
  report: findings.Report,
  require_masks: bool,
  require_annotations: bool,
  width_offset: float,
) -> CocoIndex:
  """Makes the index of a JSON document.

  Args:
    walk: Yields the elements of the document. It is called a second time if
      the annotations come before the images.
    name: Name of the document, for messages.
    report: Receives the errors and warnings.
    require_masks: Whether to leave out objects without a segmentation.
    require_annotations: Whether to refuse a document without the lists
      `annotations` and `categories`.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0 or 1.

  Raises:
    InputError: If the document is not COCO, or if the report raises an error.
  """
  clues = _Clues(_LISTS if require_annotations else ('images',))
  images = ImageTable(name, report)
  categories: list[Any] = []
  objects = ObjectColumns(
    images, require_masks=require_masks, width_offset=width_offset
  )
  # Annotations that come before the images are read in a second pass, because
  # they cannot be checked without their images.
  postponed = False
  for key, position, entry in walk():
    if position <= 0:
      clues.note(key, position, entry)
    if position < 0:
      continue
    if key == 'images':
      images.add(position, entry)
    elif key == 'categories':
      categories.append(entry)
    elif key == 'annotations':
      if not position and _other_task(entry):
        break
      postponed |= not clues.has_list('images')
      if not postponed:
        objects.add(position, entry)
  problem = clues.why_not_coco(name)
  if problem:
    raise errors.InputError(f'{name}: A25: {problem}')
  images.finish()
  if postponed:
    for key, position, entry in walk():
      if key == 'annotations' and position >= 0:
        objects.add(position, entry)
  return objects.finish(
    read_categories(
      categories,
      name,
      report,
      used_ids=objects.used_category_ids(),
      may_be_empty=not require_annotations,
    )
  )
