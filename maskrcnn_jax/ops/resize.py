"""Resizing, flipping, cropping and padding of an image by two matmuls."""

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

  Args:
    source: Pixels that are real, of `source_length`.
    target: Pixels of the whole result; rows beyond are zero.
    source_length: Static length of the axis that comes in.
    target_length: Static length of the axis that goes out.
    antialias: Whether shrinking averages over all source pixels that a target
      pixel covers (as PIL does), or samples between two of them (as
      torch.nn.functional.interpolate does).
    flip: Whether the result is mirrored.
    offset: How many pixels of the result are cut off before the first row.

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
  # At the edge a part of the triangle has no pixel; the rest takes its weight,
  # which for two neighbours is the same as repeating the edge pixel.
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
  """Resizes the real part of an image, crops it, and pads it with zeros.

  Args:
    image: Real in its top left corner.
    source_size: (height, width) of the real part.
    image_size: (height, width) that it shall have, before it is cropped.
    padded_size: (height, width) of the result.
    antialias: See `resize_weights`.
    flip: Whether left and right are exchanged, before it is cropped.
    offset: (row, column) of the resized image that comes to the top left
      corner of the result.

  Returns:
    Float32 in the range of the pixels, [0, 255].
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
  # Rounded matmuls (TF32, bf16) would shift grey values by up to one in 256.
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
  """Picks the size to resize an image to, in whole numbers, on the device.

  Args:
    size: (height, width) of the image.
    short_side: What the shorter side becomes,
    long_side: unless the longer one would exceed this.
    rule: As of `data.canvases.resized_size`, which says where they are from.

  Returns:
    (height, width), each at least 1.
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


def _divide_to_nearest(number, by, *, half_to_even=False):
  """Divides whole numbers and rounds; a half goes up, or to even."""
  quotient = (2 * number + by) // (2 * by)
  if half_to_even:
    is_half = (2 * number + by) % (2 * by) == 0
    quotient -= (is_half & (quotient % 2 == 1)).astype(quotient.dtype)
  return quotient
