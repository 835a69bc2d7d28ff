"""From the bytes of a batch to what the network sees; runs on the device."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from maskrcnn_jax.array_types import Batch, Inputs, Outlines
from maskrcnn_jax.ops.boxes import clip_boxes, flip_boxes
from maskrcnn_jax.ops.outlines import visible_boxes
from maskrcnn_jax.ops.resize import resize_image, resized_size

# A visible part of an object with a shorter side is no object any more.
# mmdetection's FilterAnnotations has the same in configs with scale jitter.
MIN_VISIBLE_SIDE = 0.01

# Rec. 601, as in Pillow's and OpenCV's conversion to grey.
_GREY = (0.299, 0.587, 0.114)


class Placement(NamedTuple):
  """Where each image of a batch comes to lie on its canvas."""

  resized_sizes: Int[Array, 'b 2']  # (height, width) of the whole image
  # (row, column) of the resized image, mirrored or not, at the canvas's top
  # left corner
  offsets: Int[Array, 'b 2']


class AugmentationOptions(NamedTuple):
  """What training changes at random, and by how much."""

  flip_probability: float
  # Lengths of the short side to choose from, in pixels; (): no choice.
  short_sides: tuple[int, ...]
  # Least and greatest size of an image, as a share of the largest that fits on
  # its canvas; (): no such change. Not together with `short_sides`.
  scale_jitter: tuple[float, ...]
  # Largest relative change of brightness, contrast and saturation.
  color_jitter: tuple[float, float, float]
  long_side: int  # limit of the longer side, in pixels; for `short_sides`
  resize_rule: str  # see `resized_size`; for `short_sides`


class Augmentation(NamedTuple):
  """What is changed in each image of a batch."""

  flips: Bool[Array, 'b']  # whether the image is mirrored left to right
  placement: Placement | None = None  # None: as the batch says, uncut
  color_factors: Float[Array, 'b 3'] | None = None  # None: colours stay


def draw_augmentation(
    keys: Key[Array, 'b'],
    source_sizes: Int[Array, 'b 2'],
    options: AugmentationOptions,
    *,
    padded_size: tuple[int, int],
) -> Augmentation:
  """Draws what is changed in each image of a batch.

  Args:
    keys: One random key an image.
    source_sizes: (height, width) of the decoded images, in pixels.
    options: What to change.
    padded_size: (height, width) of the canvas.
  """
  # Independent of each other and of the flips.
  placement_keys, color_keys = (
      jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
      for i in (1, 2)
  )
  placement = color_factors = None
  if options.scale_jitter:
    placement = draw_scale_jitter(
        placement_keys, source_sizes, scales=options.scale_jitter,
        padded_size=padded_size,
    )
  elif options.short_sides:
    placement = draw_short_sides(
        placement_keys, source_sizes, choices=options.short_sides,
        long_side=options.long_side, resize_rule=options.resize_rule,
        padded_size=padded_size,
    )
  if any(options.color_jitter):
    color_factors = draw_color_factors(
        color_keys, strengths=options.color_jitter
    )
  flips = draw_flips(keys, probability=options.flip_probability)
  return Augmentation(flips, placement, color_factors)


def draw_flips(
    keys: Key[Array, 'b'], *, probability: float
) -> Bool[Array, 'b']:
  """Draws which images of a batch are mirrored, one key an image."""
  return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)


def draw_short_sides(
    keys: Key[Array, 'b'],
    source_sizes: Int[Array, 'b 2'],
    *,
    choices: tuple[int, ...],
    long_side: int,
    resize_rule: str,
    padded_size: tuple[int, int],
) -> Placement:
  """Draws the size of each image: one of several lengths of its short side.

  Args:
    keys: One an image; others than for the flips.
    source_sizes: (height, width) of the decoded images.
    choices: Lengths of the short side, each as likely.
    long_side: See `resized_size`.
    resize_rule: See `resized_size`.
    padded_size: The canvas, which every choice must fit in.

  Source:
    detectron2 `ResizeShortestEdge` with sample_style 'choice'.
  """

  def draw(key, size):
    short_side = jax.random.choice(key, jnp.array(choices, jnp.int32))
    resized = resized_size(
        size, short_side, long_side=long_side, rule=resize_rule
    )
    # An image that was shrunk while it was decoded has lost fractions of a
    # pixel, and so may come out a pixel too long.
    return jnp.minimum(resized, jnp.array(padded_size))

  sizes = jax.vmap(draw)(keys, source_sizes)
  return Placement(sizes, jnp.zeros_like(sizes))


def draw_scale_jitter(
    keys: Key[Array, 'b'],
    source_sizes: Int[Array, 'b 2'],
    *,
    scales: tuple[float, float],
    padded_size: tuple[int, int],
) -> Placement:
  """Draws the size of each image, and which part of it the canvas shows.

  The largest size that fits in the canvas is multiplied by a number from
  `scales`. An image larger than the canvas is cut at random.

  Args:
    keys: One an image; others than for the flips.
    source_sizes: (height, width) of the decoded images.
    scales: The least and the greatest factor.
    padded_size: The canvas.

  Source:
    "Simple Copy-Paste" (arXiv:2012.07177), large scale jittering: 0.1 to 2.0 on
    1024x1024. tensorflow/tpu `models/official/detection/utils/input_utils.py`.
  """
  canvas = jnp.array(padded_size, jnp.float32)

  def draw(key, size):
    scale_key, offset_key = jax.random.split(key)
    scale = jax.random.uniform(
        scale_key, minval=scales[0], maxval=scales[1]
    )
    fit = jnp.min(canvas / size.astype(jnp.float32))
    resized = jnp.maximum(jnp.round(size * fit * scale), 1)
    beyond = jnp.maximum(resized - canvas, 0)
    offset = jnp.round(beyond * jax.random.uniform(offset_key, (2,)))
    return resized.astype(jnp.int32), offset.astype(jnp.int32)

  return Placement(*jax.vmap(draw)(keys, source_sizes))


def draw_color_factors(
    keys: Key[Array, 'b'], *, strengths: tuple[float, float, float]
) -> Float[Array, 'b 3']:
  """Draws what to multiply brightness, contrast and saturation with.

  Args:
    keys: One an image; others than for the flips.
    strengths: Of each; s draws from 1 - s to 1 + s.
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
  """Flips, resizes, crops, normalises and pads images, and their truth.

  Args:
    batch: As decoded by the host.
    flips: Images to mirror left to right.
    padded_size: (height, width) of the canvas; the image is in its top left
      corner, and padding is zero *after* normalisation.
    pixel_mean: Of RGB in [0, 255].
    pixel_std: Of RGB in [0, 255].
    antialias: See `resize_weights`.
    width_offset: See `ops/boxes.py`. Outlines are mirrored like boxes, as
      maskrcnn-benchmark does.
    placement: Sizes and crops; None: those of the batch, uncut.
    color_factors: See `adjust_colors`; None: colours stay.
    max_object_vertices: No object has more vertices than this. Where it is
      given, images may be cut: an object that is cut has the box of what is
      visible of it, and one of which nothing is visible is not valid.
  """
  if placement is None:
    placement = Placement(
        batch.image_sizes, jnp.zeros_like(batch.image_sizes)
    )

  def prepare(row, flip, placed, factors):
    return _prepare_image(
        row, flip, placed, factors, padded_size, pixel_mean, pixel_std,
        antialias, width_offset, max_object_vertices,
    )

  return jax.vmap(prepare)(batch, flips, placement, color_factors)


def _prepare_image(
    batch, flip, placed, factors, padded_size, pixel_mean, pixel_std,
    antialias, width_offset, max_object_vertices,
):
  resized, offset = placed
  pixels = resize_image(
      batch.images, batch.source_sizes, resized,
      padded_size=padded_size, antialias=antialias, flip=flip, offset=offset,
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
  scale = resized.astype(jnp.float32) / batch.source_sizes
  x_scale, y_scale = scale[1], scale[0]
  shift = jnp.stack([offset[1], offset[0]]).astype(jnp.float32)

  boxes = batch.gt_boxes * jnp.stack([x_scale, y_scale, x_scale, y_scale])
  flipped = flip_boxes(boxes, resized[1], width_offset=width_offset)
  boxes = jnp.where(flip, flipped, boxes) - jnp.tile(shift, 2)
  vertices = batch.outlines.vertices * jnp.stack([x_scale, y_scale])
  mirrored = vertices.at[:, 0].set(
      resized[1] - width_offset - vertices[:, 0]
  )
  vertices = jnp.where(flip, mirrored, vertices) - shift
  outlines = Outlines(vertices, batch.outlines.parts, batch.outlines.starts)
  valid = batch.gt_valid
  if max_object_vertices is not None:
    boxes, valid = _cut_boxes(
        boxes, valid, outlines, image_size, width_offset, max_object_vertices
    )
  return Inputs(
      images=jnp.where(real[..., None], pixels, 0),
      image_sizes=image_size,
      gt_boxes=jnp.where(valid[:, None], boxes, 0),
      gt_classes=jnp.where(valid, batch.gt_classes, 0),
      gt_valid=valid,
      outlines=outlines,
  )


def _cut_boxes(
    boxes, valid, outlines, image_size, width_offset, max_object_vertices
):
  """Boxes of what an image shows of its objects, and whether it shows any."""
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
    real: Which pixels belong to the image.
    factors: 1 changes nothing. 0 would give black, the mean of the image, and
      the grey of each pixel.

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
