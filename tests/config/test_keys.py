"""Tests of the table of keys: complete rows, and roles as listed here."""

import json
import pathlib

import pytest

from maskrcnn_jax.config import default_config, plain
from maskrcnn_jax.config.defaults import value_of
from maskrcnn_jax.config.documentation import as_markdown
from maskrcnn_jax.config.foreign_names import _ANSWERS
from maskrcnn_jax.config.forms import parse, problem_with
from maskrcnn_jax.config.keys import BY_NAME, KEYS, ROLES, WEIGHTS, names


@pytest.mark.parametrize('key', KEYS, ids=lambda key: key.name)
def test_a_row_is_complete(key):
  assert key.role in ROLES
  assert len(key.meaning.split()) > 3
  assert key.meaning.endswith('.')
  if key.default is None:
    assert key.form.may_be_none
  else:
    assert isinstance(key.default, key.form.kind)
    assert problem_with(key.form, key.default) is None
    # The command line accepts the text of the default and gives the default.
    assert parse(key.form, str(key.default)) == key.default


def test_names_are_unique():
  assert len(BY_NAME) == len(KEYS)


def test_only_keys_of_the_weights_have_the_flags_for_that_role():
  for key in KEYS:
    if key.overridable or key.relearned or key.unseen or key.resnet_only:
      assert key.role == WEIGHTS, key.name


def test_default_config_has_the_keys_of_the_table_and_is_locked():
  config = default_config()
  assert all(value_of(config, key.name) == key.default for key in KEYS)
  assert config.is_locked and config.rpn.train.is_locked
  assert json.loads(json.dumps(plain(config))) == plain(config)
  default_config().train.batch_size = 3
  assert default_config().train.batch_size == 16


@pytest.mark.parametrize(
  ('name', 'free'),
  [
    ('train.num_steps', True),
    ('train.micro_batches', True),
    ('data.eval.images', True),
    ('data.train.images', True),
    ('eval.batch_size', True),
    ('detections.min_score', True),
    ('rpn.eval.post_nms', True),
    ('rpn.train.post_nms', False),
    ('seed', False),
    ('precision', False),
    ('train.batch_size', False),
    ('optimizer.learning_rate', False),
    ('loss_weights.mask', False),
    ('data.flip_probability', False),
    ('data.short_side', False),
    ('model.depth', False),
  ],
)
def test_may_differ_on_resume(name, free):
  assert BY_NAME[name].may_differ_on_resume is free


def test_only_folders_and_numbers_of_workers_may_differ_between_processes():
  assert set(names(per_process=True)) == {
    'data.train.images',
    'data.train.annotations',
    'data.eval.images',
    'data.eval.annotations',
    'data.tfds_dir',
    'data.num_workers',
    'data.num_threads',
  }


def test_these_keys_change_the_conventions_but_no_shape_of_the_weights():
  assert set(names(unseen=True)) == {
    'geometry',
    'model.norm_eps',
    'model.stride_in_1x1',
    'data.pixel_mean',
    'data.pixel_std',
  }


def test_the_documentation_is_up_to_date():
  path = pathlib.Path(__file__).parents[2] / 'docs' / 'recipe_keys.md'
  assert path.read_text(encoding='utf-8') == as_markdown(), (
    'run python -m maskrcnn_jax.config.documentation > docs/recipe_keys.md'
  )


def test_no_name_of_another_program_has_two_answers():
  listed = [name for group in _ANSWERS for name in group]
  assert len(listed) == len(set(listed))
