"""Reads masks in the layout of Pascal VOC.

SegmentationObject/a.png numbers the objects of the image a.jpg, and
SegmentationClass/a.png has the class of each pixel. Both are palette pictures,
in which 255 is void, or color pictures with the colors of the palette. CVAT's
"Segmentation mask" writes colors, and their classes in labelmap.txt.

Source:
  Everingham, Winn, The PASCAL Visual Object Classes Challenge 2012 Development
  Kit, section "Segmentation", and its VOClabelcolormap;
  docs.cvat.ai, "Segmentation mask", for labelmap.txt.
"""

import pathlib

from jaxtyping import Int
import numpy as np

from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  WholeSetError,
  check_share,
  read_text,
)
from maskrcnn_jax.convert_to_coco.drawn import from_mask
from maskrcnn_jax.convert_to_coco.mask_pictures import (
  MaskPicture,
  find_pictures,
  read_picture,
)
from maskrcnn_jax.errors import InputError

OBJECTS, CLASSES = 'SegmentationObject', 'SegmentationClass'

_VOID = 255

_VOC_CLASSES = (
  'aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog'
  ' horse motorbike person pottedplant sheep sofa train tvmonitor'
).split()

Color = tuple[int, int, int]


def read_voc(
  folder: pathlib.Path, pictures: Pictures, classes: list[str] | None
) -> tuple[Annotations, list[str]]:
  """Reads the objects from the masks of Pascal VOC.

  The class of an object is the one that most of its pixels have. In VOC, only
  some of the images have masks. The objects of the others are not known, so
  they are set aside.

  Args:
    folder: The folder with SegmentationObject and SegmentationClass.
    pictures: The images.
    classes: Names of the class numbers 1, 2, ..., if there is no labelmap.txt.
      `None` means the 20 classes of VOC.

  Returns:
    The objects, and the names of all classes.

  Raises:
    InputError: If a folder is missing or empty, a class has no name, or more
      masks belong to no image than to one.
  """
  for place in (folder / OBJECTS, folder / CLASSES):
    if not place.is_dir():
      raise InputError(
        f'I01: there is no folder {place}; the format voc needs {OBJECTS} and'
        f' {CLASSES}. The classes alone do not tell where an object ends.'
      )
  of_color: dict[Color, str] = {}
  label_map = folder / 'labelmap.txt'
  if label_map.is_file():
    of_color = _read_label_map(label_map)
    names = list(of_color.values())
  else:
    names = classes or list(_VOC_CLASSES)
  masks = find_pictures(folder / OBJECTS)
  if not masks:
    raise InputError(f'I01: there are no *.png in {folder / OBJECTS}.')
  found = Annotations(pictures)
  unused: dict[str, str] = {}
  for path in masks:
    image = pictures.of_stem(path)
    if image is None:
      unused[str(path)] = f'I01: {path} belongs to no image of the folder.'
      continue
    with found.tolerating(str(path), image):
      if image in pictures.frames:
        _add_image(image, path, folder, of_color, names, found)
  check_share(unused, len(masks) - len(unused), 'masks')
  if unused:
    found.left_out['masks that belong to no image'] += len(unused)
  for image in pictures.frames:
    if image not in found.objects and image not in found.set_aside:
      found.set_aside.add(image)
      found.left_out['images without masks (their objects are not known)'] += 1
  return found, names


def _add_image(
  image: str,
  path: pathlib.Path,
  folder: pathlib.Path,
  of_color: dict[Color, str],
  names: list[str],
  found: Annotations,
) -> None:
  """Adds the objects of an image.

  Args:
    image: File name of the image.
    path: The picture of the objects.
    folder: The folder with SegmentationObject and SegmentationClass.
    of_color: The class of each color; empty without a labelmap.txt.
    names: The names of the class numbers 1, 2, ...
    found: Gets the objects.

  Raises:
    WholeSetError: If a class has no name.
    InputError: If a picture cannot be read or has another size, or an object
      has no class.
  """
  frame = found.pictures.frames[image]
  objects = read_picture(path, frame)
  size = objects.numbers.shape
  found.check_size(image, size, str(path))
  relative = path.relative_to(folder / OBJECTS)
  class_path = folder / CLASSES / relative
  if not class_path.is_file():
    raise InputError(f'I01: there is no {class_path} beside {path}.')
  classes = read_picture(class_path, frame)
  if classes.numbers.shape != size:
    raise InputError(
      f'A09: {class_path} and {path} have different sizes; both must have that'
      ' of the image.'
    )
  numbers = _without_void(objects)
  class_numbers = _without_void(classes)
  if (numbers != objects.numbers).any() or objects.void.any():
    found.notes['masks have void pixels, which belong to no object'] += 1
  drawn = []
  for number in np.unique(numbers[numbers > 0]):
    mask = numbers == number
    votes = class_numbers[mask]
    values, counts = np.unique(votes[votes > 0], return_counts=True)
    if not len(values):
      raise InputError(
        f'A14: the object {number} of {path} has no class in {class_path}.'
      )
    class_number = values[counts.argmax()].item()
    name = _name_of(class_number, classes, of_color, names, class_path)
    drawn.append(from_mask(name, mask))
  found.add(image, drawn, size, str(path))


def _without_void(picture: MaskPicture) -> Int[np.ndarray, 'h w']:
  """Returns the numbers of a picture; void is 0, also in gray pictures."""
  if not picture.is_gray:
    return picture.numbers
  return np.where(picture.numbers == _VOID, 0, picture.numbers)


def _name_of(
  number: int,
  picture: MaskPicture,
  of_color: dict[Color, str],
  names: list[str],
  path: pathlib.Path,
) -> str:
  """Returns the name of a class.

  Args:
    number: The number of the class in the picture.
    picture: The picture of the classes.
    of_color: The class of each color; empty without a labelmap.txt.
    names: The names of the class numbers 1, 2, ...
    path: The picture, for messages.

  Raises:
    WholeSetError: If the class has no name.
  """
  color = picture.colors.get(number)
  if of_color and color is not None:
    if color not in of_color:
      raise WholeSetError(
        f'A14: {path} has the color {color}, which is not in labelmap.txt.'
      )
    return of_color[color]
  if color is not None and not picture.has_palette:
    by_color = {color_of(i): i for i in range(1, 256)}
    if color not in by_color:
      raise WholeSetError(
        f'A14: {path} has the color {color}, which is no color of Pascal VOC;'
        ' give the classes and their colors in labelmap.txt.'
      )
    number = by_color[color]
  if number > len(names):
    raise WholeSetError(
      f'A14: {path} has the class {number}, but there are names of the classes'
      f' 1 to {len(names)} only; give all with --classes=NAME,NAME,...'
    )
  return names[number - 1]


def color_of(number: int) -> Color:
  """Returns the color of a number in the palette of Pascal VOC.

  Bits 0, 3 and 6 of the number become the highest bits of red, bits 1, 4 and 7
  those of green, and bits 2 and 5 those of blue.

  Args:
    number: From 0 to 255.
  """
  channels = [0, 0, 0]
  for bit in range(8):
    if number >> bit & 1:
      channels[bit % 3] |= 128 >> bit // 3
  red, green, blue = channels
  return red, green, blue


def _read_label_map(path: pathlib.Path) -> dict[Color, str]:
  """Reads the classes of a labelmap.txt, in their order.

  A line is NAME:RED,GREEN,BLUE:PARTS:ACTIONS; a line with # is a comment. The
  class `background` has the color of the background.

  Raises:
    InputError: If a line is damaged, or a name or a color comes twice.
  """
  found: dict[Color, str] = {}
  for line in read_text(path).splitlines():
    if not line.strip() or line.startswith('#'):
      continue
    name, _, rest = line.partition(':')
    try:
      red, green, blue = (int(word) for word in rest.split(':')[0].split(','))
    except ValueError as error:
      raise InputError(
        f'A25: {path}: the line {line!r} is damaged; it must be'
        ' NAME:RED,GREEN,BLUE:PARTS:ACTIONS.'
      ) from error
    name = name.strip()
    if (red, green, blue) == (0, 0, 0):
      continue
    if (red, green, blue) in found or name in found.values():
      raise InputError(f'A15: {path}: the line {line!r} repeats a class.')
    found[red, green, blue] = name
  if not found:
    raise InputError(f'A13: {path} has no class.')
  return found
