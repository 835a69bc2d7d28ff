"""Matching: which ground-truth object each anchor or proposal belongs to."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from maskrcnn_jax.array_types import AnyArray
from maskrcnn_jax.ops.boxes import iou_of_corners, pairwise_iou

# Number of boxes in a row of the arrays that `match_by_overlap` computes with;
# a multiple of the vector length of every CPU.
LANES = 1024

# Number of objects that `_compare_in_groups` compares at once. The overlaps in
# memory are this many for each box.
GROUP = 32

# Largest number of ground-truth slots for which `_compare_in_groups` is used.
# It compares with empty slots too, so that it is slow for many.
MAX_IN_GROUPS = 128

# For each box: index of its best object so far, their IoU, and whether it is a
# best box of an object.
_Comparison = tuple[Int[Array, 'n'], Float[Array, 'n'], Bool[Array, 'n']]

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
  computed for one object, or for a few objects, at a time, so that the matrix
  of all overlaps is never in memory.

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
  options: dict[str, Any] = {'rescue': rescue, 'width_offset': width_offset}
  one_by_one: Callable[..., _Comparison] = functools.partial(
    _compare_one_by_one, **options
  )
  arguments = boxes, valid, gt_boxes, gt_valid
  if g > MAX_IN_GROUPS:
    matches, best, rescued = one_by_one(*arguments)
  else:
    matches, best, rescued = jax.lax.platform_dependent(
      *arguments,
      cpu=one_by_one,
      # A GPU would wait for the CPU before each trip of a loop whose number of
      # trips depends on the objects.
      default=functools.partial(_compare_in_groups, **options),
    )
  labels = jnp.where(
    best >= foreground_iou, 1, jnp.where(best < background_iou, 0, -1)
  )
  return matches, jnp.where(rescued, 1, labels).astype(jnp.int32)


def _compare_one_by_one(
  boxes: Float[Array, 'n 4'],
  valid: Bool[Array, 'n'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  rescue: bool,
  width_offset: float,
) -> _Comparison:
  """Compares all boxes with one object after the other, padding left out.

  The arguments are those of `match_by_overlap`.

  Returns:
    For each box, the index of its best object, the IoU with it, and whether the
    box is a best box of an object. A box that does not take part has index 0
    and IoU -1.
  """
  n = boxes.shape[0]
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
  return (
    matches.reshape(-1)[:n],
    best.reshape(-1)[:n],
    rescued.reshape(-1)[:n],
  )


def _compare_in_groups(
  boxes: Float[Array, 'n 4'],
  valid: Bool[Array, 'n'],
  gt_boxes: Float[Array, 'g 4'],
  gt_valid: Bool[Array, 'g'],
  *,
  rescue: bool,
  width_offset: float,
) -> _Comparison:
  """Compares all boxes with 32 objects at a time, padding included.

  The number of trips of the loop depends on g only. The arguments and the
  results are those of `_compare_one_by_one`.
  """
  n, g = boxes.shape[0], gt_boxes.shape[0]
  padding = -g % GROUP
  gt_boxes = jnp.pad(gt_boxes, ((0, padding), (0, 0)))
  gt_valid = jnp.pad(gt_valid, (0, padding))

  def compare_with_group(
    group: Int[Array, ''], state: _Comparison
  ) -> _Comparison:
    """Updates the results of all boxes for the objects of a group."""
    matches, best, rescued = state

    def of_group(array: Shaped[Array, 'g ...']) -> Array:
      """Returns the rows of an array that belong to the group."""
      return jax.lax.dynamic_slice_in_dim(array, group * GROUP, GROUP)

    iou = pairwise_iou(boxes, of_group(gt_boxes), width_offset=width_offset)
    iou = jnp.where(valid[:, None] & of_group(gt_valid), iou, -1)
    # Computed once: see `_compare_one_by_one`.
    iou = jax.lax.optimization_barrier(iou)
    best_of_group = jnp.max(iou, axis=1)
    match = group * GROUP + jnp.argmax(iou, axis=1).astype(jnp.int32)
    if rescue:
      most = jnp.max(iou, axis=0)
      rescued |= jnp.any((iou == most) & (most > 0), axis=1)
    # Only a larger overlap replaces a match, so the first of equals stays.
    matches = jnp.where(best_of_group > best, match, matches)
    return matches, jnp.maximum(best, best_of_group), rescued

  return jax.lax.fori_loop(
    0,
    gt_boxes.shape[0] // GROUP,
    compare_with_group,
    (
      jnp.zeros(n, jnp.int32),
      jnp.full(n, -1, boxes.dtype),
      jnp.zeros(n, bool),
    ),
  )


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
