"""Reads the annotations of LabelMe: one JSON file for each image.

Source:
  The files that LabelMe (github.com/wkentaro/labelme, its examples) and
  X-AnyLabeling (github.com/CVHub520/X-AnyLabeling, its user guide) write.
  A shape of the kind `mask` has a base64 PNG and two points: its first and its
  last column and row, both inside the mask.
"""

import base64
from collections.abc import Hashable
import io
import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_jax.convert_to_coco import polygons
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  class_text,
  find_image,
  read_json,
  reason,
  shown,
)
from maskrcnn_jax.convert_to_coco.drawn import Drawn, from_mask, merged
from maskrcnn_jax.convert_to_coco.mask_pictures import DECODE_ERRORS
from maskrcnn_jax.errors import InputError

# Labels that LabelMe's own converters do not read as classes.
_NO_CLASS = ('__ignore__', '_background_')


def read_labelme(path: pathlib.Path, pictures: Pictures) -> Annotations:
  """Reads the objects from LabelMe files.

  Args:
    path: One JSON file, or a folder that has JSON files in it or in its
      sub-folders.
    pictures: The images that the files may name.

  Returns:
    The objects. A file that is damaged or does not fit its image, or whose
    image is not found, is a fault, and its image is set aside.

  Raises:
    InputError: If there are no files, or if an image has two files.
  """
  paths = sorted(path.rglob('*.json')) if path.is_dir() else [path]
  if not paths:
    raise InputError(f'I01: there are no *.json in {path}.')
  found = Annotations(pictures)
  for file in paths:
    with found.tolerating(str(file), pictures.of_stem(file)):
      content = read_json(file)
      if isinstance(content, dict) and {'images', 'annotations'} <= set(
        content
      ):
        # The result of an earlier conversion is often beside its sources.
        found.left_out['files of COCO'] += 1
        continue
      if (
        not isinstance(content, dict)
        or not isinstance(content.get('shapes'), list)
        or not isinstance(content.get('imagePath'), str)
      ):
        raise InputError(
          f'A25: {file} is no LabelMe file: it has no shapes or no imagePath.'
        )
      folder = '' if file == path else file.parent.relative_to(path).as_posix()
      name = find_image(content['imagePath'], pictures, str(file), folder)
      with found.tolerating(str(file), name):
        _add_file(content, name, file, found)
  return found


def _add_file(
  content: dict[str, Any], name: str, file: pathlib.Path, found: Annotations
) -> None:
  """Adds the objects of one LabelMe file.

  Shapes with the same label and the same group_id are one object. A shape
  without a group_id is an object by itself.

  Args:
    content: The content of the file.
    name: The file name of the image.
    file: The file, for error messages.
    found: Gets the objects.

  Raises:
    InputError: If a shape is damaged or has no label.
  """
  if name in found.pictures.unreadable:
    return
  size: Any = content.get('imageHeight'), content.get('imageWidth')
  declared = None if None in size else size
  found.check_size(name, declared, str(file))
  canvas = declared or found.pictures.frames[name].shown_size
  objects: dict[Hashable, list[Drawn]] = {}
  for position, shape in enumerate(content['shapes']):
    where = f'{file}: shape {position}'
    try:
      label, group = class_text(shape['label']), shape.get('group_id')
      kind = shape.get('shape_type') or 'polygon'
      if label in _NO_CLASS:
        found.left_out[f'shapes with the label {label}'] += 1
        continue
      drawn = _draw(kind, shape, label or '', canvas, found)
    except InputError:  # It is a ValueError too, but it names the fault.
      raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(f'A25: {where} is damaged: {reason(error)}.') from error
    if drawn is None:
      continue
    if label is None:
      raise InputError(f'{where} has no label.')
    if isinstance(group, list | dict):
      raise InputError(
        f'A25: {where} is damaged: its group_id is {shown(group)}; '
        'it must be a number, a text or null.'
      )
    key = (label, group) if group is not None else position
    objects.setdefault(key, []).append(drawn)
  found.add(
    name,
    [merged(parts, canvas) for parts in objects.values()],
    declared,
    str(file),
  )


def _draw(
  kind: Any,
  shape: dict[str, Any],
  label: str,
  canvas: tuple[int, int],
  found: Annotations,
) -> Drawn | None:
  """Returns the object of a LabelMe shape; `None` if the shape is left out.

  Args:
    kind: The `shape_type`, such as 'rectangle'.
    shape: The shape as the file has it.
    label: The class.
    canvas: (height, width) in pixels of the annotated picture.
    found: Counts the shapes that are left out, and the rectangles.

  Raises:
    KeyError: If the shape lacks an entry.
    TypeError: If the points are not lists of numbers.
    ValueError: If the number of the points does not fit the kind.
  """
  points = shape['points']
  match kind:
    case 'polygon' | 'quadrilateral':
      polygon = polygons.from_points(points)
    case 'rectangle' | 'rotation' | 'oriented_rectangle':
      polygon = polygons.from_corners(points)
      found.notes[polygons.RECTANGLES] += bool(polygon)
    case 'circle':
      (x, y), (edge_x, edge_y) = polygons.pairs(points, 2)
      radius = math.hypot(edge_x - x, edge_y - y)
      polygon = polygons.from_ellipse(x, y, radius, radius)
    case 'mask':
      return from_mask(label, _paste(shape, canvas))
    case _:
      found.left_out[f'shapes of the kind {kind}'] += 1
      return None
  if not polygon:
    found.left_out[f'shapes of the kind {kind} with too few points'] += 1
    return None
  return Drawn(label, [polygon])


def _paste(shape: dict[str, Any], canvas: tuple[int, int]) -> np.ndarray:
  """Returns the mask of a shape of the kind `mask`, at the size of the picture.

  Args:
    shape: The shape as the file has it.
    canvas: (height, width) in pixels of the annotated picture.

  Raises:
    KeyError: If the shape has no mask.
    TypeError: If the mask is no text, or a point has something but numbers.
    ValueError: If the mask is no PNG, or its size does not fit the points.
  """
  (x1, y1), (x2, y2) = (
    [int(polygons.number(value)) for value in point]
    for point in shape['points']
  )
  try:
    content = base64.b64decode(shape['mask'], validate=True)
    with Image.open(io.BytesIO(content), formats=['PNG']) as image:
      if image.size != (x2 - x1 + 1, y2 - y1 + 1):
        raise ValueError(
          f'its mask has {image.width}x{image.height} pixels (width x height),'
          f' but its points span {x2 - x1 + 1}x{y2 - y1 + 1}'
        )
      pixels = np.array(image.convert('L')) > 0
  except DECODE_ERRORS as error:
    if isinstance(error, KeyError):  # The shape has no mask.
      raise
    raise ValueError(f'its mask cannot be read: {error}') from error
  mask = np.zeros(canvas, bool)
  top, left = max(y1, 0), max(x1, 0)
  inside = pixels[top - y1 : canvas[0] - y1, left - x1 : canvas[1] - x1]
  height, width = inside.shape
  mask[top : top + height, left : left + width] = inside
  return mask
