"""Recognises networks that this program does not have, by names of arrays."""

from collections.abc import Iterable
import re
from typing import NamedTuple


class _Network(NamedTuple):
  """A network that this program does not have."""

  name: str
  pattern: str  # of the name of an array that only this network has
  instead: str  # advice to the user, a clause


_RESNET = 'take a file of the same detector with a plain ResNet or ResNeXt'
_MASK_RCNN = 'take a Mask R-CNN or Faster R-CNN with the same ResNet'
_OTHER_BACKBONE = 'take a ResNet or ResNeXt'

# Detectors. The names may be anywhere in a file, also beside its backbone.
_DETECTORS = (
  _Network(
    'a Cascade R-CNN',
    r'box_predictor\.\d+\.|b?box_head\.\d+\.(fc|conv|shared_fcs)',
    _MASK_RCNN,
  ),
  _Network('PointRend', r'(^|[._])(point_head|coarse_head)\.', _MASK_RCNN),
  _Network(
    'a Keypoint R-CNN',
    r'(^|[._])keypoint(_head|_predictor)?\.|kps_',
    _MASK_RCNN,
  ),
  _Network(
    'a detector of mmdetection, whose names this program does not read',
    r'(^|\.)(neck\.(lateral|fpn)_convs|rpn_head\.rpn_|roi_head\.\w+_head)\.?',
    'take the same model from torchvision or detectron2',
  ),
  _Network(
    'a RetinaNet or FCOS',
    r'head\.(cls|bbox)_(subnet|tower)|head\.(classification|regression)_head'
    r'|bbox_head\.(retina|cls_convs)',
    _MASK_RCNN,
  ),
  _Network(
    'a DETR or another detector with a transformer',
    r'class_labels_classifier|query_embed|query_position_embed'
    r'|(transformer|model)\.(encoder|decoder)\.layers\.|bbox_predictor\.layers'
    r'|(encoder|decoder)\.layers\.\d+\.(self|encoder|cross)_attn',
    _MASK_RCNN,
  ),
  _Network(
    'a YOLO detector',
    r'(^|\.)model\.\d+\.(conv|bn|cv\d|m|dfl)\.|(^|\.)module_list\.\d+\.',
    _MASK_RCNN,
  ),
)

# Variants of the ResNet. Only the names of the model itself count.
_RESNETS = (
  _Network(
    'deformable convolutions', r'conv\d?_offset|\.conv\d\.offset\.', _RESNET
  ),
  _Network(
    'an SE-ResNet (squeeze and excitation)',
    r'\.(se|se_module|se_layer)\.',
    _RESNET,
  ),
  _Network('a Res2Net', r'\.\d+\.(convs|bns)\.\d', _RESNET),
  _Network(
    'a ResNet with a stem of several convolutions (ResNet-C, ResNet-D)',
    r'(^|\.)(conv1|stem)\.[036]\.weight$|stem\.conv1_\d',
    _RESNET,
  ),
  _Network('a ResNet of CLIP', r'(^|\.)attnpool\.', _RESNET),
)

# Other backbones. Their names count only where there is no ResNet: a model may
# have a ResNet and a transformer, of which the ResNet is of use.
_OTHERS = (
  _Network(
    'a Swin transformer', r'relative_position_bias_table', _OTHER_BACKBONE
  ),
  _Network(
    'a vision transformer (ViT)',
    r'pos_embed|patch_embed|class_token|cls_token|encoder_layer_\d'
    r'|\.attn\.(qkv|proj)\.',
    _OTHER_BACKBONE,
  ),
  _Network(
    'a ConvNeXt in the names of another program',
    r'\.(dwconv|conv_dw|depthwise_conv)\.|layer_scale|downsample_layers\.',
    _OTHER_BACKBONE,
  ),
)

# Arrays inside the model that change nothing: counters, anchors, momentum, the
# classifier of ImageNet and the heads of self-supervised training. Caffe2's
# R-50 has a bias before a norm, which the other programs also leave out.
_HARMLESS = re.compile(
  r'(\.num_batches_tracked|\.total_(ops|params)|_momentum)$|cell_anchors'
  r'|^(conv1_b|(backbone\.bottom_up\.)?stem\.conv1\.bias)$'
  r'|^((backbone|body|bottom_up|stem)\.)*'
  r'(fc|linear|last_linear|head|classifier|proj\w*|predict\w*|prototypes\w*'
  r'|mlp|queue\w*)(\.|$)'
)
# Caffe2 has no dots in its names. Its names of parts of a model begin so.
_CAFFE2_PARTS = re.compile(
  r'(res_)?conv1|res\d_|fpn_|rpn_|conv_rpn|head_conv|fc[67]_|cls_score'
  r'|bbox_pred|_\[mask\]|conv5_mask|mask_fcn'
)


def foreign_network(
  names: Iterable[str], outside: Iterable[str] | None, *, has_resnet: bool
) -> tuple[str, str, str] | None:
  """Recognises a network that this program does not have.

  Args:
    names: Names of the arrays of the model.
    outside: Names of arrays beside the model, which may belong to a detector
      around it. `None` if the model is no detector.
    has_resnet: Whether the names fit those of a ResNet.

  Returns:
    The name of the network, the name of an array that shows it, and a clause
    with the advice. `None` if there is no such array.
  """
  names = list(names)
  searches: list[tuple[tuple[_Network, ...], list[str]]]
  searches = [(_RESNETS, names)]
  if outside is not None:
    searches.append((_DETECTORS, [*names, *outside]))
  if not has_resnet:
    searches.append((_OTHERS, names))
  for networks, searched in searches:
    for network in networks:
      for name in searched:
        if re.search(network.pattern, name):
          return network.name, name, network.instead
  return None


def leftovers(unused: Iterable[str], used: Iterable[str]) -> list[str]:
  """Returns the arrays that make a model another one than ours.

  They are inside a part of the model, such as its backbone, but have no place
  in our model. Without them, it would compute something else.

  Args:
    unused: Names of the arrays without a place in our model.
    used: Names of the other arrays of the model.
  """
  parts = {name.partition('.')[0] for name in used if '.' in name}
  return [
    name
    for name in unused
    if not _HARMLESS.search(name)
    and (
      name.partition('.')[0] in parts
      or ('.' not in name and _CAFFE2_PARTS.match(name))
      # Another stem or block of a ResNet without prefix.
      or re.match(r'(conv|bn|layer|res)\d+\.', name)
    )
  ]
