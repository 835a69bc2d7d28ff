"""Tests of the translation of NVIDIA's keys: single keys, pairs and errors."""

import re

from nvidia_files import FILES, NAMES
import pytest

from maskrcnn_jax.config import default_config, derived, source_of
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.keys import BY_NAME as OUR_KEYS
from maskrcnn_jax.config.nvidia_flags import advice_on_weights, flags_from
from maskrcnn_jax.config.nvidia_keys import ANY, BY_NAME, ROWS, is_nvidia_key
from maskrcnn_jax.config.nvidia_recipe import translate_file
from maskrcnn_jax.config.nvidia_training import padded_sizes
from maskrcnn_jax.config.recipe import read_overrides, read_recipe
from maskrcnn_jax.config.yaml_recipe import read_table
from maskrcnn_jax.errors import InputError


@pytest.fixture
def write(tmp_path):
  """A function that writes a YAML file and returns its path."""

  def function(text, name='recipe.yaml'):
    path = tmp_path / name
    path.write_text(text)
    return str(path)

  return function


@pytest.mark.parametrize(
  ('line', 'count'),
  [
    ('SOLVER.BASE_LR 0.04 -> optimizer.learning_rate = 0.04', 1),
    (
      'MODEL.WEIGHT catalog://ImageNetPretrained/MSRA/R-50 -> '
      '--init_from=catalog://ImageNetPretrained/MSRA/R-50',
      1,
    ),
    ("MODEL.BACKBONE.CONV_BODY R-50-FPN -> model.body = 'fpn', ", 1),
    ('minival has the images of val2017', 2),
    ('for all images of a GPU, 4 of a batch of 32 on 8 GPUs', 1),
    ("geometry = 'legacy', model.norm_eps = 0.0", 1),
  ],
)
def test_lines_for_the_log(line, count, write):
  table = read_table(write(FILES[NAMES['bs32']]))
  lines = translate_file(table, place='a.yaml').lines
  assert sum(line in x for x in lines) == count


def test_accumulation(write):
  path = write(FILES[NAMES['boxes']])
  recipe = read_recipe(
    path,
    [
      ('SOLVER.ACCUMULATE_GRAD', 'True'),
      ('SOLVER.ACCUMULATE_STEPS', '4'),
      ('DATASETS.TRAIN', 'coco_2017_train'),
      ('DTYPE', 'float32'),
    ],
  )
  config = recipe.config
  assert config.train.batch_size == 64
  assert config.train.micro_batches == 4
  assert config.train.num_steps == 22_500
  assert config.train.checkpoint_every == 625
  # In NVIDIA's program, these count updates of the weights.
  assert config.optimizer.learning_rate == 0.02
  assert config.optimizer.decay_steps == (60_000, 80_000)
  assert config.optimizer.warmup_steps == 500
  scaled, changes = derived.scaled_to_batch(config, frozenset(recipe.given))
  assert changes == [] and scaled.optimizer.learning_rate == 0.02
  (note,) = (x for x in recipe.notes if 'the learning rate never falls' in x)
  assert note.startswith('SOLVER.ACCUMULATE_GRAD True -> train.batch_size = 64')
  assert "SOLVER.STEPS '(15000, 20000)'" in note


def test_accumulation_in_a_recipe_of_this_program():
  recipe = read_recipe(
    'r50_fpn',
    [('SOLVER.ACCUMULATE_GRAD', 'True'), ('SOLVER.ACCUMULATE_STEPS', '4')],
  )
  config, changes = derived.scaled_to_batch(
    recipe.config, frozenset(recipe.given)
  )
  assert changes == []
  assert config.train.batch_size == 64
  assert config.train.micro_batches == 4
  assert config.train.num_steps == 22_500
  assert config.optimizer.learning_rate == 0.02


def test_steps_without_accumulation_have_no_effect(write):
  recipe = read_recipe('r50_fpn', [('SOLVER.ACCUMULATE_STEPS', '4')])
  assert recipe.config.train.batch_size == 16
  assert recipe.given == {}
  assert 'no effect, because SOLVER.ACCUMULATE_GRAD' in recipe.notes[0]


@pytest.mark.parametrize(
  ('pairs', 'values'),
  [
    ('SOLVER.BASE_LR 1e-3', {'optimizer.learning_rate': 0.001}),
    ('SOLVER.STEPS (3,4)', {'optimizer.decay_steps': (3, 4)}),
    ('SOLVER.IMS_PER_BATCH 8', {'train.batch_size': 8}),
    ('SOLVER.MAX_ITER 10', {'train.num_steps': 10}),
    ('TEST.IMS_PER_BATCH 2', {'eval.batch_size': 2}),
    ('DTYPE float16', {'precision': 'fp16'}),
    ('DTYPE "bfloat16"', {'precision': 'bf16'}),
    ('DTYPE tf32', {'precision': 'tf32'}),
    ('DTYPE float32', {'precision': 'fp32'}),
    (
      'PER_EPOCH_EVAL True',
      {
        'train.eval_every_epochs': 1.0,
        'train.min_box_ap': 0.377,
        'train.min_mask_ap': 0.342,
      },
    ),
    (
      'PER_EPOCH_EVAL True MIN_BBOX_MAP 0.3 MIN_MASK_MAP 0.25',
      {
        'train.eval_every_epochs': 1.0,
        'train.min_box_ap': 0.3,
        'train.min_mask_ap': 0.25,
      },
    ),
    ('MIN_BBOX_MAP 0.3', {'train.min_box_ap': 0.0}),
    ('MODEL.BACKBONE.FREEZE_CONV_BODY_AT -1', {'freeze_at': 0}),
    ('MODEL.RPN.NMS_THRESH 0.6', {'rpn.iou_threshold': 0.6}),
    ('INPUT.CONTRAST 0.2', {'data.color_jitter': (0.0, 0.2, 0.0)}),
    (
      'DATASETS.TRAIN ("coco_2014_train")',
      {
        'data.train.images': 'data/coco/train2014',
        'data.train.annotations': (
          'data/coco/annotations/instances_train2014.json'
        ),
      },
    ),
    ('NHWC True', {}),
    ('MODEL.RPN.MIN_SIZE 0', {}),
  ],
)
def test_pairs_change_these_keys_of_a_recipe_and_no_others(pairs, values):
  words = pairs.split()
  recipe = read_recipe(
    'r50_fpn', list(zip(words[::2], words[1::2], strict=True))
  )
  before = read_recipe('r50_fpn').config
  for key in OUR_KEYS:
    expected = values.get(key, value_of(before, key))
    assert value_of(recipe.config, key) == expected, key
  assert recipe.given == values
  assert len(recipe.notes) == len(words) // 2


def test_pairs_without_a_recipe():
  recipe = read_overrides([('TEST.IMS_PER_BATCH', '3'), ('seed', '4')])
  assert recipe.given == {'eval.batch_size': 3, 'seed': 4}


def test_expected_results(write):
  text = """
TEST:
  EXPECTED_RESULTS: [['bbox', 'AP', [0.377, 0.001]], [segm, AP, 0.342, 0.001]]
"""
  recipe = read_recipe('r50_fpn')
  table = read_table(write(text))
  values = translate_file(table, place='a').values
  assert values['expected.box_ap'] == pytest.approx((0.377, 0.004))
  assert values['expected.mask_ap'] == pytest.approx((0.342, 0.004))
  assert recipe.notes == ()


def test_colors(write):
  bgr = 'INPUT:\n  PIXEL_MEAN: [10, 20.0, 30]\n  PIXEL_STD: [1, 2, 3]\n'
  values = translate_file(read_table(write(bgr)), place='a').values
  assert values['data.pixel_mean'] == (30.0, 20.0, 10.0)
  assert values['data.pixel_std'] == (3.0, 2.0, 1.0)
  # Pixels in [0, 1]: (p / 255 - .485) / .229 = (p - 123.675) / 58.395.
  rgb = (
    'INPUT:\n  TO_BGR255: False\n  PIXEL_MEAN: [0.485, 0.456, 0.406]\n'
    '  PIXEL_STD: (0.229, 0.224, 0.225)\n'
  )
  values = translate_file(read_table(write(rgb)), place='a').values
  assert values['data.pixel_mean'] == (123.675, 116.28, 103.53)
  assert values['data.pixel_std'] == (58.395, 57.12, 57.375)


def test_other_sizes_in_training_and_evaluation(write):
  text = (
    'INPUT:\n  MIN_SIZE_TRAIN: (480, 600)\n  MAX_SIZE_TRAIN: 1000\n'
    '  MIN_SIZE_TEST: 600\n  MAX_SIZE_TEST: 1000\n'
  )
  values = translate_file(read_table(write(text)), place='a').values
  assert values['data.short_sides'] == (480, 600)
  assert values['data.short_side'] == 600
  assert values['data.long_side'] == 1000
  assert values['data.padded_sizes'] == (
    (608, 800),
    (608, 1024),
    (800, 608),
    (1024, 608),
  )


def test_padded_sizes():
  # For the usual sizes they are the defaults of this program.
  assert padded_sizes(800, 1333) == default_config().data.padded_sizes
  assert padded_sizes(64, 64) == ((64, 64),)
  assert padded_sizes(64, 80) == ((64, 96), (96, 64))


BASE = 'DATASETS: {TRAIN: coco_2017_train, TEST: coco_2017_val}\n'


@pytest.mark.parametrize(
  ('text', 'reasons'),
  [
    ('SOLVER: {BASE_LR: fast}', ["SOLVER.BASE_LR: it is 'fast'; give a numb"]),
    ('SOLVER: {BASE_LR: -1}', ['SOLVER.BASE_LR: it is -1.0; it must be at le']),
    ('SOLVER: {MAX_ITER: 10.5}', ['SOLVER.MAX_ITER: it is 10.5; give a whole']),
    ('SOLVER: {MAX_ITER: 0}', ['SOLVER.MAX_ITER: it is 0; it must be at leas']),
    ('SOLVER: {MAX_ITER: true}', ['SOLVER.MAX_ITER: it is True; give a whole']),
    ('SOLVER: {STEPS: "(a, b)"}', ["SOLVER.STEPS: it is ('(a, b)',); give"]),
    ('SOLVER:', ['SOLVER: it is a group of keys and has none; leave it out']),
    ('SOLVER: {BASE_L: 1}', ['SOLVER.BASE_L: there is no such key; did you']),
    ('SOLVER: {WEIGHT_DECAY_BIAS: 0.1}', ['biases have no weight decay']),
    ('SOLVER: {WARMUP_METHOD: exp}', ["WARMUP_METHOD: it is 'exp'"]),
    ('MODEL: {MASK_ON: 1}', ['MODEL.MASK_ON: it is 1; give True or False']),
    ('MODEL: {KEYPOINT_ON: True}', ['MODEL.KEYPOINT_ON: it is True; only Fal']),
    ('MODEL: {META_ARCHITECTURE: RetinaNet}', ["only 'GeneralizedRCNN'"]),
    ('MODEL: {BACKBONE: {CONV_BODY: R-152-FPN}}', ["it is 'R-152-FPN'; only"]),
    ('MODEL: {BACKBONE: {CONV_BODY: FBNet}}', ["it is 'FBNet'; only R-50"]),
    (
      'MODEL: {BACKBONE: {CONV_BODY: R-50-FPN}}',
      ['MODEL.RPN.USE_FPN: it is F'],
    ),
    (
      'MODEL: {BACKBONE: {OUT_CHANNELS: 256}}',
      ['it is 256; the body has 1024'],
    ),
    (
      'MODEL: {RESNETS: {TRANS_FUNC: BottleneckWithGN}}',
      ['STEM_FUNC: it is St'],
    ),
    (
      'MODEL: {RESNETS: {STEM_OUT_CHANNELS: 32}}',
      ['4 times STEM_OUT_CHANNELS'],
    ),
    ('MODEL: {RPN: {ANCHOR_STRIDE: (8,)}}', ['R-50-C4 needs (16,)']),
    ('MODEL: {RPN: {ANCHOR_SIZES: [a]}}', ["it is ('a',); give numbers"]),
    ('MODEL: {RPN: {STRADDLE_THRESH: -1}}', ['ignores anchors that cross']),
    (
      'MODEL: {ROI_HEADS: {BG_IOU_THRESHOLD: 0.4}}',
      ['BG_IOU_THRESHOLD: it is'],
    ),
    (
      'MODEL: {MASK_ON: True, ROI_MASK_HEAD: {RESOLUTION: 28}}',
      ['gives masks of 14'],
    ),
    (
      'MODEL: {MASK_ON: True, ROI_MASK_HEAD: {CONV_LAYERS: [256, 128]}}',
      ['the same number of channels'],
    ),
    (
      'MODEL: {MASK_ON: True, ROI_MASK_HEAD: {POOLER_SAMPLING_RATIO: 2}}',
      ['must be the same as that of ROI_BOX_HEAD'],
    ),
    ('INPUT: {MIN_SIZE_TRAIN: 900}', ['above MIN_SIZE_TEST 800']),
    ('INPUT: {MAX_SIZE_TRAIN: 900}', ['but MAX_SIZE_TEST is 1333']),
    ('INPUT: {PIXEL_MEAN: [1, 2]}', ['for each of three channels']),
    ('DTYPE: float64', ["it is 'float64'; only 'float32'"]),
    ('MIN_BBOX_MAP: 37.7', ['it is 37.7; an AP is between 0 and 1']),
    ('TEST: {EXPECTED_RESULTS: [[bbox, AP50, 1, 2]]}', ['is not understood']),
    ('TEST: {DETECTIONS_PER_IMAGE: 5}', ['detections.max_detections']),
    (
      'SOLVER: {BASE_LR: x, AMP: {ENABLED: True}}\nSAVE_CHECKPOINT: False',
      ['3 keys have', 'SOLVER.BASE_LR', 'SOLVER.AMP.ENABLED', 'SAVE_CHECKP'],
    ),
  ],
)
def test_what_has_no_counterpart_is_refused_in_one_list(text, reasons, write):
  path = write(f'{BASE}{text}\n')
  with pytest.raises(InputError) as error:
    read_recipe(path)
  message = str(error.value)
  assert message.startswith(f'C05: {path}: ')
  assert '\n' not in message
  for reason in reasons:
    assert reason in message


@pytest.mark.parametrize(
  ('sets', 'reason'),
  [
    ('TRAIN: my_set', "'my_set' is none of coco_2014_train"),
    ('TRAIN: [3]', '3 is none of coco_2014_train'),
    # Without quotes around the names, this is no tuple.
    ('TEST: "(coco_2017_val, my_val)"', "'(coco_2017_val, my_val)' is none"),
    ('TEST: [coco_2017_val, coco_2014_val]', 'give only one set'),
  ],
)
def test_unknown_sets(sets, reason, write):
  with pytest.raises(InputError, match=re.escape(reason)):
    read_recipe(write(f'DATASETS: {{{sets}}}\n'))


def test_an_own_set_is_given_by_its_paths(write):
  recipe = read_recipe(
    write('DATASETS: {TRAIN: my_set}\nDTYPE: tf32\n'),
    [('data.train.images', 'a'), ('data.train.annotations', 'b.json')],
  )
  assert recipe.config.data.train.images == 'a'
  assert 'are given' in recipe.notes[0]


def test_a_key_of_the_network_follows_only_a_file():
  with pytest.raises(InputError, match='MODEL.MASK_ON: this key can only foll'):
    read_recipe('r50_fpn', [('MODEL.MASK_ON', 'False')])


def test_a_key_must_not_be_given_twice_with_different_values(write):
  given = [('SOLVER.BASE_LR', '0.1'), ('optimizer.learning_rate', '0.2')]
  message = 'SOLVER.BASE_LR 0.1 sets config.optimizer.learning_rate to 0.1, and'
  with pytest.raises(InputError, match=message):
    read_recipe('r50_fpn', given)
  same = [('SOLVER.BASE_LR', '0.2'), ('optimizer.learning_rate', '0.2')]
  assert read_recipe('r50_fpn', same).config.optimizer.learning_rate == 0.2
  # The command line changes a file.
  path = write(BASE + 'SOLVER: {BASE_LR: 0.1}\nDTYPE: tf32\n')
  assert read_recipe(path, given[1:]).config.optimizer.learning_rate == 0.2


@pytest.mark.parametrize(
  ('weight', 'advice'),
  [
    (
      'catalog://ImageNetPretrained/MSRA/R-101',
      '--init_from=catalog://ImageNetPretrained/MSRA/R-101',
    ),
    (
      '/data/R-50.pkl',
      '--init_from=weights/R-50: python -m maskrcnn_jax.convert_weights '
      '/data/R-50.pkl weights/R-50',
    ),
    (
      'https://x.org/a/model_final.pth',
      '--init_from=weights/model_final: download https://x.org/a/model_final.'
      'pth, then python -m maskrcnn_jax.convert_weights model_final.pth weigh',
    ),
  ],
)
def test_advice_on_weights(weight, advice):
  assert advice in advice_on_weights(weight)


@pytest.mark.parametrize(
  ('settings', 'given', 'mode', 'result'),
  [
    ({'OUTPUT_DIR': ('a', False)}, {}, 'train', {'workdir': 'a'}),
    ({'OUTPUT_DIR': ('a', False)}, {'workdir': 'b'}, 'train', {}),
    ({'OUTPUT_DIR': ('a', True)}, {'workdir': 'a'}, 'train', {}),
    ({'MODEL.WEIGHT': ('run', False)}, {}, 'train', {'init_from': 'run'}),
    ({'MODEL.WEIGHT': ('run', False)}, {}, 'eval', {'checkpoint': 'run'}),
    ({'MODEL.WEIGHT': ('none', False)}, {}, 'train', {}),
    (
      {'MODEL.WEIGHT': ('catalog://x', False)},
      {},
      'train',
      {'init_from': 'catalog://x'},
    ),
    # A file names the weights that its training starts from.
    ({'MODEL.WEIGHT': ('catalog://x', False)}, {}, 'eval', {}),
    (
      {'MODEL.WEIGHT': ('catalog://x', True)},
      {},
      'eval',
      {'checkpoint': 'catalog://x'},
    ),
    ({'MODEL.WEIGHT': ('run', False)}, {'init_from': 'x'}, 'train', {}),
    # The checkpoints of a training are used, not those that it started from.
    ({'MODEL.WEIGHT': ('run', False)}, {'workdir': 'run'}, 'eval', {}),
    (
      {'MODEL.WEIGHT': ('run', False), 'OUTPUT_DIR': ('run', False)},
      {},
      'predict',
      {'workdir': 'run'},
    ),
    (
      {'MODEL.WEIGHT': ('run', True)},
      {'workdir': 'run'},
      'eval',
      {'checkpoint': 'run'},
    ),
  ],
)
def test_flags_from(settings, given, mode, result, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
  flags = dict.fromkeys(('workdir', 'init_from', 'checkpoint')) | given
  assert flags_from(settings, flags, mode=mode) == result


def test_rows_of_the_table():
  assert len(BY_NAME) == len(ROWS)
  for row in ROWS:
    assert is_nvidia_key(row.name)
    for key in row.keys:
      assert key in OUR_KEYS or key in ('--workdir', '--init_from'), row.name
    assert not row.is_direct or len(row.keys) == 1
    if row.accepted is not ANY:
      assert row.default is None or row.default in row.accepted
    # A row without a counterpart says why.
    assert row.keys or row.note, row.name


@pytest.mark.parametrize(
  ('text', 'is_key'),
  [
    ('SOLVER.BASE_LR', True),
    ('SOLVER.NO_SUCH', True),
    ('DTYPE', True),
    ('RESULTS', False),
    ('SOLVER', False),
    ('solver.base_lr', False),
    ('SOLVER.', False),
    ('A.B', False),
    ('MODEL.x', False),
  ],
)
def test_is_nvidia_key(text, is_key):
  assert is_nvidia_key(text) is is_key


def test_several_sets_are_translated(write):
  path = write(FILES[NAMES['bs32']] + 'DTYPE: tf32\n')
  config = read_recipe(path).config
  check_config(config)
  assert config.data.train.images == (
    'data/coco/train2014',
    'data/coco/val2014',
  )
  assert str(source_of(config, 'train')) == (
    'data/coco/annotations/instances_train2014.json, '
    'data/coco/annotations/instances_valminusminival2014.json'
  )
