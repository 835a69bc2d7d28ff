"""The images that are annotated, and the objects read from annotations."""

import json
import pathlib
from typing import Any, NamedTuple

from jaxtyping import Bool
import numpy as np

from maskrcnn_jax.data import images
from maskrcnn_jax.errors import InputError

# The (height, width) in pixels of each image, by its file name relative to the
# folder of the images. Sorted by the names.
ImageSizes = dict[str, tuple[int, int]]


class Object(NamedTuple):
  """An annotated object, in pixels of the image as a viewer shows it.

  An object has polygons or a mask.
  """

  name: str  # name of its class
  polygons: list[list[float]]  # flat lists x, y, x, y, ...; empty with a mask
  mask: Bool[np.ndarray, 'h w'] | None = None


class Annotations(NamedTuple):
  """The objects that were read from the annotations of a set of images."""

  objects: dict[str, list[Object]]  # objects of an image, by its file name
  left_out: dict[str, int]  # number of shapes that were left out, by the reason


def find_images(folder: pathlib.Path) -> ImageSizes:
  """Reads the size of every image in a folder and its sub-folders.

  Returns:
    (height, width) of each image in pixels, as a viewer shows it, by its path
    relative to the folder.

  Raises:
    InputError: If there is no such folder, it has no image, or an image cannot
      be read.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of images {folder}.')
  return {
    path.relative_to(folder).as_posix(): images.image_size(path)
    for path in images.list_images(folder)
  }


def find_image(name: str, sizes: ImageSizes, source: pathlib.Path) -> str:
  """Finds the image that an annotation names.

  If no image has exactly this name, the folders in the name of the annotation
  and in the names of the images are ignored.

  Args:
    name: The file name in the annotation. Slashes and backslashes separate
      folders.
    sizes: All images.
    source: The file of annotations, for the error message.

  Returns:
    The name of the image in `sizes`.

  Raises:
    InputError: If no image has this name, or if several images have it when
      folders are ignored.
  """
  name = name.replace('\\', '/')
  if name in sizes:
    return name
  base = name.rsplit('/', 1)[-1]
  found = [file for file in sizes if file.rsplit('/', 1)[-1] == base]
  if len(found) != 1:
    raise InputError(
      f'I01: {source} is about the image {name}; {len(found)} images of the'
      ' folder have this name, but it must be exactly one.'
    )
  return found[0]


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object.

  Raises:
    InputError: If the file cannot be read, or holds something else.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
  except OSError as error:
    raise InputError(f'Cannot read {path}: {error.strerror}.') from error
  except (ValueError, RecursionError) as error:
    raise InputError(f'A25: {path} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise InputError(f'A25: {path} holds no JSON object.')
  return content
