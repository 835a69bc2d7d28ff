"""Checks a COCO ground truth and detections before pycocotools reads them.

Given broken input, pycocotools hangs, reads memory that is not its own, or
returns a wrong number without a word. The checked copies made here hold only
the fields that pycocotools reads.
"""

import numbers
import sys
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_jax.errors import InputError

# Upper limit of the coordinates of a polygon, in pixels. pycocotools walks
# along the edges in steps of 1/5 pixel, so that a vertex far away costs much
# time and memory, and a vertex that is NaN never ends.
MAX_COORDINATE = 1e6

_ADVICE = (
  'python -m maskrcnn_jax.check_data lists such objects, and with '
  '--fix=OUT.json repairs them or leaves them out.'
)

# The id of an image or a category in a COCO JSON.
Id = str | int | float


class Tables(NamedTuple):
  """The images and categories of a ground truth, numbered from 1."""

  image_numbers: dict[Id, int]  # number of each image, by its id
  class_numbers: dict[Id, int]  # number of each category, by its id
  # (height, width) of each image as the JSON has them, by the image's number.
  # They are not checked, because only masks need them.
  sizes: dict[int, tuple[Any, Any]]
  class_names: list[str]  # in the order of the JSON


def check_truth(truth: dict[str, Any], *, kind: str) -> None:
  """Raises an InputError if no AP can be computed with a ground truth.

  Args:
    truth: A COCO JSON as loaded.
    kind: 'bbox' checks boxes, 'segm' checks masks.
  """
  tables = read_tables(truth)
  for annotation in truth['annotations']:
    clean_annotation(annotation, tables, kind)


def read_tables(truth: Any) -> Tables:
  """Checks and numbers the images and the categories of a ground truth.

  Images are numbered from 1 in the order of their ids, and so are categories.
  If some ids are strings and others numbers, they are numbered in the order of
  the list.

  Args:
    truth: A COCO JSON as loaded.

  Raises:
    InputError: If one of the lists images, annotations and categories is
      missing, an annotation is not a JSON object, the id of an image or a
      category is missing, is neither a number nor a string, or is used twice,
      or two categories have the same name.
  """
  for key in ('images', 'annotations', 'categories'):
    if not isinstance(truth, dict) or not isinstance(truth.get(key), list):
      raise InputError(
        f'A25: The ground truth has no list of {key}; give a COCO instances '
        'JSON.'
      )
  if not all(isinstance(record, dict) for record in truth['annotations']):
    raise InputError('A25: Annotations must be a list of JSON objects.')
  image_numbers = _number_ids('image', truth['images'])
  class_numbers = _number_ids('category', truth['categories'])
  names = [str(c.get('name', c['id'])) for c in truth['categories']]
  if len(set(names)) < len(names):
    twice = next(name for name in names if names.count(name) > 1)
    raise InputError(
      f'A15: Two categories of the ground truth are named {twice!r}; rename '
      'one.'
    )
  sizes = {
    image_numbers[i['id']]: (i.get('height'), i.get('width'))
    for i in truth['images']
  }
  return Tables(image_numbers, class_numbers, sizes, names)


def clean_annotation(
  annotation: dict[str, Any], tables: Tables, kind: str
) -> dict[str, Any]:
  """Checks a ground-truth object and copies the fields that are scored.

  Args:
    annotation: An entry of the `annotations` of a COCO JSON.
    tables: The images and categories of the same JSON.
    kind: 'bbox' checks and copies the box, 'segm' the mask.

  Returns:
    The object with numbers instead of the ids of the image and the category,
    `iscrowd`, the box or the mask, and the area in square pixels. A mask is a
    compressed RLE. A missing or zero area is computed from the mask, or from
    the box of an object without a mask.

  Raises:
    InputError: If an id is unknown, if the mask or the box is missing or
      broken, if the area is negative or not finite, or if a mask is checked and
      the image has no valid height and width.
  """
  image_id = annotation.get('image_id')
  name = (
    f'Annotation {annotation.get("id")!r} of image {image_id!r} in the '
    'ground truth'
  )
  image = _look_up(tables.image_numbers, 'image_id', image_id, name)
  category = _look_up(
    tables.class_numbers, 'category_id', annotation.get('category_id'), name
  )
  area = annotation.get('area') or None
  if area is not None and not (_is_finite(area) and area > 0):
    raise InputError(
      f'A04: {name} has area {area!r}; it must be a finite number.'
    )
  clean: dict[str, Any] = {
    'image_id': image,
    'category_id': category,
    'iscrowd': int(bool(annotation.get('iscrowd'))),
  }
  segmentation = annotation.get('segmentation')
  if kind == 'segm' or (area is None and segmentation):
    clean['segmentation'] = _clean_mask(segmentation, tables.sizes[image], name)
  if kind == 'bbox':
    clean['bbox'] = _clean_box(annotation.get('bbox'), name)
  if area is None:
    if 'segmentation' in clean:
      area = float(mask_api.area(clean['segmentation']))
    else:
      area = clean['bbox'][2] * clean['bbox'][3]
  clean['area'] = area
  return clean


def clean_detection(
  detection: dict[str, Any], position: int, tables: Tables, kind: str
) -> dict[str, Any]:
  """Checks a detection and copies the fields that are scored.

  Args:
    detection: An entry of a list of COCO results.
    position: The place of the entry in its list, from 0, for messages.
    tables: The images and categories of the ground truth.
    kind: 'bbox' checks and copies the box, 'segm' the mask.

  Returns:
    The detection with numbers instead of the ids of the image and the category,
    the score, the box or the mask, and the area of the box or the mask in
    square pixels. A mask is a compressed RLE.

  Raises:
    InputError: If an id is unknown, if the score is not a finite number, if the
      mask or the box is missing or broken, or if a mask is checked and the
      image has no valid height and width.
  """
  image_id = detection.get('image_id')
  name = f'Detection {position} (image {image_id!r})'
  image = _look_up(tables.image_numbers, 'image_id', image_id, name)
  category = _look_up(
    tables.class_numbers, 'category_id', detection.get('category_id'), name
  )
  score = detection.get('score')
  if not _is_finite(score):
    raise InputError(
      f'A04: {name} has score {score!r}; it must be a finite number. Check '
      'the weights that the detections were made with.'
    )
  clean: dict[str, Any] = {
    'image_id': image,
    'category_id': category,
    'score': float(score),
    'iscrowd': 0,
  }
  if kind == 'bbox':
    clean['bbox'] = _clean_box(detection.get('bbox'), name)
    clean['area'] = clean['bbox'][2] * clean['bbox'][3]
  else:
    rle = _clean_mask(detection.get('segmentation'), tables.sizes[image], name)
    clean['segmentation'] = rle
    clean['area'] = float(mask_api.area(rle))
  return clean


def _number_ids(noun: str, records: list[dict[str, Any]]) -> dict[Id, int]:
  """Numbers the ids of images or categories from 1, in rising order.

  The order of images matters: if detections of different images have the same
  score, pycocotools ranks them in the order of the images. If some ids are
  strings and others are numbers, they cannot be sorted, and the ids are
  numbered in the order of the list.

  Args:
    noun: 'image' or 'category'; it chooses the codes of the messages.
    records: The entries of the JSON's `images` or `categories`.

  Raises:
    InputError: If an id is missing, of a wrong type, or used twice.
  """
  missing_code, twice_code = {
    'image': ('A19', 'A17'),
    'category': ('A13', 'A15'),
  }[noun]
  ids: list[Any] = []
  for position, record in enumerate(records):
    value = record.get('id') if isinstance(record, dict) else None
    if not isinstance(value, str | int | float):
      raise InputError(
        f"{missing_code}: The ground truth's {noun} number {position} has id "
        f'{value!r}; an id must be a number or a string.'
      )
    ids.append(value)
  seen = set()
  for value in ids:
    if value in seen:
      raise InputError(
        f'{twice_code}: The {noun} id {value!r} is used more than once in the '
        'ground truth; make the ids unique.'
      )
    seen.add(value)
  are_strings = [isinstance(value, str) for value in ids]
  if all(are_strings) or not any(are_strings):
    ids = sorted(ids)
  return {value: number for number, value in enumerate(ids, 1)}


def _look_up(numbers_of: dict[Id, int], field: str, id_: Any, name: str) -> int:
  """Returns the number of an image or a category.

  Args:
    numbers_of: The number of each image, or of each category, by its id.
    field: The field that holds the id, for the message: 'image_id' or
      'category_id'.
    id_: The value of the field.
    name: Names the annotation or the detection in the message.

  Raises:
    InputError: If the ground truth does not have this id.
  """
  can_be_id = isinstance(id_, str | numbers.Real)
  if not can_be_id or id_ not in numbers_of:
    raise InputError(
      f'A14: {name} has {field} {id_!r}, which the ground truth does not '
      'have; evaluate with the annotations that the images came from.'
    )
  return numbers_of[id_]


def _is_finite(value: Any) -> TypeGuard[float]:
  """Tells whether a value is a number that a float can hold."""
  is_number = isinstance(value, numbers.Real)
  # math.isfinite raises OverflowError if an integer is too large for a float.
  return is_number and bool(abs(value) <= sys.float_info.max)


def _clean_box(box: Any, name: str) -> list[float]:
  """Checks a box and returns it as floats.

  Args:
    box: It must be (x, y, width, height) in pixels.
    name: Names the annotation or the detection in the message.

  Raises:
    InputError: If the box does not have four finite numbers, or if the width or
      the height is negative.
  """
  if isinstance(box, np.ndarray):
    box = box.tolist()
  if (
    not isinstance(box, list | tuple)
    or len(box) != 4
    or not all(_is_finite(v) for v in box)
    or min(box[2:]) < 0
  ):
    raise InputError(
      f'A04: {name} has bbox {box!r}; it must be four finite numbers x, y, '
      'width, height, and neither width nor height may be negative.'
    )
  return [float(v) for v in box]


def _clean_mask(
  segmentation: Any, size: tuple[Any, Any], name: str
) -> dict[str, Any]:
  """Checks a mask and returns it as compressed RLE.

  Args:
    segmentation: It must be a list of polygons, or an RLE, compressed or not.
    size: (height, width) of the image as the ground truth has them.
    name: Names the annotation or the detection in the message.

  Raises:
    InputError: If the segmentation is missing or broken, or if the height or
      the width is not a positive whole number.
  """
  if not all(_is_finite(v) and v > 0 and v == int(v) for v in size):
    raise InputError(
      f'I05: {name} has a mask, but its image has no height and width in the '
      'ground truth; add them.'
    )
  height, width = map(int, size)
  if isinstance(segmentation, dict):
    return _clean_rle(segmentation, height, width, name)
  if not isinstance(segmentation, list) or not segmentation:
    raise InputError(
      f'A06: {name} has segmentation {str(segmentation)[:40]}; it must be '
      f'polygons or RLE. {_ADVICE} If no object has a mask, train a model that '
      'only gives boxes (config.model.output=boxes).'
    )
  for polygon in segmentation:
    if (
      not isinstance(polygon, list | tuple)
      or len(polygon) < 6
      or len(polygon) % 2
      or not all(_is_finite(v) and abs(v) < MAX_COORDINATE for v in polygon)
    ):
      raise InputError(
        f'A05: {name} has the polygon {str(polygon)[:60]}; a polygon must be '
        f'a list x, y, x, y, ... of at least 6 finite numbers. {_ADVICE}'
      )
  rles = mask_api.frPyObjects(segmentation, height, width)
  return mask_api.merge(rles)


def _clean_rle(
  rle: dict[str, Any], height: int, width: int, name: str
) -> dict[str, Any]:
  """Checks an RLE, compressed or not, and returns it as compressed RLE.

  Args:
    rle: The RLE; its counts must add up to the pixels of the image.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    name: Names the annotation or the detection in the message.

  Raises:
    InputError: If the RLE has another size than the image, or if the counts are
      broken.
  """
  counts = rle.get('counts')
  if list(rle.get('size') or ()) != [height, width]:
    raise InputError(
      f'A09: {name} has an RLE of size {rle.get("size")!r}, but its image has '
      f'[{height}, {width}] (height, width); they must agree.'
    )
  runs = None
  if isinstance(counts, str | bytes):
    runs = _read_counts(counts)
  elif isinstance(counts, list) and all(isinstance(v, int) for v in counts):
    runs = np.array(counts, np.int64)
  if runs is None or (runs < 0).any() or runs.sum() != height * width:
    raise InputError(
      f'A09: {name} has an RLE whose counts are broken: they must add up to '
      f'{height} * {width} pixels.'
    )
  copy = {'size': [height, width], 'counts': counts}
  if isinstance(counts, list):
    return mask_api.frPyObjects(copy, height, width)
  return copy


def _read_counts(text: str | bytes) -> np.ndarray | None:
  """Decodes the run lengths of a compressed RLE; `None` if it is malformed.

  Source:
    pycocotools `maskApi.c`, `rleFrString`: each character holds 5 bits of a
    number, the low bits first. Bit 32 is set while more characters of the same
    number follow; bit 16 of the last one is the sign. From the fourth run on,
    the number is the difference from the run two places before.
  """
  if isinstance(text, str):
    if not text.isascii():
      return None
    text = text.encode()
  codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
  if not codes.size:
    return np.zeros(0, np.int64)
  if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
    return None
  starts = np.flatnonzero(np.append(True, codes[:-1] & 32 == 0))
  lengths = np.diff(starts, append=codes.size)
  if lengths.max() > 7:
    return None
  places = np.arange(codes.size) - np.repeat(starts, lengths)
  runs = np.add.reduceat((codes & 31) << (5 * places), starts)
  runs -= np.where(codes[starts + lengths - 1] & 16, 1 << (5 * lengths), 0)
  runs[1::2] = np.cumsum(runs[1::2])
  runs[2::2] = np.cumsum(runs[2::2])
  return runs
