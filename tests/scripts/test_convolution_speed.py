"""Tests of the cases of scripts/convolution_speed.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / 'scripts'))

import convolution_speed as script  # noqa: E402


def test_the_costliest_cases_are_those_with_the_most_arithmetic():
  cases = script.costliest_cases(512, 512, 10)
  costs = [case.count * case.flops() for case in cases]
  assert len(cases) == 10 and costs == sorted(costs, reverse=True)
  # Four convolutions of 100 RoIs of 14 x 14 cells; two of level 2.
  assert [(case.name, cost) for case, cost in zip(cases, costs, strict=True)][
    :3
  ] == [
    ('mask_fcn', 4 * 2 * 100 * 14 * 14 * 9 * 256 * 256),
    ('fpn.layer2, rpn', 2 * 2 * 128 * 128 * 9 * 256 * 256),
    ('fc6', 2 * 1000 * 12544 * 1024),
  ]


def test_a_small_image_makes_fc6_costlier_than_the_pyramid():
  names = [case.name for case in script.costliest_cases(256, 256, 3)]
  assert names == ['mask_fcn', 'fc6', 'conv5_mask']
