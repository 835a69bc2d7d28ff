"""Slow definitions in NumPy, one number at a time, to compare with."""

import math

import numpy as np


def iou(box, other):
  """Intersection over union of two boxes; 0 if they share no area."""
  width = min(box[2], other[2]) - max(box[0], other[0])
  height = min(box[3], other[3]) - max(box[1], other[1])
  if width <= 0 or height <= 0:
    return 0.0
  area = (box[2] - box[0]) * (box[3] - box[1])
  other_area = (other[2] - other[0]) * (other[3] - other[1])
  return width * height / (area + other_area - width * height)


def pairwise_iou(boxes):
  """Overlaps of all boxes with each other in float64."""
  boxes = boxes.astype(np.float64)
  sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
    boxes[:, None, :2], boxes[None, :, :2]
  )
  intersection = np.maximum(sides, 0).prod(axis=-1)
  area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1)
  union = area[:, None] + area[None, :] - intersection
  return intersection / np.where(union > 0, union, 1)


def greedy_nms(overlap, scores, valid, *, iou_threshold, limit, groups=None):
  """From the best box down: kept unless a kept one overlaps it by more."""
  hit = np.float32(overlap) > np.float32(iou_threshold)
  ranked = [i for i in range(len(scores)) if valid[i] and scores[i] > -np.inf]
  ranked.sort(key=lambda i: -scores[i])  # stable: equals stay in order
  kept = []
  for i in ranked:
    if len(kept) == limit:
      break
    rivals = [j for j in kept if groups is None or groups[i] == groups[j]]
    if not hit[rivals, i].any():
      kept.append(i)
  return kept


def match_boxes(overlap, gt_valid, *, foreground_iou, background_iou, rescue):
  """One box after the other, then one truth after the other."""
  num_boxes, num_truths = overlap.shape
  matches = np.zeros(num_boxes, np.int32)
  labels = np.zeros(num_boxes, np.int32)
  real = [j for j in range(num_truths) if gt_valid[j]]
  for i in range(num_boxes if real else 0):
    matches[i] = max(real, key=lambda j: overlap[i, j])  # the first of equals
    best = overlap[i, matches[i]]
    if best >= np.float32(foreground_iou):
      labels[i] = 1
    elif best >= np.float32(background_iou):
      labels[i] = -1
  for j in real if rescue else ():
    best = max(overlap[:, j])
    if best > 0:
      labels[overlap[:, j] == best] = 1
  return matches, labels


def bilinear(features, y, x):
  """One sample between the cells; 0 from one cell outside on."""
  height, width = features.shape[:2]
  if y < -1 or y > height or x < -1 or x > width:
    return np.zeros(features.shape[2:])
  y = min(max(y, 0), height - 1)
  x = min(max(x, 0), width - 1)
  total = np.zeros(features.shape[2:])
  for row in {math.floor(y), math.ceil(y)}:
    for column in {math.floor(x), math.ceil(x)}:
      weight = (1 - abs(y - row)) * (1 - abs(x - column))
      total += weight * features[row, column]
  return total


def roi_align(
  features, box, *, stride, side, sampling_ratio, offset, min_side=0.0
):
  """The mean of the samples of each cell; 0: as many as a cell is long."""
  x1, y1, x2, y2 = np.asarray(box, np.float64) / stride - offset
  height, width = max(y2 - y1, min_side), max(x2 - x1, min_side)
  rows = sampling_ratio or math.ceil(height / side)
  columns = sampling_ratio or math.ceil(width / side)
  pooled = np.zeros((side, side) + features.shape[2:])
  for i in range(side):
    for j in range(side):
      for u in range(rows):
        for v in range(columns):
          y = y1 + (i + (u + 0.5) / rows) * height / side
          x = x1 + (j + (v + 0.5) / columns) * width / side
          pooled[i, j] += bilinear(features, y, x)
  return pooled / max(rows * columns, 1)


def roi_align_matrix(start, end, length, *, side, sampling_ratio):
  """The dense matrix that RoIAlign is along one axis, [side, length]."""
  matrix = np.zeros((side, length))
  for i in range(side * sampling_ratio):
    position = start + (i + 0.5) / (side * sampling_ratio) * (end - start)
    if -1 <= position <= length:
      position = min(max(position, 0), length - 1)
      distance = np.abs(np.arange(length) - position)
      matrix[i // sampling_ratio] += np.maximum(1 - distance, 0)
  return matrix / sampling_ratio


def inside_outline(vertices, parts, x, y):
  """Even-odd rule in each part, union of the parts, with a ray to the left.

  Returns:
    Whether (x, y) is inside, and how far it is from the nearest decision: to
    the height of an end of an edge, and to a crossing of the ray's line.
  """
  crossings = {}
  margin = np.inf
  for i, part in enumerate(parts):
    if part < 0:
      continue
    (x1, y1), (x2, y2) = vertices[i], vertices[i + 1]
    margin = min(margin, abs(y - y1), abs(y - y2))
    if (y1 <= y) != (y2 <= y):
      at = x1 + (y - y1) * (x2 - x1) / (y2 - y1)
      margin = min(margin, abs(x - at))
      crossings[part] = crossings.get(part, 0) + (at <= x)
  return any(count % 2 for count in crossings.values()), margin


def rasterize(vertices, parts, box, *, side, min_side=0.1):
  """Asks for every cell centre of a grid over a box; see `inside_outline`."""
  x1, y1, x2, y2 = np.asarray(box, np.float64)
  cell = np.maximum([x2 - x1, y2 - y1], min_side) / side
  inside = np.zeros((side, side), bool)
  margin = np.zeros((side, side))
  for i in range(side):
    for j in range(side):
      inside[i, j], margin[i, j] = inside_outline(
        np.asarray(vertices, np.float64),
        parts,
        x1 + (j + 0.5) * cell[0],
        y1 + (i + 0.5) * cell[1],
      )
  return inside, margin


def resize_bilinear(image, height, width):
  """Samples between the centres of pixels; the outermost repeat outwards."""
  source_height, source_width = image.shape[:2]
  out = np.zeros((height, width) + image.shape[2:])
  for i in range(height):
    for j in range(width):
      y = (i + 0.5) * source_height / height - 0.5
      x = (j + 0.5) * source_width / width - 0.5
      y = min(max(y, 0), source_height - 1)
      x = min(max(x, 0), source_width - 1)
      out[i, j] = bilinear(image, y, x)
  return out
