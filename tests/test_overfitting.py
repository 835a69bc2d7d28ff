"""Tests that a narrow model of each architecture learns eight drawn images.

The models are trained and evaluated on the same images, from random weights. A
part of a model that learns nothing, or boxes and masks that are shifted against
the image, keep the AP far below the limit.
"""

import json

import pytest
import tiny

from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.data.shapes import write_shapes
from maskrcnn_jax.training.run import train

LEAST_AP = 0.9


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """A function that draws eight images and returns the folder of the set."""

  def draw(size):
    folder = tmp_path_factory.getbasetemp() / f'eight_{size}'
    if not folder.is_dir():
      write_shapes(folder, num_train=8, num_val=1, image_size=size, seed=0)
    return folder

  return draw


def overfitting(recipe, data, size, num_steps):
  """Returns a recipe that trains a narrow model on a set until it knows it."""
  config = read_recipe(recipe).config
  tiny.narrow(config, 32)
  # The pyramid and the heads need some channels to remember eight images.
  config.model.update(fpn_channels=64, mask_channels=64)
  # Basic blocks have no groups and cannot be dilated.
  has_bottlenecks = config.model.groups > 1 or config.model.body == 'dc5'
  config.model.depth = 50 if has_bottlenecks else 18
  config.freeze_at = 0
  config.data.update(
    short_side=size,
    long_side=size,
    padded_sizes=((size, size),),
    flip_probability=0.0,
  )
  for part in (config.data.train, config.data.eval):
    part.images = str(data / 'images')
    part.annotations = str(data / 'instances_train.json')
  config.train.update(
    batch_size=4,
    reference_batch_size=4,
    num_steps=num_steps,
    checkpoint_every=num_steps,
  )
  config.optimizer.update(
    learning_rate=0.02,
    warmup_steps=20,
    warmup_factor=0.1,
    decay_steps=(num_steps * 3 // 4, num_steps * 9 // 10),
  )
  config.eval.batch_size = 4
  if config.model.body == 'dc5':
    # SGD learns the boxes too slowly from random weights: the pooled features
    # of a RoI are 7x7x1024 numbers, behind 50 layers.
    config.model.update(norm='group', box_features=256)
    config.roi.num_samples = 64
    config.optimizer.update(name='adamw', learning_rate=0.0005)
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  ('recipe', 'size', 'num_steps'),
  [
    ('r50_fpn', 64, 500),
    # Groups of few channels learn more slowly.
    ('x101_32x8d_fpn', 64, 800),
    ('r50_fpn_gn_scratch', 64, 500),
    ('faster_rcnn_r50_fpn', 64, 500),
    ('rpn_r50_fpn', 64, 500),
    # A cell of the only level is 16 pixels wide. In images of 128 pixels, even
    # the targets of the masks, 14x14 cells, reach only a mask AP of .88.
    ('r50_c4', 256, 800),
    ('r50_dc5', 128, 800),
    # A cell is 32 pixels wide.
    ('r50_c5', 256, 800),
    ('faster_rcnn_r50_c4', 128, 800),
  ],
)
def test_a_narrow_model_learns_eight_images(
  recipe, size, num_steps, images, tmp_path
):
  config = overfitting(recipe, images(size), size, num_steps)
  train(config, tmp_path)
  results = json.loads(
    (tmp_path / 'inference' / 'coco_results.json').read_text('utf-8')
  )
  match config.model.output:
    case 'proposals':
      # The mean recall over IoU thresholds from .5 to .95 with 100 proposals.
      figures = [results['proposals']['stats']['AR@100']]
    case 'boxes':
      figures = [results['bbox']['stats']['AP']]
    case 'masks':
      figures = [results[kind]['stats']['AP'] for kind in ('bbox', 'segm')]
  assert min(figures) >= LEAST_AP, figures
