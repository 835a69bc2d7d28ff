"""Tests of finding the weights in files of any wrapping.

The weights must arrive to the bit, through the command line.
"""

import argparse
import collections
import datetime
import enum
import fractions
import pathlib
import pickle
import types

import numpy as np
from numpy.testing import assert_array_equal
import pytest
from weight_files import (
  SMALL,
  assert_same,
  peer_arrays,
  random_leaves,
  read_checkpoint,
)

from maskrcnn_jax.convert_weights import search
from maskrcnn_jax.convert_weights.torch_files import (
  read_weights,
  write_pickle,
  write_torch,
)
from maskrcnn_jax.convert_weights.weight_names import NAMINGS
from maskrcnn_jax.errors import InputError

LEAVES = random_leaves(SMALL)
RESNET = {name: array for name, array in LEAVES.items() if '/backbone/' in name}


def torchvision_detector():
  return peer_arrays(LEAVES, 'torchvision')


def torchvision_resnet():
  return peer_arrays(RESNET, 'torchvision', alias=1)


def averaged(arrays):
  """Returns other arrays of the same shapes, as an average of weights has."""
  return {name: array / 2 for name, array in arrays.items()}


def prefixed(prefix, arrays):
  return {prefix + name: array for name, array in arrays.items()}


@pytest.mark.parametrize(
  'prefix',
  [
    '',
    'module.',
    pytest.param('_orig_mod.', marks=pytest.mark.slow),
    'module._orig_mod.',
    pytest.param('_orig_mod.module.', marks=pytest.mark.slow),
    'model.',
    pytest.param('net.', marks=pytest.mark.slow),
    pytest.param('detector.', marks=pytest.mark.slow),
    'model._orig_mod.',
    'ema_model.module.',
    pytest.param('teacher.', marks=pytest.mark.slow),
    'a.b.c.d.',
    'gpu_0/',
    pytest.param('my_', marks=pytest.mark.slow),
  ],
)
@pytest.mark.parametrize('program', NAMINGS)
def test_any_prefix_is_found(tmp_path, program, prefix):
  arrays = peer_arrays(LEAVES, program)
  write_pickle(tmp_path / 'file', {'x': prefixed(prefix, arrays)})
  found = read_weights(tmp_path / 'file')
  assert_same(found.arrays, arrays)
  assert found.outside == []


@pytest.mark.parametrize(
  'prefix', ['encoder_q.', 'module.encoder_q.', 'backbone.', 'encoder.0.']
)
def test_a_resnet_is_found_beside_other_layers(run, tmp_path, prefix):
  arrays = prefixed(prefix, torchvision_resnet())
  arrays[f'{prefix}fc.weight'] = np.ones((3, 2), np.float32)
  arrays['queue'] = np.ones((3, 2), np.float32)
  write_torch(tmp_path / 'file', {'state_dict': arrays, 'arch': 'resnet18'})
  code, out, err = run(tmp_path / 'file', tmp_path / 'new')
  assert code == 0, err
  assert f'taken: --key=state_dict --prefix={prefix} (100 arrays)\n' in out
  assert 'left out: fc.weight, queue\n' in out
  assert_same(read_checkpoint(tmp_path / 'new')[0], RESNET)


@pytest.mark.parametrize(
  'keys',
  [
    'model',
    'state_dict',
    pytest.param('net', marks=pytest.mark.slow),
    pytest.param('weights', marks=pytest.mark.slow),
    pytest.param('params', marks=pytest.mark.slow),
    pytest.param('network_state', marks=pytest.mark.slow),
    pytest.param('model_weights', marks=pytest.mark.slow),
    'ema.module',
    pytest.param('teacher', marks=pytest.mark.slow),
    'a.b.c',
    pytest.param('checkpoint.0.model', marks=pytest.mark.slow),
    'my weights',
  ],
)
def test_any_key_is_found(run, tmp_path, keys):
  content = torchvision_resnet()
  for key in reversed(keys.split('.')):
    content = {key: content, 'epoch': 3}
  write_torch(tmp_path / 'file.pth', content)
  code, out, err = run(tmp_path / 'file.pth', tmp_path / 'new')
  assert code == 0, err
  assert f'taken: --key={keys} (100 arrays)\n' in out
  assert 'also found' not in out
  assert_same(read_checkpoint(tmp_path / 'new')[0], RESNET)


def test_nested_modules_and_dots_in_keys_are_found(tmp_path):
  nested = {}
  for name, array in torchvision_detector().items():
    *modules, last = name.split('.')
    branch = nested
    for module in modules:
      branch = branch.setdefault(module, {})
    branch[last] = array
  for content in ({'model': nested}, {'ema.module': torchvision_detector()}):
    write_torch(tmp_path / 'file', content)
    assert_same(read_weights(tmp_path / 'file').arrays, torchvision_detector())


@pytest.mark.parametrize('seed', range(20))
def test_random_wrappings_are_found(tmp_path, seed):
  rng = np.random.default_rng(seed)

  def word():
    letters = 'abcdefghij_0'
    return ''.join(rng.choice(list(letters), rng.integers(1, 9)))

  program = rng.choice(list(NAMINGS))
  # The second name of a ResNet's array is that of a file without heads.
  arrays = (
    peer_arrays(RESNET, program, alias=1)
    if rng.random() < 0.5
    else peer_arrays(LEAVES, program)
  )
  prefix = ''.join(f'{word()}.' for _ in range(rng.integers(4)))
  content = prefixed(prefix, arrays) | {f'head_{word()}': np.ones(3)}
  for _ in range(rng.integers(4)):
    content = {word(): rng.integers(9), 'more': {word(): np.ones(2)}} | {
      word(): content
    }
  write_pickle(tmp_path / 'file', content)
  found = read_weights(tmp_path / 'file').arrays
  assert_same({name: found[name] for name in arrays if name in found}, arrays)


@pytest.mark.parametrize(
  ('one', 'average'),
  [
    ('model', 'model_ema'),
    ('state_dict', 'state_dict_ema'),
    ('student', 'teacher'),
    ('net', 'ema'),
    ('online', 'target'),
    ('a', 'swa.b'),
  ],
)
@pytest.mark.parametrize('is_average_first', [False, True])
def test_trained_weights_come_before_their_average(
  tmp_path, one, average, is_average_first
):
  arrays = torchvision_resnet()
  entries = [(one, arrays), (average, averaged(arrays))]
  if is_average_first:
    entries.reverse()
  write_pickle(tmp_path / 'file', dict(entries))
  found = read_weights(tmp_path / 'file')
  assert_same(found.arrays, arrays)
  assert found.notes == [
    f'taken: --key={one} (100 arrays); also found: --key={average} (100 '
    f'arrays). {search.RULE} --key and --prefix take another one.'
  ]
  found = read_weights(tmp_path / 'file', key=average)
  assert_same(found.arrays, averaged(arrays))


def test_two_prefixes_in_a_dictionary_are_two_models(run, tmp_path):
  arrays = torchvision_resnet()
  content = prefixed('encoder_k.', averaged(arrays)) | prefixed(
    'encoder_q.', arrays
  )
  write_torch(tmp_path / 'file', content)
  code, out, err = run(tmp_path / 'file', tmp_path / 'new')
  assert code == 0, err
  assert '--prefix=encoder_q. (100 arrays); also found: ' in out
  assert '--prefix=encoder_k. (100 arrays). ' in out
  assert 'left out: encoder_k.* (100)\n' in out
  assert_same(read_checkpoint(tmp_path / 'new')[0], RESNET)
  for prefix in ('encoder_k', 'encoder_k.'):
    found = read_weights(tmp_path / 'file', prefix=prefix).arrays
    assert_same(found, averaged(arrays))


def test_the_largest_model_is_taken(tmp_path):
  write_pickle(
    tmp_path / 'file',
    {'backbone': torchvision_resnet(), 'ema': torchvision_detector()},
  )
  found = read_weights(tmp_path / 'file')
  assert_same(found.arrays, torchvision_detector())
  assert '--key=backbone (100 arrays)' in found.notes[0]


def test_states_of_optimizers_and_counters_are_no_models(tmp_path):
  arrays = torchvision_resnet()
  write_pickle(
    tmp_path / 'file',
    {
      'optimizer': {'momentum': averaged(arrays)},
      'model': prefixed('module.', arrays) | {'n_averaged': np.array(3)},
      'lr_scheduler': {'last_epoch': 3},
      'scaler': {},
      'epoch': 3,
    },
  )
  found = read_weights(tmp_path / 'file')
  assert_same(found.arrays, arrays)
  assert found.outside == ['n_averaged']
  assert 'also found' not in found.notes[0]
  assert found.facts['epoch'] == 3


@pytest.mark.parametrize(
  'flag',
  ['--key=nets', '--key=optimizer', '--prefix=module.', '--prefix=layer1'],
)
def test_a_wrong_key_or_prefix_names_the_models(refuse, tmp_path, flag):
  arrays = torchvision_resnet()
  write_pickle(
    tmp_path / 'file',
    {
      'net': arrays,
      'ema': {'module': averaged(arrays)},
      'optimizer': averaged(arrays),
    },
  )
  line = refuse(tmp_path / 'file', tmp_path / 'new', flag)
  assert (
    f'has no model at {flag}; it has --key=net (100 arrays); --key=' in line
  )
  assert '--key=ema.module (100 arrays).' in line


def test_a_prefix_takes_the_resnet_of_a_detector(run, tmp_path):
  write_torch(tmp_path / 'file', torchvision_detector())
  code, out, err = run(
    tmp_path / 'file', tmp_path / 'new', '--prefix=backbone.body.'
  )
  assert code == 0, err
  assert 'left out: backbone.* (16), roi_heads.* (16), rpn.* (6)\n' in out
  assert_same(read_checkpoint(tmp_path / 'new')[0], RESNET)


def test_a_dictionary_in_itself_and_shared_ones_are_searched_once(tmp_path):
  content = {'model': torchvision_resnet()}
  content['self'] = content
  content['list'] = [content, content['model']]
  for _ in range(100):  # 2**100 paths lead to the weights
    content = {'a': content, 'b': content}
  (tmp_path / 'file').write_bytes(pickle.dumps(content))
  with pytest.raises(InputError, match='no arrays by name'):
    read_weights(tmp_path / 'file')
  content = {'model': torchvision_resnet()}
  content['self'] = content
  content = {'a': content, 'b': [content, content]}
  (tmp_path / 'file').write_bytes(pickle.dumps(content))
  assert_same(read_weights(tmp_path / 'file').arrays, torchvision_resnet())


class Color(enum.Enum):
  RED = 1


class Settings(dict):
  """A dict with attributes, as configurations of yacs are."""


def beside():
  """Returns objects that programs save beside weights."""
  settings = Settings(width=3)
  settings.frozen = True
  return {
    'path': pathlib.PurePosixPath('/data'),
    'time': datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    'args': argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath('x')),
    'score': np.float64(0.5),
    'when': np.datetime64('2026-01-02'),
    'texts': np.array(['a', 'b']),
    'objects': np.array([{}], object),
    'default': collections.defaultdict(list, a=[1]),
    'deque': collections.deque([1, 2]),
    'counter': collections.Counter('aab'),
    'color': Color.RED,
    'names': {Color.RED: 1, frozenset([1]): 2},
    'settings': settings,
    'simple': types.SimpleNamespace(a=1),
    'fraction': fractions.Fraction(1, 3),
    'random': np.random.default_rng(0),
    'class': Settings,
    'complex': 1j,
    'slice': slice(1, 2),
    'range': range(3),
  }


@pytest.mark.parametrize('is_flat', [True, False])
@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_beside_the_weights_are_ignored(tmp_path, protocol, is_flat):
  arrays = torchvision_resnet()
  content = arrays if is_flat else {'state_dict': arrays}
  content = content | beside()
  (tmp_path / 'file').write_bytes(pickle.dumps(content, protocol))
  found = read_weights(tmp_path / 'file')
  assert_same(found.arrays, arrays)
  assert found.facts['score'] == 0.5
  assert found.notes[-1].startswith('The file has objects that were ignored')
  assert 'pathlib' in found.notes[-1]


def test_weights_in_a_dictionary_of_a_class_of_its_own_are_found(tmp_path):
  for content in (
    Settings(torchvision_resnet()),
    collections.defaultdict(dict, model=Settings(torchvision_resnet())),
  ):
    (tmp_path / 'file').write_bytes(pickle.dumps(content))
    assert_same(read_weights(tmp_path / 'file').arrays, torchvision_resnet())


class Module:
  """An object with the state of a torch module."""

  def __init__(self):
    self.training = False
    self._parameters = {}
    self._buffers = {}
    self._modules = {}
    self._hooks = {}


def test_a_whole_module_is_read_without_its_class(tmp_path):
  root = Module()
  for name, array in torchvision_resnet().items():
    *modules, last = name.split('.')
    branch = root
    for module in modules:
      branch = branch._modules.setdefault(module, Module())
    group = branch._buffers if 'running' in last else branch._parameters
    group[last] = array
  for content in (root, {'ema': None, 'model': root}):
    (tmp_path / 'file').write_bytes(pickle.dumps(content))
    found = read_weights(tmp_path / 'file')
    assert_same(found.arrays, torchvision_resnet())
    assert 'ignored: test_search.Module' in found.notes[-1]


def test_an_object_in_the_place_of_an_array_is_named(refuse, tmp_path):
  content = torchvision_resnet()
  content['layer1.0.conv1.weight'] = pathlib.PurePosixPath('x')
  (tmp_path / 'file').write_bytes(pickle.dumps(content))
  line = refuse(tmp_path / 'file', tmp_path / 'new')
  assert 'an object of pathlib' in line
  assert 'where the array layer1.0.conv1.weight is expected' in line


def test_the_rule_of_the_choice_is_told(run, tmp_path):
  arrays = torchvision_resnet()
  write_pickle(tmp_path / 'file', {'a': arrays, 'b': averaged(arrays)})
  _, out, _ = run(tmp_path / 'file', tmp_path / 'new')
  assert search.RULE in out
  assert '--key and --prefix take another one.' in out
  _, out, _ = run(tmp_path / 'file', tmp_path / 'other', '--key=b')
  assert 'taken: --key=b (100 arrays); also found: --key=a ' in out
  found = read_checkpoint(tmp_path / 'other')[0]
  name = 'params/backbone/layer4/1/conv2/kernel'
  assert_array_equal(found[name], RESNET[name] / 2)
