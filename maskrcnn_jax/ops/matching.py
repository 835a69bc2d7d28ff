"""Matching: which ground-truth object each anchor or proposal belongs to."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.array_types import AnyArray
from maskrcnn_jax.ops.boxes import iou_of_corners

# Number of boxes in a row of the arrays that `match_by_overlap` computes with;
# a multiple of the vector length of every CPU.
LANES = 1024

# For each box, in rows of `LANES`: index of its best object so far, their IoU,
# and whether it is a best box of an object.
_State = tuple[
  Int[Array, 'rows lanes'],
  Float[Array, 'rows lanes'],
  Bool[Array, 'rows lanes'],
]


def match_boxes(
  iou: Float[Array, 'n g'],
  gt_valid: Bool[Array, 'g'],
  *,
  foreground_iou: float,
  background_iou: float,
  rescue: bool,
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Matches each box to the object that it overlaps most, and labels it.

  Args:
    iou: Intersection over union of each box with each ground-truth object. A
      row of -1 means that the box does not take part; it gets match 0 and
      label 0.
    gt_valid: Which ground-truth slots hold an object; the others are padding.
    foreground_iou: Boxes that overlap an object at least this much get label 1
      (foreground).
    background_iou: Boxes that overlap all objects less than this get label 0
      (background). Boxes between the two thresholds get -1 (ignored).
    rescue: Whether, for each object, the boxes with the largest overlap, if it
      is above 0, get label 1 even if it is below `foreground_iou`. Without
      this, an object that no box overlaps by `foreground_iou` would never be
      learned.

  Returns:
    matches: Index of the object with the largest overlap, the first of equals;
      0 in an image without objects.
    labels: 1, 0 or -1; all 0 in an image without objects.

  Source:
    Faster R-CNN (arXiv:1506.01497), section 3.1.2. A rescued box is matched to
    the object that *it* overlaps most, as in detectron2 `modeling/matcher.py`.
    Differs: an object that overlaps no box at all rescues no box. In detectron2
    it would rescue every box.
  """
  iou = jnp.where(gt_valid[None, :], iou, -1)
  matches = jnp.argmax(iou, axis=1).astype(jnp.int32)
  best = jnp.max(iou, axis=1)
  labels = jnp.where(
    best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  if rescue:
    best_of_object = jnp.max(iou, axis=0)
    rescued = (iou == best_of_object[None, :]) & (best_of_object > 0)[None, :]
    labels = jnp.where(rescued.any(axis=1), 1, labels)
  return matches, labels.astype(jnp.int32)


def match_by_overlap(
  boxes: Float[Array, 'n 4'],
  valid: Bool[Array, 'n'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  foreground_iou: float,
  background_iou: float,
  rescue: bool,
  width_offset: float = 0.0,
  kernels: str = 'xla',
) -> tuple[Int[Array, 'n'], Int[Array, 'n']]:
  """Matches each box to the object that it overlaps most, and labels it.

  The result is that of `pairwise_iou` and `match_boxes`, but the overlaps are
  computed for one object at a time, so that the matrix of all overlaps is never
  in memory.

  Args:
    boxes: (x1, y1, x2, y2) in pixels.
    valid: Boxes that take part; the others get match 0 and label 0.
    gt_boxes: Boxes of the ground-truth objects, in pixels.
    gt_valid: Which ground-truth slots hold an object; the others are padding.
    foreground_iou: Boxes that overlap an object at least this much get label 1
      (foreground).
    background_iou: Boxes that overlap all objects less than this get label 0
      (background). Boxes between the two thresholds get -1 (ignored).
    rescue: Whether, for each object, the boxes with the largest overlap, if it
      is above 0, get label 1 even if it is below `foreground_iou`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    kernels: Implementation: 'xla' is plain JAX, 'pallas' is the GPU kernel, and
      'interpret' is this kernel interpreted by JAX, slow and for tests.

  Returns:
    matches: Index of the object with the largest overlap, the first of equals;
      0 for a box that does not take part and in an image without objects.
    labels: 1, 0 or -1; all 0 in an image without objects.
  """
  if kernels != 'xla':
    from pallas_kernels import matching as kernel

    return kernel.match_by_overlap(
      boxes,
      valid,
      gt_boxes,
      gt_valid,
      foreground_iou=foreground_iou,
      background_iou=background_iou,
      rescue=rescue,
      width_offset=width_offset,
      interpret=kernels == 'interpret',
    )
  n, g = boxes.shape[0], gt_boxes.shape[0]
  if n == 0 or g == 0:
    return jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32)
  # The boxes are arranged in rows, because the maximum can then be taken
  # element by element over the rows. On a CPU, the maximum of a flat list takes
  # ten times as long.
  rows = -(-n // LANES)
  padding = rows * LANES - n
  corners = jnp.pad(boxes, ((0, padding), (0, 0))).T.reshape(4, rows, LANES)
  valid = jnp.pad(valid, (0, padding)).reshape(rows, LANES)

  def compare_with_object(slot: Int[Array, ''], state: _State) -> _State:
    """Updates (matches, best IoU, rescued) of all boxes for one object."""
    matches, best, rescued = state
    iou = iou_of_corners(
      corners, gt_boxes[slot][:, None, None], width_offset=width_offset
    )
    iou = jnp.where(valid & gt_valid[slot], iou, -1)
    # The barrier makes XLA compute the overlaps once. If it computed them once
    # for `most` and again for the comparison with it, and rounded them
    # differently, no overlap might equal the maximum.
    iou = jax.lax.optimization_barrier(iou)
    # Only a larger overlap replaces a match, so the first of equals stays.
    matches = jnp.where(iou > best, slot, matches)
    best = jnp.maximum(best, iou)
    if rescue:
      most = jnp.max(jnp.max(iou, axis=0))
      rescued |= (iou == most) & (most > 0)
    return matches, best, rescued

  matches, best, rescued = jax.lax.fori_loop(
    0,
    _count_slots_in_use(gt_valid),
    compare_with_object,
    (
      jnp.zeros((rows, LANES), jnp.int32),
      jnp.full((rows, LANES), -1, boxes.dtype),
      jnp.zeros((rows, LANES), bool),
    ),
  )
  labels = jnp.where(
    best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  labels = jnp.where(rescued, 1, labels)
  return matches.reshape(-1)[:n], labels.reshape(-1)[:n].astype(jnp.int32)


@jax.custom_batching.custom_vmap
def _count_slots_in_use(gt_valid: Bool[Array, 'g']) -> Int[Array, '']:
  """Returns the number of ground-truth slots up to the last valid one.

  The slots after it are padding and can be skipped.
  """
  slot_numbers = jnp.arange(1, gt_valid.shape[0] + 1)
  return jnp.max(jnp.where(gt_valid, slot_numbers, 0))


@_count_slots_in_use.def_vmap
def _count_slots_in_use_by_batch(
  axis_size: int, in_batched: Sequence[bool], gt_valid: Bool[AnyArray, '*b g']
) -> tuple[Int[Array, ''], bool]:
  """Returns the number of slots up to the last one valid in any image.

  This is the rule for `jax.vmap` of `_count_slots_in_use`. All images of a
  batch run the same loop, so they need one number of slots together.

  Args:
    axis_size: Number of images.
    in_batched: Whether `gt_valid` has a leading axis of images.
    gt_valid: Which ground-truth slots hold an object. Outside of `jit` it is
      the array of the caller, which may be a NumPy array.

  Returns:
    The number, and False because it has no axis of images.
  """
  del axis_size
  if in_batched[0]:
    gt_valid = gt_valid.any(axis=0)
  return _count_slots_in_use(gt_valid), False
