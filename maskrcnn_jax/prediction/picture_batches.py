"""Reads pictures of any sizes, and detects their objects batch by batch."""

import collections
from collections.abc import Iterable, Iterator
import concurrent.futures
import os
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
from jaxtyping import UInt8
import ml_collections
import numpy as np
from PIL import Image

from maskrcnn_jax.array_types import Batch, Detections, Outlines
from maskrcnn_jax.config import canvas_arguments, geometry_of, pixel_range_of
from maskrcnn_jax.data import canvases, image_checks, images
from maskrcnn_jax.data.host_resize import fit_array
from maskrcnn_jax.detector import Detector, ImageDetections, to_original
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import cluster

# A file, an RGB picture [h, w, 3] as uint8, or an image of PIL.
Picture = str | os.PathLike[str] | np.ndarray | jax.Array | Image.Image

# Pixels. The sides of the arrays of decoded pictures are rounded up to one of
# these, because the device's part of the preparation is compiled for each size
# of the array. Neighbours differ by about a third; 640 is the longer side of
# most pictures of COCO.
_ARRAY_SIDES = (64, 96, 128, 192, 256, 384, 512, 640, 832, 1088, 1440, 1920)

# A picture that fits in no padded size of the recipe gets one of its own,
# unless this has more than so many times the pixels of the largest size of the
# recipe.
_MOST_ROOM = 2

# How many batches of pictures may be held back, because an earlier picture
# waits for others of its padded size.
_BATCHES_HELD = 4

# Pixels. A batch whose pictures have more pixels than this together is detected
# in at once, although it has room for more pictures.
_MOST_PIXELS = 2**27


class Found(NamedTuple):
  """The objects of a picture."""

  objects: ImageDetections  # its `row` is the number of the picture, from 0
  size: tuple[int, int]  # (height, width) of the picture, in pixels
  pixels: UInt8[np.ndarray, 'h w 3'] | None  # the picture in RGB, if it is kept


class _Decoded(NamedTuple):
  """A picture that has been read."""

  row: int  # number of the picture, from 0
  pixels: np.ndarray  # the picture in full size, RGB
  # The pixels from which the device resizes: `pixels` itself, or a smaller
  # picture.
  source: np.ndarray
  image_size: tuple[int, int]  # (height, width) after resizing
  array_size: tuple[int, int]  # (height, width) of the array for `source`
  padded: tuple[int, int]  # (height, width) of the padded image
  keeps_pixels: bool = False  # whether the result has the pixels


def detect_pictures(
  detector: Detector,
  pictures: Iterable[Picture],
  *,
  config: ml_collections.ConfigDict,
  batch_size: int,
  keeps_pixels: bool = False,
) -> Iterator[Found | InputError]:
  """Yields the objects of each picture, in the order of the pictures.

  A batch has pictures of one padded size. It is detected in when it is full,
  when its pictures are very large, when an earlier picture than its own would
  hold back too many results, or at the end of the pictures. While the device
  works, threads of the host read the next pictures and paste the masks of the
  batch before.

  Args:
    detector: The model.
    pictures: Files, arrays or images. About two batches of them are taken ahead
      of the results, with pictures of mixed sizes up to `_BATCHES_HELD`
      batches. An array or an image may be changed or closed as soon as the
      next picture is asked for.
    config: The recipe. Its image sizes, `data.pixel_range` and
      `data.num_threads` are used.
    batch_size: Number of pictures of a batch. It is rounded up to a multiple of
      the number of devices; the detections do not depend on it, except for
      rounding errors.
    keeps_pixels: Whether the results have the pixels of the pictures. Without
      it, only the results of arrays and images have them, because a file can be
      read again.

  Yields:
    The objects of a picture, or the error that says why it cannot be used.
  """
  num_devices = detector.mesh.size
  batch_size = -(-batch_size // num_devices) * num_devices
  antialias = canvas_arguments(config)['antialias']
  waiting: dict[tuple[int, int], list[_Decoded]] = {}
  finished: dict[int, Found | InputError] = {}
  in_flight: tuple[Detections, list[_Decoded]] | None = None
  next_row = 0

  def detect(padded: tuple[int, int]) -> None:
    """Starts a batch of the pictures that wait; finishes the one before."""
    nonlocal in_flight
    batch = waiting.pop(padded)
    detections = detector.detect(
      cluster.shard_batch(
        _make_batch(batch, batch_size, antialias), detector.mesh
      ),
      padded_size=padded,
    )
    finish()
    in_flight = detections, batch

  def finish() -> None:
    """Waits for the batch on the device, and moves its pictures to finished."""
    nonlocal in_flight
    if in_flight is not None:
      for found in _finish(*in_flight, config, pasters):
        finished[found.objects.row] = found
    in_flight = None

  def ready() -> Iterator[Found | InputError]:
    """Yields the finished pictures whose turn it is."""
    nonlocal next_row
    while next_row in finished:
      next_row += 1
      yield finished.pop(next_row - 1)

  with concurrent.futures.ThreadPoolExecutor(
    config.data.num_threads
  ) as pasters:
    for row, picture in _read_all(
      pictures, config, ahead=batch_size, keeps_pixels=keeps_pixels
    ):
      if isinstance(picture, InputError):
        finished[row] = picture
      else:
        group = waiting.setdefault(picture.padded, [])
        group.append(picture)
        num_pixels = sum(waits.pixels.size // 3 for waits in group)
        if len(group) == batch_size or num_pixels > _MOST_PIXELS:
          detect(picture.padded)
      if waiting and row - next_row >= _BATCHES_HELD * batch_size:
        detect(_oldest(waiting))
      yield from ready()
    while waiting:
      detect(_oldest(waiting))
      yield from ready()
    finish()
    yield from ready()


def _oldest(
  waiting: dict[tuple[int, int], list[_Decoded]],
) -> tuple[int, int]:
  """Returns the padded size of the picture that has waited longest."""
  return min(waiting, key=lambda padded: waiting[padded][0].row)


def read_picture(
  picture: Picture, name: str, *, pixel_range: tuple[float, float] | None = None
) -> UInt8[np.ndarray, 'h w 3']:
  """Returns the pixels of a picture in RGB, in an array of its own.

  Args:
    picture: A file, an array or an image. The EXIF orientation of a file and of
      an image is applied.
    name: The name of an array or an image in messages.
    pixel_range: (black, white) for pictures of more than 8 bits: the pixel
      values that are mapped to 0 and to 255. `None` refuses such pictures.

  Raises:
    InputError: If the picture cannot be decoded or is of another kind.
  """
  if isinstance(picture, str | os.PathLike):
    return images.decode_image(pathlib.Path(picture), pixel_range=pixel_range)
  if isinstance(picture, Image.Image):
    return images.convert_image(picture, name, pixel_range=pixel_range)
  if not hasattr(picture, '__array__'):
    raise InputError(
      f'{name} is a {type(picture).__name__}; give the path of a file, a uint8 '
      'array (height, width, 3) in RGB, or an image of PIL.'
    )
  pixels = np.array(picture)
  if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
    raise InputError(
      f'{name} is an array of {pixels.dtype} with the shape {pixels.shape}; it '
      'must be uint8 with the shape (height, width, 3), in RGB. For several '
      'pictures, give a list of arrays. PIL.Image.fromarray(array) is also '
      'taken, for example for gray pixels.'
    )
  if not pixels.size:
    raise InputError(f'{name} has no pixels: its shape is {pixels.shape}.')
  return pixels


def name_of(picture: Picture, row: int) -> str:
  """Returns the path of a picture as text; 'picture N' if it has none.

  Args:
    picture: A file, an array or an image.
    row: The number of the picture, from 0.
  """
  if isinstance(picture, str | os.PathLike):
    return os.fspath(picture)
  return getattr(picture, 'filename', '') or f'picture {row + 1}'


def too_large(name: str) -> InputError:
  """Returns the error for a picture that the memory is too small for."""
  return InputError(
    f'I12: {name} is too large for the available memory. Cut it into tiles or '
    'shrink it.'
  )


def _read_all(
  pictures: Iterable[Picture],
  config: ml_collections.ConfigDict,
  *,
  ahead: int,
  keeps_pixels: bool,
) -> Iterator[tuple[int, _Decoded | InputError]]:
  """Yields (number from 0, picture) pairs; reads files in other threads.

  Arrays and images are read as soon as they are taken, because their owner may
  change or close them afterwards.

  Args:
    pictures: The pictures.
    config: The recipe.
    ahead: Number of pictures that are read before they are asked for.
    keeps_pixels: Whether the results of files have their pixels.
  """
  arguments = canvas_arguments(config)
  pixel_range = pixel_range_of(config)

  def read(row: int, picture: Picture) -> _Decoded | InputError:
    """Reads a picture; returns the error if that fails."""
    name = name_of(picture, row)
    is_file = isinstance(picture, str | os.PathLike)
    try:
      pixels = read_picture(picture, name, pixel_range=pixel_range)
      decoded = _decoded(row, name, pixels, arguments)
    except InputError as error:
      return error
    except MemoryError:
      return too_large(name)
    if is_file:
      for note in image_checks.frame_notes(name):
        logging.warning('%s', note)
    return decoded._replace(keeps_pixels=keeps_pixels or not is_file)

  num_threads = min(ahead, config.data.num_threads)
  with concurrent.futures.ThreadPoolExecutor(num_threads) as reader:
    queue: collections.deque[
      tuple[int, concurrent.futures.Future[_Decoded | InputError]]
    ] = collections.deque()
    for row, picture in enumerate(pictures):
      future: concurrent.futures.Future[_Decoded | InputError]
      if isinstance(picture, str | os.PathLike):
        future = reader.submit(read, row, picture)
      else:
        future = concurrent.futures.Future()
        future.set_result(read(row, picture))
      queue.append((row, future))
      if len(queue) > ahead:
        row, future = queue.popleft()
        yield row, future.result()
    while queue:
      row, future = queue.popleft()
      yield row, future.result()


def _decoded(
  row: int, name: str, pixels: np.ndarray, arguments: dict[str, Any]
) -> _Decoded:
  """Plans the sizes of a picture; makes it smaller if the plan says so.

  Args:
    row: The number of the picture, from 0.
    name: The name of the picture in messages.
    pixels: The picture in full size, RGB.
    arguments: The keyword arguments of `plan_canvases`.

  Raises:
    InputError: If the picture fits in none of the padded sizes.
  """
  height, width, _ = pixels.shape
  size = np.array([height], np.int32), np.array([width], np.int32)
  try:
    plan = canvases.plan_canvases(*size, **arguments)
  except InputError as error:
    padded_sizes = _padded_sizes_for(height, width, arguments)
    if not padded_sizes:
      raise InputError(f'{name}: {error}') from error
    plan = canvases.plan_canvases(
      *size, **arguments | {'padded_sizes': padded_sizes}
    )
  (canvas,) = plan.canvases
  source_size = tuple(plan.source_sizes[0].tolist())
  image_size = tuple(plan.image_sizes[0].tolist())
  return _Decoded(
    row,
    pixels,
    fit_array(
      pixels,
      source_size=source_size,
      image_size=image_size,
      # With this size, no pixels are left out: that depends on the batch.
      array_size=source_size,
      antialias=plan.antialias,
    ),
    image_size,
    canvas.source,
    canvas.padded,
  )


def _padded_sizes_for(
  height: int, width: int, arguments: dict[str, Any]
) -> tuple[tuple[int, int], ...]:
  """Returns padded sizes for a picture that fits in none of the recipe.

  These are the sizes of the recipe with height and width exchanged, for example
  for a portrait if the recipe is for landscapes, and the smallest size that
  holds the picture. The model is compiled for each size that is used.

  Args:
    height: Height of the picture, in pixels.
    width: Width of the picture, in pixels.
    arguments: The keyword arguments of `plan_canvases`.

  Returns:
    The sizes, (height, width) in pixels. None if the picture needs more than
    `_MOST_ROOM` times the pixels of the largest size of the recipe.
  """
  given = arguments['padded_sizes']
  resized = canvases.resized_size(
    height,
    width,
    short_side=arguments['short_side'],
    long_side=arguments['long_side'],
    rule=arguments['resize_rule'],
  )
  turned = tuple((w, h) for h, w in given)
  if any(resized[0] <= h and resized[1] <= w for h, w in turned):
    return turned
  smallest = (-(-resized[0] // 32) * 32, -(-resized[1] // 32) * 32)
  most = _MOST_ROOM * max(h * w for h, w in given)
  return (smallest,) if smallest[0] * smallest[1] <= most else ()


def _make_batch(
  pictures: list[_Decoded], batch_size: int, antialias: bool
) -> Batch:
  """Puts pictures into a batch without ground truth.

  Args:
    pictures: One to `batch_size` pictures of one padded size.
    batch_size: Number of rows of the batch. The rest are black pictures, marked
      as padding.
    antialias: Whether shrinking averages over all old pixels that a new pixel
      covers.
  """
  array_size = (
    _round_up(max(picture.array_size[0] for picture in pictures)),
    _round_up(max(picture.array_size[1] for picture in pictures)),
  )
  images = np.zeros((batch_size, *array_size, 3), np.uint8)
  # The black pictures have the sizes of the first one.
  source_sizes = np.tile(
    np.array(pictures[0].source.shape[:2], np.int32), (batch_size, 1)
  )
  image_sizes = np.tile(
    np.array(pictures[0].image_size, np.int32), (batch_size, 1)
  )
  for i, picture in enumerate(pictures):
    source_sizes[i] = picture.source.shape[:2]
    image_sizes[i] = picture.image_size
    fitted = fit_array(
      picture.source,
      source_size=picture.source.shape[:2],
      image_size=picture.image_size,
      array_size=array_size,
      antialias=antialias,
    )
    images[i, : fitted.shape[0], : fitted.shape[1]] = fitted
  return Batch(
    images=images,
    source_sizes=source_sizes,
    image_sizes=image_sizes,
    image_valid=np.arange(batch_size) < len(pictures),
    gt_boxes=np.zeros((batch_size, 1, 4), np.float32),
    gt_classes=np.zeros((batch_size, 1), np.int32),
    gt_valid=np.zeros((batch_size, 1), bool),
    outlines=Outlines(
      np.zeros((batch_size, 1, 2), np.float32),
      np.full((batch_size, 1), -1, np.int16),
      np.zeros((batch_size, 2), np.int32),
    ),
  )


def _round_up(side: int) -> int:
  """Rounds the side of an array up to one of `_ARRAY_SIDES`.

  Args:
    side: In pixels. A longer side than all of these stays as it is.
  """
  return next((longer for longer in _ARRAY_SIDES if longer >= side), side)


def _finish(
  detections: Detections,
  pictures: list[_Decoded],
  config: ml_collections.ConfigDict,
  pasters: concurrent.futures.Executor,
) -> Iterator[Found]:
  """Waits for the detections of a batch, and yields those of each picture.

  Args:
    detections: The detections of the batch, on the device.
    pictures: The pictures of the batch.
    config: The recipe.
    pasters: Threads that paste the masks.
  """
  geometry = geometry_of(config)
  detections = jax.device_get(detections)

  def found_in(i: int, picture: _Decoded) -> Found:
    """Returns the objects of picture i of the batch."""
    height, width, _ = picture.pixels.shape
    objects = to_original(
      jax.tree.map(lambda field: field[i], detections),
      picture.image_size,
      row=picture.row,
      original_size=(height, width),
      mask_threshold=geometry.mask_threshold,
      paste_rule=geometry.paste_rule,
    )
    return Found(
      objects,
      (height, width),
      picture.pixels if picture.keeps_pixels else None,
    )

  yield from pasters.map(found_in, range(len(pictures)), pictures)
