"""Augmentation, resizing and normalisation of a batch, on the device.

A canvas is the static padded size that an image is put on. The image is in the
top left corner of the canvas, and the rest is padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskrcnn_jax.array_types import AnyArray, Batch, Inputs, Outlines
from maskrcnn_jax.ops.boxes import clip_boxes, flip_boxes
from maskrcnn_jax.ops.outlines import from_bitmap, visible_boxes
from maskrcnn_jax.ops.resize import resize_image

# In pixels. If cropping leaves less than this of an object, along x or along y,
# the object is dropped. mmdetection's FilterAnnotations has the same threshold
# in configs with scale jitter.
MIN_VISIBLE_SIDE = 0.01

# Weights of red, green and blue in a grey value. Source: Rec. 601, as in the
# conversion to grey of Pillow and OpenCV.
_GREY = (0.299, 0.587, 0.114)


class Placement(NamedTuple):
  """The size of each image of a batch, and the part that its canvas shows."""

  resized_sizes: Int[Array, 'b 2']  # (height, width) of the whole image
  # (row, column) of the pixel of the resized image that is put into the top
  # left corner of the canvas. Columns are counted after mirroring.
  offsets: Int[Array, 'b 2']


class AugmentationOptions(NamedTuple):
  """The random changes of training images, and how large they are."""

  flip_probability: float  # of mirroring left to right; [0, 1]
  # (smallest, largest) factor for the largest size that fits on the canvas. ()
  # turns scale jitter off.
  scale_jitter: tuple[float, float] | tuple[()]
  # Largest relative change of brightness, contrast and saturation. 0 changes
  # nothing.
  color_jitter: tuple[float, float, float]


class Augmentation(NamedTuple):
  """The random changes that were drawn for each image of a batch."""

  flips: Bool[Array, 'b']  # whether the image is mirrored left to right
  # `None` keeps the sizes that the batch gives and crops nothing.
  placement: Placement | None = None
  # Factors of brightness, contrast and saturation. `None` keeps the colours.
  color_factors: Float[Array, 'b 3'] | None = None


def draw_augmentation(
  keys: Key[Array, 'b'],
  source_sizes: Int[Array, 'b 2'],
  size_choices: Int[AnyArray, 'b k 2'] | None,
  options: AugmentationOptions,
  *,
  padded_size: tuple[int, int],
) -> Augmentation:
  """Draws the random changes of each image of a batch.

  Args:
    keys: One random key for each image.
    source_sizes: (height, width) of the images before resizing, in pixels.
    size_choices: The sizes (height, width) after resizing to draw from, in
      pixels. `None` keeps the size that the batch gives, unless there is scale
      jitter.
    options: The kinds of change, and their strengths.
    padded_size: (height, width) of the canvas, in pixels.
  """
  # New keys make sizes and colours independent of each other and of the flips.
  placement_keys, color_keys = (
    jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (1, 2)
  )
  placement = color_factors = None
  if options.scale_jitter:
    placement = draw_scale_jitter(
      placement_keys,
      source_sizes,
      scales=options.scale_jitter,
      padded_size=padded_size,
    )
  elif size_choices is not None:
    placement = draw_sizes(placement_keys, jnp.asarray(size_choices))
  if any(options.color_jitter):
    color_factors = draw_color_factors(
      color_keys, strengths=options.color_jitter
    )
  flips = draw_flips(keys, probability=options.flip_probability)
  return Augmentation(flips, placement, color_factors)


def draw_flips(
  keys: Key[Array, 'b'], *, probability: float
) -> Bool[Array, 'b']:
  """Draws for each image of a batch whether it is mirrored left to right.

  Args:
    keys: One random key for each image.
    probability: Probability that an image is mirrored, in [0, 1].
  """
  return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)


def draw_sizes(
  keys: Key[Array, 'b'], choices: Int[Array, 'b k 2']
) -> Placement:
  """Draws the size of each image from the sizes that it may have.

  Args:
    keys: One random key for each image. They must differ from the keys of the
      flips.
    choices: The sizes (height, width) of each image after resizing, in pixels.
      All are equally likely.

  Source:
    detectron2 `ResizeShortestEdge` with sample_style 'choice'.
  """
  sizes = jax.vmap(jax.random.choice)(keys, choices)
  return Placement(sizes, jnp.zeros_like(sizes))


def draw_scale_jitter(
  keys: Key[Array, 'b'],
  source_sizes: Int[Array, 'b 2'],
  *,
  scales: tuple[float, float],
  padded_size: tuple[int, int],
) -> Placement:
  """Draws the size of each image, and the part of it that the canvas shows.

  The largest size that fits on the canvas is multiplied by a random factor. If
  the image is then larger than the canvas, a random part of it is shown.

  Args:
    keys: One random key for each image. They must differ from the keys of the
      flips.
    source_sizes: (height, width) of the images before resizing, in pixels.
    scales: The smallest and the largest factor. All factors between them are
      equally likely.
    padded_size: (height, width) of the canvas, in pixels.

  Source:
    "Simple Copy-Paste" (arXiv:2012.07177), large scale jittering: 0.1 to 2.0 on
    1024x1024. tensorflow/tpu `models/official/detection/utils/input_utils.py`.
  """
  canvas = jnp.array(padded_size, jnp.float32)

  def draw(
    key: Key[Array, ''], size: Int[Array, '2']
  ) -> tuple[Int[Array, '2'], Int[Array, '2']]:
    """Draws the resized size of one image, and the offset of the canvas."""
    scale_key, offset_key = jax.random.split(key)
    scale = jax.random.uniform(scale_key, minval=scales[0], maxval=scales[1])
    fit = jnp.min(canvas / size.astype(jnp.float32))
    resized = jnp.maximum(jnp.round(size * fit * scale), 1)
    beyond = jnp.maximum(resized - canvas, 0)
    offset = jnp.round(beyond * jax.random.uniform(offset_key, (2,)))
    return resized.astype(jnp.int32), offset.astype(jnp.int32)

  return Placement(*jax.vmap(draw)(keys, source_sizes))


def draw_color_factors(
  keys: Key[Array, 'b'], *, strengths: tuple[float, float, float]
) -> Float[Array, 'b 3']:
  """Draws the factors of brightness, contrast and saturation of each image.

  Args:
    keys: One random key for each image. They must differ from the keys of the
      flips.
    strengths: Largest relative change of brightness, contrast and saturation.
      A strength s draws a factor between 1 - s and 1 + s.
  """
  widths = jnp.array(strengths, jnp.float32)
  return jax.vmap(
    lambda key: 1 + widths * jax.random.uniform(key, (3,), minval=-1)
  )(keys)


def prepare_inputs(
  batch: Batch,
  flips: Bool[Array, 'b'],
  *,
  padded_size: tuple[int, int],
  pixel_mean: tuple[float, float, float],
  pixel_std: tuple[float, float, float],
  antialias: bool,
  width_offset: float = 0.0,
  placement: Placement | None = None,
  color_factors: Float[Array, 'b 3'] | None = None,
  max_object_vertices: int | None = None,
) -> Inputs:
  """Flips, resizes, crops, normalises and pads images and their ground truth.

  Args:
    batch: Decoded images and their ground truth, as the host sends them.
    flips: Whether each image is mirrored left to right.
    padded_size: (height, width) of the canvas, in pixels. The image is in its
      top left corner, and padding is zero *after* normalisation.
    pixel_mean: Mean of red, green and blue, subtracted from pixels in [0, 255].
    pixel_std: Divisors of red, green and blue after the subtraction.
    antialias: Whether images are resized as PIL does it, averaging over old
      pixels and rounding, or as torch does it: see `resize_image`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1. Polygons are mirrored like boxes, and bitmaps exactly,
      as maskrcnn-benchmark does.
    placement: Sizes and crops of the images. `None` keeps the sizes that the
      batch gives and crops nothing.
    color_factors: Factors of brightness, contrast and saturation: see
      `adjust_colors`. `None` keeps the colours.
    max_object_vertices: Upper limit of the number of vertices of an object. It
      must be given if images may be cropped. The box of a cropped object then
      encloses its visible part only, and an object without a visible part is
      not valid.
  """
  if placement is None:
    sizes = jnp.asarray(batch.image_sizes)
    placement = Placement(sizes, jnp.zeros_like(sizes))

  def prepare(
    row: Batch,
    flip: Bool[Array, ''],
    placed: Placement,
    factors: Float[Array, '3'] | None,
  ) -> Inputs:
    """Computes the inputs of one image."""
    return _prepare_image(
      row,
      flip,
      placed,
      factors,
      padded_size,
      pixel_mean,
      pixel_std,
      antialias,
      width_offset,
      max_object_vertices,
    )

  return jax.vmap(prepare)(batch, flips, placement, color_factors)


def _prepare_image(
  row: Batch,
  flip: Bool[Array, ''],
  placed: Placement,
  factors: Float[Array, '3'] | None,
  padded_size: tuple[int, int],
  pixel_mean: tuple[float, float, float],
  pixel_std: tuple[float, float, float],
  antialias: bool,
  width_offset: float,
  max_object_vertices: int | None,
) -> Inputs:
  """Computes the inputs of one image: `prepare_inputs` without the batch axis.

  Args:
    row: The decoded image and its ground truth, without the axis b.
    flip: Whether the image is mirrored left to right.
    placed: Size and crop of the image, without the axis b.
    factors: Factors of brightness, contrast and saturation; `None` keeps the
      colours.
    padded_size: (height, width) of the canvas, in pixels.
    pixel_mean: Mean of red, green and blue, subtracted from pixels in [0, 255].
    pixel_std: Divisors of red, green and blue after the subtraction.
    antialias: Whether the image is resized as PIL does it, or as torch does it:
      see `resize_image`.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    max_object_vertices: Upper limit of the number of vertices of an object; not
      `None` if the image may be cropped.
  """
  resized, offset = placed
  source_size = jnp.asarray(row.source_sizes)
  pixels = resize_image(
    jnp.asarray(row.images),
    source_size,
    resized,
    padded_size=padded_size,
    antialias=antialias,
    flip=flip,
    offset=offset,
  )
  image_size = jnp.minimum(
    resized - offset, jnp.array(padded_size, resized.dtype)
  )
  height, width = image_size[0], image_size[1]
  real = (jnp.arange(padded_size[0]) < height)[:, None] & (
    jnp.arange(padded_size[1]) < width
  )
  if factors is not None:
    pixels = adjust_colors(pixels, real, factors)
  pixels = (pixels - jnp.array(pixel_mean)) / jnp.array(pixel_std)
  scale = resized.astype(jnp.float32) / source_size
  x_scale, y_scale = scale[1], scale[0]
  shift = jnp.stack([offset[1], offset[0]]).astype(jnp.float32)

  box_scale = jnp.stack([x_scale, y_scale, x_scale, y_scale])
  boxes = jnp.asarray(row.gt_boxes) * box_scale
  flipped = flip_boxes(boxes, resized[1], width_offset=width_offset)
  boxes = jnp.where(flip, flipped, boxes) - jnp.tile(shift, 2)
  vertex_scale = jnp.stack([x_scale, y_scale])
  vertices = jnp.asarray(row.outlines.vertices) * vertex_scale
  # maskrcnn-benchmark `structures/segmentation_mask.py`: `PolygonInstance` also
  # subtracts the offset, `BinaryMaskList` does not.
  shift_of_flip = jnp.where(from_bitmap(row.outlines), 0, width_offset)
  mirrored = vertices.at[:, 0].set(resized[1] - shift_of_flip - vertices[:, 0])
  vertices = jnp.where(flip, mirrored, vertices) - shift
  outlines = Outlines(vertices, row.outlines.parts, row.outlines.starts)
  valid = jnp.asarray(row.gt_valid)
  if max_object_vertices is not None:
    boxes, valid = _cut_boxes(
      boxes, valid, outlines, image_size, width_offset, max_object_vertices
    )
  return Inputs(
    images=jnp.where(real[..., None], pixels, 0),
    image_sizes=image_size,
    gt_boxes=jnp.where(valid[:, None], boxes, 0),
    gt_classes=jnp.where(valid, row.gt_classes, 0),
    gt_valid=valid,
    outlines=outlines,
  )


def _cut_boxes(
  boxes: Float[Array, 'g 4'],
  valid: Bool[Array, 'g'],
  outlines: Outlines,
  image_size: Int[Array, '2'],
  width_offset: float,
  max_object_vertices: int,
) -> tuple[Float[Array, 'g 4'], Bool[Array, 'g']]:
  """Reduces the boxes of a cropped image to the visible parts of the objects.

  Args:
    boxes: Boxes of the whole objects, in pixels of the cropped image.
    valid: Which slots hold an object.
    outlines: Outlines of the objects, in pixels of the cropped image. The box
      of an object without an outline is only clipped to the image.
    image_size: (height, width) of the cropped image before padding, in pixels.
    width_offset: Number added to x2 - x1 and y2 - y1 to get the sides of a box,
      in pixels: 0 or 1.
    max_object_vertices: Upper limit of the number of vertices of an object.

  Returns:
    The boxes of the visible parts, and which slots hold an object of which at
    least `MIN_VISIBLE_SIDE` pixels are visible along both axes.
  """
  clipped = clip_boxes(boxes, image_size, width_offset=width_offset)
  seen = visible_boxes(
    outlines, image_size, max_object_vertices=max_object_vertices
  ) - jnp.array([0, 0, width_offset, width_offset])
  is_cut = (jnp.abs(clipped - boxes) > MIN_VISIBLE_SIDE).any(axis=1)
  has_outline = outlines.starts[1:] > outlines.starts[:-1]
  boxes = jnp.where((is_cut & has_outline)[:, None], seen, clipped)
  sides = boxes[:, 2:] - boxes[:, :2]
  return boxes, valid & (sides >= MIN_VISIBLE_SIDE).all(axis=1)


def adjust_colors(
  pixels: Float[Array, 'h w 3'],
  real: Bool[Array, 'h w'],
  factors: Float[Array, '3'],
) -> Float[Array, 'h w 3']:
  """Changes brightness, then contrast, then saturation of an image.

  Args:
    pixels: RGB in [0, 255].
    real: Which pixels belong to the image. The others are padding.
    factors: Factors of brightness, contrast and saturation. A factor of 1
      changes nothing. A factor of 0 turns every pixel black (brightness), into
      the mean of the image (contrast), or into its own grey (saturation).

  Returns:
    RGB in [0, 255].

  Source:
    detectron2 `data/transforms/augmentation_impl.py`, RandomBrightness,
    RandomContrast and RandomSaturation.
  """
  brightness, contrast, saturation = factors
  pixels = jnp.clip(pixels * brightness, 0, 255)
  count = jnp.maximum(jnp.sum(real), 1) * 3
  mean = jnp.sum(jnp.where(real[..., None], pixels, 0)) / count
  pixels = jnp.clip(mean + contrast * (pixels - mean), 0, 255)
  grey = jnp.sum(pixels * jnp.array(_GREY), axis=-1, keepdims=True)
  return jnp.clip(grey + saturation * (pixels - grey), 0, 255)
