"""Computes COCO's average precision with pycocotools, and prints it."""

from collections.abc import Iterable
import contextlib
import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.coco_input import (
  Tables,
  clean_annotation,
  clean_detection,
  read_tables,
)

# The table has a row for each class, unless there are more classes than this.
MAX_CLASS_ROWS = 20

# The heading of the table's column for each kind of overlap.
_HEADINGS = {'bbox': 'box', 'segm': 'mask'}


class ApResult(NamedTuple):
  """COCO's figures for one kind of overlap: of boxes, or of masks.

  A figure is in [0, 1]. It is `None` if no object has the size, or the class,
  that the figure is about.
  """

  # AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl, in this order. The
  # numbers in AR1, AR10 and AR100 are those of max_detections.
  stats: dict[str, float | None]
  per_class: dict[str, float | None]  # AP of each class, by its name
  num_images: int
  num_detections: int
  # Three rising limits of the detections that count for an image and a class.
  max_detections: tuple[int, ...]
  notes: tuple[str, ...]  # warnings for people who read the figures


def evaluate_detections(
  truth: dict[str, Any],
  results: list[dict[str, Any]],
  *,
  kind: str,
  max_detections: tuple[int, ...] = (1, 10, 100),
  backend: str = 'pycocotools',
) -> ApResult:
  """Computes COCO's 12 figures for the detections of a data set.

  If the input is clean, the figures are those of pycocotools. Ids may be any
  JSON scalars; annotation ids are not used. A missing `iscrowd` counts as 0; a
  missing or zero `area` is computed. Without detections each figure is 0.0. A
  figure about a size or a class that no object has is `None`, and such a class
  is left out of the mean over the classes.

  Args:
    truth: A COCO JSON as loaded: `images`, `annotations`, `categories`. It is
      not changed.
    results: COCO results with `image_id`, `category_id` and `score`; `bbox`
      (x, y, width, height) if `kind` is 'bbox', `segmentation` if it is 'segm'.
    kind: 'bbox' or 'segm'.
    max_detections: Three rising limits for the detections of an image and a
      class that count. The AP is computed with the last limit.
    backend: 'pycocotools', or 'faster' for faster-coco-eval, which gives the
      same figures sooner and must be installed.

  Raises:
    InputError: If the ground truth lacks a list or the results are no list, if
      an id is missing, unknown or not unique, if a number is not finite, if a
      box, polygon or RLE is broken, or if the backend is not installed. Given
      such input, pycocotools would hang, read memory that is not its own, or
      return a wrong number without a word.
    ValueError: If an option has a value that does not exist.

  Source:
    pycocotools `cocoeval.py`; the 12 figures are those of its `summarize`.
    Differs: AP (over all IoUs and sizes) is also computed with the last of
    `max_detections`, not always with 100. A 'segm' detection is small, medium
    or large by the area of its mask, even if it comes with a box.
  """
  if kind not in ('bbox', 'segm'):
    raise ValueError(f"kind must be 'bbox' or 'segm', not {kind!r}.")
  limits = tuple(max_detections)
  if len(limits) != 3 or not 1 <= limits[0] < limits[1] < limits[2]:
    raise ValueError(
      f'max_detections ({max_detections}) must be three rising numbers, '
      'such as (1, 10, 100).'
    )
  tables = read_tables(truth)
  objects = [
    clean_annotation(annotation, tables, kind)
    for annotation in truth['annotations']
  ]
  try:
    if not isinstance(results, list) or not all(
      isinstance(record, dict) for record in results
    ):
      raise InputError('A25: Results must be a list of JSON objects.')
    detections = [
      clean_detection(result, position, tables, kind)
      for position, result in enumerate(results)
    ]
  except InputError as error:
    raise InputError(f'C11: {str(error).partition(": ")[2]}') from error

  coco_class, evaluation_class = _backend_classes(backend)
  with contextlib.redirect_stdout(io.StringIO()):
    evaluation = evaluation_class(
      _as_coco(coco_class, tables, objects),
      _as_coco(coco_class, tables, detections),
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
  for name, category in zip(
    tables.class_names, truth['categories'], strict=True
  ):
    column = tables.class_numbers[category['id']] - 1
    per_class[name] = _mean(precision[:, :, column, 0, -1])
  return ApResult(
    stats=stats,
    per_class=per_class,
    num_images=len(tables.sizes),
    num_detections=len(detections),
    max_detections=limits,
    notes=tuple(_notes(truth['annotations'], objects, kind, limits)),
  )


def format_table(results: dict[str, ApResult]) -> str:
  """Writes the figures as a table in the layout of the COCO tools.

  The table has a column for each result. The AP of each class follows if there
  are at most `MAX_CLASS_ROWS` classes, then the notes.

  Args:
    results: The results of one data set by their kind, 'bbox' or 'segm'.
  """
  if not results:
    return 'Nothing was evaluated.'
  columns = list(results.values())
  headings = [_HEADINGS[kind] for kind in results]
  first = columns[0]
  labels = {
    name: _figure_label(name, position, first.max_detections)
    for position, name in enumerate(first.stats)
  }
  width = max(len(label) for label in labels.values())
  counts = [
    f'{result.num_detections} {heading}'
    for result, heading in zip(columns, headings, strict=True)
  ]
  lines = [
    f'{_counted(first.num_images, "image")}; detections: {", ".join(counts)}',
    _row('', headings, width),
  ]
  for name, label in labels.items():
    values = [result.stats[name] for result in columns]
    lines.append(_row(label, values, width))
  if len(first.per_class) <= MAX_CLASS_ROWS:
    title = f'AP of each class @[ maxDets={first.max_detections[-1]} ]'
    lines += ['', _row(title, headings, width)]
    for name in first.per_class:
      values = [result.per_class[name] for result in columns]
      short = name if len(name) <= width - 2 else name[: width - 3] + '…'
      lines.append(_row('  ' + short, values, width))
  notes = dict.fromkeys(note for result in columns for note in result.notes)
  if notes:
    lines += ['', *(f'Note: {note}' for note in notes)]
  return '\n'.join(lines)


def _figure_label(name: str, position: int, limits: tuple[int, ...]) -> str:
  """Describes a figure as pycocotools prints it.

  Args:
    name: Name of the figure in `ApResult.stats`, such as 'AP50'.
    position: Index of the figure in `ApResult.stats`, from 0.
    limits: The three limits of the detections of an image and a class.
  """
  iou = {'AP50': '0.50', 'AP75': '0.75'}.get(name, '0.50:0.95')
  area = {'s': 'small', 'm': 'medium', 'l': 'large'}.get(name[-1], 'all')
  limit = limits[position - 6] if 6 <= position < 9 else limits[-1]
  title = 'Average Precision' if name.startswith('AP') else 'Average Recall'
  return (
    f'{title:<18} ({name[:2]}) @[ IoU={iou:<9} | area={area:>6} '
    f'| maxDets={limit:>3} ]'
  )


def _row(label: str, values: Iterable[str | float | None], width: int) -> str:
  """Writes one line of the table.

  Args:
    label: The text at the left.
    values: Headings, or figures to three digits; `None` is printed as n/a.
    width: Number of characters that the label is padded to.
  """
  cells = []
  for value in values:
    text = value if isinstance(value, str) else 'n/a'
    text = f'{value:.3f}' if isinstance(value, float) else text
    cells.append(f'{text:>7}')
  return f'{label:<{width}}' + ''.join(cells)


def _mean(values: np.ndarray) -> float | None:
  """Averages the values that are not -1; `None` if there are none.

  pycocotools gives -1 where no object has the size or the class.
  """
  applicable = values[values > -1]
  return float(np.mean(applicable)) if applicable.size else None


def _counted(count: int, noun: str) -> str:
  """Returns the number with the noun in singular or plural, as '2 images'."""
  return f'{count} {noun}' if count == 1 else f'{count} {noun}s'


def check_backend(backend: str) -> None:
  """Raises an InputError if a backend needs a package that is not installed.

  Args:
    backend: 'pycocotools' or 'faster'.
  """
  if backend == 'faster' and not importlib.util.find_spec('faster_coco_eval'):
    raise InputError(
      "config.eval.backend='faster' needs faster-coco-eval: pip install "
      "'maskrcnn-jax[faster]', or leave the backend at 'pycocotools'."
    )


def _backend_classes(backend: str) -> tuple[type, type]:
  """Returns the backend's classes for a data set and for its evaluation.

  Args:
    backend: 'pycocotools' or 'faster'.

  Raises:
    InputError: If the backend is not installed.
    ValueError: If there is no backend of this name.
  """
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
  tables: Tables,
  objects: list[dict[str, Any]],
) -> Any:
  """Puts objects or detections into the data set class of a backend.

  They get new ids from 1, because pycocotools takes the id 0 for "no match",
  and two objects with the same id for one object.

  Args:
    coco_class: The class for a data set.
    tables: The images and categories of the ground truth.
    objects: Checked objects of the ground truth, or checked detections.
  """
  coco = coco_class()
  coco.dataset = {
    'images': [
      {'id': image, 'height': height, 'width': width}
      for image, (height, width) in tables.sizes.items()
    ],
    'categories': [{'id': number} for number in tables.class_numbers.values()],
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
  """Lists the properties of a ground truth that affect the figures.

  Args:
    annotations: The annotations of the ground truth as loaded.
    objects: The checked copies of the annotations.
    kind: 'bbox' or 'segm'.
    limits: The three limits of the detections of an image and a class.
  """
  notes = []
  filled = sum(not annotation.get('area') for annotation in annotations)
  if filled:
    notes.append(f'the area of {_counted(filled, "object")} was computed.')
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
      f'{_counted(empty, "object")} of the ground truth without area cannot be '
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
