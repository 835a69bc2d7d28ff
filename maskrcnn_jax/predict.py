"""Finds objects in a user's pictures; writes results and draws overlays."""

import concurrent.futures
import contextlib
import os
import pathlib
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.config import canvas_arguments, geometry_of, pixel_range_of
from maskrcnn_jax.data import canvases
from maskrcnn_jax.data import images as image_files
from maskrcnn_jax.data.host_resize import fit_array
from maskrcnn_jax.detector import (
  Detector,
  category_of,
  to_original,
  to_xywh,
)
from maskrcnn_jax.draw import draw_detections
from maskrcnn_jax.errors import InputError
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

  readable, sizes, broken = [], [], []
  with waiting('Reading the sizes of the pictures'):
    for file in files:
      try:
        sizes.append(image_files.image_size(file))
        readable.append(file)
      except InputError as error:
        broken.append(str(error))
  names = [file.relative_to(root) for file in readable]
  overlays = [name.with_suffix('.png') for name in names]
  if len(set(overlays)) < len(overlays):
    overlays = [name.with_name(f'{name.name}.png') for name in names]
  results = []
  if readable:
    heights, widths = np.array(sizes, np.int32).T
    plan = canvases.plan_canvases(heights, widths, **canvas_arguments(config))
    pixel_range = pixel_range_of(config)
    with (
      concurrent.futures.ThreadPoolExecutor(1) as reader,
      # Closing it removes the bar if an exception ends the loop.
      contextlib.closing(
        progress(
          range(len(readable)), total=len(readable), description='Predicting'
        )
      ) as rows,
    ):
      pending = [reader.submit(_read, readable[0], plan, 0, pixel_range)]
      for row in rows:
        reading = pending.pop()
        if row + 1 < len(readable):
          pending.append(
            reader.submit(_read, readable[row + 1], plan, row + 1, pixel_range)
          )
        try:
          pixels, batch = reading.result()
        except InputError as error:
          broken.append(str(error))
          continue
        results += _predict_image(
          detector,
          batch,
          plan,
          row,
          pixels,
          str(names[row]),
          sizes[row],
          directory / overlays[row],
          min_score=config.predict.min_score,
        )
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


def _predict_image(
  detector: Detector,
  batch: Batch,
  plan: canvases.CanvasPlan,
  row: int,
  pixels: np.ndarray,
  name: str,
  size: tuple[int, int],
  overlay: pathlib.Path,
  *,
  min_score: float,
) -> list[dict[str, Any]]:
  """Finds the objects of one picture, and writes the picture with its objects.

  Args:
    detector: The model.
    batch: A batch with this picture only.
    plan: The canvases (static padded sizes) of all pictures.
    row: The position of the picture in the plan, from 0.
    pixels: The picture in full size, RGB, as a viewer shows it.
    name: The file name of the picture in the results.
    size: (height, width) of the picture, in pixels.
    overlay: The file to write the drawing to.
    min_score: Objects with a lower score are not drawn; [0, 1].

  Returns:
    The COCO results of the picture, those with low scores too.
  """
  geometry = geometry_of(detector.config)
  canvas = plan.canvases[plan.canvas_of_image[row]]
  detections = detector.detect(batch, padded_size=canvas.padded)
  objects = to_original(
    jax.tree.map(lambda field: np.asarray(field)[0], detections),
    tuple(plan.image_sizes[row].tolist()),
    row=row,
    original_size=size,
    mask_threshold=geometry.mask_threshold,
    paste_rule=geometry.paste_rule,
  )
  categories = [category_of(detector, class_) for class_ in objects.classes]
  names = [category.name for category in categories]
  overlay.parent.mkdir(parents=True, exist_ok=True)
  draw_detections(
    pixels,
    objects.boxes,
    names,
    objects.scores,
    objects.masks,
    min_score=min_score,
  ).save(overlay)
  results: list[dict[str, Any]] = [
    {
      'image_id': row + 1,
      'file_name': name,
      'category_id': category.id,
      'category_name': category.name,
      'score': float(score),
      'bbox': to_xywh(box, width_offset=geometry.width_offset),
    }
    for category, score, box in zip(
      categories, objects.scores, objects.boxes, strict=True
    )
  ]
  for result, mask in zip(results, objects.masks or (), strict=False):
    result['segmentation'] = mask
  return results


def _read(
  file: pathlib.Path,
  plan: canvases.CanvasPlan,
  row: int,
  pixel_range: tuple[float, float] | None,
) -> tuple[np.ndarray, Batch]:
  """Decodes a picture for drawing and for detection.

  Args:
    file: The picture.
    plan: The canvases of all pictures. A canvas is the static size that a
      picture is put on.
    row: The position of the picture in the plan, from 0.
    pixel_range: (black, white) for gray pictures of 16 or 32 bits: the pixel
      values that are mapped to 0 and to 255. `None` refuses such pictures.

  Returns:
    The picture in full size, to draw on; and a batch with this picture only,
    made smaller and padded as the plan says, to detect objects in.

  Raises:
    InputError: If the picture cannot be decoded or is refused.
  """
  pixels = image_files.decode_image(file, pixel_range=pixel_range)
  canvas = plan.canvases[plan.canvas_of_image[row]]
  small = fit_array(
    pixels,
    source_size=tuple(plan.source_sizes[row].tolist()),
    image_size=tuple(plan.image_sizes[row].tolist()),
    array_size=canvas.source,
    antialias=plan.antialias,
  )
  padded = np.zeros((1, *canvas.source, 3), np.uint8)
  padded[0, : small.shape[0], : small.shape[1]] = small
  return pixels, Batch(
    images=padded,
    source_sizes=plan.source_sizes[row : row + 1],
    image_sizes=plan.image_sizes[row : row + 1],
    image_valid=np.ones(1, bool),
    gt_boxes=np.zeros((1, 1, 4), np.float32),
    gt_classes=np.zeros((1, 1), np.int32),
    gt_valid=np.zeros((1, 1), bool),
    outlines=Outlines(
      np.zeros((1, 1, 2), np.float32),
      np.full((1, 1), -1, np.int16),
      np.zeros((1, 2), np.int32),
    ),
  )


def _common_folder(files: list[pathlib.Path]) -> pathlib.Path:
  """Returns the deepest folder that all files are in."""
  return pathlib.Path(os.path.commonpath([file.parent for file in files]))
