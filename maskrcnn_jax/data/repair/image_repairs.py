"""Repairs file names, sizes and ids of the images of a COCO file."""

from collections.abc import Collection, Iterable
import os
import pathlib
from typing import Any, NamedTuple

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, images, json_stream
from maskrcnn_jax.data.coco_annotations import has_box
from maskrcnn_jax.data.coco_index import (
  NUMBERS,
  SCALARS,
  normal_file_name,
  plain_id,
)
from maskrcnn_jax.data.file_names import FileFinder
from maskrcnn_jax.data.repair.ids import id_text
from maskrcnn_jax.data.repair.text_numbers import to_number

# Pixels. A label that reaches less far beyond a size was only rounded.
_ROUNDING = 1.0


Number = int | float


class ImageRepair(NamedTuple):
  """The repaired entry of an image."""

  entry: dict[str, Any]
  # (code of the fault, description) of each change
  changes: tuple[tuple[str, str], ...]


def repair_images(
  source: pathlib.Path,
  folder: pathlib.Path,
  *,
  wrong_sizes: Collection[str] = (),
) -> dict[int, ImageRepair]:
  """Finds the images of a COCO file that the files on disk can repair.

  A name of which there is no file becomes that of the only file with the same
  base name. A size that is missing, or is no number, is read from the file. So
  is a size with height and width exchanged, if a label proves it.

  Args:
    source: The COCO file.
    folder: The folder of the images.
    wrong_sizes: File names of the images that were decoded and have another
      size than the JSON says.

  Returns:
    {position in the list of images: the repaired entry}. It has only the
    entries that change.

  Raises:
    InputError: If the file is not JSON.
  """
  entries = [
    (position, entry)
    for key, position, entry in json_stream.walk(source)
    if key == 'images' and position >= 0 and isinstance(entry, dict)
  ]
  names = _find_names(entries, folder)
  repairs: dict[int, ImageRepair] = {}
  extents: dict[str, tuple[Number, Number]] | None = None
  for position, entry in entries:
    repaired = dict(entry)
    changes = []
    id_: Any = entry.get('id')
    if type(id_) is float and type(plain_id(id_)) is int:
      repaired['id'] = plain_id(id_)
      changes.append(('A19', f'its id {id_!r} written as {repaired["id"]!r}.'))
    if position in names:
      repaired['file_name'] = names[position]
      code = 'I15' if coco.is_outside(str(entry.get('file_name'))) else 'I01'
      changes.append(
        (
          code,
          f'file_name {entry.get("file_name")!r} written as'
          f' {names[position]!r}.',
        )
      )
    sides: list[Any] = [entry.get('height'), entry.get('width')]
    size = None
    if not all(type(side) in NUMBERS and side > 0 for side in sides) or (
      str(repaired.get('file_name')) in wrong_sizes
    ):
      size = _size_of_file(repaired, folder)
    if size is not None and tuple(sides) != size:
      if extents is None:
        extents = _label_extents(source)
      extent = extents.get(id_text(id_)) if type(id_) in SCALARS else None
      path = folder / repaired['file_name']
      right = _right_size(path, sides, size, extent or (0, 0))
      if right is not None:
        repaired['height'], repaired['width'] = right
        changes.append(
          (
            'I05',
            f'height {sides[0]!r} and width {sides[1]!r} written as'
            f' {right[0]} and {right[1]}, which the file has.',
          )
        )
    if changes:
      repairs[position] = ImageRepair(repaired, tuple(changes))
  return repairs


def _find_names(
  entries: Iterable[tuple[int, dict[str, Any]]], folder: pathlib.Path
) -> dict[int, str]:
  """Finds the files that the wrong file names of images mean.

  Args:
    entries: (position in the list, entry) of each image.
    folder: The folder of the images.

  Returns:
    {position: file name}, for images without a file of their name inside of the
    folder. If an image with another name has the same file, the file is not
    taken, because it is not known whose it is.
  """
  finder = FileFinder(folder)
  # {file name of the folder: names that entries have for it}
  owners: dict[str, set[str]] = {}
  found: dict[int, str] = {}
  for position, entry in entries:
    name = entry.get('file_name')
    if not isinstance(name, str) or not name:
      # LVIS has only the URL of each image.
      name = entry.get('coco_url')
    if not isinstance(name, str) or not name:
      continue
    if (
      name == entry.get('file_name')
      and not coco.is_outside(name)
      and _is_file(folder, name)
    ):
      file = normal_file_name(name)
    else:
      file = finder.find(name)
      if file:
        found[position] = file
    owners.setdefault(normal_file_name(file), set()).add(normal_file_name(name))
  return {
    position: file
    for position, file in found.items()
    if len(owners[normal_file_name(file)]) == 1
  }


def _is_file(folder: pathlib.Path, name: str) -> bool:
  """Tells whether a folder has a file, also for names that no file can have."""
  try:
    return os.path.isfile(folder / name)
  except ValueError:  # The name has a NUL character.
    return False


def _size_of_file(
  entry: dict[str, Any], folder: pathlib.Path
) -> tuple[int, int] | None:
  """Reads the size of the file of an image, after its EXIF orientation.

  Args:
    entry: The entry of the image.
    folder: The folder of the images.

  Returns:
    (height, width) in pixels; `None` if the file cannot be read.
  """
  name = entry.get('file_name')
  if (
    not isinstance(name, str)
    or coco.is_outside(name)
    or not _is_file(folder, name)
  ):
    return None
  try:
    return images.image_size(folder / name)
  except errors.InputError:
    return None


def _right_size(
  path: pathlib.Path,
  sides: list[Any],
  size: tuple[int, int],
  extent: tuple[Number, Number],
) -> tuple[int, int] | None:
  """Returns the size that is to be written for an image.

  Args:
    path: The file of the image.
    sides: The height and width in the JSON, any values. They are not `size`.
    size: (height, width) of the file after its EXIF orientation.
    extent: The largest (y, x) of the labels of the image, in pixels.

  Returns:
    (height, width) in pixels. `None` if only the owner of the file can tell
    which size is right.
  """
  turned = size[1], size[0]
  numbers = tuple(map(to_number, sides))
  if all(n is not None and n > 0 and n == int(n) for n in numbers):
    if numbers == size or numbers == turned and _is_stored_size(path, turned):
      # The size is right. It may be written as text.
      is_plain = all(type(side) in NUMBERS for side in sides)
      return None if is_plain else (size if numbers == size else turned)
    is_proof = numbers == turned and not _fits(extent, turned)
    return size if is_proof and _fits(extent, size) else None
  # Labels that were drawn on the stored pixels show it if they reach beyond the
  # image as it is shown.
  is_stored = (
    not _fits(extent, size)
    and _fits(extent, turned)
    and _is_stored_size(path, turned)
  )
  return turned if is_stored else size


def _fits(extent: tuple[Number, Number], size: tuple[int, int]) -> bool:
  """Tells whether labels that reach to a (y, x) are inside of a size."""
  return all(
    end <= side + _ROUNDING for end, side in zip(extent, size, strict=True)
  )


def _is_stored_size(path: pathlib.Path, size: tuple[int, int]) -> bool:
  """Tells whether an image can be read with the size of its stored pixels."""
  try:
    images.decode_image(path, expected_size=size, pixel_range=(0.0, 65_535.0))
  except errors.InputError:
    return False
  return True


def _label_extents(source: pathlib.Path) -> dict[str, tuple[Number, Number]]:
  """Returns how far the labels of each image reach.

  Args:
    source: The COCO file.

  Returns:
    {text of the image id: largest (y, x) in pixels} of the boxes, the polygons
    and the sizes of RLEs.
  """
  extents: dict[str, tuple[Number, Number]] = {}
  for key, position, entry in json_stream.walk(source):
    if key != 'annotations' or position < 0 or not isinstance(entry, dict):
      continue
    id_: Any = entry.get('image_id')
    if type(id_) not in SCALARS:
      continue
    bottom, right = extents.get(id_text(id_), (0.0, 0.0))
    if has_box(entry):
      x, y, width, height = entry['bbox']
      bottom, right = max(bottom, y + height), max(right, x + width)
    segmentation = entry.get('segmentation')
    if isinstance(segmentation, dict):
      size = segmentation.get('size')
      if isinstance(size, list) and len(size) == 2:
        height, width = (to_number(side) or 0 for side in size)
        bottom, right = max(bottom, height), max(right, width)
    elif isinstance(segmentation, list):
      for polygon in segmentation:
        if isinstance(polygon, list):
          x_values = [x for x in polygon[0::2] if type(x) in NUMBERS]
          y_values = [y for y in polygon[1::2] if type(y) in NUMBERS]
          bottom = max([bottom, *y_values])
          right = max([right, *x_values])
    extents[id_text(id_)] = bottom, right
  return extents
