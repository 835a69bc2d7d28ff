"""Finds objects in a user's pictures; writes results and draws overlays."""

import contextlib
import os
import pathlib
from typing import Any

from absl import logging
import ml_collections

from maskrcnn_jax.data import images as image_files
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.picture_batches import detect_pictures
from maskrcnn_jax.results import make_result
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.status_line import progress, waiting


def predict(
  detector: Detector,
  *,
  pattern: str,
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
) -> int:
  """Finds the objects in pictures; writes predictions.json and overlays.

  Args:
    detector: The model.
    pattern: A file, a folder, or a glob pattern such as 'pictures/*.jpg'.
    workdir: The folder to write to. predictions/predictions.json has COCO
      results with the file name and the class name, in pixels of the picture
      as a viewer shows it; predictions/NAME.png is the picture with its
      objects. If the names of two pictures differ in their suffix only, all
      overlays keep the suffix of their picture: NAME.jpg.png.
    config: The recipe.

  Returns:
    The number of files that could not be read. The log names these files and
    gives the reasons.

  Raises:
    InputError: If no picture is found, or if the folder cannot be written to.
  """
  with waiting('Looking for pictures'):
    files = image_files.list_images(pattern)
  directory = workdir / 'predictions'
  make_writable(directory)
  root = _common_folder(files)

  names = [file.relative_to(root) for file in files]
  overlays = [name.with_suffix('.png') for name in names]
  if len(set(overlays)) < len(overlays):
    overlays = [name.with_name(f'{name.name}.png') for name in names]
  results: list[dict[str, Any]] = []
  broken = []
  with contextlib.closing(
    # Closing it removes the bar if an exception ends the loop.
    progress(
      detect_pictures(
        detector,
        files,
        config=config,
        # One picture needs the least memory, and no batch is filled up.
        batch_size=1,
        keeps_pixels=True,
      ),
      total=len(files),
      description='Predicting',
    )
  ) as all_found:
    for found in all_found:
      if isinstance(found, InputError):
        broken.append(str(found))
        continue
      row = found.objects.row
      result = make_result(
        detector, found, found.pixels, str(names[row]), config=config
      )
      result.save(directory / overlays[row])
      results += result.to_coco()
  with waiting('Writing the predictions'):
    write_json(directory / 'predictions.json', results)
  for line in broken:
    logging.error('Skipped: %s', line)
  logging.info(
    '%d objects in %d pictures; %d files could not be read. See %s.',
    len(results),
    len(files) - len(broken),
    len(broken),
    directory,
  )
  return len(broken)


def _common_folder(files: list[pathlib.Path]) -> pathlib.Path:
  """Returns the deepest folder that all files are in."""
  return pathlib.Path(os.path.commonpath([file.parent for file in files]))
