"""Resizing, flipping, cropping and padding of an image by two matrix products.

All sizes are static for XLA: an image is in the top left corner of an array of
a fixed size, and the rest of the array is padding.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8


def resize_weights(
  source: Int[Array, ''],
  target: Int[Array, ''],
  *,
  source_length: int,
  target_length: int,
  antialias: bool,
  flip: Bool[Array, ''] | bool = False,
  offset: Int[Array, ''] | int = 0,
) -> Float[Array, '{target_length} {source_length}']:
  """Returns the matrix that resizes one axis from `source` to `target` pixels.

  Row i of the matrix holds the weights of all source pixels in pixel i of the
  result.

  Args:
    source: Number of pixels of the image along this axis. The remaining
      `source_length - source` pixels are padding and get weight 0.
    target: Number of pixels of the whole resized axis. Rows beyond it are zero.
    source_length: Static length of the axis of the source, padding included.
    target_length: Static length of the axis of the result, padding included.
    antialias: Whether shrinking averages over all source pixels that a target
      pixel covers (as PIL does), or interpolates between two of them (as
      torch.nn.functional.interpolate does).
    flip: Whether the result is mirrored.
    offset: Number of pixels that are cut off from the start of the result, for
      cropping. It counts pixels after mirroring.

  Source:
    PIL `src/libImaging/Resample.c`, triangle filter; pixel centres at halves.
  """
  step = source.astype(jnp.float32) / target.astype(jnp.float32)
  to = jnp.arange(target_length, dtype=jnp.float32) + offset + 0.5
  mirrored = jnp.where(flip, target.astype(jnp.float32) - to, to)
  centers = mirrored * step
  radius = jnp.maximum(step, 1) if antialias else 1.0
  pixels = jnp.arange(source_length, dtype=jnp.float32) + 0.5
  distance = jnp.abs(pixels[None, :] - centers[:, None])
  weights = jnp.maximum(1 - distance / radius, 0)
  weights = jnp.where(pixels[None, :] < source, weights, 0)
  # At the edge, a part of the triangle filter covers no pixel. Dividing by the
  # sum gives its weight to the other pixels. If only two pixels have weights,
  # this is the same as repeating the edge pixel.
  total = jnp.sum(weights, axis=1, keepdims=True)
  weights = weights / jnp.where(total > 0, total, 1)
  return jnp.where((to < target)[:, None], weights, 0)


def resize_image(
  image: UInt8[Array, 'h w c'],
  source_size: Int[Array, '2'],
  image_size: Int[Array, '2'],
  *,
  padded_size: tuple[int, int],
  antialias: bool,
  flip: Bool[Array, ''] | bool = False,
  offset: Int[Array, '2'] | tuple[int, int] = (0, 0),
) -> Float[Array, '{padded_size[0]} {padded_size[1]} c']:
  """Resizes an image, mirrors it if asked, crops it, and pads it with zeros.

  Args:
    image: Pixels in [0, 255]. The image is in the top left corner; the rest is
      padding and has no effect.
    source_size: (height, width) of the image before resizing, in pixels.
    image_size: (height, width) of the image after resizing, before it is
      cropped, in pixels.
    padded_size: (height, width) of the result, in pixels.
    antialias: Whether shrinking averages over all source pixels that a new
      pixel covers; see `resize_weights`.
    flip: Whether left and right are exchanged before cropping.
    offset: (row, column) of the pixel of the resized image that is put into the
      top left corner of the result.

  Returns:
    Float32 pixels in [0, 255].
  """
  row_weights = resize_weights(
    source_size[0],
    image_size[0],
    source_length=image.shape[0],
    target_length=padded_size[0],
    antialias=antialias,
    offset=offset[0],
  )
  column_weights = resize_weights(
    source_size[1],
    image_size[1],
    source_length=image.shape[1],
    target_length=padded_size[1],
    antialias=antialias,
    flip=flip,
    offset=offset[1],
  )
  # Matrix products of lower precision (TF32, bfloat16) would change pixels by
  # up to 1 of 256.
  exact = jax.lax.Precision.HIGHEST
  rows = jnp.einsum(
    'ts,swc->twc', row_weights, image.astype(jnp.float32), precision=exact
  )
  return jnp.einsum('us,tsc->tuc', column_weights, rows, precision=exact)


def resized_size(
  size: Int[Array, '2'],
  short_side: Int[Array, ''],
  *,
  long_side: int,
  rule: str = 'nearest',
) -> Int[Array, '2']:
  """Returns the size that an image is resized to, keeping its aspect ratio.

  This is `data.canvases.resized_size` on the device, in integer arithmetic.

  Args:
    size: (height, width) of the image, in pixels.
    short_side: Length of the shorter side after resizing, in pixels.
    long_side: Upper limit of the longer side, in pixels; if it would be
      exceeded, both sides shrink.
    rule: How the sides are rounded. 'nearest' rounds both to the nearest
      integer, 'down' rounds both down. 'legacy' rounds the shorter side to the
      nearest integer, halves to the even one, and the longer side down.

  Returns:
    (height, width) in pixels, each at least 1.

  Raises:
    ValueError: If `rule` is none of the three.
  """
  shorter, longer = jnp.min(size), jnp.max(size)
  capped = short_side * longer > long_side * shorter
  match rule:
    case 'nearest':
      new_shorter = _divide_to_nearest(long_side * shorter, longer)
      new_longer = _divide_to_nearest(short_side * longer, shorter)
    case 'down':
      new_shorter = long_side * shorter // longer
      new_longer = short_side * longer // shorter
    case 'legacy':
      new_shorter = _divide_to_nearest(
        long_side * shorter, longer, half_to_even=True
      )
      short_side = jnp.where(capped, jnp.maximum(new_shorter, 1), short_side)
      new_shorter = short_side
      new_longer = short_side * longer // shorter
      capped = jnp.array(False)
    case _:
      raise ValueError(
        f"rule must be 'nearest', 'down' or 'legacy', not {rule!r}."
      )
  new_shorter = jnp.where(capped, new_shorter, short_side)
  new_longer = jnp.where(capped, long_side, new_longer)
  lying = size[0] < size[1]
  return jnp.maximum(
    jnp.stack(
      [
        jnp.where(lying, new_shorter, new_longer),
        jnp.where(lying, new_longer, new_shorter),
      ]
    ),
    1,
  )


def _divide_to_nearest(
  number: Int[Array, ''], by: Int[Array, ''], *, half_to_even: bool = False
) -> Int[Array, '']:
  """Divides positive integers and rounds the result to the nearest integer.

  A result halfway between two integers is rounded up, or, with `half_to_even`,
  to the even one.
  """
  quotient = (2 * number + by) // (2 * by)
  if half_to_even:
    is_half = (2 * number + by) % (2 * by) == 0
    quotient -= (is_half & (quotient % 2 == 1)).astype(quotient.dtype)
  return quotient
