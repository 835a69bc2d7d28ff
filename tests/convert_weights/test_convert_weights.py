"""Tests of converting weights from and to other programs, and of using them."""

import contextlib
import gzip
import importlib.util
import json
import os
import pathlib
import pickle
import sys

from absl import flags
from absl.testing import flagsaver
import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
import peer_files
import pytest
import tiny
from weight_files import (
  GROUP,
  SMALL,
  assert_same,
  peer_arrays,
  random_leaves,
  read_checkpoint,
  shapes_of,
)

from maskrcnn_jax import geometry, main
from maskrcnn_jax.config import (
  c4_config,
  c5_config,
  default_config,
  plain,
  stored_config,
)
from maskrcnn_jax.convert_weights import convert as convert_weights
from maskrcnn_jax.convert_weights.torch_files import (
  read_weights,
  write_pickle,
  write_torch,
)
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
)
from maskrcnn_jax.data import coco
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint

DATA = pathlib.Path(__file__).parent / 'data'
SHARED = pathlib.Path(__file__).parents[3] / 'shared'


@pytest.mark.parametrize(
  'sizes',
  [
    pytest.param(SMALL, id='batch'),
    pytest.param(GROUP, id='group', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('program', NAMINGS)
def test_weights_of_each_program_arrive_to_the_bit(
  run, tmp_path, program, sizes
):
  if program == 'torchvision' and sizes is GROUP:
    pytest.skip('torchvision has no such model')
  leaves = random_leaves(sizes)
  for name, array in leaves.items():
    if program == 'caffe2' and name.endswith(('/mean', '/var')):
      array[:] = name.endswith('/var')
    if program == 'detectron2' and '/bbox_pred/' in name and 'box_' in name:
      array[..., :4] = 0
    if program == 'detectron2' and '/mask_fcn_logits/' in name:
      array[..., :1] = 0
  file = tmp_path / 'file.pkl'
  # Caffe2 has a name for each kind of norm: ..._bn_s and ..._gn_s.
  alias = int(program == 'caffe2' and sizes is GROUP)
  write_pickle(file, peer_arrays(leaves, program, alias=alias))
  code, out, err = run(file, tmp_path / 'new')
  assert code == 0, err
  assert 'left out: none\nnot found: none\nloaded: ' in out
  found, metadata = read_checkpoint(tmp_path / 'new')
  assert_same(found, leaves)
  assert not metadata.is_partial
  model = stored_config(metadata.recipe).model
  assert {key: model[key] for key in sizes} == sizes
  assert metadata.categories == [[i, f'class {i}'] for i in (1, 2, 3)]


@pytest.mark.parametrize(
  ('program', 'wanted'),
  [
    ('torchvision', ('torchvision', False, 1e-5, False, 123.675, 58.395)),
    ('detectron2', ('modern', True, 1e-5, True, 123.675, 1.0)),
    pytest.param(
      'maskrcnn_benchmark',
      ('legacy', True, 0.0, True, 122.7717, 1.0),
      marks=pytest.mark.slow,
    ),
    ('caffe2', ('legacy', True, 0.0, True, 122.7717, 1.0)),
  ],
)
def test_each_program_has_its_conventions(tmp_path, program, wanted):
  # Depth 50, because only models with bottlenecks may have strides in 1x1
  # convolutions. The names of the arrays do not show where the strides are.
  write_pickle(
    tmp_path / 'file',
    peer_arrays(random_leaves(SMALL | dict(depth=50)), program),
  )
  convert_weights.convert(tmp_path / 'file', tmp_path / 'new')
  config = stored_config(read_checkpoint(tmp_path / 'new')[1].recipe)
  assert wanted == (
    config.geometry,
    config.model.stride_in_1x1,
    config.model.norm_eps,
    config.data.antialias,
    config.data.pixel_mean[0],
    config.data.pixel_std[0],
  )


@pytest.mark.parametrize(
  ('body', 'wanted'),
  # Source: detectron2, configs/COCO-Detection/rpn_R_50_{FPN,C4}_1x.yaml. Its
  # pyramid has no limit after the NMS of a level, of at most 1000 boxes.
  [('fpn', (1000, 1000, 2000)), ('c4', (12_000, 2000, 2000))],
)
def test_a_model_of_proposals_only_keeps_as_many_as_detectron2(
  tmp_path, body, wanted
):
  config = c4_config() if body == 'c4' else default_config()
  config.model.update(output='proposals', depth=50, width=2, fpn_channels=4)
  peer_files.write_weights(
    tmp_path / 'file',
    peer_files.peer_shapes(config, 2, 'detectron2'),
    peer_files.draw_small,
  )
  convert_weights.convert(tmp_path / 'file', tmp_path / 'new')
  limits = stored_config(read_checkpoint(tmp_path / 'new')[1].recipe).rpn.eval
  assert wanted == (limits.pre_nms, limits.post_nms, limits.num_proposals)


def test_old_torchvision_names_mean_norms_without_eps(tmp_path):
  leaves = random_leaves(SMALL)
  arrays = peer_arrays(leaves, 'torchvision')
  arrays = {k: v for k, v in arrays.items() if 'fpn' not in k} | {
    k: v
    for k, v in peer_arrays(leaves, 'torchvision', alias=1).items()
    if 'fpn' in k
  }
  write_torch(tmp_path / 'file.pth', arrays)
  convert_weights.convert(tmp_path / 'file.pth', tmp_path / 'new')
  found, metadata = read_checkpoint(tmp_path / 'new')
  assert_same(found, leaves)
  assert metadata.recipe['model']['norm_eps'] == 0


def test_a_detectron2_model_in_rgb_is_not_flipped(run, tmp_path):
  leaves = random_leaves(SMALL)
  arrays = peer_arrays(leaves, 'detectron2')
  stem = 'backbone.bottom_up.stem.conv1.weight'
  arrays[stem] = arrays[stem][:, ::-1]
  arrays['pixel_mean'] = np.float32([123.675, 116.28, 103.53])[:, None, None]
  arrays['pixel_std'] = np.float32([58.395, 57.12, 57.375])[:, None, None]
  write_pickle(tmp_path / 'file', {'model': arrays, '__author__': 'me'})
  _, out, _ = run(tmp_path / 'file', tmp_path / 'new')
  assert 'left out: pixel_mean, pixel_std\n' in out
  found, metadata = read_checkpoint(tmp_path / 'new')
  name = 'params/backbone/conv1/kernel'
  assert_array_equal(found[name], leaves[name])
  assert metadata.recipe['data']['pixel_mean'] == [123.675, 116.28, 103.53]
  assert metadata.recipe['data']['pixel_std'] == [58.395, 57.12, 57.375]


@pytest.mark.parametrize(
  ('rows', 'wanted'), [(81, [0, *COCO_CLASSES]), (91, list(range(91)))]
)
def test_coco_rows_are_those_of_its_ids(run, tmp_path, rows, wanted):
  arrays = peer_arrays(random_leaves(SMALL, 91), 'torchvision')
  arrays['roi_heads.box_predictor.cls_score.bias'] = np.arange(91.0)
  arrays['roi_heads.box_predictor.bbox_pred.bias'] = np.arange(364.0)
  write_torch(tmp_path / 'file.pth', arrays)
  code, _, err = run(
    tmp_path / 'file.pth', tmp_path / 'new', f'--coco_rows={rows}'
  )
  assert code == 0, err
  found, metadata = read_checkpoint(tmp_path / 'new')
  assert found['params/box_head/cls_score/bias'].tolist() == wanted
  assert found['params/box_head/bbox_pred/bias'].tolist() == [
    4 * row + i for row in wanted for i in range(4)
  ]
  assert [id_ for id_, _ in metadata.categories] == wanted[1:]
  assert metadata.categories[0] == [1, 'person']
  assert metadata.categories[-1] == [90, 'toothbrush']


def test_a_shape_that_does_not_fit_is_named(refuse, tmp_path):
  arrays = peer_arrays(random_leaves(SMALL), 'detectron2')
  arrays['roi_heads.box_head.fc2.weight'] = np.zeros((8, 7), np.float32)
  write_pickle(tmp_path / 'file', arrays)
  line = refuse(tmp_path / 'file', tmp_path / 'new')
  assert 'roi_heads.box_head.fc2.weight is (8, 7), (8, 8) was expected' in line
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'name', ['rpn.head.conv.0.0.bias', 'rpn.head.bbox_pred.weight']
)
def test_a_part_that_is_not_whole_is_named(refuse, tmp_path, name):
  arrays = peer_arrays(random_leaves(SMALL), 'torchvision')
  del arrays[name]
  write_torch(tmp_path / 'file.pth', arrays)
  line = refuse(tmp_path / 'file.pth', tmp_path / 'new')
  assert 'lacks 1 arrays' in line
  assert name in line


class Hostile:
  """Object whose pickle runs a command when it is loaded."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    return os.system, (self.command,)


def test_a_hostile_file_runs_nothing(refuse, tmp_path):
  target = tmp_path / 'target'
  content = peer_arrays(random_leaves(SMALL), 'torchvision') | {
    'more': Hostile(f'touch {target}')
  }
  (tmp_path / 'file.pth').write_bytes(pickle.dumps(content))
  line = refuse(tmp_path / 'file.pth', tmp_path / 'new')
  assert 'might run code' in line
  assert not target.exists()
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['{tmp}/none.pth', '{tmp}/new'], 'is not a file'),
    (['https://host/file.pth', '{tmp}/new'], 'on this machine'),
    (['{tmp}', '{tmp}/new'], '--to'),
    (['{tmp}/sound.pth', '{tmp}'], 'is there already'),
    (['{tmp}/other.pth', '{tmp}/new'], 'does not hold a ResNet'),
    (
      ['{tmp}/sound.pth', '{tmp}/new', '--source_format=caffe2'],
      'weights of torchvision, not of caffe2',
    ),
    (['{tmp}/sound.pth', '{tmp}/new', '--source_format=onnx'], 'onnx'),
    (['{tmp}/none', '{tmp}/new.pth', '--to=torchvision'], 'not a checkpoint'),
    (['{tmp}/none', '{tmp}/new.pkl', '--to=torchvision'], 'must end in .pth'),
  ],
)
def test_wrong_input_is_told_in_a_line(refuse, tmp_path, arguments, message):
  write_torch(
    tmp_path / 'sound.pth', peer_arrays(random_leaves(SMALL), 'torchvision')
  )
  write_torch(tmp_path / 'other.pth', {'a': np.ones(2)})
  line = refuse(*(text.format(tmp=tmp_path) for text in arguments))
  assert message in line


def test_a_backbone_alone_is_a_part_of_a_model(run, tmp_path):
  arrays = peer_arrays(random_leaves(SMALL), 'torchvision', alias=1)
  arrays = {
    name: array
    for name, array in arrays.items()
    if name.startswith(('conv1', 'bn1', 'layer'))
  }
  arrays |= {'fc.weight': np.ones((10, 8)), 'fc.bias': np.ones(10)}
  write_torch(tmp_path / 'file.pth', arrays)
  code, out, err = run(tmp_path / 'file.pth', tmp_path / 'new')
  assert code == 0, err
  assert 'left out: fc.bias, fc.weight\n' in out
  assert 'for --init_from.' in out
  found, metadata = read_checkpoint(tmp_path / 'new')
  assert {name.split('/')[1] for name in found} == {'backbone'}
  assert metadata.is_partial
  with pytest.raises(InputError, match='--init_from'):
    load_detector(tmp_path / 'new', None)


@pytest.mark.parametrize(
  ('to', 'end', 'rows'),
  [
    ('torchvision', 'pth', 91),
    ('detectron2', 'pkl', 81),
    pytest.param('torchvision', 'pth', 81, marks=pytest.mark.slow),
    pytest.param('detectron2', 'pth', 81, marks=pytest.mark.slow),
  ],
)
def test_there_and_back_is_the_same_to_the_bit(run, tmp_path, to, end, rows):
  arrays = peer_arrays(random_leaves(SMALL, 81), to)
  write_pickle(tmp_path / 'file', arrays)
  run(tmp_path / 'file', tmp_path / 'new')
  back = tmp_path / f'back.{end}'
  code, out, err = run(
    tmp_path / 'new', back, f'--to={to}', f'--coco_rows={rows}'
  )
  assert code == 0, err
  setting = {
    'torchvision': f'num_classes={rows} (with background)',
    'detectron2': f'MODEL.ROI_HEADS.NUM_CLASSES {rows - 1}',
  }[to]
  assert setting in out
  if rows == 81:
    assert_same(read_weights(back).arrays, arrays)
  else:
    scores = read_weights(back).arrays['roi_heads.box_predictor.cls_score.bias']
    assert scores.shape == (91,)
    assert (np.delete(scores, [0, *COCO_CLASSES]) == -100).all()
  run(back, tmp_path / 'again')
  one, other = (read_checkpoint(tmp_path / x) for x in ('new', 'again'))
  assert_same(one[0], other[0])
  assert one[1].recipe == other[1].recipe


def save_own(directory, **changes):
  """Saves a checkpoint as a training does, and returns its arrays by name.

  Args:
    directory: Directory of the checkpoint.
    **changes: Keys of the recipe, such as geometry, and their values.
  """
  config = default_config()
  config.model.update(SMALL)
  config.update_from_flattened_dict(changes)
  leaves = random_leaves(SMALL)
  # detectron2 has no rows for the box and the mask of background, so these
  # numbers would be lost.
  for name in ('kernel', 'bias'):
    leaves[f'params/box_head/bbox_pred/{name}'][..., :4] = 0
    leaves[f'params/mask_head/mask_fcn_logits/{name}'][..., 0] = 0
  with contextlib.closing(checkpoint.open_checkpoints(directory)) as manager:
    checkpoint.save_checkpoint(
      manager,
      model=checkpoint.nested(leaves),
      optimizer=None,
      metadata=checkpoint.Metadata(
        0, plain(config), [[i, f'class {i}'] for i in (1, 2, 3)], 'drawn'
      ),
    )
    manager.wait_until_finished()
  return leaves


@pytest.mark.parametrize(
  ('to', 'end'),
  [
    ('torchvision', 'pth'),
    ('detectron2', 'pkl'),
    ('detectron2', 'pth'),
  ],
)
def test_weights_trained_here_arrive_there_and_come_back(
  run, tmp_path, to, end
):
  leaves = save_own(tmp_path / 'own')
  code, out, err = run(tmp_path / 'own', tmp_path / f'file.{end}', f'--to={to}')
  assert code == 0, err
  # The recipe does not set mean and std; they follow from its geometry.
  # 123.675 / 255 is 0.485.
  assert {
    'torchvision': 'image_mean=[0.485, 0.456, 0.406], image_std=[0.229, ',
    'detectron2': 'MODEL.PIXEL_MEAN [103.53, 116.28, 123.675], ',
  }[to] in out
  code, _, err = run(tmp_path / f'file.{end}', tmp_path / 'back')
  assert code == 0, err
  arrays, metadata = read_checkpoint(tmp_path / 'back')
  assert_same(arrays, leaves)
  assert metadata.recipe['data']['pixel_std'] == [58.395, 57.12, 57.375]
  assert metadata.recipe['geometry'] == (
    'torchvision' if to == 'torchvision' else 'modern'
  )


@pytest.mark.parametrize(
  'body',
  [
    'c4',
    pytest.param('c5', marks=pytest.mark.slow),
    pytest.param('dc5', marks=pytest.mark.slow),
  ],
)
def test_a_model_without_pyramid_arrives_in_detectron2_and_comes_back(
  run, refuse, tmp_path, body
):
  config = c4_config() if body == 'c4' else c5_config(dilated=body == 'dc5')
  config.model.update(depth=50, width=4, mask_channels=8)
  if body != 'c4':
    config.model.update(box_features=16, mask_convs=1)
  rcnn = Rcnn.from_config(config, num_classes=4, dtype=jnp.float32)
  rng = np.random.default_rng(0)
  leaves = {
    name: rng.normal(size=x.shape).astype(np.float32)
    for name, x in checkpoint.named_leaves(
      jax.eval_shape(rcnn.init, jax.random.key(0))
    ).items()
  }
  for name, array in leaves.items():
    if name.endswith('var'):
      array[:] = abs(array)
    # detectron2 has no rows for the box and the mask of background.
    if 'box_head/bbox_pred' in name:
      array[..., :4] = 0
    if 'mask_head/mask_fcn_logits' in name:
      array[..., 0] = 0
  with contextlib.closing(
    checkpoint.open_checkpoints(tmp_path / 'own')
  ) as manager:
    checkpoint.save_checkpoint(
      manager,
      model=checkpoint.nested(leaves),
      optimizer=None,
      metadata=checkpoint.Metadata(
        0, plain(config), [[i, f'class {i}'] for i in (1, 2, 3)], 'drawn'
      ),
    )
    manager.wait_until_finished()
  line = refuse(tmp_path / 'own', tmp_path / 'x.pth', '--to=torchvision')
  assert '--to=detectron2' in line
  code, out, err = run(
    tmp_path / 'own', tmp_path / 'file.pth', '--to=detectron2'
  )
  assert code == 0, err
  assert {'c4': 'Base-RCNN-C4', 'c5': 'RES5_DILATION 1', 'dc5': 'DilatedC5'}[
    body
  ] in out
  names = read_weights(tmp_path / 'file.pth')[0]
  # The names that detectron2 gives them.
  assert 'backbone.stem.conv1.weight' in names
  assert 'backbone.res4.5.conv3.norm.running_var' in names
  last = 'roi_heads.res5' if body == 'c4' else 'backbone.res5'
  assert f'{last}.2.conv2.weight' in names
  code, _, err = run(tmp_path / 'file.pth', tmp_path / 'back')
  assert code == 0, err
  arrays, metadata = read_checkpoint(tmp_path / 'back')
  assert_same(arrays, leaves)
  assert metadata.recipe['model']['body'] == body


@pytest.mark.parametrize(
  ('to', 'geometry_name', 'texts'),
  [
    ('torchvision', 'torchvision', ()),
    (
      'torchvision',
      'modern',
      (
        'computes otherwise than geometry modern',
        'RoIAlign moves boxes by 0 ',
        "rounded by the rule 'corners', not 'none'",
        'sampling_ratio=0',
      ),
    ),
    ('detectron2', 'modern', ()),
    (
      'detectron2',
      'torchvision',
      (
        'MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign',
        'MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 2',
        'stride of its anchors is 2**level',
      ),
    ),
    ('detectron2', 'legacy', ('x2 - x1 + 0 wide, not x2 - x1 + 1',)),
  ],
)
def test_an_export_says_what_the_other_program_computes_otherwise(
  run, tmp_path, to, geometry_name, texts
):
  save_own(tmp_path / 'own', geometry=geometry_name)
  code, out, err = run(tmp_path / 'own', tmp_path / 'file.pth', f'--to={to}')
  assert code == 0, err
  assert ('otherwise' in out) == bool(texts)
  for text in texts:
    assert text in out


@pytest.mark.skipif(sys.platform != 'linux', reason='writes to /proc')
def test_a_place_that_cannot_be_written_to_is_named(refuse, tmp_path):
  save_own(tmp_path / 'own')
  line = refuse(tmp_path / 'own', '/proc/new/file.pth', '--to=torchvision')
  assert 'C10: cannot write to /proc/new' in line
  write_torch(
    tmp_path / 'file.pth', peer_arrays(random_leaves(SMALL), 'torchvision')
  )
  line = refuse(tmp_path / 'file.pth', '/proc/new')
  assert 'C10: cannot write to /proc/new' in line


def test_an_export_names_other_anchors_and_sides(run, tmp_path):
  save_own(
    tmp_path / 'own',
    **{
      'anchors.sizes': ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)),
      'data.short_side': 64,
    },
  )
  _, out, _ = run(tmp_path / 'own', tmp_path / 'a.pth', '--to=torchvision')
  assert 'min_size=64, max_size=1333' in out
  assert 'AnchorGenerator(sizes=((8.0,), (16.0,), ' in out
  _, out, _ = run(tmp_path / 'own', tmp_path / 'b.pth', '--to=detectron2')
  assert 'INPUT.MIN_SIZE_TEST 64, INPUT.MAX_SIZE_TEST 1333' in out
  assert 'ANCHOR_GENERATOR.SIZES [[8.0], [16.0], ' in out
  code, _, err = run(tmp_path / 'b.pth', tmp_path / 'back')
  assert code == 0, err
  recipe = read_checkpoint(tmp_path / 'back')[1].recipe
  assert recipe['anchors']['sizes'] == [[8.0], [16.0], [32.0], [64.0], [128.0]]
  assert (recipe['data']['short_side'], recipe['data']['long_side']) == (
    64,
    1333,
  )


def test_the_samples_of_roi_align_come_back_from_detectron2(run, tmp_path):
  save_own(tmp_path / 'own', **{'roi.sampling_ratio': 3})
  run(tmp_path / 'own', tmp_path / 'file.pkl', '--to=detectron2')
  code, _, err = run(tmp_path / 'file.pkl', tmp_path / 'back')
  assert code == 0, err
  assert (
    read_checkpoint(tmp_path / 'back')[1].recipe['roi']['sampling_ratio'] == 3
  )


def test_damaged_notes_are_refused(run, refuse, tmp_path):
  save_own(tmp_path / 'own')
  run(tmp_path / 'own', tmp_path / 'file.pkl', '--to=detectron2')
  content = pickle.loads((tmp_path / 'file.pkl').read_bytes())
  content['maskrcnn_jax']['data.short_side'] = -5
  (tmp_path / 'other.pkl').write_bytes(pickle.dumps(content))
  line = refuse(tmp_path / 'other.pkl', tmp_path / 'back')
  assert '-5 for data.short_side' in line


@pytest.mark.parametrize('sizes', [GROUP, SMALL | dict(depth=50)])
def test_what_torchvision_cannot_compute_is_not_written(
  run, refuse, tmp_path, sizes
):
  write_pickle(
    tmp_path / 'file', peer_arrays(random_leaves(sizes), 'detectron2')
  )
  run(tmp_path / 'file', tmp_path / 'new')
  line = refuse(tmp_path / 'new', tmp_path / 'x.pth', '--to=torchvision')
  assert '--to=detectron2' in line


@pytest.fixture
def weight_files(tmp_path):
  """Returns a folder with a torchvision file and a detectron2 file.

  Both have the same weights. torch.save wrote the first.
  """
  file = tmp_path / 'torchvision.pth'
  with gzip.open(DATA / 'torchvision_tiny.pth.gz') as packed:
    file.write_bytes(packed.read())
  arrays = read_weights(file).arrays
  convert_weights.convert(file, tmp_path / 'tiny')
  leaves, _ = read_checkpoint(tmp_path / 'tiny')
  assert len(leaves) == len(arrays) == 134
  write_pickle(
    tmp_path / 'detectron2.pkl',
    {
      'model': peer_arrays(leaves, 'detectron2'),
      '__author__': 'me',
      'matching_heuristics': True,
    },
  )
  return tmp_path


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.usefixtures('compilation_cache')
@pytest.mark.slow
@pytest.mark.parametrize('name', ['torchvision.pth', 'detectron2.pkl'])
def test_converted_weights_predict_and_are_evaluated(
  run, weight_files, tiny_data, monkeypatch, capsys, name
):
  truth = tiny_data / 'instances_val.json'
  converted = weight_files / 'new'
  code, out, err = run(weight_files / name, converted, f'--categories={truth}')
  assert code == 0, err
  metadata = read_checkpoint(converted)[1]
  assert metadata.recipe['geometry'] in geometry.PRESETS
  assert metadata.categories == [
    list(x) for x in coco.read_coco(truth).categories
  ]

  # The recipe of the checkpoint would enlarge the images to 800 pixels.
  recipe = weight_files / 'recipe.py'
  recipe.write_text(f"""
import tiny
from weight_files import (
  GROUP,
  SMALL,
  assert_same,
  peer_arrays,
  random_leaves,
  read_checkpoint,
  shapes_of,
)
from maskrcnn_jax.config import stored_config
def get_config():
  config, small = stored_config({metadata.recipe!r}), tiny.get_config()
  sampling_ratio = config.roi.sampling_ratio
  for part in ('rpn', 'roi', 'detections', 'eval', 'predict'):
    config[part] = small[part]
  for key in ('short_side', 'long_side', 'padded_sizes', 'max_source_side'):
    config.data[key] = small.data[key]
  with config.ignore_type():
    config.roi.sampling_ratio = sampling_ratio
  return config
""")
  monkeypatch.setattr(main, 'set_up_console', lambda: None)
  monkeypatch.setattr(main, '_set_up_ctrl_c', lambda: None)
  for mode in ('predict', 'eval'):
    monkeypatch.setattr(
      sys,
      'argv',
      [
        'main',
        f'--config={recipe}',
        f'--mode={mode}',
        f'--workdir={weight_files / "run"}',
        f'--checkpoint={converted}',
        *([f'--input={tiny_data / "images"}'] if mode == 'predict' else []),
        *(x for x in tiny.data_flags(tiny_data) if '.eval.' in x),
      ],
    )
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      main.run()
    assert exit_.value.code == 0, capsys.readouterr().err
    for flag in list(flags.FLAGS):
      if flag.startswith('config.'):
        delattr(flags.FLAGS, flag)
  found = json.loads(
    (weight_files / 'run/predictions/predictions.json').read_text()
  )
  assert found
  assert all(np.isfinite(x['score']) for x in found)
  assert (weight_files / 'run/inference/coco_results.json').exists()


@pytest.mark.skipif(
  not SHARED.exists(), reason='needs ../shared/golden: not in this checkout'
)
@pytest.mark.parametrize(
  'program',
  [pytest.param('torchvision', marks=pytest.mark.slow), 'detectron2'],
)
def test_converted_weights_compute_what_the_program_computes(tmp_path, program):
  folder = SHARED / 'golden'
  spec = importlib.util.spec_from_file_location('seeded', folder / 'seeded.py')
  seeded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(seeded)
  draw = {
    'torchvision': seeded.torchvision_array,
    'detectron2': seeded.detectron2_array,
  }[program]
  golden = np.load(folder / f'{program}_seed0.npz')
  blank = {
    name: np.broadcast_to(np.float32(0), x.shape)
    for name, x in shapes_of({}, 81).items()
  }
  write_torch(
    tmp_path / 'file.pth',
    {
      name: draw(name, array.shape, 0)
      for name, array in peer_arrays(blank, program).items()
    },
  )

  convert_weights.convert(tmp_path / 'file.pth', tmp_path / 'new')
  leaves, metadata = read_checkpoint(tmp_path / 'new')
  config = stored_config(metadata.recipe)
  model = Rcnn.from_config(config, num_classes=81, dtype=jnp.float32).network
  pixels = (
    golden['image'] * 255
    if program == 'torchvision'
    else golden['image_bgr_uint8'][..., ::-1]
  )
  image = (pixels - np.array(config.data.pixel_mean)) / config.data.pixel_std

  @jax.jit
  def compute(variables, images):
    pyramid = model.apply(variables, images, method='extract')
    return pyramid, model.apply(variables, pyramid, method='propose')

  pyramid, rpn = compute(
    checkpoint.nested(leaves), jnp.asarray(image, jnp.float32)[None]
  )

  def assert_close(ours, theirs):
    scale = np.abs(theirs).max()
    assert_allclose(ours, theirs, rtol=0, atol=1e-3 * scale)

  levels = (2, 3, 4, 5, 6)
  for level in levels:
    assert_close(pyramid[level][0, ::4, ::4, ::8], golden[f'p{level}'])
  logits = [golden[f'rpn_logits_p{level}'].ravel() for level in levels]
  deltas = [golden[f'rpn_deltas_p{level}'].reshape(-1, 4) for level in levels]
  assert_close(rpn.objectness_logits[0], np.concatenate(logits))
  assert_close(rpn.anchor_deltas[0], np.concatenate(deltas))
