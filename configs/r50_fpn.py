"""Mask R-CNN R50-FPN on COCO, the 1x schedule at 16 images a step.

  python -m maskrcnn_jax.main --config=configs/r50_fpn.py --workdir=DIR \
      --init_from=CHECKPOINT

COCO 2017 is expected in data/coco, as its archives unpack; COCO 2014 with
--config=configs/r50_fpn.py:2014. Other places: --config.data.train.images=DIR
and so on. The stem and layer1 are frozen, so that it wants pretrained weights.

Hardware: 8 GPUs. Expected: box AP .377, mask AP .342, as published for this
recipe by maskrcnn-benchmark and NVIDIA; not run here.
"""

from maskrcnn_jax.config import default_config


def get_config(year: str = '2017'):
  """Returns the recipe for COCO '2017' or '2014'."""
  if year not in ('2014', '2017'):
    raise ValueError(
        f'configs/r50_fpn.py:{year}: give the year of COCO, 2014 or 2017.'
    )
  config = default_config()
  for part, name in (('train', f'train{year}'), ('eval', f'val{year}')):
    config.data[part].images = f'data/coco/{name}'
    config.data[part].annotations = (
        f'data/coco/annotations/instances_{name}.json'
    )
  # Faster than as many samples as a cell is long, the preset's.
  config.roi.sampling_ratio = 2
  config.train.batch_size = 16
  config.train.reference_batch_size = 16
  config.train.num_steps = 90_000
  config.train.checkpoint_every = 2_500
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = 500
  config.optimizer.warmup_factor = 1 / 3
  config.optimizer.decay_steps = (60_000, 80_000)
  # NVIDIA's mean of five runs, and four of their deviations.
  config.expected.box_ap = (0.377, 0.004)
  config.expected.mask_ap = (0.342, 0.004)
  return config
