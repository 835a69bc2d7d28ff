"""Reads the annotations of LabelMe: one JSON file for each image."""

import collections
from collections.abc import Hashable
import math
import pathlib
from typing import Any

from maskrcnn_jax.convert_to_coco import polygons
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  ImageSizes,
  Object,
  find_image,
  read_json,
)
from maskrcnn_jax.errors import InputError


def read_labelme(path: pathlib.Path, sizes: ImageSizes) -> Annotations:
  """Reads the objects from LabelMe files.

  Args:
    path: One JSON file, or a folder that has JSON files in it or in its
      sub-folders.
    sizes: The images that the files may name.

  Raises:
    InputError: If there are no files, if a file is damaged or does not fit its
      image, if its image is not found, or if an image has two files.
  """
  paths = sorted(path.rglob('*.json')) if path.is_dir() else [path]
  if not paths:
    raise InputError(f'I01: there are no *.json in {path}.')
  objects: dict[str, list[Object]] = {}
  left_out: collections.Counter[str] = collections.Counter()
  for file in paths:
    content = read_json(file)
    if not isinstance(content.get('shapes'), list) or not isinstance(
      content.get('imagePath'), str
    ):
      raise InputError(
        f'A25: {file} is no LabelMe file: it has no shapes or no imagePath.'
      )
    name = find_image(content['imagePath'], sizes, file)
    if name in objects:
      raise InputError(
        f'A20: {file} is the second file for the image {name}; remove one of'
        ' the two.'
      )
    size = content.get('imageHeight'), content.get('imageWidth')
    if None not in size and size != sizes[name]:
      raise InputError(
        f'I05: {file} is for {size[0]}x{size[1]} pixels (height x width), '
        f'but {name} has {sizes[name][0]}x{sizes[name][1]}.'
      )
    objects[name] = _objects_of(content['shapes'], file, left_out)
  return Annotations(objects, left_out)


def _objects_of(
  shapes: list[Any], file: pathlib.Path, left_out: collections.Counter[str]
) -> list[Object]:
  """Returns the objects of one LabelMe file.

  Shapes with the same label and the same group_id are one object. A shape
  without a group_id is an object by itself.

  Args:
    shapes: The shapes as the file has them.
    file: The file, for error messages.
    left_out: Counts the shapes that are left out (lines and points), by their
      kind. It is changed.

  Raises:
    InputError: If a shape is damaged or has no label.
  """
  objects: dict[Hashable, Object] = {}
  for position, shape in enumerate(shapes):
    try:
      label, group = shape['label'], shape.get('group_id')
      kind = shape.get('shape_type') or 'polygon'
      polygon = _polygon_of(kind, shape['points'])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(
        f'A25: {file}: shape {position} is damaged: {error!r}.'
      ) from error
    if not isinstance(label, str) or not label.strip():
      raise InputError(f'{file}: shape {position} has no label.')
    if polygon is None:
      left_out[f'shapes of the kind {kind}'] += 1
      continue
    if isinstance(group, list | dict):
      raise InputError(
        f'A25: {file}: shape {position} is damaged: its group_id is {group!r}; '
        'it must be a number, a text or null.'
      )
    key = (label, group) if group is not None else position
    object_ = objects.setdefault(key, Object(label.strip(), []))
    object_.polygons.append(polygon)
  return list(objects.values())


def _polygon_of(kind: str, points: Any) -> list[float] | None:
  """Returns the polygon of a LabelMe shape; `None` for lines and points.

  Args:
    kind: The `shape_type`, such as 'rectangle'.
    points: The `points` of the shape, a list of (x, y) in pixels.

  Raises:
    TypeError: If the points are not lists of numbers.
    ValueError: If the number of the points does not fit the kind.
  """
  match kind:
    case 'polygon':
      return polygons.from_points(points)
    case 'rectangle':
      (x1, y1), (x2, y2) = points
      return polygons.from_rectangle(
        min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
      )
    case 'circle':
      (x, y), (edge_x, edge_y) = points
      radius = math.hypot(edge_x - x, edge_y - y)
      return polygons.from_ellipse(x, y, radius, radius)
  return None
