"""Mask R-CNN R101-C5 on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r101_c5.py \
      --workdir=DIR --init_from=CHECKPOINT

The model has no pyramid: RoIs are pooled from the last stage of the ResNet, at
stride 32, and the heads are those of r50_fpn. NVIDIA's program calls this body
R-101-C5; it comes with no recipe for it. The schedule is that of r50_fpn.
The data and the arguments :legacy and :2014 are those of r50_fpn. CHECKPOINT is
a ResNet-101; with :legacy it is Caffe2's R-101.pkl.

Hardware: 8 GPUs. Not run here, and no AP of this model is published.
"""

import ml_collections

from maskrcnn_jax.config import (
  c5_config,
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
  config = c5_config(dilated=False)
  use_coco(config, year)
  config.model.depth = 101
  # As many samples in each cell as it is wide.
  config.roi.sampling_ratio = 0
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
  return config
