"""Image files as uint8 RGB arrays."""

import glob
import hashlib
import io
import os
import pathlib
import struct
from typing import NamedTuple
import warnings
import zlib

from jaxtyping import UInt8
import numpy as np
from PIL import ExifTags, Image

from maskrcnn_jax import errors

Path = str | pathlib.Path

EXTENSIONS = frozenset(
  ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
)

# Of all that Pillow knows: its EPS runs Ghostscript, and each parser more is
# one that a hostile file can try.  Those that Pillow knows from the start come
# first: for the others it loads all its parsers.
_FORMATS = ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TIFF', 'WEBP', 'JPEG2000')

# Pillow refuses more than twice MAX_IMAGE_PIXELS, with an error that we pass
# on; its warning from the single number on would only be noise.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)

# A side this short leaves few cells, and one this many times as long as the
# other is mostly padding.
_TINY_SIDE = 32
_LONG = 20

# What Pillow's decoders raise on damaged files; its UnidentifiedImageError is
# an OSError.
_DECODE_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  KeyError,
  TypeError,
  AssertionError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)

_TO_RGB = frozenset(
  ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')
)

_OR_LEAVE_OUT = (
  'Of a set, python -m maskrcnn_jax.check_data --fix=OUT.json leaves such'
  ' images out.'
)

_TRANSPOSITIONS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def decode_image(
  path: Path,
  *,
  expected_size: tuple[int, int] | None = None,
  reduce: int = 1,
  content: bytes | None = None,
  pixel_range: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, 'h w 3']:
  """Decodes an image file.

  Annotations were drawn either on the pixels as stored or on what a viewer
  shows after the EXIF orientation, and only their size tells which.

  Args:
    path: Of any format that Pillow reads; gray, palette and CMYK become RGB,
      an alpha channel is dropped.
    expected_size: (height, width) that the annotations have. If the stored
      pixels have it, they are taken as they are; if they have it after the
      EXIF orientation, that is applied. None: the orientation is applied.
    reduce: Averages blocks of so many pixels squared; blocks at the right and
      bottom may be partial, so sides become ceil(side / reduce).
    content: Of the file, if it is not on disk; `path` is then its name only.
    pixel_range: Of gray of 16 or 32 bits, the values that become 0 and 255;
      those between are mapped linearly, those beyond clipped. None: such images
      are refused. Images of 8 bits are not touched.

  Raises:
    InputError: If the file is no such image, or not of that size.
  """
  try:
    source = path if content is None else io.BytesIO(content)
    with Image.open(source, formats=_FORMATS) as image:
      turn = _transposition(image)
      raw_size = image.height, image.width
      upright_size = raw_size if turn is None else _turned(raw_size, turn)
      if expected_size == raw_size:
        turn = None
      elif expected_size not in (None, upright_size):
        raise errors.InputError(
          f'I05: {path} is {_shown(raw_size)} pixels'
          + (
            f' ({_shown(upright_size)} after its EXIF orientation)'
            if upright_size != raw_size
            else ''
          )
          + f', but the annotations say {_shown(expected_size)}.'
        )
      if image.mode == 'F':
        raise errors.InputError(
          f"I10: {path} has floating-point pixels, whose range is anybody's"
          ' guess; convert it to 8 bits a channel.'
        )
      if image.mode.startswith('I'):
        image = _in_8_bits(path, np.asarray(image), pixel_range)
      elif pixel_range not in (None, (0, 65_535)) and _had_16_bits(image):
        raise errors.InputError(
          f'I09: {path} has colours of 16 bits, of which the upper 8 are read'
          f' whatever config.data.pixel_range is ({pixel_range}); convert it'
          ' to 8 bits a channel.'
        )
      if image.mode not in _TO_RGB:
        raise errors.InputError(
          f'I11: {path} has the pixel format {image.mode}; convert it to RGB,'
          f' for example with ImageMagick: magick FILE -colorspace sRGB'
          f' NEW.png. {_OR_LEAVE_OUT}'
        )
      # Pillow warns when it drops the alpha of a palette in one go.
      if image.mode == 'P' and 'transparency' in image.info:
        rgb = image.convert('RGBA').convert('RGB')
      else:
        rgb = image.convert('RGB')
  except errors.InputError:
    raise
  except _DECODE_ERRORS as error:
    raise _unreadable(path, error, content) from error
  if turn is not None:
    rgb = rgb.transpose(turn)
  if reduce > 1:
    rgb = rgb.reduce(reduce)
  return np.array(rgb)


def _in_8_bits(
  path: Path, values: np.ndarray, pixel_range: tuple[float, float] | None
) -> Image.Image:
  """Maps gray of more bits to 0..255."""
  if pixel_range is None:
    least, most = int(values.min()), int(values.max())
    example = f'({least},{most})' if least < most else '(0,65535)'
    raise errors.InputError(
      f'I09: {path} has pixels of 16 or 32 bits, here from {least} to {most};'
      ' say which values are black and white in all images, for example'
      f" --config.data.pixel_range='{example}', or convert it to 8 bits a"
      ' channel.'
    )
  low, high = pixel_range
  share = np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)
  return Image.fromarray(np.rint(255 * share).astype(np.uint8))


def _had_16_bits(image: Image.Image) -> bool:
  """Tells whether Pillow drops the lower 8 bits of what it decodes."""
  return any(';16' in str(tile.args) for tile in getattr(image, 'tile', ()))


def image_size(path: Path) -> tuple[int, int]:
  """Reads (height, width), after the EXIF orientation, from the header only.

  Raises:
    InputError: If the file is no image.
  """
  try:
    with Image.open(path, formats=_FORMATS) as image:
      turn = _transposition(image)
      size = image.height, image.width
      return size if turn is None else _turned(size, turn)
  except _DECODE_ERRORS as error:
    raise _unreadable(path, error) from error


class ImageFacts(NamedTuple):
  """What `check_data` wants to know of an image file."""

  problem: str  # why it cannot be used, code first; '' if it can
  notes: tuple[str, ...]  # unusual things about it, code first
  digest: bytes  # digest of the file's bytes; b'' if it cannot be read


def look_at_image(
  path: Path,
  expected_size: tuple[int, int] | None = None,
  pixel_range: tuple[float, float] | None = None,
  content: bytes | None = None,
) -> ImageFacts:
  """Decodes an image file to find out whether it can be used.

  Args:
    path: The file.
    expected_size: See `decode_image`.
    pixel_range: See `decode_image`.
    content: See `decode_image`.
  """
  with warnings.catch_warnings():
    # Pillow warns of damage; either it raises as well, or it does no harm.
    warnings.simplefilter('ignore')
    try:
      height, width, _ = decode_image(
        path,
        expected_size=expected_size,
        pixel_range=pixel_range,
        content=content,
      ).shape
      notes = _notes(path, content, height, width)
      with _opened(path, content) as file:
        digest = hashlib.file_digest(file, 'blake2b').digest()
      return ImageFacts('', notes, digest)
    except errors.InputError as error:
      return ImageFacts(str(error), (), b'')
    except MemoryError:
      return ImageFacts(
        f'I12: {path} is too large for the memory there is. Give'
        ' --workers=1, or cut it into tiles or shrink it, and its annotations'
        f' alike. {_OR_LEAVE_OUT}',
        (),
        b'',
      )


def _opened(path: Path, content: bytes | None) -> io.BufferedIOBase:
  """Opens an image file, or its content if that is given."""
  return open(path, 'rb') if content is None else io.BytesIO(content)


def _notes(
  path: Path, content: bytes | None, height: int, width: int
) -> tuple[str, ...]:
  """Says what is unusual about an image that can be decoded."""
  notes = []
  with (
    _opened(path, content) as file,
    Image.open(file, formats=_FORMATS) as image,
  ):
    alpha = 'A' in image.mode or 'transparency' in image.info
    if alpha and image.convert('RGBA').getextrema()[3][0] < 255:
      notes.append(
        f'I07: {path} is transparent in places; the colours behind are used.'
      )
    # A telephone's MPO holds its picture once more, smaller.
    count = getattr(image, 'n_frames', 1)
    if count > 1 and image.format != 'MPO':
      notes.append(f'I14: {path} holds {count} pictures; the first is used.')
  if min(height, width) < _TINY_SIDE:
    notes.append(f'I13: {path} is only {_shown((height, width))} pixels.')
  elif max(height, width) > _LONG * min(height, width):
    notes.append(
      f'I13: {path} is {_shown((height, width))} pixels, which is mostly'
      ' padding once it is on a canvas.'
    )
  return tuple(notes)


def _looks_like(path: Path, content: bytes | None = None) -> str:
  """Says what a file is that Pillow does not know, code first."""
  if content is None:
    with open(path, 'rb') as file:
      content = file.read(512)
  head = content[:512].lstrip().lower()
  if head.startswith((b'ii*\0', b'mm\0*')):
    return (
      f'I11: {path} is a TIFF of an unusual kind, for example of more than 4'
      ' channels; write three of them, or one, as RGB or gray of 8 bits.'
      f' {_OR_LEAVE_OUT}'
    )
  what = 'no image of a known kind'
  if not head:
    what = 'empty'
  elif head.startswith((b'<!doctype html', b'<html', b'<head')):
    what += ' but a web page; download it anew'
  elif head.startswith(b'version https://git-lfs'):
    what += ' but a pointer of git-lfs; run git lfs pull'
  return f'I03: {path} is {what}.'


def list_images(pattern: Path) -> list[pathlib.Path]:
  """Lists the image files that a path or pattern means, sorted.

  Args:
    pattern: A file; a folder, searched with its sub-folders for known
      extensions; or a glob (`**` for any sub-folders), likewise.

  Raises:
    InputError: If there is none.
  """
  path = pathlib.Path(pattern)
  if path.is_file():
    return [path]
  if path.is_dir():
    found = [
      pathlib.Path(folder, name)
      for folder, _, names in os.walk(path)
      for name in names
    ]
  else:
    found = [pathlib.Path(f) for f in glob.glob(str(pattern), recursive=True)]
    if not found:
      raise errors.InputError(
        f'No file, folder or pattern {pattern} to read images'
        f' from{case_hint(path)}.'
      )
  images = sorted(
    f for f in found if f.suffix.lower() in EXTENSIONS and f.is_file()
  )
  if not images:
    raise errors.InputError(
      f'No images in {pattern}; looked for {", ".join(sorted(EXTENSIONS))}.'
    )
  return images


def case_hint(path: Path) -> str:
  """Says so if a missing file is there in other letter case; else ''."""
  path = pathlib.Path(path)
  try:
    names = os.listdir(path.parent)
  except OSError:
    return ''
  for name in names:
    if name != path.name and name.casefold() == path.name.casefold():
      return f' (there is {name}, in other letter case)'
  return ''


def _transposition(image: Image.Image) -> Image.Transpose | None:
  """Looks up how to turn an image upright, without decoding it."""
  # PngImageFile.getexif would decode the pixels to look behind them.
  exif = Image.Image.getexif(image)
  return _TRANSPOSITIONS.get(exif.get(ExifTags.Base.Orientation))


def _turned(size: tuple[int, int], turn: Image.Transpose) -> tuple[int, int]:
  """Returns the size after a transposition."""
  swaps = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
  )
  return size[::-1] if turn in swaps else size


def _shown(size: tuple[int, int]) -> str:
  """Shows (height, width)."""
  return f'{size[0]}x{size[1]} (height x width)'


def _unreadable(
  path: Path, error: Exception, content: bytes | None = None
) -> errors.InputError:
  """Makes one line of what went wrong with a file."""
  reason = ' '.join(str(error).split())
  match error:
    case FileNotFoundError():
      return errors.InputError(
        f'I01: there is no image {path}{case_hint(path)}.'
      )
    case Image.DecompressionBombError():
      return errors.InputError(
        f'I12: {path} is too large: {reason.split(",")[0]}; at most'
        f' {2 * Image.MAX_IMAGE_PIXELS} pixels are decoded. Cut it into tiles'
        f' or shrink it, and its annotations alike. {_OR_LEAVE_OUT}'
      )
    case Image.UnidentifiedImageError():
      return errors.InputError(_looks_like(path, content))
    case PermissionError() | IsADirectoryError():
      return errors.InputError(f'I01: cannot read {path}: {error.strerror}.')
    case _:
      return errors.InputError(f'I02: {path} is damaged: {reason}.')
