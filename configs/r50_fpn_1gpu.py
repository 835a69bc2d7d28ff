"""Mask R-CNN R50-FPN on COCO at 4 images a step, for one GPU.

  python -m maskrcnn_jax.main --config=configs/r50_fpn_1gpu.py --workdir=DIR \
      --init_from=CHECKPOINT

The model, the data and the arguments :legacy and :2014 are those of r50_fpn.
The schedule is that of NVIDIA's `e2e_mask_rcnn_R_50_FPN_1x_1GPU.yaml`. The
second decay of that file is at the last step, so it has no effect.

Hardware: 1 GPU of 16 GB. Not run here, and NVIDIA publishes no AP of this
schedule.
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
  config.train.batch_size = 4
  config.train.reference_batch_size = 4
  config.train.num_steps = 360_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.005
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (240_000, 360_000)
  config.eval.batch_size = 1  # as in NVIDIA's file
  if is_legacy:
    use_legacy(config)
    # NVIDIA's program keeps the best 2000 proposals of the 4 images of a GPU.
    config.rpn.train.num_proposals = 500
  return config
