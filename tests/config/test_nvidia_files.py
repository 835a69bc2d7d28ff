"""Tests that files of NVIDIA's program translate key by key."""

from nvidia_files import FILES, NAMES
import pytest

from maskrcnn_jax.config import derived
from maskrcnn_jax.config.defaults import c4_config, value_of
from maskrcnn_jax.config.keys import BY_NAME as OUR_KEYS
from maskrcnn_jax.config.nvidia_recipe import translate_file
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.config.yaml_recipe import read_table

# The values of a Mask R-CNN R-50-FPN at 16 images a step: the keys that the
# files have in common, and the defaults of NVIDIA's program for all others.
COMMON = {
  'geometry': 'legacy',
  'precision': 'auto',
  'freeze_at': 2,
  'model.output': 'masks',
  'model.body': 'fpn',
  'model.depth': 50,
  'model.groups': 1,
  'model.group_width': 64,
  'model.stride_in_1x1': True,
  'model.norm': 'frozen_batch',
  'model.norm_eps': 0.0,
  'model.width': 64,
  'model.fpn_channels': 256,
  'model.box_convs': 0,
  'model.box_fcs': 2,
  'model.box_features': 1024,
  'model.mask_convs': 4,
  'model.mask_channels': 256,
  'anchors.sizes': ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,)),
  'anchors.ratios': (0.5, 1.0, 2.0),
  'rpn.foreground_iou': 0.7,
  'rpn.background_iou': 0.3,
  'rpn.num_samples': 256,
  'rpn.foreground_fraction': 0.5,
  'rpn.iou_threshold': 0.7,
  'rpn.train.pre_nms': 2000,
  'rpn.train.post_nms': 2000,
  'rpn.train.num_proposals': 1000,
  'rpn.eval.pre_nms': 1000,
  'rpn.eval.post_nms': 1000,
  'rpn.eval.num_proposals': 1000,
  'roi.num_samples': 512,
  'roi.foreground_fraction': 0.25,
  'roi.foreground_iou': 0.5,
  'roi.box_side': 7,
  'roi.mask_side': 14,
  'roi.sampling_ratio': 2,
  'detections.min_score': 0.05,
  'detections.iou_threshold': 0.5,
  'detections.max_detections': 100,
  'data.train.images': ('data/coco/train2014', 'data/coco/val2014'),
  'data.train.annotations': (
    'data/coco/annotations/instances_train2014.json',
    'data/coco/annotations/instances_valminusminival2014.json',
  ),
  'data.eval.images': 'data/coco/val2014',
  'data.eval.annotations': 'data/coco/annotations/instances_minival2014.json',
  'data.short_side': 800,
  'data.short_sides': (),
  'data.long_side': 1333,
  'data.padded_sizes': ((800, 1088), (800, 1344), (1088, 800), (1344, 800)),
  'data.flip_probability': 0.5,
  'data.color_jitter': (0.0, 0.0, 0.0),
  'train.batch_size': 16,
  'train.reference_batch_size': 16,
  'train.micro_batches': 1,
  'train.num_steps': 90_000,
  'train.checkpoint_every': 2500,
  'train.eval_every_epochs': 0.0,
  'train.min_box_ap': 0.0,
  'train.min_mask_ap': 0.0,
  'optimizer.learning_rate': 0.02,
  'optimizer.bias_rate_factor': 2.0,
  'optimizer.momentum': 0.9,
  'optimizer.weight_decay': 1e-4,
  'optimizer.decay_factor': 0.1,
  'optimizer.decay_steps': (60_000, 80_000),
  'optimizer.warmup': 'linear',
  'optimizer.warmup_steps': 500,
  'optimizer.warmup_factor': 1 / 3,
  'eval.batch_size': 8,
}
COCO_2017 = {
  'data.train.images': 'data/coco/train2017',
  'data.train.annotations': 'data/coco/annotations/instances_train2017.json',
  'data.eval.images': 'data/coco/val2017',
  'data.eval.annotations': 'data/coco/annotations/instances_val2017.json',
}


def of_batch(size: int, rate: float, steps: int, decays: tuple) -> dict:
  """Returns the keys of a schedule."""
  return {
    'train.batch_size': size,
    'train.reference_batch_size': size,
    'optimizer.learning_rate': rate,
    'train.num_steps': steps,
    'optimizer.decay_steps': decays,
  }


MLPERF = {
  'optimizer.warmup': 'mlperf_linear',
  'optimizer.warmup_steps': 800,
  'optimizer.warmup_factor': 1e-4,
}
# {file: its values that differ from COMMON}. The numbers of proposals are those
# of all images of a GPU, divided by the images of a GPU.
SPECIAL = {
  'bs32': of_batch(32, 0.04, 45_000, (33_000, 44_000)),
  'bs64': of_batch(64, 0.08, 27_500, (18_000, 24_000))
  | MLPERF
  | {'precision': 'tf32'},
  'bs96': of_batch(96, 0.12, 16_667, (12_000, 16_000)) | MLPERF | COCO_2017,
  # 2000 proposals of 4 images.
  '1gpu': of_batch(4, 0.005, 360_000, (240_000, 360_000))
  | {'rpn.train.num_proposals': 500, 'eval.batch_size': 1},
  'boxes': {'model.output': 'boxes'},
  # 2000 proposals of one image.
  'x101': of_batch(8, 0.01, 180_000, (120_000, 160_000))
  | {
    'rpn.train.num_proposals': 2000,
    'model.depth': 101,
    'model.groups': 32,
    'model.group_width': 8,
    'model.stride_in_1x1': False,
  },
  'c4': of_batch(8, 0.01, 180_000, (120_000, 160_000))
  | {
    'model.body': 'c4',
    'model.box_fcs': 0,
    'model.mask_convs': 0,
    'anchors.sizes': ((32.0, 64.0, 128.0, 256.0, 512.0),),
    'rpn.train.pre_nms': 12_000,
    'rpn.train.num_proposals': 2000,
    'rpn.eval.pre_nms': 6000,
    'roi.box_side': 14,
    'roi.sampling_ratio': 0,
  },
  'gn': of_batch(16, 0.02, 270_000, (210_000, 250_000))
  | {
    'freeze_at': 0,
    'model.norm': 'group',
    'model.box_convs': 4,
    'model.box_fcs': 1,
  },
}
# The keys that a file does not decide, because its model has no such part.
ABSENT = {
  'boxes': {'model.mask_convs', 'model.mask_channels', 'roi.mask_side'},
  'c4': {'model.fpn_channels'},
}


@pytest.fixture
def write(tmp_path):
  """A function that writes a YAML file and returns its path."""

  def function(text, name='recipe.yaml'):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return function


@pytest.mark.parametrize('which', NAMES)
def test_a_file_translates_key_by_key(which, write):
  name = NAMES[which]
  table = read_table(write(FILES[name], name))
  translation = translate_file(table, place=name)
  expected = COMMON | SPECIAL[which]
  for key in ABSENT.get(which, ()):
    del expected[key]
  assert translation.values == expected
  # A line for each key of the file, in its order, and one for the defaults.
  *lines, last = translation.lines
  assert [line.split()[0] for line in lines] == list(table)
  assert all(' -> ' in line for line in lines)
  assert last.startswith("defaults of NVIDIA's program -> ")


@pytest.mark.parametrize('which', NAMES)
def test_a_translated_file_passes_the_check_of_recipes(which, write):
  path = write(FILES[NAMES[which]])
  pairs = [('DATASETS.TRAIN', 'coco_2017_train'), ('DTYPE', 'tf32')]
  recipe = read_recipe(path, pairs)
  assert recipe.config.data.train.images == 'data/coco/train2017'
  assert recipe.config.precision == 'tf32'
  # The batch is the one that the schedule is for, so nothing is scaled.
  assert derived.scaled_to_batch(recipe.config)[1] == []


def test_a_translated_c4_model_is_that_of_c4_config(write):
  config = read_recipe(
    write(FILES[NAMES['c4']]),
    [('DATASETS.TRAIN', 'coco_2017_train'), ('DTYPE', 'tf32')],
  ).config
  ours = c4_config()
  for key in OUR_KEYS:
    if key.startswith(('model.', 'anchors.', 'rpn.', 'roi.')) and key not in (
      # The conventions of NVIDIA's program.
      'model.norm_eps',
      'model.stride_in_1x1',
      'roi.sampling_ratio',
    ):
      assert value_of(config, key) == value_of(ours, key), key
