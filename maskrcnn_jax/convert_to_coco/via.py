"""Reads the annotations of the VGG Image Annotator (VIA), versions 1 and 2."""

import collections
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


def read_via(
  path: pathlib.Path,
  sizes: ImageSizes,
  attribute: str | None,
  class_name: str,
) -> Annotations:
  """Reads the objects from a project or a JSON export of VIA.

  Rectangles, circles and ellipses become polygons. Lines and points are left
  out.

  Args:
    path: The JSON file.
    sizes: All images. The file may not name others; it need not name all.
    attribute: The region attribute that holds the class. With `None`, it is the
      only attribute of each region; a region with several is then an error.
    class_name: The class of regions without attributes, if `attribute` is
      `None`.

  Returns:
    The objects of each image, and the number of regions left out of each kind.

  Raises:
    InputError: If the file cannot be read or is damaged, if an image is not
      found, or if a region does not name exactly one class.
  """
  content = read_json(path)
  content = content.get('_via_img_metadata', content)
  if not content or not all(
    isinstance(entry, dict) and 'filename' in entry and 'regions' in entry
    for entry in content.values()
  ):
    raise InputError(
      f'A25: {path} is no VIA export; in VIA choose Annotation, Export '
      'Annotations (as json).'
    )
  objects: dict[str, list[Object]] = {}
  left_out: collections.Counter[str] = collections.Counter()
  for entry in content.values():
    name = find_image(entry['filename'], sizes, path)
    regions = entry['regions']
    if isinstance(regions, dict):  # VIA 1
      regions = list(regions.values())
    for region in regions:
      where = f'{path}: a region of {name}'
      try:
        shape = region['shape_attributes']
        polygon = _polygon_of(shape)
        attributes = region.get('region_attributes') or {}
        if not isinstance(attributes, dict):
          raise InputError(
            f'A25: {where} is damaged: its region_attributes are '
            f'{attributes!r}; they must be an object {{name: value}}.'
          )
        class_ = _class_of(attributes, attribute, class_name, where)
      except InputError:  # It is a ValueError too, but it names the fault.
        raise
      except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'A25: {where} is damaged: {error!r}.') from error
      if polygon is None:
        left_out[f'regions of the kind {shape["name"]}'] += 1
        continue
      objects.setdefault(name, []).append(Object(class_, [polygon]))
  return Annotations(objects, left_out)


def _polygon_of(shape: Any) -> list[float] | None:
  """Returns the polygon of a VIA region; `None` for lines and points.

  Args:
    shape: The `shape_attributes` of the region as the file has them.

  Raises:
    KeyError: If a key is missing.
    TypeError: If a value is of the wrong type.
    ValueError: If a number is not finite, or there are too few points.
  """
  match shape['name']:
    case 'polygon':
      return polygons.from_points(
        zip(shape['all_points_x'], shape['all_points_y'], strict=True)
      )
    case 'rect':
      x, y = shape['x'], shape['y']
      return polygons.from_rectangle(
        x, y, x + shape['width'], y + shape['height']
      )
    case 'circle':
      return polygons.from_ellipse(
        shape['cx'], shape['cy'], shape['r'], shape['r']
      )
    case 'ellipse':
      return polygons.from_ellipse(
        shape['cx'],
        shape['cy'],
        shape['rx'],
        shape['ry'],
        shape.get('theta', 0),
      )
  return None


def _class_of(
  attributes: dict[str, Any],
  attribute: str | None,
  class_name: str,
  where: str,
) -> str:
  """Returns the class name of a VIA region.

  Args:
    attributes: The `region_attributes` of the region as the file has them.
    attribute: The attribute that holds the class. `None` takes the only one.
    class_name: The class of a region without attributes, if `attribute` is
      `None`.
    where: Names the file and the region in messages.

  Raises:
    InputError: If the attributes do not name exactly one class.
  """
  if attribute is None:
    if not attributes:
      return class_name
    if len(attributes) > 1:
      raise InputError(
        f'{where} has the attributes {", ".join(attributes)}; give '
        '--class_attribute=NAME.'
      )
    attribute = next(iter(attributes))
  value = attributes.get(attribute)
  if isinstance(value, dict):  # VIA writes checkboxes as {value: is it on}.
    value = next((key for key, on in value.items() if on), None)
  if not isinstance(value, str) or not value.strip():
    raise InputError(
      f'{where} has no class: its attribute {attribute!r} is {value!r}.'
    )
  return value.strip()
