"""Finds image files, checks them, and decodes them to uint8 RGB arrays."""

import hashlib
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
_FORMATS: tuple[str, ...] = (
  'JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP', 'JPEG2000'
)  # fmt: skip
# Pillow has it since 11.3, and fails if it is asked for a format it lacks.
if importlib.util.find_spec('PIL._avif'):
  _FORMATS += ('AVIF',)

# If an image has more than 2 * MAX_IMAGE_PIXELS pixels, Pillow raises an error,
# which becomes an InputError here. Above MAX_IMAGE_PIXELS it only warns, which
# is not needed, because images of this size can be decoded.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

# Number of rows of an image that are copied at once.
_STRIP = 256

# Pixels. An image with a shorter side has few cells in the feature maps.
_TINY_SIDE = 32
# An image whose longer side is more than this many times its shorter side
# leaves most of its canvas to padding.
_MAX_ASPECT = 20

# Pillow's names of the pixel formats that can be converted to RGB.
_TO_RGB = frozenset(
  ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
)

# The kinds of HEIC files, which the photographs of many phones are.
_HEIC_BRANDS = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'mif1', b'msf1')

_OR_LEAVE_OUT = (
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
    _refuse_special(path)
    with Image.open(path, formats=_FORMATS) as image:
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

  def reopen() -> ImageFile.ImageFile:
    """Opens the image."""
    if content is None:
      _refuse_special(path)
    source = path if content is None else io.BytesIO(content)
    return Image.open(source, formats=_FORMATS)

  try:
    with reopen() as image:
      orientation = orientation_of(
        image, path, expected_size, apply_exif=apply_exif
      )
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
    return Image.open(io.BytesIO(content), formats=_FORMATS)

  try:
    turn = orientation_of(image, name).transpose
    return _to_rgb(image, name, turn, pixel_range, reopen)
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(name, error) from error


def _refuse_special(path: Path) -> None:
  """Refuses a pipe or a device, which could be waited for without end.

  Raises:
    InputError: If there is such a thing at the path.
  """
  if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
    raise errors.InputError(f'I01: {path} is not a file.')


def _to_rgb(
  image: Image.Image,
  path: Path,
  wanted: Image.Transpose | None,
  pixel_range: tuple[float, float] | None,
  reopen: wide_pixels.Reopen,
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns the pixels of an opened image; does the work of `decode_image`.

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
      f' NEW.png. {_OR_LEAVE_OUT}'
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
  return _to_array(rgb)


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
    with Image.open(path, formats=_FORMATS) as image:
      shown = orientation_of(image, path)
      return ImageFrame(stored_size(image), shown.size, shown.transpose)
  except errors.InputError:
    raise
  except DECODE_ERRORS as error:
    raise _unreadable(path, error) from error


class ImageFacts(NamedTuple):
  """The result of inspecting an image file, for `check_data`."""

  problem: str  # why the file cannot be used, code first; '' if it can
  notes: tuple[str, ...]  # warnings about the file, code first
  digest: bytes  # BLAKE2 digest of the file's bytes; b'' if it cannot be used


def look_at_image(
  path: Path,
  expected_size: tuple[int, int] | None = None,
  pixel_range: tuple[float, float] | None = None,
  content: bytes | None = None,
  apply_exif: bool = True,
) -> ImageFacts:
  """Decodes an image file to find out whether it can be used.

  Args:
    path: The file.
    expected_size: (height, width) in the annotations; `None` if unknown.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      is a fault.
    content: The bytes of the file, if it is not on disk.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      expected size with it and without it.

  Returns:
    The facts about the file. A fault is described there, not raised.
  """
  with warnings.catch_warnings():
    # Damage that Pillow only warns of does no harm; otherwise it also raises.
    warnings.simplefilter('ignore')
    try:
      height, width, _ = decode_image(
        path,
        expected_size=expected_size,
        pixel_range=pixel_range,
        content=content,
        apply_exif=apply_exif,
      ).shape
      notes = _notes(path, content, height, width, expected_size, apply_exif)
      with _opened(path, content) as file:
        digest = hashlib.file_digest(file, 'blake2b').digest()
      return ImageFacts('', notes, digest)
    except errors.InputError as error:
      return ImageFacts(str(error), (), b'')
    except MemoryError:
      return ImageFacts(
        f'I12: {path} is too large for the available memory. Give'
        ' --workers=1, or cut the image into tiles or shrink it, together with'
        f' its annotations. {_OR_LEAVE_OUT}',
        (),
        b'',
      )


def header_notes(
  path: Path,
  expected_size: tuple[int, int] | None,
  *,
  apply_exif: bool = True,
  content: bytes | None = None,
) -> tuple[str, ...]:
  """Returns the warnings that the header of an image file shows, code first.

  The pixels are not decoded, and the training, which does not decode all images
  first, can afford to call this.

  Args:
    path: The file.
    expected_size: (height, width) in the annotations; `None` if unknown.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      expected size with it and without it.
    content: The bytes of the file, if it is not on disk.

  Returns:
    The warnings. There are none if the file cannot be used; decoding it says
    why.
  """
  try:
    with (
      _opened(path, content) as file,
      Image.open(file, formats=_FORMATS) as image,
    ):
      return tuple(_notes_of_header(image, path, expected_size, apply_exif))
  except (errors.InputError, *DECODE_ERRORS):
    return ()


def _notes_of_header(
  image: Image.Image,
  path: Path,
  expected_size: tuple[int, int] | None,
  apply_exif: bool,
) -> list[str]:
  """Returns the warnings of `header_notes` about an opened image.

  Args:
    image: The image, not decoded yet.
    path: The file, for messages.
    expected_size: (height, width) in the annotations; `None` if unknown.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      expected size with it and without it.

  Raises:
    InputError: If the image has another size, however it is turned.
  """
  notes = []
  orientation = orientation_of(
    image, path, expected_size, apply_exif=apply_exif
  )
  if orientation.is_in_doubt:
    fate = 'applied' if orientation.transpose else 'not applied'
    notes.append(
      f'I04: {path} has an EXIF orientation that keeps its size, so the size'
      ' in the annotations does not tell whether its labels were drawn on the'
      ' turned picture or on the pixels as stored. The orientation is'
      f' {fate}; config.data.apply_exif decides.'
    )
  bands = _unused_bands(image)
  if bands:
    notes.append(
      f'I11: {path} has {bands} more channels than are used: only its colours'
      ' are read.'
    )
  return notes


def _unused_bands(image: Image.Image) -> int:
  """Returns how many channels of a TIFF, besides alpha, Pillow leaves out."""
  if image.format != 'TIFF':
    return 0
  # An X in the name of the stored format, such as RGBXX, is such a channel.
  args = image.tile[0].args  # type: ignore[attr-defined]
  name = args if isinstance(args, str) else args[0]
  return name.count('X')


def _opened(
  path: Path, content: bytes | None
) -> io.BufferedReader | io.BytesIO:
  """Opens an image file for reading, or its content if that is given.

  Raises:
    InputError: If the path is a pipe or a device.
  """
  if content is not None:
    return io.BytesIO(content)
  _refuse_special(path)
  return open(path, 'rb')


def _notes(
  path: Path,
  content: bytes | None,
  height: int,
  width: int,
  expected_size: tuple[int, int] | None,
  apply_exif: bool,
) -> tuple[str, ...]:
  """Returns the warnings about an image that can be decoded, code first.

  Args:
    path: The file.
    content: The bytes of the file, if it is not on disk.
    height: Height of the decoded image in pixels.
    width: Width of the decoded image in pixels.
    expected_size: (height, width) in the annotations; `None` if unknown.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      expected size with it and without it.
  """
  with (
    _opened(path, content) as file,
    Image.open(file, formats=_FORMATS) as image,
  ):
    notes = _notes_of_header(image, path, expected_size, apply_exif)
    has_alpha = 'A' in image.mode or 'transparency' in image.info
    if has_alpha:
      alpha = np.asarray(image.convert('RGBA').getchannel('A'))
      if alpha.min() < 255:
        notes.append(
          f'I07: {path} is transparent in places; the colours behind are used.'
        )
    notes += _frame_notes(path, image)
  if min(height, width) < _TINY_SIDE:
    notes.append(f'I13: {path} is only {shown((height, width))} pixels.')
  elif max(height, width) > _MAX_ASPECT * min(height, width):
    notes.append(
      f'I13: {path} is {shown((height, width))} pixels, so most of its canvas'
      ' will be padding.'
    )
  return tuple(notes)


def frame_notes(path: Path) -> list[str]:
  """Returns a warning if an image file holds several pictures, code first.

  The pixels are not decoded. A file that cannot be opened has no warning.
  """
  try:
    _refuse_special(path)
    with Image.open(path, formats=_FORMATS) as image:
      return _frame_notes(path, image)
  except (errors.InputError, *DECODE_ERRORS):
    return []


def _frame_notes(path: Path, image: Image.Image) -> list[str]:
  """Does the work of `frame_notes` for an opened image."""
  # An MPO file of a phone holds the same picture twice, the second smaller.
  # The pictures are not counted: a TIFF may have a hundred thousand pages, and
  # each would be looked for.
  if not getattr(image, 'is_animated', False) or image.format == 'MPO':
    return []
  return [f'I14: {path} holds more than one picture; the first is used.']


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
      f' channel. {_OR_LEAVE_OUT}'
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
        f' or shrink it, together with its annotations. {_OR_LEAVE_OUT}'
      )
    case Image.UnidentifiedImageError():
      return errors.InputError(_describe_unknown_file(path, content))
    case PermissionError() | IsADirectoryError():
      return errors.InputError(f'I01: cannot read {path}: {error.strerror}.')
    case _:
      return errors.InputError(f'I02: {path} is damaged: {reason}.')
