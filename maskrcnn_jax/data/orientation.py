"""The EXIF orientation of an image: whether and how its pixels are turned."""

import os
import pathlib
import struct
from typing import NamedTuple
import zlib

from PIL import ExifTags, Image

from maskrcnn_jax import errors

Path = str | pathlib.Path

# Errors that Pillow's decoders raise on damaged files. UnidentifiedImageError
# is an OSError.
DECODE_ERRORS = (
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

# Number of chunks of a PNG that are looked through for EXIF data. A chunk of
# pixels has at least 8 KiB in usual files.
_MAX_CHUNKS = 100_000

# {EXIF orientation: how the stored pixels become upright}. Other values mean
# that the pixels are upright.
_TRANSPOSITIONS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


class Orientation(NamedTuple):
  """How the stored pixels of an image become the picture that was labelled."""

  # Makes the labelled picture of the stored pixels. `None` if they are it.
  transpose: Image.Transpose | None
  size: tuple[int, int]  # (height, width) of the labelled picture
  # Whether the EXIF orientation turns the image, and the size in the
  # annotations fits before and after, so that it does not tell which of the two
  # was labelled.
  is_in_doubt: bool


def orientation_of(
  image: Image.Image,
  path: Path,
  labelled_size: tuple[int, int] | None = None,
  *,
  apply_exif: bool = True,
) -> Orientation:
  """Decides whether the EXIF orientation of an image is applied.

  Annotations may describe the pixels as stored or the picture that a viewer
  shows after it applied the EXIF orientation. If only one of the two has the
  size in the annotations, this one was labelled. If turning keeps the size
  (orientations 2, 3, 4, and 5 to 8 of a square), `apply_exif` decides.

  Args:
    image: The image, not decoded yet.
    path: The file, for messages.
    labelled_size: (height, width) in the annotations. `None` means that the
      picture is the one that a viewer shows.
    apply_exif: Whether the orientation is applied if the size does not tell.

  Raises:
    InputError: If the image has another size, however it is turned.
  """
  turn = transposition(image)
  stored = stored_size(image)
  upright = stored if turn is None else _turned(stored, turn)
  if labelled_size not in (None, stored, upright):
    raise errors.InputError(
      f'I05: {path} is {shown(stored)} pixels'
      + (
        f' ({shown(upright)} after its EXIF orientation)'
        if upright != stored
        else ''
      )
      + f', but the annotations say {shown(labelled_size)}.'
    )
  if labelled_size is None or turn is None:
    return Orientation(turn, upright, False)
  in_doubt = stored == upright
  if apply_exif if in_doubt else labelled_size == upright:
    return Orientation(turn, upright, in_doubt)
  return Orientation(None, stored, in_doubt)


def transposition(image: Image.Image) -> Image.Transpose | None:
  """Reads how to make the image upright; `None` if it is upright already.

  The pixels are not decoded.
  """
  try:
    # PngImageFile.getexif would decode the pixels to find EXIF data behind
    # them.
    exif = Image.Image.getexif(image)
    if image.format == 'PNG' and 'exif' not in image.info:
      exif.load(_late_exif(image))
    return _TRANSPOSITIONS.get(exif.get(ExifTags.Base.Orientation, 1))
  except DECODE_ERRORS:
    # The EXIF data are damaged. Viewers show the pixels as they are stored.
    return None


def _late_exif(image: Image.Image) -> bytes:
  """Returns the EXIF data behind the pixels of a PNG; b'' if there are none.

  ExifTool writes them there. Pillow finds them only by decoding the pixels.

  Args:
    image: A PNG that is not decoded yet.
  """
  file = getattr(image, 'fp', None)
  if file is None or not getattr(image, 'tile', None):
    return b''
  place = file.tell()
  found = b''
  file.seek(8)
  for _ in range(_MAX_CHUNKS):
    head = file.read(8)
    length, name = int.from_bytes(head[:4]), head[4:]
    if name == b'eXIf':
      found = file.read(length)
    if found or len(name) < 4 or name == b'IEND':
      break
    file.seek(length + 4, os.SEEK_CUR)
  file.seek(place)
  return found


def stored_size(image: Image.Image) -> tuple[int, int]:
  """Returns (height, width) of the pixels as they are in the file.

  Args:
    image: The image. If it is a TIFF that is not decoded yet, Pillow says the
      size after its orientation.
  """
  if image.format == 'TIFF' and transposition(image) is not None:
    tags = image.tag_v2  # type: ignore[attr-defined]
    return tags[ExifTags.Base.ImageLength], tags[ExifTags.Base.ImageWidth]
  return image.height, image.width


def _turned(size: tuple[int, int], turn: Image.Transpose) -> tuple[int, int]:
  """Returns the (height, width) that an image has after a transposition.

  Args:
    size: (height, width) before the transposition.
    turn: The transposition. Rotations by 90 degrees and reflections about a
      diagonal exchange height and width.
  """
  height, width = size
  swaps = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
  )
  return (width, height) if turn in swaps else size


def shown(size: tuple[int, int]) -> str:
  """Formats (height, width) for a message: '480x640 (height x width)'."""
  return f'{size[0]}x{size[1]} (height x width)'
