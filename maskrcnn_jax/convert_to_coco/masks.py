"""Reads mask pictures: PNG files that mark the pixels of objects."""

import pathlib

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
  every value or color except 0 (black) is an object, or the pictures in a
  folder sub/a/, each of one object.

  Args:
    folder: Folder of the masks.
    sizes: The images that the masks may belong to.
    class_name: The class of all objects, unless there are class folders.
    class_folders: Whether the folder holds one folder of masks for each class,
      which has the name of the class.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of masks {folder}.')
  places = {class_name: folder}
  if class_folders:
    places = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
  objects, used, num_empty = {}, set(), 0
  for name, size in sizes.items():
    stem = pathlib.PurePath(name).with_suffix('')
    for class_, place in places.items():
      whole = place / stem.parent / f'{stem.name}.png'
      single = sorted((place / stem).glob('*.png'))
      if whole.is_file() and single:
        raise InputError(f'A20: both {whole} and {place / stem}/ are there.')
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
    hint = '' if class_folders else ' (--class_folders?)'
    raise InputError(
      f'I01: {len(unused)} masks are of no image, such as {unused[0]}{hint}.'
    )
  if not used:
    raise InputError(f'I01: there are no *.png in {folder}.')
  left_out = {'masks without a pixel': num_empty} if num_empty else {}
  return Annotations(objects, left_out)


def _read_mask(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
  """Reads a PNG as [h, w] numbers, 0 where it is black or transparent.

  Args:
    path: The PNG.
    size: (height, width) in pixels that it must have.
  """
  try:
    with Image.open(path) as image:
      # Of a palette the indices count as objects, not the colors, which may be
      # the same for several indices.
      values = np.array(image)
  except (OSError, ValueError, SyntaxError) as error:
    raise InputError(f'I02: {path} is no mask: {error}.') from error
  if values.shape[:2] != size:
    raise InputError(
      f'A09: {path} has {values.shape[0]}x{values.shape[1]} pixels (height x'
      f' width), but its image {size[0]}x{size[1]}.'
    )
  values = values.astype(np.int64)
  if values.ndim == 3:
    if values.shape[2] in (2, 4):  # The last channel is alpha.
      values = values[..., :-1] * (values[..., -1:] > 0)
    values = values @ 256 ** np.arange(values.shape[2])
  return values
