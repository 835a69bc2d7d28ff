"""Tests of the recipe that a training writes to its workdir."""

import pytest
import tiny

from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.recipe import packaged_recipes, read_recipe
from maskrcnn_jax.config.recipe_file import write_recipe
from maskrcnn_jax.errors import InputError


def round_trip(config, folder):
  path = folder / 'config.yaml'
  write_recipe(config, path)
  return read_recipe(str(path)).config


@pytest.mark.parametrize('name', [*packaged_recipes(), tiny.__file__])
def test_a_written_recipe_is_read_as_the_same(name, tmp_path):
  config = read_recipe(name).config
  if config.train.fine_tune:
    pytest.skip('a training fills in the open keys before it writes the recipe')
  assert round_trip(config, tmp_path).to_dict() == config.to_dict()


def test_texts_and_numbers_that_look_like_others_are_kept(tmp_path):
  config = default_config()
  config.data.train.images = ('a: b', 'ÿ #c')
  config.data.eval.images = 'None'
  config.data.eval.annotations = "it's [1, 2] {x}"
  config.optimizer.learning_rate = 1e-7
  config.optimizer.weight_decay = 1e22
  config.data.pixel_range = (0, 4095.5)
  config.expected.box_ap = (0.379, 0.002)
  assert round_trip(config, tmp_path).to_dict() == config.to_dict()


def test_a_folder_whose_name_looks_like_a_tuple_is_one_folder(tmp_path):
  config = default_config()
  config.data.train.images = '(a,b)'
  assert round_trip(config, tmp_path).data.train.images == ('(a,b)',)


def test_a_written_recipe_is_readable(tmp_path):
  config = default_config()
  config.anchors.sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
  write_recipe(config, tmp_path / 'config.yaml')
  lines = (tmp_path / 'config.yaml').read_text(encoding='utf-8').splitlines()
  assert 'maskrcnn_jax_recipe: defaults' in lines
  assert '  sizes: [[8.0], [16.0], [32.0], [64.0], [128.0]]' in lines
  assert '  batch_size: 16' in lines
  assert max(map(len, lines)) <= 80
  # Some editors, and a run that is killed, must not see half a file.
  assert [path.name for path in tmp_path.iterdir()] == ['config.yaml']


def test_a_file_of_the_user_is_kept(tmp_path):
  path = tmp_path / 'config.yaml'
  path.write_text('maskrcnn_jax_recipe: shapes  # my own')
  assert not write_recipe(default_config(), path)
  assert path.read_text() == 'maskrcnn_jax_recipe: shapes  # my own'
  path.unlink()
  for seed in (1, 2):
    config = default_config()
    config.seed = seed
    assert write_recipe(config, path)
    assert read_recipe(str(path)).config.seed == seed


def test_a_user_may_change_keys_of_a_written_recipe(tmp_path):
  write_recipe(default_config(), tmp_path / 'config.yaml')
  path = str(tmp_path / 'config.yaml')
  recipe = read_recipe(path, [('train.batch_size', '4')])
  assert recipe.config.train.batch_size == 4
  with pytest.raises(InputError, match="no config key 'train.batchsize'"):
    read_recipe(path, [('train.batchsize', '4')])


def test_defaults_alone_is_no_recipe_on_the_command_line():
  with pytest.raises(InputError, match='--config=defaults is not a Python'):
    read_recipe('defaults')
