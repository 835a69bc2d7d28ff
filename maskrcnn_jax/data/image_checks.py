"""Checks image files, and describes their faults and peculiarities in words.

The module `images` decodes the files.
"""

import hashlib
import io
from typing import NamedTuple
import warnings

import numpy as np
from PIL import Image

from maskrcnn_jax import errors
from maskrcnn_jax.data import images
from maskrcnn_jax.data.orientation import DECODE_ERRORS, orientation_of, shown

# Pixels. An image with a shorter side has few cells in the feature maps.
_TINY_SIDE = 32
# An image whose longer side is more than this many times its shorter side
# leaves most of its canvas to padding.
_MAX_ASPECT = 20


class ImageFacts(NamedTuple):
  """The result of inspecting an image file, for `check_data`."""

  problem: str  # why the file cannot be used, code first; '' if it can
  notes: tuple[str, ...]  # warnings about the file, code first
  digest: bytes  # BLAKE2 digest of the file's bytes; b'' if it cannot be used


def look_at_image(
  path: images.Path,
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
      width, height = images.decode_to_rgb(
        path,
        expected_size=expected_size,
        pixel_range=pixel_range,
        content=content,
        apply_exif=apply_exif,
      ).size
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
        f' its annotations. {images.OR_LEAVE_OUT}',
        (),
        b'',
      )


def header_notes(
  path: images.Path,
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
      Image.open(file, formats=images.FORMATS) as image,
    ):
      return tuple(_notes_of_header(image, path, expected_size, apply_exif))
  except (errors.InputError, *DECODE_ERRORS):
    return ()


def _notes_of_header(
  image: Image.Image,
  path: images.Path,
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
  path: images.Path, content: bytes | None
) -> io.BufferedReader | io.BytesIO:
  """Opens an image file for reading, or its content if that is given.

  Raises:
    InputError: If the path is a pipe or a device.
  """
  if content is not None:
    return io.BytesIO(content)
  images.refuse_special(path)
  return open(path, 'rb')


def _notes(
  path: images.Path,
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
    Image.open(file, formats=images.FORMATS) as image,
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


def frame_notes(path: images.Path) -> list[str]:
  """Returns a warning if an image file holds several pictures, code first.

  The pixels are not decoded. A file that cannot be opened has no warning.
  """
  try:
    images.refuse_special(path)
    with Image.open(path, formats=images.FORMATS) as image:
      return _frame_notes(path, image)
  except (errors.InputError, *DECODE_ERRORS):
    return []


def _frame_notes(path: images.Path, image: Image.Image) -> list[str]:
  """Does the work of `frame_notes` for an opened image."""
  # An MPO file of a phone holds the same picture twice, the second smaller.
  # The pictures are not counted: a TIFF may have a hundred thousand pages, and
  # each would be looked for.
  if not getattr(image, 'is_animated', False) or image.format == 'MPO':
    return []
  return [f'I14: {path} holds more than one picture; the first is used.']
