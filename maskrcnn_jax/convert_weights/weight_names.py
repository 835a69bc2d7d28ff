"""Names and layouts of Mask R-CNN's weights in other programs ("peers").

Our names are paths: 'backbone/layer1/0/conv1' is a module, and
'params/backbone/conv1/kernel' is an array of a module. A peer's array has the
layout of the peer's file. In torch and Caffe2 the axes of a convolution are
(output channel, input channel, row, column), and those of a matrix (output,
input).
"""

from collections.abc import Iterable
import re
from typing import NamedTuple

import numpy as np

# (pattern of our module, the program's names of it). The first name is the one
# that we write. The others are of older versions or of files without heads.
# <x> stands for group x of the pattern, and <x*3-2> for arithmetic with it.
_Rule = tuple[str, tuple[str, ...]]


class Naming(NamedTuple):
  """Names and layout of the arrays in the files of one program."""

  modules: tuple[_Rule, ...]
  # End of the program's name, by the last part of our name.
  leaves: dict[str, str]
  # Whether the first convolution expects blue, green, red; otherwise it expects
  # red, green, blue.
  is_bgr: bool
  # If true, background is the last row of the class scores, and boxes and masks
  # have no row of it. Otherwise it is the first row of all three.
  background_last: bool


_TORCH_LEAVES = {
  'kernel': '.weight',
  'bias': '.bias',
  'scale': '.weight',
  'mean': '.running_mean',
  'var': '.running_var',
}
_BLOCK = r'backbone/layer(?P<s>\d)/(?P<b>\d+)'
# The last stage of a ResNet. In a C4 model, the heads begin with it, and it is
# not a part of the backbone.
_LAST_BLOCK = r'backbone/layer(?P<s>4)/(?P<b>\d+)'


def _under(
  prefixes: tuple[str, ...], modules: Iterable[tuple[str, str]]
) -> tuple[_Rule, ...]:
  """Gives each module several names: its name after each of some prefixes.

  Args:
    prefixes: Prefixes of the program's names, the prefix in the newest files
      first.
    modules: (pattern of our module, the program's name without prefix).

  Returns:
    (pattern of our module, names with each prefix) of each module.
  """
  return tuple(
    (pattern, tuple(prefix + name for prefix in prefixes))
    for pattern, name in modules
  )


def _blocks(block: str) -> tuple[tuple[str, str], ...]:
  """Names the modules of a residual block as torchvision does.

  Args:
    block: Pattern of our block; group s is the stage, and group b the number of
      the block in it.

  Returns:
    (pattern of our module, torchvision's name without prefix) of each.
  """
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
  # The second name is of a head with four convolutions before the fully
  # connected layer. Number 4 is the Flatten between them.
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


def _detectron2_blocks(block: str) -> tuple[tuple[str, str], ...]:
  """Names the modules of a residual block as detectron2 does.

  Args:
    block: Pattern of our block; group s is the stage, and group b the number of
      the block in it.

  Returns:
    (pattern of our module, detectron2's name without prefix) of each.
  """
  return (
    (block + r'/(?P<m>conv\d)', 'res<s+1>.<b>.<m>'),
    (block + r'/bn(?P<i>\d)', 'res<s+1>.<b>.conv<i>.norm'),
    (block + '/downsample_conv', 'res<s+1>.<b>.shortcut'),
    (block + '/downsample_bn', 'res<s+1>.<b>.shortcut.norm'),
  )


# Source: detectron2 modeling/backbone/{resnet,fpn}.py,
# proposal_generator/rpn.py, roi_heads/{box,mask}_head.py, and roi_heads.py for
# Res5ROIHeads. A ResNet is below a pyramid, alone in its file, or the whole
# backbone; hence the prefixes.
_DETECTRON2 = (
  _under(
    ('backbone.bottom_up.', '', 'roi_heads.', 'backbone.'),
    _detectron2_blocks(_LAST_BLOCK),
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
  # The names contain the last block of the stage. The first name is of a
  # ResNet-50, the second of a ResNet-101.
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
  # Caffe2's files have no mean and variance: they are folded into scale and
  # bias.
  'caffe2': Naming(
    _CAFFE2, {'kernel': '_w', 'bias': '_b', 'scale': '_s'}, True, False
  ),
}


def peer_names(name: str, naming: Naming) -> tuple[str, ...]:
  """Returns the names that one of our arrays has in files of another program.

  Args:
    name: Our name, such as 'params/backbone/conv1/kernel'.
    naming: Names of the other program.

  Returns:
    The name to write, then other names that its files may have. () if the
    program has no such array.
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


def _fill(template: str, groups: dict[str, str]) -> str:
  """Fills the groups of a pattern into a name template.

  Args:
    template: Name in which <x> stands for group x, and <x*3-2> for three times
      its number minus two.
    groups: Text of each group; a number if the template calculates with it.
  """

  def value(match: re.Match[str]) -> str:
    """Returns the text that replaces one <...>."""
    name, factor, term = match.groups()
    if factor or term:
      return str(int(groups[name]) * int(factor or 1) + int(term or 0))
    return groups[name]

  return re.sub(r'<(\w+?)(?:\*(\d+))?([+-]\d+)?>', value, template)


def rows_per_class(name: str) -> int:
  """Returns how many rows of a peer's array belong to each class.

  Args:
    name: Our name of the array.

  Returns:
    0 if the size of the array does not depend on the number of classes.
  """
  module = '/'.join(name.split('/')[1:-1])
  return {
    'box_head/cls_score': 1,
    'box_head/bbox_pred': 4,
    'mask_head/mask_fcn_logits': 1,
  }.get(module, 0)


def from_peer(
  name: str, array: np.ndarray, naming: Naming, *, box_side: int
) -> np.ndarray:
  """Changes an array from the layout of a peer to our layout.

  Axes, the rows of classes and the color channels are put in our order. No
  number is changed.

  Args:
    name: Our name of the array.
    array: The array as it is in the peer's file.
    naming: Layout of the peer.
    box_side: Number of cells along each side of the features that the box head
      receives.

  Returns:
    The array in our layout, in which background comes first. If the peer's
    boxes or masks have no rows of background, these rows are zeros.
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
    # The peer flattens features in the order channel, row, column. We do it in
    # the order row, column, channel.
    out = array.shape[0]
    array = array.reshape(out, -1, box_side, box_side)
    return array.transpose(2, 3, 1, 0).reshape(-1, out)
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_peer(
  name: str, array: np.ndarray, naming: Naming, *, box_side: int
) -> np.ndarray:
  """Changes an array from our layout to that of a peer; undoes `from_peer`.

  Args:
    name: Our name of the array.
    array: The array in our layout.
    naming: Layout of the peer.
    box_side: Number of cells along each side of the features that the box head
      receives.

  Returns:
    The array as in a file of the peer. Rows of background are dropped if the
    peer has none.
  """
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
