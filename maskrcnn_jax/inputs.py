"""From the bytes of a batch to what the network sees; runs on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key

from maskrcnn_jax.array_types import Batch, Inputs, Outlines
from maskrcnn_jax.ops.boxes import flip_boxes
from maskrcnn_jax.ops.resize import resize_image


def draw_flips(
    keys: Key[Array, 'b'], *, probability: float
) -> Bool[Array, 'b']:
  """Draws which images of a batch are mirrored, one key an image."""
  return jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)


def prepare_inputs(
    batch: Batch,
    flips: Bool[Array, 'b'],
    *,
    padded_size: tuple[int, int],
    pixel_mean: tuple[float, float, float],
    pixel_std: tuple[float, float, float],
    antialias: bool,
    width_offset: float = 0.0,
) -> Inputs:
  """Flips, resizes, normalises and pads images, and their truth with them.

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
  """
  return jax.vmap(
      lambda row, flip: _prepare_image(
          row, flip, padded_size, pixel_mean, pixel_std, antialias,
          width_offset,
      )
  )(batch, flips)


def _prepare_image(
    batch, flip, padded_size, pixel_mean, pixel_std, antialias, width_offset
):
  pixels = resize_image(
      batch.images, batch.source_sizes, batch.image_sizes,
      padded_size=padded_size, antialias=antialias, flip=flip,
  )
  pixels = (pixels - jnp.array(pixel_mean)) / jnp.array(pixel_std)
  height, width = batch.image_sizes[0], batch.image_sizes[1]
  real = (jnp.arange(padded_size[0]) < height)[:, None] & (
      jnp.arange(padded_size[1]) < width
  )
  scale = batch.image_sizes.astype(jnp.float32) / batch.source_sizes
  x_scale, y_scale = scale[1], scale[0]

  boxes = batch.gt_boxes * jnp.stack([x_scale, y_scale, x_scale, y_scale])
  flipped = flip_boxes(boxes, width, width_offset=width_offset)
  boxes = jnp.where(flip, flipped, boxes)
  vertices = batch.outlines.vertices * jnp.stack([x_scale, y_scale])
  mirrored = vertices.at[:, 0].set(width - width_offset - vertices[:, 0])
  vertices = jnp.where(flip, mirrored, vertices)
  return Inputs(
      images=jnp.where(real[..., None], pixels, 0),
      image_sizes=batch.image_sizes,
      gt_boxes=jnp.where(batch.gt_valid[:, None], boxes, 0),
      gt_classes=batch.gt_classes,
      gt_valid=batch.gt_valid,
      outlines=Outlines(vertices, batch.outlines.parts, batch.outlines.starts),
  )
