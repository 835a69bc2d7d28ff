"""Fine-tuning of a trained model on your own objects, with 50 to 5,000 images.

  python -m maskrcnn_jax.main --config=finetune --workdir=DIR \
      --init_from=CHECKPOINT \
      --config.data.train.images=IMAGES \
      --config.data.train.annotations=TRAIN.json \
      --config.data.eval.images=IMAGES --config.data.eval.annotations=VAL.json

CHECKPOINT is the workdir of a run of this program, the output of
`convert_weights`, or the name of published weights, such as
torchvision:maskrcnn_resnet50_fpn_v2 (--list_weights lists the names). The
network, its box conventions, the anchors, the numbers of boxes and the image
sizes are taken from the checkpoint. The number of classes, the number of
objects in an image and the schedule are computed from the annotations, and the
log names the chosen values. A value on the command line replaces the chosen
value; if the weights cannot be used with it, the program says so and ends.

The reasons for the numbers:
- Learning rate: half of the checkpoint's rate, per image of a batch. The
  weights are already good, but the class layers start from random weights.
- Steps: 60 epochs for 50 images, and fewer epochs for more images, down to the
  12 epochs of COCO's schedule for 5,000 images. In between, the logarithm of
  the number of epochs falls evenly with the logarithm of the number of images.
  50 images are 750 steps of 4 images, 5,000 images 15,000 steps. With more
  epochs, a small number of images would only be memorized.
- Warm-up: a tenth of the steps, at most 500, from a tenth of the learning rate,
  because the new class layers have large gradients at first.
- Decay: to a tenth at 2/3 of the steps and to a hundredth at 8/9, the fractions
  of COCO's schedule.
- Images without objects are used for training: they show the background of your
  data.
- 4 images in a batch: they fit into the memory of most GPUs, and are enough to
  average out noise.
- Layers that the checkpoint's recipe froze stay frozen; --config.freeze_at=0
  trains them too.

Hardware: any. For several GPUs, set train.batch_size to a multiple of their
number; the other values are computed from it. Expected accuracy: depends on the
data; BENCHMARKS.md has a run on 12 images of fruits.
"""

import ml_collections
from ml_collections import config_dict

from maskrcnn_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
  """Returns the recipe of a fine-tuning.

  The training fills in the placeholders from the checkpoint and the data.
  """
  config = default_config()
  config.train.fine_tune = True
  config.train.batch_size = 4
  config.optimizer.warmup_factor = 0.1
  config.data.keep_empty = True
  with config.ignore_type():
    config.freeze_at = config_dict.placeholder(int)
    for group, key, type_ in (
      ('optimizer', 'learning_rate', float),
      ('optimizer', 'warmup_steps', int),
      ('optimizer', 'decay_steps', tuple),
      ('train', 'num_steps', int),
      ('train', 'checkpoint_every', int),
      ('data', 'max_objects', int),
      ('data', 'short_side', int),
      ('data', 'long_side', int),
      ('data', 'padded_sizes', tuple),
      ('data', 'max_source_side', int),
      ('detections', 'max_detections', int),
      ('detections', 'min_score', float),
      ('detections', 'iou_threshold', float),
      ('anchors', 'sizes', tuple),
      ('anchors', 'ratios', tuple),
      ('rpn', 'num_samples', int),
      ('roi', 'num_samples', int),
    ):
      config[group][key] = config_dict.placeholder(type_)
    for part in (config.rpn.train, config.rpn.eval):
      for key in ('pre_nms', 'post_nms', 'num_proposals'):
        part[key] = config_dict.placeholder(int)
  return config
