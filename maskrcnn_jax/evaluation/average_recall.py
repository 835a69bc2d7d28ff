"""Recall of proposals: the share of objects that proposals overlap well."""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.coco_input import Id

# Least and greatest area of an object in square pixels, for each size.
AREAS = {
  '': (0, 1e5**2),
  's': (0, 32**2),
  'm': (32**2, 96**2),
  'l': (96**2, 1e5**2),
}
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


class RecallResult(NamedTuple):
  """The average recall of the proposals of a data set."""

  # AR@100 ARs@100 ... ARl@1000, each in [0, 1]; `None` if no object has the
  # size (s, m or l).
  stats: dict[str, float | None]
  num_images: int
  num_proposals: int


def evaluate_proposals(
  truth: dict[str, Any],
  results: list[dict[str, Any]],
  *,
  limits: tuple[int, ...] = (100, 1000),
) -> RecallResult:
  """Computes the average recall of the proposals of a data set.

  An object is found at an IoU threshold if the proposal that it is paired with
  overlaps it by at least that much. The recall is the share of objects that are
  found, averaged over the thresholds 0.5, 0.55 ... 0.95. In each image, the
  proposal and the object that overlap most become a pair first; then the same
  is repeated with the remaining ones. Crowd regions do not count as objects.

  Args:
    truth: A COCO JSON as loaded: `images` and `annotations`. If an object has
      no `area`, or the area 0, the area of the box is used.
    results: A dict for each proposal: `image_id`, `bbox` (x, y, width, height)
      in pixels, and `score`.
    limits: Numbers of proposals of an image that count, those with the highest
      scores. The recall is computed with each limit.

  Raises:
    InputError: If the image of a proposal is unknown, or if the box or the
      score of a proposal is not finite.

  Source:
    detectron2 `evaluation/coco_evaluation.py`, `_evaluate_box_proposals`;
    maskrcnn-benchmark `data/datasets/evaluation/coco/coco_eval.py`,
    `evaluate_box_proposals`.
    Differs: objects of an image without proposals count as not found, while
    both of these programs leave such an image out.
  """
  image_ids = [image['id'] for image in truth['images']]
  proposals: dict[Id, list[list[float]]] = {id_: [] for id_ in image_ids}
  for number, result in enumerate(results):
    values = [*result['bbox'], result['score']]
    if result['image_id'] not in proposals:
      raise InputError(
        f'Proposal {number} has image_id {result["image_id"]!r}, which the '
        'ground truth does not have; evaluate with the annotations that the '
        'images came from.'
      )
    if not all(math.isfinite(value) for value in values):
      raise InputError(
        f'Proposal {number} (image {result["image_id"]!r}) has box and score '
        f'{values}; they must be finite. Check the weights that the proposals '
        'were made with.'
      )
    proposals[result['image_id']].append(values)
  objects: dict[Id, list[list[float]]] = {id_: [] for id_ in image_ids}
  for annotation in truth['annotations']:
    if not annotation.get('iscrowd'):
      box = annotation['bbox']
      area = annotation.get('area') or box[2] * box[3]
      objects[annotation['image_id']].append([*box, area])

  sorted_boxes = {}
  for image_id, found in proposals.items():
    rows = np.array(found, np.float64).reshape(-1, 5)
    order = np.argsort(-rows[:, 4], kind='stable')
    sorted_boxes[image_id] = rows[order, :4]
  stats: dict[str, float | None] = {}
  for limit in limits:
    for size, (least, most) in AREAS.items():
      per_image = [np.zeros(0)]
      for image_id in image_ids:
        real = np.array(objects[image_id], np.float64).reshape(-1, 5)
        real = real[(real[:, 4] >= least) & (real[:, 4] <= most), :4]
        per_image.append(_paired_iou(sorted_boxes[image_id][:limit], real))
      overlaps = np.concatenate(per_image)
      recalls = [np.sum(overlaps >= iou) for iou in IOU_THRESHOLDS]
      stats[f'AR{size}@{limit}'] = (
        float(np.mean(recalls) / overlaps.size) if overlaps.size else None
      )
  return RecallResult(stats, len(image_ids), len(results))


def format_recalls(result: RecallResult) -> str:
  """Writes the recalls as a table, one row for each object size and limit."""
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


def _paired_iou(
  proposals: Float[np.ndarray, 'p 4'], objects: Float[np.ndarray, 'm 4']
) -> Float[np.ndarray, 'm']:
  """Returns the IoU of each object with the proposal that it is paired with.

  The proposal and the object that overlap most become a pair first; then the
  same is repeated with the remaining ones.

  Args:
    proposals: The proposals of one image, (x, y, width, height) in pixels.
    objects: The boxes of the objects of this image, in the same form.

  Returns:
    IoU in [0, 1]; 0 for an object that is in no pair.
  """
  found = np.zeros(len(objects))
  if not len(objects) or not len(proposals):
    return found
  with np.errstate(invalid='ignore'):
    iou = mask_api.iou(proposals, objects, [0] * len(objects))
  iou = np.nan_to_num(iou)  # The IoU of two boxes without area is NaN.
  for i in range(min(iou.shape)):
    best = iou.argmax(axis=0)
    object_ = iou[best, np.arange(iou.shape[1])].argmax()
    found[i] = iou[best[object_], object_]
    iou[best[object_], :] = -1
    iou[:, object_] = -1
  return found
