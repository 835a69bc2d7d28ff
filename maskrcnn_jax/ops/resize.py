"""Resizing, flipping, cropping and padding of an image.

All sizes are static for XLA: an image is in the top left corner of an array of
a fixed size, and the rest of the array is padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

# PIL rounds the weights of pixels to multiples of 2**-22.
_WEIGHT_BITS = 22
# The upper and the lower half of these bits are multiplied separately. Then all
# factors are integers that float16 represents exactly, and all sums are
# integers below 2**24, which float32 represents exactly.
_HALF = 1 << (_WEIGHT_BITS // 2)


def average_weights(
  source: Int[Array, ''],
  target: Int[Array, ''],
  *,
  source_length: int,
  target_length: int,
  flip: Bool[Array, ''] | bool = False,
  offset: Int[Array, ''] | int = 0,
) -> Int[Array, '{target_length} {source_length}']:
  """Returns the matrix that resizes one axis as PIL does.

  If the axis shrinks, each new pixel is an average of all old pixels that it
  covers. Row i of the matrix holds the weights of all old pixels in the new
  pixel i, in units of 2**-22. They are exactly PIL's weights.

  Args:
    source: Number of pixels of the image along this axis. The remaining
      `source_length - source` pixels are padding and get weight 0.
    target: Number of pixels of the whole resized axis. Rows beyond it are zero.
    source_length: Static length of the axis of the source, padding included.
    target_length: Static length of the axis of the result, padding included.
    flip: Whether the result is mirrored.
    offset: Number of pixels that are cut off from the start of the result, for
      cropping. It counts pixels after mirroring.

  Source:
    Pillow `src/libImaging/Resample.c`, `precompute_coeffs` with the triangle
    filter, and `normalize_coeffs_8bpc`. Pixel centres are at halves.
  """
  to = jnp.arange(target_length) + offset
  center = 2 * jnp.where(flip, target - 1 - to, to) + 1
  pixels = jnp.arange(source_length)
  # In units of 1 / (2 * target) source pixels, the distances between centres
  # and the half-width of the triangle are integers.
  distance = jnp.abs((2 * pixels + 1) * target - center[:, None] * source)
  weights = jnp.maximum(2 * jnp.maximum(source, target) - distance, 0)
  real = (pixels < source) & (to < target)[:, None]
  weights = jnp.where(real, weights, 0)
  # At the edge, a part of the triangle covers no pixel. Dividing by the sum
  # gives its weight to the other pixels.
  total = jnp.sum(weights, axis=1, keepdims=True)
  return _divide(weights, jnp.maximum(total, 1))


def _divide(
  part: Int[Array, 't s'], total: Int[Array, 't 1']
) -> Int[Array, 't s']:
  """Returns part / total in units of 2**-22, rounded to the nearest integer.

  Args:
    part: Numbers in [0, total].
    total: Positive numbers below 2**29.
  """
  share = part.astype(jnp.float32) / total.astype(jnp.float32)
  guess = jnp.round(share * (1 << _WEIGHT_BITS)).astype(jnp.int32)
  # The guess is wrong by 1 at most. So the remainder is small, and the
  # arithmetic modulo 2**32 of these integers gives it exactly.
  remainder = (part << _WEIGHT_BITS) - guess * total
  return guess + (2 * remainder >= total) - (2 * remainder < -total)


class Neighbours(NamedTuple):
  """The two old pixels along an axis that each new pixel is made of."""

  first: Int[Array, 'n']  # index in the array; 0 where the new pixel is padding
  second: Int[Array, 'n']
  first_weight: Float[Array, 'n']  # both weights are 0 in padding
  second_weight: Float[Array, 'n']


def find_neighbours(
  source: Int[Array, ''],
  target: Int[Array, ''],
  *,
  source_length: int,
  target_length: int,
  flip: Bool[Array, ''] | bool = False,
  offset: Int[Array, ''] | int = 0,
) -> Neighbours:
  """Returns how torch's bilinear mode resizes one axis.

  Each new pixel is interpolated between two neighbouring old pixels, also if
  the axis shrinks.

  If the array has no room for the axis (`source > source_length`), it holds
  only the pixels that are used: the pixels 2 i and 2 i + 1 are the two old
  pixels for the new pixel i, counted before mirroring and cropping.
  `data.host_resize.pick_pixels` makes such arrays.

  Args:
    source: Number of pixels of the image along this axis.
    target: Number of pixels of the whole resized axis. New pixels beyond it are
      padding.
    source_length: Static length of the axis of the source, padding included.
    target_length: Static length n of the axis of the result, padding included.
    flip: Whether the result is mirrored.
    offset: Number of pixels that are cut off from the start of the result, for
      cropping. It counts pixels after mirroring.

  Source:
    torch.nn.functional.interpolate with align_corners=False and a scale that is
    computed from the sizes; PyTorch `aten/src/ATen/native/UpSample.h`.
  """
  to = jnp.arange(target_length) + offset
  real = (to < target) & (source > 0)
  to = jnp.where(flip, target - 1 - to, to)
  # Integers, so that the host picks the same pixels.
  first = jnp.maximum((2 * to + 1) * source - target, 0) // jnp.maximum(
    2 * target, 1
  )
  second = jnp.minimum(first + 1, source - 1)
  # In float32 as torch, which is inexact at large coordinates.
  step = source.astype(jnp.float32) / jnp.maximum(target, 1).astype(jnp.float32)
  share = jnp.clip(step * (to + 0.5) - 0.5 - first, 0, 1)
  is_picked = source > source_length
  first = jnp.where(is_picked, 2 * to, first)
  second = jnp.where(is_picked, 2 * to + 1, second)
  return Neighbours(
    jnp.where(real, first, 0),
    jnp.where(real, second, 0),
    jnp.where(real, 1 - share, 0),
    jnp.where(real, share, 0),
  )


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
      padding and has no effect. Without `antialias`, an axis that the array is
      too short for holds only the pixels that are used: see
      `find_neighbours`.
    source_size: (height, width) of the image before resizing, in pixels.
    image_size: (height, width) of the image after resizing, before it is
      cropped, in pixels.
    padded_size: (height, width) of the result, in pixels.
    antialias: Whether the pixels are those of PIL's bilinear resizing, which
      averages over all old pixels that a new pixel covers and rounds to
      integers. Otherwise they are those of torch.nn.functional.interpolate,
      which interpolates between two old pixels along each axis.
    flip: Whether left and right are exchanged before cropping.
    offset: (row, column) of the pixel of the resized image that is put into the
      top left corner of the result.

  Returns:
    Float32 pixels in [0, 255].
  """
  row_axis: dict[str, Any] = {
    'source': source_size[0],
    'target': image_size[0],
    'source_length': image.shape[0],
    'target_length': padded_size[0],
    'offset': offset[0],
  }
  column_axis: dict[str, Any] = {
    'source': source_size[1],
    'target': image_size[1],
    'source_length': image.shape[1],
    'target_length': padded_size[1],
    'flip': flip,
    'offset': offset[1],
  }
  pixels = image.astype(jnp.float32)
  if antialias:
    # PIL rounds after each axis, and begins with the columns. Pillow 13 begins
    # with the rows if a picture loses more than twice as many rows as columns,
    # which changes some pixels by 1.
    pixels = _average('us,hsc->huc', average_weights(**column_axis), pixels)
    return _average('ts,suc->tuc', average_weights(**row_axis), pixels)
  pixels = _interpolate(pixels, find_neighbours(**row_axis), axis=0)
  return _interpolate(pixels, find_neighbours(**column_axis), axis=1)


def _interpolate(
  pixels: Float[Array, 'h w c'], neighbours: Neighbours, *, axis: int
) -> Float[Array, 'height width c']:
  """Interpolates between two pixels along an axis."""
  shape = (-1, 1, 1) if axis == 0 else (-1, 1)

  def weighted(index: Array, weight: Array) -> Array:
    """Returns one of the two pixels of each new pixel, times its weight."""
    taken = jnp.take(pixels, index, axis=axis, mode='clip')
    return weight.reshape(shape) * taken

  first, second, first_weight, second_weight = neighbours
  return weighted(first, first_weight) + weighted(second, second_weight)


def _average(
  axes: str, weights: Int[Array, 't s'], pixels: Float[Array, 'h w c']
) -> Float[Array, 'height width c']:
  """Averages pixels along one axis and rounds the result, as PIL does.

  Args:
    axes: The product to compute, as for `jnp.einsum`.
    weights: Weights in units of 2**-22; the sum of a row is about 1, or 0.
    pixels: Integers in [0, 255].

  Returns:
    Integers in [0, 255]; halves are rounded up. They are exact if no average
    has more than 64 weights. An average of more could be wrong by 1 if it is
    within 1e-6 of a half.

  Source:
    Pillow `src/libImaging/Resample.c`, `ImagingResampleHorizontal_8bpc`.
  """
  upper = (weights + _HALF // 2) // _HALF
  lower = weights - upper * _HALF
  # The lower sums may be negative: `lower` is in [-_HALF / 2, _HALF / 2).
  upper_sum, lower_sum = (
    jnp.einsum(
      axes,
      part.astype(jnp.float16),
      pixels.astype(jnp.float16),
      precision=jax.lax.Precision.HIGHEST,
      preferred_element_type=jnp.float32,
    ).astype(jnp.int32)
    for part in (upper, lower)
  )
  half = 1 << (_WEIGHT_BITS - 1)
  rounded = (upper_sum * _HALF + lower_sum + half) >> _WEIGHT_BITS
  return jnp.clip(rounded, 0, 255).astype(jnp.float32)
