"""A region proposal network R50-FPN on COCO, the 1x schedule.

  python -m maskrcnn_jax.main --config=configs/rpn_r50_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

The model proposes boxes, without classes and masks, and its evaluation prints
their recall. The schedule of 16 images a step, the data, the weights and the
arguments :legacy and :2014 are those of r50_fpn.

Hardware: 8 GPUs. Not run here, and no result of exactly this recipe is
published: detectron2's average recall at 1000 proposals, .580 for
`rpn_R_50_FPN_1x`, is of a training with short sides from 640 to 800.
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
  config.model.output = 'proposals'
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
