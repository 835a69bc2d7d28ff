"""Tests of the comparison of learning with torchvision.

The slow tests need a Python with torch, torchvision and pycocotools. The
environment variable MASKRCNN_TORCH_PYTHON names it, and
MASKRCNN_TORCH_LIBRARIES a folder for its LD_LIBRARY_PATH. Without them it is
looked for in the folder `tv` beside this checkout.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
import pytest

from maskrcnn_jax.config import stored_config
from maskrcnn_jax.data.shapes import write_shapes
from maskrcnn_jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))

import learn_beside_torchvision as script  # noqa: E402
from learning import crops, figures  # noqa: E402

FOLDER = ROOT.parent / 'tv'
PYTHON = os.environ.get('MASKRCNN_TORCH_PYTHON', str(FOLDER / 'bin' / 'python'))
LIBRARIES = os.environ.get('MASKRCNN_TORCH_LIBRARIES', str(FOLDER / 'stub'))

needs_torchvision = pytest.mark.skipif(
  not pathlib.Path(PYTHON).exists(),
  reason='needs a Python with torchvision: MASKRCNN_TORCH_PYTHON',
)


def test_compare_draws_counts_the_standard_errors_of_the_draws():
  # Batch means 2 and 6, then 3 and 5. Variances of the draws: 2 and 2, 0 and 8.
  # The error is sqrt((2 + 2 + 0 + 8) / 2) / 2 = sqrt(1.5).
  mine = np.array([[1.0, 3.0], [5.0, 7.0]])
  theirs = np.array([[3.0, 3.0], [3.0, 7.0]])
  found = figures.compare_draws(mine + 1, theirs)
  assert found['ours'] == 5 and found['torchvision'] == 4
  assert found['relative'] == 0.25
  assert found['z'] == pytest.approx(1 / 1.5**0.5)
  assert found['agrees']
  assert not figures.compare_draws(mine + 2.5, theirs)['agrees']


def test_compare_draws_allows_rounding_only_if_nothing_is_random():
  same = np.full((3, 4), 0.7)
  assert figures.compare_draws(same * (1 + 1e-6), same)['agrees']
  found = figures.compare_draws(same * 1.001, same)
  assert found['z'] == np.inf and not found['agrees']


def test_compare_draws_finds_a_bias_of_five_percent():
  rng = np.random.default_rng(0)
  theirs = rng.normal(1, 0.1, (12, 10))
  assert not figures.compare_draws(rng.normal(1.05, 0.1, (12, 10)), theirs)[
    'agrees'
  ]


def test_window_scores_compare_the_means_of_trainings():
  # Means of the windows of two steps: (2, 4) and (4, 6), then (0, 2) and
  # (2, 4). In both windows the difference is 2, and each variance is 2.
  mine = np.array([[1.0, 3.0, 5.0], [3.0, 5.0, 7.0]])
  theirs = np.array([[-1.0, 1.0, 3.0], [1.0, 3.0, 5.0]])
  scores = figures.window_scores(
    figures.window_means(mine, 2), figures.window_means(theirs, 2)
  )
  assert_allclose(scores, [2 / 2**0.5, 2 / 2**0.5])
  assert figures.share_within(scores) == 1


def test_chances_tell_a_difference_from_noise():
  rng = np.random.default_rng(0)
  # Curves that wander, so that neighbouring windows resemble each other.
  curves = rng.normal(0, 1, (24, 60)).cumsum(axis=1)
  theirs, mine = curves[:16], curves[16:]
  same = figures.chances(mine, theirs)
  assert same['as few windows'] > 0.05
  # A single window is within the limit or not: with 14 degrees of freedom,
  # Student's t is beyond 2 in 6.5 % of the cases.
  flat = np.repeat(rng.normal(0, 1, (16, 1)), 3, axis=1)
  assert 0.02 < figures.chances(flat[:8], flat)['torchvision misses'] < 0.13
  # Each step of the difference is four standard deviations of a training.
  shifted = mine + 4 * theirs.std(axis=0)
  assert figures.chances(shifted, theirs)['as few windows'] < 0.02


def test_best_crop_shows_the_most_objects_and_drops_slivers():
  masks = np.zeros((4, 160, 192), np.uint8)
  masks[0, 40:50, 100:110] = 1
  # A crop of the columns 0 to 127 shows neither of the next two objects.
  masks[1, 10:20, 130:140] = 1
  masks[2, 60:70, 150:160] = 1
  # The crop of the columns 64 to 191 shows two columns of this object.
  masks[3, 80:120, 50:66] = 1
  row, column, objects = crops.best_crop(masks)
  assert (row, column) == (0, 32)
  assert [i for i, _ in objects] == [0, 1, 2, 3]
  assert_array_equal(objects[2][1], masks[2, :128, 32:160])
  masks[0] = 0
  masks[1] = 0
  masks[2, :, 170:180] = 1  # Only the crop from column 64 shows all of it.
  row, column, objects = crops.best_crop(masks[:, :, 64:])
  assert (row, column) == (0, 0)
  assert [i for i, _ in objects] == [2]


def test_draw_order_shows_each_image_once_in_an_epoch():
  order = script.draw_order(6, 7, seed=0)
  assert len(order) == 7 and all(len(batch) == 2 for batch in order)
  for start in (0, 3):
    assert sorted(sum(order[start : start + 3], [])) == [0, 1, 2, 3, 4, 5]


def test_curves_are_drawn_in_the_picture():
  rng = np.random.default_rng(0)
  curves = {
    name: rng.normal(loss, 0.1, (3, 30))
    for name, loss in (('ours', 3), ('torchvision', 2), ('control', 1))
  }
  (axes,) = figures.loss_figure(curves, 10).axes
  for line, (name, curve) in zip(axes.lines, curves.items(), strict=True):
    assert line.get_label() == figures.NAMES[name]
    # The first window has the steps 1 to 10.
    assert line.get_xdata()[0] == 5.5
    assert line.get_ydata()[0] == pytest.approx(curve[:, :10].mean())
    assert len(line.get_ydata()) == 21


@pytest.mark.slow
@needs_torchvision
def test_both_programs_agree_on_losses_counts_and_ap(tmp_path):
  write_shapes(
    tmp_path / 'data', num_train=30, num_val=20, image_size=160, seed=0
  )
  images = tmp_path / 'data' / 'images'
  subprocess.run(
    [
      sys.executable,
      'scripts/learn_beside_torchvision.py',
      f'--torch_python={PYTHON}',
      f'--torch_libraries={LIBRARIES}',
      f'--images={images}',
      f'--annotations={tmp_path}/data/instances_train.json',
      f'--eval_images={images}',
      f'--eval_annotations={tmp_path}/data/instances_val.json',
      f'--out={tmp_path}/out',
      *('--seeds=2', '--steps=30', '--window=5', '--crops=8'),
      *('--eval_crops=4', '--batches=4', '--draws=6'),
    ],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    check=True,
  )
  found = json.loads((tmp_path / 'out' / 'figures.json').read_text())
  for test in found['sharp'].values():
    assert test['draws'] == 24
    # Two proposals that overlap by almost exactly the threshold of the NMS may
    # give one program another RoI.
    assert test['draws with other counts'] <= 2
    for name, row in test['losses'].items():
      # 12 figures are compared; by chance alone, one in 1,000 runs has one over
      # 4 standard errors.
      assert abs(row['z']) < 4, name
      assert abs(row['relative']) < 0.1, name
  assert found['long']['largest difference of an AP'] < 1e-3
  with Image.open(tmp_path / 'out' / 'curves.png') as image:
    assert image.size == (900, 520)


@pytest.mark.slow
@needs_torchvision
def test_an_exported_model_has_the_same_ap_in_torchvision(tmp_path):
  data = tmp_path / 'data'
  write_shapes(data, num_train=120, num_val=16, image_size=160, seed=0)

  def call(module, *arguments):
    subprocess.run(
      [sys.executable, '-m', f'maskrcnn_jax.{module}', *arguments],
      cwd=ROOT,
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      check=True,
    )

  held_out = [
    f'--config.data.eval.images={data}/images',
    f'--config.data.eval.annotations={data}/instances_val.json',
  ]
  call(
    'main',
    '--config=configs/shapes.py',
    f'--workdir={tmp_path}/run',
    '--skip_test',
    f'--config.data.train.images={data}/images',
    f'--config.data.train.annotations={data}/instances_train.json',
    *held_out,
    '--config.geometry=torchvision',
    '--config.model.norm=frozen_batch',
    '--config.model.width=64',
    '--config.model.box_fcs=2',
    '--config.train.batch_size=4',
    '--config.train.auto_scale=False',
    '--config.train.num_steps=200',
    '--config.optimizer.learning_rate=0.01',
    '--config.optimizer.decay_steps=()',
  )
  call(
    'main',
    '--mode=eval',
    f'--workdir={tmp_path}/eval',
    f'--checkpoint={tmp_path}/run',
    *held_out,
    # torchvision pads images to multiples of 32 pixels only.
    '--config.data.padded_sizes=((128,128),(128,160),(160,128))',
  )
  call(
    'convert_weights',
    f'{tmp_path}/run',
    f'{tmp_path}/exported.pth',
    '--to=torchvision',
  )
  mine = json.loads(
    (tmp_path / 'eval' / 'inference' / 'coco_results.json').read_text()
  )
  metadata = checkpoint.read_metadata(
    checkpoint.find_checkpoint(tmp_path / 'run')
  )
  config = stored_config(metadata.recipe)
  script.Torchvision(PYTHON, LIBRARIES, tmp_path).run(
    [
      {
        'task': 'evaluate',
        'settings': script.torchvision_settings(config, 4),
        'weights': tmp_path / 'exported.pth',
        'images': data / 'images',
        'annotations': data / 'instances_val.json',
        'out': tmp_path / 'ap.json',
      }
    ]
  )
  theirs = json.loads((tmp_path / 'ap.json').read_text())
  for kind in ('bbox', 'segm'):
    assert theirs[kind][0] > 0.02  # The model has learnt something.
    assert_allclose(mine[kind]['stats']['AP'], theirs[kind][0], atol=1e-3)
