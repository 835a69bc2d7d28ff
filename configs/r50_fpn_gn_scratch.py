"""Mask R-CNN R50-FPN with group norm on COCO from random weights, 3x.

  python -m maskrcnn_jax.main --config=configs/r50_fpn_gn_scratch.py \
      --workdir=DIR

All layers are trained, so no pretrained weights are needed. The model is that
of r50_fpn_gn; the data and the arguments :legacy and :2014 are those of
r50_fpn. The schedule is that of NVIDIA's
`gn_baselines/scratch_e2e_mask_rcnn_R_50_FPN_Xconv1fc_3x_gn.yaml`.

Hardware: 8 GPUs. Not run here. Expected with :legacy: box AP .389 and mask AP
.351, which maskrcnn-benchmark publishes; Detectron publishes .395 and .352.
Without :legacy no result of this recipe is published: detectron2's .399 and
.366 for `Misc/scratch_mask_rcnn_R_50_FPN_3x_gn` use short sides from 640 to
800.
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
  config.model.norm = 'group'
  config.model.box_convs = 4
  config.model.box_fcs = 1
  config.freeze_at = 0
  # Faster than the preset's number of samples, which grows with the cell.
  config.roi.sampling_ratio = 2
  config.train.batch_size = 16
  config.train.reference_batch_size = 16
  config.train.num_steps = 270_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (210_000, 250_000)
  if is_legacy:
    use_legacy(config)
    # The published values above, with the tolerance of r50_fpn.
    config.expected.box_ap = (0.389, 0.004)
    config.expected.mask_ap = (0.351, 0.004)
  return config
