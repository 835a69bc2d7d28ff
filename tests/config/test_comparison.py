"""Tests of recipes as a checkpoint stores them, and of their comparison."""

import json

import pytest

from maskrcnn_jax.config import (
  Difference,
  default_config,
  differences,
  facts_of,
  format_differences,
  plain,
  stored_config,
)
from maskrcnn_jax.errors import DamagedCheckpoint


def stored_defaults():
  return json.loads(json.dumps(plain(default_config())))


def test_differences_name_each_key_that_differs():
  stored = stored_defaults()
  stored['seed'] = 7
  stored['data']['padded_sizes'][0] = [32, 64]
  del stored['roi']['box_side']
  stored['model']['beard'] = True
  sizes = [[800, 1088], [800, 1344], [1088, 800], [1344, 800]]
  found = differences(default_config(), stored)
  assert found == [
    Difference('data.padded_sizes', sizes, [[32, 64], *sizes[1:]]),
    Difference('model.beard', 'nothing', True),
    Difference('roi.box_side', 7, 'nothing'),
    Difference('seed', 0, 7),
  ]
  assert format_differences(found[1:]) == (
    'model.beard: nothing | True; roi.box_side: 7 | nothing; seed: 0 | 7'
  )


def test_facts_of_a_recipe_include_the_values_of_the_preset():
  facts = facts_of(default_config())
  assert facts['roi.sampling_ratio'] == 0
  assert facts['data.pixel_mean'] == [123.675, 116.28, 103.53]
  assert facts['data.pixel_range'] is None


def test_stored_config_is_the_recipe_that_was_stored():
  config = default_config()
  config.model.depth = 18
  config.anchors.sizes = ((8.0, 12.0),) * 5
  stored = json.loads(json.dumps(plain(config)))
  assert differences(stored_config(stored), stored) == []
  assert stored_config(stored).anchors.sizes == config.anchors.sizes


@pytest.mark.parametrize('value', [5, None, [], 'abc'])
def test_stored_config_refuses_a_value_in_the_place_of_a_group(value):
  stored = plain(default_config())
  stored['rpn']['train'] = value
  with pytest.raises(DamagedCheckpoint, match='C08: .*: train is '):
    stored_config(stored)


@pytest.mark.parametrize(
  ('group', 'key', 'value'),
  [
    ('train', 'num_steps', 'many'),
    ('train', 'num_steps', 2.5),
    ('train', 'num_steps', {}),
    ('optimizer', 'learning_rate', [0.1]),
    ('anchors', 'sizes', [[8.0], ['x']]),
    ('roi', 'num_samples', True),
  ],
)
def test_stored_config_refuses_a_value_of_a_wrong_type(group, key, value):
  stored = stored_defaults()
  stored[group][key] = value
  with pytest.raises(DamagedCheckpoint, match=f'C08: .*: {group}.{key} is '):
    stored_config(stored)


def test_stored_config_takes_values_that_this_version_would_refuse():
  stored = stored_defaults()
  stored['model']['depth'] = 17
  stored['train']['num_steps'] = -1
  assert stored_config(stored).model.depth == 17


def test_stored_config_gives_later_keys_their_default():
  stored = stored_defaults()
  del stored['predict'], stored['rpn']['eval']['pre_nms']
  del stored['loss_weights'], stored['model']['backbone']
  del stored['optimizer']['name']
  assert plain(stored_config(stored)) == stored_defaults()


def test_stored_config_leaves_out_keys_that_no_longer_exist():
  stored = stored_defaults() | {'mesh': [['data', -1]]}
  assert plain(stored_config(stored)) == stored_defaults()
  assert differences(default_config(), stored) == []
