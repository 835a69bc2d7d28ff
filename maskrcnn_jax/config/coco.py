"""The parts that all recipes for COCO have in common.

A recipe for COCO is given as RECIPE:ARGUMENTS, for example r50_fpn:legacy,2014.
"""

from typing import NamedTuple

import ml_collections

YEARS = ('2014', '2017')


class CocoArguments(NamedTuple):
  """The arguments of a recipe for COCO."""

  year: str  # year of the COCO data, '2014' or '2017'
  is_legacy: bool  # whether the recipe follows NVIDIA's program exactly


def coco_arguments(arguments: str) -> CocoArguments:
  """Reads the arguments of a recipe for COCO.

  Args:
    arguments: '2014' or '2017', the year of the COCO data; 'legacy'; or both,
      separated by a comma. Without a year it is 2017.

  Raises:
    ValueError: If there is another word, or a second year.
  """
  words = arguments.split(',')
  years = [word for word in words if word in YEARS]
  others = [word for word in words if word not in YEARS]
  if len(years) > 1 or others not in ([], ['legacy']):
    raise ValueError(
      f'{arguments!r} is not an argument of this recipe; give the year of '
      "COCO, 2014 or 2017, or legacy for the conventions of NVIDIA's program, "
      'or both, for example legacy,2014.'
    )
  return CocoArguments(year=(years or ['2017'])[0], is_legacy=bool(others))


def use_coco(config: ml_collections.ConfigDict, year: str) -> None:
  """Sets the data of a recipe to COCO, and the batch of the evaluation to 8.

  Args:
    config: The recipe; it is changed.
    year: '2014' or '2017'. The folder data/coco has the files that the archives
      of this year unpack to.
  """
  for part, name in (('train', f'train{year}'), ('eval', f'val{year}')):
    config.data[part].images = f'data/coco/{name}'
    config.data[
      part
    ].annotations = f'data/coco/annotations/instances_{name}.json'
  config.eval.batch_size = 8


def use_legacy(config: ml_collections.ConfigDict) -> None:
  """Gives a recipe the conventions of NVIDIA's program and of Caffe2's weights.

  These are the box conventions `legacy`, the stride of a bottleneck block in
  its first 1x1 convolution, and frozen batch norm without an epsilon. They fit
  the weights `R-50.pkl` and `R-101.pkl`, which Microsoft Research Asia trained.

  Args:
    config: The recipe; it is changed.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, config/defaults.py
    (MODEL.RESNETS.STRIDE_IN_1X1) and layers/batch_norm.py.
  """
  config.geometry = 'legacy'
  config.model.stride_in_1x1 = True
  config.model.norm_eps = 0.0
