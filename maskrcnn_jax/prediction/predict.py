"""Finds objects in a user's pictures; writes results and draws overlays."""

import collections
from collections.abc import Iterator
import concurrent.futures
import contextlib
import errno
import os
import pathlib
import shutil
from typing import Any
import zlib

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.keys import EVALUATION, KEYS, WEIGHTS
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.drawing.fonts import open_font, warn_of_missing
from maskrcnn_jax.errors import InputError, SaveError
from maskrcnn_jax.prediction import lines as prediction_lines
from maskrcnn_jax.prediction import picture_list
from maskrcnn_jax.prediction.lines import ALL_PICTURES, Line, Share
from maskrcnn_jax.prediction.picture_batches import (
  Found,
  detect_pictures,
  too_large,
)
from maskrcnn_jax.prediction.picture_list import PictureList
from maskrcnn_jax.prediction.results import class_names_of, make_result
from maskrcnn_jax.runtime.files import make_writable
from maskrcnn_jax.runtime.status_line import progress, waiting

# The folder, below that of the results, for overlays that are being written.
_PARTIAL = '.partial'

# How many pixels of pictures may wait for being drawn.
_PIXELS_WAITING = 50_000_000


def predict(
  detector: Detector,
  *,
  pattern: str,
  output: pathlib.Path,
  config: ml_collections.ConfigDict,
  annotations: str | None = None,
  draws: bool = True,
  share: Share = ALL_PICTURES,
) -> int:
  """Finds the objects in pictures; writes predictions.json and overlays.

  The result of a picture is written to a file as soon as it is there, and the
  same call continues a result that is not complete. A complete result is
  replaced. See `prediction_lines`.

  Args:
    detector: The model.
    pattern: A file, a folder, or a glob pattern such as 'pictures/*.jpg'.
    output: The folder to write to. predictions.json has COCO results with the
      file name and the class name, in pixels of the picture as a viewer shows
      it; predictions.jsonl has a line for each picture; NAME.png is the picture
      with its objects. If the names of two pictures differ in their suffix
      only, all overlays keep the suffix of their picture: NAME.jpg.png.
    config: The recipe.
    annotations: A file in COCO's format. The results get its image ids, and
      pictures that it does not name are left out. Without it, the results have
      no `image_id`.
    draws: Whether overlays are written.
    share: The share of this process, if several processes predict on the same
      pictures. They need not run at the same time. The last one merges.

  Returns:
    The number of files that cannot be used. If other processes are not done,
    only those of this share count. The log of the process that merges names all
    these files and gives the reasons.

  Raises:
    InputError: If no picture is found, if the font cannot be read, if the
      folder cannot be written to, if it has an unfinished result of another
      prediction, or if another process works on the same share.
    SaveError: If a result cannot be written, for example on a full disk.
  """
  with waiting('Looking for pictures'):
    pictures = picture_list.list_pictures(
      pattern, output=output, draws=draws, annotations=annotations
    )
  if draws:
    # It raises an error if the font cannot be read.
    open_font(config.predict.font or None, 12)
    warn_of_missing(class_names_of(detector), config.predict.font)
  make_writable(output)
  names = pictures.names
  fingerprint = _fingerprint(
    detector, pictures, pattern, config, annotations, draws
  )
  prediction_lines.start(output, fingerprint)
  with prediction_lines.open_lines(output, share, fingerprint) as file:
    # The others have no line in common with this process, so it does not matter
    # if they write while this process reads.
    done = prediction_lines.find_lines(output, names).is_done
    rows = np.arange(share.number, len(names), share.processes)
    rows_left = rows[~done[rows]]
    if len(rows_left) < len(rows):
      logging.info(
        'Continuing: %d of %d pictures are done already.',
        len(rows) - len(rows_left),
        len(rows),
      )
    with contextlib.closing(
      # Closing it removes the bar if an exception ends the loop.
      progress(
        _predict_lines(
          detector,
          pictures,
          rows_left,
          config=config,
          overlays=output if draws else None,
        ),
        total=len(rows_left),
        description='Predicting',
      )
    ) as lines:
      for line in lines:
        prediction_lines.append(file, line)
    with waiting('Writing the predictions'):
      is_merged = prediction_lines.merge(output, names, fingerprint)
    if is_merged:
      shutil.rmtree(output / _PARTIAL, ignore_errors=True)
    else:
      places = prediction_lines.find_lines(output, names)
      logging.info(
        'The share of this process is done: %d pictures. The last of the %d '
        'processes writes predictions.json; %d pictures are left.',
        len(rows),
        share.processes,
        np.sum(~places.is_done),
      )
      return sum(
        'error' in line
        for line in prediction_lines.read_lines(places, rows.tolist())
      )
  return _report(output)


def _report(output: pathlib.Path) -> int:
  """Logs the figures of a complete result, and names the files with errors.

  Args:
    output: The folder of the result.

  Returns:
    The number of files that cannot be used.
  """
  num_objects = num_pictures = num_broken = 0
  for line in prediction_lines.finished_lines(output):
    if 'error' in line:
      num_broken += 1
      logging.error('Skipped: %s', line['error'])
    else:
      num_pictures += 1
      num_objects += len(line['objects'])
  logging.info(
    '%d objects in %d pictures; %d files cannot be used. See %s.',
    num_objects,
    num_pictures,
    num_broken,
    output,
  )
  return num_broken


def _predict_lines(
  detector: Detector,
  pictures: PictureList,
  rows: np.ndarray,
  *,
  config: ml_collections.ConfigDict,
  overlays: pathlib.Path | None,
) -> Iterator[Line]:
  """Yields the line of each picture; draws overlays in other threads.

  Args:
    detector: The model.
    pictures: All pictures.
    rows: The pictures to predict on.
    config: The recipe.
    overlays: The folder for overlays; `None` draws none.

  Raises:
    SaveError: If an overlay cannot be written.
  """

  def finish(row: int, found: Found) -> Line:
    """Makes the line of a picture, and its overlay."""
    name = pictures.names[row]
    path = pictures.root / name
    picture = path if found.pixels is None else found.pixels
    result = make_result(detector, found, picture, name, config=config)
    overlay = None if overlays is None else pictures.overlay(row)
    try:
      if overlays is not None and overlay is not None:
        # It appears under its name when it is complete.
        partial = overlays / _PARTIAL / f'{row}.png'
        with prediction_lines.saving():
          result.save(partial)
          (overlays / overlay).parent.mkdir(parents=True, exist_ok=True)
          partial.replace(overlays / overlay)
    except MemoryError:
      return {'file_name': name, 'error': str(too_large(str(path)))}
    except SaveError as error:
      # A full disk ends the prediction, but the name of one picture does not.
      if getattr(error.__cause__, 'errno', None) != errno.ENAMETOOLONG:
        raise
      reason = f'C10: the name of the overlay of {path} is too long; rename it.'
      return {'file_name': name, 'error': reason}
    objects = result.to_coco()
    for coco in objects:
      del coco['image_id']
    if pictures.ids is not None:
      objects = [{'image_id': pictures.ids[row]} | coco for coco in objects]
    return {'file_name': name, 'overlay': overlay, 'objects': objects}

  all_found = detect_pictures(
    detector,
    (pictures.root / pictures.names[row] for row in rows),
    config=config,
    # On a CPU, larger batches are not faster and need more memory.
    batch_size=1 if jax.default_backend() == 'cpu' else config.eval.batch_size,
    keeps_pixels=overlays is not None,
  )
  num_threads = config.data.num_threads
  queue: collections.deque[tuple[int, concurrent.futures.Future[Line]]] = (
    collections.deque()
  )
  with concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
    for row, found in zip(rows.tolist(), all_found, strict=True):
      if isinstance(found, InputError):
        future: concurrent.futures.Future[Line] = concurrent.futures.Future()
        line = {'file_name': pictures.names[row], 'error': str(found)}
        future.set_result(line)
        queue.append((0, future))
      else:
        num_pixels = found.size[0] * found.size[1]
        queue.append((num_pixels, threads.submit(finish, row, found)))
      # The pixels must not outlive their picture.
      del found
      while queue and (
        queue[0][1].done()
        or len(queue) > 2 * num_threads
        or sum(pixels for pixels, _ in queue) > _PIXELS_WAITING
      ):
        yield queue.popleft()[1].result()
    while queue:
      yield queue.popleft()[1].result()


def _checksum_of(path: str) -> str:
  """Returns a checksum of a file as text."""
  checksum = 0
  with open(path, 'rb') as file:
    while block := file.read(1 << 20):
      checksum = zlib.crc32(block, checksum)
  return f'{checksum:08x}'


def _fingerprint(
  detector: Detector,
  pictures: PictureList,
  pattern: str,
  config: ml_collections.ConfigDict,
  annotations: str | None,
  draws: bool,
) -> dict[str, Any]:
  """Returns the facts that the results depend on.

  Args:
    detector: The model.
    pictures: The pictures. Pictures that are added later do not change the
      fingerprint, unless their common folder is another.
    pattern: The input that the user gave.
    config: The recipe. Keys that change only the training, the speed or the
      memory do not count.
    annotations: The file of image ids that the user gave.
    draws: Whether overlays are written.
  """
  checksum = 0
  for leaf in jax.tree.leaves(jax.device_get(detector.variables)):
    checksum = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8), checksum)
  facts: dict[str, Any] = {
    'checkpoint': f'step {detector.step}, weights {checksum:08x}',
    'classes': [[str(c.id), c.name] for c in detector.categories],
    '--input': os.path.abspath(pattern),
    'folder of the pictures': os.path.abspath(pictures.root),
    '--overlays': 'png' if draws else 'none',
    '--annotations': annotations and _checksum_of(annotations),
  }
  for key in KEYS:
    if key.role in (WEIGHTS, EVALUATION):
      facts[f'config.{key.name}'] = value_of(config, key.name)
  return facts
