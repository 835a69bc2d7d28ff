"""Mask R-CNN R50-FPN on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r50_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

The ResNet-50 is frozen up to layer1 and so wants pretrained weights. COCO 2014
instead of 2017: --config.data.root=... is not needed; give the paths of
`data.train` and `data.eval`.

Hardware: written for 8 GPUs. Expected: box AP .377, mask AP .342 with the
published recipe; not run here.
"""

from maskrcnn_jax.config import default_config


def get_config():
  """Returns the recipe."""
  config = default_config()
  config.data.train.images = 'data/coco/train2017'
  config.data.train.annotations = (
      'data/coco/annotations/instances_train2017.json'
  )
  config.data.eval.images = 'data/coco/val2017'
  config.data.eval.annotations = 'data/coco/annotations/instances_val2017.json'

  config.train.batch_size = 16
  config.train.num_steps = 90_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (60_000, 80_000)
  return config
