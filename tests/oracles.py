"""Slow reference implementations in NumPy, written from the definitions.

Tests compare the operations of `maskrcnn_jax/ops` with them.
"""

import math

import numpy as np


def iou(box, other):
  """Returns the intersection over union of two boxes; 0 if they are apart."""
  width = min(box[2], other[2]) - max(box[0], other[0])
  height = min(box[3], other[3]) - max(box[1], other[1])
  if width <= 0 or height <= 0:
    return 0.0
  area = (box[2] - box[0]) * (box[3] - box[1])
  other_area = (other[2] - other[0]) * (other[3] - other[1])
  return width * height / (area + other_area - width * height)


def pairwise_iou(boxes):
  """Returns the intersection over union of all pairs of boxes, in float64."""
  boxes = boxes.astype(np.float64)
  sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(
    boxes[:, None, :2], boxes[None, :, :2]
  )
  intersection = np.maximum(sides, 0).prod(axis=-1)
  area = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1)
  union = area[:, None] + area[None, :] - intersection
  return intersection / np.where(union > 0, union, 1)


def greedy_nms(overlap, scores, valid, *, iou_threshold, limit, groups=None):
  """Returns the indices that greedy NMS keeps, best first.

  From the best score down, a box is kept unless a kept box of its group
  overlaps it by more than `iou_threshold`.

  Args:
    overlap: Intersection over union of all pairs of boxes.
    scores: Score of each box. NaN and -inf are never kept.
    valid: Boxes that take part.
    iou_threshold: A larger overlap with a kept box removes a box.
    limit: Largest number of boxes to keep.
    groups: Group of each box; `None` puts all boxes into one group.
  """
  hit = np.float32(overlap) > np.float32(iou_threshold)
  ranked = [i for i in range(len(scores)) if valid[i] and scores[i] > -np.inf]
  # The sort is stable, so equal scores stay in the order of their indices.
  ranked.sort(key=lambda i: -scores[i])
  kept = []
  for i in ranked:
    if len(kept) == limit:
      break
    rivals = [j for j in kept if groups is None or groups[i] == groups[j]]
    if not hit[rivals, i].any():
      kept.append(i)
  return kept


def match_boxes(overlap, gt_valid, *, foreground_iou, background_iou, rescue):
  """Matches and labels boxes one at a time; see `ops.matching.match_boxes`."""
  num_boxes, num_slots = overlap.shape
  matches = np.zeros(num_boxes, np.int32)
  labels = np.zeros(num_boxes, np.int32)
  real = [j for j in range(num_slots) if gt_valid[j]]
  for i in range(num_boxes if real else 0):
    # `max` returns the first of equals.
    matches[i] = max(real, key=lambda j: overlap[i, j])
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
  """Returns the bilinear sample at (y, x), in cells.

  Up to one cell outside the feature map, the edge is repeated. Farther outside,
  the sample is 0.
  """
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
  """Pools one box into `side` x `side` means of bilinear samples.

  Args:
    features: [height, width, channels] of one level.
    box: (x1, y1, x2, y2) in pixels.
    stride: Pixels per cell of the level.
    side: Number of output cells along each side.
    sampling_ratio: Number of samples along each side of an output cell. With 0,
      it is the length of the output cell in cells, rounded up.
    offset: Number of cells subtracted from the coordinates of the box.
    min_side: Shortest side of the box, in cells.
  """
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
  """Returns the matrix that RoIAlign multiplies one axis by, [side, length].

  Args:
    start: Start of the box along the axis, in cells.
    end: End of the box along the axis, in cells.
    length: Number of cells of the level along the axis.
    side: Number of output cells.
    sampling_ratio: Number of samples in each output cell.
  """
  matrix = np.zeros((side, length))
  for i in range(side * sampling_ratio):
    position = start + (i + 0.5) / (side * sampling_ratio) * (end - start)
    if -1 <= position <= length:
      position = min(max(position, 0), length - 1)
      distance = np.abs(np.arange(length) - position)
      matrix[i // sampling_ratio] += np.maximum(1 - distance, 0)
  return matrix / sampling_ratio


def inside_outline(vertices, parts, x, y):
  """Tells whether a point is inside an object, by a ray to the left.

  The point is inside a part if the ray crosses an odd number of its edges. It
  is inside the object if it is inside any part.

  Returns:
    Whether (x, y) is inside, and the distance by which the point could move
    without changing a comparison: the smallest distance from y to the end of
    an edge, or from x to an edge that the ray's line crosses.
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
  """Calls `inside_outline` for each cell centre of a grid over a box.

  Returns:
    Whether each centre is inside, and its distance from a decision, in pixels;
    both [side, side].
  """
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
  """Resizes an image by bilinear samples; pixels at the edge are repeated."""
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
