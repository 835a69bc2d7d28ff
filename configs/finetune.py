"""Your own objects, from a trained model: 50 to 5,000 images.

  python -m maskrcnn_jax.main --config=finetune --workdir=DIR \
      --init_from=CHECKPOINT \
      --config.data.train.images=IMAGES \
      --config.data.train.annotations=TRAIN.json \
      --config.data.eval.images=IMAGES --config.data.eval.annotations=VAL.json

CHECKPOINT is the workdir of a run of this program, or the output of
`convert_weights`. The network, its box conventions, the anchors, the numbers of
boxes and the image sizes are taken from the checkpoint. The number of classes,
the number of objects an image and the schedule come from the annotations, and
the log names the chosen values. A value that is given on the command line
holds; if the weights cannot be used with it, the program says so and ends.

Why these figures:
- Learning rate: half of the checkpoint's rate, per image of a batch. The
  weights are already good, but the class layers start afresh.
- Steps: 60 epochs of 50 images, fewer epochs (evenly, by the logarithm) for
  more images, down to the 12 epochs of COCO's schedule at 5,000 images. The
  first is 750 steps of 4 images, the second 15,000. With more epochs, few
  images would only be memorized.
- Warm-up: a tenth of the steps, at most 500, from a tenth of the learning rate,
  because the new class layers send large gradients at first.
- Decay: to a tenth at 2/3 and again at 8/9 of the steps, as COCO's schedule.
- Images without objects are trained on: they show the background of your data.
- 4 images a step: they fit most memories, and are enough to average out noise.
- Layers that the checkpoint's recipe froze stay frozen; --config.freeze_at=0
  trains them too.

Hardware: any. For many GPUs set train.batch_size to a multiple of their number;
the rest follows. Expected: depends on the data; BENCHMARKS.md has a run of 12
images of fruits.
"""

from ml_collections import config_dict

from maskrcnn_jax.config import default_config


def get_config():
  """Returns the recipe; placeholders are filled in when they are known."""
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
