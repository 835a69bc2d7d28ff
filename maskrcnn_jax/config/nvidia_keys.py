"""The table of all keys of NVIDIA's Mask R-CNN For PyTorch, and their meaning.

These are also the keys of maskrcnn-benchmark, from which that program was made.
`ROWS` is the only list of these keys. `nvidia_recipe.py` translates a recipe of
that program with it, and `other_programs.py` makes the documentation from it.

Source:
  NVIDIA's Mask R-CNN For PyTorch and facebookresearch/maskrcnn-benchmark,
  maskrcnn_benchmark/config/defaults.py.
"""

import re
from typing import Any, NamedTuple

# The values that a row accepts: any value of the right type.
ANY = ('any value',)


class Row(NamedTuple):
  """A key of NVIDIA's program.

  Attributes:
    name: The full name, such as 'SOLVER.BASE_LR'.
    default: The value if a file does not set the key. `None`: this program
      keeps its own default.
    keys: The keys of this program that the value decides, or a flag such as
      '--workdir'. If there is only one key and `is_direct`, it has this value.
    is_direct: Whether the value is copied to the only key, as a number or a
      tuple of the type of that key.
    accepted: The values that this program accepts; `ANY` for all values of the
      type of the default.
    note: A clause about the counterpart, or the reason why there is none.
    file_only: Whether the meaning of the value depends on other keys of the
      file, so that the key cannot be changed in a recipe of this program.
  """

  name: str
  default: Any
  keys: tuple[str, ...] = ()
  is_direct: bool = False
  accepted: tuple[Any, ...] = ANY
  note: str = ''
  file_only: bool = False


def _copied(name: str, default: Any, key: str, note: str = '') -> Row:
  """Returns a row whose value is copied to one key of this program."""
  return Row(name, default, (key,), is_direct=True, note=note)


def _fixed(name: str, default: Any, note: str, *others: Any) -> Row:
  """Returns a row without a key here: only some values are accepted.

  Args:
    name: The name.
    default: The default of NVIDIA's program; it is accepted.
    note: The reason, a clause that follows 'here'.
    *others: Further accepted values.
  """
  return Row(name, default, accepted=(default, *others), note=note)


def _unneeded(name: str, default: Any, note: str) -> Row:
  """Returns a row without a key here whose value does not matter."""
  return Row(name, default, note=note)


def _structure(
  name: str, default: Any, *keys: str, note: str = '', accepted: tuple = ANY
) -> Row:
  """Returns a row that is translated together with other keys of the file."""
  return Row(name, default, keys, accepted=accepted, note=note, file_only=True)


# Values that depend on CONV_BODY.
_BY_BODY = 'must fit MODEL.BACKBONE.CONV_BODY'
_GROUP_NORM = (
  'group norm in all of body, pyramid and heads is model.norm = group, in none '
  'of them frozen_batch'
)
_ACCUMULATION = (
  'N steps of accumulation are a batch of N times IMS_PER_BATCH in N micro '
  'batches; MAX_ITER and CHECKPOINT_PERIOD are divided by N, the learning rate '
  'and the steps of the schedule stay'
)

# The formatter is off, because it would spread each key over many lines.
# fmt: off
ROWS: tuple[Row, ...] = (
    # Names and folders.
    Row('OUTPUT_DIR', None, ('--workdir',)),
    Row('MODEL.WEIGHT', '', ('--init_from',),
        note='a folder with a checkpoint is used, and the weights of a '
        'catalog:// name are downloaded; for another file the program says how '
        'to convert it with convert_weights'),
    Row('DATASETS.TRAIN', (), ('data.train.images', 'data.train.annotations'),
        note='`coco_2014_*` and `coco_2017_*` are expected in data/coco'),
    Row('DATASETS.TEST', (), ('data.eval.images', 'data.eval.annotations'),
        note='one set'),
    _unneeded('PATHS_CATALOG', None,
              'COCO is expected in data/coco, and other sets are given with '
              '--config.data.train.images, .annotations and config.data.eval'),

    # The schedule.
    Row('SOLVER.IMS_PER_BATCH', 16, ('train.batch_size',)),
    Row('SOLVER.ACCUMULATE_GRAD', False,
        ('train.batch_size', 'train.micro_batches', 'train.num_steps',
         'train.checkpoint_every'), note=_ACCUMULATION),
    Row('SOLVER.ACCUMULATE_STEPS', 1,
        ('train.batch_size', 'train.micro_batches', 'train.num_steps',
         'train.checkpoint_every'), note='see SOLVER.ACCUMULATE_GRAD'),
    Row('SOLVER.MAX_ITER', 40_000, ('train.num_steps',)),
    Row('SOLVER.CHECKPOINT_PERIOD', 2500, ('train.checkpoint_every',)),
    _copied('SOLVER.BASE_LR', 0.001, 'optimizer.learning_rate'),
    _copied('SOLVER.BIAS_LR_FACTOR', 2.0, 'optimizer.bias_rate_factor'),
    _copied('SOLVER.MOMENTUM', 0.9, 'optimizer.momentum'),
    _copied('SOLVER.WEIGHT_DECAY', 0.0005, 'optimizer.weight_decay'),
    _fixed('SOLVER.WEIGHT_DECAY_BIAS', 0.0, 'biases have no weight decay'),
    _copied('SOLVER.GAMMA', 0.1, 'optimizer.decay_factor'),
    _copied('SOLVER.STEPS', (30_000,), 'optimizer.decay_steps'),
    Row('SOLVER.WARMUP_METHOD', 'linear', ('optimizer.warmup',), True,
        ('constant', 'linear', 'mlperf_linear')),
    _copied('SOLVER.WARMUP_ITERS', 500, 'optimizer.warmup_steps'),
    _copied('SOLVER.WARMUP_FACTOR', 1 / 3, 'optimizer.warmup_factor'),

    # Evaluation and precision.
    _copied('TEST.IMS_PER_BATCH', 8, 'eval.batch_size'),
    Row('TEST.EXPECTED_RESULTS', (), ('expected.box_ap', 'expected.mask_ap'),
        note='the tolerance is the standard deviation times '
        'EXPECTED_RESULTS_SIGMA_TOL'),
    Row('TEST.EXPECTED_RESULTS_SIGMA_TOL', 4.0,
        ('expected.box_ap', 'expected.mask_ap')),
    Row('PER_EPOCH_EVAL', False,
        ('train.eval_every_epochs', 'train.min_box_ap', 'train.min_mask_ap'),
        note='True also sets the two APs, which are .377 and .342 if they are '
        'not given'),
    Row('MIN_BBOX_MAP', 0.377, ('train.min_box_ap',),
        note='has an effect only with PER_EPOCH_EVAL True'),
    Row('MIN_MASK_MAP', 0.342, ('train.min_mask_ap',),
        note='has an effect only with PER_EPOCH_EVAL True'),
    Row('DTYPE', None, ('precision',),
        accepted=('float32', 'tf32', 'float16', 'bfloat16'),
        note='fp32, tf32, fp16 or bf16; without DTYPE it is auto, which is '
        'tf32 from Ampere on and fp32 before. --amp and --fp16 are float16'),
    _fixed('SAVE_CHECKPOINT', True,
           'a training always saves checkpoints; --config.train.'
           'checkpoint_every and keep_checkpoints say how many'),

    # Images.
    _structure('INPUT.MIN_SIZE_TRAIN', (800,), 'data.short_sides',
               note='empty if it equals MIN_SIZE_TEST; no size may be above '
               'MIN_SIZE_TEST'),
    _structure('INPUT.MIN_SIZE_TEST', 800, 'data.short_side',
               'data.padded_sizes'),
    _structure('INPUT.MAX_SIZE_TRAIN', 1333, 'data.long_side',
               note='must equal MAX_SIZE_TEST'),
    _structure('INPUT.MAX_SIZE_TEST', 1333, 'data.long_side',
               'data.padded_sizes'),
    _structure('INPUT.PIXEL_MEAN', (102.9801, 115.9465, 122.7717),
               'data.pixel_mean', note='RGB here'),
    _structure('INPUT.PIXEL_STD', (1.0, 1.0, 1.0), 'data.pixel_std',
               note='RGB here'),
    _structure('INPUT.TO_BGR255', True, 'data.pixel_mean', 'data.pixel_std',
               note='False: mean and standard deviation are RGB in [0, 1]'),
    _copied('INPUT.HORIZONTAL_FLIP_PROB_TRAIN', 0.5, 'data.flip_probability'),
    _fixed('INPUT.VERTICAL_FLIP_PROB_TRAIN', 0.0,
           'images are not mirrored top to bottom'),
    Row('INPUT.BRIGHTNESS', 0.0, ('data.color_jitter',)),
    Row('INPUT.CONTRAST', 0.0, ('data.color_jitter',)),
    Row('INPUT.SATURATION', 0.0, ('data.color_jitter',)),
    _fixed('INPUT.HUE', 0.0, 'the hue is not changed'),
    _copied('DATALOADER.NUM_WORKERS', None, 'data.num_workers',
            'processes for all GPUs of a machine together'),
    _structure('DATALOADER.SIZE_DIVISIBILITY', 0, accepted=(0, 32),
               note='the size is rounded up to 32 pixels with FPN, to 16 with '
               'C4'),
    _fixed('DATALOADER.ASPECT_RATIO_GROUPING', True,
           'the images of a batch always have the same padded size'),
    _unneeded('DATALOADER.HYBRID', True,
              'files are decoded on the host, resized on the device'),

    # The network.
    _fixed('MODEL.META_ARCHITECTURE', 'GeneralizedRCNN',
           'there is no other architecture'),
    _structure('MODEL.MASK_ON', False, 'model.output', note='masks or boxes'),
    _structure('MODEL.RPN_ONLY', False, 'model.output', note='proposals'),
    _fixed('MODEL.KEYPOINT_ON', False, 'there are no keypoints'),
    _fixed('MODEL.RETINANET_ON', False, 'there is no RetinaNet'),
    _fixed('MODEL.CLS_AGNOSTIC_BBOX_REG', False,
           'boxes are predicted for each class'),
    _structure('MODEL.BACKBONE.CONV_BODY', 'R-50-C4', 'model.body',
               'model.depth'),
    Row('MODEL.BACKBONE.FREEZE_CONV_BODY_AT', 2, ('freeze_at',)),
    _structure('MODEL.BACKBONE.OUT_CHANNELS', 1024, 'model.fpn_channels',
               note=f'without FPN it {_BY_BODY}'),
    _unneeded('MODEL.BACKBONE.USE_GN', False,
              'the program of NVIDIA does not read it either'),
    _structure('MODEL.RESNETS.TRANS_FUNC', 'BottleneckWithFixedBatchNorm',
               'model.norm', note=_GROUP_NORM,
               accepted=('BottleneckWithFixedBatchNorm', 'BottleneckWithGN')),
    _structure('MODEL.RESNETS.STEM_FUNC', 'StemWithFixedBatchNorm',
               'model.norm', note=_GROUP_NORM,
               accepted=('StemWithFixedBatchNorm', 'StemWithGN')),
    _structure('MODEL.FPN.USE_GN', False, 'model.norm', note=_GROUP_NORM),
    _structure('MODEL.ROI_BOX_HEAD.USE_GN', False, 'model.norm',
               note=_GROUP_NORM),
    _structure('MODEL.ROI_MASK_HEAD.USE_GN', False, 'model.norm',
               note=_GROUP_NORM),
    _fixed('MODEL.FPN.USE_RELU', False, 'the pyramid has no ReLU'),
    _fixed('MODEL.GROUP_NORM.NUM_GROUPS', 32, 'group norm has 32 groups'),
    _fixed('MODEL.GROUP_NORM.DIM_PER_GP', -1, 'group norm has 32 groups'),
    _fixed('MODEL.GROUP_NORM.EPSILON', 1e-5, 'it is the same'),
    _copied('MODEL.RESNETS.NUM_GROUPS', 1, 'model.groups'),
    _copied('MODEL.RESNETS.WIDTH_PER_GROUP', 64, 'model.group_width'),
    _copied('MODEL.RESNETS.STRIDE_IN_1X1', True, 'model.stride_in_1x1'),
    _copied('MODEL.RESNETS.STEM_OUT_CHANNELS', 64, 'model.width'),
    _structure('MODEL.RESNETS.RES2_OUT_CHANNELS', 256,
               note='must be 4 times STEM_OUT_CHANNELS'),
    _fixed('MODEL.RESNETS.RES5_DILATION', 1,
           'for a dilated last stage take the recipe r50_dc5'),

    # Anchors and proposals.
    _structure('MODEL.RPN.USE_FPN', False, 'model.body', note=_BY_BODY),
    _structure('MODEL.RPN.ANCHOR_SIZES', (32, 64, 128, 256, 512),
               'anchors.sizes', note='one size for each level with FPN'),
    _structure('MODEL.RPN.ANCHOR_STRIDE', (16,), note=_BY_BODY),
    _copied('MODEL.RPN.ASPECT_RATIOS', (0.5, 1.0, 2.0), 'anchors.ratios'),
    _fixed('MODEL.RPN.STRADDLE_THRESH', 0,
           'geometry = legacy ignores anchors that cross an edge'),
    _copied('MODEL.RPN.FG_IOU_THRESHOLD', 0.7, 'rpn.foreground_iou'),
    _copied('MODEL.RPN.BG_IOU_THRESHOLD', 0.3, 'rpn.background_iou'),
    _copied('MODEL.RPN.BATCH_SIZE_PER_IMAGE', 256, 'rpn.num_samples'),
    _copied('MODEL.RPN.POSITIVE_FRACTION', 0.5, 'rpn.foreground_fraction'),
    _copied('MODEL.RPN.PRE_NMS_TOP_N_TRAIN', 12_000, 'rpn.train.pre_nms'),
    _copied('MODEL.RPN.PRE_NMS_TOP_N_TEST', 6000, 'rpn.eval.pre_nms'),
    _copied('MODEL.RPN.POST_NMS_TOP_N_TRAIN', 2000, 'rpn.train.post_nms'),
    _copied('MODEL.RPN.POST_NMS_TOP_N_TEST', 1000, 'rpn.eval.post_nms'),
    _copied('MODEL.RPN.NMS_THRESH', 0.7, 'rpn.iou_threshold'),
    _fixed('MODEL.RPN.MIN_SIZE', 0, 'boxes of any size are proposed'),
    _structure('MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN', 2000,
               'rpn.train.num_proposals',
               note='there it is the number for all images of a GPU, here for '
               'each image: it is divided by the images of each of 8 GPUs, or '
               'of one GPU if the batch is no multiple of 8'),
    _structure('MODEL.RPN.FPN_POST_NMS_TOP_N_TEST', 2000,
               'rpn.eval.num_proposals'),
    _structure('MODEL.RPN.FPN_POST_NMS_PER_BATCH', True,
               'rpn.train.num_proposals',
               note='False: FPN_POST_NMS_TOP_N_TRAIN is for each image'),
    _fixed('MODEL.RPN.RPN_HEAD', 'SingleConvRPNHead',
           'the RPN has one convolution'),

    # The heads.
    _structure('MODEL.ROI_HEADS.USE_FPN', False, 'model.body', note=_BY_BODY),
    _copied('MODEL.ROI_HEADS.FG_IOU_THRESHOLD', 0.5, 'roi.foreground_iou'),
    _structure('MODEL.ROI_HEADS.BG_IOU_THRESHOLD', 0.5, 'roi.foreground_iou',
               note='must equal FG_IOU_THRESHOLD'),
    _fixed('MODEL.ROI_HEADS.BBOX_REG_WEIGHTS', (10.0, 10.0, 5.0, 5.0),
           'they belong to geometry = legacy'),
    _copied('MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE', 512, 'roi.num_samples'),
    _copied('MODEL.ROI_HEADS.POSITIVE_FRACTION', 0.25,
            'roi.foreground_fraction'),
    _copied('MODEL.ROI_HEADS.SCORE_THRESH', 0.05, 'detections.min_score'),
    _copied('MODEL.ROI_HEADS.NMS', 0.5, 'detections.iou_threshold'),
    _copied('MODEL.ROI_HEADS.DETECTIONS_PER_IMG', 100,
            'detections.max_detections'),
    _structure('MODEL.ROI_BOX_HEAD.FEATURE_EXTRACTOR',
               'ResNet50Conv5ROIFeatureExtractor', 'model.box_convs',
               'model.box_fcs',
               accepted=('ResNet50Conv5ROIFeatureExtractor',
                         'FPN2MLPFeatureExtractor',
                         'FPNXconv1fcFeatureExtractor')),
    _structure('MODEL.ROI_BOX_HEAD.PREDICTOR', 'FastRCNNPredictor',
               note='must fit FEATURE_EXTRACTOR',
               accepted=('FastRCNNPredictor', 'FPNPredictor')),
    _structure('MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION', 14, 'roi.box_side'),
    _structure('MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO', 0,
               'roi.sampling_ratio',
               note='must be the same for the box head and the mask head'),
    _structure('MODEL.ROI_BOX_HEAD.POOLER_SCALES', (1 / 16,), note=_BY_BODY),
    _unneeded('MODEL.ROI_BOX_HEAD.NUM_CLASSES', 81,
              'the number of classes comes from the annotations'),
    _structure('MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM', 1024, 'model.box_features'),
    _structure('MODEL.ROI_BOX_HEAD.CONV_HEAD_DIM', 256,
               note='must be the number of channels of the pyramid'),
    _structure('MODEL.ROI_BOX_HEAD.NUM_STACKED_CONVS', 4, 'model.box_convs',
               note='has an effect only with FPNXconv1fcFeatureExtractor'),
    _fixed('MODEL.ROI_BOX_HEAD.DILATION', 1, 'the heads are not dilated'),
    _structure('MODEL.ROI_MASK_HEAD.FEATURE_EXTRACTOR',
               'ResNet50Conv5ROIFeatureExtractor', 'model.mask_convs',
               accepted=('ResNet50Conv5ROIFeatureExtractor',
                         'MaskRCNNFPNFeatureExtractor')),
    _fixed('MODEL.ROI_MASK_HEAD.PREDICTOR', 'MaskRCNNC4Predictor',
           'it is the same'),
    _structure('MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION', 14, 'roi.mask_side'),
    _structure('MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO', 0,
               'roi.sampling_ratio',
               note='must be the same for the box head and the mask head'),
    _structure('MODEL.ROI_MASK_HEAD.POOLER_SCALES', (1 / 16,), note=_BY_BODY),
    _structure('MODEL.ROI_MASK_HEAD.CONV_LAYERS', (256, 256, 256, 256),
               'model.mask_convs', 'model.mask_channels',
               note='all layers must have the same number of channels'),
    _structure('MODEL.ROI_MASK_HEAD.RESOLUTION', 14,
               note='must be the side that POOLER_RESOLUTION gives'),
    _structure('MODEL.ROI_MASK_HEAD.SHARE_BOX_FEATURE_EXTRACTOR', True,
               note='must be True with a C4 body and False with FPN'),
    _unneeded('MODEL.ROI_MASK_HEAD.MLP_HEAD_DIM', 1024,
              'the mask head has no fully connected layer'),
    _unneeded('MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS', False,
              'masks are always pasted into the image'),
    _fixed('MODEL.ROI_MASK_HEAD.POSTPROCESS_MASKS_THRESHOLD', 0.5,
           'it is the same'),
    _fixed('MODEL.ROI_MASK_HEAD.DILATION', 1, 'the heads are not dilated'),

    # The machine.
    _unneeded('MODEL.DEVICE', 'cuda',
              'all GPUs are used; JAX_PLATFORMS=cpu chooses the CPU'),
    _unneeded('NHWC', True, 'the layout is always NHWC'),
    _unneeded('USE_TORCH_DDP', True, 'JAX divides the batch over the devices'),
    _unneeded('AMP_VERBOSE', False, 'there is no apex'),
)
# fmt: on

BY_NAME: dict[str, Row] = {row.name: row for row in ROWS}

# The first parts of the names.
GROUPS = tuple(
  dict.fromkeys(row.name.split('.')[0] for row in ROWS if '.' in row.name)
)

_NAME = re.compile(r'[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*')


def is_nvidia_key(text: str) -> bool:
  """Tells whether a text is a key of NVIDIA's program or of its relatives.

  A name that begins with a group of keys such as 'SOLVER.' counts even if the
  key does not exist, so that the message about it is about a key.
  """
  return text in BY_NAME or (
    bool(_NAME.fullmatch(text))
    and text.partition('.')[0] in GROUPS
    and '.' in text
  )
