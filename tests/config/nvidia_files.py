"""Recipes of NVIDIA's Mask R-CNN For PyTorch, as YAML.

They are written from the published keys and values of these files. Most keys
are in all of them, so the texts are put together from parts.
"""

_FPN_PROPOSALS = """\
    USE_FPN: True
    ANCHOR_STRIDE: (4, 8, 16, 32, 64)
    PRE_NMS_TOP_N_TRAIN: 2000
    PRE_NMS_TOP_N_TEST: 1000
    POST_NMS_TOP_N_TEST: 1000
    FPN_POST_NMS_TOP_N_TEST: 1000
"""
_BOX_HEAD = """\
  ROI_HEADS:
    USE_FPN: True
  ROI_BOX_HEAD:
    POOLER_RESOLUTION: 7
    POOLER_SCALES: (0.25, 0.125, 0.0625, 0.03125)
    POOLER_SAMPLING_RATIO: 2
    FEATURE_EXTRACTOR: "FPN2MLPFeatureExtractor"
    PREDICTOR: "FPNPredictor"
"""
_MASK_HEAD = """\
  ROI_MASK_HEAD:
    POOLER_SCALES: (0.25, 0.125, 0.0625, 0.03125)
    FEATURE_EXTRACTOR: "MaskRCNNFPNFeatureExtractor"
    PREDICTOR: "MaskRCNNC4Predictor"
    POOLER_RESOLUTION: 14
    POOLER_SAMPLING_RATIO: 2
    RESOLUTION: 28
    SHARE_BOX_FEATURE_EXTRACTOR: False
  MASK_ON: True
"""
_COCO_2014 = """\
DATASETS:
  TRAIN: ("coco_2014_train", "coco_2014_valminusminival")
  TEST: ("coco_2014_minival",)
"""
_COCO_2017 = """\
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
"""


def _fpn(
  *,
  weight: str = 'MSRA/R-50',
  body: str = 'R-50-FPN',
  proposals: str = '',
  heads: str = _BOX_HEAD + _MASK_HEAD,
  data: str = _COCO_2014,
  solver: str,
  more: str = '',
) -> str:
  """Puts the text of a file for a model with a pyramid together.

  Args:
    weight: The end of MODEL.WEIGHT.
    body: The value of CONV_BODY.
    proposals: Further lines of MODEL.RPN.
    heads: The lines about the heads.
    data: The lines about the data.
    solver: The lines of SOLVER.
    more: Lines at the end of the file.
  """
  return f"""\
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  WEIGHT: "catalog://ImageNetPretrained/{weight}"
  BACKBONE:
    CONV_BODY: "{body}"
    OUT_CHANNELS: 256
  RPN:
{_FPN_PROPOSALS}{proposals}{heads}{data}\
DATALOADER:
  SIZE_DIVISIBILITY: 32
SOLVER:
  WEIGHT_DECAY: 0.0001
{solver}{more}"""


# {name of the file: its text}
FILES = {
  # The edition of June 2020, for V100.
  'e2e_mask_rcnn_R_50_FPN_1x.yaml': _fpn(
    proposals='    FPN_POST_NMS_TOP_N_TRAIN: 4000\n',
    solver='  BASE_LR: 0.04\n  STEPS: (33000, 44000)\n  MAX_ITER: 45000\n'
    '  IMS_PER_BATCH: 32\n',
    more='TEST:\n  IMS_PER_BATCH: 8\n',
  ),
  'e2e_mask_rcnn_R_50_FPN_1x_ampere_bs64.yaml': _fpn(
    proposals='    FPN_POST_NMS_TOP_N_TRAIN: 8000\n',
    solver='  BASE_LR: 0.08\n  STEPS: (18000,24000)\n  MAX_ITER: 27500\n'
    '  IMS_PER_BATCH: 64\n  WARMUP_FACTOR: 0.0001\n  WARMUP_ITERS: 800\n'
    '  WARMUP_METHOD: "mlperf_linear"\n',
    more='TEST:\n  IMS_PER_BATCH: 8\nDTYPE: "tf32"\n',
  ),
  # The edition of 2022, in which this is the file without a suffix.
  'e2e_mask_rcnn_R_50_FPN_1x_bs96.yaml': _fpn(
    proposals='    FPN_POST_NMS_TOP_N_TRAIN: 12000\n',
    data=_COCO_2017,
    solver='  BASE_LR: 0.12\n  STEPS: (12000, 16000)\n  MAX_ITER: 16667\n'
    '  IMS_PER_BATCH: 96\n  WARMUP_FACTOR: 0.0001\n  WARMUP_ITERS: 800\n'
    '  WARMUP_METHOD: "mlperf_linear"\n',
    more='TEST:\n  IMS_PER_BATCH: 8\n',
  ),
  'e2e_mask_rcnn_R_50_FPN_1x_1GPU.yaml': _fpn(
    solver='  BASE_LR: 0.005\n  STEPS: (240000, 360000)\n'
    '  MAX_ITER: 360000\n  IMS_PER_BATCH: 4\n',
    more='TEST:\n  IMS_PER_BATCH: 1',
  ),
  'e2e_faster_rcnn_R_50_FPN_1x.yaml': _fpn(
    heads=_BOX_HEAD,
    solver='  BASE_LR: 0.02\n  STEPS: (60000, 80000)\n  MAX_ITER: 90000\n',
  ),
  'e2e_mask_rcnn_X_101_32x8d_FPN_1x.yaml': _fpn(
    weight='FAIR/20171220/X-101-32x8d',
    body='R-101-FPN',
    heads=_BOX_HEAD
    + _MASK_HEAD
    + '  RESNETS:\n    STRIDE_IN_1X1: False\n    NUM_GROUPS: 32\n'
    '    WIDTH_PER_GROUP: 8\n',
    solver='  BASE_LR: 0.01\n  STEPS: (120000, 160000)\n'
    '  MAX_ITER: 180000\n  IMS_PER_BATCH: 8\n',
  ),
  'e2e_mask_rcnn_R_50_C4_1x.yaml': """\
MODEL:
  META_ARCHITECTURE: "GeneralizedRCNN"
  WEIGHT: "catalog://ImageNetPretrained/MSRA/R-50"
  RPN:
    PRE_NMS_TOP_N_TEST: 6000
    POST_NMS_TOP_N_TEST: 1000
  ROI_MASK_HEAD:
    PREDICTOR: "MaskRCNNC4Predictor"
    SHARE_BOX_FEATURE_EXTRACTOR: True
  MASK_ON: True
DATASETS:
  TRAIN: ("coco_2014_train", "coco_2014_valminusminival")
  TEST: ("coco_2014_minival",)
SOLVER:
  BASE_LR: 0.01
  WEIGHT_DECAY: 0.0001
  STEPS: (120000, 160000)
  MAX_ITER: 180000
  IMS_PER_BATCH: 8
""",
  'scratch_e2e_mask_rcnn_R_50_FPN_Xconv1fc_3x_gn.yaml': _fpn(
    body='R-50-FPN"\n    FREEZE_CONV_BODY_AT: 0 # finetune all layers\n'
    '    USE_GN: "False',
    heads=_BOX_HEAD.replace('FPN2MLP', 'FPNXconv1fc')
    + '    USE_GN: True\n    CONV_HEAD_DIM: 256\n    NUM_STACKED_CONVS: 4\n'
    + _MASK_HEAD.replace('  MASK_ON', '    USE_GN: True\n  MASK_ON')
    + '  RESNETS:\n    TRANS_FUNC: "BottleneckWithGN"\n'
    '    STEM_FUNC: "StemWithGN"\n  FPN:\n    USE_GN: True\n',
    solver='  BASE_LR: 0.02\n  STEPS: (210000, 250000)\n'
    '  MAX_ITER: 270000\n  IMS_PER_BATCH: 16\n',
    more='TEST:\n  IMS_PER_BATCH: 8\n',
  ),
}

# {short name: name of the file}
NAMES = {
  'bs32': 'e2e_mask_rcnn_R_50_FPN_1x.yaml',
  'bs64': 'e2e_mask_rcnn_R_50_FPN_1x_ampere_bs64.yaml',
  'bs96': 'e2e_mask_rcnn_R_50_FPN_1x_bs96.yaml',
  '1gpu': 'e2e_mask_rcnn_R_50_FPN_1x_1GPU.yaml',
  'boxes': 'e2e_faster_rcnn_R_50_FPN_1x.yaml',
  'x101': 'e2e_mask_rcnn_X_101_32x8d_FPN_1x.yaml',
  'c4': 'e2e_mask_rcnn_R_50_C4_1x.yaml',
  'gn': 'scratch_e2e_mask_rcnn_R_50_FPN_Xconv1fc_3x_gn.yaml',
}
