"""Tests the memory that a prediction on a very large picture needs."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest
import tiny

from maskrcnn_jax.config import plain
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
WIDTH, HEIGHT = 9000, 12_000
NUM_OBJECTS = 100

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('compilation_cache')]


def write_model(folder):
  """Writes a checkpoint whose model finds 100 large objects in any picture.

  Its predictors are constant: boxes are anchors, and masks fill their boxes.
  """
  config = tiny.get_config()
  # In a canvas of 64 pixels, these are at least a third of the picture.
  config.anchors.sizes = ((24.0,), (32.0,), (40.0,), (48.0,), (56.0,))
  config.rpn.iou_threshold = 1.0
  config.rpn.eval.update(pre_nms=200, post_nms=200, num_proposals=200)
  config.detections.update(max_detections=NUM_OBJECTS, iou_threshold=1.0)
  rcnn = Rcnn.from_config(config, num_classes=2, dtype='float32')
  leaves = checkpoint.named_leaves(rcnn.init(jax.random.key(0)))
  for name in leaves:
    if any(part in name for part in ('bbox_pred', 'cls_score', 'mask_fcn')):
      is_bias = name.endswith('mask_fcn_logits/bias')
      leaves[name] = np.full(leaves[name].shape, 4.0 * is_bias, np.float32)
  manager = checkpoint.open_manager(folder)
  checkpoint.save_checkpoint(
    manager,
    model=checkpoint.nested(leaves),
    optimizer=None,
    metadata=checkpoint.Metadata(0, plain(config), [[1, 'object']]),
  )
  manager.wait_until_finished()
  manager.close()


def test_a_hundred_large_masks_on_108_megapixels_need_little_memory(
  tmp_path, monkeypatch
):
  write_model(tmp_path / 'model')
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (480, 360, 3), np.uint8))
  small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(
    tmp_path / 'large.jpg', quality=90
  )
  process = subprocess.Popen(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.main',
      '--mode=predict',
      f'--checkpoint={tmp_path / "model"}',
      f'--workdir={tmp_path / "run"}',
      f'--input={tmp_path / "large.jpg"}',
    ],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  assert process.returncode == 0
  folder = tmp_path / 'run' / 'predictions'
  results = json.loads((folder / 'predictions.json').read_text())
  areas = [r['bbox'][2] * r['bbox'][3] for r in results]
  gib = usage.ru_maxrss / 2**20
  print(
    f'{len(areas)} objects of {min(areas) / 1e6:.1f} to '
    f'{max(areas) / 1e6:.1f} megapixels: peak {gib:.2f} GiB, '
    f'{usage.ru_utime + usage.ru_stime:.1f} s of CPU time'
  )
  assert len(areas) == NUM_OBJECTS
  assert min(areas) > 4e6
  # Pillow warns of more than 89 megapixels.
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None)
  with Image.open(folder / 'large.png') as image:
    assert image.size == (WIDTH, HEIGHT)
  # Measured: 2.0. The picture has 0.3 GiB, the program without it 0.6.
  assert gib < 2.25
