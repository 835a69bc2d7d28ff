"""Reads mask pictures: PNG files that mark the pixels of objects."""

import pathlib

from jaxtyping import Int
import numpy as np
from PIL import Image

from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  ImageSizes,
  Object,
)
from maskrcnn_jax.errors import InputError


def read_masks(
  folder: pathlib.Path,
  sizes: ImageSizes,
  class_name: str,
  class_folders: bool,
) -> Annotations:
  """Reads the mask pictures of all images.

  The masks of the image sub/a.jpg are either one picture sub/a.png, in which
  every value or color except 0 (black) is an object, or several pictures in a
  folder sub/a/, each of which shows one object.

  Args:
    folder: Folder of the mask pictures.
    sizes: The images that the masks may belong to.
    class_name: The class of all objects, unless there are class folders.
    class_folders: Whether the folder holds one folder of masks for each class,
      named after the class.

  Raises:
    InputError: If there are no pictures, if a picture is damaged, has the wrong
      size, or belongs to no image, or if an image has both kinds of masks.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of masks {folder}.')
  places = {class_name: folder}
  if class_folders:
    places = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
  objects: dict[str, list[Object]] = {}
  used: set[pathlib.Path] = set()
  num_empty = 0
  for name, size in sizes.items():
    stem = pathlib.PurePath(name).with_suffix('')
    for class_, place in places.items():
      whole = place / stem.parent / f'{stem.name}.png'
      single = sorted((place / stem).glob('*.png'))
      if whole.is_file() and single:
        raise InputError(
          f'A20: both {whole} and {place / stem}/ are there; an image must have'
          ' only one of them.'
        )
      found = []
      for path in [whole] if whole.is_file() else single:
        used.add(path)
        values = _read_mask(path, size)
        if single:
          masks = [values > 0]
        else:
          numbers = np.unique(values)
          masks = [values == number for number in numbers[numbers > 0]]
        found += [Object(class_, [], mask) for mask in masks if mask.any()]
        num_empty += sum(not mask.any() for mask in masks)
      objects.setdefault(name, []).extend(found)
  unused = sorted(set(folder.rglob('*.png')) - used)
  if unused:
    hint = (
      ''
      if class_folders
      else '; if there is a folder for each class, give --class_folders'
    )
    raise InputError(
      f'I01: {len(unused)} masks belong to no image, such as {unused[0]}{hint}.'
    )
  if not used:
    raise InputError(f'I01: there are no *.png in {folder}.')
  left_out = {'masks without a pixel': num_empty} if num_empty else {}
  return Annotations(objects, left_out)


def _read_mask(
  path: pathlib.Path, size: tuple[int, int]
) -> Int[np.ndarray, 'h w']:
  """Reads a PNG as one number for each pixel.

  Args:
    path: The PNG.
    size: (height, width) in pixels that the PNG must have.

  Returns:
    Pixels of the same value or color have the same number. It is 0 if the pixel
    is black or transparent.

  Raises:
    InputError: If the PNG cannot be read or has another size.
  """
  try:
    with Image.open(path) as image:
      # The array of a palette picture has the indices. They mark the objects;
      # the colors do not, because several indices may have the same color.
      values = np.array(image)
  except (OSError, ValueError, SyntaxError) as error:
    raise InputError(
      f'I02: {path} is no mask, because it cannot be read: {error}.'
    ) from error
  if values.shape[:2] != size:
    raise InputError(
      f'A09: {path} has {values.shape[0]}x{values.shape[1]} pixels (height x'
      f' width), but its image has {size[0]}x{size[1]}.'
    )
  values = values.astype(np.int64)
  if values.ndim == 3:
    if values.shape[2] in (2, 4):  # The last channel is alpha.
      values = values[..., :-1] * (values[..., -1:] > 0)
    values = values @ 256 ** np.arange(values.shape[2])
  return values
