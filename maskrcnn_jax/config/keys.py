"""Every key that a recipe has: its default, its meaning and its role.

`KEYS` is the only list of keys. The recipe of the defaults, the check of a
recipe, the parser of the command line, the comparison with a checkpoint and
the documentation are all derived from it. A new key is a new row.

The defaults are Mask R-CNN with a ResNet-50-FPN at COCO's usual sizes.
"""

import math
from typing import Any, NamedTuple

from maskrcnn_jax import geometry
from maskrcnn_jax.config.forms import (
  Form,
  choice,
  number,
  sequence,
  switch,
  text,
  whole,
)

# The role of a key says who decides its value: see `precedence.py`.
WEIGHTS = 'weights'  # the weights fit this value and no other
TRAINING = 'training'  # changes the result of a training step
EVALUATION = 'evaluation'  # changes an evaluation, a prediction or a report
MACHINE = 'machine'  # changes no number, but for rounding

ROLES = (WEIGHTS, TRAINING, EVALUATION, MACHINE)


class Key(NamedTuple):
  """One key of a recipe.

  Attributes:
    name: Its full name, such as 'rpn.train.pre_nms'.
    default: Its value where a recipe says nothing.
    role: One of `ROLES`.
    form: The values that it may have.
    meaning: The effect of the key, in sentences.
    overridable: For a key of the weights: the command line may change it when
      a trained model is used, and a fine-tuning may change it too.
    relearned: For a key of the weights: a fine-tuning may change it, because
      the weights adapt to the new value.
    unseen: For a key of the weights: a wrong value fits the arrays all the
      same, so that only a comparison of the recipes shows it.
    free: For a key of training: it may differ when a run is continued.
    per_process: It may differ between the processes of one run, whose machines
      have folders and processors of their own.
    resnet_only: Only the ResNet has it, among the backbones.
  """

  name: str
  default: Any
  role: str
  form: Form
  meaning: str
  overridable: bool = False
  relearned: bool = False
  unseen: bool = False
  free: bool = False
  per_process: bool = False
  resnet_only: bool = False

  @property
  def may_differ_on_resume(self) -> bool:
    """Whether a run may be continued with another value."""
    return self.role in (EVALUATION, MACHINE) or self.free


# The items of tuples, for messages.
_CHANNELS = 'three numbers, for red, green and blue, in [0, 255]'
_AP = '(mean, tolerance), for example (0.378, 0.004)'
_SIZES = (
  'a tuple of sizes for each level, for example ((32.0,), (64.0,), (128.0,), '
  '(256.0,), (512.0,))'
)
_CANVASES = (
  '(height, width) pairs in whole pixels, for example ((800, 1344), '
  '(1344, 800))'
)

# One key takes as few lines as possible, so that the table can be read.
# fmt: off
KEYS: tuple[Key, ...] = (
    Key('seed', 0, TRAINING, whole(-math.inf),
        'Decides the initial weights, the order of images, flips and samples.'),
    Key('geometry', 'modern', WEIGHTS, choice(*geometry.PRESETS),
        'Box conventions: a preset of geometry.py. The preset also gives the '
        'values of roi.sampling_ratio, data.pixel_mean, data.pixel_std and '
        'data.antialias where those are None.', unseen=True),
    Key('precision', 'fp32', TRAINING, choice('fp32', 'tf32', 'bf16', 'fp16'),
        'Precision of convolutions and matrix products. Parameters, boxes, '
        'logits and losses are always float32.'),
    Key('kernels', 'auto', MACHINE, choice('auto', 'xla', 'pallas'),
        'Implementation of box matching, NMS and RoIAlign: xla is plain JAX, '
        'pallas the GPU kernels of pallas_kernels, auto the kernels that are '
        'known to be faster on the device.'),

    # The network. The number of classes comes from the data.
    Key('model.backbone', 'resnet', WEIGHTS, choice('resnet', 'convnext_tiny'),
        'The network that computes the features. The keys model.depth, groups, '
        'group_width, stride_in_1x1 and width are for resnet only.'),
    Key('model.output', 'masks', WEIGHTS,
        choice('masks', 'boxes', 'proposals'),
        'What the model predicts: masks has all heads, boxes has no mask head '
        '(Faster R-CNN), proposals has no box head either.'),
    Key('model.body', 'fpn', WEIGHTS, choice('fpn', 'c4'),
        'fpn pools RoIs from a feature pyramid; c4 has no pyramid, pools at '
        'stride 16 and uses the last stage of the ResNet in each head. '
        '`c4_config` also sets the keys that depend on it.'),
    Key('model.depth', 50, WEIGHTS, choice(18, 34, 50, 101),
        'Number of layers of the ResNet.', resnet_only=True),
    Key('model.groups', 1, WEIGHTS, whole(1),
        'Groups of the 3x3 convolution of a bottleneck; 32 in ResNeXt 32x8d.',
        resnet_only=True),
    Key('model.group_width', 64, WEIGHTS, whole(1),
        'Channels of each group in the first stage; 8 in ResNeXt 32x8d.',
        resnet_only=True),
    Key('model.norm', 'frozen_batch', WEIGHTS,
        choice('frozen_batch', 'frozen_batch_all', 'group'),
        'Normalization: frozen_batch is in the backbone only, frozen_batch_all '
        'in pyramid and heads too; group is group normalization everywhere, '
        'for training from scratch.'),
    Key('model.norm_eps', 1e-5, WEIGHTS, number(0),
        'Added to the variance by the normalization.', unseen=True),
    Key('model.stride_in_1x1', False, WEIGHTS, switch(),
        'Whether the first 1x1 convolution of a bottleneck has its stride, '
        'not the 3x3 convolution; True for weights converted from Caffe2.',
        unseen=True, resnet_only=True),
    Key('model.width', 64, WEIGHTS, whole(1), 'Channels of the stem.',
        resnet_only=True),
    Key('model.fpn_channels', 256, WEIGHTS, whole(1),
        'Channels of the feature pyramid.'),
    Key('model.rpn_convs', 1, WEIGHTS, whole(1),
        'Number of 3x3 convolutions of the RPN head.'),
    Key('model.box_convs', 0, WEIGHTS, whole(0),
        'Number of convolutions of the box head.'),
    Key('model.box_fcs', 2, WEIGHTS, whole(0),
        'Number of fully connected layers of the box head.'),
    Key('model.box_features', 1024, WEIGHTS, whole(1),
        'Width of the fully connected layers of the box head.'),
    Key('model.mask_convs', 4, WEIGHTS, whole(0),
        'Number of convolutions of the mask head.'),
    Key('model.mask_channels', 256, WEIGHTS, whole(1),
        'Channels of the mask head.'),
    Key('freeze_at', 2, TRAINING,
        whole(0, 5, what='the number of stages not to train, 0 to 5'),
        'Number of backbone stages that are not trained: 0 trains all, 2 '
        'freezes the stem and layer1.'),

    Key('anchors.sizes', ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        WEIGHTS, sequence([[float]], _SIZES, 0, above_least=True),
        'A tuple of anchor sizes (square root of the area, in pixels) for each '
        'level from 2 to 6, or for the one level of a c4 body.',
        relearned=True),
    Key('anchors.ratios', (0.5, 1.0, 2.0), WEIGHTS,
        sequence([float], 'ratios, for example (0.5, 1.0, 2.0)', 0,
                 above_least=True),
        'Aspect ratios of the anchors, height over width.', relearned=True),

    Key('rpn.num_samples', 256, TRAINING, whole(1),
        'Number of anchors an image that the RPN is trained on.'),
    Key('rpn.foreground_fraction', 0.5, TRAINING, number(0, 1),
        'Largest share of foreground among the sampled anchors.'),
    Key('rpn.foreground_iou', 0.7, TRAINING, number(0, 1),
        'IoU with an object from which an anchor is foreground.'),
    Key('rpn.background_iou', 0.3, TRAINING, number(0, 1),
        'IoU with every object below which an anchor is background.'),
    Key('rpn.iou_threshold', 0.7, TRAINING, number(0, 1),
        'IoU above which NMS removes a proposal, in training and evaluation.'),
    Key('rpn.train.pre_nms', 2000, TRAINING, whole(1),
        'Boxes of a level that enter NMS in training.'),
    Key('rpn.train.post_nms', 1000, TRAINING, whole(1),
        'Boxes of a level that are kept after NMS in training.'),
    Key('rpn.train.num_proposals', 1000, TRAINING, whole(1),
        'Proposals of an image in training.'),
    Key('rpn.eval.pre_nms', 1000, EVALUATION, whole(1),
        'Boxes of a level that enter NMS in evaluation.'),
    Key('rpn.eval.post_nms', 1000, EVALUATION, whole(1),
        'Boxes of a level that are kept after NMS in evaluation.'),
    Key('rpn.eval.num_proposals', 1000, EVALUATION, whole(1),
        'Proposals of an image in evaluation.'),

    Key('roi.num_samples', 512, TRAINING, whole(1),
        'Number of RoIs an image that the heads are trained on.'),
    Key('roi.foreground_fraction', 0.25, TRAINING, number(0, 1),
        'Largest share of foreground among the sampled RoIs.'),
    Key('roi.foreground_iou', 0.5, TRAINING, number(0, 1),
        'IoU with an object from which a RoI is foreground.'),
    Key('roi.box_side', 7, WEIGHTS, whole(1),
        'Cells along each side that are pooled for the box head.'),
    Key('roi.mask_side', 14, WEIGHTS, whole(1),
        'Cells along each side that are pooled for the mask head, which '
        'predicts twice that many.'),
    Key('roi.sampling_ratio', None, WEIGHTS,
        whole(0, may_be_none=True, what='the number of samples along a side of '
              'a cell, or 0 for as many as the cell is long'),
        'Samples along each side of a pooled cell; 0 takes as many as the cell '
        'is long, None the value of the preset.'),

    Key('detections.min_score', 0.05, EVALUATION, number(0, 1),
        'Score below which a detection is dropped.'),
    Key('detections.iou_threshold', 0.5, EVALUATION, number(0, 1),
        'IoU above which NMS removes a detection of the same class.'),
    Key('detections.max_detections', 100, EVALUATION, whole(1),
        'Largest number of detections of an image.'),

    Key('data.train.images', '', MACHINE, text(),
        'Folder of the training images.', per_process=True),
    Key('data.train.annotations', '', MACHINE, text(),
        'COCO JSON of the training set.', per_process=True),
    Key('data.train.tfds', '', TRAINING, text(),
        'Name of a training set that maskrcnn_jax.build_tfds has made in '
        'data.tfds_dir; it is read in place of the folder and the JSON.',
        free=True),
    Key('data.train.split', 'train', TRAINING, text(),
        'The split of data.train.tfds to train on.', free=True),
    Key('data.eval.images', '', EVALUATION, text(),
        'Folder of the images to evaluate on.', per_process=True),
    Key('data.eval.annotations', '', EVALUATION, text(),
        'COCO JSON of the evaluation set.', per_process=True),
    Key('data.eval.tfds', '', EVALUATION, text(),
        'Name of an evaluation set that maskrcnn_jax.build_tfds has made in '
        'data.tfds_dir; it is read in place of the folder and the JSON.'),
    Key('data.eval.split', 'val', EVALUATION, text(),
        'The split of data.eval.tfds to evaluate on.'),
    Key('data.tfds_dir', '', MACHINE, text(),
        'Folder of the sets that maskrcnn_jax.build_tfds has made.',
        per_process=True),
    Key('data.short_side', 800, WEIGHTS, whole(1),
        'Length of the shorter side of an image after resizing, in pixels.',
        overridable=True),
    Key('data.long_side', 1333, WEIGHTS, whole(1),
        'Upper limit of the longer side, in pixels; if it would be exceeded, '
        'both sides shrink.', overridable=True),
    Key('data.padded_sizes',
        ((800, 1088), (800, 1344), (1088, 800), (1344, 800)), WEIGHTS,
        sequence([(int, int)], _CANVASES),
        'Static sizes (height, width) that images are padded to, multiples of '
        '32 pixels. An image goes to the smallest that it fits in. Each size '
        'is compiled once.', overridable=True),
    Key('data.max_source_side', 2666, WEIGHTS, whole(1),
        'Images with a longer side, in pixels, are shrunk by a whole factor '
        'while they are decoded.', overridable=True),
    Key('data.pixel_mean', None, WEIGHTS,
        sequence([float], _CHANNELS, 0, length=3, may_be_none=True),
        'Mean that is subtracted from the pixels, RGB in [0, 255]; None takes '
        'that of the preset.', unseen=True),
    Key('data.pixel_std', None, WEIGHTS,
        sequence([float], _CHANNELS, 0, above_least=True, length=3,
                 may_be_none=True),
        'Standard deviation that the pixels are divided by, RGB; None takes '
        'that of the preset.', unseen=True),
    Key('data.antialias', None, WEIGHTS, switch(may_be_none=True),
        'Whether shrinking an image averages over the pixels that a new pixel '
        'covers; None takes the choice of the preset.'),
    Key('data.pixel_range', None, TRAINING,
        sequence([float], 'the values that become black and white, the lower '
                 'value first, for example (0, 4095)', -1e10, 1e10, length=2,
                 may_be_none=True),
        'The values of gray images of 16 or 32 bits that become 0 and 255; '
        'None means that there are no such images.'),
    Key('data.short_sides', (), TRAINING,
        sequence([int], 'whole numbers, for example (640, 800)', 1),
        'Short sides to choose from at random in training, in place of '
        'data.short_side, none longer than it; empty for no choice.'),
    Key('data.scale_jitter', (), TRAINING,
        sequence([float], 'the least and the greatest factor, for example '
                 '(0.1, 2.0)'),
        'Least and greatest random size of a training image, relative to the '
        'largest size that fits the padded size; of a larger image a random '
        'part is cut out. Empty for no such change.'),
    Key('data.flip_probability', 0.5, TRAINING, number(0, 1),
        'Probability that a training image is mirrored.'),
    Key('data.color_jitter', (0.0, 0.0, 0.0), TRAINING,
        sequence([float], 'three numbers in [0, 1], for brightness, contrast '
                 'and saturation', 0, 1, length=3),
        'How much brightness, contrast and saturation of a training image may '
        'go up or down at random.'),
    Key('data.keep_empty', False, TRAINING, switch(),
        'Whether images without objects are trained on.'),
    Key('data.max_objects', 100, TRAINING, whole(1),
        'Largest number of objects of an image that are trained on.'),
    Key('data.num_workers', 0, MACHINE, whole(0),
        'Number of processes that decode images; 0 decodes in threads of the '
        'main process.', per_process=True),
    Key('data.num_threads', 2, MACHINE, whole(1),
        'Number of threads that decode images, in each process.',
        per_process=True),

    Key('train.batch_size', 16, TRAINING, whole(1),
        'Number of images a step, on all devices together.'),
    Key('train.micro_batches', 1, MACHINE, whole(1),
        'Number of parts that a batch is split into, which are computed one '
        'after the other: the same training in less memory.'),
    Key('train.ema_decay', 0.0, TRAINING, number(0, 1),
        'Share of its own value that the moving average of the weights keeps '
        'at each step; the average is then evaluated and saved for use. 0 for '
        'no average.'),
    Key('train.num_steps', 90_000, TRAINING, whole(1),
        'Number of training steps.', free=True),
    Key('train.checkpoint_every', 2_500, MACHINE, whole(1),
        'Number of steps between two checkpoints.'),
    Key('train.keep_checkpoints', 3, MACHINE, whole(1),
        'Number of newest checkpoints that are kept.'),
    Key('train.log_every', 20, MACHINE, whole(1),
        'Number of steps between two lines of the log.'),
    Key('train.reference_batch_size', None, TRAINING,
        whole(1, may_be_none=True,
              what='the batch size that the recipe is for'),
        'The batch size that train.num_steps and the learning rate and steps '
        'of the optimizer are meant for; they are scaled to train.batch_size. '
        'None scales nothing.', free=True),
    Key('train.auto_scale', True, TRAINING, switch(),
        'Whether train.reference_batch_size has an effect.', free=True),
    Key('train.eval_every', 0, TRAINING, whole(0),
        'Number of steps between two evaluations; 0 evaluates only at the end.',
        free=True),
    Key('train.eval_every_epochs', 0.0, TRAINING, number(0),
        'Number of epochs between two evaluations; 0 evaluates only at the '
        'end.', free=True),
    Key('train.min_box_ap', 0.0, TRAINING, number(0, 1),
        'The training ends when an evaluation reaches this box AP and '
        'train.min_mask_ap; 0 and 0 for never.', free=True),
    Key('train.min_mask_ap', 0.0, TRAINING, number(0, 1),
        'The training ends when an evaluation reaches this mask AP and '
        'train.min_box_ap; 0 and 0 for never.', free=True),
    Key('train.watchdog_seconds', 1800.0, MACHINE, number(0),
        'A run without progress for so many seconds ends itself and prints '
        'where it hung. It must be longer than a compilation and the AP of a '
        'set take; 0 for never.'),
    Key('train.fine_tune', False, TRAINING, switch(),
        'Whether this is a fine-tuning: the keys of the network are those of '
        'the --init_from checkpoint, and keys that are None are filled in from '
        'its recipe or from the data.'),

    *(Key(f'loss_weights.{name}', 1.0, TRAINING, number(0),
          f'Factor of the {what} in the sum of the losses.')
      for name, what in (
          ('objectness', 'objectness loss of the RPN'),
          ('rpn_box', 'box loss of the RPN'),
          ('classification', 'classification loss of the box head'),
          ('box', 'box loss of the box head'),
          ('mask', 'mask loss'),
      )),

    Key('optimizer.name', 'sgd', TRAINING, choice('sgd', 'adamw'),
        'The optimizer: SGD with momentum, or AdamW.'),
    Key('optimizer.learning_rate', 0.02, TRAINING, number(0),
        'Learning rate after the warm-up.'),
    Key('optimizer.momentum', 0.9, TRAINING, number(0),
        'Momentum of SGD; beta1 of AdamW.'),
    Key('optimizer.beta2', 0.999, TRAINING, number(0, 1),
        'Decay of the average of squared gradients of AdamW; SGD has none.'),
    Key('optimizer.weight_decay', 1e-4, TRAINING, number(0),
        'Weight decay; biases do not decay.'),
    Key('optimizer.bias_rate_factor', 2.0, TRAINING, number(0),
        'Learning rate of biases, relative to optimizer.learning_rate.'),
    Key('optimizer.clip_norm', 0.0, TRAINING, number(0),
        'Upper limit of the norm of all gradients together; 0 for no limit.'),
    Key('optimizer.warmup', 'linear', TRAINING,
        choice('constant', 'linear', 'mlperf_linear'),
        'How the learning rate rises at the beginning; see '
        'optimizer.learning_rate in training/optimizer.py.'),
    Key('optimizer.warmup_steps', 500, TRAINING, whole(0),
        'Number of steps of the warm-up.'),
    Key('optimizer.warmup_factor', 1 / 3, TRAINING, number(0),
        'Learning rate at the first step, relative to '
        'optimizer.learning_rate; of mlperf_linear the rise a step.'),
    Key('optimizer.schedule', 'multistep', TRAINING,
        choice('multistep', 'cosine'),
        'How the learning rate falls: in steps, or as a cosine to the end.'),
    Key('optimizer.decay_steps', (60_000, 80_000), TRAINING,
        sequence([int], 'whole numbers, for example (60000, 80000)', 0),
        'Steps at which multistep lowers the learning rate.'),
    Key('optimizer.decay_factor', 0.1, TRAINING, number(0),
        'Factor of the learning rate at each of optimizer.decay_steps.'),

    Key('eval.batch_size', 1, EVALUATION, whole(1),
        'Number of images in a batch of the evaluation.'),
    Key('eval.backend', 'pycocotools', EVALUATION,
        choice('pycocotools', 'faster'),
        'The library that computes the AP. faster gives the same numbers with '
        'faster-coco-eval, if it is installed.'),
    Key('eval.proposals', False, EVALUATION, switch(),
        'Whether the recall of the proposals is computed too; it always is '
        'for a model of proposals.'),
    Key('expected.box_ap', None, EVALUATION,
        sequence([float], _AP, length=2, may_be_none=True),
        'Box AP that the whole recipe should reach, (mean, tolerance); None if '
        'it is not known.'),
    Key('expected.mask_ap', None, EVALUATION,
        sequence([float], _AP, length=2, may_be_none=True),
        'Mask AP that the whole recipe should reach, (mean, tolerance); None '
        'if it is not known.'),
    Key('predict.min_score', 0.5, EVALUATION, number(0, 1),
        'Score from which a detection is drawn; all detections are written to '
        'the file of predictions.'),
)
# fmt: on

BY_NAME: dict[str, Key] = {key.name: key for key in KEYS}

# Keys of earlier versions. A recipe that a checkpoint stores may have them.
REMOVED_KEYS = ('mesh',)


def names(**properties) -> tuple[str, ...]:
  """Returns the keys with given properties, such as role or unseen=True."""
  return tuple(
    key.name
    for key in KEYS
    if all(getattr(key, name) == value for name, value in properties.items())
  )
