"""Tests of the recall of proposals."""

import math

import numpy as np
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_recall import (
  evaluate_proposals,
  format_recalls,
)


def make_truth(objects, num_images=1):
  """Returns a COCO ground truth without masks.

  Args:
    objects: (image_id, box) or (image_id, box, area) of each object.
    num_images: Number of images; their ids count from 0.
  """
  return {
    'images': [{'id': i} for i in range(num_images)],
    'annotations': [
      {
        'image_id': image_id,
        'bbox': list(box),
        'iscrowd': 0,
        'area': area[0] if area else box[2] * box[3],
      }
      for image_id, box, *area in objects
    ],
  }


def make_results(boxes):
  """Returns the proposals as COCO results.

  Args:
    boxes: (image_id, box, score) of each proposal.
  """
  return [
    {'image_id': image_id, 'bbox': list(box), 'score': score}
    for image_id, box, score in boxes
  ]


def test_recall_by_hand():
  # The IoU of the first object is 0.6, which reaches 3 of the 10 thresholds
  # (0.5, 0.55, 0.6). The second object is found exactly and reaches 10, the
  # third is not found. The mean over the thresholds is 13 / 30.
  truth = make_truth(
    [
      (0, (0, 0, 100, 10)),
      (0, (200, 0, 20, 20)),
      (0, (400, 0, 20, 20)),
    ]
  )
  results = make_results(
    [
      (0, (0, 0, 60, 10), 0.9),
      (0, (200, 0, 20, 20), 0.8),
      (0, (600, 0, 9, 9), 0.7),
    ]
  )
  stats = evaluate_proposals(truth, results).stats
  assert stats['AR@100'] == stats['AR@1000'] == pytest.approx(13 / 30)
  # 1000, 400 and 400 square pixels: all are below 32 * 32.
  assert stats['ARs@100'] == pytest.approx(13 / 30)
  assert stats['ARm@100'] is None


def test_a_proposal_finds_one_object():
  # Both objects overlap the only proposal; it is paired with the one that
  # overlaps more.
  truth = make_truth([(0, (0, 0, 10, 10)), (0, (0, 0, 10, 9))])
  results = make_results([(0, (0, 0, 10, 10), 0.5)])
  assert evaluate_proposals(truth, results).stats['AR@100'] == 0.5


def test_limits_take_the_best_scores():
  truth = make_truth([(0, (0, 0, 10, 10))])
  boxes = [(0, (50, 50, 5, 5), 0.9), (0, (0, 0, 10, 10), 0.1)]
  stats = evaluate_proposals(
    truth, make_results(boxes[::-1]), limits=(1, 2)
  ).stats
  assert (stats['AR@1'], stats['AR@2']) == (0, 1)


def test_images_without_proposals_count_and_crowds_do_not():
  truth = make_truth([(0, (0, 0, 9, 9)), (1, (0, 0, 9, 9))], num_images=3)
  truth['annotations'].append(
    {'image_id': 0, 'bbox': [0, 0, 50, 50], 'area': 2500, 'iscrowd': 1}
  )
  results = make_results([(0, (0, 0, 9, 9), 0.5)])
  result = evaluate_proposals(truth, results)
  assert result.stats['AR@100'] == 0.5
  assert (result.num_images, result.num_proposals) == (3, 1)


def slow_recall(truth, results, limit, least, most):
  """Computes the average recall from its definition, one pair at a time.

  Args:
    truth: The ground truth.
    results: The proposals.
    limit: Number of proposals of an image that count.
    least: Least area of an object that counts, in pixels.
    most: Greatest area of an object that counts, in pixels.
  """
  found, total = [], 0
  for image in truth['images']:
    rows = [r for r in results if r['image_id'] == image['id']]
    rows = sorted(rows, key=lambda r: -r['score'])[:limit]
    objects = [
      a['bbox']
      for a in truth['annotations']
      if a['image_id'] == image['id']
      and least <= a['area'] <= most
      and not a['iscrowd']
    ]
    total += len(objects)
    pairs = {}
    for i, row in enumerate(rows):
      for j, (x, y, w, h) in enumerate(objects):
        px, py, pw, ph = row['bbox']
        width = min(x + w, px + pw) - max(x, px)
        height = min(y + h, py + ph) - max(y, py)
        shared = max(width, 0) * max(height, 0)
        pairs[i, j] = shared / (w * h + pw * ph - shared)
    while pairs:
      i, j = max(pairs, key=pairs.get)
      found.append(pairs[i, j])
      pairs = {k: v for k, v in pairs.items() if k[0] != i and k[1] != j}
  if not total:
    return None
  recalls = [
    sum(iou >= t for iou in found) / total
    for t in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
  ]
  return sum(recalls) / 10


@pytest.mark.parametrize('seed', range(5))
def test_recall_equals_its_definition(seed):
  rng = np.random.default_rng(seed)

  def boxes(count):
    corners = rng.uniform(0, 200, (count, 2))
    return np.concatenate([corners, rng.uniform(5, 150, (count, 2))], 1)

  images = rng.integers(0, 4, 25).tolist()
  real = boxes(25)
  truth = make_truth(list(zip(images, real.tolist(), strict=True)), 5)
  near = np.repeat(real, 3, axis=0)
  near += rng.normal(0, 8, near.shape) * [1, 1, 0.3, 0.3]
  near[:, 2:] = np.maximum(near[:, 2:], 1)
  results = make_results(
    [
      (image, box, float(rng.uniform()))
      for image, box in zip(
        np.repeat(images, 3).tolist(), near.tolist(), strict=True
      )
    ]
  )
  stats = evaluate_proposals(truth, results, limits=(5, 1000)).stats
  areas = {'': (0, 1e10), 's': (0, 1024), 'm': (1024, 9216), 'l': (9216, 1e10)}
  for size, (least, most) in areas.items():
    for limit in (5, 1000):
      expected = slow_recall(truth, results, limit, least, most)
      assert stats[f'AR{size}@{limit}'] == (
        None if expected is None else pytest.approx(expected, abs=1e-12)
      )


def test_boxes_without_area_and_missing_boxes_have_no_overlap():
  truth = make_truth([(0, (3, 3, 0, 0), 4.0)])
  results = make_results([(0, (3, 3, 0, 0), 0.5)])
  assert evaluate_proposals(truth, results).stats['AR@100'] == 0
  assert evaluate_proposals(truth, []).stats['AR@100'] == 0
  assert evaluate_proposals(make_truth([]), []).stats['AR@100'] is None


@pytest.mark.parametrize(
  'box',
  [
    (7, (0, 0, 1, 1), 0.5),
    (0, (0, 0, math.nan, 1), 0.5),
    (0, (0, 0, 1, 1), math.inf),
  ],
)
def test_a_broken_proposal_is_refused(box):
  with pytest.raises(InputError, match='Proposal 0'):
    evaluate_proposals(make_truth([]), make_results([box]))


def test_the_table_has_a_row_for_each_number():
  result = evaluate_proposals(
    make_truth([(0, (0, 0, 10, 10))]), make_results([(0, (0, 0, 10, 9), 1.0)])
  )
  lines = format_recalls(result).splitlines()
  assert lines[0] == '1 images; 1 proposals of any class'
  assert len(lines) == 1 + len(result.stats)
  assert lines[1].endswith('| area=   all | proposals= 100 ]  0.900')
  assert lines[-1].endswith('| area= large | proposals=1000 ]    n/a')
