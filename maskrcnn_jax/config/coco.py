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
      of this year unpack to. For 2014 it also has the annotations of
      valminusminival and minival, two parts of val2014: the former is trained
      on together with train2014, and the latter is evaluated on. These are the
      images of train2017 and val2017.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, config/paths_catalog.py and
    configs/e2e_mask_rcnn_R_50_FPN_1x.yaml, DATASETS.
  """
  folder = 'data/coco'
  file = f'{folder}/annotations/instances_{{}}{year}.json'
  train, evaluation = config.data.train, config.data.eval
  evaluation.images = f'{folder}/val{year}'
  if year == '2014':
    train.images = (f'{folder}/train2014', f'{folder}/val2014')
    train.annotations = tuple(map(file.format, ('train', 'valminusminival')))
    evaluation.annotations = file.format('minival')
  else:
    train.images = f'{folder}/train{year}'
    train.annotations = file.format('train')
    evaluation.annotations = file.format('val')
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
