"""Reads the JSON exports of Label Studio: JSON and JSON-MIN.

Source:
  labelstud.io/guide/task_format and labelstud.io/tags (PolygonLabels,
  BrushLabels, RectangleLabels, EllipseLabels): positions and lengths are
  percentages of the width or the height, and rotations are clockwise degrees.
  A brush is packed by the format of @thi.ng/rle-pack, docs.thi.ng.
"""

import math
import pathlib
import re
from typing import Any
import urllib.parse

from jaxtyping import Bool
import numpy as np

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
from maskrcnn_jax.convert_to_coco.drawn import Drawn, from_mask
from maskrcnn_jax.errors import InputError

_KINDS = {
  'polygonlabels': 'polygonlabels',
  'polygon': 'labels',
  'brushlabels': 'brushlabels',
  'brush': 'labels',
  'rectanglelabels': 'rectanglelabels',
  'rectangle': 'labels',
  'ellipselabels': 'ellipselabels',
  'ellipse': 'labels',
}


def read_label_studio(path: pathlib.Path, pictures: Pictures) -> Annotations:
  """Reads the objects from a JSON export of Label Studio.

  If several people annotated an image, the annotation that is marked as ground
  truth is read, otherwise the latest one. Predictions are not read.

  Args:
    path: The JSON file.
    pictures: The images.

  Returns:
    The objects. An image is set aside if its task is damaged or has no finished
    annotation.

  Raises:
    InputError: If the file cannot be read, or is no export of Label Studio.
  """
  content = read_json(path)
  if isinstance(content, dict) and 'data' in content:
    content = [content]
  if not is_label_studio(content):
    raise InputError(
      f'A25: {path} is no export of Label Studio; choose Export, JSON there.'
    )
  found = Annotations(pictures)
  for position, task in enumerate(content):
    entry = f'{path}: task {position}'
    with found.tolerating(entry, None):
      image = _image_of(task, pictures, entry)
      with found.tolerating(entry, image):
        if image in pictures.unreadable:
          continue
        results = _results_of(task, entry, found)
        if results is None:
          found.set_aside.add(image)
          found.left_out['images whose task has no finished annotation'] += 1
          continue
        _add_task(results, image, entry, found)
  return found


def is_label_studio(content: Any) -> bool:
  """Tells whether a value of JSON is a list of Label Studio's tasks."""
  return (
    isinstance(content, list)
    and bool(content)
    and all(
      isinstance(task, dict) and bool(task.keys() & {'data', 'image', 'img'})
      for task in content[:10]
    )
  )


def _image_of(task: Any, pictures: Pictures, entry: str) -> str:
  """Returns the image of a task.

  Label Studio puts 8 hexadecimal digits and a hyphen before the name of an
  uploaded file, and names a local file by a URL `...?d=FOLDER/FILE`.

  Args:
    task: The task as the file has it.
    pictures: The images.
    entry: Names the file and the task in messages.

  Raises:
    InputError: If the task names no image, or the image is not found.
  """
  if not isinstance(task, dict):
    raise InputError(f'A25: {entry} is no object.')
  data = task.get('data', task)
  if not isinstance(data, dict):
    raise InputError(f'A25: {entry}: its data is no object.')
  texts = [value for value in data.values() if isinstance(value, str)]
  name = data.get('image', data.get('img'))
  if name is None:
    suffix = r'\.(bmp|gif|jpe?g|png|tiff?|webp)$'
    texts = [text for text in texts if re.search(suffix, text, re.IGNORECASE)]
    if len(texts) != 1:
      raise InputError(f'A25: {entry} does not name one image in its data.')
    name = texts[0]
  if isinstance(name, str):
    try:
      url = urllib.parse.urlsplit(name)
      if 'd' in (query := urllib.parse.parse_qs(url.query)):
        name = query['d'][0]
      elif url.scheme in ('http', 'https'):
        name = url.path
    except ValueError:  # It is no URL, so it is a file name.
      pass
    base = re.split(r'[/\\]', name)[-1]
    original = re.sub(r'^[0-9a-f]{8}-', '', base)
    if (
      base.lower() not in pictures.by_base
      and urllib.parse.unquote(base).lower() not in pictures.by_base
      and original != base
    ):
      name = original
  return find_image(name, pictures, entry)


def _results_of(
  task: dict[str, Any], entry: str, found: Annotations
) -> list[Any] | None:
  """Returns the regions of a task; `None` if it is not annotated.

  Args:
    task: The task as the file has it.
    entry: Names the file and the task in messages.
    found: Counts the annotations of other people.

  Raises:
    InputError: If the annotations are damaged.
  """
  if 'data' not in task:  # JSON-MIN: {image, name of the control: regions}
    regions = [
      region
      for key, value in task.items()
      if isinstance(value, list) and key != 'annotator'
      for region in value
    ]
    return [_from_min(region) for region in regions]
  annotations = task.get('annotations', task.get('completions'))
  if not isinstance(annotations, list) or not all(
    isinstance(a, dict) and isinstance(a.get('result', []), list)
    for a in annotations
  ):
    raise InputError(f'A25: {entry}: its annotations are damaged or missing.')
  finished = [a for a in annotations if not a.get('was_cancelled')]
  if not finished:
    return None
  truths = [a for a in finished if a.get('ground_truth') is True]
  if len(finished) > 1:
    found.left_out[
      'annotations of an image by another person (ground truth or else the'
      ' latest is read)'
    ] += len(finished) - 1
  latest = max(finished, key=lambda a: str(a.get('updated_at', '')))
  return (truths[0] if truths else latest).get('result', [])


def _from_min(region: Any) -> Any:
  """Returns a region of JSON-MIN in the form of JSON."""
  if not isinstance(region, dict):
    return region
  kinds = [key for key in region if key in _KINDS]
  if not kinds and 'rle' in region:
    kinds = ['brush']
  elif not kinds and 'points' in region:
    kinds = ['polygon']
  return {
    **{k: region.get(k) for k in ('original_width', 'original_height')},
    'type': kinds[0] if kinds else 'unknown',
    'image_rotation': region.get('image_rotation', 0),
    'value': region,
  }


def _add_task(
  results: list[Any], image: str, entry: str, found: Annotations
) -> None:
  """Adds the objects of a task.

  A region of a polygon and its labels may be two results with the same id.

  Args:
    results: The regions as the file has them.
    image: File name of the image.
    entry: Names the file and the task in messages.
    found: Gets the objects.

  Raises:
    InputError: If a region is damaged, has not exactly one label, or is on a
      picture of another size or on a rotated picture.
  """
  drawn: list[Drawn] = []
  declared = None
  labels = {
    result.get('id'): result['value'].get('labels')
    for result in results
    if isinstance(result, dict)
    and result.get('type') == 'labels'
    and isinstance(result.get('id'), str)
    and isinstance(result.get('value'), dict)
  }
  for position, region in enumerate(results):
    where = f'{entry}, region {position}'
    if not isinstance(region, dict) or not isinstance(region.get('type'), str):
      raise InputError(f'A25: {where} is damaged: it has no type.')
    kind = region['type']
    if kind == 'labels':
      continue
    if kind not in _KINDS:
      found.left_out[f'regions of the kind {kind}'] += 1
      continue
    if region.get('image_rotation') not in (0, None):
      raise InputError(
        f'A25: {where} was drawn on a picture that had been rotated in Label'
        ' Studio; rotate the image file and annotate it again.'
      )
    size: Any = region.get('original_height'), region.get('original_width')
    if None in size:
      size = found.pictures.frames[image].shown_size
    elif declared not in (None, size):
      raise InputError(f'I05: {where} has another size than the others.')
    else:
      declared = size
    found.check_size(image, size, where)
    try:
      value = region['value']
      names = value.get(_KINDS[kind]) or value.get('labels')
      if names is None and isinstance(region.get('id'), str):
        names = labels.get(region['id'])
      if isinstance(names, str):
        names = [names]
      if not isinstance(names, list) or len(names) != 1:
        raise InputError(
          f'A25: {where} has the labels {shown(names)}; it must have exactly'
          ' one.'
        )
      label = class_text(names[0])
      if label is None:
        raise InputError(f'A25: {where} has the label {shown(names[0])}.')
      object_ = _draw(kind, value, label, size, found)
    except InputError:  # It is a ValueError too, but it names the fault.
      raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise InputError(f'A25: {where} is damaged: {reason(error)}.') from error
    if object_ is not None:
      drawn.append(object_)
  found.add(image, drawn, declared, entry)


def _draw(
  kind: str,
  value: dict[str, Any],
  label: str,
  size: tuple[int, int],
  found: Annotations,
) -> Drawn | None:
  """Returns the object of a region; `None` if the region is left out.

  Args:
    kind: The type of the region, such as 'polygonlabels'.
    value: The `value` of the region as the file has it.
    label: The class.
    size: (height, width) in pixels of the annotated picture.
    found: Counts the regions that are left out, and the rectangles.

  Raises:
    KeyError: If an entry is missing.
    TypeError: If a value is no number.
    ValueError: If a number or a brush is damaged.
  """
  height, width = size

  def pixels(*keys: str) -> list[float]:
    lengths = {'x': width, 'y': height, 'width': width, 'height': height}
    lengths |= {'radiusX': width, 'radiusY': height}
    return [polygons.number(value[k]) * lengths[k] / 100 for k in keys]

  degrees = polygons.number(value.get('rotation') or 0)
  if kind.startswith('brush'):
    return from_mask(label, decode_brush(value['rle'], size))
  if kind.startswith('polygon'):
    polygon = polygons.from_points(
      (x * width / 100, y * height / 100)
      for x, y in polygons.pairs(value['points'])
    )
    if not polygon:
      found.left_out['regions of the kind polygon with too few points'] += 1
      return None
  elif kind.startswith('rectangle'):
    x, y, w, h = pixels('x', 'y', 'width', 'height')
    polygon = polygons.from_rectangle(x, y, x + w, y + h)
    polygon = polygons.rotated(polygon, degrees, (x, y))
    found.notes[polygons.RECTANGLES] += 1
  else:
    x, y, radius_x, radius_y = pixels('x', 'y', 'radiusX', 'radiusY')
    polygon = polygons.from_ellipse(
      x, y, radius_x, radius_y, math.radians(degrees)
    )
  return Drawn(label, [polygon])


def decode_brush(packed: Any, size: tuple[int, int]) -> Bool[np.ndarray, 'h w']:
  """Unpacks a brush: the alpha channel of an RGBA picture.

  The bits are, from the highest of each byte: the number of values (32 bits),
  the bits of a value less 1 (5), and four bit lengths less 1 (4 each). Then
  come blocks: 1 bit that says whether all values are equal, 2 bits that choose
  the bit length of the number of values less 1, this number, and the value or
  all values.

  Args:
    packed: A list of bytes, from the file.
    size: (height, width) in pixels of the picture.

  Raises:
    TypeError: If it is no list.
    ValueError: If the bytes are damaged, or the picture has another size.
  """
  if not isinstance(packed, list) or not all(type(b) is int for b in packed):
    raise TypeError('its rle is no list of whole numbers')
  if packed and not 0 <= min(packed) <= max(packed) < 256:
    raise ValueError('its rle has a number that is no byte')
  bits = np.unpackbits(np.array(packed, np.uint8))
  place = 0

  def read(count: int, times: int = 1) -> np.ndarray:
    nonlocal place
    end = place + count * times
    if end > len(bits):
      raise ValueError('its rle ends early')
    digits = bits[place:end].reshape(times, count).astype(np.int64)
    place = end
    return digits @ (1 << np.arange(count - 1, -1, -1))

  height, width = size
  total = read(32).item()
  if total != 4 * height * width:
    raise ValueError(
      f'its rle has {total} values, but an RGBA picture of {height}x{width}'
      f' pixels has {4 * height * width}'
    )
  word = read(5).item() + 1
  lengths = (read(4, 4) + 1).tolist()
  values = np.zeros(total, bool)
  done = 0
  while done < total:
    is_run = read(1).item()
    count = read(lengths[read(2).item()]).item() + 1
    if done + count > total:
      raise ValueError('its rle has too many values')
    values[done : done + count] = read(word, 1 if is_run else count) > 0
    done += count
  return values[3::4].reshape(height, width)
