"""Opens image files and decodes them to uint8 RGB arrays."""

import importlib.util
import io
import os
import pathlib
from typing import Any, NamedTuple
import warnings

from jaxtyping import UInt8
import numpy as np
from PIL import Image, ImageFile

from maskrcnn_jax import errors
from maskrcnn_jax.data import wide_pixels
from maskrcnn_jax.data.image_files import case_hint
from maskrcnn_jax.data.orientation import (
  DECODE_ERRORS,
  Orientation,
  orientation_of,
  shown,
  stored_size,
  transposition,
)

Path = str | pathlib.Path

# The formats that Pillow may try. It knows more, but each further parser is one
# that a hostile file can attack, and EPS runs Ghostscript. The formats of
# Pillow's `preinit` come first, because for any other Pillow imports all of its
# parsers.
FORMATS: tuple[str, ...] = (
  'JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP', 'JPEG2000'
)  # fmt: skip
# Pillow has it since 11.3, and fails if it is asked for a format it lacks.
if importlib.util.find_spec('PIL._avif'):
  FORMATS += ('AVIF',)

# If an image has more than 2 * MAX_IMAGE_PIXELS pixels, Pillow raises an error,
# which becomes an InputError here. Above MAX_IMAGE_PIXELS it only warns, which
# is not needed, because images of this size can be decoded.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

# An image of more than `_BOMB_PIXELS` pixels, with more than
# `_BOMB_PIXELS_A_BYTE` pixels for each byte of its file, has one colour nearly
# everywhere. Pillow would need 0.5 to 1 GB to decode a file of less than a
# megabyte, so such a file is taken for an attack. Photographs have fewer pixels
# a byte: a JPEG with the usual tables has at least 32 bits for 256 pixels, and
# with the shortest codes possible 12 bits.
_BOMB_PIXELS = 2**27
_BOMB_PIXELS_A_BYTE = 200

# Number of rows of an image that are copied at once.
_STRIP = 256

# Pillow's names of the pixel formats that can be converted to RGB.
_TO_RGB = frozenset(
  ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
)

# The kinds of HEIC files, which the photographs of many phones are.
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'mif1', b'msf1')

OR_LEAVE_OUT = (
  'python -m maskrcnn_jax.check_data lists such images of a data set, and says'
  ' what --fix=OUT.json would keep without them.'
)

# The transpositions that do not undo themselves, and those that undo them.
_INVERSE = {
  Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
  Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
}


def read_orientation(
  path: Path,
  labelled_size: tuple[int, int] | None = None,
  *,
  apply_exif: bool = True,
) -> Orientation:
  """Returns `orientation_of` an image file, without decoding the pixels.

  Args:
    path: The file.
    labelled_size: (height, width) in the annotations. `None` means that the
      picture is the one that a viewer shows.
    apply_exif: Whether the orientation is applied if the size does not tell.

  Raises:
    InputError: If the file is missing or not a supported image, or if it has
      another size, however it is turned.
  """
  try:
    refuse_special(path)
    with Image.open(path, formats=FORMATS) as image:
      return orientation_of(image, path, labelled_size, apply_exif=apply_exif)
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(path, error) from error


def decode_image(
  path: Path,
  *,
  expected_size: tuple[int, int] | None = None,
  content: bytes | None = None,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> UInt8[np.ndarray, 'h w 3']:
  """Decodes an image file to RGB.

  `orientation_of` says whether the EXIF orientation is applied.

  Args:
    path: The file. Gray, palette and CMYK images become RGB; an alpha channel
      is dropped.
    expected_size: (height, width) in the annotations, which the image must have
      with or without its EXIF orientation. `None` applies the orientation and
      accepts any size.
    content: The bytes of the file, if it is not on disk. `path` is then only
      its name in messages.
    pixel_range: For images of more than 8 bits a channel, the values (black,
      white) that become 0 and 255. Values in between are mapped linearly,
      others are clipped. `None` refuses such images. Images of 8 bits are not
      changed.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      expected size with it and without it.

  Returns:
    The pixels, in an array that may be written to.

  Raises:
    InputError: If the file is missing, damaged or not a supported image, or if
      its size is not the expected one.
  """
  return _to_array(
    decode_to_rgb(
      path,
      expected_size=expected_size,
      content=content,
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    )
  )


def decode_to_rgb(
  path: Path,
  *,
  expected_size: tuple[int, int] | None = None,
  content: bytes | None = None,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> Image.Image:
  """Decodes an image file to an RGB image of Pillow.

  The arguments and errors are those of `decode_image`, which copies the pixels
  of this image to an array.
  """

  def reopen() -> ImageFile.ImageFile:
    """Opens the image."""
    if content is None:
      refuse_special(path)
    source = path if content is None else io.BytesIO(content)
    return Image.open(source, formats=FORMATS)

  try:
    with reopen() as image:
      orientation = orientation_of(
        image, path, expected_size, apply_exif=apply_exif
      )
      _refuse_bomb(image, path, content)
      return _to_rgb(image, path, orientation.transpose, pixel_range, reopen)
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(path, error, content) from error


def convert_image(
  image: Image.Image,
  name: str,
  *,
  pixel_range: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, 'h w 3']:
  """Converts an opened PIL image to RGB, as `decode_image` does with its file.

  The EXIF orientation is applied.

  Args:
    image: The image. It is not changed, but loaded if it was not. If it is in
      colour and was loaded before, PIL has reduced it to 8 bits already.
    name: The name of the image in messages.
    pixel_range: As for `decode_image`.

  Returns:
    The pixels, in an array of its own.

  Raises:
    InputError: If the image is damaged, closed, or of a kind that is not
      supported.
  """
  file: Any = getattr(image, 'fp', None)

  def reopen() -> ImageFile.ImageFile:
    """Opens the image again, from the file that it is read from."""
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return Image.open(io.BytesIO(content), formats=FORMATS)

  try:
    turn = orientation_of(image, name).transpose
    return _to_array(_to_rgb(image, name, turn, pixel_range, reopen))
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(name, error) from error


def refuse_special(path: Path) -> None:
  """Refuses a pipe or a device, which could be waited for without end.

  Raises:
    InputError: If there is such a thing at the path.
  """
  if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
    raise errors.InputError(f'I01: {path} is not a file.')


def _refuse_bomb(image: Image.Image, path: Path, content: bytes | None) -> None:
  """Refuses a small file that would become very many pixels.

  Args:
    image: The image, not decoded yet.
    path: The file.
    content: The bytes of the file, if it is not on disk.

  Raises:
    InputError: If the image is of this kind.
  """
  pixels = image.width * image.height
  if pixels <= _BOMB_PIXELS:
    return
  size = os.path.getsize(path) if content is None else len(content)
  if pixels > _BOMB_PIXELS_A_BYTE * size:
    raise errors.InputError(
      f'I12: {path} has {shown((image.height, image.width))} pixels in only'
      f' {size:,} bytes, so it is either damaged or of one colour nearly'
      ' everywhere, and is not decoded. Cut it into tiles or shrink it,'
      f' together with its annotations. {OR_LEAVE_OUT}'
    )


def _to_rgb(
  image: Image.Image,
  path: Path,
  wanted: Image.Transpose | None,
  pixel_range: tuple[float, float] | None,
  reopen: wide_pixels.Reopen,
) -> Image.Image:
  """Decodes an opened image; does the work of `decode_to_rgb`.

  Args:
    image: The image.
    path: The file, for messages.
    wanted: The transposition to apply to the stored pixels, or `None`.
    pixel_range: The values (black, white) of images of more than 8 bits.
    reopen: Opens the same image again.

  Raises:
    InputError: If the image has an unsupported pixel format. Pillow raises
      other errors if it is damaged.
  """
  if image.mode == 'F':
    raise errors.InputError(
      f'I10: {path} has floating-point pixels, whose range is unknown;'
      ' convert it to 8 bits a channel.'
    )
  # Pillow turns a TIFF by itself when it loads it, and removes the orientation.
  turns_itself = image.format == 'TIFF'
  applied = transposition(image) if turns_itself else None
  pixels: Image.Image = image
  if wide_pixels.is_wide(image):
    pixels = wide_pixels.to_8_bits(image, path, reopen, pixel_range)
  image.load()
  if turns_itself and applied == transposition(image):
    applied = None
  if pixels.mode not in _TO_RGB:
    raise errors.InputError(
      f'I11: {path} has the pixel format {pixels.mode}; convert it to RGB,'
      f' for example with ImageMagick: magick FILE -colorspace sRGB'
      f' NEW.png. {OR_LEAVE_OUT}'
    )
  # The direct conversion of a transparent palette to RGB makes Pillow warn.
  if pixels.mode == 'P' and 'transparency' in pixels.info:
    rgb = pixels.convert('RGBA').convert('RGB')
  else:
    rgb = pixels if pixels.mode == 'RGB' else pixels.convert('RGB')
  if applied != wanted:
    if applied is not None:
      rgb = rgb.transpose(_INVERSE.get(applied, applied))
    if wanted is not None:
      rgb = rgb.transpose(wanted)
  return rgb


def _to_array(image: Image.Image) -> UInt8[np.ndarray, 'h w 3']:
  """Copies the pixels of an RGB image to an array, in strips to save memory."""
  pixels = np.empty((image.height, image.width, 3), np.uint8)
  for top in range(0, image.height, _STRIP):
    bottom = min(top + _STRIP, image.height)
    strip = image.crop((0, top, image.width, bottom))
    pixels[top:bottom] = np.asarray(strip)
  return pixels


def image_size(path: Path) -> tuple[int, int]:
  """Reads the size of an image from its header, without decoding the pixels.

  Returns:
    (height, width) in pixels, after the EXIF orientation.

  Raises:
    InputError: If the file is missing or not a supported image.
  """
  return read_orientation(path).size


class ImageFrame(NamedTuple):
  """The size of an image before and after its EXIF orientation is applied."""

  stored_size: tuple[int, int]  # (height, width) of the pixels in the file
  shown_size: tuple[int, int]  # (height, width) of the picture in a viewer
  turn: Image.Transpose | None  # makes them upright; `None` if they are


def image_frame(path: Path) -> ImageFrame:
  """Reads the frame of an image from its header, without decoding the pixels.

  Raises:
    InputError: If the file is missing or not a supported image.
  """
  try:
    with Image.open(path, formats=FORMATS) as image:
      shown = orientation_of(image, path)
      return ImageFrame(stored_size(image), shown.size, shown.transpose)
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(path, error) from error


def _describe_unknown_file(path: Path, content: bytes | None = None) -> str:
  """Returns a message about a file that Pillow does not know, code first.

  The first bytes of the file tell likely causes: an empty file, a web page, a
  git-lfs pointer or an unusual TIFF.

  Args:
    path: The file.
    content: The bytes of the file, if it is not on disk.
  """
  if content is None:
    with open(path, 'rb') as file:
      content = file.read(512)
  head = content[:512].lstrip().lower()
  if head.startswith((b'ii*\0', b'mm\0*')):
    return (
      f'I11: {path} is a TIFF of an unusual kind, for example with more than 4'
      ' channels; write three channels as RGB or one as gray, with 8 bits a'
      f' channel. {OR_LEAVE_OUT}'
    )
  # Files in the container format of MP4 name their kind here.
  brand = content[8:12] if content[4:8] == b'ftyp' else b''
  if brand in _HEIC_BRANDS:
    return (
      f'I03: {path} is a HEIC picture, a format that is not decoded; convert it'
      f' to JPEG, for example with ImageMagick: magick {path}'
      f' {pathlib.Path(path).with_suffix(".jpg")}'
    )
  if brand in (b'avif', b'avis'):
    return (
      f'I03: {path} is an AVIF picture, which Pillow 11.3 or newer decodes.'
    )
  description = 'no image of a known format'
  if not head:
    description = 'empty'
  elif head.startswith((b'<!doctype html', b'<html', b'<head')):
    description += ' but a web page; download the image again'
  elif head.startswith(b'version https://git-lfs'):
    description += ' but a git-lfs pointer; run git lfs pull'
  return f'I03: {path} is {description}.'


def _unreadable(
  path: Path, error: Exception, content: bytes | None = None
) -> errors.InputError:
  """Turns an error of Pillow into an InputError that names the fault.

  Args:
    path: The file.
    error: The error that opening or decoding the file raised.
    content: The bytes of the file, if it is not on disk.
  """
  reason = ' '.join(str(error).split())
  match error:
    case FileNotFoundError():
      return errors.InputError(
        f'I01: there is no image {path}{case_hint(path)}.'
      )
    case Image.DecompressionBombError():
      # Pillow raises it only if there is a limit.
      assert Image.MAX_IMAGE_PIXELS is not None
      return errors.InputError(
        f'I12: {path} is too large: {reason.split(",")[0]}; at most'
        f' {2 * Image.MAX_IMAGE_PIXELS} pixels are decoded. Cut it into tiles'
        f' or shrink it, together with its annotations. {OR_LEAVE_OUT}'
      )
    case Image.UnidentifiedImageError():
      return errors.InputError(_describe_unknown_file(path, content))
    case PermissionError() | IsADirectoryError():
      return errors.InputError(f'I01: cannot read {path}: {error.strerror}.')
    case _:
      return errors.InputError(f'I02: {path} is damaged: {reason}.')
