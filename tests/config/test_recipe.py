"""Tests of reading recipes."""

import json
import pathlib

import pytest

from maskrcnn_jax.config import differences, plain
from maskrcnn_jax.config.recipe import (
  packaged_recipes,
  read_overrides,
  read_recipe,
)
from maskrcnn_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def write(tmp_path, body):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from maskrcnn_jax.config import default_config\n'
    f'def get_config():\n  c = default_config()\n  {body}\n  return c\n'
  )
  return path


def test_without_a_file_the_given_keys_change_the_defaults():
  recipe = read_recipe(
    None,
    [
      ('data.padded_sizes', '((64,96),)'),
      ('geometry', 'legacy'),
    ],
  )
  assert recipe.config.data.padded_sizes == ((64, 96),)
  assert recipe.config.geometry == 'legacy'
  assert recipe.given == {
    'data.padded_sizes': ((64, 96),),
    'geometry': 'legacy',
  }
  assert recipe.path is None


@pytest.mark.parametrize('name', ['r50_fpn', f'{CONFIGS}/r50_fpn.py'])
def test_a_recipe_has_a_name_or_a_path_and_may_take_an_argument(name):
  recipe = read_recipe(f'{name}:2014')
  assert recipe.config.data.train.images[0] == 'data/coco/train2014'
  assert recipe.path == f'{name}:2014'


def test_overrides_are_stronger_than_the_file(tmp_path):
  path = write(tmp_path, 'c.train.num_steps = 3')
  assert read_recipe(str(path)).config.train.num_steps == 3
  recipe = read_recipe(str(path), [('train.num_steps', '4')])
  assert recipe.config.train.num_steps == 4
  assert recipe.given == {'train.num_steps': 4}


def test_overrides_are_parsed_before_the_recipe_is_run(tmp_path):
  path = write(tmp_path, 'raise SystemExit')
  with pytest.raises(InputError, match='give a whole number'):
    read_recipe(str(path), [('train.num_steps', 'x')])


def test_overrides_alone_are_checked_key_by_key():
  # With the defaults these sizes would be wrong, but they may fit the recipe of
  # a checkpoint.
  recipe = read_overrides([('anchors.sizes', '((32,64),)')])
  assert recipe.config.anchors.sizes == ((32, 64),)
  assert recipe.path is None
  with pytest.raises(InputError, match='max_detections is 0'):
    read_overrides([('detections.max_detections', '0')])


@pytest.mark.parametrize('name', packaged_recipes())
def test_a_recipe_is_the_same_after_json(name):
  config = read_recipe(name).config
  stored = json.loads(json.dumps(plain(config)))
  assert stored == plain(config)
  assert differences(config, stored) == []


@pytest.mark.parametrize(
  ('body', 'line'),
  [
    (
      'c.train.batchsize = 8',
      "C05: {}, line 4: there is no config key 'train.batchsize'; did you "
      "mean 'train.batch_size'?",
    ),
    ('c.mesh = 8', "C05: {}, line 4: there is no config key 'mesh'; leave"),
    ('c.seed = 1 / 0', 'C05: {}, line 4: ZeroDivisionError: division by '),
    ('c.seed = (', "C05: {}, line 4: SyntaxError: '(' was never closed"),
    ('import nothing_like_it', 'C05: {}, line 4: ModuleNotFoundError: No '),
    ('c.train.num_steps = -1', 'C05: config.train.num_steps'),
    ('return {}', 'C05: {}: get_config() must return a ConfigDict'),
    (
      'import ml_collections as m; return m.ConfigDict({"seed": 1})',
      'C05: {}: the recipe lacks anchors.ratios, ',
    ),
  ],
)
def test_an_error_in_a_recipe_is_explained_in_one_line(tmp_path, body, line):
  path = write(tmp_path, body)
  with pytest.raises(InputError) as error:
    read_recipe(str(path))
  text = str(error.value)
  assert text.startswith(line.replace('{}', str(path)))
  assert len(text.splitlines()) == 1


def test_a_file_that_is_no_recipe_is_refused(tmp_path):
  other = tmp_path / 'other.py'
  other.write_text('')
  for path, reason in (
    (other, 'it has no get_config'),
    (tmp_path, 'is not a Python or YAML file'),
    (tmp_path / 'none.py', 'is not a file; .*, finetune, nuclei, .*r50_fpn, '),
    (CONFIGS.parent / 'README.md', 'is not a Python or YAML file'),
    ('shape', r'\(.*finetune, nuclei, .*; did you mean shapes\?'),
    (f'{CONFIGS}/shapes.py:7', 'takes no argument'),
  ):
    with pytest.raises(InputError, match=reason):
      read_recipe(str(path))


def test_a_recipe_may_define_a_data_class_and_return_a_frozen_config(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text("""
from __future__ import annotations
import dataclasses
import ml_collections
from maskrcnn_jax.config import default_config

@dataclasses.dataclass
class Sizes:
  short_side: int = 640

def get_config():
  config = default_config()
  config.data.short_side = Sizes().short_side
  return ml_collections.FrozenConfigDict(config)
""")
  recipe = read_recipe(str(path), [('train.num_steps', '7')])
  assert recipe.config.data.short_side == 640
  assert recipe.config.train.num_steps == 7


def test_a_key_that_a_recipe_adds_is_not_ignored(tmp_path):
  path = write(tmp_path, 'c.unlock(); c.train.num_stpes = 5; c.lock()')
  with pytest.raises(
    InputError,
    match=(
      r"no config key 'train.num_stpes'; did you mean 'train.num_steps'\?"
    ),
  ):
    read_recipe(str(path))


@pytest.mark.parametrize(
  ('name', 'given', 'reason'),
  [
    ('finetune', ('train.reference_batch_size', '8'), 'leave it out'),
    ('shapes', ('seed', '9' * 400), None),
  ],
)
def test_odd_values_are_answered(name, given, reason):
  if reason is None:
    assert read_recipe(name, [given]).config.seed == int(given[1])
    return
  with pytest.raises(InputError, match=reason):
    read_recipe(name, [given])
