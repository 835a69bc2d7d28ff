"""Operations of `ops/` written in JAX in the way that torchvision has them.

Most programs compute them in this way. The plain JAX of `ops/` must give the
same results, and benchmarks compare the times and the memory of the two.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from maskrcnn_jax.ops import boxes as box_ops
from maskrcnn_jax.ops import matching
from maskrcnn_jax.ops.anchors import AnchorLevel, count_anchors, make_anchors


def pairwise_iou(
  boxes: Float[Array, 'n 4'], others: Float[Array, 'm 4']
) -> Float[Array, 'n m']:
  """Returns the IoU of each box with each of the other boxes.

  Source:
    torchvision `ops/boxes.py`, `box_iou`.
  """
  corner = jnp.maximum(boxes[:, None, :2], others[:, :2])
  far_corner = jnp.minimum(boxes[:, None, 2:], others[:, 2:])
  sides = jnp.maximum(far_corner - corner, 0)
  intersection = sides[..., 0] * sides[..., 1]
  areas = box_ops.box_area(boxes)[:, None]
  union = areas + box_ops.box_area(others) - intersection
  return jnp.where(
    intersection > 0, intersection / jnp.where(union > 0, union, 1), 0
  )


def match_by_overlap(
  boxes: Float[Array, 'n 4'],
  valid: Bool[Array, 'n'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  foreground_iou: float,
  background_iou: float,
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Matches boxes to ground truth by a matrix of all their overlaps.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    valid: Which boxes are real; the others get match 0 and label 0.
    gt_boxes: Ground-truth boxes, in pixels.
    gt_valid: Which ground-truth slots are real.
    foreground_iou: IoU from which a box gets label 1.
    background_iou: IoU below which a box gets label 0.

  Returns:
    matches: Index of the ground-truth box that each box overlaps most.
    labels: 1 foreground, 0 background, -1 ignored. For each ground-truth box,
      the boxes with the largest IoU, if it is above 0, get label 1 even if it
      is below `foreground_iou`.

  Source:
    torchvision `models/detection/_utils.py`, `Matcher`.
    Differs: a ground-truth box that no box overlaps gives no box label 1.
    `Matcher` would give it to all boxes, because all have the IoU 0. Without
    ground truth, all labels are 0, while `Matcher` raises an error.
  """
  iou = jnp.where(valid[:, None], pairwise_iou(boxes, gt_boxes), -1)
  return matching.match_boxes(
    iou,
    gt_valid,
    foreground_iou=foreground_iou,
    background_iou=background_iou,
    rescue=True,
  )


def select_boxes(
  logits: Float[Array, 'a'],
  deltas: Float[Array, 'a 4'],
  image_size: Int[Array, '2'],
  *,
  levels: tuple[AnchorLevel, ...],
  limit: int,
) -> tuple[Float[Array, 'l {limit} 4'], Float[Array, 'l {limit}']]:
  """Decodes the boxes of all anchors, then takes the best of each level.

  Args:
    logits: Objectness of all anchors. Anchors with -inf or NaN are not taken.
    deltas: Encoded offsets of all anchors.
    image_size: (height, width) that boxes are clipped to, in pixels.
    levels: Positions of the anchors, level after level.
    limit: Number of result slots of a level.

  Returns:
    boxes: In pixels, best first; 0 in slots without a box.
    logits: Logits of these boxes, the largest first; -inf in slots without a
      box.

  Source:
    torchvision `models/detection/rpn.py`, `RegionProposalNetwork.forward`.
  """
  anchors = jnp.concatenate(make_anchors(levels))
  boxes = box_ops.clip_boxes(box_ops.decode_boxes(deltas, anchors), image_size)
  logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
  boxes = jnp.where(logits[:, None] > -jnp.inf, boxes, 0)
  chosen, best, end = [], [], 0
  for level in levels:
    start, end = end, end + count_anchors(level)
    num_taken = min(limit, end - start)
    values, index = jax.lax.top_k(logits[start:end], num_taken)
    num_empty = limit - num_taken
    chosen.append(jnp.pad(boxes[start + index], ((0, num_empty), (0, 0))))
    best.append(jnp.pad(values, (0, num_empty), constant_values=-jnp.inf))
  return jnp.stack(chosen), jnp.stack(best)


def nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n'],
  valid: Bool[Array, 'n'],
  *,
  iou_threshold: float,
  limit: int,
) -> Bool[Array, 'n']:
  """Tells which boxes greedy NMS keeps, by going through them one by one.

  Args:
    boxes: In pixels, in any order.
    scores: Score of each box. A box can only be suppressed by a box of greater
      score, or by an earlier box of equal score.
    valid: Which boxes are real; the others are not kept.
    iou_threshold: A box is suppressed if its IoU with a better kept box is
      greater than this.
    limit: Largest number of boxes to keep; the boxes of greatest score are
      kept.

  Source:
    torchvision `csrc/ops/cpu/nms_kernel.cpp`.
  """
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
  ranked, ranks = boxes[order], jnp.arange(boxes.shape[0])

  def suppress(i: Int[Array, ''], kept: Bool[Array, 'n']) -> Bool[Array, 'n']:
    """Removes the boxes that the box of rank i suppresses, if it is kept."""
    iou = box_ops.pairwise_iou(ranked[i, None], ranked)[0]
    return jnp.where(kept[i] & (iou > iou_threshold) & (ranks > i), False, kept)

  kept = jax.lax.fori_loop(0, boxes.shape[0], suppress, valid[order])
  kept &= jnp.cumsum(kept) <= limit
  return jnp.zeros(boxes.shape[0], bool).at[order].set(kept)


def class_nms(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n'],
  valid: Bool[Array, 'n'],
  *,
  classes: Int[Array, 'n'],
  iou_threshold: float,
  limit: int,
) -> Bool[Array, 'n']:
  """Tells which boxes greedy NMS keeps, if it runs inside each class.

  The boxes of each class are moved so far that they overlap no box of another
  class.

  Args:
    boxes: In pixels, in any order.
    scores: Score of each box. A box can only be suppressed by a box of greater
      score, or by an earlier box of equal score.
    valid: Which boxes are real; the others are not kept.
    classes: Class number of each box.
    iou_threshold: A box is suppressed if its IoU with a better kept box of its
      class is greater than this.
    limit: Largest number of boxes to keep; the boxes of greatest score are
      kept.

  Source:
    torchvision `ops/boxes.py`, `batched_nms`.
  """
  shift = classes[:, None] * (jnp.max(jnp.abs(boxes)) * 2 + 1)
  return nms(
    boxes + shift, scores, valid, iou_threshold=iou_threshold, limit=limit
  )


def roi_align(
  pyramid: dict[int, Float[Array, 'h w c']],
  boxes: Float[Array, 'r 4'],
  levels: Int[Array, 'r'],
  *,
  side: int,
  sampling_ratio: int,
) -> Float[Array, 'r {side} {side} c']:
  """Pools the features of boxes; each sample is read from its four neighbours.

  Args:
    pyramid: Features of one image by level.
    boxes: In pixels of the image.
    levels: Level that each box is pooled from.
    side: Number of cells along each side of the result.
    sampling_ratio: Number of samples along each side of a cell of the result,
      1 or more.

  Source:
    torchvision `ops/roi_align.py`, with `aligned=True`.
  """
  names = sorted(pyramid)
  level_shapes: Sequence[tuple[int, ...]] = [
    pyramid[name].shape[:2] for name in names
  ]
  shapes = jnp.array(level_shapes)
  sizes = np.array([np.prod(shape) for shape in level_shapes])
  starts = jnp.array(np.cumsum(sizes) - sizes)
  cells = jnp.concatenate(
    [pyramid[name].reshape(-1, pyramid[name].shape[-1]) for name in names]
  )
  index = levels - names[0]
  corners = boxes / (2.0**levels)[:, None] - 0.5
  count = side * sampling_ratio
  fractions = (jnp.arange(count) + 0.5) / count

  def samples(axis: int) -> tuple[Array, Array, Array, Array]:
    """Places the samples of each box along an axis: 0 for y, 1 for x.

    Returns:
      low: [r, samples], index of the cell before each sample.
      high: [r, samples], index of the cell after each sample.
      part: [r, samples], distance of the sample from the cell before, in cells
        from 0 to 1.
      inside: [r, samples], whether the sample is at most one cell outside of
        the level.
    """
    start, end = corners[:, 1 - axis, None], corners[:, 3 - axis, None]
    position = start + fractions * (end - start)
    length = shapes[index, axis][:, None]
    inside = (position >= -1) & (position <= length)
    position = jnp.clip(position, 0, length - 1)
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, length - 1), position - low, inside

  y_low, y_high, y_part, y_inside = samples(0)
  x_low, x_high, x_part, x_inside = samples(1)
  stride = shapes[index, 1][:, None, None]
  total = jnp.zeros(())
  for row, row_weight in ((y_low, 1 - y_part), (y_high, y_part)):
    for column, column_weight in ((x_low, 1 - x_part), (x_high, x_part)):
      place = starts[index][:, None, None] + row[:, :, None] * stride
      weight = (row_weight * y_inside)[:, :, None] * (column_weight * x_inside)[
        :, None
      ]
      features = cells[place + column[:, None]]
      total += weight[..., None] * features.astype(jnp.float32)
  shape = (-1, side, sampling_ratio, side, sampling_ratio, cells.shape[-1])
  return total.reshape(shape).mean(axis=(2, 4)).astype(cells.dtype)


def roi_align_and_gradient(
  pyramid: dict[int, Float[Array, 'h w c']],
  boxes: Float[Array, 'r 4'],
  levels: Int[Array, 'r'],
  gradient: Float[Array, 'r {side} {side} c'],
  *,
  side: int,
  sampling_ratio: int,
) -> tuple[Float[Array, 'r {side} {side} c'], dict[int, Array]]:
  """Pools the features of boxes and returns the gradient of the features too.

  Args:
    pyramid: Features of one image by level.
    boxes: (x1, y1, x2, y2) in pixels of the image.
    levels: Level that each box is pooled from.
    gradient: Gradient of a loss with respect to the pooled features.
    side: Number of cells along each side of the result.
    sampling_ratio: Number of samples along each side of a cell of the result,
      1 or more.

  Returns:
    The pooled features, and the gradient of the loss with respect to `pyramid`.
  """
  pooled, pull_back = jax.vjp(
    lambda pyramid: roi_align(
      pyramid, boxes, levels, side=side, sampling_ratio=sampling_ratio
    ),
    pyramid,
  )
  return pooled, pull_back(gradient)[0]
