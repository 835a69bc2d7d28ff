"""Decides the categories of the COCO JSON: their names, ids and order."""

import collections
import pathlib
from typing import Any

from maskrcnn_jax.convert_to_coco.annotated_images import read_text
from maskrcnn_jax.convert_to_coco.coco_json import Instance
from maskrcnn_jax.data import json_stream
from maskrcnn_jax.errors import InputError


def class_list(text: str) -> list[str]:
  """Reads the value of `--classes`.

  Args:
    text: A text file with one class on each line, or the classes with commas
      in between.

  Raises:
    InputError: If there is no class, a class is empty, or one comes twice.
  """
  path = pathlib.Path(text)
  try:
    is_file = path.is_file()
  except (OSError, ValueError):  # The text is too long for a file name.
    is_file = False
  if is_file:
    names = [line.strip() for line in read_text(path).splitlines()]
    names = [name for name in names if name]
  elif ',' not in text and path.suffix == '.txt':
    raise InputError(f'--classes: there is no file {path}.')
  else:
    names = [name.strip() for name in text.split(',')]
  if not names or not all(names):
    raise InputError(
      f'--classes={text} has an empty name; give names with commas in between,'
      ' or a text file with one name on each line.'
    )
  twice = [n for n, count in collections.Counter(names).items() if count > 1]
  if twice:
    raise InputError(f'A15: --classes has the class {twice[0]!r} twice.')
  return names


def like_categories(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the categories of a COCO JSON for `--like`.

  Raises:
    InputError: If the file cannot be read, has no categories, or one of them
      has no id or name or those of another.
  """
  if path.exists() and not path.is_file():
    raise InputError(f'A25: {path} is no regular file.')
  entries = [
    entry
    for key, position, entry in json_stream.walk(path)
    if key == 'categories' and position >= 0
  ]
  if not entries:
    raise InputError(
      f'A25: {path} has no categories; --like needs a COCO JSON.'
    )
  for entry in entries:
    if (
      not isinstance(entry, dict)
      or not isinstance(entry.get('name'), str)
      or not isinstance(entry.get('id'), int | str)
    ):
      raise InputError(
        f'A13: {path}: the category {entry!r} lacks an id or a name.'
      )
  for key in ('id', 'name'):
    values = collections.Counter(str(entry[key]) for entry in entries)
    value, count = values.most_common(1)[0]
    if count > 1:
      raise InputError(
        f'A15: {path} has {count} categories with the {key} {value!r}.'
      )
  return entries


def make_categories(
  objects: dict[str, list[Instance]],
  classes: list[str] | None,
  like: pathlib.Path | None,
  known: list[str],
) -> list[dict[str, Any]]:
  """Returns the `categories` of the COCO JSON.

  Args:
    objects: The objects of all images.
    classes: The names that `--classes` gives, in the order of their ids, which
      start at 1.
    like: The file that `--like` gives. Its categories are taken as they are.
    known: The classes that the annotations list, in their order; empty if they
      list none. They are used if `classes` and `like` are `None`. Without
      them, the ids are in the order of the sorted names.

  Raises:
    InputError: If an object has a class that is not in the given table.
  """
  counts = collections.Counter(
    instance.name for found in objects.values() for instance in found
  )
  if like is not None:
    table = like_categories(like)
  else:
    names = classes or [*known, *sorted(counts.keys() - set(known))]
    table = [{'id': i, 'name': name} for i, name in enumerate(names, start=1)]
  missing = counts.keys() - {entry['name'] for entry in table}
  if missing:
    listed = ', '.join(f'{name!r} ({counts[name]})' for name in sorted(missing))
    option = '--classes' if like is None else f'the file of --like, {like}'
    raise InputError(
      f'A21: the annotations have classes that are not in {option}: {listed}'
      ' (with the number of objects). Rename them, or convert the training set'
      ' and the evaluation set with --classes that has all of them.'
    )
  return table
