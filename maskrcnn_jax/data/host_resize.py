"""Makes a large picture smaller on the host, before it goes to the device.

The device resizes pictures of usual sizes; `ops/resize.py` has the arithmetic.
Axis letters here: n new pixels along an axis.
"""

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image


def fit_array(
  pixels: UInt8[np.ndarray, 'h w 3'],
  *,
  source_size: tuple[int, int],
  image_size: tuple[int, int],
  array_size: tuple[int, int],
  antialias: bool,
) -> UInt8[np.ndarray, 'rows columns 3']:
  """Returns the pixels of a picture that the device gets.

  Args:
    pixels: The decoded picture.
    source_size: (height, width) that the plan has for the picture before the
      device resizes it, in pixels. If the picture has another size, it is
      resized to this size.
    image_size: (height, width) after the device has resized it, in pixels.
    array_size: (height, width) of the array of the device, in pixels. Along an
      axis for which the array has no room, only the pixels that the device uses
      are kept.
    antialias: Whether the picture is resized as PIL does it, averaging over old
      pixels. Otherwise it is interpolated between two old pixels.

  Returns:
    An array that fits into `array_size`. If the picture was not changed, it is
    `pixels` itself.
  """
  if pixels.shape[:2] != source_size:
    pixels = resize(pixels, source_size, antialias=antialias)
  for axis in (0, 1):
    if source_size[axis] > array_size[axis]:
      pixels = pick_pixels(pixels, image_size[axis], axis=axis)
  return pixels


def resize(
  pixels: UInt8[np.ndarray, 'h w 3'], size: tuple[int, int], *, antialias: bool
) -> UInt8[np.ndarray, 'rows columns 3']:
  """Resizes a picture to (height, width) and rounds its pixels to integers.

  Args:
    pixels: The picture.
    size: The new (height, width), in pixels.
    antialias: Whether PIL resizes, which averages over all old pixels that a
      new pixel covers. Otherwise each new pixel is interpolated between two old
      pixels along each axis.
  """
  if antialias:
    # PIL has sizes as (width, height). There are two calls because columns come
    # first, also in Pillow 13: see `ops.resize.resize_image`.
    bilinear = Image.Resampling.BILINEAR
    wide = Image.fromarray(pixels).resize((size[1], pixels.shape[0]), bilinear)
    return np.array(wide.resize(size[::-1], bilinear))
  values = pixels
  for axis in (0, 1):
    first, second, share = _neighbours(values.shape[axis], size[axis])
    share = np.expand_dims(share, (1, 2) if axis == 0 else (0, 2))
    values = (1 - share) * values.take(first, axis) + share * values.take(
      second, axis
    )
  return np.rint(values).astype(np.uint8)


def pick_pixels(
  pixels: UInt8[np.ndarray, 'h w 3'], target: int, *, axis: int
) -> UInt8[np.ndarray, 'rows columns 3']:
  """Returns the rows or columns that interpolation to a new size uses.

  Args:
    pixels: The picture.
    target: Length of the axis after resizing, in pixels.
    axis: 0 picks rows, 1 picks columns.

  Returns:
    An array with length 2 * target along the axis: the places 2 i and 2 i + 1
    hold the two old pixels that the new pixel i is interpolated between.
  """
  first, second, _ = _neighbours(pixels.shape[axis], target)
  return pixels.take(np.stack([first, second], axis=1).ravel(), axis)


def _neighbours(
  source: int, target: int
) -> tuple[Int[np.ndarray, 'n'], Int[np.ndarray, 'n'], Float[np.ndarray, 'n']]:
  """Returns the two old pixels that each new pixel is interpolated between.

  Args:
    source: Length of the axis, in pixels.
    target: Length of the axis after resizing, in pixels.

  Returns:
    The indices of the two old pixels of each new pixel, and the weight of the
    second, float32 in [0, 1].

  Source:
    torch.nn.functional.interpolate, bilinear, with align_corners=False;
    `ops.resize.find_neighbours`.
  """
  to = np.arange(target)
  first = np.maximum((2 * to + 1) * source - target, 0) // (2 * target)
  second = np.minimum(first + 1, source - 1)
  place = np.float32(source / target) * (to + np.float32(0.5)) - 0.5
  return first, second, np.clip(place - first, 0, 1).astype(np.float32)
