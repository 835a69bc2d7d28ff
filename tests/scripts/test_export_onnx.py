"""Tests of the ONNX file: ONNX Runtime finds what the live model finds.

The slow test needs a Python with torch, torchvision, onnx and
onnxruntime. The environment variable MASKRCNN_TORCH_PYTHON names it, and
MASKRCNN_TORCH_LIBRARIES a folder for its LD_LIBRARY_PATH. Without such a Python
the test is skipped.
"""

import contextlib
import os
import pathlib
import subprocess

import jax
import numpy as np
import parity
import pytest
import tiny

from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.comparison import plain
from maskrcnn_jax.convert_weights.export_weights import export
from maskrcnn_jax.detector import load_detector, to_original
from maskrcnn_jax.export import command_line
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / 'scripts' / 'export_onnx.py'
PYTHON = os.environ.get('MASKRCNN_TORCH_PYTHON', '')

# Runs a model on a picture.
RUN = """
import sys
import numpy as np
import onnxruntime

model, picture, out = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
names = [output.name for output in session.get_outputs()]
image = np.load(picture).transpose(2, 0, 1).astype(np.float32) / 255
np.savez(out, **dict(zip(names, session.run(None, {'image': image}))))
"""


def torch_python(*arguments):
  return subprocess.run(
    [PYTHON, *map(str, arguments)],
    capture_output=True,
    text=True,
    env=os.environ
    | {'LD_LIBRARY_PATH': os.environ.get('MASKRCNN_TORCH_LIBRARIES', '')},
  )


def needs_onnx():
  """Skips the test if there is no Python with torch and ONNX."""
  modules = 'torch, torchvision, onnx, onnxruntime'
  if not PYTHON or torch_python('-c', f'import {modules}').returncode:
    pytest.skip(f'needs a Python with {modules}: MASKRCNN_TORCH_PYTHON')


def save_model(folder, output, key):
  """Writes a checkpoint of a ResNet-18 with random weights.

  Args:
    folder: The folder of the checkpoint.
    output: `model.output` of the recipe.
    key: Random key of the weights.
  """
  config = tiny.get_config()
  config.geometry, config.precision = 'torchvision', 'fp32'
  config.model.update(width=64, box_fcs=2, output=output)
  config.detections.update(max_detections=20)
  config.data.update(
    short_side=96, long_side=128, padded_sizes=((96, 128), (128, 96))
  )
  check_config(config)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=np.float32)
  variables = rcnn.init(key)
  # With the small initial weights, all scores and boxes would be almost equal.
  variables['params'] = jax.tree_util.tree_map_with_path(
    lambda path, x: (
      x * 20 if any(name in str(path) for name in ('cls', 'bbox')) else x
    ),
    variables['params'],
  )
  metadata = checkpoint.Metadata(
    0, plain(config), [[i, f'class {i}'] for i in (1, 2, 3)]
  )
  with contextlib.closing(checkpoint.open_checkpoints(folder)) as manager:
    checkpoint.save_checkpoint(
      manager, model=variables, optimizer=None, metadata=metadata
    )
    manager.wait_until_finished()


@pytest.mark.slow
@pytest.mark.parametrize('output', ['masks', 'boxes'])
def test_onnx_runtime_finds_what_the_live_model_finds(output, key, tmp_path):
  needs_onnx()
  save_model(tmp_path / 'model', output, key)
  folder = tmp_path / 'exported'
  command_line.main(
    [f'--checkpoint={tmp_path / "model"}', f'--out={folder}', '--platforms=cpu']
  )
  export(tmp_path / 'model', folder / 'model.pth', to='torchvision')
  done = torch_python(
    SCRIPT, folder / 'export.json', folder / 'model.pth', folder / 'model.onnx'
  )
  assert done.returncode == 0, done.stderr

  detector = load_detector(tmp_path / 'model')
  # The tracing used a wide picture; this one is upright. Its scale is 0.8,
  # which no float is.
  picture = np.random.default_rng(0).integers(0, 256, (160, 120, 3), np.uint8)
  size, resized = np.array([[160, 120]]), (128, 96)
  batch = parity.make_batch(picture)._replace(
    source_sizes=size.astype(np.int32),
    image_sizes=np.array([resized], np.int32),
  )
  detections = detector.detect(batch, padded_size=(128, 96))
  expected = to_original(
    jax.tree.map(lambda x: np.asarray(x)[0], detections),
    resized,
    row=0,
    original_size=(160, 120),
    mask_threshold=0.5,
    paste_rule='resized',
  )
  np.save(tmp_path / 'picture.npy', picture)
  done = torch_python(
    '-c',
    RUN,
    folder / 'model.onnx',
    tmp_path / 'picture.npy',
    tmp_path / 'found.npz',
  )
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / 'found.npz') as file:
    found = dict(file)
  assert len(expected.scores) == len(found['scores']) == 20
  # Torch's resizing and convolutions round differently. Near-ties of scores may
  # change the order.
  ours, theirs = parity.pair_boxes(expected.boxes, found['boxes'], atol=0.01)
  assert len(ours) >= 19
  same = expected.classes[ours] == found['classes'][theirs]
  assert same.sum() >= 19
  ours, theirs = ours[same], theirs[same]
  assert np.abs(expected.scores[ours] - found['scores'][theirs]).max() < 1e-4
  assert ('masks' in found) == (output == 'masks')
  if output == 'masks':
    from pycocotools import mask as mask_api

    pixels = [mask_api.decode(expected.masks[i]).astype(bool) for i in ours]
    others = found['masks'][theirs, 0] > 0.5
    # Probabilities of almost 0.5 may fall on either side.
    assert (np.array(pixels) != others).mean() < 1e-3


@pytest.mark.slow
def test_models_that_torchvision_does_not_have_are_refused(tmp_path):
  needs_onnx()
  about = tmp_path / 'export.json'
  about.write_text('{"recipe": {"model": {"output": "proposals"}}}')
  done = torch_python(SCRIPT, about, 'model.pth', 'model.onnx')
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and 'box head' in line
