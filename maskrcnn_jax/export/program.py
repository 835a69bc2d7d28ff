"""A trained model as one function of pictures with a fixed size.

Axis letters here: y x rows and columns of the largest picture.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import export
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8, UInt16
import numpy as np

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.config import canvas_arguments
from maskrcnn_jax.data.canvases import resized_size
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.kernels import XLA
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime.checkpoint import named_leaves, nested

# Pixels. Sides of padded images are multiples of it; see `data/canvases.py`.
_STRIDE = 32


class Program(NamedTuple):
  """An exported function, and the sizes that it is for."""

  picture_size: tuple[int, int]  # (height, width) of the array of a picture
  padded_size: tuple[int, int]  # (height, width) of the input of the network
  # {platform: function}. JAX could export one function for several platforms,
  # but its branches for them change how XLA rounds sums.
  exported: dict[str, export.Exported]


def default_sizes(
  padded_sizes: Sequence[tuple[int, int]],
) -> list[tuple[int, int]]:
  """Returns the picture sizes that a model is exported for by default.

  They are as large as the padded sizes of its recipe: one size for wide and one
  for upright pictures, or a single one if all padded sizes are squares.

  Args:
    padded_sizes: (height, width) of the padded sizes, in pixels.
  """
  if all(height == width for height, width in padded_sizes):
    return [max(padded_sizes)]
  wide = [size for size in padded_sizes if size[0] <= size[1]]
  upright = [size for size in padded_sizes if size[0] >= size[1]]
  return [
    (max(h for h, _ in sizes), max(w for _, w in sizes))
    for sizes in (wide, upright)
    if sizes
  ]


def resized_sizes(
  picture_size: tuple[int, int],
  *,
  short_side: int,
  long_side: int,
  rule: str,
) -> UInt16[np.ndarray, 'y x 2']:
  """Returns the size after resizing of each picture that a program takes.

  A program takes pictures that fit into its size and lie the same way: no
  upright picture if the size is wider than high, and no wide picture if it is
  higher than wide.

  Args:
    picture_size: (height, width) of the program, in pixels.
    short_side: Length of the shorter side after resizing, in pixels.
    long_side: Upper limit of the longer side, in pixels.
    rule: How the sides are rounded; see `data.canvases.resized_size`.

  Returns:
    At [h - 1, w - 1], the (height, width) to which a picture of height h and
    width w is resized, in pixels; (0, 0) if the program does not take it.
  """
  # This is a table because the sizes are rounded from float64, which devices do
  # not compute with by default. An error of one pixel would move all boxes.
  height, width = picture_size
  table = np.zeros((height, width, 2), np.uint16)
  for h in range(1, height + 1):
    first = h if width > height else 1
    last = min(h, width) if width < height else width
    for w in range(first, last + 1):
      table[h - 1, w - 1] = resized_size(
        h, w, short_side=short_side, long_side=long_side, rule=rule
      )
  return table


def make_program(
  detector: Detector,
  picture_size: tuple[int, int],
  *,
  batch_size: int,
  platforms: Sequence[str],
) -> Program:
  """Exports a model for pictures up to a size.

  The exported function has three arguments: the weights, {path: array};
  `images`, uint8 [batch, height, width, 3], with the pictures in the top left
  corner; and `sizes`, int32 [batch, 2], the (height, width) of each picture. It
  returns a dict of arrays, which `_detect` describes.

  Args:
    detector: The model. Its kernels are replaced by plain JAX, which runs on
      all platforms.
    picture_size: (height, width) of the arrays of the pictures, in pixels.
    batch_size: Number of pictures in a batch.
    platforms: JAX's names of the platforms: 'cpu', 'cuda', 'tpu'.

  Raises:
    InputError: If a picture of this size would be resized to a side of more
      than 65535 pixels.
  """
  rcnn = detector.rcnn._replace(kernels=XLA, mesh=None)
  arguments = canvas_arguments(detector.config)
  if arguments['long_side'] > np.iinfo(np.uint16).max:
    raise InputError(
      f'config.data.long_side is {arguments["long_side"]}; the sides of a '
      'resized picture may have 65535 pixels at most.'
    )
  table = resized_sizes(
    picture_size,
    short_side=arguments['short_side'],
    long_side=arguments['long_side'],
    rule=arguments['resize_rule'],
  )
  height, width = (
    -(-int(side) // _STRIDE) * _STRIDE for side in table.max(axis=(0, 1))
  )

  def detect(
    weights: dict[str, Array],
    images: UInt8[Array, 'b h w 3'],
    sizes: Int[Array, 'b 2'],
  ) -> dict[str, Array]:
    """Finds the objects in pictures."""
    return _detect(
      rcnn, nested(weights), images, sizes, jnp.asarray(table), (height, width)
    )

  weights = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in named_leaves(detector.variables).items()
  }
  exported = {
    platform: export.export(
      jax.jit(detect, keep_unused=True), platforms=[platform]
    )(
      weights,
      jax.ShapeDtypeStruct((batch_size, *picture_size, 3), jnp.uint8),
      jax.ShapeDtypeStruct((batch_size, 2), jnp.int32),
    )
    for platform in platforms
  }
  return Program(picture_size, (height, width), exported)


def _detect(
  rcnn: Rcnn,
  variables: dict[str, Any],
  images: UInt8[Array, 'b h w 3'],
  sizes: Int[Array, 'b 2'],
  table: UInt16[Array, 'y x 2'],
  padded_size: tuple[int, int],
) -> dict[str, Array]:
  """Finds the objects in pictures, from bytes to boxes in the pictures.

  Args:
    rcnn: The network.
    variables: Its parameters and constants.
    images: Pictures in RGB, each in the top left corner of its array.
    sizes: (height, width) of each picture, in pixels.
    table: Result of `resized_sizes`.
    padded_size: (height, width) of the input of the network, in pixels.

  Returns:
    Arrays with d slots for each picture, the highest score first: `boxes`
    [b, d, 4] in pixels of the picture; `classes` [b, d], from 1 on; `scores`
    [b, d]; `valid` [b, d], False if the slot is padding, whose other values are
    0; and, if there is a mask head, `masks` [b, d, m, m], the probability that
    a cell of the box belongs to the object. If a picture has a size that the
    program does not take, its boxes and scores are nan and all its slots are
    valid.
  """
  largest = jnp.array(images.shape[1:3])
  inside = ((sizes >= 1) & (sizes <= largest)).all(axis=1)
  index = jnp.where(inside[:, None], sizes - 1, 0)
  image_sizes = table[index[:, 0], index[:, 1]].astype(jnp.int32)
  is_taken = inside & (image_sizes > 0).all(axis=1)
  image_sizes = jnp.where(is_taken[:, None], image_sizes, 1)
  sizes = jnp.where(is_taken[:, None], sizes, 1)
  count = images.shape[0]
  inputs = rcnn.prepare(
    Batch(
      images=images,
      source_sizes=sizes,
      image_sizes=image_sizes,
      image_valid=is_taken,
      gt_boxes=jnp.zeros((count, 1, 4)),
      gt_classes=jnp.zeros((count, 1), jnp.int32),
      gt_valid=jnp.zeros((count, 1), bool),
      outlines=Outlines(
        jnp.zeros((count, 1, 2)),
        jnp.full((count, 1), -1, jnp.int16),
        jnp.zeros((count, 2), jnp.int32),
      ),
    ),
    padded_size=padded_size,
  )
  detections = rcnn.detect(variables, inputs.images, inputs.image_sizes)
  boxes = _to_picture(detections.boxes, image_sizes, sizes)
  valid = detections.valid
  results = {
    'boxes': jnp.where(valid[..., None], boxes, 0),
    'classes': detections.classes,
    'scores': jnp.where(valid, detections.scores, 0),
    'valid': valid | ~is_taken[:, None],
  }
  for name in ('boxes', 'scores'):
    array = results[name]
    taken = is_taken.reshape(-1, *[1] * (array.ndim - 1))
    results[name] = jnp.where(taken, array, jnp.nan)
  if detections.masks is not None:
    results['masks'] = jnp.where(valid[..., None, None], detections.masks, 0)
  return results


def _to_picture(
  boxes: Float[Array, 'b d 4'],
  image_sizes: Int[Array, 'b 2'],
  sizes: Int[Array, 'b 2'],
) -> Float[Array, 'b d 4']:
  """Converts boxes to pixels of the pictures and clips them to the pictures.

  Args:
    boxes: Boxes in pixels of the resized pictures.
    image_sizes: (height, width) of the pictures after resizing.
    sizes: (height, width) of the pictures.
  """
  # (x, y) in place of (height, width).
  limits = jnp.tile(sizes[:, ::-1], 2).astype(jnp.float32)
  scale = limits / jnp.tile(image_sizes[:, ::-1], 2).astype(jnp.float32)
  return jnp.clip(boxes * scale[:, None], 0, limits[:, None])
