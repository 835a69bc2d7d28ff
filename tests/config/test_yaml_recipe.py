"""Tests of YAML files: reading them safely, and recipes of this program."""

import re

from nvidia_files import FILES
import pytest

from maskrcnn_jax.config.recipe import packaged_recipes, read_recipe
from maskrcnn_jax.config.yaml_file import decode, read_yaml
from maskrcnn_jax.config.yaml_recipe import (
  is_yaml,
  nearest_recipe,
  read_table,
  settings_of,
)
from maskrcnn_jax.errors import InputError


@pytest.fixture
def write(tmp_path):
  """A function that writes a file and returns its path."""

  def function(content, name='recipe.yaml'):
    path = tmp_path / name
    if isinstance(content, str):
      content = content.encode()
    path.write_bytes(content)
    return str(path)

  return function


def test_nested_keys_and_dotted_keys(write):
  text = 'A:\n  B: 1\n  C: {D: x, E: [1, [2]]}\nF.G: null\n'
  assert read_yaml(write(text)) == {
    'A.B': 1,
    'A.C.D': 'x',
    'A.C.E': (1, (2,)),
    'F.G': None,
  }
  assert read_yaml(write(b'\xef\xbb\xbfA: 1')) == {'A': 1}


@pytest.mark.parametrize(
  ('written', 'value'),
  [
    ('(60000, 80000)', (60_000, 80_000)),
    ('(1,)', (1,)),
    ('[1, (2,)]', (1, (2,))),
    ('1e-4', 1e-4),
    ('"float16"', 'float16'),
    ('("a")', 'a'),
    ('True', True),
    ('float16', 'float16'),
    ('', ''),
    ('a b', 'a b'),
    ('__import__("os")', '__import__("os")'),
    ('"\\d"', '\\d'),
    (0.5, 0.5),
    ((1, 2), (1, 2)),
  ],
)
def test_decode(written, value):
  assert decode(written) == value


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'is no recipe: it must hold keys with values'),
    ('# only a comment', 'is no recipe'),
    ('{}', 'is no recipe'),
    ('- 1\n- 2\n', 'is no recipe'),
    ('just words', 'is no recipe'),
    ('A: [1, 2\nB: 3\n', ', line 2: cannot be read as YAML'),
    ('A: 1\n\tB: 2\n', ', line 2: cannot be read as YAML'),
    ('A: 1\nB: 2\nA: 3\n', ", line 3: cannot be read as YAML: the key 'A' occ"),
    ('A: {B: 1}\nA.B: 2\n', "the key 'A.B' occurs twice"),
    ('? [1, 2]\n: 3\n', 'a key is not a word'),
    ('1: 2\n', 'the key 1 is not a text'),
    ('A: 2020-02-03\n', 'A is a date; give a text, a number or a list'),
    ('A: 2020-99-99\n', 'cannot be read as YAML'),
    ('A: !!set {x}\n', 'A is a set; give a text'),
    ('A: !!binary aGVsbG8=\n', 'A is a bytes; give a text'),
    ('A: [{b: 1}]\n', 'A is a dict; give a text'),
    ('A: 1\n---\nA: 2\n', ', line 2: cannot be read as YAML'),
    (
      'A: !!python/object/apply:os.system ["touch /tmp/never"]\n',
      ', line 1: cannot be read as YAML: it asks for a Python object',
    ),
    ('A: !!python/name:os.system\n', 'it asks for a Python object'),
    ('A: !mine 3\n', 'cannot be read as YAML'),
    ('A: ' + '[' * 5000, 'cannot be read as YAML: it is nested too deeply'),
    ('A: ' + '{a: ' * 30 + '1' + '}' * 30, 'is nested too deeply'),
    ('A: ' + '[' * 30 + ']' * 30, 'A is nested too deeply'),
    ('A: &x [*x]\n', 'cannot be read as YAML: found unconstructable rec'),
    ('A: &x {b: *x}\n', 'cannot be read as YAML: found unconstructabl'),
    (f'A: [{"1, " * 10_001}]', 'there are more than 10,000 entries'),
    (
      # Ten levels of ten references are ten billion entries.
      'x0: &x0 [1,1,1,1,1,1,1,1,1,1]\n'
      + ''.join(
        f'x{i}: &x{i} [{",".join([f"*x{i - 1}"] * 10)}]\n' for i in range(1, 10)
      ),
      'there are more than 10,000 entries',
    ),
    (
      'x0: &x0 {a: 1, b: 1}\n'
      + ''.join(
        f'x{i}: &x{i} {{a: *x{i - 1}, b: *x{i - 1}}}\n' for i in range(1, 19)
      ),
      'there are more than 10,000 entries',
    ),
    (
      'x0: &x0 {}\n'
      + ''.join(
        f'x{i}: &x{i} {{a: *x{i - 1}, b: *x{i - 1}}}\n' for i in range(1, 19)
      ),
      'there are more than 10,000 entries',
    ),
    (f'A: {"9" * 5000}\n', 'cannot be read as YAML'),
    (b'A: \xff\xfe\n', 'is not a text in UTF-8 (byte 3)'),
    (b'A: a\x00b\n', 'cannot be read as YAML'),
    ('#' * 1_000_001, 'is larger than 1,000,000 bytes'),
  ],
)
def test_broken_and_hostile_files_are_one_line(content, message, write):
  path = write(content)
  with pytest.raises(InputError) as error:
    read_yaml(path)
  text = str(error.value)
  assert path in text and message in text
  assert '\n' not in text and len(text) < 400


def test_a_file_that_is_none(tmp_path):
  with pytest.raises(InputError, match='is not a file; give an existing file'):
    read_yaml(tmp_path / 'none.yaml')
  (tmp_path / 'folder.yaml').mkdir()
  with pytest.raises(InputError, match='is not a file; give an existing file'):
    read_yaml(tmp_path / 'folder.yaml')


def test_is_yaml():
  assert is_yaml('a/b.yaml') and is_yaml('B.YML')
  assert not is_yaml('a.py') and not is_yaml('r50_fpn') and not is_yaml('yaml')


def test_a_file_of_another_program(write):
  path = write('model:\n  type: MaskRCNN\n')
  with pytest.raises(
    InputError, match="neither the key maskrcnn_jax_recipe.*'m"
  ):
    read_recipe(path)


@pytest.mark.parametrize(
  ('name', 'text', 'recipe'),
  [
    ('mask_rcnn_R_50_FPN_1x', '_BASE_: "../Base-RCNN-FPN.yaml"', 'r50_fpn'),
    ('mask_rcnn_R_101_FPN_3x', '_BASE_: "../Base-RCNN-FPN.yaml"', 'r101_fpn'),
    (
      'mine',
      '_BASE_: Base-RCNN-FPN.yaml\n'
      'MODEL: {MASK_ON: True, RESNETS: {DEPTH: 101}}',
      'r101_fpn',
    ),
    (
      'mask_rcnn_X_101_32x8d_FPN_3x',
      '_BASE_: Base-RCNN-FPN.yaml\nMODEL: {MASK_ON: True}',
      'x101_32x8d_fpn',
    ),
    ('mask_rcnn_R_50_C4_1x', '_BASE_: Base-RCNN-C4.yaml', 'r50_c4'),
    ('mask_rcnn_R_101_C4_3x', '_BASE_: Base-RCNN-C4.yaml', 'r101_c4'),
    ('mask_rcnn_R_50_DC5_1x', '_BASE_: Base-RCNN-DilatedC5.yaml', 'r50_dc5'),
    ('faster_rcnn_R_50_FPN_1x', 'VERSION: 2\nMODEL: {}', 'faster_rcnn_r50_fpn'),
    (
      'faster_rcnn_R_50_C4_1x',
      '_BASE_: Base-RCNN-C4.yaml',
      'faster_rcnn_r50_c4',
    ),
    ('rpn_R_50_FPN_1x', '_BASE_: Base-RCNN-FPN.yaml', 'rpn_r50_fpn'),
    ('mask_rcnn_R_50_FPN_3x_gn', '_BASE_: Base-RCNN-FPN.yaml', 'r50_fpn_gn'),
    (
      'scratch_mask_rcnn_R_50_FPN_3x_gn',
      '_BASE_: Base-RCNN-FPN.yaml',
      'r50_fpn_gn_scratch',
    ),
  ],
)
def test_a_file_of_detectron2_is_refused_with_our_nearest_recipe(
  name, text, recipe, write
):
  path = write(text + '\n', f'{name}.yaml')
  message = f'is a recipe of detectron2.*--config={recipe}, the nearest recipe'
  with pytest.raises(InputError, match=message):
    read_recipe(path)


def test_the_nearest_recipe_of_a_simple_file_exists():
  assert nearest_recipe('mask_rcnn_R_50_FPN_1x.yaml', {}) in packaged_recipes()


def test_a_recipe_of_this_program(write):
  path = write(
    'maskrcnn_jax_recipe: r50_fpn:2014\n'
    'train.batch_size: 8\n'
    'optimizer:\n  learning_rate: 1e-2\n  decay_steps: (10, 20)\n'
    'data: {color_jitter: [0.1, 0.2, 0.3], keep_empty: True}\n'
    'roi.sampling_ratio: null\n'
  )
  recipe = read_recipe(path, [('seed', '3'), ('SOLVER.GAMMA', '0.2')])
  config = recipe.config
  assert config.data.train.images[0] == 'data/coco/train2014'
  assert config.train.batch_size == 8
  assert config.optimizer.learning_rate == 0.01
  assert config.optimizer.decay_steps == (10, 20)
  assert config.data.color_jitter == (0.1, 0.2, 0.3)
  assert config.data.keep_empty is True
  assert config.roi.sampling_ratio is None
  # The keys of a recipe file do not count as given on the command line.
  assert recipe.given == {'seed': 3, 'optimizer.decay_factor': 0.2}
  assert recipe.path == path


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('maskrcnn_jax_recipe: r50', 'is not a Python or YAML file, nor the name'),
    ('maskrcnn_jax_recipe: 3', 'maskrcnn_jax_recipe is 3; give the name of'),
    ('maskrcnn_jax_recipe: ""', "maskrcnn_jax_recipe is ''; give the name of"),
    ('maskrcnn_jax_recipe: a.yaml', "is 'a.yaml'; give the name of a recipe"),
    (
      'maskrcnn_jax_recipe: shapes\ntrain: {batchsize: 3}',
      "there is no config key 'train.batchsize'; did you mean 'train.batch_s",
    ),
    (
      'maskrcnn_jax_recipe: shapes\nSOLVER: {BASE_LR: 3}',
      "there is no config key 'SOLVER.BASE_LR'",
    ),
    (
      'maskrcnn_jax_recipe: shapes\nseed: many',
      "seed is 'many'; give a whole number",
    ),
    ('maskrcnn_jax_recipe: shapes\nseed: null', 'seed has no value; give one'),
    (
      'maskrcnn_jax_recipe: shapes\ntrain: {batch_size: 0}',
      'config.train.batch_size is 0; it must be at least 1',
    ),
    (
      'maskrcnn_jax_recipe: shapes\ndata: {train: {images: 2017}}',
      'config.data.train.images is 2017; give a text',
    ),
  ],
)
def test_errors_in_a_recipe_of_this_program(text, message, write):
  with pytest.raises(InputError, match=re.escape(message)):
    read_recipe(write(text + '\n'))


def test_settings(write):
  path = write(FILES['e2e_faster_rcnn_R_50_FPN_1x.yaml'] + 'OUTPUT_DIR: "a"\n')
  weight = 'catalog://ImageNetPretrained/MSRA/R-50'
  assert settings_of(path, []) == {
    'OUTPUT_DIR': ('a', False),
    'MODEL.WEIGHT': (weight, False),
  }
  pairs = [('OUTPUT_DIR', 'b'), ('MODEL.WEIGHT', "''"), ('seed', '3')]
  assert settings_of(path, pairs) == {'OUTPUT_DIR': ('b', True)}
  assert settings_of('shapes', pairs) == {'OUTPUT_DIR': ('b', True)}
  assert settings_of(None, []) == {}


def test_the_table_of_a_file_has_decoded_values(write):
  table = read_table(write(FILES['e2e_faster_rcnn_R_50_FPN_1x.yaml']))
  assert table['SOLVER.STEPS'] == (60_000, 80_000)
  assert table['DATASETS.TEST'] == ('coco_2014_minival',)
