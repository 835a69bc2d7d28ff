"""Mask R-CNN R50-FPN on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r50_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

COCO 2017 is expected in data/coco, with the folders that its archives unpack
to. --config=configs/r50_fpn.py:2014 expects COCO 2014 there, with the files
instances_valminusminival2014.json and instances_minival2014.json, which are not
in its archives: README.md says where they come from. It trains on train2014 and
valminusminival, which are the images of train2017, and is evaluated on minival,
which is val2017. For another place give --config.data.train.images=DIR and the
other keys of config.data. The stem and layer1 are frozen, so a training needs
pretrained weights, for example --init_from=torchvision:resnet50.

--config=configs/r50_fpn.py:legacy trains as NVIDIA's Mask R-CNN For PyTorch
does, with `geometry=legacy` and the stride in the 1x1 convolutions. CHECKPOINT
is then Caffe2's R-50.pkl, catalog://ImageNetPretrained/MSRA/R-50. Arguments are
joined by a comma, :legacy,2014.

Hardware: 8 GPUs. This recipe has not been run here, and no result of exactly
this recipe is published. Expected with either year: at least box AP .378 and
mask AP .349, which detectron2 publishes for its
`Detectron1-Comparisons/mask_rcnn_R_50_FPN_noaug_1x`. That recipe has the same
schedule, image sizes and samples in a cell, but smooth L1 losses and a RoIAlign
that is not aligned. detectron2's .386 and .352 for `mask_rcnn_R_50_FPN_1x` use
short sides from 640 to 800.

Expected with :legacy: NVIDIA's .377 and .342, plus or minus .004
(maskrcnn-benchmark publishes .378 and .342). Both trained on the sets of :2014.
"""

import ml_collections

from maskrcnn_jax.config import (
  coco_arguments,
  default_config,
  use_coco,
  use_legacy,
)


def get_config(arguments: str = '2017') -> ml_collections.ConfigDict:
  """Returns the recipe for the arguments that follow its name.

  Args:
    arguments: '2017' or '2014', the year of COCO; 'legacy', the conventions of
      NVIDIA's program; or both, separated by a comma.
  """
  year, is_legacy = coco_arguments(arguments)
  config = default_config()
  use_coco(config, year)
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
  if is_legacy:
    use_legacy(config)
  # The published values above. The tolerance is four standard deviations of
  # NVIDIA's five runs.
  config.expected.box_ap = (0.377 if is_legacy else 0.378, 0.004)
  config.expected.mask_ap = (0.342 if is_legacy else 0.349, 0.004)
  return config
