"""The table of all keys of a recipe: default, allowed values, meaning and role.

`KEYS` is the only list of keys. The recipe of the defaults, the check of a
recipe, the parser of the command line, the comparison with a checkpoint and
the documentation are all derived from it. To add a key, add a row.

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
  texts,
  whole,
)

# The role of a key. It decides whether a trained model is used with the value
# of the checkpoint or of the user's recipe: see `precedence.py`.
WEIGHTS = 'weights'  # the weights can only be used with this value
TRAINING = 'training'  # changes the result of a training step
EVALUATION = 'evaluation'  # changes an evaluation, a prediction or a report
MACHINE = 'machine'  # changes only speed and memory; results up to rounding

ROLES = (WEIGHTS, TRAINING, EVALUATION, MACHINE)


class Key(NamedTuple):
  """One key of a recipe.

  Attributes:
    name: The full name, such as 'rpn.train.pre_nms'.
    default: The value if a recipe does not set the key.
    role: One of `ROLES`.
    form: The values that the key may have.
    meaning: The effect of the key, in sentences.
    overridable: For the role `WEIGHTS`: the command line may change the key
      when a trained model is used, and a fine-tuning may change it too.
    relearned: For the role `WEIGHTS`: a fine-tuning may change the key, because
      the weights adapt to the new value.
    unseen: For the role `WEIGHTS`: the key does not change the names and shapes
      of the weights, so only a comparison of the recipes shows a wrong value.
    free: For the role `TRAINING`: the key may have another value when a run is
      continued.
    per_process: The key may differ between the processes of one run, because
      each machine has its own folders and number of cores.
    resnet_only: The key has an effect only if the backbone is a ResNet.
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
    """Whether a run may be continued with another value of this key."""
    return self.role in (EVALUATION, MACHINE) or self.free


# The names in BACKBONES of model/backbone.py, in the same order.
_BACKBONES = (
  'resnet',
  'convnext_tiny',
)

# Allowed values of some keys in words, for messages and the documentation.
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

# The formatter is off, because it would spread each key over many lines.
# fmt: off
KEYS: tuple[Key, ...] = (
    Key('seed', 0, TRAINING, whole(-math.inf),
        'Seed of all random numbers: initial weights, order of the images, '
        'augmentation, and the sampling of anchors and RoIs.'),
    Key('geometry', 'modern', WEIGHTS, choice(*geometry.PRESETS),
        'Box conventions: a preset of geometry.py. The preset also gives the '
        'values of roi.sampling_ratio, data.pixel_mean, data.pixel_std and '
        'data.antialias if these keys are None.', unseen=True),
    Key('precision', 'fp32', TRAINING,
        choice('auto', 'fp32', 'tf32', 'bf16', 'fp16'),
        'Precision of convolutions and matrix products. Parameters, boxes, '
        'logits and losses are always float32. auto is tf32 on NVIDIA GPUs '
        'that have it (compute capability 8.0 and higher), otherwise fp32; '
        'the checkpoint stores the precision that was chosen.'),
    Key('kernels', 'auto', MACHINE, choice('auto', 'xla', 'pallas'),
        'Implementation of the operations that have a GPU kernel: IoU, '
        'matching, selection before NMS, NMS, RoIAlign and mask targets. xla '
        'is plain JAX, pallas is the kernels of pallas_kernels, and auto uses '
        'a kernel only if it was measured to be faster on this kind of '
        'device.'),

    # The network. The number of classes comes from the data.
    Key('model.backbone', 'resnet', WEIGHTS, choice(*_BACKBONES),
        'The network that computes the features. The keys model.depth, groups, '
        'group_width, stride_in_1x1 and width are for resnet only.'),
    Key('model.output', 'masks', WEIGHTS,
        choice('masks', 'boxes', 'proposals'),
        'The predictions of the model: masks has all heads, boxes has no mask '
        'head (Faster R-CNN), proposals has neither box nor mask head.'),
    Key('model.body', 'fpn', WEIGHTS, choice('fpn', 'c4', 'c5', 'dc5'),
        'fpn pools RoIs from a feature pyramid. The others have no pyramid: c4 '
        'pools at stride 16 and has the last stage of the ResNet in the heads; '
        'c5 pools from the last stage, at stride 32; dc5 does so too, but its '
        'last stage is dilated and has stride 16. `c4_config` and `c5_config` '
        'also set the keys that depend on this key.'),
    Key('model.depth', 50, WEIGHTS, choice(18, 34, 50, 101),
        'Number of layers of the ResNet.', resnet_only=True),
    Key('model.groups', 1, WEIGHTS, whole(1),
        'Number of groups of the 3x3 convolution of a bottleneck block; 32 in '
        'ResNeXt 32x8d.', resnet_only=True),
    Key('model.group_width', 64, WEIGHTS, whole(1),
        'Number of channels of each group in the first stage; 8 in ResNeXt '
        '32x8d.', resnet_only=True),
    Key('model.norm', 'frozen_batch', WEIGHTS,
        choice('frozen_batch', 'frozen_batch_all', 'group'),
        'Normalization: frozen_batch is frozen batch normalization in the '
        'ResNet only, frozen_batch_all also in the pyramid and the heads; '
        'group is group normalization in all three, for training from scratch. '
        'Other backbones have a normalization of their own.'),
    Key('model.norm_eps', 1e-5, WEIGHTS, number(0),
        'Number that the normalization adds to the variance.', unseen=True),
    Key('model.stride_in_1x1', False, WEIGHTS, switch(),
        'Whether the stride of a bottleneck block is in its first 1x1 '
        'convolution instead of its 3x3 convolution; True for weights '
        'converted from Caffe2.',
        unseen=True, resnet_only=True),
    Key('model.width', 64, WEIGHTS, whole(1),
        'Number of channels of the stem.', resnet_only=True),
    Key('model.fpn_channels', 256, WEIGHTS, whole(1),
        'Number of channels of the feature pyramid.'),
    Key('model.rpn_convs', 1, WEIGHTS, whole(1),
        'Number of 3x3 convolutions of the RPN head.'),
    Key('model.box_convs', 0, WEIGHTS, whole(0),
        'Number of convolutions of the box head.'),
    Key('model.box_fcs', 2, WEIGHTS, whole(0),
        'Number of fully connected layers of the box head.'),
    Key('model.box_features', 1024, WEIGHTS, whole(1),
        'Number of features of each fully connected layer of the box head.'),
    Key('model.mask_convs', 4, WEIGHTS, whole(0),
        'Number of convolutions of the mask head.'),
    Key('model.mask_channels', 256, WEIGHTS, whole(1),
        'Number of channels of the mask head.'),
    Key('freeze_at', 2, TRAINING,
        whole(0, 5, wanted='the number of stages to freeze, 0 to 5'),
        'Number of backbone stages that are not trained: 0 trains all, 2 '
        'freezes the stem and layer1.'),

    Key('anchors.sizes', ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
        WEIGHTS, sequence([[float]], _SIZES, 0, above_least=True),
        'A tuple of anchor sizes (square root of the area, in pixels) for each '
        'level from 2 to 6, or for the only level of another body than fpn.',
        relearned=True),
    Key('anchors.ratios', (0.5, 1.0, 2.0), WEIGHTS,
        sequence([float], 'ratios, for example (0.5, 1.0, 2.0)', 0,
                 above_least=True),
        'Aspect ratios of the anchors, height over width.', relearned=True),

    Key('rpn.num_samples', 256, TRAINING, whole(1),
        'Number of anchors of each image that the RPN is trained on.'),
    Key('rpn.foreground_fraction', 0.5, TRAINING, number(0, 1),
        'Largest share of foreground among the sampled anchors.'),
    Key('rpn.foreground_iou', 0.7, TRAINING, number(0, 1),
        'An anchor is foreground if its IoU with an object is at least this.'),
    Key('rpn.background_iou', 0.3, TRAINING, number(0, 1),
        'An anchor is background if its IoU with every object is below this.'),
    Key('rpn.iou_threshold', 0.7, TRAINING, number(0, 1),
        'NMS removes a proposal whose IoU with a better proposal is above '
        'this, in training and evaluation.'),
    Key('rpn.train.pre_nms', 2000, TRAINING, whole(1),
        'Number of boxes of each level that enter NMS in training.'),
    Key('rpn.train.post_nms', 1000, TRAINING, whole(1),
        'Number of boxes of each level that are kept after NMS in training.'),
    Key('rpn.train.num_proposals', 1000, TRAINING, whole(1),
        'Number of proposals of each image in training.'),
    Key('rpn.eval.pre_nms', 1000, EVALUATION, whole(1),
        'Number of boxes of each level that enter NMS in evaluation.'),
    Key('rpn.eval.post_nms', 1000, EVALUATION, whole(1),
        'Number of boxes of each level that are kept after NMS in evaluation.'),
    Key('rpn.eval.num_proposals', 1000, EVALUATION, whole(1),
        'Number of proposals of each image in evaluation.'),

    Key('roi.num_samples', 512, TRAINING, whole(1),
        'Number of RoIs of each image that the heads are trained on.'),
    Key('roi.foreground_fraction', 0.25, TRAINING, number(0, 1),
        'Largest share of foreground among the sampled RoIs.'),
    Key('roi.foreground_iou', 0.5, TRAINING, number(0, 1),
        'A RoI is foreground if its IoU with an object is at least this.'),
    Key('roi.box_side', 7, WEIGHTS, whole(1),
        'Number of cells along each side that are pooled for the box head.'),
    Key('roi.mask_side', 14, WEIGHTS, whole(1),
        'Number of cells along each side that are pooled for the mask head. '
        'The side of a predicted mask is twice this number.'),
    Key('roi.sampling_ratio', None, WEIGHTS,
        whole(0, may_be_none=True,
              wanted='the number of samples along a side of a cell, or 0 for '
              'the length of the side in cells of the feature map'),
        'Number of samples along each side of a pooled cell. 0 uses the length '
        'of the side in cells of the feature map, rounded up; None uses the '
        'value of the preset.'),

    Key('detections.min_score', 0.05, EVALUATION, number(0, 1),
        'Detections with this score or a lower one are dropped.'),
    Key('detections.iou_threshold', 0.5, EVALUATION, number(0, 1),
        'NMS removes a detection whose IoU with a better detection of the same '
        'class is above this.'),
    Key('detections.max_detections', 100, EVALUATION, whole(1),
        'Largest number of detections of an image.'),

    Key('data.train.images', '', MACHINE, texts(),
        'Folder of the training images. A tuple names the folders of several '
        'sets, which are read as one training set; on the command line it is '
        'written (DIR,DIR). Two sets may have the same folder.',
        per_process=True),
    Key('data.train.annotations', '', MACHINE, texts(),
        'Path of the annotations of the training set: COCO JSON, or another '
        'format that the program reads. A tuple has the annotations of as many '
        'sets as data.train.images has, in the same order. All sets must have '
        'the same classes.', per_process=True),
    Key('data.train.tfds', '', TRAINING, text(),
        'Name of a training set that maskrcnn_jax.build_tfds has written to '
        'data.tfds_dir. It is read instead of data.train.images and '
        'annotations.',
        free=True),
    Key('data.train.split', 'train', TRAINING, text(),
        'The split of data.train.tfds to train on.', free=True),
    Key('data.eval.images', '', EVALUATION, text(),
        'Folder of the images to evaluate on.', per_process=True),
    Key('data.eval.annotations', '', EVALUATION, text(),
        'Path of the annotations of the evaluation set: COCO JSON, or another '
        'format that the program reads.', per_process=True),
    Key('data.eval.tfds', '', EVALUATION, text(),
        'Name of an evaluation set that maskrcnn_jax.build_tfds has written to '
        'data.tfds_dir. It is read instead of data.eval.images and '
        'annotations.'),
    Key('data.eval.split', 'val', EVALUATION, text(),
        'The split of data.eval.tfds to evaluate on.'),
    Key('data.tfds_dir', '', MACHINE, text(),
        'Folder of the sets that maskrcnn_jax.build_tfds has written.',
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
        'Static sizes (height, width) that images are padded to, in multiples '
        'of 32 pixels. An image is padded to the smallest size that it fits '
        'into. Each size is compiled once.', overridable=True),
    Key('data.max_source_side', 2666, WEIGHTS, whole(1),
        'If a side of an image is longer, in pixels, the host makes the image '
        'smaller before it goes to the device. This changes no result, except '
        'if data.short_sides or data.scale_jitter draws the size: then the '
        'image is first resized to the largest size that can be drawn.',
        overridable=True),
    Key('data.pixel_mean', None, WEIGHTS,
        sequence([float], _CHANNELS, 0, length=3, may_be_none=True),
        'Mean that is subtracted from the pixels, RGB in [0, 255]; None uses '
        'the mean of the preset.', unseen=True),
    Key('data.pixel_std', None, WEIGHTS,
        sequence([float], _CHANNELS, 0, above_least=True, length=3,
                 may_be_none=True),
        'Standard deviation that the pixels are divided by, RGB in [0, 255]; '
        'None uses the standard deviation of the preset.', unseen=True),
    Key('data.antialias', None, WEIGHTS, switch(may_be_none=True),
        'Whether images are resized as PIL does it: each pixel is an average '
        'of the old pixels that it covers, rounded to an integer. If False, '
        'they are resized as torchvision does it, by interpolation between two '
        'old pixels along each axis. None uses the choice of the preset.'),
    Key('data.pixel_range', None, TRAINING,
        sequence([float], 'the values that become black and white, the lower '
                 'value first, for example (0, 4095)', -1e10, 1e10, length=2,
                 may_be_none=True),
        'The values of images of more than 8 bits a channel that become 0 and '
        '255; None refuses images of this kind.'),
    Key('data.apply_exif', True, TRAINING, switch(),
        'Whether the EXIF orientation of an image is applied if the size in '
        'the annotations does not tell: if the image has this size with the '
        'orientation and without it. Images without annotations are always '
        'shown upright.'),
    Key('data.short_sides', (), TRAINING,
        sequence([int], 'whole numbers, for example (640, 800)', 1),
        'In training, the length of the shorter side of an image is chosen at '
        'random from these, in pixels; none may be above data.short_side. If '
        'empty, data.short_side is used.'),
    Key('data.scale_jitter', (), TRAINING,
        sequence([float], 'the least and the greatest factor, for example '
                 '(0.1, 2.0)'),
        'In training, the size of an image is chosen at random between these '
        'two factors, relative to the largest size that fits into the padded '
        'size. If the image becomes larger than the padded size, a random part '
        'of it is cut out. If empty, the size is not changed.'),
    Key('data.flip_probability', 0.5, TRAINING, number(0, 1),
        'Probability that a training image is mirrored left to right.'),
    Key('data.color_jitter', (0.0, 0.0, 0.0), TRAINING,
        sequence([float], 'three numbers in [0, 1], for brightness, contrast '
                 'and saturation', 0, 1, length=3),
        'Largest random change of brightness, contrast and saturation of a '
        'training image, up or down, as a fraction.'),
    Key('data.keep_empty', False, TRAINING, switch(),
        'Whether images without objects are used for training.'),
    Key('data.max_objects', 100, TRAINING, whole(1),
        'Largest number of objects of an image that are used for training.'),
    Key('data.num_workers', 0, MACHINE, whole(0),
        'Number of processes that decode images; 0 decodes in threads of the '
        'main process.', per_process=True),
    Key('data.num_threads', 2, MACHINE, whole(1),
        'Number of threads in each process. They load batches in training, '
        'load images and paste masks in evaluation, and read and draw pictures '
        'in prediction.',
        per_process=True),

    Key('train.batch_size', 16, TRAINING, whole(1),
        'Number of images in a batch, on all devices together.'),
    Key('train.micro_batches', 1, MACHINE, whole(1),
        'Number of parts that a batch is split into. They are computed one '
        'after the other, which gives the same training in less memory.'),
    Key('train.ema_decay', 0.0, TRAINING, number(0, 1),
        'Decay of the exponential moving average of the weights: the share of '
        'its value that it keeps at each step. The average is evaluated and '
        'saved for use instead of the weights. 0 computes no average.'),
    Key('train.num_steps', 90_000, TRAINING, whole(1),
        'Number of training steps.', free=True),
    Key('train.checkpoint_every', 2_500, MACHINE, whole(1),
        'Number of steps between two checkpoints.'),
    Key('train.keep_checkpoints', 3, MACHINE, whole(1),
        'Number of newest checkpoints that are kept.'),
    Key('train.log_every', 20, MACHINE, whole(1),
        'Number of steps between two log lines about the training.'),
    Key('train.reference_batch_size', None, TRAINING,
        whole(1, may_be_none=True,
              wanted='the batch size that the recipe is for'),
        'The batch size that train.num_steps and the learning rate and steps '
        'of the optimizer are written for. If train.batch_size is another, '
        'they are scaled to it; the warm-up linear then has 625 steps from '
        '0.01 if train.batch_size is at least 32. None scales nothing.',
        free=True),
    Key('train.auto_scale', True, TRAINING, switch(),
        'Whether train.reference_batch_size has an effect.', free=True),
    Key('train.eval_every', 0, TRAINING, whole(0),
        'Number of steps between two evaluations; 0 evaluates only at the end.',
        free=True),
    Key('train.eval_every_epochs', 0.0, TRAINING, number(0),
        'Number of epochs between two evaluations; 0 evaluates only at the '
        'end.', free=True),
    Key('train.min_box_ap', 0.0, TRAINING, number(0, 1),
        'The training ends early when an evaluation reaches this box AP and '
        'train.min_mask_ap; if both are 0, it does not.', free=True),
    Key('train.min_mask_ap', 0.0, TRAINING, number(0, 1),
        'The training ends early when an evaluation reaches this mask AP and '
        'train.min_box_ap; if both are 0, it does not.', free=True),
    Key('train.watchdog_seconds', 1800.0, MACHINE, number(0),
        'A run that makes no progress for this number of seconds ends itself '
        'and prints the place in the program where it hangs. It must be longer '
        'than a compilation and than the computation of the AP. 0 never ends '
        'a run.'),
    Key('train.fine_tune', False, TRAINING, switch(),
        'Whether this is a fine-tuning: the keys of the network are taken from '
        'the --init_from checkpoint, and keys that are None are filled in from '
        'its recipe or computed from the data.'),

    *(Key(f'loss_weights.{name}', 1.0, TRAINING, number(0),
          f'Factor of the {loss} in the sum of the losses.')
      for name, loss in (
          ('objectness', 'objectness loss of the RPN'),
          ('rpn_box', 'box loss of the RPN'),
          ('classification', 'classification loss of the box head'),
          ('box', 'box loss of the box head'),
          ('mask', 'cross-entropy of the masks'),
      )),

    Key('optimizer.name', 'sgd', TRAINING, choice('sgd', 'adamw'),
        'The optimizer: SGD with momentum, or AdamW.'),
    Key('optimizer.learning_rate', 0.02, TRAINING, number(0),
        'Learning rate after the warm-up.'),
    Key('optimizer.momentum', 0.9, TRAINING, number(0),
        'Momentum of SGD; beta1 of AdamW.'),
    Key('optimizer.beta2', 0.999, TRAINING, number(0, 1),
        'Decay of the average of squared gradients of AdamW; SGD does not use '
        'it.'),
    Key('optimizer.weight_decay', 1e-4, TRAINING, number(0),
        'Weight decay of all weights except biases.'),
    Key('optimizer.bias_rate_factor', 2.0, TRAINING, number(0),
        'Learning rate of biases, relative to optimizer.learning_rate.'),
    Key('optimizer.clip_norm', 0.0, TRAINING, number(0),
        'Upper limit of the norm of all gradients together; 0 for no limit.'),
    Key('optimizer.warmup', 'linear', TRAINING,
        choice('constant', 'linear', 'mlperf_linear'),
        'How the learning rate rises at the beginning: constant stays at the '
        'rate of the first step and then jumps, linear rises evenly; '
        'mlperf_linear rises by optimizer.warmup_factor at each step.'),
    Key('optimizer.warmup_steps', 500, TRAINING, whole(0),
        'Number of steps of the warm-up.'),
    Key('optimizer.warmup_factor', 1 / 3, TRAINING, number(0),
        'Learning rate at the first step, relative to '
        'optimizer.learning_rate; for mlperf_linear, the rise of the learning '
        'rate at each step.'),
    Key('optimizer.schedule', 'multistep', TRAINING,
        choice('multistep', 'cosine'),
        'How the learning rate falls: multistep lowers it at '
        'optimizer.decay_steps, cosine lowers it smoothly to 0 at the end.'),
    Key('optimizer.decay_steps', (60_000, 80_000), TRAINING,
        sequence([int], 'whole numbers, for example (60000, 80000)', 0),
        'Steps at which the schedule multistep lowers the learning rate.'),
    Key('optimizer.decay_factor', 0.1, TRAINING, number(0),
        'Factor that the learning rate is multiplied by at each of '
        'optimizer.decay_steps.'),

    Key('eval.batch_size', 1, EVALUATION, whole(1),
        'Number of images in a batch of the evaluation, and on GPUs of '
        'the prediction.'),
    Key('eval.backend', 'pycocotools', EVALUATION,
        choice('pycocotools', 'faster'),
        'The library that computes the AP. faster gives the same numbers with '
        'faster-coco-eval, if it is installed.'),
    Key('eval.proposals', False, EVALUATION, switch(),
        'Whether the recall of the proposals is computed too. If model.output '
        'is proposals, it is always computed.'),
    Key('expected.box_ap', None, EVALUATION,
        sequence([float], _AP, length=2, may_be_none=True),
        'Box AP that a complete training with this recipe should reach, (mean, '
        'tolerance); None if it is not known.'),
    Key('expected.mask_ap', None, EVALUATION,
        sequence([float], _AP, length=2, may_be_none=True),
        'Mask AP that a complete training with this recipe should reach, '
        '(mean, tolerance); None if it is not known.'),
    Key('predict.min_score', 0.5, EVALUATION, number(0, 1),
        'Detections with a lower score are not drawn; all detections are '
        'written to predictions.json.'),
    Key('predict.font', '', EVALUATION, text(),
        'Font file for the labels of pictures, such as FONT.ttf. Empty chooses '
        'a font of this system that has all characters of a label.'),
)
# fmt: on

BY_NAME: dict[str, Key] = {key.name: key for key in KEYS}

# Keys of earlier versions. The recipe in an old checkpoint may still have them.
REMOVED_KEYS = ('mesh',)


def names(**properties: bool) -> tuple[str, ...]:
  """Returns the names of the keys with given properties.

  Args:
    **properties: Attributes of `Key` and their values, such as `unseen=True`.
  """
  return tuple(
    key.name
    for key in KEYS
    if all(getattr(key, name) == value for name, value in properties.items())
  )
