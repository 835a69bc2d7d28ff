"""Decodes all images of a data set in several processes.

The processes import this module, so it must not import JAX.
"""

from collections.abc import Iterator, Sequence
import concurrent.futures
import functools
import multiprocessing
import os

from maskrcnn_jax.data import image_checks
from maskrcnn_jax.data.source import ImageFile
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.status_line import progress

# Fewer images are decoded in this process: to start others would take longer.
MIN_PARALLEL = 24


def look_at_images(
  files: Sequence[ImageFile],
  sizes: Sequence[tuple[int, int]],
  *,
  num_workers: int | None,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
) -> Iterator[image_checks.ImageFacts]:
  """Decodes images and finds their faults, while it shows a progress bar.

  Args:
    files: The images.
    sizes: (height, width) of each image according to its annotations.
    num_workers: Number of processes that decode. `None` means one for each
      core.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      is a fault.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Yields:
    The facts of each image, in the order of `files`.

  Raises:
    InputError: If one of the processes is killed.
  """
  look = functools.partial(
    _look, pixel_range=pixel_range, apply_exif=apply_exif
  )
  num_workers = os.cpu_count() or 1 if num_workers is None else num_workers
  bar = functools.partial(progress, total=len(files), description='Decoding')
  if num_workers < 2 or len(files) < MIN_PARALLEL:
    yield from bar(map(look, files, sizes))
    return
  with concurrent.futures.ProcessPoolExecutor(
    min(num_workers, len(files)),
    # A forked process may hang, because this process has threads.
    mp_context=multiprocessing.get_context('spawn'),
  ) as pool:
    try:
      yield from bar(pool.map(look, files, sizes, chunksize=8))
    except concurrent.futures.process.BrokenProcessPool as error:
      raise InputError(
        'A process that decodes images was killed; if the memory was used up,'
        ' give --workers=1.'
      ) from error


def _look(
  file: ImageFile,
  size: tuple[int, int],
  *,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
) -> image_checks.ImageFacts:
  """Decodes one image to find out whether it can be used.

  Args:
    file: The image.
    size: (height, width) according to the annotations.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      is a fault.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Returns:
    The fault of the image, '' if it can be used; warnings about it; and a
    digest of the bytes of the file, by which equal files are found. With a
    fault there are no warnings, and the digest is b''. A fault is returned, not
    raised.
  """
  return image_checks.look_at_image(
    file.path,
    size,
    pixel_range=pixel_range,
    apply_exif=apply_exif,
    content=file.content(),
  )
