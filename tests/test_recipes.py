"""Tests of complete small trainings with each recipe for COCO.

The recipes are reduced in size: narrow layers, images of 64 x 64 pixels and few
boxes. The bodies, the norms, the numbers of layers, the heads, the losses and
the schedules stay those of the recipes.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe import packaged_recipes, read_recipe
from maskrcnn_jax.data.source import CocoFiles
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.rcnn import Rcnn

FOR_COCO = [
  name
  for name in packaged_recipes()
  if 'coco' in read_recipe(name).config.data.train.images
]
LOSSES = {
  'proposals': {'loss_objectness', 'loss_rpn_box_reg'},
  'boxes': {
    'loss_objectness',
    'loss_rpn_box_reg',
    'loss_classifier',
    'loss_box_reg',
  },
}
LOSSES['masks'] = LOSSES['boxes'] | {'loss_mask'}
FILES = {
  'proposals': {'proposals.json'},
  'boxes': {'bbox.json'},
  'masks': {'bbox.json', 'segm.json'},
}

# Rows of the predictors that detectron2 does not have: the box (4) of the
# background, from 1024 or 2048 features, and its mask, from 256. Each row has a
# bias.
BOX_OF_BACKGROUND = 4 * (1024 + 1)
BOX_OF_BACKGROUND_C4 = 4 * (2048 + 1)
MASK_OF_BACKGROUND = 256 + 1

# Numbers of parameters of the peers' own networks for COCO's 80 classes,
# without the frozen batch norm. The first four are torchvision's.
PEER_PARAMETERS = {
  'r50_fpn': 44_347_573,
  'r101_fpn': 63_287_477,
  'x101_32x8d_fpn': 107_432_117,
  'faster_rcnn_r50_fpn': 41_704_036,
  'r50_c4': 35_909_612 + BOX_OF_BACKGROUND_C4 + MASK_OF_BACKGROUND,
  'r50_dc5': 172_353_516 + BOX_OF_BACKGROUND + MASK_OF_BACKGROUND,
  'r50_fpn_gn': 45_711_152 + BOX_OF_BACKGROUND + MASK_OF_BACKGROUND,
  'faster_rcnn_r50_c4': 33_791_644 + BOX_OF_BACKGROUND_C4,
  'rpn_r50_fpn': 27_393_231,
}


@pytest.mark.parametrize('recipe', PEER_PARAMETERS)
def test_the_number_of_parameters_is_that_of_the_peer(recipe):
  rcnn = Rcnn.from_config(
    read_recipe(recipe).config, num_classes=81, dtype=jnp.float32
  )
  params = jax.eval_shape(rcnn.init, jax.random.key(0))['params']
  assert PEER_PARAMETERS[recipe] == sum(
    math.prod(x.shape) for x in jax.tree.leaves(params)
  )


def reduced(recipe, data):
  """Returns a recipe for two steps of a narrow model on a drawn data set."""
  config = tiny.with_data(read_recipe(recipe).config, data)
  tiny.narrow(config, 32 if config.model.norm == 'group' else 8)
  config.detections.min_score = 0.0
  config.train.batch_size = 2
  # Random weights without a norm need pixels of about 1. With the deviation of
  # `legacy`, which is 1, they would be about 100, and so would all features.
  if config.model.norm != 'group':
    config.data.pixel_std = (60.0, 60.0, 60.0)
  # The schedule stays that of the recipe, at its first steps.
  config.train.auto_scale = False
  config.train.num_steps = 2
  config.train.log_every = 1
  config.eval.batch_size = 2
  check_config(config)
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe', [*FOR_COCO, 'r50_fpn:legacy', 'r50_c4:legacy', 'r50_fpn_gn:legacy']
)
def test_a_recipe_trains_and_its_checkpoint_finds_the_same(
  recipe, tiny_data, tmp_path
):
  config = reduced(recipe, tiny_data)
  figures = tiny.run_training(config, tmp_path / 'run', skip_test=False)
  assert len(figures) == 2
  output = config.model.output
  for step in figures:
    assert {name for name in step if name.startswith('loss_')} >= LOSSES[output]
    assert all(np.isfinite(value) for value in step.values())
  folder = tmp_path / 'run' / 'inference'
  assert {path.name for path in folder.iterdir()} >= FILES[output]

  # An evaluation of the checkpoint writes the same files.
  evaluate(
    load_detector(tmp_path / 'run', None),
    source=CocoFiles(config.data.eval.images, config.data.eval.annotations),
    workdir=tmp_path / 'again',
    config=config,
  )
  for name in FILES[output]:
    records, again = (
      json.loads((path / name).read_text('utf-8'))
      for path in (folder, tmp_path / 'again' / 'inference')
    )
    assert records and records == again
