"""Reads the XML of CVAT, of images and of videos.

An entity that a document defines can grow to gigabytes, or read another file.
CVAT defines none, so a document that does is refused. The parser is expat of
the standard library. Its handler of entities is all that is needed, so there is
no dependency on defusedxml.

Source:
  docs.cvat.ai, "XML annotation format", version 1.1.
"""

import math
import pathlib
import re
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from maskrcnn_jax.convert_to_coco import polygons
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  class_text,
  find_image,
  read_bytes,
  reason,
)
from maskrcnn_jax.convert_to_coco.drawn import Drawn, from_mask, merged
from maskrcnn_jax.errors import InputError

# Elements of an image or a track that are shapes.
_SHAPES = (
  'polygon',
  'box',
  'ellipse',
  'mask',
  'polyline',
  'points',
  'cuboid',
  'skeleton',
)

# Levels of elements in each other. Deeper documents are no annotations.
_MAX_DEPTH = 32


def read_cvat(
  path: pathlib.Path, pictures: Pictures
) -> tuple[Annotations, list[str]]:
  """Reads the objects from an XML file of CVAT.

  Shapes of an image with the same label and the same group are one object.
  Frame 7 of a video is the image frame_000007, as CVAT exports it.

  Args:
    path: The XML file, or a folder with one XML file.
    pictures: The images.

  Returns:
    The objects, and the labels that the file lists. An image whose entry is
    damaged is set aside.

  Raises:
    InputError: If the file cannot be read, or is no XML of CVAT.
  """
  if path.is_dir():
    files = sorted(path.glob('*.xml'))
    if len(files) != 1:
      raise InputError(
        f'A25: there are {len(files)} XML files in {path}; give the one of'
        ' CVAT.'
      )
    path = files[0]
  root = parse_xml(path)
  if root.tag != 'annotations':
    hint = ''
    if root.tag == 'annotation':
      hint = (
        '; it looks like boxes of Pascal VOC, which have no masks. The format'
        ' voc reads the folders SegmentationObject and SegmentationClass'
      )
    raise InputError(
      f'A25: {path} is no XML of CVAT, because its first element is'
      f' {root.tag!r} and not annotations{hint}.'
    )
  found = Annotations(pictures)
  entries = [
    (str(element.get('name')), element, _size(element, 'width', 'height'))
    for element in root.iter('image')
  ]
  entries += _frames(root, path, pictures)
  for name, element, declared in entries:
    entry = f'{path}: image {name}'
    with found.tolerating(entry, None):
      image = find_image(name, pictures, str(path))
      with found.tolerating(entry, image):
        if image in pictures.frames:
          found.check_size(image, declared, str(path))
          canvas = declared or pictures.frames[image].shown_size
          drawn = _objects_of(element, canvas, entry, found)
          found.add(image, drawn, declared, str(path))
  labels = [
    name.text.strip()
    for label in root.iter('label')
    for name in label.findall('name')
    if name.text and name.text.strip() and label.findtext('parent') is None
  ]
  return found, list(dict.fromkeys(labels))


def parse_xml(path: pathlib.Path) -> ElementTree.Element:
  """Parses an XML file without entities of its own.

  Raises:
    InputError: If the file cannot be read, is no XML, defines an entity, or has
      too many levels.
  """
  content = read_bytes(path)
  builder = ElementTree.TreeBuilder()
  parser = expat.ParserCreate()
  depth = 0

  def start(tag: str, attributes: dict[str, str]) -> None:
    nonlocal depth
    depth += 1
    if depth > _MAX_DEPTH:
      raise InputError(f'A25: {path} has more than {_MAX_DEPTH} levels.')
    builder.start(tag, attributes)

  def end(tag: str) -> None:
    nonlocal depth
    depth -= 1
    builder.end(tag)

  def refuse(*_: Any) -> None:
    raise InputError(
      f'A25: {path} defines an entity; no file of CVAT does, and an entity can'
      ' grow without limit.'
    )

  parser.StartElementHandler = start
  parser.EndElementHandler = end
  parser.CharacterDataHandler = builder.data
  parser.EntityDeclHandler = refuse
  parser.buffer_text = True
  try:
    parser.Parse(content, True)
    return builder.close()
  except InputError:
    raise
  except (expat.ExpatError, LookupError, ValueError, AssertionError) as error:
    raise InputError(f'A25: {path} is no XML: {error}.') from error


def _size(
  element: ElementTree.Element, width: str, height: str
) -> tuple[int, int] | None:
  """Returns (height, width) of an element in pixels; `None` if it has none.

  Args:
    element: The element.
    width: Name of the attribute of the width.
    height: Name of the attribute of the height.
  """
  texts = element.get(height), element.get(width)
  if not all(text and re.fullmatch(r'[0-9]{1,9}', text) for text in texts):
    return None
  return int(str(texts[0])), int(str(texts[1]))


def _frames(
  root: ElementTree.Element, path: pathlib.Path, pictures: Pictures
) -> list[tuple[str, ElementTree.Element, tuple[int, int] | None]]:
  """Returns the shapes of a video, ordered by the frame as images are.

  Args:
    root: The document.
    path: The file, for messages.
    pictures: The images, which have the number of the frame at the end of their
      names.

  Returns:
    For each frame its image, an element with its shapes, and (height, width) of
    the video in pixels, or `None`.

  Raises:
    InputError: If a shape has no number of a frame.
  """
  size = root.find('.//original_size')
  declared = None
  if size is not None:
    attributes = {child.tag: (child.text or '').strip() for child in size}
    declared = _size(ElementTree.Element('size', attributes), 'width', 'height')
  by_number = {}
  for name in (*pictures.frames, *pictures.unreadable):
    digits = re.search(r'([0-9]{1,12})$', pathlib.PurePath(name).stem)
    if digits:
      by_number[int(digits[1])] = name
  frames: dict[str, ElementTree.Element] = {}
  for track in root.iter('track'):
    for shape in track:
      if shape.tag not in _SHAPES or shape.get('outside') == '1':
        continue
      number = shape.get('frame', '')
      if not re.fullmatch(r'[0-9]{1,12}', number):
        raise InputError(
          f'A25: {path}: a shape of a track has the frame {number!r}; it must'
          ' be a number.'
        )
      name = by_number.get(int(number), f'frame_{int(number):06d}')
      shape.set('label', track.get('label') or '')
      frames.setdefault(name, ElementTree.Element('image')).append(shape)
  return [(name, element, declared) for name, element in frames.items()]


def _objects_of(
  element: ElementTree.Element,
  canvas: tuple[int, int],
  where: str,
  found: Annotations,
) -> list[Drawn]:
  """Returns the objects of an image.

  Args:
    element: Has the shapes as children.
    canvas: (height, width) in pixels of the annotated picture.
    where: Names the file and the image in messages.
    found: Counts the shapes that are left out, and the rectangles.

  Raises:
    InputError: If a shape is damaged or has no label.
  """
  objects: dict[tuple[str, Any], list[Drawn]] = {}
  for position, shape in enumerate(element):
    if shape.tag not in _SHAPES:
      continue
    label = class_text(shape.get('label'))
    if label is None:
      raise InputError(f'A25: {where}: shape {position} has no label.')
    try:
      drawn = _draw(shape, label, canvas, found)
    except (KeyError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(
        f'A25: {where}: shape {position} ({shape.tag}) is damaged:'
        f' {reason(error)}.'
      ) from error
    if drawn is not None:
      group = shape.get('group_id')
      key = ('alone', position) if group in (None, '', '0') else (label, group)
      objects.setdefault(key, []).append(drawn)
  return [merged(parts, canvas) for parts in objects.values()]


def _draw(
  shape: ElementTree.Element,
  label: str,
  canvas: tuple[int, int],
  found: Annotations,
) -> Drawn | None:
  """Returns the object of a shape; `None` if the shape is left out.

  Args:
    shape: The element.
    label: The class.
    canvas: (height, width) in pixels of the annotated picture.
    found: Counts the shapes that are left out, and the rectangles.

  Raises:
    KeyError: If an attribute is missing.
    ValueError: If a number is damaged.
  """
  attributes = dict(shape.attrib)

  def numbers(*names: str) -> list[float]:
    return [polygons.number(attributes[name]) for name in names]

  (degrees,) = map(polygons.number, [attributes.get('rotation', '0')])
  match shape.tag:
    case 'polygon':
      polygon = polygons.from_points(
        pair.split(',') for pair in attributes['points'].split(';') if pair
      )
      if not polygon:
        found.left_out['shapes of the kind polygon with too few points'] += 1
        return None
    case 'box':
      x1, y1, x2, y2 = numbers('xtl', 'ytl', 'xbr', 'ybr')
      polygon = polygons.from_rectangle(x1, y1, x2, y2)
      polygon = polygons.rotated(polygon, degrees)
      found.notes[polygons.RECTANGLES] += 1
    case 'ellipse':
      x, y, radius_x, radius_y = numbers('cx', 'cy', 'rx', 'ry')
      polygon = polygons.from_ellipse(
        x, y, radius_x, radius_y, math.radians(degrees)
      )
    case 'mask':
      return from_mask(label, _mask_of(attributes, canvas))
    case kind:
      found.left_out[f'shapes of the kind {kind}'] += 1
      return None
  return Drawn(label, [polygon])


def _mask_of(attributes: dict[str, str], canvas: tuple[int, int]) -> np.ndarray:
  """Returns the mask of an element `mask`, at the size of the picture.

  Args:
    attributes: Has the box (left, top, width, height) in pixels, and `rle`: the
      lengths of the runs along the rows of the box, outside first.
    canvas: (height, width) in pixels of the annotated picture.

  Raises:
    KeyError: If an attribute is missing.
    ValueError: If a number is damaged, or the runs do not fill the box.
  """
  left, top, width, height = (
    int(attributes[name]) for name in ('left', 'top', 'width', 'height')
  )
  counts = [int(word) for word in attributes['rle'].split(',')]
  if (
    min(left, top) < 0
    or min(width, height) < 1
    or top + height > canvas[0]
    or left + width > canvas[1]
  ):
    raise ValueError('its box reaches over the edge of the image')
  if min(counts) < 0 or sum(counts) != width * height:
    raise ValueError(
      f'its runs have {sum(counts)} pixels, but its box has {width * height}'
    )
  values = np.arange(len(counts)) % 2 == 1
  mask = np.zeros(canvas, bool)
  mask[top : top + height, left : left + width] = np.repeat(
    values, counts
  ).reshape(height, width)
  return mask
