"""Recall of proposals: how many objects have a box, whatever its class."""

import math
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_jax.errors import InputError

# Area in pixels of the object: from the first, up to the second.
AREAS = {
  '': (0, 1e5**2),
  's': (0, 32**2),
  'm': (32**2, 96**2),
  'l': (96**2, 1e5**2),
}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class RecallResult(NamedTuple):
  """Average recall of proposals, in [0, 1]; None: no object of the size."""

  stats: dict[str, float | None]  # AR@100 ARs@100 ... ARl@1000
  num_images: int
  num_proposals: int


def evaluate_proposals(
  truth: dict[str, Any],
  results: list[dict[str, Any]],
  *,
  limits: tuple[int, ...] = (100, 1000),
) -> RecallResult:
  """Averages the share of objects that proposals find over IoU .5, .55 to .95.

  The proposal and the object that overlap most are a pair, then those of the
  rest that do, and so on; crowds are no objects.

  Args:
    truth: A COCO JSON as loaded: `images` and `annotations`. An object without
      `area` has its box's.
    results: `image_id`, `bbox` (x, y, width, height) and `score`.
    limits: How many proposals of an image count, the best first.

  Raises:
    InputError: If a proposal is of an unknown image or not finite.

  Source:
    detectron2 `evaluation/coco_evaluation.py`, `_evaluate_box_proposals`;
    maskrcnn-benchmark `data/datasets/evaluation/coco/coco_eval.py`,
    `evaluate_box_proposals`.
    Differs: objects of an image without proposals count as not found; there
    such an image is left out.
  """
  image_ids = [image['id'] for image in truth['images']]
  proposals = {image_id: [] for image_id in image_ids}
  for number, result in enumerate(results):
    values = [*result['bbox'], result['score']]
    if result['image_id'] not in proposals:
      raise InputError(
        f'Proposal {number} has image_id {result["image_id"]!r}, which the '
        'ground truth does not have.'
      )
    if not all(math.isfinite(value) for value in values):
      raise InputError(
        f'Proposal {number} (image {result["image_id"]!r}) has box and score '
        f'{values}; they must be finite. Check the weights that it was made '
        'with.'
      )
    proposals[result['image_id']].append(values)
  objects = {image_id: [] for image_id in image_ids}
  for annotation in truth['annotations']:
    if not annotation.get('iscrowd'):
      box = annotation['bbox']
      area = annotation.get('area') or box[2] * box[3]
      objects[annotation['image_id']].append([*box, area])

  sorted_boxes = {}
  for image_id, rows in proposals.items():
    rows = np.array(rows, np.float64).reshape(-1, 5)
    order = np.argsort(-rows[:, 4], kind='stable')
    sorted_boxes[image_id] = rows[order, :4]
  stats = {}
  for limit in limits:
    for size, (least, most) in AREAS.items():
      overlaps = []
      for image_id in image_ids:
        real = np.array(objects[image_id], np.float64).reshape(-1, 5)
        real = real[(real[:, 4] >= least) & (real[:, 4] <= most), :4]
        overlaps.append(_pair(sorted_boxes[image_id][:limit], real))
      overlaps = np.concatenate([*overlaps, np.zeros(0)])
      recalls = [np.sum(overlaps >= iou) for iou in IOU_THRESHOLDS]
      stats[f'AR{size}@{limit}'] = (
        float(np.mean(recalls) / overlaps.size) if overlaps.size else None
      )
  return RecallResult(stats, len(image_ids), len(results))


def format_recalls(result: RecallResult) -> str:
  """Writes the numbers as a table, one row for each size and limit."""
  lines = [
    f'{result.num_images} images; {result.num_proposals} proposals of any class'
  ]
  names = {'': 'all', 's': 'small', 'm': 'medium', 'l': 'large'}
  for name, value in result.stats.items():
    size, limit = name.removeprefix('AR').split('@')
    text = 'n/a' if value is None else f'{value:.3f}'
    lines.append(
      f'Average Recall     (AR) @[ IoU=0.50:0.95 | area={names[size]:>6} '
      f'| proposals={limit:>4} ]{text:>7}'
    )
  return '\n'.join(lines)


def _pair(proposals, objects) -> np.ndarray:
  """The overlap of each object with the proposal paired with it; 0: none."""
  found = np.zeros(len(objects))
  if not len(objects) or not len(proposals):
    return found
  with np.errstate(invalid='ignore'):
    iou = mask_api.iou(proposals, objects, [0] * len(objects))
  iou = np.nan_to_num(iou)  # of two boxes without area
  for i in range(min(iou.shape)):
    best = iou.argmax(axis=0)
    object_ = iou[best, np.arange(iou.shape[1])].argmax()
    found[i] = iou[best[object_], object_]
    iou[best[object_], :] = -1
    iou[:, object_] = -1
  return found
