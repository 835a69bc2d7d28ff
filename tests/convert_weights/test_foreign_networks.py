"""Tests of networks that this program does not have, and of bad weights.

Each file is given to the command line, which must refuse it in a line that
says what it is, or must take the part that is of use.
"""

import re

import numpy as np
import pytest
from weight_files import (
  SMALL,
  assert_same,
  peer_arrays,
  random_leaves,
  read_checkpoint,
)

from maskrcnn_jax.config import stored_config
from maskrcnn_jax.convert_weights import peer_models
from maskrcnn_jax.convert_weights.torch_files import write_pickle, write_torch

LEAVES = random_leaves(SMALL)
RESNET = {name: array for name, array in LEAVES.items() if '/backbone/' in name}
ONE = np.ones((1, 1), np.float32)


def detectron2(**changes):
  return renamed(peer_arrays(LEAVES, 'detectron2'), **changes)


def torchvision(**changes):
  return renamed(peer_arrays(LEAVES, 'torchvision'), **changes)


def resnet(**changes):
  return renamed(peer_arrays(RESNET, 'torchvision', alias=1), **changes)


def renamed(arrays, *, rules=(), more=(), drop=None):
  """Returns a file's arrays with other names.

  Args:
    arrays: The arrays by name.
    rules: (pattern, replacement) of names.
    more: Names of further arrays.
    drop: Pattern of the names of arrays to leave out.
  """
  result = {}
  for name, array in arrays.items():
    if drop and re.search(drop, name):
      continue
    for pattern, replacement in rules:
      name = re.sub(pattern, replacement, name)
    result[name] = array
  return result | dict.fromkeys(more, ONE)


# (text of the message, arrays, prefix with which the message offers the ResNet)
FOREIGN = {
  'cascade': (
    'a Cascade R-CNN',
    detectron2(
      rules=[
        (r'box_head\.', 'box_head.0.'),
        (r'predictor\.(c|b)', r'predictor.0.\1'),
      ],
      more=['roi_heads.box_head.1.fc1.weight'],
    ),
    'backbone.bottom_up.',
  ),
  'cascade_of_mmdetection': (
    'a Cascade R-CNN',
    {'backbone.' + name: array for name, array in resnet().items()}
    | {'roi_head.bbox_head.1.shared_fcs.0.weight': ONE},
    'backbone.',
  ),
  'deformable': (
    'deformable convolutions',
    detectron2(more=['backbone.bottom_up.res3.0.conv2_offset.weight']),
    None,
  ),
  'deformable_of_mmdetection': (
    'deformable convolutions',
    resnet(more=['layer2.0.conv2.conv_offset.weight']),
    None,
  ),
  'se': (
    'an SE-ResNet',
    resnet(more=['layer1.0.se.fc1.weight', 'layer1.0.se.fc1.bias']),
    None,
  ),
  'res2net': (
    'a Res2Net',
    resnet(drop=r'\.(conv2|bn2)\.', more=['layer1.0.convs.0.weight']),
    None,
  ),
  'deep_stem': (
    'a stem of several convolutions',
    resnet(rules=[(r'^conv1\.', 'conv1.0.')], more=['conv1.3.weight']),
    None,
  ),
  'clip': ('a ResNet of CLIP', resnet(more=['attnpool.c_proj.bias']), None),
  'mmdetection': (
    'a detector of mmdetection',
    {'backbone.' + name: array for name, array in resnet().items()}
    | {
      'neck.lateral_convs.0.conv.weight': ONE,
      'rpn_head.rpn_cls.weight': ONE,
      'roi_head.bbox_head.fc_cls.weight': ONE,
    },
    'backbone.',
  ),
  'keypoints': (
    'a Keypoint R-CNN',
    torchvision(more=['roi_heads.keypoint_head.0.weight']),
    'backbone.body.',
  ),
  'point_rend': (
    'PointRend',
    detectron2(more=['roi_heads.mask_head.point_head.fc1.weight']),
    'backbone.bottom_up.',
  ),
  'retina_net': (
    'a RetinaNet',
    torchvision(
      drop='roi_heads|rpn', more=['head.classification_head.conv.0.0.weight']
    ),
    'backbone.body.',
  ),
  'detr': (
    'a DETR',
    {'backbone.0.body.' + name: array for name, array in resnet().items()}
    | {
      'transformer.encoder.layers.0.self_attn.in_proj_weight': ONE,
      'query_embed.weight': ONE,
    },
    'backbone.0.body.',
  ),
  'detr_of_transformers': (
    'a DETR',
    {
      'model.backbone.conv_encoder.model.' + name: array
      for name, array in resnet().items()
    }
    | {'model.encoder.layers.0.self_attn.k_proj.weight': ONE},
    'model.backbone.conv_encoder.model.',
  ),
  'yolo': ('a YOLO detector', {'model.0.conv.weight': ONE}, None),
  'swin': (
    'a Swin transformer',
    {'layers.0.blocks.0.attn.relative_position_bias_table': ONE},
    None,
  ),
  'vit': ('a vision transformer', {'blocks.0.attn.qkv.weight': ONE}, None),
  'convnext': ('a ConvNeXt', {'stages.0.0.dwconv.weight': ONE}, None),
  'attention': (
    '1 arrays inside the model that this program has no place for: '
    'layer1.0.attention.weight. ',
    resnet(more=['layer1.0.attention.weight']),
    None,
  ),
  'mask_scoring': (
    'roi_heads.maskiou.fc.weight',
    torchvision(more=['roi_heads.maskiou.fc.weight']),
    None,
  ),
  'statistics_of_caffe2': (
    'res2_0_branch2a_bn_riv',
    peer_arrays(RESNET, 'caffe2') | {'res2_0_branch2a_bn_riv': ONE},
    None,
  ),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_a_foreign_network_is_refused_by_name(run, refuse, tmp_path, name):
  text, arrays, prefix = FOREIGN[name]
  write_torch(tmp_path / 'file.pth', {'state_dict': arrays})
  line = refuse(tmp_path / 'file.pth', tmp_path / 'new')
  assert line.startswith(f'error: C02: {tmp_path}/file.pth ')
  assert text in line
  assert ('--prefix=' in line) == (prefix is not None)
  if prefix:
    assert f'--prefix={prefix} for --init_from' in line
    code, _, err = run(
      tmp_path / 'file.pth', tmp_path / 'new', f'--prefix={prefix}'
    )
    assert code == 0, err
    assert_same(read_checkpoint(tmp_path / 'new')[0], RESNET)


@pytest.mark.parametrize(
  ('arrays', 'names'),
  [
    (
      torchvision(
        more=[
          'rpn.anchor_generator.cell_anchors.0',
          'backbone.body.bn1.num_batches_tracked',
          'backbone.body.conv1.total_ops',
        ]
      ),
      ['rpn.anchor_generator.cell_anchors.0', 'backbone.body.conv1.total_ops'],
    ),
    (
      detectron2(
        more=[
          'pixel_mean_of_mine',
          'sem_seg_head.p2.0.weight',
          'proposal_generator.anchor_generator.cell_anchors.0',
          'backbone.bottom_up.stem.conv1.bias',
        ]
      ),
      ['pixel_mean_of_mine', 'sem_seg_head.p2.0.weight'],
    ),
    (
      resnet(more=['fc.weight', 'prototypes.weight', 'projector.0.weight']),
      ['fc.weight', 'projector.0.weight'],
    ),
    (
      peer_arrays(RESNET, 'caffe2')
      | dict.fromkeys(['fc1000_w', 'conv1_b', 'conv1_w_momentum', 'lr'], ONE),
      ['conv1_b', 'fc1000_w', 'lr'],
    ),
  ],
)
def test_arrays_that_change_nothing_are_left_out(run, tmp_path, arrays, names):
  write_torch(tmp_path / 'file', arrays)
  code, out, err = run(tmp_path / 'file', tmp_path / 'new')
  assert code == 0, err
  (line,) = (x for x in out.splitlines() if x.startswith('left out: '))
  for name in names:
    assert name in line


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_named(refuse, tmp_path, value):
  arrays = torchvision()
  for name in ('rpn.head.cls_logits.bias', 'backbone.body.conv1.weight'):
    arrays[name] = arrays[name].copy()
    arrays[name].flat[1:3] = value
  write_torch(tmp_path / 'file', arrays)
  line = refuse(tmp_path / 'file', tmp_path / 'new')
  assert line.startswith(f'error: C14: {tmp_path}/file has values ')
  assert 'backbone.body.conv1.weight (2 of 294 not finite), ' in line
  assert 'rpn.head.cls_logits.bias (2 of 3 not finite). ' in line
  assert not (tmp_path / 'new').exists()


def test_many_bad_arrays_are_counted(refuse, tmp_path):
  arrays = {name: array * np.nan for name, array in resnet().items()}
  write_torch(tmp_path / 'file', arrays)
  line = refuse(tmp_path / 'file', tmp_path / 'new')
  assert line.count(' not finite)') == 5
  assert 'bn1.running_mean (2 of 2 not finite)' in line
  assert ' and 95 more. ' in line


def test_a_variance_below_zero_and_a_too_large_number_are_named(
  refuse, tmp_path
):
  arrays = resnet()
  arrays['bn1.running_var'] = -arrays['bn1.running_var']
  arrays['bn1.bias'] = arrays['bn1.bias'].astype(np.float64) + 1e300
  write_pickle(tmp_path / 'file', arrays)
  line = refuse(tmp_path / 'file', tmp_path / 'new')
  assert 'bn1.running_var (a variance below 0)' in line
  assert 'bn1.bias (2 of 2 not finite)' in line


def test_values_that_are_not_used_may_be_anything(run, tmp_path):
  write_torch(tmp_path / 'file', resnet() | {'fc.weight': ONE * np.nan})
  code, _, err = run(tmp_path / 'file', tmp_path / 'new')
  assert code == 0, err


@pytest.mark.parametrize(
  ('program', 'lacking'),
  [
    ('torchvision', ('cls_score', 'bbox_pred')),
    ('torchvision', ('cls_score', 'bbox_pred', 'mask_fcn_logits')),
    (
      'torchvision',
      ('cls_score', 'bbox_pred', 'mask_fcn_logits', 'conv5_mask'),
    ),
    ('torchvision', ('conv5_mask', 'mask_fcn_logits')),
    ('detectron2', ('cls_score', 'bbox_pred')),
    ('detectron2', ('mask_fcn_logits',)),
  ],
)
def test_a_detector_without_predictors_is_a_part(
  run, tmp_path, program, lacking
):
  kept = {
    name: array
    for name, array in LEAVES.items()
    if name.split('/')[2] not in lacking or '/rpn/' in name
  }
  if program == 'detectron2':  # It has no rows of background.
    for name in kept:
      if '/box_head/bbox_pred/' in name:
        kept[name] = kept[name] * (np.arange(16) >= 4)
      if '/mask_fcn_logits/' in name:
        kept[name] = kept[name] * (np.arange(4) >= 1)
  write_torch(tmp_path / 'file', peer_arrays(kept, program))
  code, out, err = run(tmp_path / 'file', tmp_path / 'new')
  assert code == 0, err
  assert 'for --init_from.' in out
  assert 'left out: none\n' in out
  found, metadata = read_checkpoint(tmp_path / 'new')
  assert_same(found, kept)
  assert metadata.is_partial
  assert stored_config(metadata.recipe).model.output == 'masks'
  has_rows = len(lacking) in (1, 2) or 'cls_score' not in lacking
  assert len(metadata.categories) == (3 if has_rows else 0)


@pytest.mark.parametrize(
  ('author', 'is_converted'),
  [
    ('torchvision', True),
    ('MOCO', True),
    ('Third Party', True),
    ('Detectron2 Model Zoo', False),
    ('Caffe2', False),
    (None, False),
  ],
)
def test_the_author_tells_whether_a_resnet_was_renamed(author, is_converted):
  arrays = peer_arrays(RESNET, 'detectron2', alias=1)
  facts = {'__author__': author, 'matching_heuristics': True}
  assert peer_models.is_converted(arrays, facts) == is_converted
  # A whole detector was trained by detectron2, whoever the author is.
  facts['__author__'] = 'MOCO'
  assert not peer_models.is_converted(detectron2(), facts)


@pytest.mark.parametrize(
  ('author', 'is_converted'), [('MOCO', True), ('Detectron2 Model Zoo', False)]
)
def test_a_resnet_renamed_for_detectron2_keeps_its_conventions(
  run, tmp_path, author, is_converted
):
  # As MoCo's convert-pretrain-to-detectron2.py writes it.
  leaves = random_leaves(SMALL | dict(depth=50))
  leaves = {n: array for n, array in leaves.items() if '/backbone/' in n}
  arrays = renamed(
    peer_arrays(leaves, 'torchvision', alias=1),
    rules=[
      (r'layer(\d)', lambda match: f'res{int(match[1]) + 1}'),
      (r'bn(\d)', r'conv\1.norm'),
      (r'downsample\.0', 'shortcut'),
      (r'downsample\.1', 'shortcut.norm'),
      (r'^(?!res)', 'stem.'),
    ],
    more=['stem.fc.0.weight', 'stem.fc.2.weight'],
  )
  content = {
    'model': arrays,
    '__author__': author,
    'matching_heuristics': True,
  }
  write_pickle(tmp_path / 'file.pkl', content)
  code, out, err = run(tmp_path / 'file.pkl', tmp_path / 'new')
  assert code == 0, err
  assert ('--pixel_std' in out) == is_converted
  found, metadata = read_checkpoint(tmp_path / 'new')
  stem = 'params/backbone/conv1/kernel'
  order = slice(None) if is_converted else slice(None, None, -1)
  np.testing.assert_array_equal(found[stem], leaves[stem][:, :, order])
  config = stored_config(metadata.recipe)
  assert tuple(config.data.pixel_mean) == (123.675, 116.28, 103.53)
  assert tuple(config.data.pixel_std) == (
    (58.395, 57.12, 57.375) if is_converted else (1.0, 1.0, 1.0)
  )
  assert config.model.stride_in_1x1 == (not is_converted)


def test_flags_give_the_conventions(run, tmp_path):
  write_torch(tmp_path / 'file', resnet())
  code, out, err = run(
    tmp_path / 'file',
    tmp_path / 'new',
    '--pixel_mean=1,2,3',
    '--pixel_std=4,5,6.5',
    '--pixel_order=bgr',
    '--norm_eps=0.01',
    '--stride_in_1x1=true',
  )
  assert code == 0, err
  assert 'pixel_order bgr, pixel_mean (1.0, 2.0, 3.0), pixel_std (4' in out
  found, metadata = read_checkpoint(tmp_path / 'new')
  config = stored_config(metadata.recipe)
  assert tuple(config.data.pixel_mean) == (1, 2, 3)
  assert tuple(config.data.pixel_std) == (4, 5, 6.5)
  assert config.model.norm_eps == 0.01
  assert config.model.stride_in_1x1
  stem = 'params/backbone/conv1/kernel'
  np.testing.assert_array_equal(found[stem], RESNET[stem][:, :, ::-1])


@pytest.mark.parametrize(
  'flag',
  [
    '--pixel_std=1',
    '--pixel_std=0,1,1',
    '--pixel_mean=a,b,c',
    '--pixel_mean=nan,1,1',
  ],
)
def test_a_wrong_pixel_flag_is_told(refuse, tmp_path, flag):
  line = refuse(tmp_path / 'file', tmp_path / 'new', flag)
  assert flag.split('=')[0] in line


@pytest.mark.parametrize('flag', ['--prefix=a', '--pixel_std=1,1,1'])
def test_flags_of_reading_are_refused_for_writing(refuse, tmp_path, flag):
  line = refuse(tmp_path, tmp_path / 'new.pth', '--to=torchvision', flag)
  assert f'{flag.split("=")[0]} is about the weights of another' in line


def test_the_rows_that_coco_never_used_are_told(run, tmp_path):
  arrays = peer_arrays(random_leaves(SMALL, 91), 'torchvision')
  write_torch(tmp_path / 'file', arrays)
  _, out, _ = run(tmp_path / 'file', tmp_path / 'new')
  assert 'the 10 ids that COCO never used' in out
  assert '--coco_rows=91 keeps them' in out
  _, out, _ = run(tmp_path / 'file', tmp_path / 'all', '--coco_rows=91')
  assert 'never used' not in out
