"""Cases of every operation that has a kernel: random arguments, and the call.

`kernel_check` compares a kernel with plain JAX on them, and the kernel
benchmark of the source repository measures time and memory.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskrcnn_jax.doctor import torchvision_operations
from maskrcnn_jax.doctor.kernel_arguments import (
  Size,
  iou_arguments,
  make_levels,
  matching_arguments,
  nms_arguments,
  num_anchors,
  outline_arguments,
  pooling_arguments,
  selection_arguments,
)
from maskrcnn_jax.ops.anchors import anchors_at, count_anchors, make_anchors
from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.ops.matching import match_by_overlap
from maskrcnn_jax.ops.nms import nms
from maskrcnn_jax.ops.outlines import rasterize_outlines
from maskrcnn_jax.ops.roi_align import assign_levels, roi_align
from maskrcnn_jax.ops.selection import select_boxes

# The sizes of a training step of r50_fpn.
TRAINING = Size(
  8, (800, 1344), 100, 2000, 1000, 512, 128, 256, 64, jnp.bfloat16
)
QUICK = Size(2, (256, 320), 20, 300, 100, 32, 8, 32, 16, jnp.float32)
# Small enough for kernels that are interpreted.
TINY = Size(2, (64, 96), 3, 20, 10, 3, 2, 4, 5, jnp.float32)

# IoU thresholds of matching and of NMS. The overlap of two boxes with whole
# coordinates is rarely as close to these numbers as to 0.7, 0.3 and 0.5, where
# rounding would decide.
FOREGROUND_IOU, BACKGROUND_IOU = 0.7031, 0.3031
PROPOSAL_NMS_IOU, CLASS_NMS_IOU = 0.7031, 0.5031

# Numbers of classes and of result slots of the NMS of detections.
NUM_CLASSES, NUM_DETECTIONS = 20, 100


class Case(NamedTuple):
  """One operation with random arguments."""

  name: str  # the operation, a field of `kernels.Kernels`, or 'anchors_at'
  detail: str  # sizes of the arguments, in words
  # Returns the arguments of a batch of images for a random key.
  make_arguments: Callable[[Key[Array, '']], tuple[Any, ...]]
  # Runs the operation on these arguments, with the keyword argument `kernels`.
  call: Callable[..., Any]
  # Limit for integer and boolean results: largest share of the elements of an
  # image (or list of boxes) that may differ. Where two overlaps are equal but
  # for rounding, a GPU may decide differently.
  may_differ: float
  # Limit for other results: largest difference, as a share of the largest
  # number.
  tolerance: float
  # Runs the operation on the same arguments as torchvision has it. `None` if
  # torchvision has nothing like it.
  torchvision: Callable[..., Any] | None = None


def make_cases(size: Size) -> tuple[Case, ...]:
  """Returns one or more cases of every operation that has a kernel."""
  return (
    _iou_case(size),
    _matching_case(size),
    _anchor_case(size),
    _selection_case(size),
    _fitted_selection_case(size),
    _nms_case(size),
    _class_nms_case(size),
    _pooling_case(size, side=7, num_rois=size.num_rois, sampling_ratio=2),
    _pooling_case(
      size, side=14, num_rois=size.num_masks, sampling_ratio=2, num_objects=7
    ),
    _pooling_case(size, side=7, num_rois=size.num_rois, sampling_ratio=0),
    _outline_case(size),
  )


def _batched(
  function: Callable[..., Any], depth: int = 1
) -> Callable[..., Any]:
  """Returns the function for batches of arguments.

  Args:
    function: Operation on one image, or on one level of it, with the keyword
      argument `kernels`.
    depth: Number of batch axes: 1 for images, 2 for images and levels.
  """

  def call(*arguments: Any, kernels: str) -> Any:
    """Runs the function on each element of the batch."""
    batched = functools.partial(function, kernels=kernels)
    for _ in range(depth):
      batched = jax.vmap(batched)
    return batched(*arguments)

  return call


def _iou_case(size: Size) -> Case:
  """Returns the case of the IoU between boxes and ground truth."""
  num_boxes = size.num_proposals + size.num_objects
  return Case(
    'pairwise_iou',
    f'{num_boxes} x {size.num_objects}',
    functools.partial(iou_arguments, size=size),
    _batched(pairwise_iou),
    may_differ=0,
    tolerance=1e-6,
    torchvision=jax.vmap(torchvision_operations.pairwise_iou),
  )


def _matching_case(size: Size) -> Case:
  """Returns the case of matching all anchors to ground truth."""
  return Case(
    'match_by_overlap',
    f'{num_anchors(size)} x {size.num_objects}',
    functools.partial(matching_arguments, size=size),
    _batched(
      functools.partial(
        match_by_overlap,
        foreground_iou=FOREGROUND_IOU,
        background_iou=BACKGROUND_IOU,
        rescue=True,
      )
    ),
    may_differ=1e-5,
    tolerance=0,
    torchvision=jax.vmap(
      functools.partial(
        torchvision_operations.match_by_overlap,
        foreground_iou=FOREGROUND_IOU,
        background_iou=BACKGROUND_IOU,
      )
    ),
  )


def _anchor_case(size: Size) -> Case:
  """Returns the case of making anchors of the finest level from their index."""
  level = make_levels(size)[0]
  count = count_anchors(level)

  def make_arguments(key: Key[Array, '']) -> tuple[Array]:
    """Draws indices of anchors."""
    shape = size.num_images, size.num_selected
    return (jax.random.randint(key, shape, 0, count),)

  return Case(
    'anchors_at',
    f'{size.num_selected} of {count}',
    make_arguments,
    _batched(functools.partial(anchors_at, level)),
    may_differ=0,
    tolerance=1e-6,
    torchvision=jax.vmap(lambda index: make_anchors((level,))[0][index]),
  )


def _selection_detail(size: Size) -> str:
  """Describes the number of boxes taken and the anchors of each level."""
  counts = [count_anchors(level) for level in make_levels(size)]
  return f'{size.num_selected} of each of {counts}'


def _selection_case(size: Size) -> Case:
  """Returns the case of selecting the best boxes of each level before NMS."""
  levels = make_levels(size)

  def call(
    logits: Array, deltas: Array, image_size: Array, kernels: str
  ) -> tuple[Array, Array]:
    """Selects boxes of one image."""
    return select_boxes(
      logits,
      deltas,
      levels,
      image_size,
      limit=size.num_selected,
      weights=(1.0, 1.0, 1.0, 1.0),
      kernels=kernels,
    )

  return Case(
    'select_boxes',
    _selection_detail(size),
    functools.partial(selection_arguments, size=size),
    _batched(call),
    may_differ=0,
    tolerance=1e-4,
    torchvision=jax.vmap(
      functools.partial(
        torchvision_operations.select_boxes,
        levels=levels,
        limit=size.num_selected,
      )
    ),
  )


def _fitted_selection_case(size: Size) -> Case:
  """Returns the case of selecting boxes with all options of `select_boxes`.

  Strides are fitted to the size of the image, and (x2, y2) is the last pixel
  inside a box, as in older conventions.
  """
  levels = make_levels(size)

  def call(
    logits: Array, deltas: Array, image_size: Array, kernels: str
  ) -> tuple[Array, Array]:
    """Selects boxes of one image."""
    return select_boxes(
      logits,
      deltas,
      levels,
      image_size,
      limit=size.num_selected,
      weights=(10.0, 10.0, 5.0, 5.0),
      width_offset=1.0,
      fit_to=image_size,
      kernels=kernels,
    )

  return Case(
    'select_boxes',
    f'{_selection_detail(size)}, fitted to the image, legacy widths',
    functools.partial(selection_arguments, size=size),
    _batched(call),
    may_differ=0,
    tolerance=1e-4,
  )


def _kept_flags(
  boxes: Float[Array, 'n 4'],
  scores: Float[Array, 'n'],
  valid: Bool[Array, 'n'],
  *,
  groups: Int[Array, 'n'] | None = None,
  iou_threshold: float,
  limit: int,
  kernels: str,
) -> Bool[Array, 'n']:
  """Runs `nms` and returns a flag for each box: whether it is kept.

  Flags can be compared box by box. In the list that `nms` returns, one box more
  or less would shift all boxes after it. The arguments are those of `nms`.
  """
  indices, kept = nms(
    boxes,
    scores,
    valid,
    groups=groups,
    iou_threshold=iou_threshold,
    limit=limit,
    kernels=kernels,
  )
  flags = jnp.zeros(boxes.shape[0], bool)
  return flags.at[jnp.where(kept, indices, boxes.shape[0])].set(
    True, mode='drop'
  )


def _nms_case(size: Size) -> Case:
  """Returns the case of the NMS of five levels of the RPN."""
  return Case(
    'nms',
    f'5 x {size.num_selected} to {size.num_proposals}',
    lambda key: nms_arguments(
      key,
      size.num_images,
      5,
      size.num_selected,
      size=size,
      num_objects=size.num_selected // 6,
    ),
    _batched(
      functools.partial(
        _kept_flags, iou_threshold=PROPOSAL_NMS_IOU, limit=size.num_proposals
      ),
      depth=2,
    ),
    may_differ=1e-3,
    tolerance=0,
    torchvision=jax.vmap(
      jax.vmap(
        functools.partial(
          torchvision_operations.nms,
          iou_threshold=PROPOSAL_NMS_IOU,
          limit=size.num_proposals,
        )
      )
    ),
  )


def _class_nms_case(size: Size) -> Case:
  """Returns the case of the NMS of detections, separate for each class.

  There are few objects, each found as every class. Most boxes are suppressed,
  but NMS must go through all of them.
  """
  num_boxes = NUM_CLASSES * size.num_proposals

  def call(boxes: Array, scores: Array, valid: Array, *, kernels: str) -> Array:
    """Returns which boxes of one image are kept."""
    return _kept_flags(
      boxes,
      scores,
      valid,
      groups=jnp.arange(num_boxes) % NUM_CLASSES,
      iou_threshold=CLASS_NMS_IOU,
      limit=NUM_DETECTIONS,
      kernels=kernels,
    )

  def torchvision(boxes: Array, scores: Array, valid: Array) -> Array:
    """Returns which boxes of one image are kept, as torchvision finds them."""
    return torchvision_operations.class_nms(
      boxes,
      scores,
      valid,
      classes=jnp.arange(num_boxes) % NUM_CLASSES,
      iou_threshold=CLASS_NMS_IOU,
      limit=NUM_DETECTIONS,
    )

  return Case(
    'nms',
    f'{num_boxes} of {NUM_CLASSES} classes to {NUM_DETECTIONS}',
    lambda key: nms_arguments(
      key, size.num_images, num_boxes, size=size, num_objects=4
    ),
    _batched(call),
    may_differ=1e-4,
    tolerance=0,
    torchvision=jax.vmap(torchvision),
  )


def _pooling_case(
  size: Size,
  *,
  side: int,
  num_rois: int,
  sampling_ratio: int,
  num_objects: int | None = None,
) -> Case:
  """Returns the case of RoIAlign, forward and backward.

  Args:
    size: Sizes of images and features.
    side: Number of cells along each side of the pooled features.
    num_rois: Number of RoIs of an image.
    sampling_ratio: Number of samples along each side of a pooled cell. With 0,
      it is the length of the pooled cell in cells of the level, rounded up.
    num_objects: If given, the RoIs lie around this many objects of an image.
  """
  samples = (
    f'{sampling_ratio}x{sampling_ratio}' if sampling_ratio else 'adaptive'
  )
  where = f' about {num_objects} objects' if num_objects else ''

  def call(
    pyramid: dict[int, Array], boxes: Array, gradient: Array, *, kernels: str
  ) -> tuple[Array, dict[int, Array]]:
    """Pools features of one image; returns them and the pyramid's gradient."""
    levels = assign_levels(boxes)
    pooled, pull_back = jax.vjp(
      lambda pyramid: roi_align(
        pyramid,
        boxes,
        levels,
        side=side,
        sampling_ratio=sampling_ratio,
        offset=0.5,
        kernels=kernels,
      ),
      pyramid,
    )
    return pooled, pull_back(gradient)[0]

  def torchvision(
    pyramid: dict[int, Array], boxes: Array, gradient: Array
  ) -> tuple[Array, dict[int, Array]]:
    """Pools features as torchvision does; returns what `call` returns."""
    return torchvision_operations.roi_align_and_gradient(
      pyramid,
      boxes,
      assign_levels(boxes),
      gradient,
      side=side,
      sampling_ratio=sampling_ratio,
    )

  return Case(
    'roi_align',
    f'{num_rois} of {side}x{side}{where}, {samples}, and gradient',
    functools.partial(
      pooling_arguments,
      size=size,
      side=side,
      num_rois=num_rois,
      num_objects=num_objects,
    ),
    _batched(call),
    may_differ=0,
    # Results in half precision may be rounded once or twice.
    tolerance=1e-4 if size.dtype == jnp.float32 else 1e-2,
    torchvision=jax.vmap(torchvision) if sampling_ratio else None,
  )


def _outline_case(size: Size) -> Case:
  """Returns the case of drawing mask targets."""
  return Case(
    'rasterize_outlines',
    f'{size.num_masks} of {size.num_vertices} vertices',
    functools.partial(outline_arguments, size=size),
    _batched(
      functools.partial(
        rasterize_outlines,
        side=28,
        max_object_vertices=size.num_vertices,
        max_parts=2,
      )
    ),
    may_differ=1e-5,
    tolerance=0,
  )
