"""Mask R-CNN X101-32x8d-FPN on COCO, the 1x schedule at 8 images a step.

  python -m maskrcnn_jax.main --config=configs/x101_32x8d_fpn.py \
      --workdir=DIR --init_from=CHECKPOINT

The data and the arguments :legacy and :2014 are those of r50_fpn. CHECKPOINT is
a ResNeXt-101 32x8d: torchvision's, detectron2's FAIR/X-101-32x8d.pkl or, with
:legacy, Caffe2's X-101-32x8d.pkl. Its stride is in the 3x3 convolutions, with
:legacy too.

Hardware: 8 GPUs. Not run here. Expected with :legacy: box AP .422 and mask AP
.378, which maskrcnn-benchmark publishes. Without :legacy no result of this
recipe is published: detectron2's .443 and .395 are of a training three times as
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
  config.model.groups = 32
  config.model.group_width = 8
  # Faster than the preset's number of samples, which grows with the cell.
  config.roi.sampling_ratio = 2
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
    config.model.stride_in_1x1 = False
    # NVIDIA's program keeps the best 2000 proposals of the one image of a GPU.
    config.rpn.train.post_nms = 2000
    config.rpn.train.num_proposals = 2000
  if is_legacy:
    # The published values above, with the tolerance of r50_fpn.
    config.expected.box_ap = (0.422, 0.004)
    config.expected.mask_ap = (0.378, 0.004)
  return config
