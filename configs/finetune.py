"""Your own objects, from a trained model: 50 to 5,000 images.

  python -m maskrcnn_jax.main --config=configs/finetune.py --workdir=DIR \
      --init_from=CHECKPOINT \
      --config.data.train.images=IMAGES \
      --config.data.train.annotations=TRAIN.json \
      --config.data.eval.images=IMAGES --config.data.eval.annotations=VAL.json

CHECKPOINT is a run of this program or what `convert_weights` made. The network,
its conventions, anchors, numbers of boxes and image sizes are the checkpoint's;
the number of classes, slots for objects and the schedule come from the
annotations, and the log says what was chosen. What is given on the command line
stays as given.

Why these figures:
- Rate: half of what the checkpoint was trained with, per image of a batch. The
  weights are near a good place, but the class layers start afresh.
- Steps: 60 epochs of 50 images, falling evenly (by the logarithm) to the 12 of
  COCO's schedule at 5,000. The first is 750 steps of 4 images, the second
  15,000; fewer images are learned by heart rather than better when seen more.
- Warm-up: a tenth of the steps, 500 at most, from a tenth of the rate: the new
  class layers send large gradients at first.
- Decay: to a tenth at 2/3 and again at 8/9, as COCO's schedule.
- Images without objects are trained on: they say what is none of your classes.
- 4 images a step: few enough for most memories, enough to average out noise.
- Layers that the checkpoint's recipe froze stay frozen.

Hardware: any. For many GPUs set train.batch_size to a multiple of their number;
all else follows. Expected: depends on the data; BENCHMARKS.md has a run of 12
images of fruits.
"""

from ml_collections import config_dict

from maskrcnn_jax.config import default_config


def get_config():
  """Returns the recipe; what is a placeholder is filled in when it is known."""
  config = default_config()
  config.train.fine_tune = True
  config.train.batch_size = 4
  config.optimizer.warmup_factor = 0.1
  config.data.keep_empty = True
  with config.ignore_type():
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
