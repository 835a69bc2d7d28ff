"""Reads the annotations of the VGG Image Annotator (VIA), versions 1 and 2.

Source:
  The JSON exports of VIA 1.0.6 and 2.0.x, robots.ox.ac.uk/~vgg/software/via.
"""

import pathlib
from typing import Any

from maskrcnn_jax.convert_to_coco import polygons
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  WholeSetError,
  class_text,
  find_image,
  read_json,
  reason,
  shown,
)
from maskrcnn_jax.convert_to_coco.drawn import Drawn
from maskrcnn_jax.errors import InputError

# The class of all regions if no region of the file has an attribute.
_ONLY_CLASS = 'object'


def read_via(
  path: pathlib.Path,
  pictures: Pictures,
  attribute: str | None,
  class_name: str | None,
) -> Annotations:
  """Reads the objects from a project or a JSON export of VIA.

  Rectangles, circles and ellipses become polygons. Lines and points are left
  out.

  Args:
    path: The JSON file.
    pictures: All images. The file need not name all.
    attribute: The region attribute that holds the class. With `None`, it is the
      only attribute that regions have; several are an error.
    class_name: The class of regions that have none. With `None`, such a region
      is an error, unless no region has a class: then all are `object`.

  Returns:
    The objects. An image whose entry is damaged is set aside.

  Raises:
    InputError: If the file cannot be read or is no VIA export, or if a region
      does not name exactly one class.
  """
  content = read_json(path)
  if isinstance(content, dict):
    content = content.get('_via_img_metadata', content)
  if not is_via(content):
    raise InputError(
      f'A25: {path} is no VIA export; in VIA choose Annotation, Export '
      'Annotations (as json).'
    )
  found = Annotations(pictures)
  drawn: dict[str, list[tuple[list[float], dict[str, Any]]]] = {}
  for key, entry in content.items():
    with found.tolerating(f'{path}: {key}', None):
      name = find_image(entry['filename'], pictures, str(path))
      if name in drawn:
        raise WholeSetError(
          f'A20: {path} has two entries of the image {name}; remove the first'
          ' or the second.'
        )
      with found.tolerating(f'{path}: {key}', name):
        drawn[name] = _read_regions(entry['regions'], name, path, found)
  if attribute is None:
    attribute = _only_attribute(drawn, path)
    if attribute is None:
      class_name = class_name or _ONLY_CLASS
  for name, shapes in drawn.items():
    where = f'{path}: a region of {name}'
    objects = [
      Drawn(_class_of(attributes, attribute, class_name, where), [polygon])
      for polygon, attributes in shapes
    ]
    with found.tolerating(where, name):
      found.add(name, objects, None, str(path))
  return found


def is_via(content: Any) -> bool:
  """Tells whether a value of JSON has the form of VIA's annotations."""
  return (
    isinstance(content, dict)
    and bool(content)
    and all(
      isinstance(entry, dict) and 'filename' in entry and 'regions' in entry
      for entry in content.values()
    )
  )


def _read_regions(
  regions: Any, name: str, path: pathlib.Path, found: Annotations
) -> list[tuple[list[float], dict[str, Any]]]:
  """Returns the polygon and the attributes of each region of an image.

  Args:
    regions: The regions as the file has them.
    name: The image, for messages.
    path: The file, for messages.
    found: Counts the regions that are left out, and the rectangles.

  Raises:
    InputError: If a region is damaged.
  """
  if isinstance(regions, dict):  # VIA 1
    regions = list(regions.values())
  if not isinstance(regions, list):
    raise InputError(
      f'A25: {path}: the regions of {name} are {shown(regions)}; they must be'
      ' a list or an object.'
    )
  shapes = []
  for region in regions:
    where = f'{path}: a region of {name}'
    try:
      shape = region['shape_attributes']
      polygon = _polygon_of(shape, found)
      attributes = region.get('region_attributes') or {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(f'A25: {where} is damaged: {reason(error)}.') from error
    if not isinstance(attributes, dict):
      raise InputError(
        f'A25: {where} is damaged: its region_attributes are '
        f'{shown(attributes)}; they must be an object {{name: value}}.'
      )
    if polygon:
      shapes.append((polygon, attributes))
  return shapes


def _polygon_of(shape: Any, found: Annotations) -> list[float]:
  """Returns the polygon of a VIA region; empty if the region is left out.

  Args:
    shape: The `shape_attributes` of the region as the file has them.
    found: Counts the regions that are left out, and the rectangles.

  Raises:
    KeyError: If a key is missing.
    TypeError: If a value is of the wrong type.
    ValueError: If a number is not finite.
  """

  def numbers(*keys: str) -> list[float]:
    return [polygons.number(shape[key]) for key in keys]

  match shape['name']:
    case 'polygon':
      polygon = polygons.from_points(
        zip(shape['all_points_x'], shape['all_points_y'], strict=True)
      )
    case 'rect':
      x, y, width, height = numbers('x', 'y', 'width', 'height')
      found.notes[polygons.RECTANGLES] += 1
      return polygons.from_rectangle(x, y, x + width, y + height)
    case 'circle':
      x, y, radius = numbers('cx', 'cy', 'r')
      return polygons.from_ellipse(x, y, radius, radius)
    case 'ellipse':
      x, y, radius_x, radius_y = numbers('cx', 'cy', 'rx', 'ry')
      theta = polygons.number(shape.get('theta') or 0)
      return polygons.from_ellipse(x, y, radius_x, radius_y, theta)
    case kind:
      found.left_out[f'regions of the kind {kind}'] += 1
      return []
  if not polygon:
    found.left_out['regions of the kind polygon with too few points'] += 1
  return polygon


def _only_attribute(
  drawn: dict[str, list[tuple[list[float], dict[str, Any]]]],
  path: pathlib.Path,
) -> str | None:
  """Returns the attribute that regions have; `None` if no region has one.

  Args:
    drawn: The polygon and the attributes of each region, by the image.
    path: The file, for the message.

  Raises:
    InputError: If there are several attributes, because only the user knows
      which of them is the class.
  """
  names: dict[str, None] = {}
  for image, shapes in drawn.items():
    for _, attributes in shapes:
      names |= dict.fromkeys(attributes)
      if len(names) > 1:
        subject = f'a region of {image} has the attributes'
        if len(attributes) < len(names):
          subject = 'the regions have the attributes'
        raise InputError(
          f'{path}: {subject} {", ".join(names)}; give --class_attribute=NAME'
          ' with the one that is the class.'
        )
  return next(iter(names), None)


def _class_of(
  attributes: dict[str, Any],
  attribute: str | None,
  class_name: str | None,
  where: str,
) -> str:
  """Returns the class name of a VIA region.

  Args:
    attributes: The `region_attributes` of the region as the file has them.
    attribute: The attribute that holds the class; `None` if there is none.
    class_name: The class of a region without a class. `None` makes such a
      region an error.
    where: Names the file and the region in messages.

  Raises:
    InputError: If the attributes do not name exactly one class.
  """
  value = attributes.get(attribute) if attribute is not None else None
  if isinstance(value, dict):  # VIA writes checkboxes as {value: is it on}.
    values = [key for key, on in value.items() if on]
    if len(values) > 1:
      raise InputError(
        f'{where} has several classes: its attribute {attribute!r} is'
        f' {", ".join(values)}.'
      )
    value = next(iter(values), None)
  class_ = class_text(value) or class_name
  if class_ is None:
    raise InputError(
      f'{where} has no class: its attribute {attribute!r} is {shown(value)};'
      ' give it one in VIA, or give --class_name=NAME for the regions without'
      ' a class.'
    )
  return class_
