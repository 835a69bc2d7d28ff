"""Mask R-CNN R50-C4 on COCO, the 1x schedule at 8 images a step.

  python -m maskrcnn_jax.main --config=configs/r50_c4.py \
      --workdir=DIR --init_from=CHECKPOINT

The model has no pyramid: RoIs are pooled from the fourth level, and the last
stage of the ResNet is the first part of the heads. The data and the arguments
:legacy and :2014 are those of r50_fpn. CHECKPOINT is a ResNet-50; with :legacy
it is Caffe2's R-50.pkl.

Hardware: 8 GPUs. Not run here. Expected with :legacy: box AP .356 and mask AP
.315, which maskrcnn-benchmark publishes. Without :legacy no result of this
recipe is published: detectron2's .368 and .322 use 16 images a step with short
sides from 640 to 800.
"""

import ml_collections

from maskrcnn_jax.config import (
  c4_config,
  coco_arguments,
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
  config = c4_config()
  use_coco(config, year)
  # As many samples in each cell as it is wide.
  config.roi.sampling_ratio = 0
  config.train.batch_size = 8
  config.train.reference_batch_size = 8
  config.train.num_steps = 180_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.01
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (120_000, 160_000)
  if is_legacy:
    use_legacy(config)
    # The published values above, with the tolerance of r50_fpn.
    config.expected.box_ap = (0.356, 0.004)
    config.expected.mask_ap = (0.315, 0.004)
  return config
