"""Reads images of more than 8 bits a channel, and maps them to 8 bits.

Pillow has no colours of 16 bits: it keeps the upper byte of each value and
drops the lower one without a word. Here both bytes are read, in two passes.

Axis letters here: c channels of the file.
"""

from collections.abc import Callable
import os
import re
import sys
from typing import Any

from jaxtyping import Shaped
import numpy as np
from PIL import Image, ImageFile

from maskrcnn_jax import errors

# Pillow's names of the stored formats with 16 bits a channel, such as
# 'RGB;16B'. 'BGR;16' of a BMP is another format: 16 bits for all channels.
_WIDE = re.compile(r'(LA|RGB|RGBX|RGBA|CMYK);16([BLN])')

# Tags of a TIFF: bits of each channel, and whether each channel is stored by
# itself (2) or all channels of a pixel together (1).
_BITS = 258
_PLANAR = 284

# Bytes. The codestream of a JPEG 2000 file begins before.
_JPEG2000_HEAD = 1 << 20

# Opens the same image again, not decoded yet.
Reopen = Callable[[], ImageFile.ImageFile]

Values = Shaped[np.ndarray, 'h w'] | Shaped[np.ndarray, 'h w c']


def is_wide(image: Image.Image) -> bool:
  """Tells whether an image has more than 8 bits a channel.

  Args:
    image: The image. If it is in colour and was decoded already, its lower bits
      are lost, and the answer is False.
  """
  if image.mode.startswith('I'):
    return True
  if image.mode == 'F' or not getattr(image, 'tile', None):
    return False
  if image.format == 'TIFF':
    # `image.tag_v2` has the tags of the first picture.
    return max(_tiff_tag(image, _BITS, (8,)), default=8) > 8
  if image.format == 'JPEG2000':
    return _jpeg2000_bits(image) > 8
  if image.format == 'PPM':
    return _ppm_white(image) > 255
  return _stored_format(image) is not None


def to_8_bits(
  image: Image.Image,
  path: str | os.PathLike[str],
  reopen: Reopen,
  pixel_range: tuple[float, float] | None,
) -> Image.Image:
  """Maps the values of an image of more than 8 bits a channel to 0..255.

  Args:
    image: An image for which `is_wide` is True.
    path: The file, for messages.
    reopen: Opens the same image again.
    pixel_range: The values (black, white) that become 0 and 255. Values in
      between are mapped linearly, others are clipped.

  Returns:
    An image of the mode L, RGB or CMYK. An alpha channel, and any other channel
    behind the colours, is dropped.

  Raises:
    InputError: If `pixel_range` is `None`; the message suggests a range. Or if
      Pillow cannot read all bits of the file.
  """
  values = read_values(image, path, reopen)
  if pixel_range is None:
    # Alpha would widen the range to that of the format.
    colours = values[..., :3] if values.ndim == 3 else values
    least, most = int(colours.min()), int(colours.max())
    example = f'({least},{most})' if least < most else '(0,65535)'
    bits = '16 or 32 bits' if image.mode.startswith('I') else 'more than 8 bits'
    raise errors.InputError(
      f'I09: {path} has pixels of {bits}, here from {least} to {most};'
      ' give the values that are black and white in all images, for example'
      f" --config.data.pixel_range='{example}', or convert the images to"
      ' 8 bits a channel.'
    )
  low, high = pixel_range
  share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
  mapped = np.rint(255 * share).astype(np.uint8)
  if mapped.ndim == 2:
    return Image.fromarray(mapped)
  if image.mode == 'CMYK':
    return Image.fromarray(mapped, 'CMYK')
  return Image.fromarray(np.ascontiguousarray(mapped[..., :3]))


def read_values(
  image: Image.Image, path: str | os.PathLike[str], reopen: Reopen
) -> Values:
  """Reads all bits of an image of more than 8 bits a channel.

  Args:
    image: An image for which `is_wide` is True.
    path: The file, for messages.
    reopen: Opens the same image again.

  Returns:
    The values. They have no axis c if the image is gray. For gray with alpha, c
    is (gray, gray, gray, alpha).

  Raises:
    InputError: If Pillow cannot read all bits of the file.
  """
  # Pillow removes the tiles when it decodes the image.
  tiles = getattr(image, 'tile', None)
  if image.mode.startswith('I'):
    # Pillow stretches the values of two formats to 0..65535.
    if image.format == 'JPEG2000' and tiles:
      bits = _jpeg2000_bits(image)
      return np.asarray(image) >> (16 - bits)
    if image.format == 'PPM' and tiles:
      most = _ppm_white(image) or 65_535
      return np.rint(np.asarray(image) * (most / 65_535)).astype(np.int32)
    return np.asarray(image)
  if image.format == 'PPM' and tiles and tiles[0].codec_name == 'ppm':
    with reopen() as again:
      assert again.fp is not None  # It is open.
      again.fp.seek(again.tile[0].offset)
      data = again.fp.read(2 * 3 * image.width * image.height)
    # The decoder of Pillow complains of a file that is too short.
    shape = np.asarray(image).shape
    return np.frombuffer(data, '>u2').reshape(shape)
  stored = _stored_format(image)
  is_planar = image.format == 'TIFF' and _tiff_tag(image, _PLANAR, 1) == 2
  if stored is None or is_planar:
    raise errors.InputError(
      f'I09: {path} has colours of more than 8 bits, stored in a form of which'
      ' only the upper 8 bits can be read; convert the image to 8 bits a'
      ' channel.'
    )
  kind, order = stored
  big = order == 'B' or (order == 'N' and sys.byteorder == 'big')
  # Read in the other byte order, the lower byte comes in place of the upper.
  other = f'{kind};16{"L" if big else "B"}'
  # Pillow cannot read gray and alpha in the other order. It can read their four
  # bytes as four channels of 8 bits.
  lower = _with_format(reopen, 'RGBA' if kind == 'LA' else other)
  upper = np.asarray(image)
  if kind == 'LA':
    lower = lower[..., [1, 1, 1, 3] if big else [0, 0, 0, 2]]
  return upper.astype(np.uint16) << 8 | lower


def _with_format(reopen: Reopen, name: str) -> np.ndarray:
  """Decodes an image as if it was stored in another format.

  Args:
    reopen: Opens the image.
    name: Pillow's name of the format. It must have the same number of bits as
      the true one.
  """
  with reopen() as image:
    tiles = []
    for tile in image.tile:
      args = tile.args
      args = (name, *args[1:]) if isinstance(args, tuple) else name
      tiles.append(tile._replace(args=args))
    image.tile = tiles
    return np.asarray(image)


def _stored_format(image: Image.Image) -> tuple[str, str] | None:
  """Returns the channels and the byte order of colours of 16 bits.

  Args:
    image: An image that is not decoded yet.

  Returns:
    For example ('RGB', 'B'). 'N' means the byte order of this machine. `None`
    if the image is not stored as 16 bits a channel in a form that can be read.
  """
  found = set()
  # ImageFile defines `tile`; the class Image lacks it.
  for tile in image.tile:  # type: ignore[attr-defined]
    args = tile.args
    name = args if isinstance(args, str) else args and args[0]
    match = _WIDE.fullmatch(name) if isinstance(name, str) else None
    found.add(match and (match[1], match[2]))
  return found.pop() if len(found) == 1 else None


def _ppm_white(image: Image.Image) -> int:
  """Returns the value of white of a PGM or PPM; 0 if it needs no stretching."""
  args = image.tile[0].args  # type: ignore[attr-defined]
  return args[1] if isinstance(args, tuple) and len(args) == 2 else 0


def _jpeg2000_bits(image: Image.Image) -> int:
  """Returns the number of bits of the first channel of a JPEG 2000 image.

  Source:
    ISO/IEC 15444-1, annex A.5.1: the marker segment SIZ.
  """
  file = image.fp  # type: ignore[attr-defined]
  place = file.tell()
  file.seek(0)
  head = file.read(_JPEG2000_HEAD)
  file.seek(place)
  start = head.find(b'\xff\x4f\xff\x51')
  # The markers take 4 bytes, the fields before the depth of the channel 38.
  depth = head[start + 42 : start + 43]
  return (depth[0] & 0x7F) + 1 if start >= 0 and depth else 8


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
  """Returns a tag of a TIFF, or a default if the file does not have it."""
  return image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
