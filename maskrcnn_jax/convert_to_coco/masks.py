"""Reads mask pictures: PNG files that mark the pixels of objects."""

import pathlib

import numpy as np

from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
)
from maskrcnn_jax.convert_to_coco.drawn import Drawn, from_mask
from maskrcnn_jax.convert_to_coco.mask_pictures import (
  SUFFIXES,
  MaskPicture,
  count_smoothed,
  find_pictures,
  is_smoothed,
  read_picture,
)
from maskrcnn_jax.errors import InputError


def read_masks(
  folder: pathlib.Path,
  pictures: Pictures,
  class_name: str | None,
  class_folders: bool,
) -> Annotations:
  """Reads the mask pictures of all images.

  The masks of the image sub/a.jpg are either one picture sub/a.png, in which
  every value or color except 0 (black) is an object, or several pictures in a
  folder sub/a/, each of which shows one object.

  Args:
    folder: Folder of the mask pictures.
    pictures: The images that the masks may belong to.
    class_name: The class of all objects, unless there are class folders. `None`
      means `object`.
    class_folders: Whether the folder holds one folder of masks for each class,
      named after the class.

  Returns:
    The objects. If a mask of an image cannot be read or has the wrong size, the
    image is set aside.

  Raises:
    InputError: If there are no pictures, if an image has both kinds of masks,
      or if masks belong to no image while images have no mask.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of masks {folder}.')
  places = {class_name or 'object': folder}
  if class_folders:
    places = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
  by_stem: dict[pathlib.Path, list[pathlib.Path]] = {}
  by_folder: dict[pathlib.Path, list[pathlib.Path]] = {}
  for path in find_pictures(folder):
    by_stem.setdefault(path.with_suffix(''), []).append(path)
    by_folder.setdefault(path.parent, []).append(path)
  if not by_stem:
    raise InputError(
      f'I01: there are no *.png in {folder}; looked for {", ".join(SUFFIXES)}.'
    )
  found = Annotations(pictures)
  used: set[pathlib.Path] = set()
  for name in (*pictures.frames, *pictures.unreadable):
    stem = pathlib.PurePath(name).with_suffix('')
    of_class: list[tuple[str, list[pathlib.Path], bool]] = []
    for class_, place in places.items():
      whole = by_stem.get(place / stem, [])
      single = by_folder.get(place / stem, [])
      if len(whole) > 1 or (whole and single):
        raise InputError(
          f'A20: both {whole[0]} and {whole[1] if whole[1:] else single[0]}'
          f' are there for the image {name}; an image must have only one.'
        )
      used.update(whole, single)
      if whole or single:
        of_class.append((class_, whole or single, bool(whole)))
    if of_class:
      with found.tolerating(str(of_class[0][1][0]), name):
        _add_masks(name, of_class, found)
  _check_unused(
    [p for paths in by_stem.values() for p in paths if p not in used],
    class_folders,
    found,
  )
  return found


def _add_masks(
  name: str,
  of_class: list[tuple[str, list[pathlib.Path], bool]],
  found: Annotations,
) -> None:
  """Adds the objects of the mask pictures of an image.

  Args:
    name: File name of the image.
    of_class: For each class its name, its pictures, and whether they are one
      picture of many objects.
    found: Gets the objects.

  Raises:
    InputError: If a mask cannot be read, has another size than the image or
      than another mask, or is smoothed.
  """
  if name in found.pictures.unreadable:
    return
  drawn: list[Drawn] = []
  size: tuple[int, int] | None = None
  for class_, paths, is_whole in of_class:
    for path in paths:
      picture = read_picture(path, found.pictures.frames[name])
      shape = picture.numbers.shape
      if size not in (None, shape):
        raise InputError(f'A09: {path} has another size than other masks.')
      size = shape
      if picture.void.any():
        found.notes['masks have void pixels, which belong to no object'] += 1
      numbers = np.unique(picture.numbers[picture.numbers > 0])
      if not is_whole:
        if len(numbers):
          drawn.append(
            from_mask(class_, picture.numbers > _level(picture, found))
          )
        else:
          found.left_out['masks without a pixel'] += 1
        continue
      _check_values(picture, path, found)
      drawn += [from_mask(class_, picture.numbers == n) for n in numbers]
  found.add(name, drawn, size, str(of_class[0][1][0]))


def _level(picture: MaskPicture, found: Annotations) -> int:
  """Returns the value above which pixels belong to the object of a picture.

  Args:
    picture: The picture, of a single object.
    found: Gets a note if the picture is smoothed.
  """
  if not picture.is_gray or not is_smoothed(*count_smoothed(picture)):
    return 0
  found.notes[
    'masks of one object have smoothed edges; pixels above half of the largest'
    ' value were taken'
  ] += 1
  return int(picture.numbers.max()) // 2


def _check_values(
  picture: MaskPicture, path: pathlib.Path, found: Annotations
) -> None:
  """Checks that the values of a picture of many objects can be objects.

  Args:
    picture: The picture. Each value except 0 is an object.
    path: The file, for messages.
    found: Gets notes about pictures that may be misunderstood.

  Raises:
    InputError: If the picture is smoothed.
  """
  num_smoothed, num_values = count_smoothed(picture)
  if is_smoothed(num_smoothed, num_values):
    raise InputError(
      f'A25: {path} has {num_values} values besides the background, and'
      f' {num_smoothed} of them look like smoothed edges; a mask needs one'
      ' value for each object. Resize masks with nearest neighbor, save them'
      ' as PNG and never as JPEG, or choose a threshold.'
    )
  if num_smoothed:
    found.notes[
      'values of masks look like smoothed edges, but were written as objects'
    ] += num_smoothed
  if picture.is_gray and picture.numbers.max() == 255 and num_values > 1:
    found.notes[
      'gray masks have the value 255 besides other values; it was written as an'
      ' object, but in masks of Pascal VOC it is void (the format voc)'
    ] += 1


def _check_unused(
  unused: list[pathlib.Path],
  class_folders: bool,
  found: Annotations,
) -> None:
  """Counts the masks that belong to no image.

  If an image has no mask, one of them may be its mask under another name. That
  is an error, because the image would become a background image.

  Args:
    unused: The masks that belong to no image.
    class_folders: Whether `--class_folders` is given.
    found: Gets the count.

  Raises:
    InputError: If there are such masks, and images without masks.
  """
  if not unused:
    return
  without = [
    name
    for name in found.pictures.frames
    if name not in found.objects and name not in found.set_aside
  ]
  if without:
    hint = (
      ''
      if class_folders
      else '; if there is a folder for each class, give --class_folders'
    )
    raise InputError(
      f'I01: {len(unused)} masks belong to no image, such as {unused[0]}, and'
      f' {len(without)} images have no mask, such as {without[0]}; a mask has'
      f' the name of its image{hint}.'
    )
  found.left_out['masks that belong to no image'] += len(unused)
