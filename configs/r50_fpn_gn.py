"""Mask R-CNN R50-FPN with group norm on COCO, the 1x schedule.

  python -m maskrcnn_jax.main --config=configs/r50_fpn_gn.py --workdir=DIR \
      --init_from=CHECKPOINT

Backbone, pyramid, box head and mask head have group norm. The box head has four
convolutions and one fully connected layer, as in NVIDIA's
`gn_baselines/e2e_mask_rcnn_R_50_FPN_Xconv1fc_1x_gn.yaml` and in detectron2's
`Misc/mask_rcnn_R_50_FPN_3x_gn`. The schedule, the data and the arguments
:legacy and :2014 are those of r50_fpn. CHECKPOINT is Caffe2's R-50-GN.pkl,
converted by `convert_weights`. With :legacy the stride is in the 1x1
convolutions, as in NVIDIA's file, although R-50-GN.pkl was trained with the
stride in the 3x3 convolutions.

Hardware: 8 GPUs. Not run here, and no AP of this schedule is published. After
twice as many steps, maskrcnn-benchmark reaches box AP .402 and mask AP .360,
and Detectron .403 and .357.
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
  # The pixels that R-50-GN.pkl was trained on.
  config.data.pixel_mean = (122.7717, 115.9465, 102.9801)
  config.data.pixel_std = (1.0, 1.0, 1.0)
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
  return config
