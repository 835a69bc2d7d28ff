"""COCO's average precision by pycocotools, guarded from what misleads it."""

from collections.abc import Hashable, Iterable
import contextlib
import importlib.util
import io
import numbers
import sys
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_jax.errors import InputError

# pycocotools walks along a polygon's edges in steps of 1/5 pixel: far vertices
# take its time and memory, and nan never ends.
MAX_COORDINATE = 1e6

_ADVICE = (
  'python -m maskrcnn_jax.check_data lists such objects, and with '
  '--fix=OUT.json leaves them out.'
)

# More classes than this, and the table leaves out their rows.
MAX_CLASS_ROWS = 20


class ApResult(NamedTuple):
  """COCO's numbers for one kind of overlap, in [0, 1]; None: not applicable."""

  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl, in this order; the
  # numbers in AR1, AR10, AR100 are those of max_detections.
  stats: dict[str, float | None]
  per_class: dict[str, float | None]  # AP; None: no object of the class
  num_images: int
  num_detections: int
  max_detections: tuple[int, ...]  # an image and class
  notes: tuple[str, ...]  # what a reader of the numbers should know


def evaluate_detections(
  truth: dict[str, Any],
  results: list[dict[str, Any]],
  *,
  kind: str,
  max_detections: tuple[int, ...] = (1, 10, 100),
  backend: str = 'pycocotools',
) -> ApResult:
  """Scores detections against the truth as COCO does.

  Where the input is clean, the numbers are those of pycocotools.  Ids may be
  any JSON scalars; annotation ids are not used.  A missing `iscrowd` is 0, a
  missing or zero `area` is computed.  Without detections each number is 0.0;
  without objects to find (of the size, of the class) it is None, and the class
  is left out of the mean.

  Args:
    truth: A COCO JSON as loaded: `images`, `annotations`, `categories`.  It is
      not changed.
    results: COCO results: `image_id`, `category_id`, `score`, and `bbox`
      (x, y, width, height) or `segmentation`, whichever `kind` needs.
    kind: 'bbox' or 'segm'.
    max_detections: Three rising limits, for each image and class.  The last is
      the one that AP is computed with.
    backend: 'pycocotools' or, for the same numbers sooner, 'faster':
      faster-coco-eval, which must be installed.

  Raises:
    InputError: If a number is not finite, an id is unknown or not unique, or a
      polygon or RLE is broken.  pycocotools would hang, read memory that is not
      its own, or return a wrong number without a word.

  Source:
    pycocotools `cocoeval.py`; the 12 numbers are its `summarize`.
    Differs: AP (over all IoUs and sizes) is also computed with the last of
    `max_detections`, not always with 100.  A 'segm' detection is small, medium
    or large by the area of its mask, even where it comes with a box.
  """
  if kind not in ('bbox', 'segm'):
    raise ValueError(f"kind must be 'bbox' or 'segm', not {kind!r}.")
  limits = tuple(max_detections)
  if len(limits) != 3 or not 1 <= limits[0] < limits[1] < limits[2]:
    raise ValueError(
      f'max_detections ({max_detections}) must be three rising numbers, '
      'such as (1, 10, 100).'
    )
  image_numbers, class_numbers, sizes, names = _read_tables(truth)
  objects = [
    _clean_annotation(annotation, image_numbers, class_numbers, sizes, kind)
    for annotation in truth['annotations']
  ]
  try:
    if not isinstance(results, list) or not all(
      isinstance(record, dict) for record in results
    ):
      raise InputError('A25: Results must be a list of JSON objects.')
    detections = [
      _clean_result(result, index, image_numbers, class_numbers, sizes, kind)
      for index, result in enumerate(results)
    ]
  except InputError as error:
    raise InputError(f'C11: {str(error).partition(": ")[2]}') from error

  coco_class, evaluation_class = _backend_classes(backend)
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = evaluation_class(
      _as_coco(coco_class, sizes, class_numbers, objects),
      _as_coco(coco_class, sizes, class_numbers, detections),
      kind,
    )
    evaluation.params.maxDets = list(limits)
    evaluation.evaluate()
    evaluation.accumulate()
  precision = evaluation.eval['precision']  # [IoU, recall, class, size, limit]
  recall = evaluation.eval['recall']  # [IoU, class, size, limit]
  stats = {
    'AP': _mean(precision[:, :, :, 0, -1]),
    'AP50': _mean(precision[0, :, :, 0, -1]),
    'AP75': _mean(precision[5, :, :, 0, -1]),
    'APs': _mean(precision[:, :, :, 1, -1]),
    'APm': _mean(precision[:, :, :, 2, -1]),
    'APl': _mean(precision[:, :, :, 3, -1]),
    **{f'AR{n}': _mean(recall[:, :, 0, i]) for i, n in enumerate(limits)},
    'ARs': _mean(recall[:, :, 1, -1]),
    'ARm': _mean(recall[:, :, 2, -1]),
    'ARl': _mean(recall[:, :, 3, -1]),
  }
  per_class = {}
  for name, category in zip(names, truth['categories'], strict=True):
    column = class_numbers[category['id']] - 1
    per_class[name] = _mean(precision[:, :, column, 0, -1])
  return ApResult(
    stats=stats,
    per_class=per_class,
    num_images=len(sizes),
    num_detections=len(detections),
    max_detections=limits,
    notes=tuple(_notes(truth['annotations'], objects, kind, limits)),
  )


def format_table(bbox: ApResult | None, segm: ApResult | None) -> str:
  """Writes the numbers as people know them from the COCO tools.

  One column for boxes and one for masks, whichever is given; then the AP of
  each class, if they are few, and the notes.
  """
  columns = {'box': bbox, 'mask': segm}
  columns = {name: r for name, r in columns.items() if r is not None}
  if not columns:
    return 'Nothing was evaluated.'
  first = next(iter(columns.values()))
  labels = {
    name: _metric_label(name, index, first.max_detections)
    for index, name in enumerate(first.stats)
  }
  width = max(len(label) for label in labels.values())
  counts = [f'{r.num_detections} {name}' for name, r in columns.items()]
  lines = [
    f'{_count(first.num_images, "image")}; detections: {", ".join(counts)}',
    _row('', columns, width),
  ]
  for name, label in labels.items():
    lines.append(_row(label, [r.stats[name] for r in columns.values()], width))
  if len(first.per_class) <= MAX_CLASS_ROWS:
    title = f'AP of each class @[ maxDets={first.max_detections[-1]} ]'
    lines += ['', _row(title, columns, width)]
    for name in first.per_class:
      values = [r.per_class[name] for r in columns.values()]
      short = name if len(name) <= width - 2 else name[: width - 3] + '…'
      lines.append(_row('  ' + short, values, width))
  notes = dict.fromkeys(note for r in columns.values() for note in r.notes)
  if notes:
    lines += ['', *(f'Note: {note}' for note in notes)]
  return '\n'.join(lines)


def _metric_label(name: str, index: int, limits: tuple[int, ...]) -> str:
  iou = {'AP50': '0.50', 'AP75': '0.75'}.get(name, '0.50:0.95')
  area = {'s': 'small', 'm': 'medium', 'l': 'large'}.get(name[-1], 'all')
  limit = limits[index - 6] if 6 <= index < 9 else limits[-1]
  title = 'Average Precision' if name.startswith('AP') else 'Average Recall'
  return (
    f'{title:<18} ({name[:2]}) @[ IoU={iou:<9} | area={area:>6} '
    f'| maxDets={limit:>3} ]'
  )


def _row(label: str, values: Iterable[str | float | None], width: int) -> str:
  cells = []
  for value in values:
    text = value if isinstance(value, str) else 'n/a'
    text = f'{value:.3f}' if isinstance(value, float) else text
    cells.append(f'{text:>7}')
  return f'{label:<{width}}' + ''.join(cells)


def _mean(values: np.ndarray) -> float | None:
  """Averages what is there; pycocotools marks what is not with -1."""
  there = values[values > -1]
  return float(np.mean(there)) if there.size else None


def check_truth(truth: dict[str, Any], *, kind: str) -> None:
  """Raises the InputError that `evaluate_detections` would for its truth.

  Args:
    truth: A COCO JSON as loaded.
    kind: 'bbox' or 'segm'.
  """
  image_numbers, class_numbers, sizes, _ = _read_tables(truth)
  for annotation in truth['annotations']:
    _clean_annotation(annotation, image_numbers, class_numbers, sizes, kind)


def _read_tables(truth: Any) -> tuple[dict, dict, dict, list[str]]:
  """Numbers images and classes; returns also sizes of images, and names."""
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
  return image_numbers, class_numbers, sizes, names


def _count(count: int, noun: str) -> str:
  return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def _number_ids(
  what: str, records: list[dict[str, Any]]
) -> dict[Hashable, int]:
  """Numbers ids of any kind from 1, in their own order where they have one.

  The order matters: pycocotools breaks ties of scores by the order of images.
  """
  missing, twice_code = {'image': ('A19', 'A17'), 'category': ('A13', 'A15')}[
    what
  ]
  ids = []
  for index, record in enumerate(records):
    value = record.get('id') if isinstance(record, dict) else None
    if not isinstance(value, str | int | float):
      raise InputError(
        f"{missing}: The ground truth's {what} number {index} has id "
        f'{value!r}; an id must be a number or a string.'
      )
    ids.append(value)
  if len(set(ids)) < len(ids):
    seen = set()
    twice = next(v for v in ids if v in seen or seen.add(v))
    raise InputError(
      f'{twice_code}: The {what} id {twice!r} is used more than once in the '
      'ground truth; make the ids unique.'
    )
  if not any(isinstance(v, str) for v in ids) or all(
    isinstance(v, str) for v in ids
  ):
    ids = sorted(ids)
  return {value: number for number, value in enumerate(ids, 1)}


def _look_up(numbers_of: dict[Hashable, int], what: str, value: Any, who: str):
  if not isinstance(value, str | numbers.Real) or value not in numbers_of:
    raise InputError(
      f'A14: {who} has {what} {value!r}, which the ground truth does not '
      'have; evaluate with the annotations that the images came from.'
    )
  return numbers_of[value]


def _clean_annotation(
  annotation: dict[str, Any],
  image_numbers: dict[Hashable, int],
  class_numbers: dict[Hashable, int],
  sizes: dict[int, tuple[Any, Any]],
  kind: str,
) -> dict[str, Any]:
  """Copies what pycocotools reads of a ground-truth object, checked."""
  image_id = annotation.get('image_id')
  who = (
    f'Annotation {annotation.get("id")!r} of image {image_id!r} in the '
    'ground truth'
  )
  image = _look_up(image_numbers, 'image_id', image_id, who)
  category = _look_up(
    class_numbers, 'category_id', annotation.get('category_id'), who
  )
  area = annotation.get('area') or None
  if area is not None and not (_is_finite(area) and area > 0):
    raise InputError(
      f'A04: {who} has area {area!r}; it must be a finite number.'
    )
  clean = {
    'image_id': image,
    'category_id': category,
    'iscrowd': int(bool(annotation.get('iscrowd'))),
  }
  segmentation = annotation.get('segmentation')
  if kind == 'segm' or (area is None and segmentation):
    clean['segmentation'] = _clean_rle(segmentation, sizes[image], who)
  if kind == 'bbox':
    clean['bbox'] = _clean_box(annotation.get('bbox'), who)
  if area is None:
    if 'segmentation' in clean:
      area = float(mask_api.area(clean['segmentation']))
    else:
      area = clean['bbox'][2] * clean['bbox'][3]
  clean['area'] = area
  return clean


def _clean_result(
  result: dict[str, Any],
  index: int,
  image_numbers: dict[Hashable, int],
  class_numbers: dict[Hashable, int],
  sizes: dict[int, tuple[Any, Any]],
  kind: str,
) -> dict[str, Any]:
  """Copies what pycocotools reads of a detection, checked."""
  image_id = result.get('image_id')
  who = f'Detection {index} (image {image_id!r})'
  image = _look_up(image_numbers, 'image_id', image_id, who)
  category = _look_up(
    class_numbers, 'category_id', result.get('category_id'), who
  )
  score = result.get('score')
  if not _is_finite(score):
    raise InputError(
      f'A04: {who} has score {score!r}; it must be a finite number. Check '
      'the weights that the detections were made with.'
    )
  clean = {
    'image_id': image,
    'category_id': category,
    'score': float(score),
    'iscrowd': 0,
  }
  if kind == 'bbox':
    clean['bbox'] = _clean_box(result.get('bbox'), who)
    clean['area'] = clean['bbox'][2] * clean['bbox'][3]
  else:
    rle = _clean_rle(result.get('segmentation'), sizes[image], who)
    clean['segmentation'] = rle
    clean['area'] = float(mask_api.area(rle))
  return clean


def check_backend(backend: str) -> None:
  """Raises an InputError if what a backend needs is not installed."""
  if backend == 'faster' and not importlib.util.find_spec('faster_coco_eval'):
    raise InputError(
      "config.eval.backend='faster' needs faster-coco-eval: pip install "
      "'maskrcnn-jax[faster]', or leave the backend at 'pycocotools'."
    )


def _backend_classes(backend: str) -> tuple[type, type]:
  """Returns the classes of a set and of its evaluation."""
  check_backend(backend)
  match backend:
    case 'pycocotools':
      return COCO, COCOeval
    case 'faster':
      import faster_coco_eval

      return faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster
  raise ValueError(
    f"backend must be 'pycocotools' or 'faster', not {backend!r}."
  )


def _as_coco(
  coco_class: type,
  sizes: dict[int, tuple[Any, Any]],
  class_numbers: dict[Hashable, int],
  objects: list[dict[str, Any]],
) -> Any:
  """Wraps the objects as pycocotools wants them: with ids from 1.

  Id 0 would count as "no match", and two objects of one id as one object.
  """
  coco = coco_class()
  coco.dataset = {
    'images': [
      {'id': image, 'height': height, 'width': width}
      for image, (height, width) in sizes.items()
    ],
    'categories': [{'id': number} for number in class_numbers.values()],
    'annotations': [{**o, 'id': i} for i, o in enumerate(objects, 1)],
  }
  coco.createIndex()
  return coco


def _notes(
  annotations: list[dict[str, Any]],
  objects: list[dict[str, Any]],
  kind: str,
  limits: tuple[int, ...],
) -> list[str]:
  notes = []
  filled = sum(not annotation.get('area') for annotation in annotations)
  if filled:
    notes.append(f'the area of {_count(filled, "object")} was computed.')
  real = [o for o in objects if not o['iscrowd']]
  empty = sum(
    not (
      o['bbox'][2] * o['bbox'][3]
      if kind == 'bbox'
      else mask_api.area(o['segmentation'])
    )
    for o in real
  )
  if empty:
    notes.append(
      f'{_count(empty, "object")} of the ground truth without area cannot be '
      'found and count as missed.'
    )
  pairs = [(o['image_id'], o['category_id']) for o in real]
  counts = np.unique(pairs, axis=0, return_counts=True)[1] if pairs else [0]
  if max(counts) > limits[-1]:
    notes.append(
      f'there are up to {max(counts)} objects of a class in an image, but '
      f'only {limits[-1]} detections count; raise max_detections.'
    )
  return notes


def _is_finite(value: Any) -> bool:
  # An integer may be too large for math.isfinite.
  return isinstance(value, numbers.Real) and (abs(value) <= sys.float_info.max)


def _clean_box(box: Any, who: str) -> list[float]:
  if isinstance(box, np.ndarray):
    box = box.tolist()
  if (
    not isinstance(box, list | tuple)
    or len(box) != 4
    or not all(_is_finite(v) for v in box)
    or min(box[2:]) < 0
  ):
    raise InputError(
      f'A04: {who} has bbox {box!r}; it must be four finite numbers x, y, '
      'width, height, no size below 0.'
    )
  return [float(v) for v in box]


def _clean_rle(
  segmentation: Any, size: tuple[Any, Any], who: str
) -> dict[str, Any]:
  """Turns polygons or RLE, once checked, into compressed RLE."""
  if not all(_is_finite(v) and v > 0 and v == int(v) for v in size):
    raise InputError(
      f'I05: {who} has a mask, but its image has no height and width in the '
      'ground truth; add them.'
    )
  height, width = map(int, size)
  if isinstance(segmentation, dict):
    return _checked_rle(segmentation, height, width, who)
  if not isinstance(segmentation, list) or not segmentation:
    raise InputError(
      f'A06: {who} has segmentation {str(segmentation)[:40]}; it must be '
      f'polygons or RLE. {_ADVICE} Without any masks a set is for a model '
      'of boxes alone (config.model.output=boxes).'
    )
  for polygon in segmentation:
    if (
      not isinstance(polygon, list | tuple)
      or len(polygon) < 6
      or len(polygon) % 2
      or not all(_is_finite(v) and abs(v) < MAX_COORDINATE for v in polygon)
    ):
      raise InputError(
        f'A05: {who} has the polygon {str(polygon)[:60]}; a polygon must be '
        f'a list x, y, x, y, ... of at least 6 finite numbers. {_ADVICE}'
      )
  rles = mask_api.frPyObjects(segmentation, height, width)
  return mask_api.merge(rles)


def _checked_rle(
  rle: dict[str, Any], height: int, width: int, who: str
) -> dict[str, Any]:
  counts = rle.get('counts')
  if list(rle.get('size') or ()) != [height, width]:
    raise InputError(
      f'A09: {who} has an RLE of size {rle.get("size")!r}, but its image has '
      f'[{height}, {width}] (height, width); they must agree.'
    )
  compressed = isinstance(counts, str | bytes)
  if compressed:
    runs = _read_counts(counts)
  elif isinstance(counts, list) and all(isinstance(v, int) for v in counts):
    runs = np.array(counts, np.int64)
  else:
    runs = None
  if runs is None or (runs < 0).any() or runs.sum() != height * width:
    raise InputError(
      f'A09: {who} has an RLE whose counts are broken: they must add up to '
      f'{height} * {width} pixels.'
    )
  if compressed:
    return {'size': [height, width], 'counts': counts}
  uncompressed = {'size': [height, width], 'counts': counts}
  return mask_api.frPyObjects(uncompressed, height, width)


def _read_counts(text: str | bytes) -> np.ndarray | None:
  """Decodes the run lengths of a compressed RLE; None if it is malformed.

  Source:
    pycocotools `maskApi.c`, `rleFrString`: 5 bits a character, low bits first,
    a bit 32 while more follow, bit 16 of the last is the sign; from the fourth
    run on the number is the difference from the run two before.
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
