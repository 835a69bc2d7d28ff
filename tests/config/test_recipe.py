"""Tests of reading recipes outside of `main`."""

import pathlib

import pytest

from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.errors import InputError

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def write(tmp_path, body):
  path = tmp_path / 'mine.py'
  path.write_text(
      'from maskrcnn_jax.config import default_config\n'
      f'def get_config():\n  c = default_config()\n  {body}\n  return c\n'
  )
  return path


def test_without_a_file_it_is_the_default_with_what_is_changed():
  config = read_recipe(None, [
      '--config.data.padded_sizes=((64,96),)', '--config.geometry=legacy',
  ])
  assert config.data.padded_sizes == ((64, 96),)
  assert config.geometry == 'legacy'


def test_a_recipe_may_take_an_argument():
  recipe = read_recipe(f'{CONFIGS}/r50_fpn.py:2014')
  assert recipe.data.train.images == 'data/coco/train2014'


@pytest.mark.parametrize(
    ('body', 'line'),
    [
        ('c.train.batchsize = 8',
         "C05: {}, line 4: there is no config key 'train.batchsize'; did you "
         "mean 'train.batch_size'?"),
        ('c.seed = 1 / 0', 'C05: {}, line 4: ZeroDivisionError: division by '),
        ('c.seed = (', "C05: {}, line 4: SyntaxError: '(' was never closed"),
        ('import nothing_like_it', 'C05: {}, line 4: ModuleNotFoundError: No '),
        ('c.train.num_steps = -1', 'C05: config.train.num_steps'),
    ],
)
def test_what_is_wrong_with_a_recipe_is_one_line(tmp_path, body, line):
  path = write(tmp_path, body)
  with pytest.raises(InputError) as error:
    read_recipe(str(path))
  text = str(error.value)
  assert text.startswith(line.format(path))
  assert len(text.splitlines()) == 1


def test_what_is_no_recipe_is_said(tmp_path):
  other = tmp_path / 'other.py'
  other.write_text('')
  for path, reason in (
      (other, 'it has no get_config'), (tmp_path, 'is not a file'),
      (tmp_path / 'none.py', 'is not a file'),
      (CONFIGS.parent / 'README.md', 'is no recipe'),
      (f'{CONFIGS}/shapes.py:7', 'takes no argument'),
  ):
    with pytest.raises(InputError, match=reason):
      read_recipe(str(path))
