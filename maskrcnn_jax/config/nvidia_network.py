"""Translates the keys of NVIDIA's program that describe the network.

Each function adds our keys to `values`, and the reason to `problems` if a value
of NVIDIA's program has no counterpart.
"""

from typing import Any

# {ending of CONV_BODY: (model.body, strides of the levels with anchors, strides
# of the levels with RoIs)}
_BODIES = {
  'C4': ('c4', (16,), (16,)),
  'C5': ('c5', (32,), (32,)),
  'FPN': ('fpn', (4, 8, 16, 32, 64), (4, 8, 16, 32)),
}
_NUM_GPUS = 8  # of the machines that NVIDIA's files are written for


def translate_network(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  notes: dict[str, str],
) -> None:
  """Translates body, anchors, proposals and heads.

  Args:
    theirs: The values of all keys of NVIDIA's program.
    values: {key of this program: value}; entries are added.
    problems: {key of NVIDIA's program: reason}; entries are added.
    notes: {key of NVIDIA's program: remark for the log}; entries are added.
  """
  values['model.output'] = (
    'proposals'
    if theirs['MODEL.RPN_ONLY']
    else 'masks'
    if theirs['MODEL.MASK_ON']
    else 'boxes'
  )
  stages = theirs['MODEL.BACKBONE.FREEZE_CONV_BODY_AT']
  values['freeze_at'] = max(stages, 0)
  if stages > 5:
    problems['MODEL.BACKBONE.FREEZE_CONV_BODY_AT'] = (
      f'it is {stages}; a ResNet has 5 stages'
    )
  name = theirs['MODEL.BACKBONE.CONV_BODY']
  _, _, ending = name.rpartition('-')
  depths = {'R-50': 50, 'R-101': 101}
  depth = depths.get(name.removesuffix(f'-{ending}'))
  if depth is None or ending not in _BODIES:
    problems['MODEL.BACKBONE.CONV_BODY'] = (
      f'it is {name!r}; only R-50 and R-101 with C4, C5 or FPN are possible'
    )
    return
  body, anchor_strides, roi_strides = _BODIES[ending]
  values['model.depth'] = depth
  values['model.body'] = body
  _translate_body(theirs, values, problems, body)
  _translate_anchors(theirs, values, problems, anchor_strides)
  _translate_proposals(theirs, values, notes, body)
  has_boxes = not theirs['MODEL.RPN_ONLY']
  has_masks = has_boxes and theirs['MODEL.MASK_ON']
  if has_boxes:
    _translate_box_head(theirs, values, problems, body)
  if has_masks:
    _translate_mask_head(theirs, values, problems, body)
  scales = tuple(1 / stride for stride in roi_strides)
  for head, is_there in (('BOX', has_boxes), ('MASK', has_masks)):
    key = f'MODEL.ROI_{head}_HEAD.POOLER_SCALES'
    if is_there and theirs[key] != scales:
      problems[key] = f'it is {theirs[key]}; {name} needs {scales}'
  _translate_norm(theirs, values, problems, has_boxes, has_masks)


def _translate_body(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  body: str,
) -> None:
  """Translates the sizes of body and pyramid.

  Args:
    theirs: As in `translate_network`.
    values: As in `translate_network`.
    problems: As in `translate_network`.
    body: The value of `model.body`.
  """
  is_fpn = body == 'fpn'
  for key in ('MODEL.RPN.USE_FPN', 'MODEL.ROI_HEADS.USE_FPN'):
    if theirs[key] != is_fpn and not (
      theirs['MODEL.RPN_ONLY'] and 'HEADS' in key
    ):
      problems[key] = (
        f'it is {theirs[key]}, but CONV_BODY is '
        f'{theirs["MODEL.BACKBONE.CONV_BODY"]}; give {is_fpn}'
      )
  stem = theirs['MODEL.RESNETS.STEM_OUT_CHANNELS']
  first = theirs['MODEL.RESNETS.RES2_OUT_CHANNELS']
  if first != 4 * stem:
    problems['MODEL.RESNETS.RES2_OUT_CHANNELS'] = (
      f'it is {first}; it must be 4 times STEM_OUT_CHANNELS, {4 * stem}'
    )
  channels = theirs['MODEL.BACKBONE.OUT_CHANNELS']
  if is_fpn:
    values['model.fpn_channels'] = channels
  elif channels != first * {'c4': 4, 'c5': 8}[body]:
    problems['MODEL.BACKBONE.OUT_CHANNELS'] = (
      f'it is {channels}; the body has {first * {"c4": 4, "c5": 8}[body]}'
    )


def _translate_anchors(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  strides: tuple[int, ...],
) -> None:
  """Translates the sizes of the anchors.

  Args:
    theirs: As in `translate_network`.
    values: As in `translate_network`.
    problems: As in `translate_network`.
    strides: The strides of the levels that have anchors.
  """
  sizes = theirs['MODEL.RPN.ANCHOR_SIZES']
  if not all(isinstance(size, int | float) for size in sizes):
    problems['MODEL.RPN.ANCHOR_SIZES'] = f'it is {sizes}; give numbers'
    return
  sizes = tuple(map(float, sizes))
  if len(strides) == 1:
    values['anchors.sizes'] = (sizes,)
  else:
    values['anchors.sizes'] = tuple((size,) for size in sizes)
    if len(sizes) != len(strides):
      problems['MODEL.RPN.ANCHOR_SIZES'] = (
        f'there are {len(sizes)} sizes; give one for each of '
        f'{len(strides)} levels'
      )
  if theirs['MODEL.RPN.ANCHOR_STRIDE'] != strides:
    problems['MODEL.RPN.ANCHOR_STRIDE'] = (
      f'it is {theirs["MODEL.RPN.ANCHOR_STRIDE"]}; CONV_BODY '
      f'{theirs["MODEL.BACKBONE.CONV_BODY"]} needs {strides}'
    )


def _translate_proposals(
  theirs: dict[str, Any],
  values: dict[str, Any],
  notes: dict[str, str],
  body: str,
) -> None:
  """Translates the numbers of proposals.

  NVIDIA's program keeps the best FPN_POST_NMS_TOP_N_TRAIN proposals of all
  images of a GPU together, this program the best of each image. The files of
  NVIDIA are for 8 GPUs, or for one if the batch cannot be divided by 8.

  Args:
    theirs: As in `translate_network`.
    values: As in `translate_network`.
    notes: As in `translate_network`.
    body: The value of `model.body`.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, modeling/rpn/inference.py.
  """
  rpn = 'MODEL.RPN.'
  if body != 'fpn':
    values['rpn.train.num_proposals'] = theirs[f'{rpn}POST_NMS_TOP_N_TRAIN']
    values['rpn.eval.num_proposals'] = theirs[f'{rpn}POST_NMS_TOP_N_TEST']
    return
  values['rpn.eval.num_proposals'] = theirs[f'{rpn}FPN_POST_NMS_TOP_N_TEST']
  number = theirs[f'{rpn}FPN_POST_NMS_TOP_N_TRAIN']
  if theirs[f'{rpn}FPN_POST_NMS_PER_BATCH']:
    batch = theirs['SOLVER.IMS_PER_BATCH']
    num_gpus = 1 if batch % _NUM_GPUS else _NUM_GPUS
    per_gpu = max(batch // num_gpus, 1)
    notes[f'{rpn}FPN_POST_NMS_TOP_N_TRAIN'] = (
      f'for each image; there for all images of a GPU, {per_gpu} of a batch of '
      f'{batch} on {num_gpus} GPU{"s" if num_gpus > 1 else ""}'
    )
    number = max(number // per_gpu, 1)
  values['rpn.train.num_proposals'] = number


def _translate_box_head(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  body: str,
) -> None:
  """Translates the box head. The arguments are those of `_translate_body`."""
  ious = [
    theirs[f'MODEL.ROI_HEADS.{end}_IOU_THRESHOLD'] for end in ('FG', 'BG')
  ]
  if ious[0] != ious[1]:
    problems['MODEL.ROI_HEADS.BG_IOU_THRESHOLD'] = (
      f'it is {ious[1]}, but FG_IOU_THRESHOLD is {ious[0]}; give the same '
      'number, because every RoI is either foreground or background'
    )
  head = 'MODEL.ROI_BOX_HEAD.'
  extractor = theirs[f'{head}FEATURE_EXTRACTOR']
  values['roi.box_side'] = theirs[f'{head}POOLER_RESOLUTION']
  values['roi.sampling_ratio'] = theirs[f'{head}POOLER_SAMPLING_RATIO']
  values['model.box_features'] = theirs[f'{head}MLP_HEAD_DIM']
  is_last_stage = extractor == 'ResNet50Conv5ROIFeatureExtractor'
  if is_last_stage != (body == 'c4'):
    problems[f'{head}FEATURE_EXTRACTOR'] = (
      f'it is {extractor}, which does not fit CONV_BODY '
      f'{theirs["MODEL.BACKBONE.CONV_BODY"]}'
    )
  if (theirs[f'{head}PREDICTOR'] == 'FastRCNNPredictor') != is_last_stage:
    problems[f'{head}PREDICTOR'] = (
      f'it is {theirs[f"{head}PREDICTOR"]}, which does not fit {extractor}'
    )
  convs = theirs[f'{head}NUM_STACKED_CONVS']
  values['model.box_convs'], values['model.box_fcs'] = {
    'ResNet50Conv5ROIFeatureExtractor': (0, 0),
    'FPN2MLPFeatureExtractor': (0, 2),
    'FPNXconv1fcFeatureExtractor': (convs, 1),
  }[extractor]
  channels = theirs['MODEL.BACKBONE.OUT_CHANNELS']
  if (
    extractor == 'FPNXconv1fcFeatureExtractor'
    and theirs[f'{head}CONV_HEAD_DIM'] != channels
  ):
    problems[f'{head}CONV_HEAD_DIM'] = (
      f'it is {theirs[f"{head}CONV_HEAD_DIM"]}; give {channels}, because the '
      'convolutions keep the number of channels'
    )


def _translate_mask_head(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  body: str,
) -> None:
  """Translates the mask head. The arguments are those of `_translate_body`."""
  head = 'MODEL.ROI_MASK_HEAD.'
  layers = theirs[f'{head}CONV_LAYERS']
  side = theirs[f'{head}POOLER_RESOLUTION']
  values['roi.mask_side'] = side
  is_last_stage = (
    theirs[f'{head}FEATURE_EXTRACTOR'] == 'ResNet50Conv5ROIFeatureExtractor'
  )
  if is_last_stage != (body == 'c4'):
    problems[f'{head}FEATURE_EXTRACTOR'] = (
      f'it is {theirs[f"{head}FEATURE_EXTRACTOR"]}, which does not fit '
      f'CONV_BODY {theirs["MODEL.BACKBONE.CONV_BODY"]}'
    )
  if not layers or len(set(layers)) > 1:
    problems[f'{head}CONV_LAYERS'] = (
      f'it is {layers}; give the same number of channels for each layer'
    )
    return
  values['model.mask_channels'] = layers[-1]
  values['model.mask_convs'] = 0 if is_last_stage else len(layers)
  # The last stage of the ResNet halves the side, the deconvolution doubles it.
  mask_side = side if is_last_stage else 2 * side
  if theirs[f'{head}RESOLUTION'] != mask_side:
    problems[f'{head}RESOLUTION'] = (
      f'it is {theirs[f"{head}RESOLUTION"]}; POOLER_RESOLUTION {side} gives '
      f'masks of {mask_side}'
    )
  ratio = theirs[f'{head}POOLER_SAMPLING_RATIO']
  if ratio != theirs['MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO']:
    problems[f'{head}POOLER_SAMPLING_RATIO'] = (
      f'it is {ratio}; it must be the same as that of ROI_BOX_HEAD'
    )
  if theirs[f'{head}SHARE_BOX_FEATURE_EXTRACTOR'] != is_last_stage:
    problems[f'{head}SHARE_BOX_FEATURE_EXTRACTOR'] = (
      f'give {is_last_stage} with CONV_BODY '
      f'{theirs["MODEL.BACKBONE.CONV_BODY"]}'
    )


def _translate_norm(
  theirs: dict[str, Any],
  values: dict[str, Any],
  problems: dict[str, str],
  has_boxes: bool,
  has_masks: bool,
) -> None:
  """Translates the normalization.

  Args:
    theirs: As in `translate_network`.
    values: As in `translate_network`.
    problems: As in `translate_network`.
    has_boxes: Whether the model has a box head.
    has_masks: Whether the model has a mask head.
  """
  box, mask = 'MODEL.ROI_BOX_HEAD.', 'MODEL.ROI_MASK_HEAD.'
  is_group = theirs['MODEL.RESNETS.TRANS_FUNC'] == 'BottleneckWithGN'
  values['model.norm'] = 'group' if is_group else 'frozen_batch'
  stem = 'GN' if is_group else 'FixedBatchNorm'
  if theirs['MODEL.RESNETS.STEM_FUNC'] != f'StemWith{stem}':
    problems['MODEL.RESNETS.STEM_FUNC'] = (
      f'it is {theirs["MODEL.RESNETS.STEM_FUNC"]}, but TRANS_FUNC is '
      f'{theirs["MODEL.RESNETS.TRANS_FUNC"]}; give StemWith{stem}'
    )
  last_stage = 'ResNet50Conv5ROIFeatureExtractor'
  parts = {
    'MODEL.FPN.USE_GN': values['model.body'] == 'fpn',
    f'{box}USE_GN': has_boxes
    and theirs[f'{box}FEATURE_EXTRACTOR'] != last_stage,
    f'{mask}USE_GN': has_masks
    and theirs[f'{mask}FEATURE_EXTRACTOR'] != last_stage,
  }
  for key, is_there in parts.items():
    if is_there and theirs[key] != is_group:
      problems[key] = (
        f'it is {theirs[key]}, but TRANS_FUNC is '
        f'{theirs["MODEL.RESNETS.TRANS_FUNC"]}; group norm is either in all of '
        'body, pyramid and heads or in none of them'
      )
  if (
    is_group
    and has_boxes
    and theirs[f'{box}FEATURE_EXTRACTOR'] == 'FPN2MLPFeatureExtractor'
  ):
    problems[f'{box}FEATURE_EXTRACTOR'] = (
      'it is FPN2MLPFeatureExtractor with group norm, which is not possible '
      'in the fully connected layers here; take FPNXconv1fcFeatureExtractor'
    )
