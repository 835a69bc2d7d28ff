"""Decodes a mask picture and finds signs that it is no mask.

Axis letters here: h w rows and columns of the picture.
"""

import pathlib
from typing import NamedTuple

from jaxtyping import Bool, Int
import numpy as np
from PIL import Image

from maskrcnn_jax.data.images import ImageFrame
from maskrcnn_jax.data.orientation import DECODE_ERRORS
from maskrcnn_jax.errors import InputError

# Formats that keep every pixel as it was. JPEG changes the values of a mask.
SUFFIXES = ('.png', '.tif', '.tiff', '.bmp')
_FORMATS = ('PNG', 'TIFF', 'BMP')

# The index of the void border in the palette pictures of Pascal VOC, and its
# color in copies of them without a palette.
_VOID = 255
_VOID_COLOR = (224, 224, 192)

# Values of smoothed edges: at least this share of the pixels of a value lie
# between a smaller and a larger value.
_BETWEEN = 0.6
# An object fills at least this share of its box, except a thin or bent one. A
# ring around a blob fills less.
_SOLID = 0.5
# This many values of smoothed edges, and as many as all other values, say that
# the picture is smoothed.
_MIN_SMOOTHED = 3


class MaskPicture(NamedTuple):
  """The pixels of a mask picture."""

  # Pixels of the same value or color have the same number; 0 is background.
  numbers: Int[np.ndarray, 'h w']
  void: Bool[np.ndarray, 'h w']  # pixels that belong neither to an object nor
  # to the background; they are 0 in `numbers`
  # The red, green and blue of each number, if the picture has colors.
  colors: dict[int, tuple[int, int, int]]
  has_palette: bool  # whether the numbers are indices of a palette
  is_gray: bool  # whether the numbers are gray values


def find_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
  """Lists the mask pictures in a folder and its sub-folders, sorted."""
  return sorted(
    path
    for path in folder.rglob('*')
    if path.suffix.lower() in SUFFIXES and path.is_file()
  )


def read_picture(path: pathlib.Path, frame: ImageFrame) -> MaskPicture:
  """Reads a mask picture.

  In a palette picture, the indices mark the objects; the colors do not, because
  several indices may have the same color. Index 255 is void, unless it is the
  only one besides the background. The color of void in Pascal VOC is void, too.

  Args:
    path: The file.
    frame: The frame of the image. The mask has the size of the stored or of the
      upright image.

  Raises:
    InputError: If the picture cannot be read, has another size, or has
      floating-point pixels.
  """
  try:
    with Image.open(path, formats=_FORMATS) as image:
      mode = image.mode
      size = image.height, image.width
      if size not in (frame.shown_size, frame.stored_size):
        # This is checked before the pixels take any memory.
        height, width = frame.shown_size
        raise InputError(
          f'A09: {path} has {size[0]}x{size[1]} pixels (height x width), but'
          f' its image has {height}x{width}.'
        )
      values = np.array(image)
      palette = image.getpalette('RGB') if mode == 'P' else None
  except InputError:  # It is a ValueError too, but it names the fault.
    raise
  except DECODE_ERRORS as error:
    raise InputError(
      f'I02: {path} is no mask, because it cannot be read: {error}.'
    ) from error
  if values.dtype.kind not in 'bui' or values.ndim not in (2, 3):
    raise InputError(
      f'I10: {path} is no mask: it has the pixel format {mode}; save it with'
      ' one whole number for each pixel.'
    )
  values = values.astype(np.int64)
  colors: dict[int, tuple[int, int, int]] = {}
  if values.ndim == 3:
    if values.shape[2] in (2, 4) and mode != 'CMYK':  # The last is alpha.
      values = values[..., :-1] * (values[..., -1:] > 0)
    channels = values.shape[2]
    numbers = values @ 256 ** np.arange(channels)
    if channels == 3:
      colors = {
        n: (n % 256, n // 256 % 256, n // 65536)
        for n in np.unique(numbers).tolist()
      }
    void = np.zeros(numbers.shape, bool)
    if channels == 3:
      void = (values == _VOID_COLOR).all(axis=2)
  else:
    numbers = values
    void = np.zeros(numbers.shape, bool)
    if palette is not None:
      if ((numbers > 0) & (numbers != _VOID)).any():
        void = numbers == _VOID
      colors = {
        n: (palette[3 * n], palette[3 * n + 1], palette[3 * n + 2])
        for n in np.unique(numbers).tolist()
        if 3 * n + 2 < len(palette)
      }
  numbers = np.where(void, 0, numbers)
  return MaskPicture(
    numbers, void, colors, palette is not None, values.ndim == 2 and not palette
  )


def count_smoothed(picture: MaskPicture) -> tuple[int, int]:
  """Counts the values of a mask picture that look like smoothed edges.

  A resized, smoothed or JPEG-compressed mask has many values between those of
  the objects. Nearly each of their pixels lies between a smaller and a larger
  value, and together they form thin rings.

  Returns:
    The number of such values, and the number of all values except background.
  """
  level = picture.numbers
  if picture.colors:
    # The brightness of each number; other numbers of a picture cannot occur.
    numbers, index = np.unique(level, return_inverse=True)
    sums = [sum(picture.colors.get(n, (0, 0, 0))) for n in numbers.tolist()]
    level = np.array(sums)[index].reshape(level.shape)
    level = np.where(picture.numbers == 0, 0, level)
  # Smallest and largest level among the 3x3 pixels around each pixel.
  padded = np.pad(level, 1, mode='edge')
  height, width = level.shape
  least, most = level.copy(), level.copy()
  for y in range(3):
    for x in range(3):
      shifted = padded[y : y + height, x : x + width]
      np.minimum(least, shifted, out=least)
      np.maximum(most, shifted, out=most)
  between = (least < level) & (most > level)
  rows, columns = np.nonzero(picture.numbers)
  values, owner, counts = np.unique(
    picture.numbers[rows, columns], return_inverse=True, return_counts=True
  )
  if not len(values):
    return 0, 0
  shares = np.bincount(owner, between[rows, columns]) / counts
  low = np.full((2, len(values)), np.iinfo(np.int64).max)
  high = np.full((2, len(values)), -1)
  for axis, places in enumerate((rows, columns)):
    np.minimum.at(low[axis], owner, places)
    np.maximum.at(high[axis], owner, places)
  boxes = np.prod(high - low + 1, axis=0)
  smoothed = (shares >= _BETWEEN) & ((counts <= 2) | (counts < _SOLID * boxes))
  return int(smoothed.sum()), len(values)


def is_smoothed(num_smoothed: int, num_values: int) -> bool:
  """Tells whether a mask picture is smoothed, by the counts of its values."""
  return num_smoothed >= _MIN_SMOOTHED and 2 * num_smoothed >= num_values
