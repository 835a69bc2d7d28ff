"""Tests of the learning rates of the recipes for COCO.

The rates are worked out by hand from the YAML files and the README of NVIDIA's
Mask R-CNN For PyTorch: SOLVER.BASE_LR, STEPS, MAX_ITER, IMS_PER_BATCH and
WARMUP_*. The defaults of the warm-up are 500 steps from a third of the rate.
"""

import pytest

from maskrcnn_jax.config import scaled_to_batch
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.training.optimizer import make_recipe_optimizer

# (recipe, devices, images for each device): (number of steps, {step: rate}).
SCHEDULES = {
  # e2e_mask_rcnn_R_50_FPN_1x.yaml: 16 images, 0.02, 60k, 80k, 90k.
  ('r50_fpn', 8, 2): (
    90_000,
    {
      0: 0.02 / 3,
      250: 0.02 * 2 / 3,  # halfway from 1/3 to 1
      500: 0.02,
      59_999: 0.02,
      60_000: 0.002,
      80_000: 0.0002,
      89_999: 0.0002,
    },
  ),
  # The batch of all devices counts, not their number.
  ('r50_fpn', 1, 16): (90_000, {0: 0.02 / 3, 500: 0.02, 60_000: 0.002}),
  ('r50_fpn', 2, 8): (90_000, {0: 0.02 / 3, 500: 0.02, 60_000: 0.002}),
  # ... at half of the batch: half of the rate, twice the steps.
  ('r50_fpn', 4, 2): (
    180_000,
    {0: 0.01 / 3, 500: 0.01 * 2 / 3, 1_000: 0.01, 120_000: 0.001},
  ),
  # ... at 32 images a step: 625 steps from 0.01, as the README advises.
  ('r50_fpn', 8, 4): (
    45_000,
    {
      0: 0.0004,
      125: 0.04 * 0.208,  # 0.01 * 0.8 + 0.2
      625: 0.04,
      29_999: 0.04,
      30_000: 0.004,
      40_000: 0.0004,
    },
  ),
  ('r50_fpn', 8, 8): (
    22_500,
    {0: 0.0008, 625: 0.08, 15_000: 0.008, 20_000: 0.0008},
  ),
  ('r50_fpn', 8, 12): (
    15_000,
    {0: 0.0012, 625: 0.12, 10_000: 0.012, 13_333: 0.0012},
  ),
  # The file for V100 GPUs of June 2020, with the README's advice.
  ('r50_fpn_bs32', 8, 4): (
    45_000,
    {
      0: 0.0004,
      125: 0.04 * 0.208,
      624: 0.04 * (0.01 / 625 + 624 / 625),
      625: 0.04,
      32_999: 0.04,
      33_000: 0.004,
      44_000: 0.0004,
    },
  ),
  # ..._ampere_bs64.yaml: the rate rises by 1e-4 a step, 800 * 1e-4 in all.
  ('r50_fpn_bs64', 8, 8): (
    27_500,
    {
      0: 0.0,
      1: 1e-4,
      400: 0.04,
      799: 0.0799,
      800: 0.08,
      17_999: 0.08,
      18_000: 0.008,
      24_000: 0.0008,
    },
  ),
  # ... at twice the batch: twice the rate in half of the steps.
  ('r50_fpn_bs64', 8, 16): (
    13_750,
    {0: 0.0, 200: 0.08, 400: 0.16, 9_000: 0.016, 12_000: 0.0016},
  ),
  # The file of 2022: 0.12 - 800 * 1e-4 = 0.04 at the first step.
  ('r50_fpn_bs96', 8, 12): (
    16_667,
    {0: 0.04, 400: 0.08, 800: 0.12, 12_000: 0.012, 16_000: 0.0012},
  ),
  # ..._1GPU.yaml: the second decay, at 360k, is after the last step.
  ('r50_fpn_1gpu', 1, 4): (
    360_000,
    {0: 0.005 / 3, 500: 0.005, 240_000: 0.0005, 359_999: 0.0005},
  ),
  ('r101_fpn', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('x101_32x8d_fpn', 8, 1): (
    180_000,
    {0: 0.01 / 3, 500: 0.01, 119_999: 0.01, 120_000: 0.001, 160_000: 0.0001},
  ),
  ('r50_c5', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('r101_c5', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('r50_dc5', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('r50_c4', 8, 1): (
    180_000,
    {0: 0.01 / 3, 500: 0.01, 119_999: 0.01, 120_000: 0.001, 160_000: 0.0001},
  ),
  ('r101_c4', 8, 1): (180_000, {500: 0.01, 120_000: 0.001, 160_000: 0.0001}),
  ('faster_rcnn_r50_c4', 8, 1): (
    180_000,
    {500: 0.01, 120_000: 0.001, 160_000: 0.0001},
  ),
  ('faster_rcnn_r50_fpn', 8, 2): (
    90_000,
    {500: 0.02, 60_000: 0.002, 80_000: 0.0002},
  ),
  ('rpn_r50_fpn', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('r50_fpn_gn', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  ('r101_fpn_gn', 8, 2): (90_000, {500: 0.02, 60_000: 0.002, 80_000: 0.0002}),
  # scratch_e2e_mask_rcnn_R_50_FPN_Xconv1fc_3x_gn.yaml.
  ('r50_fpn_gn_scratch', 8, 2): (
    270_000,
    {0: 0.02 / 3, 209_999: 0.02, 210_000: 0.002, 250_000: 0.0002},
  ),
}


@pytest.mark.parametrize('argument', ['', ':legacy'])
@pytest.mark.parametrize(('recipe', 'devices', 'each'), SCHEDULES)
def test_the_learning_rate_is_that_of_nvidias_program(
  recipe, devices, each, argument
):
  num_steps, rates = SCHEDULES[recipe, devices, each]
  config = read_recipe(recipe + argument).config
  config.train.batch_size = devices * each
  config, _ = scaled_to_batch(config)
  assert config.train.num_steps == num_steps
  schedule, _ = make_recipe_optimizer(config)
  # Rates are float32, with an error of 1e-8 where two numbers of 0.08 cancel.
  assert {step: float(schedule(step)) for step in rates} == pytest.approx(
    rates, rel=1e-5, abs=2e-8
  )


def test_every_recipe_for_coco_decays_weights_and_not_biases():
  for recipe in {recipe for recipe, _, _ in SCHEDULES}:
    optimizer = read_recipe(recipe).config.optimizer
    assert optimizer.name == 'sgd'
    assert optimizer.momentum == 0.9
    assert optimizer.weight_decay == 1e-4
    assert optimizer.bias_rate_factor == 2.0
