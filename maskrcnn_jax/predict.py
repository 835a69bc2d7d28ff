"""Prediction: the objects in a user's own pictures, written and drawn."""

import concurrent.futures
import os
import pathlib

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.config import canvas_arguments, geometry_of, pixel_range_of
from maskrcnn_jax.data import canvases
from maskrcnn_jax.data import images as image_files
from maskrcnn_jax.detector import (
  Detector,
  category_of,
  to_original,
  to_xywh,
)
from maskrcnn_jax.draw import draw_detections
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.training_log import progress


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
    pattern: A file, a folder or a glob.
    workdir: Gets predictions/predictions.json, COCO results with `file_name`
      and class name, in pixels of the picture as a viewer shows it, and
      predictions/NAME.png for each picture. Where two pictures differ in
      their suffix alone, all keep theirs: NAME.jpg.png.
    config: The recipe.

  Returns:
    How many of the files could not be read; each was named in the log.
  """
  files = image_files.list_images(pattern)
  directory = workdir / 'predictions'
  make_writable(directory)
  root = _common_folder(files)

  readable, sizes, broken = [], [], []
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
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      waiting = [reader.submit(_read, readable[0], plan, 0, pixel_range)]
      for row in progress(
          range(len(readable)), total=len(readable), description='Predicting'
      ):
        reading = waiting.pop()
        if row + 1 < len(readable):
          waiting.append(
              reader.submit(
                  _read, readable[row + 1], plan, row + 1, pixel_range
              )
          )
        try:
          pixels, batch = reading.result()
        except InputError as error:
          broken.append(str(error))
          continue
        results += _predict_image(
            detector, batch, plan, row, pixels, str(names[row]),
            sizes[row], directory / overlays[row],
            min_score=config.predict.min_score,
        )
  write_json(directory / 'predictions.json', results)
  for line in broken:
    logging.error('Skipped: %s', line)
  logging.info(
      '%d objects in %d pictures; %d files could not be read. See %s.',
      len(results), len(files) - len(broken), len(broken), directory,
  )
  return len(broken)


def _predict_image(
    detector, batch, plan, row, pixels, name, size, picture, *, min_score
):
  """Detects and draws one picture's objects and returns their records."""
  shape = geometry_of(detector.config)
  canvas = plan.canvases[plan.canvas_of_image[row]]
  detections = detector.detect(batch, padded_size=canvas.padded)
  found = to_original(
      jax.tree.map(lambda field: np.asarray(field)[0], detections),
      tuple(plan.image_sizes[row].tolist()), row=row, original_size=size,
      mask_threshold=shape.mask_threshold, paste_rule=shape.paste_rule,
  )
  categories = [category_of(detector, class_) for class_ in found.classes]
  names = [category.name for category in categories]
  picture.parent.mkdir(parents=True, exist_ok=True)
  draw_detections(
      pixels, found.boxes, names, found.scores, found.masks,
      min_score=min_score,
  ).save(picture)
  records = [
      {
          'image_id': row + 1,
          'file_name': name,
          'category_id': category.id,
          'category_name': category.name,
          'score': float(score),
          'bbox': to_xywh(box, width_offset=shape.width_offset),
      }
      for category, score, box in zip(
          categories, found.scores, found.boxes, strict=True
      )
  ]
  for record, mask in zip(records, found.masks or (), strict=False):
    record['segmentation'] = mask
  return records


def _read(file, plan, row, pixel_range):
  """Decodes a picture whole, and as a batch of one for the network."""
  pixels = image_files.decode_image(file, pixel_range=pixel_range)
  reduce = int(plan.reduce[row])
  small = (
      image_files.decode_image(file, reduce=reduce, pixel_range=pixel_range)
      if reduce > 1 else pixels
  )
  canvas = plan.canvases[plan.canvas_of_image[row]]
  padded = np.zeros((1, *canvas.source, 3), np.uint8)
  padded[0, : small.shape[0], : small.shape[1]] = small
  return pixels, Batch(
      images=padded,
      source_sizes=np.array([small.shape[:2]], np.int32),
      image_sizes=plan.image_sizes[row : row + 1],
      image_valid=np.ones(1, bool),
      gt_boxes=np.zeros((1, 1, 4), np.float32),
      gt_classes=np.zeros((1, 1), np.int32),
      gt_valid=np.zeros((1, 1), bool),
      outlines=Outlines(
          np.zeros((1, 1, 2), np.float32), np.full((1, 1), -1, np.int16),
          np.zeros((1, 2), np.int32),
      ),
  )


def _common_folder(files: list[pathlib.Path]) -> pathlib.Path:
  """The deepest folder that all files are in."""
  return pathlib.Path(os.path.commonpath([file.parent for file in files]))
