"""Photographs give the detections of detectron2, from the files on.

The weights are converted from a file, and the pictures are read, resized and
searched by the code that `--mode=predict` runs.
"""

import json
import pickle

import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal
import parity
import pytest

from maskrcnn_jax.config import canvas_arguments
from maskrcnn_jax.convert_weights.convert import convert
from maskrcnn_jax.data import canvases
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.ops.boxes import pairwise_iou
from maskrcnn_jax.prediction import picture_batches, predict

pytestmark = parity.needs_golden

PHOTOS = parity.GOLDEN.parent / 'data' / 'coco_mini' / 'images'


def write_weights(path, seed):
  """Writes a file with seeded weights, as detectron2 saves them."""
  draw, arrays = parity.load_seeded().detectron2_array, {}

  def draw_and_keep(name, shape, seed):
    arrays[name] = draw(name, shape, seed)
    return arrays[name]

  config = parity.parity_config('modern', (320, 320))
  parity.build(config, 81, draw_and_keep, seed, parity.detectron2_variables)
  path.write_bytes(pickle.dumps({'model': arrays, '__author__': 'test'}))


def count_pairs(boxes, scores, classes, golden, i):
  """Returns how many detections in photograph i agree with detectron2's.

  A pair has the same class, scores within 1e-3 and an IoU above 0.99.
  """
  theirs = jnp.asarray(golden[f'boxes_{i}'])
  iou = pairwise_iou(jnp.asarray(boxes, jnp.float32), theirs)
  fits = np.array(iou) > 0.99
  fits &= np.abs(scores[:, None] - golden[f'scores_{i}']) <= 1e-3
  fits &= classes[:, None] == golden[f'classes_{i}'] + 1
  count = 0
  for row in fits:
    if row.any():
      fits[:, np.argmax(row)] = False
      count += 1
  return count


@pytest.mark.slow
@pytest.mark.parametrize('path', parity.golden_files('detectron2_photos'))
def test_photographs_give_the_detections_of_detectron2(path, tmp_path):
  golden = np.load(path)
  files = [PHOTOS / name for name in golden['names']]
  if not all(file.exists() for file in files):
    pytest.skip('needs the photographs in ../shared/data')
  write_weights(tmp_path / 'model.pkl', int(golden['seed']))
  convert(tmp_path / 'model.pkl', tmp_path / 'weights')
  detector = load_detector(tmp_path / 'weights', None)
  config = detector.config.copy_and_resolve_references()
  config.data.short_side = int(golden['short'])
  config.data.long_side = int(golden['long'])
  sizes = np.array([golden[f'size_{i}'] for i in range(len(files))])
  final = [
    canvases.resized_size(
      *size, short_side=config.data.short_side, long_side=config.data.long_side
    )
    for size in sizes.tolist()
  ]
  # Each photograph is padded as detectron2 pads it.
  config.data.padded_sizes = tuple(
    {tuple(-(-side // 32) * 32 for side in size) for size in final}
  )

  pairs = 0
  for i, file in enumerate(files):
    arguments = canvas_arguments(config)
    decoded = picture_batches._decoded(
      i, file.name, picture_batches.read_picture(file, ''), arguments
    )
    batch = picture_batches._make_batch([decoded], 1, arguments['antialias'])
    inputs = detector.rcnn.prepare(batch, padded_size=decoded.padded)
    mean, std = detector.rcnn.geometry.input_format.rgb_255()
    height, width = final[i]
    pixels = np.asarray(inputs.images[0, :height, :width]) * std + mean
    # The photograph that enters detectron2's network is BGR.
    assert_array_equal(np.rint(pixels[::7, ::7, ::-1]), golden[f'resized_{i}'])
    # Only float32 of the normalisation is not exact.
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-4

    workdir = tmp_path / f'run{i}'
    predict.predict(
      detector, pattern=str(file), output=workdir / 'predictions', config=config
    )
    results = json.loads(
      (workdir / 'predictions' / 'predictions.json').read_text('utf-8')
    )
    ids = [category.id for category in detector.categories]
    x, y, w, h = np.array([r['bbox'] for r in results]).T
    pairs += count_pairs(
      np.stack([x, y, x + w, y + h], axis=1),
      np.array([r['score'] for r in results]),
      np.array([ids.index(r['category_id']) + 1 for r in results]),
      golden,
      i,
    )
  total = sum(len(golden[f'scores_{i}']) for i in range(len(files)))
  print(f'{pairs} of {total} detections paired')
  assert pairs >= 0.99 * total
