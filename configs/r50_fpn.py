"""Mask R-CNN R50-FPN on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r50_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

COCO 2017 is expected in data/coco, with the folders that its archives unpack
to; --config=configs/r50_fpn.py:2014 expects COCO 2014 there. For another place
give --config.data.train.images=DIR and the other keys of config.data. The stem
and layer1 are frozen, so a training needs pretrained weights.

Hardware: 8 GPUs. This recipe has not been run here, and no result of exactly
this recipe is published. Expected on COCO 2017: at least box AP .378 and mask
AP .349, which detectron2 publishes for its
`Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x`. That recipe has the same
schedule, image sizes and samples in a cell, but smooth L1 losses and a RoIAlign
that is not aligned. Other published results differ in more: detectron2's .386
and .352 for `mask_rcnn_R_50_FPN_1x` use short sides from 640 to 800;
maskrcnn-benchmark's .378 and .342 and NVIDIA's .377 and .342 use the
conventions of `geometry=legacy`. No result is published for a training on
train2014 that is evaluated on val2014.
"""

import ml_collections

from maskrcnn_jax.config import default_config


def get_config(year: str = '2017') -> ml_collections.ConfigDict:
  """Returns the recipe for the COCO data of a year.

  Args:
    year: '2014' or '2017'.
  """
  if year not in ('2014', '2017'):
    raise ValueError(f'r50_fpn:{year}: give the year of COCO, 2014 or 2017.')
  config = default_config()
  for part, name in (('train', f'train{year}'), ('eval', f'val{year}')):
    config.data[part].images = f'data/coco/{name}'
    config.data[
      part
    ].annotations = f'data/coco/annotations/instances_{name}.json'
  # Faster than the preset's number of samples, which grows with the cell.
  config.roi.sampling_ratio = 2
  config.train.batch_size = 16
  config.train.reference_batch_size = 16
  config.train.num_steps = 90_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (60_000, 80_000)
  if year == '2017':
    # The published values above. The tolerance is four standard deviations of
    # NVIDIA's five runs of a similar recipe.
    config.expected.box_ap = (0.378, 0.004)
    config.expected.mask_ap = (0.349, 0.004)
  return config
