"""Every kernel on random input, to be compared with plain JAX and timed."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.array_types import Outlines
from maskrcnn_jax.ops.anchors import (
  anchor_levels,
  anchors_at,
  count_anchors,
  make_anchors,
)
from maskrcnn_jax.ops.boxes import (
  box_area,
  clip_boxes,
  decode_boxes,
  pairwise_iou,
)
from maskrcnn_jax.ops.matching import match_boxes, match_by_overlap
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.outlines import rasterize_outlines
from maskrcnn_jax.ops.roi_align import assign_levels, roi_align
from maskrcnn_jax.ops.selection import select_boxes


class Size(NamedTuple):
  """How much there is to work on."""

  num_images: int
  padded_size: tuple[int, int]  # (height, width) of an image
  num_objects: int
  num_selected: int  # anchors of a level that enter its NMS
  num_proposals: int
  num_rois: int
  num_masks: int
  channels: int
  num_vertices: int  # of one object
  dtype: Any  # of features


# What a step of r50_fpn works on.
TRAINING = Size(
  8, (800, 1344), 100, 2000, 1000, 512, 128, 256, 64, jnp.bfloat16
)
QUICK = Size(2, (256, 320), 20, 300, 100, 32, 8, 32, 16, jnp.float32)
# For interpretation.
TINY = Size(2, (64, 96), 3, 20, 10, 3, 2, 4, 5, jnp.float32)


class Case(NamedTuple):
  """One operation with its arguments."""

  name: str  # of the field of `kernels.Kernels`
  detail: str
  make: Callable  # key -> arguments
  call: Callable  # (*arguments, kernels=) -> results
  # Elements of whole-number and boolean results that may differ, as a share of
  # those of one image, or list: where two overlaps are equal but for rounding,
  # a GPU may decide otherwise.
  may_differ: float
  # Of other results: largest difference, as a share of the largest number.
  tolerance: float
  # (*arguments) -> results, as torchvision has it; see the end of this file.
  define: Callable | None = None


def make_cases(size: Size) -> tuple[Case, ...]:
  """Returns a case or two of every operation that has a kernel."""
  height, width = size.padded_size
  levels = anchor_levels(
    size.padded_size,
    sizes={n: (8.0 * 2**n,) for n in range(2, 7)},
    ratios=(0.5, 1.0, 2.0),
  )
  counts = [count_anchors(level) for level in levels]
  num_images = size.num_images

  def boxes(key, *shape, whole=True):
    """Boxes of the sizes that objects have, some over the edge."""
    keys = jax.random.split(key, 2)
    extent = jnp.array([width, height], jnp.float32)
    center = jax.random.uniform(keys[0], (*shape, 2)) * extent
    half = 2.0 ** jax.random.uniform(
      keys[1], (*shape, 2), minval=1, maxval=np.log2(height / 3)
    )
    corners = jnp.concatenate([center - half, center + half], axis=-1)
    # Overlaps of whole boxes are rounded once only.
    return jnp.round(corners) if whole else corners

  def but_last(valid):
    """Has the last image without any, where it is not the only one."""
    return valid.at[-1].set(False) if num_images > 1 else valid

  def truth(key):
    keys = jax.random.split(key, 2)
    valid = jax.random.bernoulli(keys[0], 0.5, (num_images, size.num_objects))
    return boxes(keys[1], num_images, size.num_objects), but_last(valid)

  def make_iou(key):
    keys = jax.random.split(key, 2)
    count = size.num_proposals + size.num_objects
    return boxes(keys[0], num_images, count), truth(keys[1])[0]

  def make_matching(key):
    keys = jax.random.split(key, 3)
    valid = jax.random.bernoulli(keys[0], 0.9, (num_images, sum(counts)))
    return boxes(keys[1], num_images, sum(counts)), valid, *truth(keys[2])

  def make_selection(key):
    keys = jax.random.split(key, 2)
    shape = num_images, sum(counts)
    sizes = jnp.tile(jnp.array([[height, width - 16]]), (num_images, 1))
    # Many are equal, and a few are not to be taken: -inf, and NaN.
    logits = jnp.round(64 * jax.random.normal(keys[0], shape)) / 64
    logits = jnp.where(logits < -2.5, -jnp.inf, logits)
    logits = jnp.where(logits == 1, jnp.nan, logits)
    deltas = 0.3 * jax.random.normal(keys[1], (*shape, 4))
    return logits, jnp.where(deltas < -1, jnp.nan, deltas), sizes

  def make_nms(key, *shape, num_bunches):
    """Boxes in bunches, each about an object."""
    keys = jax.random.split(key, 4)
    around = boxes(keys[0], *shape[:-1], num_bunches)
    spread = jnp.repeat(around, -(-shape[-1] // num_bunches), axis=-2)
    spread = spread[..., : shape[-1], :]
    spread += jnp.round(3 * jax.random.normal(keys[1], (*shape, 4)))
    valid = jax.random.bernoulli(keys[3], 0.9, shape)
    return spread, jax.random.uniform(keys[2], shape), but_last(valid)

  def make_pooling(key, side, count, num_objects):
    keys = jax.random.split(key, 4)
    rois = boxes(keys[1], num_images, count, whole=False)
    if num_objects:
      # Of about 64 px, all about a few objects, as those of a mask head.
      center = jax.random.uniform(keys[1], (num_images, num_objects, 2))
      center *= jnp.array([width, height]) - 1
      corners = jnp.concatenate([center - 32, center + 32], axis=-1)
      corners = jnp.tile(corners, (1, -(-count // num_objects), 1))[:, :count]
      rois = corners + 6 * jax.random.normal(keys[3], corners.shape)
    # The last are slots that nothing is in.
    is_full = (jnp.arange(count) < 0.9 * count)[:, None]
    rois = jnp.where(is_full, rois, 0)
    pyramid = {
      level: jax.random.normal(
        jax.random.fold_in(keys[0], level),
        (
          num_images,
          -(-height // 2**level),
          -(-width // 2**level),
          size.channels,
        ),
        size.dtype,
      )
      for level in (2, 3, 4, 5)
    }
    shape = (num_images, count, side, side, size.channels)
    gradient = jax.random.normal(keys[2], shape, size.dtype)
    return pyramid, rois, jnp.where(is_full[..., None, None], gradient, 0)

  def make_outlines(key):
    keys = jax.random.split(key, 3)
    shape = num_images, size.num_objects * size.num_vertices
    # Two parts of an object, the last vertex of each without an edge.
    vertex = jnp.arange(shape[1]) % size.num_vertices
    half = size.num_vertices // 2
    is_last = (vertex == half - 1) | (vertex == size.num_vertices - 1)
    starts = jnp.arange(size.num_objects + 1) * size.num_vertices
    parts = jnp.where(is_last, -1, vertex >= half).astype(jnp.int16)
    rois = num_images, size.num_masks
    return (
      Outlines(
        jax.random.uniform(keys[0], (*shape, 2)) * height,
        jnp.tile(parts, (num_images, 1)),
        jnp.tile(starts, (num_images, 1)),
      ),
      jax.random.randint(keys[1], rois, 0, size.num_objects),
      boxes(keys[2], *rois, whole=False),
    )

  def each(function, depth=1):
    """For each image, and perhaps each level, of a batch."""

    def call(*arguments, kernels):
      batched = functools.partial(function, kernels=kernels)
      for _ in range(depth):
        batched = jax.vmap(batched)
      return batched(*arguments)

    return call

  def is_kept(boxes, scores, valid, *, groups=None, kernels, **options):
    """A flag for each box: its place may shift with one that differs."""
    indices, kept = nms(
      boxes, scores, valid, groups=groups, kernels=kernels, **options
    )
    flags = jnp.zeros(boxes.shape[0], bool)
    return flags.at[jnp.where(kept, indices, boxes.shape[0])].set(
      True, mode='drop'
    )

  def classes_of(boxes):
    return jnp.arange(boxes.shape[0]) % 20

  def class_nms(boxes, scores, valid, *, kernels):
    return is_kept(
      boxes,
      scores,
      valid,
      groups=classes_of(boxes),
      iou_threshold=0.5031,
      limit=100,
      kernels=kernels,
    )

  def define_class_nms(boxes, scores, valid):
    # torchvision `batched_nms`: classes are moved so far apart that none of
    # their boxes meet.
    shift = classes_of(boxes)[:, None] * (jnp.max(jnp.abs(boxes)) * 2 + 1)
    return define_nms(
      boxes + shift, scores, valid, iou_threshold=0.5031, limit=100
    )

  def pool(pyramid, boxes, gradient, *, kernels, **options):
    levels = assign_levels(boxes)
    pooled, pull_back = jax.vjp(
      lambda pyramid: roi_align(
        pyramid, boxes, levels, offset=0.5, kernels=kernels, **options
      ),
      pyramid,
    )
    return pooled, pull_back(gradient)

  def define_pool(pyramid, boxes, gradient, **options):
    levels = assign_levels(boxes)
    pooled, pull_back = jax.vjp(
      lambda pyramid: define_roi_align(pyramid, boxes, levels, **options),
      pyramid,
    )
    return pooled, pull_back(gradient)

  def pooling(side, count, sampling_ratio, num_objects=None):
    samples = (
      f'{sampling_ratio}x{sampling_ratio}' if sampling_ratio else ('adaptive')
    )
    where = f' about {num_objects} objects' if num_objects else ''
    return Case(
      'roi_align',
      f'{count} of {side}x{side}{where}, {samples}, and gradient',
      functools.partial(
        make_pooling, side=side, count=count, num_objects=num_objects
      ),
      each(functools.partial(pool, side=side, sampling_ratio=sampling_ratio)),
      0,
      # Results in half precision are rounded once, or twice.
      1e-4 if size.dtype == jnp.float32 else 1e-2,
      jax.vmap(
        functools.partial(define_pool, side=side, sampling_ratio=sampling_ratio)
      )
      if sampling_ratio
      else None,
    )

  def selection(detail, *, fitted, **options):
    def call(logits, deltas, image_size, kernels):
      return select_boxes(
        logits,
        deltas,
        levels,
        image_size,
        limit=size.num_selected,
        fit_to=image_size if fitted else None,
        kernels=kernels,
        **options,
      )

    return Case(
      'select_boxes',
      f'{size.num_selected} of each of {counts}{detail}',
      make_selection,
      each(call),
      0,
      1e-4,
      None
      if fitted
      else jax.vmap(
        functools.partial(
          define_selection, levels=levels, limit=size.num_selected
        )
      ),
    )

  num_candidates = 20 * size.num_proposals
  return (
    Case(
      'pairwise_iou',
      f'{size.num_proposals + size.num_objects} x {size.num_objects}',
      make_iou,
      each(pairwise_iou),
      0,
      1e-6,
      jax.vmap(define_iou),
    ),
    Case(
      'match_by_overlap',
      f'{sum(counts)} x {size.num_objects}',
      make_matching,
      each(
        functools.partial(
          match_by_overlap,
          foreground_iou=0.7031,
          background_iou=0.3031,
          rescue=True,
        )
      ),
      1e-5,
      0,
      jax.vmap(
        functools.partial(
          define_matching, foreground_iou=0.7031, background_iou=0.3031
        )
      ),
    ),
    Case(
      'anchors_at',
      f'{size.num_selected} of {counts[0]}',
      lambda key: (
        jax.random.randint(key, (num_images, size.num_selected), 0, counts[0]),
      ),
      each(functools.partial(anchors_at, levels[0])),
      0,
      1e-6,
      jax.vmap(lambda index: make_anchors(levels[:1])[0][index]),
    ),
    selection('', fitted=False, weights=(1.0, 1.0, 1.0, 1.0)),
    selection(
      ', fitted to the image, legacy widths',
      fitted=True,
      weights=(10.0, 10.0, 5.0, 5.0),
      width_offset=1.0,
    ),
    Case(
      'nms',
      f'5 x {size.num_selected} to {size.num_proposals}',
      lambda key: make_nms(
        key,
        num_images,
        5,
        size.num_selected,
        num_bunches=size.num_selected // 6,
      ),
      each(
        functools.partial(
          is_kept, iou_threshold=0.7031, limit=size.num_proposals
        ),
        depth=2,
      ),
      1e-3,
      0,
      jax.vmap(
        jax.vmap(
          functools.partial(
            define_nms, iou_threshold=0.7031, limit=size.num_proposals
          )
        )
      ),
    ),
    Case(
      'nms',
      f'{num_candidates} of 20 classes to 100',
      # Few objects, each found as every class: most of what there is
      # goes, and all of it has to be looked at.
      lambda key: make_nms(key, num_images, num_candidates, num_bunches=4),
      each(class_nms),
      1e-4,
      0,
      jax.vmap(define_class_nms),
    ),
    pooling(7, size.num_rois, 2),
    pooling(14, size.num_masks, 2, num_objects=7),
    pooling(7, size.num_rois, 0),
    Case(
      'rasterize_outlines',
      f'{size.num_masks} of {size.num_vertices} vertices',
      make_outlines,
      each(
        functools.partial(
          rasterize_outlines,
          side=28,
          max_object_vertices=size.num_vertices,
          max_parts=2,
        )
      ),
      1e-5,
      0,
    ),
  )


def difference(case: Case, results, expected) -> str | None:
  """Says how results differ by more than a case allows, or returns None."""
  for ours, theirs in zip(
    jax.tree.leaves(results), jax.tree.leaves(expected), strict=True
  ):
    if not jnp.issubdtype(theirs.dtype, jnp.floating):
      # Of each image by itself: what is wrong in one only must not be lost
      # among the others.
      differs = (ours != theirs).reshape(theirs.shape[0], -1)
      share = float(jnp.max(jnp.mean(differs, axis=1)))
      if share > case.may_differ:
        return f'{share:.2%} of the elements of an image differ'
      continue
    ours, theirs = (x.astype(jnp.float32) for x in (ours, theirs))
    # Where both are infinite there is nothing to compare.
    same = (ours == theirs) | jnp.isnan(ours) & jnp.isnan(theirs)
    gap = jnp.max(jnp.where(same, 0, jnp.abs(ours - theirs)))
    finite = jnp.where(jnp.isfinite(theirs), jnp.abs(theirs), 0)
    gap = float(gap / jnp.maximum(jnp.max(finite), 1e-6))
    if not gap <= case.tolerance:
      return f'the largest difference is {gap:.2g} of the largest number'
  return None


def make_check(case: Case, kernels: str) -> Callable[[Any], str | None]:
  """Returns what runs a case both ways on input of a key; see `difference`.

  The kernel runs twice. Each does the same in the same order however its
  programs are scheduled: where two runs differ in a bit, there is a race.
  """
  make = jax.jit(case.make)
  ours, theirs = (
    jax.jit(functools.partial(case.call, kernels=way))
    for way in (kernels, 'xla')
  )

  def check(key):
    arguments = make(key)
    results, again = ours(*arguments), ours(*arguments)
    for one, other in zip(
      jax.tree.leaves(results), jax.tree.leaves(again), strict=True
    ):
      if np.asarray(one).tobytes() != np.asarray(other).tobytes():
        return 'the same input gives different results when it comes again'
    return difference(case, results, theirs(*arguments))

  return check


# The same operations in the way that torchvision has them, and most programs:
# what the plain JAX of `ops/` is to be compared with.


def define_iou(boxes, others):
  """Overlaps as in torchvision `ops/boxes.py`, `box_iou`."""
  corner = jnp.maximum(boxes[:, None, :2], others[:, :2])
  far_corner = jnp.minimum(boxes[:, None, 2:], others[:, 2:])
  sides = jnp.maximum(far_corner - corner, 0)
  intersection = sides[..., 0] * sides[..., 1]
  union = box_area(boxes)[:, None] + box_area(others) - intersection
  return jnp.where(
    intersection > 0, intersection / jnp.where(union > 0, union, 1), 0
  )


def define_matching(boxes, valid, gt_boxes, gt_valid, **thresholds):
  """Matches as in torchvision `models/detection/_utils.py`, `Matcher`."""
  iou = jnp.where(valid[:, None], define_iou(boxes, gt_boxes), -1)
  return match_boxes(iou, gt_valid, rescue=True, **thresholds)


def define_selection(logits, deltas, image_size, *, levels, limit):
  """Decodes all boxes first, as torchvision `models/detection/rpn.py`."""
  boxes = decode_boxes(deltas, jnp.concatenate(make_anchors(levels)))
  boxes = clip_boxes(boxes, image_size)
  logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
  boxes = jnp.where(logits[:, None] > -jnp.inf, boxes, 0)
  chosen, best, end = [], [], 0
  for level in levels:
    start, end = end, end + count_anchors(level)
    count = min(limit, end - start)
    values, index = jax.lax.top_k(logits[start:end], count)
    fill = limit - count
    chosen.append(jnp.pad(boxes[start + index], ((0, fill), (0, 0))))
    best.append(jnp.pad(values, (0, fill), constant_values=-jnp.inf))
  return jnp.stack(chosen), jnp.stack(best)


def define_nms(boxes, scores, valid, *, iou_threshold, limit):
  """Suppresses box after box, as torchvision `csrc/ops/cpu/nms_kernel.cpp`."""
  order = jnp.argsort(jnp.where(valid, -scores, jnp.inf), stable=True)
  ranked, ranks = boxes[order], jnp.arange(boxes.shape[0])

  def suppress(i, kept):
    rival = pairwise_iou(ranked[i, None], ranked)[0] > iou_threshold
    return jnp.where(kept[i] & rival & (ranks > i), False, kept)

  kept = jax.lax.fori_loop(0, boxes.shape[0], suppress, valid[order])
  kept &= jnp.cumsum(kept) <= limit
  return jnp.zeros(boxes.shape[0], bool).at[order].set(kept)


def define_roi_align(pyramid, boxes, levels, *, side, sampling_ratio):
  """Pools from four corners a sample, as torchvision `ops/roi_align.py`."""
  names = sorted(pyramid)
  shapes = jnp.array([pyramid[name].shape[:2] for name in names])
  sizes = np.array([np.prod(pyramid[name].shape[:2]) for name in names])
  starts = jnp.array(np.cumsum(sizes) - sizes)
  cells = jnp.concatenate(
    [pyramid[name].reshape(-1, pyramid[name].shape[-1]) for name in names]
  )
  index = levels - names[0]
  corners = boxes / (2.0**levels)[:, None] - 0.5
  count = side * sampling_ratio
  fractions = (jnp.arange(count) + 0.5) / count

  def samples(axis):
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
  total = 0.0
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
