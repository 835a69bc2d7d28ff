"""Mask R-CNN R101-FPN on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r101_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

The schedule, the data and the arguments :legacy and :2014 are those of r50_fpn.
CHECKPOINT is a ResNet-101; with :legacy it is Caffe2's R-101.pkl.

Hardware: 8 GPUs. Not run here. Expected with :legacy: box AP .401 and mask AP
.361, which maskrcnn-benchmark publishes. Without :legacy no result of this
recipe is published: detectron2's .429 and .386 are of a training three times as
long with short sides from 640 to 800.
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
  config.model.depth = 101
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
    # The published values above, with the tolerance of r50_fpn.
    config.expected.box_ap = (0.401, 0.004)
    config.expected.mask_ap = (0.361, 0.004)
  return config
