"""Lists the pictures to predict on: their names, ids and overlay pictures."""

import collections
from collections.abc import Sequence
import glob
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging

from maskrcnn_jax.data import image_files, json_stream
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.prediction.lines import LINES_FILE


class PictureList(NamedTuple):
  """The pictures of a prediction, n of them, sorted."""

  root: pathlib.Path  # the deepest folder that all pictures are in
  names: list[str]  # path of each picture relative to `root`
  # The id of each picture in a file of annotations. `None` if none is given.
  ids: list[int | float | str] | None
  # Whether an overlay picture is called a.jpg.png instead of a.png, because
  # there is also an a.bmp.
  keeps_suffix: bool

  def overlay(self, row: int) -> str:
    """Returns the path of an overlay picture relative to their folder."""
    name = pathlib.PurePath(self.names[row])
    if self.keeps_suffix:
      return str(name.with_name(f'{name.name}.png'))
    return str(name.with_suffix('.png'))


def list_pictures(
  pattern: str,
  *,
  output: pathlib.Path,
  draws: bool,
  annotations: str | None = None,
) -> PictureList:
  """Lists the pictures of a prediction.

  Pictures in the folder of the results, and in folders of other results, are
  left out: they are overlay pictures.

  Args:
    pattern: A file, a folder, or a glob pattern such as 'pictures/*.jpg'.
    output: The folder of the results.
    draws: Whether overlays are written.
    annotations: A file of annotations in COCO's format. Pictures that it does
      not name are left out, and the log says so.

  Raises:
    InputError: If no picture is found, if the annotations cannot be read, or if
      an overlay would replace a file of the user.
  """
  files = _find_pictures(pattern, output)
  ids = None
  if annotations is not None:
    files, ids = _find_ids(files, annotations)
  root = pathlib.Path(os.path.commonpath([file.parent for file in files]))
  names = [str(file.relative_to(root)) for file in files]
  stems = {os.path.splitext(name)[0] for name in names}
  pictures = PictureList(root, names, ids, len(stems) < len(names))
  if draws:
    _check_overlays(pictures, output)
  return pictures


def _check_overlays(pictures: PictureList, output: pathlib.Path) -> None:
  """Raises an InputError if an overlay would replace a file of the user."""
  is_result = any(output.glob('predictions*.json*'))
  if output.is_dir() and not is_result:
    for row in range(len(pictures.names)):
      if (output / pictures.overlay(row)).exists():
        raise InputError(
          f'{output / pictures.overlay(row)} exists already and would be '
          'replaced by an overlay; give --output=DIR, the folder for the '
          'results.'
        )
  root, folder = pictures.root.resolve(), output.resolve()
  if folder != root and folder not in root.parents:
    return
  names = set(pictures.names)
  for row, name in enumerate(pictures.names):
    overlay = os.path.relpath(folder / pictures.overlay(row), root)
    if overlay in names:
      raise InputError(
        f'The picture {pictures.root / overlay} would be replaced by the '
        f'overlay of {pictures.root / name}; give --output=DIR, the folder for '
        'the results.'
      )


def _find_pictures(pattern: str, output: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files to predict on, sorted.

  The log counts the files that are passed over, by their extension.

  Args:
    pattern: As for `list_pictures`.
    output: The folder of the results.

  Raises:
    InputError: If there is none.
  """
  if os.path.isfile(pattern):
    return [pathlib.Path(pattern)]
  files = image_files.find_files(pattern)
  top = pathlib.Path(pattern)
  while glob.has_magic(str(top)) and not top.is_dir():
    top = top.parent
  output = output.resolve()
  is_result: dict[pathlib.Path, bool] = {}

  def in_result(folder: pathlib.Path) -> bool:
    """Tells whether a folder is in a folder of results, below the input."""
    if folder not in is_result:
      is_result[folder] = folder.resolve() == output or (
        folder != top
        and folder != folder.parent
        and ((folder / LINES_FILE).exists() or in_result(folder.parent))
      )
    return is_result[folder]

  wanted = image_files.EXTENSIONS | image_files.FOREIGN_EXTENSIONS
  pictures = []
  others: dict[str, int] = collections.Counter()
  drawn: dict[pathlib.Path, int] = collections.Counter()
  for file in files:
    if file.suffix.lower() not in wanted:
      others[file.suffix.lower() or 'no extension'] += 1
    elif in_result(file.parent):
      drawn[file.parent] += 1
    else:
      pictures.append(file)
  if drawn:
    logging.info(
      '%d pictures are left out, because they are results: they are in %s.',
      sum(drawn.values()),
      ', '.join(map(str, sorted(drawn)[:3])) + ', ...' * (len(drawn) > 3),
    )
  if not pictures:
    raise InputError(
      f'I01: there are no pictures in {pattern}'
      + (' but overlay pictures, which are results' if drawn else '')
      + f'; looked for {", ".join(sorted(wanted))}.'
    )
  if others:
    counts = [
      f'{count} with {end}'
      for end, count in sorted(others.items(), key=lambda item: -item[1])
    ]
    logging.info(
      'Files that are no pictures by their names are passed over: %s.',
      ', '.join(counts[:8]) + ', ...' * (len(counts) > 8),
    )
  return sorted(pictures)


def _find_ids(
  files: Sequence[pathlib.Path], annotations: str
) -> tuple[list[pathlib.Path], list[int | float | str]]:
  """Finds the ids of pictures in a file of annotations.

  A picture belongs to the entry whose `file_name` is the end of the path of the
  picture. If several are, the longest counts.

  Args:
    files: The pictures.
    annotations: The file.

  Returns:
    The pictures that the file names, and their ids.

  Raises:
    InputError: If the file cannot be read or names none of the pictures, or if
      two pictures belong to the same entry.
  """
  id_of = _read_ids(pathlib.Path(annotations))
  found, ids, unknown = [], [], []
  picture_of: dict[str, pathlib.Path] = {}
  for file in files:
    parts = pathlib.Path(os.path.abspath(file)).parts
    ends = ('/'.join(parts[i:]) for i in range(len(parts)))
    name = next((end for end in ends if end in id_of), None)
    if name is None:
      unknown.append(file)
      continue
    other = picture_of.setdefault(name, file)
    if other is not file:
      raise InputError(
        f'{other} and {file} both belong to the image {name} of {annotations}. '
        'Give the folder of its images as --input.'
      )
    found.append(file)
    ids.append(id_of[name])
  if not found:
    raise InputError(
      f'I01: {annotations} names none of the {len(files)} pictures, such as '
      f'{files[0]}; its first image is {next(iter(id_of), "missing")}.'
    )
  if unknown:
    logging.warning(
      '%d pictures are not in %s and are left out, such as %s.',
      len(unknown),
      annotations,
      unknown[0],
    )
  if len(found) < len(id_of):
    missing = next(name for name in id_of if name not in picture_of)
    logging.warning(
      '%d images of %s are not among the pictures, such as %s.',
      len(id_of) - len(found),
      annotations,
      missing,
    )
  return found, ids


def _read_ids(path: pathlib.Path) -> dict[str, int | float | str]:
  """Reads {file name: id} of the images of a file of annotations.

  Raises:
    InputError: If it has no list of images, or an entry without name or id.
  """
  ids: dict[str, Any] = {}
  has_images = False
  for key, position, entry in json_stream.walk(path):
    if key != 'images':
      continue
    has_images = has_images or position == json_stream.LIST
    if position < 0:
      continue
    fields = entry if isinstance(entry, dict) else {}
    name, id_ = fields.get('file_name'), fields.get('id')
    if not isinstance(name, str) or type(id_) not in (int, float, str):
      raise InputError(
        f'{path}: A19: images[{position}] has no usable file_name or id.'
      )
    ids[os.path.normpath(name.replace('\\', '/'))] = id_
  if not has_images:
    raise InputError(
      f'{path}: A25: there is no list "images"; give annotations in COCO\'s '
      'format.'
    )
  return ids
