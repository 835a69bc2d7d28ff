"""Tests of the names and layouts of arrays in other programs."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  from_peer,
  peer_names,
  to_peer,
)
from maskrcnn_jax.model.mask_rcnn import MaskRCNN
from maskrcnn_jax.runtime import checkpoint

GROUP = dict(norm='group', box_convs=4, box_fcs=1)


def shapes_of(**arguments):
  model = MaskRCNN(num_classes=81, **arguments)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  return checkpoint.named_leaves(
    jax.eval_shape(model.init, jax.random.key(0), images)
  )


@pytest.mark.parametrize('program', NAMINGS)
@pytest.mark.parametrize('arguments', [dict(depth=101), GROUP])
def test_every_array_has_a_name_of_its_own(program, arguments):
  if program == 'torchvision' and arguments is GROUP:
    pytest.skip('torchvision has no such model')
  names = []
  for name in shapes_of(**arguments):
    found = peer_names(name, NAMINGS[program])
    if program == 'caffe2' and name.endswith(('/mean', '/var')):
      assert found == ()
    else:
      assert found, name
      names += found
  assert len(set(names)) == len(names)


@pytest.mark.parametrize(
  ('ours', 'program', 'theirs'),
  [
    ('backbone/conv1/kernel', 'torchvision', 'backbone.body.conv1.weight'),
    ('backbone/conv1/kernel', 'torchvision', 'conv1.weight'),
    ('backbone/bn1/var', 'torchvision', 'backbone.body.bn1.running_var'),
    (
      'backbone/layer3/5/bn2/scale',
      'torchvision',
      'backbone.body.layer3.5.bn2.weight',
    ),
    (
      'backbone/layer2/0/downsample_bn/mean',
      'torchvision',
      'backbone.body.layer2.0.downsample.1.running_mean',
    ),
    (
      'fpn/inner2/kernel',
      'torchvision',
      'backbone.fpn.inner_blocks.0.0.weight',
    ),
    ('fpn/layer5/bias', 'torchvision', 'backbone.fpn.layer_blocks.3.bias'),
    ('rpn/conv/kernel', 'torchvision', 'rpn.head.conv.0.0.weight'),
    ('rpn/conv/kernel', 'torchvision', 'rpn.head.conv.weight'),
    ('mask_head/mask_fcn4/bias', 'torchvision', 'roi_heads.mask_head.3.0.bias'),
    (
      'mask_head/mask_fcn4/bias',
      'torchvision',
      'roi_heads.mask_head.mask_fcn4.bias',
    ),
    (
      'mask_head/conv5_mask/kernel',
      'torchvision',
      'roi_heads.mask_predictor.conv5_mask.weight',
    ),
    (
      'backbone/conv1/kernel',
      'maskrcnn_benchmark',
      'backbone.body.stem.conv1.weight',
    ),
    ('fpn/inner2/bias', 'maskrcnn_benchmark', 'backbone.fpn.fpn_inner1.bias'),
    (
      'fpn/layer5_norm/scale',
      'maskrcnn_benchmark',
      'backbone.fpn.fpn_layer4.1.weight',
    ),
    (
      'box_head/conv4/kernel',
      'maskrcnn_benchmark',
      'roi_heads.box.feature_extractor.xconvs.9.weight',
    ),
    (
      'box_head/conv4_norm/bias',
      'maskrcnn_benchmark',
      'roi_heads.box.feature_extractor.xconvs.10.bias',
    ),
    (
      'mask_head/mask_fcn_logits/bias',
      'maskrcnn_benchmark',
      'roi_heads.mask.predictor.mask_fcn_logits.bias',
    ),
    (
      'backbone/bn1/mean',
      'detectron2',
      'backbone.bottom_up.stem.conv1.norm.running_mean',
    ),
    (
      'backbone/layer1/0/downsample_conv/kernel',
      'detectron2',
      'backbone.bottom_up.res2.0.shortcut.weight',
    ),
    ('fpn/layer3/bias', 'detectron2', 'backbone.fpn_output3.bias'),
    (
      'rpn/bbox_pred/bias',
      'detectron2',
      'proposal_generator.rpn_head.anchor_deltas.bias',
    ),
    ('box_head/fc7/kernel', 'detectron2', 'roi_heads.box_head.fc2.weight'),
    (
      'mask_head/conv5_mask/bias',
      'detectron2',
      'roi_heads.mask_head.deconv.bias',
    ),
    ('backbone/bn1/scale', 'caffe2', 'res_conv1_bn_s'),
    ('backbone/bn1/bias', 'caffe2', 'conv1_gn_b'),
    ('backbone/layer1/0/conv1/kernel', 'caffe2', 'res2_0_branch2a_w'),
    ('backbone/layer3/22/bn3/bias', 'caffe2', 'res4_22_branch2c_bn_b'),
    ('backbone/layer4/0/downsample_bn/scale', 'caffe2', 'res5_0_branch1_bn_s'),
    ('fpn/inner4/kernel', 'caffe2', 'fpn_inner_res4_22_sum_lateral_w'),
    ('fpn/inner5_norm/scale', 'caffe2', 'fpn_inner_res5_2_sum_gn_s'),
    ('rpn/cls_logits/bias', 'caffe2', 'rpn_cls_logits_fpn2_b'),
    ('mask_head/mask_fcn1/kernel', 'caffe2', '_[mask]_fcn1_w'),
  ],
)
def test_peer_names_knows_old_and_new_names(ours, program, theirs):
  assert theirs in peer_names(f'params/{ours}', NAMINGS[program])


@pytest.mark.parametrize('program', NAMINGS)
def test_from_peer_undoes_to_peer_to_the_bit(program):
  shapes = shapes_of(
    depth=18, width=4, fpn_channels=8, box_features=16, mask_channels=8
  )
  rng = np.random.default_rng(0)
  for name, shape in shapes.items():
    array = rng.normal(size=shape.shape).astype(np.float32)
    naming = NAMINGS[program]
    theirs = to_peer(name, array, naming, box_side=7)
    back = from_peer(name, theirs, naming, box_side=7)
    if theirs.size < array.size:  # The program has no rows of background.
      per_class = 4 if 'bbox_pred' in name else 1
      assert not back[..., :per_class].any()
      back, array = back[..., per_class:], array[..., per_class:]
    assert_array_equal(back, array, err_msg=name)


def test_fc6_sees_channel_row_column_there_and_row_column_channel_here():
  # Weights of one output, which sees 3 channels of 2x2 cells. Each weight is
  # 100 channel + 10 row + column.
  theirs = np.array(
    [
      [
        100 * c + 10 * y + x
        for c in range(3)
        for y in range(2)
        for x in range(2)
      ]
    ]
  )
  ours = from_peer(
    'params/box_head/fc6/kernel', theirs, NAMINGS['torchvision'], box_side=2
  )
  assert ours.ravel().tolist() == [
    0,
    100,
    200,
    1,
    101,
    201,
    10,
    110,
    210,
    11,
    111,
    211,
  ]


def test_background_is_the_last_row_in_detectron2_and_the_first_here():
  naming = NAMINGS['detectron2']
  scores = from_peer(
    'params/box_head/cls_score/bias', np.array([1, 2, 0]), naming, box_side=7
  )
  assert scores.tolist() == [0, 1, 2]
  boxes = from_peer(
    'params/box_head/bbox_pred/bias', np.arange(1, 9), naming, box_side=7
  )
  assert boxes.tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_blue_comes_first_where_caffe2_trained():
  theirs = np.arange(3).reshape(1, 3, 1, 1)
  for program, order in (('caffe2', [2, 1, 0]), ('torchvision', [0, 1, 2])):
    ours = from_peer(
      'params/backbone/conv1/kernel', theirs, NAMINGS[program], box_side=7
    )
    assert ours.ravel().tolist() == order
