"""Random arguments of the operations that have a kernel, for `kernel_cases`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from maskrcnn_jax.array_types import Outlines
from maskrcnn_jax.ops.anchors import (
  AnchorLevel,
  anchor_levels,
  count_anchors,
)


class Size(NamedTuple):
  """Numbers of images, boxes and features in the arguments of all cases."""

  num_images: int
  padded_size: tuple[int, int]  # (height, width) of an image, in pixels
  num_objects: int  # ground-truth slots of an image
  num_selected: int  # anchors of a level that enter its NMS
  num_proposals: int  # of an image
  num_rois: int  # of an image
  num_masks: int  # RoIs of an image that get a mask
  channels: int
  num_vertices: int  # of one object
  dtype: Any  # of features; a type such as jnp.float32


def make_levels(size: Size) -> tuple[AnchorLevel, ...]:
  """Returns levels 2 to 6 with three anchors per cell."""
  return anchor_levels(
    size.padded_size,
    sizes={n: (8.0 * 2**n,) for n in range(2, 7)},
    ratios=(0.5, 1.0, 2.0),
  )


def num_anchors(size: Size) -> int:
  """Returns the number of anchors of all levels."""
  return sum(count_anchors(level) for level in make_levels(size))


def random_boxes(
  key: Key[Array, ''], *shape: int, size: Size, whole: bool = True
) -> Float[Array, '*n 4']:
  """Draws boxes of the sizes of objects; some cross the edge of the image.

  The sides are at least 4 pixels and at most two thirds of the image's height.

  Args:
    key: Random key.
    *shape: Shape of the result without the axis of coordinates.
    size: Size of the image.
    whole: Whether coordinates are whole numbers. The overlap of such boxes is
      exact but for one rounding, in the division.

  Returns:
    Boxes in pixels.
  """
  height, width = size.padded_size
  keys = jax.random.split(key, 2)
  extent = jnp.array([width, height], jnp.float32)
  center = jax.random.uniform(keys[0], (*shape, 2)) * extent
  half = 2.0 ** jax.random.uniform(
    keys[1], (*shape, 2), minval=1, maxval=np.log2(height / 3)
  )
  corners = jnp.concatenate([center - half, center + half], axis=-1)
  return jnp.round(corners) if whole else corners


def _empty_last_image(valid: Bool[Array, 'b *n']) -> Bool[Array, 'b *n']:
  """Marks all slots of the last image as padding, unless it is the only one."""
  return valid.at[-1].set(False) if valid.shape[0] > 1 else valid


def _random_truth(
  key: Key[Array, ''], size: Size
) -> tuple[Float[Array, 'b g 4'], Bool[Array, 'b g']]:
  """Draws ground-truth boxes; about half of the slots are padding.

  Returns:
    The boxes, and which slots are real. The last of several images has none.
  """
  keys = jax.random.split(key, 2)
  shape = size.num_images, size.num_objects
  valid = jax.random.bernoulli(keys[0], 0.5, shape)
  return random_boxes(keys[1], *shape, size=size), _empty_last_image(valid)


def iou_arguments(
  key: Key[Array, ''], size: Size
) -> tuple[Float[Array, 'b n 4'], Float[Array, 'b g 4']]:
  """Draws ground truth, and a box for each proposal and ground-truth slot.

  Returns:
    The boxes, and the ground-truth boxes, in pixels.
  """
  keys = jax.random.split(key, 2)
  num_boxes = size.num_proposals + size.num_objects
  boxes = random_boxes(keys[0], size.num_images, num_boxes, size=size)
  return boxes, _random_truth(keys[1], size)[0]


def matching_arguments(
  key: Key[Array, ''], size: Size
) -> tuple[
  Float[Array, 'b a 4'],
  Bool[Array, 'b a'],
  Float[Array, 'b g 4'],
  Bool[Array, 'b g'],
]:
  """Draws as many boxes as there are anchors, and ground truth.

  Returns:
    The boxes in pixels, which of them are real, the ground-truth boxes, and
    which of their slots are real.
  """
  keys = jax.random.split(key, 3)
  shape = size.num_images, num_anchors(size)
  valid = jax.random.bernoulli(keys[0], 0.9, shape)
  return (
    random_boxes(keys[1], *shape, size=size),
    valid,
    *_random_truth(keys[2], size),
  )


def selection_arguments(
  key: Key[Array, ''], size: Size
) -> tuple[Float[Array, 'b a'], Float[Array, 'b a 4'], Int[Array, 'b 2']]:
  """Draws objectness and deltas of all anchors, and makes image sizes.

  Many logits are equal, and a few are -inf or NaN, which must not be selected.
  Some deltas are NaN.
  """
  height, width = size.padded_size
  keys = jax.random.split(key, 2)
  shape = size.num_images, num_anchors(size)
  image_sizes = jnp.tile(
    jnp.array([[height, width - 16]]), (size.num_images, 1)
  )
  logits = jnp.round(64 * jax.random.normal(keys[0], shape)) / 64
  logits = jnp.where(logits < -2.5, -jnp.inf, logits)
  logits = jnp.where(logits == 1, jnp.nan, logits)
  deltas = 0.3 * jax.random.normal(keys[1], (*shape, 4))
  return logits, jnp.where(deltas < -1, jnp.nan, deltas), image_sizes


def nms_arguments(
  key: Key[Array, ''], *shape: int, size: Size, num_objects: int
) -> tuple[Float[Array, '*n 4'], Float[Array, '*n'], Bool[Array, '*n']]:
  """Draws boxes in groups, each around an object, with scores.

  Args:
    key: Random key.
    *shape: Shape of the scores: first images, last the boxes of a list.
    size: Size of the image.
    num_objects: Number of objects in a list; each has about as many boxes.

  Returns:
    Boxes in pixels, their scores in [0, 1], and which of them are real. The
    last of several images has no real box.
  """
  keys = jax.random.split(key, 4)
  objects = random_boxes(keys[0], *shape[:-1], num_objects, size=size)
  boxes = jnp.repeat(objects, -(-shape[-1] // num_objects), axis=-2)
  boxes = boxes[..., : shape[-1], :]
  boxes += jnp.round(3 * jax.random.normal(keys[1], (*shape, 4)))
  valid = jax.random.bernoulli(keys[3], 0.9, shape)
  return boxes, jax.random.uniform(keys[2], shape), _empty_last_image(valid)


def pooling_arguments(
  key: Key[Array, ''],
  size: Size,
  *,
  side: int,
  num_rois: int,
  num_objects: int | None,
) -> tuple[dict[int, Array], Float[Array, 'b r 4'], Float[Array, 'b r s s c']]:
  """Draws a pyramid, RoIs, and the gradient of their pooled features.

  The last tenth of the RoIs are padding: boxes of zeros without a gradient.

  Args:
    key: Random key.
    size: Sizes of images and features.
    side: Number of cells along each side of the pooled features.
    num_rois: Number of RoIs of an image.
    num_objects: If given, all RoIs have sides of about 64 pixels and lie around
      this many objects of an image, like the RoIs of a mask head.
  """
  height, width = size.padded_size
  keys = jax.random.split(key, 4)
  rois = random_boxes(
    keys[1], size.num_images, num_rois, size=size, whole=False
  )
  if num_objects:
    center = jax.random.uniform(keys[1], (size.num_images, num_objects, 2))
    center *= jnp.array([width, height]) - 1
    corners = jnp.concatenate([center - 32, center + 32], axis=-1)
    corners = jnp.tile(corners, (1, -(-num_rois // num_objects), 1))
    corners = corners[:, :num_rois]
    rois = corners + 6 * jax.random.normal(keys[3], corners.shape)
  valid = (jnp.arange(num_rois) < 0.9 * num_rois)[:, None]
  rois = jnp.where(valid, rois, 0)
  pyramid = {
    level: jax.random.normal(
      jax.random.fold_in(keys[0], level),
      (
        size.num_images,
        -(-height // 2**level),
        -(-width // 2**level),
        size.channels,
      ),
      size.dtype,
    )
    for level in (2, 3, 4, 5)
  }
  shape = (size.num_images, num_rois, side, side, size.channels)
  gradient = jax.random.normal(keys[2], shape, size.dtype)
  return pyramid, rois, jnp.where(valid[..., None, None], gradient, 0)


def outline_arguments(
  key: Key[Array, ''], size: Size
) -> tuple[Outlines, Int[Array, 'b r'], Float[Array, 'b r 4']]:
  """Draws outlines of objects of two parts each, and RoIs.

  Returns:
    The outlines, the index of the object of each RoI, and the RoIs in pixels.
  """
  keys = jax.random.split(key, 3)
  shape = size.num_images, size.num_objects * size.num_vertices
  # The last vertex of each part starts no edge.
  vertex = jnp.arange(shape[1]) % size.num_vertices
  half = size.num_vertices // 2
  is_last = (vertex == half - 1) | (vertex == size.num_vertices - 1)
  starts = jnp.arange(size.num_objects + 1) * size.num_vertices
  parts = jnp.where(is_last, -1, vertex >= half).astype(jnp.int16)
  rois = size.num_images, size.num_masks
  return (
    Outlines(
      jax.random.uniform(keys[0], (*shape, 2)) * size.padded_size[0],
      jnp.tile(parts, (size.num_images, 1)),
      jnp.tile(starts, (size.num_images, 1)),
    ),
    jax.random.randint(keys[1], rois, 0, size.num_objects),
    random_boxes(keys[2], *rois, size=size, whole=False),
  )
