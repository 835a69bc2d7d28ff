"""How other programs name and lay out the weights of Mask R-CNN.

Our names are paths such as 'backbone/layer1/0/conv1' (a module) and
'params/backbone/conv1/kernel' (an array of it). A peer's array is an array as
it lies in the peer's file: torch's and Caffe2's convolutions are (out, in, row,
column), their matrices (out, in).
"""

import re
from typing import NamedTuple

import numpy as np


class Naming(NamedTuple):
  """How one program names what we have."""

  # (pattern of our module, the program's names of it): the first is what is
  # written, the others are older or come without the heads. <x> is a group of
  # the pattern, <x*3-2> arithmetic on it.
  modules: tuple[tuple[str, tuple[str, ...]], ...]
  leaves: dict[str, str]  # our leaf -> end of the name
  # The stem's input is blue, green, red.
  is_bgr: bool
  # Background is the last row of class scores; boxes and masks have none.
  # Elsewhere it is the first row of each.
  background_last: bool


_TORCH_LEAVES = {
  'kernel': '.weight',
  'bias': '.bias',
  'scale': '.weight',
  'mean': '.running_mean',
  'var': '.running_var',
}
_BLOCK = r'backbone/layer(?P<s>\d)/(?P<b>\d+)'
# The stage that a C4 model has not in its body but in front of its heads.
_LAST_BLOCK = r'backbone/layer(?P<s>4)/(?P<b>\d+)'


def _under(prefixes, modules):
  """Names modules under each of several prefixes."""
  return tuple(
    (pattern, tuple(prefix + name for prefix in prefixes))
    for pattern, name in modules
  )


def _blocks(block):
  return (
    (block + r'/(?P<m>(conv|bn)\d)', 'layer<s>.<b>.<m>'),
    (block + '/downsample_conv', 'layer<s>.<b>.downsample.0'),
    (block + '/downsample_bn', 'layer<s>.<b>.downsample.1'),
  )


# Source: torchvision models/resnet.py,
# models/detection/mask_rcnn.py and ops/feature_pyramid_network.py.
_TORCHVISION = _under(
  ('backbone.body.', ''),
  (
    ('backbone/(?P<m>conv1|bn1)', '<m>'),
    *_blocks(_BLOCK),
  ),
) + (
  (
    r'fpn/(?P<kind>inner|layer)(?P<l>\d)',
    ('backbone.fpn.<kind>_blocks.<l-2>.0', 'backbone.fpn.<kind>_blocks.<l-2>'),
  ),
  (
    r'fpn/(?P<kind>inner|layer)(?P<l>\d)_norm',
    ('backbone.fpn.<kind>_blocks.<l-2>.1',),
  ),
  ('rpn/conv', ('rpn.head.conv.0.0', 'rpn.head.conv')),
  ('rpn/conv2', ('rpn.head.conv.1.0',)),
  ('rpn/(?P<m>cls_logits|bbox_pred)', ('rpn.head.<m>',)),
  (r'box_head/conv(?P<i>\d)', ('roi_heads.box_head.<i-1>.0',)),
  (r'box_head/conv(?P<i>\d)_norm', ('roi_heads.box_head.<i-1>.1',)),
  # Of four convolutions and a fully connected layer, with a Flatten between.
  ('box_head/fc6', ('roi_heads.box_head.fc6', 'roi_heads.box_head.5')),
  ('box_head/fc7', ('roi_heads.box_head.fc7',)),
  ('box_head/(?P<m>cls_score|bbox_pred)', ('roi_heads.box_predictor.<m>',)),
  (
    r'mask_head/mask_fcn(?P<i>\d)',
    ('roi_heads.mask_head.<i-1>.0', 'roi_heads.mask_head.mask_fcn<i>'),
  ),
  (r'mask_head/mask_fcn(?P<i>\d)_norm', ('roi_heads.mask_head.<i-1>.1',)),
  (
    'mask_head/(?P<m>conv5_mask|mask_fcn_logits)',
    ('roi_heads.mask_predictor.<m>',),
  ),
)

# Source: modeling/backbone, rpn and roi_heads of maskrcnn-benchmark; under
# group norm a convolution and its norm are .0 and .1 of a Sequential.
_BENCHMARK = (
  _under(
    ('backbone.body.', '', 'roi_heads.box.feature_extractor.head.'),
    _blocks(_LAST_BLOCK),
  )
  + _under(
    ('backbone.body.', ''),
    (
      ('backbone/(?P<m>conv1|bn1)', 'stem.<m>'),
      *_blocks(_BLOCK),
    ),
  )
  + (
    (
      r'fpn/(?P<kind>inner|layer)(?P<l>\d)',
      ('backbone.fpn.fpn_<kind><l-1>', 'backbone.fpn.fpn_<kind><l-1>.0'),
    ),
    (
      r'fpn/(?P<kind>inner|layer)(?P<l>\d)_norm',
      ('backbone.fpn.fpn_<kind><l-1>.1',),
    ),
    ('rpn/(?P<m>conv|cls_logits|bbox_pred)', ('rpn.head.<m>',)),
    (
      r'box_head/conv(?P<i>\d)',
      ('roi_heads.box.feature_extractor.xconvs.<i*3-3>',),
    ),
    (
      r'box_head/conv(?P<i>\d)_norm',
      ('roi_heads.box.feature_extractor.xconvs.<i*3-2>',),
    ),
    (r'box_head/(?P<m>fc\d)', ('roi_heads.box.feature_extractor.<m>',)),
    ('box_head/(?P<m>cls_score|bbox_pred)', ('roi_heads.box.predictor.<m>',)),
    (
      r'mask_head/(?P<m>mask_fcn\d)',
      (
        'roi_heads.mask.feature_extractor.<m>',
        'roi_heads.mask.feature_extractor.<m>.0',
      ),
    ),
    (
      r'mask_head/(?P<m>mask_fcn\d)_norm',
      ('roi_heads.mask.feature_extractor.<m>.1',),
    ),
    (
      'mask_head/(?P<m>conv5_mask|mask_fcn_logits)',
      ('roi_heads.mask.predictor.<m>',),
    ),
  )
)


def _detectron2_blocks(block):
  return (
    (block + r'/(?P<m>conv\d)', 'res<s+1>.<b>.<m>'),
    (block + r'/bn(?P<i>\d)', 'res<s+1>.<b>.conv<i>.norm'),
    (block + '/downsample_conv', 'res<s+1>.<b>.shortcut'),
    (block + '/downsample_bn', 'res<s+1>.<b>.shortcut.norm'),
  )


# Source: detectron2 modeling/backbone/{resnet,fpn}.py,
# proposal_generator/rpn.py, roi_heads/{box,mask}_head.py, and roi_heads.py for
# Res5ROIHeads. A ResNet is below a pyramid, on its own, or all of the backbone.
_DETECTRON2 = (
  _under(
    ('backbone.bottom_up.', '', 'roi_heads.'), _detectron2_blocks(_LAST_BLOCK)
  )
  + _under(
    ('backbone.bottom_up.', '', 'backbone.'),
    (
      ('backbone/conv1', 'stem.conv1'),
      ('backbone/bn1', 'stem.conv1.norm'),
      *_detectron2_blocks(_BLOCK),
    ),
  )
  + (
    (r'fpn/inner(?P<l>\d)', ('backbone.fpn_lateral<l>',)),
    (r'fpn/inner(?P<l>\d)_norm', ('backbone.fpn_lateral<l>.norm',)),
    (r'fpn/layer(?P<l>\d)', ('backbone.fpn_output<l>',)),
    (r'fpn/layer(?P<l>\d)_norm', ('backbone.fpn_output<l>.norm',)),
    ('rpn/conv', ('proposal_generator.rpn_head.conv',)),
    ('rpn/cls_logits', ('proposal_generator.rpn_head.objectness_logits',)),
    ('rpn/bbox_pred', ('proposal_generator.rpn_head.anchor_deltas',)),
    (r'box_head/(?P<m>conv\d)', ('roi_heads.box_head.<m>',)),
    (r'box_head/(?P<m>conv\d)_norm', ('roi_heads.box_head.<m>.norm',)),
    (r'box_head/fc(?P<i>\d)', ('roi_heads.box_head.fc<i-5>',)),
    ('box_head/(?P<m>cls_score|bbox_pred)', ('roi_heads.box_predictor.<m>',)),
    (r'mask_head/(?P<m>mask_fcn\d)', ('roi_heads.mask_head.<m>',)),
    (r'mask_head/(?P<m>mask_fcn\d)_norm', ('roi_heads.mask_head.<m>.norm',)),
    ('mask_head/conv5_mask', ('roi_heads.mask_head.deconv',)),
    ('mask_head/mask_fcn_logits', ('roi_heads.mask_head.predictor',)),
  )
)

# Source: Detectron's model zoo; the rules by which maskrcnn-benchmark and
# detectron2 read it, utils/c2_model_loading.py.
_CAFFE2_BLOCK = 'res<s+1>_<b>_branch'
_CAFFE2 = (
  ('backbone/conv1', ('conv1',)),
  ('backbone/bn1', ('res_conv1_bn', 'conv1_gn')),
  *(
    (
      _BLOCK + f'/{kind}{number}',
      tuple(f'{_CAFFE2_BLOCK}2{letter}{end}' for end in ends),
    )
    for kind, ends in (('conv', ('',)), ('bn', ('_bn', '_gn')))
    for number, letter in ((1, 'a'), (2, 'b'), (3, 'c'))
  ),
  (_BLOCK + '/downsample_conv', (_CAFFE2_BLOCK + '1',)),
  (_BLOCK + '/downsample_bn', (_CAFFE2_BLOCK + '1_bn', _CAFFE2_BLOCK + '1_gn')),
  # Named after the last block of the stage: of ResNet-50, then of 101.
  *(
    (f'fpn/{module}{norm}', tuple(f'fpn_{name}{end}' for name in names))
    for norm, end in (('', ''), ('_norm', '_gn'))
    for module, names in (
      ('inner2', ('inner_res2_2_sum_lateral',)),
      ('inner3', ('inner_res3_3_sum_lateral',)),
      ('inner4', ('inner_res4_5_sum_lateral', 'inner_res4_22_sum_lateral')),
      ('inner5', ('inner_res5_2_sum',)),
      ('layer2', ('res2_2_sum',)),
      ('layer3', ('res3_3_sum',)),
      ('layer4', ('res4_5_sum', 'res4_22_sum')),
      ('layer5', ('res5_2_sum',)),
    )
  ),
  ('rpn/conv', ('conv_rpn_fpn2', 'conv_rpn')),
  ('rpn/(?P<m>cls_logits|bbox_pred)', ('rpn_<m>_fpn2', 'rpn_<m>')),
  (r'box_head/(?P<m>conv\d)', ('head_<m>',)),
  (r'box_head/(?P<m>conv\d)_norm', ('head_<m>_gn',)),
  (r'box_head/(?P<m>fc\d|cls_score|bbox_pred)', ('<m>',)),
  (r'mask_head/mask_fcn(?P<i>\d)', ('_[mask]_fcn<i>',)),
  (r'mask_head/mask_fcn(?P<i>\d)_norm', ('_[mask]_fcn<i>_gn',)),
  ('mask_head/(?P<m>conv5_mask|mask_fcn_logits)', ('<m>',)),
)

NAMINGS = {
  'torchvision': Naming(_TORCHVISION, _TORCH_LEAVES, False, False),
  'detectron2': Naming(_DETECTRON2, _TORCH_LEAVES, True, True),
  'maskrcnn_benchmark': Naming(_BENCHMARK, _TORCH_LEAVES, True, False),
  # It keeps no mean and variance: they are folded into scale and bias.
  'caffe2': Naming(
    _CAFFE2, {'kernel': '_w', 'bias': '_b', 'scale': '_s'}, True, False
  ),
}


def peer_names(name: str, naming: Naming) -> tuple[str, ...]:
  """Returns what a program calls one of our arrays; () if it has none.

  Args:
    name: Ours, 'params/backbone/conv1/kernel'.
    naming: The program's.

  Returns:
    The name that it writes, then others that it has written.
  """
  _, *module, leaf = name.split('/')
  end = naming.leaves.get(leaf)
  for pattern, templates in naming.modules:
    match = re.fullmatch(pattern, '/'.join(module))
    if match and end is not None:
      return tuple(
        _fill(template, match.groupdict()) + end for template in templates
      )
  return ()


def _fill(template, groups) -> str:
  def value(match):
    name, factor, term = match.groups()
    if factor or term:
      return str(int(groups[name]) * int(factor or 1) + int(term or 0))
    return groups[name]

  return re.sub(r'<(\w+?)(?:\*(\d+))?([+-]\d+)?>', value, template)


def rows_per_class(name: str) -> int:
  """Returns how many rows of a peer's array a class has; 0: it has none."""
  parts = name.split('/')[1:-1]
  return {
    ('box_head', 'cls_score'): 1,
    ('box_head', 'bbox_pred'): 4,
    ('mask_head', 'mask_fcn_logits'): 1,
  }.get(tuple(parts), 0)


def from_peer(
  name: str, array: np.ndarray, naming: Naming, *, box_side: int
) -> np.ndarray:
  """Lays out a peer's array as ours, to the bit.

  Args:
    name: Ours.
    array: As in the peer's file; background first or last as it has it.
    naming: The peer's.
    box_side: Cells that the box head gets along each side.

  Returns:
    The same numbers. Background rows that the peer does not have are 0.
  """
  rows = rows_per_class(name)
  if rows and naming.background_last:
    if 'cls_score' in name:
      array = np.roll(array, 1, axis=0)
    else:
      background = np.zeros((rows, *array.shape[1:]), array.dtype)
      array = np.concatenate([background, array])
  if name == 'params/backbone/conv1/kernel' and naming.is_bgr:
    array = array[:, ::-1]
  if not name.endswith('kernel'):
    return array
  if name == 'params/mask_head/conv5_mask/kernel':
    return array.transpose(2, 3, 0, 1)
  if name == 'params/box_head/fc6/kernel':
    # Rows of the peer's are channel, row, column; ours row, column, channel.
    out = array.shape[0]
    array = array.reshape(out, -1, box_side, box_side)
    return array.transpose(2, 3, 1, 0).reshape(-1, out)
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_peer(
  name: str, array: np.ndarray, naming: Naming, *, box_side: int
) -> np.ndarray:
  """Undoes `from_peer`; background rows that the peer has not are dropped."""
  if name == 'params/mask_head/conv5_mask/kernel':
    array = array.transpose(2, 3, 0, 1)
  elif name == 'params/box_head/fc6/kernel':
    out = array.shape[1]
    array = array.reshape(box_side, box_side, -1, out)
    array = array.transpose(3, 2, 0, 1).reshape(out, -1)
  elif name.endswith('kernel'):
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
  if name == 'params/backbone/conv1/kernel' and naming.is_bgr:
    array = array[:, ::-1]
  rows = rows_per_class(name)
  if rows and naming.background_last:
    if 'cls_score' in name:
      array = np.roll(array, -1, axis=0)
    else:
      array = array[rows:]
  return array
