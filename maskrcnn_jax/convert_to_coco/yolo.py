"""Reads segmentations of YOLO: one text file for each image.

Each line is an object: the index of its class, from 0, and the corners x y x y
of its polygon, as shares of the width and height of the image. A line of 5
numbers is a box: class, center x, center y, width, height.

Source:
  docs.ultralytics.com/datasets/segment: label files and the file data.yaml.
"""

import pathlib
from typing import Any

import yaml

from maskrcnn_jax.convert_to_coco import polygons
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  WholeSetError,
  read_text,
)
from maskrcnn_jax.convert_to_coco.drawn import Drawn
from maskrcnn_jax.errors import InputError

# Text files beside the labels that are no labels.
NO_LABELS = ('classes.txt', 'obj.names', 'labels.txt', 'readme.txt')

# Bytes. A YAML file of class names is small, and the parser is slow.
_MAX_YAML = 1 << 20

# Polygons may reach a little over the edges. A larger share of the width or the
# height is a sign that the numbers are pixels.
_MAX_SHARE = 2.0


def read_yolo(
  folder: pathlib.Path,
  images: pathlib.Path,
  pictures: Pictures,
  classes: list[str] | None,
) -> tuple[Annotations, list[str]]:
  """Reads the objects from the label files of YOLO.

  Args:
    folder: Folder of the label files, which have the names of the images, or a
      data.yaml. With a data.yaml, the labels are in the folder of the images,
      in which `labels` replaces the last `images`, or in a folder `labels`
      beside the data.yaml.
    images: Folder of the images.
    pictures: The images.
    classes: Names of the class indices, if there is no data.yaml or classes.txt
      in the folder or up to three folders above.

  Returns:
    The objects, and the names of all classes in the order of their indices. A
    label file that is damaged is a fault, and its image is set aside.

  Raises:
    InputError: If there are no label files or no class names, or if label files
      belong to no image while images have no label file.
  """
  names: list[str] = []
  if folder.suffix.lower() in ('.yaml', '.yml'):
    names, source = _names_in_yaml(folder), folder
    parts = list(images.resolve().parts)
    if 'images' in parts:
      parts[-1 - parts[::-1].index('images')] = 'labels'
    labels = pathlib.Path(*parts)
    is_beside = labels.is_dir() and labels != images.resolve()
    folder = labels if is_beside else folder.parent / 'labels'
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of label files {folder}.')
  files = sorted(
    path for path in folder.rglob('*.txt') if path.name.lower() not in NO_LABELS
  )
  if not files:
    raise InputError(f'I01: there are no *.txt in {folder}.')
  if not names:
    names, source = _find_names(folder)
  found = Annotations(pictures)
  if names:
    found.notes[f'class names were read from {source}'] = len(names)
  elif classes:
    names = classes
  else:
    raise InputError(
      f'A13: there is no data.yaml and no classes.txt in {folder} or above;'
      ' give the names of the classes 0, 1, ... with --classes=NAME,NAME,... or'
      ' in a classes.txt.'
    )
  unused: list[pathlib.Path] = []
  for path in files:
    name = pictures.of_stem(path)
    if name is None:
      # Another text file, such as a list of images, is no label file.
      if is_label_file(path):
        unused.append(path)
      continue
    with found.tolerating(str(path), name):
      if name in pictures.frames:
        drawn = _read_file(path, pictures.frames[name].shown_size, names, found)
        found.add(name, drawn, None, str(path))
  without = [
    name
    for name in pictures.frames
    if name not in found.objects and name not in found.set_aside
  ]
  if unused and without:
    # One of these files may be that of such an image under another name.
    raise InputError(
      f'I01: {len(unused)} label files belong to no image, such as {unused[0]},'
      f' and {len(without)} images have no label file, such as {without[0]}; a'
      ' label file has the name of its image.'
    )
  if unused:
    found.left_out['label files that belong to no image'] += len(unused)
  return found, names


def _read_file(
  path: pathlib.Path,
  size: tuple[int, int],
  classes: list[str],
  found: Annotations,
) -> list[Drawn]:
  """Reads the objects of a label file.

  Args:
    path: The file.
    size: (height, width) of the image in pixels, as a viewer shows it.
    classes: The names of the classes.
    found: Counts the objects that are left out, and the boxes.

  Raises:
    WholeSetError: If a class has no name.
    InputError: If a line is damaged.
  """
  height, width = size
  drawn = []
  for position, line in enumerate(read_text(path).splitlines(), start=1):
    where = f'{path}, line {position}'
    words = line.split()
    if not words:
      continue
    try:
      index, *values = map(polygons.number, words)
      if index < 0 or index != int(index):
        raise ValueError(f'the class is {words[0]}')
    except ValueError as error:
      raise InputError(f'A25: {where} is damaged: {error}.') from error
    if len(values) < 4 or len(values) % 2:
      raise InputError(
        f'A25: {where} has {len(words)} numbers; a polygon has the class and'
        ' pairs x y, and a box the class and 4 numbers.'
      )
    if max(map(abs, values)) > _MAX_SHARE:
      raise InputError(
        f'A25: {where} has a coordinate {max(values, key=abs):g}; the'
        ' coordinates must be shares of the width and the height, from 0 to 1.'
      )
    if index >= len(classes):
      raise WholeSetError(
        f'A14: {where} has the class {index:.0f}, but there are names of the'
        f' classes 0 to {len(classes) - 1} only; give the names of all.'
      )
    if len(values) == 4:
      x, y, w, h = values
      found.notes[polygons.RECTANGLES] += 1
      polygon = polygons.from_rectangle(
        (x - w / 2) * width,
        (y - h / 2) * height,
        (x + w / 2) * width,
        (y + h / 2) * height,
      )
    else:
      pairs = zip(values[::2], values[1::2], strict=True)
      polygon = polygons.from_points((x * width, y * height) for x, y in pairs)
    drawn.append(Drawn(classes[int(index)], [polygon]))
  return drawn


def is_label_file(path: pathlib.Path) -> bool:
  """Tells whether a text file has lines of at least five numbers."""
  try:
    lines = read_text(path).splitlines()
    rows = [[float(word) for word in line.split()] for line in lines]
  except ValueError:
    return False
  return any(rows) and all(len(row) >= 5 for row in rows if row)


def _find_names(folder: pathlib.Path) -> tuple[list[str], pathlib.Path]:
  """Finds the names of the classes in or above the folder of the label files.

  Returns:
    The names, and the file that has them. Without such a file, there are no
    names.

  Raises:
    InputError: If the file is damaged.
  """
  for place in (folder, *folder.resolve().parents[:3]):
    for path in sorted(place.glob('*.y*ml')):
      try:
        names = _names_in_yaml(path, required=False)
      except InputError:
        if path.name.lower() in ('data.yaml', 'data.yml'):
          raise
        continue  # It is of another program.
      if names:
        return names, path
    for name in ('classes.txt', 'obj.names', 'labels.txt'):
      path = place / name
      if path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        while lines and not lines[-1]:
          lines.pop()
        return _checked(lines, path), path
  return [], folder


def _names_in_yaml(path: pathlib.Path, required: bool = True) -> list[str]:
  """Reads the names of the classes from a data.yaml.

  Args:
    path: The file.
    required: Whether a file without names is an error; otherwise the result is
      empty.

  Raises:
    InputError: If the file is damaged.
  """
  if path.is_file() and path.stat().st_size > _MAX_YAML:
    raise InputError(f'A25: {path} is too large for a file of class names.')
  try:
    # This loader makes no other types than text, lists and dicts, so a class
    # named `no` stays a text.
    content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
  except (yaml.YAMLError, ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    reason = ' '.join(str(error).split())
    raise InputError(f'A25: {path} is no YAML: {reason}.') from error
  names = content.get('names') if isinstance(content, dict) else None
  if names is None and not required:
    return []
  if isinstance(names, dict):
    try:
      by_index = {int(key): name for key, name in names.items()}
    except (TypeError, ValueError) as error:
      raise InputError(
        f'A13: {path}: the keys of `names` must be whole numbers.'
      ) from error
    if sorted(by_index) != list(range(len(by_index))):
      raise InputError(
        f'A13: {path}: the keys of `names` must be 0, 1, 2 and so on.'
      )
    names = [by_index[i] for i in range(len(by_index))]
  return _checked(names, path)


def _checked(names: Any, path: pathlib.Path) -> list[str]:
  """Returns the names of the classes if they are names, and each comes once.

  Args:
    names: The names as the file has them.
    path: The file, for messages.

  Raises:
    InputError: If they are no list of different names.
  """
  if not isinstance(names, list) or not names:
    raise InputError(f'A13: {path} has no list of class names.')
  for name in names:
    if not isinstance(name, str) or not name.strip():
      # A list is not shown: with aliases, YAML can write one that has no end.
      text = repr(name[:60]) if isinstance(name, str) else 'a list'
      raise InputError(f'A13: {path}: the class name {text} is no name.')
  names = [name.strip() for name in names]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise InputError(f'A15: {path} has the class {twice!r} twice.')
  return names
