"""Reading COCO's JSON into an index."""

from collections.abc import Callable, Iterable, Iterator
import functools
import os
import pathlib
import shlex
from typing import Any

from maskrcnn_jax import errors
from maskrcnn_jax.data import findings, json_stream
from maskrcnn_jax.data.coco_index import Category, CocoIndex, same_image
from maskrcnn_jax.data.coco_objects import ObjectColumns
from maskrcnn_jax.data.coco_tables import ImageTable, read_categories
from maskrcnn_jax.data.images import case_hint

_LISTS = 'images', 'annotations', 'categories'

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
    require_masks: Leave out the objects that have no segmentation. Crowd
      regions, which nobody trains on, may lack it.
    require_annotations: Refuse a file without the list of annotations, as
      those of images to be detected in have none.
    width_offset: What a box is wider than x2 - x1; 1 where (x2, y2) is the
      last pixel inside. A box whose corners then fall together has no area.
    report: Receives the faults of the file, and warnings for a person.
      None: the first error is raised.

  Returns:
    Images in the order of the file, with their objects in that order. Classes
    follow the ids of the categories where all are integers, else the file.
    Images and objects that the report has errors for are left out.

  Raises:
    InputError: If the file is not COCO; without a report also if it
      contradicts itself, or more than 1 % of the objects would be left out.
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
  """Makes the index of a JSON that is loaded already.

  Args:
    content: The JSON; its annotations are taken out to save memory.
    name: The name of the JSON in messages.
    require_masks: See `read_coco`.
    require_annotations: See `read_coco`.
    width_offset: See `read_coco`.
    report: See `read_coco`.
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
  """Compares two class tables, line by line; empty if they are the same.

  Args:
    here: The table of the data at hand.
    there: The table it must agree with.
    there_name: The name of the latter in messages.
  """
  lines = []
  for i in range(max(len(here), len(there))):
    a = here[i] if i < len(here) else None
    b = there[i] if i < len(there) else None
    if a == b and type(a.id) is type(b.id):
      continue
    a, b = (f'id {c.id!r} {c.name!r}' if c else 'nothing' for c in (a, b))
    lines.append(f'class {i + 1}: {a} here, {b} in {there_name}')
  return lines


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Loads a JSON object that has COCO's three lists, or refuses it."""
  content: dict[str | None, Any] = {}
  for key, position, element in json_stream.walk(path):
    if position == json_stream.LIST:
      content[key] = []
    elif position == json_stream.OTHER:
      content[key] = element
    else:
      content[key].append(element)
  clues = _Clues()
  for key, value in content.items():
    if isinstance(value, list):
      clues.note(key, json_stream.LIST, None)
      if value:
        clues.note(key, 0, value[0])
    else:
      clues.note(key, json_stream.OTHER, value)
  problem = clues.why_not_coco(str(path))
  if problem:
    raise errors.InputError(f'{path}: A25: {problem}')
  return content


def check_is_there(path: str | pathlib.Path, option: str) -> None:
  """Checks that there is such an annotation file.

  Args:
    path: Of the JSON.
    option: Of the command line, that gives the path.

  Raises:
    InputError: If there is nothing.
  """
  if not os.path.exists(path):
    raise errors.InputError(
      f'A25: there is no file of annotations {path}{case_hint(path)};'
      f' {option} says where it is{download_hint(path)}.'
    )


def download_hint(path: str | pathlib.Path) -> str:
  """Says how COCO is downloaded, of a path where the recipes expect it."""
  parts = pathlib.Path(path).parts
  for i in range(len(parts) - 1):
    if parts[i : i + 2] == ('data', 'coco'):
      folder = pathlib.Path(*parts[: i + 2])
      year = ' 2014' if '2014' in parts[-1] else ''
      return (
        '; in the source repository, bash scripts/download_dataset.sh'
        f' {folder}{year} downloads COCO'
      )
  return ''


def is_outside(name: str) -> bool:
  """Tells whether a file name leads out of the folder that it is relative to.

  By its letters alone: a link inside the folder was put there by its owner.
  """
  inside = os.path.normpath(name)
  return os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir


def shared_images(index: CocoIndex, other: CocoIndex) -> list[str]:
  """Returns the file names that two sets have in common, sorted."""
  names = set(map(same_image, index.file_names))
  return sorted(names.intersection(map(same_image, other.file_names)))


class _Clues:
  """The signs that tell a COCO file from other files."""

  def __init__(self, needed: tuple[str, ...] = _LISTS):
    self._needed = needed
    self._firsts: dict[str | None, Any] = {}  # lists, and their first element
    self._others: dict[str | None, Any] = {}  # all other entries
    self._is_via = False

  def note(self, key: str | None, position: int, element: Any) -> None:
    """Looks at an element that `json_stream.walk` yields."""
    if position == json_stream.LIST:
      self._firsts[key] = None
    elif position == 0:
      self._firsts[key] = element
    elif position == json_stream.OTHER:
      self._is_via |= str(key).startswith('_via_') or (
        isinstance(element, dict) and 'regions' in element
      )
      self._others[key] = type(element).__name__

  def has_list(self, key: str) -> bool:
    """Tells whether a list of that name has begun."""
    return key in self._firsts

  def why_not_coco(self, name: str) -> str:
    """Returns the reason why a JSON document is not COCO; '' if it is.

    Args:
      name: Of the file.
    """
    problem = _other_task(self._firsts.get('annotations')) or self._problem(
      name
    )
    return problem and f'this is not a COCO instances file: {problem}.'

  def _problem(self, name: str) -> str:
    if None in self._firsts:
      first = self._firsts[None]
      if isinstance(first, dict) and 'score' in first:
        return (
          'it is a list with scores, so looks like COCO detection results;'
          ' give the ground truth'
        )
      return 'it is a list, not an object with images and annotations'
    if None in self._others:
      return f'it holds a {self._others[None]}, not an object'
    missing = [f"'{key}'" for key in self._needed if key not in self._firsts]
    if missing:
      problem = f'no list {" or ".join(missing)} in it'
      if self._is_via:
        problem += _convert_hint('a VIA export', 'via', name)
      elif 'shapes' in self._firsts and 'imagePath' in self._others:
        problem += _convert_hint(
          'a LabelMe file', 'labelme', pathlib.Path(name).parent
        )
      elif missing == ["'annotations'"]:
        problem += (
          '; images without a truth can only be detected in, by --mode=eval'
          ' --skip_eval'
        )
      return problem
    return ''


def _convert_hint(what: str, kind: str, path: str | pathlib.Path) -> str:
  """Names the command that makes COCO of annotations of another kind."""
  return (
    f'; it looks like {what}: python -m maskrcnn_jax.convert_to_coco {kind}'
    f' --images=DIR --annotations={shlex.quote(str(path))} --out=COCO.json'
    ' converts it'
  )


def _other_task(annotation: Any) -> str:
  """Says which other task of COCO an annotation is for; '' if none."""
  if isinstance(annotation, dict):
    if 'segments_info' in annotation:
      return 'it looks like COCO panoptic; give the instances file'
    if 'caption' in annotation and 'bbox' not in annotation:
      return 'it looks like COCO captions; give the instances file'
  return ''


def _walk_loaded(content: dict) -> Iterator[tuple[str, int, Any]]:
  """Yields the elements as `json_stream.walk` would; empties the lists."""
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
  """Makes the index of the elements that `walk` yields."""
  clues = _Clues(
    _LISTS
    if require_annotations
    else tuple(key for key in _LISTS if key != 'annotations')
  )
  images = ImageTable(name, report)
  categories = []
  objects = ObjectColumns(
    images, require_masks=require_masks, width_offset=width_offset
  )
  postponed = False  # annotations came before the images that they speak of
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
  table = read_categories(categories, name, report)
  images.finish()
  if postponed:
    for key, position, entry in walk():
      if key == 'annotations' and position >= 0:
        objects.add(position, entry)
  return objects.finish(table)
