"""Tests of reading and writing the weight files of other programs."""

import json
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax.convert_weights.torch_files import (
  read_weights,
  write_pickle,
  write_torch,
)
from maskrcnn_jax.errors import InputError

# These files were written by torch.save of torch 2.13, with the values below.
DATA = pathlib.Path(__file__).parent / 'data'

COUNT = np.arange(24.0).reshape(4, 6)
WRITTEN = {
  'whole': COUNT,
  'transposed': COUNT.T,
  'strided': COUNT[1:3, ::2],
  # Views of one storage.
  'head': np.arange(5.0),
  'tail': np.arange(5.0, 10.0),
  'half': np.array([1.5, -2]),
  'bfloat16': np.array([1.5, -2]),
  'double': np.array([0.1]),
  'integer': np.array(7),
  'parameter': np.ones((2, 2)),
  'expanded': np.ones((3, 2)),
  'empty': np.zeros((0, 3)),
  'boolean': np.array([True, False]),
}


@pytest.mark.parametrize('file', ['torch_tensors', 'torch_tensors_legacy'])
def test_read_weights_reads_what_torch_has_written(file):
  arrays, _, facts, *_ = read_weights(DATA / f'{file}.pth')
  # These are no names of a model, so their prefix stays.
  arrays = {k.removeprefix('module.'): v for k, v in arrays.items()}
  assert arrays.keys() == WRITTEN.keys()
  for name, wanted in WRITTEN.items():
    assert arrays[name].shape == wanted.shape, name
    assert_array_equal(arrays[name].astype(np.float64), wanted, err_msg=name)
  kinds = {name: str(array.dtype) for name, array in arrays.items()}
  assert kinds['whole'] == 'float32'
  assert kinds['half'] == 'float16'
  assert kinds['bfloat16'] == 'bfloat16'
  assert kinds['double'] == 'float64'
  assert kinds['integer'] == 'int64'
  assert facts['epoch'] == 3


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_weights_reads_numpy_arrays_of_every_protocol(tmp_path, protocol):
  content = {
    'blobs': {
      'a': np.asfortranarray(COUNT.astype('<f4')),
      'b': np.array([1, 2], '>i4'),
      # Contiguous, but neither in C's nor in Fortran's order.
      'c': COUNT.reshape(2, 3, 4).transpose(1, 0, 2),
    },
    'count': np.float64(3),
  }
  (tmp_path / 'file.pkl').write_bytes(pickle.dumps(content, protocol))
  arrays, _, facts, *_ = read_weights(tmp_path / 'file.pkl')
  assert_array_equal(arrays['a'], COUNT)
  assert_array_equal(arrays['b'], [1, 2])
  assert_array_equal(arrays['c'], COUNT.reshape(2, 3, 4).transpose(1, 0, 2))
  assert facts == {'count': 3}


def test_read_weights_reads_arrays_that_python_2_wrote(tmp_path):
  # Strings of Python 2 are bytes; both names and data are stored as strings.
  data = np.array([1.5, -2], '<f4').tobytes()
  (tmp_path / 'file.pkl').write_bytes(
    b'\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n'
    b'K\x00\x85U\x01btR(K\x01K\x02\x85cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K'
    b'\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08'
    + data
    + b'tbs.'
  )
  assert_array_equal(read_weights(tmp_path / 'file.pkl').arrays['a'], [1.5, -2])


def test_read_weights_reads_safetensors(tmp_path):
  header = json.dumps(
    {
      '__metadata__': {'format': 'pt'},
      'a': {'dtype': 'F32', 'shape': [1, 2], 'data_offsets': [0, 8]},
      'b': {'dtype': 'BF16', 'shape': [2], 'data_offsets': [8, 12]},
    }
  ).encode()
  data = np.array([1.5, -2], '<f4')
  (tmp_path / 'file').write_bytes(
    struct.pack('<Q', len(header))
    + header
    + data.tobytes()
    # A bfloat16 is the upper half of a float32.
    + data.view('<u2')[1::2].tobytes()
  )
  arrays = read_weights(tmp_path / 'file').arrays
  assert_array_equal(arrays['a'], [[1.5, -2]])
  assert_array_equal(arrays['b'].astype(np.float32), [1.5, -2])


class Hostile:
  """Object whose pickle calls a function when it is loaded."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('is_zip', [False, True])
@pytest.mark.parametrize('function', [os.system, eval, os.mkdir, __import__])
def test_read_weights_runs_nothing(tmp_path, function, is_zip, protocol):
  target = tmp_path / 'target'
  text = {
    os.system: f'mkdir {target}',
    eval: f'__import__("os").mkdir({str(target)!r})',
    os.mkdir: str(target),
    __import__: 'antigravity',
  }[function]
  code = pickle.dumps(
    {'model': {'a': np.ones(2)}, 'more': [Hostile(function, text)]}, protocol
  )
  file = tmp_path / 'file.pth'
  if is_zip:
    with zipfile.ZipFile(file, 'w') as archive:
      archive.writestr('archive/data.pkl', code)
  else:
    file.write_bytes(code)
  with pytest.raises(InputError, match='might run code') as error:
    read_weights(file)
  assert '\n' not in str(error.value)
  assert not target.exists()


def name_code(module, name, *, calls=False):
  """Returns a pickle of {'a': [1.0, 2.0], 'more': the named object}.

  Args:
    module: Module of the object.
    name: Name of the object in the module; its dots lead to attributes.
    calls: Whether the object is called, and its result is stored.
  """
  array = pickle.dumps(np.ones(2), 2)[2:-1]
  a, more, module, name = (
    b'\x8c' + bytes([len(text)]) + text.encode()
    for text in ('a', 'more', module, name)
  )
  named = module + name + b'\x93' + (b')R' if calls else b'')
  return b'\x80\x04}(' + a + array + more + named + b'u.'


@pytest.mark.parametrize('calls', [False, True])
@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('subprocess', 'Popen'),
    ('builtins', 'getattr'),
    ('__builtin__', 'eval'),
    ('builtins', 'type.mro'),
    ('operator', 'methodcaller'),
    ('pathlib', 'os.system'),
    ('commands', 'getoutput'),
    ('types', 'CodeType'),
    ('os.path', 'os.system'),
    ('nt', 'system'),
    ('io', 'open'),
    ('pickle', 'loads'),
    ('sys', 'modules'),
  ],
)
def test_read_weights_refuses_names_of_attacks(tmp_path, module, name, calls):
  (tmp_path / 'file').write_bytes(name_code(module, name, calls=calls))
  with pytest.raises(InputError, match='might run code'):
    read_weights(tmp_path / 'file')


@pytest.mark.parametrize('calls', [False, True])
def test_read_weights_imports_nothing_that_a_file_names(
  tmp_path, monkeypatch, calls
):
  target = tmp_path / 'target'
  (tmp_path / 'hostile_module.py').write_text(
    f'import pathlib\npathlib.Path({str(target)!r}).touch()\n'
    'def function(): pathlib.Path(__file__).unlink()\n'
  )
  monkeypatch.syspath_prepend(tmp_path)
  code = name_code('hostile_module', 'function', calls=calls)
  (tmp_path / 'file').write_bytes(code)
  found = read_weights(tmp_path / 'file')
  assert_array_equal(found.arrays['a'], [1, 1])
  assert found.notes == [
    'The file has objects that were ignored: hostile_module.function'
  ]
  assert not target.exists()
  assert 'hostile_module' not in sys.modules


def test_read_weights_refuses_to_make_many_classes(tmp_path):
  names = b''.join(b'cmodule\nName%d\n' % i for i in range(1001))
  (tmp_path / 'file').write_bytes(b'\x80\x02](' + names + b'e.')
  with pytest.raises(InputError, match='more than 1000 classes'):
    read_weights(tmp_path / 'file')


def test_stand_ins_stay_the_same_for_other_files(tmp_path):
  # BUILD gives a state to a class itself, here to the stand-in.
  code = name_code('module', 'Name')[:-2] + b'}\x8c\x01xK\x01sbu.'
  (tmp_path / 'file').write_bytes(code)
  with pytest.raises(InputError, match='sets attributes'):
    read_weights(tmp_path / 'file')


def test_read_weights_quotes_no_control_characters(tmp_path):
  file = tmp_path / 'file.pkl'
  for code in (
    b'\x80\x04\x8c\x03a\nb\x8c\x02\x1b[\x93.',  # the name a\nb.<escape>[
    pickle.dumps({'a\x1b[2J': np.ones(1)}),
  ):
    file.write_bytes(code)
    with pytest.raises(InputError) as error:
      read_weights(file)
    assert str(error.value).isprintable()


def test_read_weights_refuses_arrays_of_objects(tmp_path):
  code = pickle.dumps({'a': np.array([{}], object)})
  (tmp_path / 'file.pkl').write_bytes(code)
  with pytest.raises(InputError, match='only numbers'):
    read_weights(tmp_path / 'file.pkl')


@pytest.mark.parametrize(
  'shape', [b'K\x04\x85', b'J\xff\xff\xff\xff\x85', b'K\x03K\x02\x86']
)
def test_read_weights_refuses_a_tensor_outside_of_its_storage(tmp_path, shape):
  write_torch(tmp_path / 'sound.pth', {'a': np.ones(3, np.float32)})
  with (
    zipfile.ZipFile(tmp_path / 'sound.pth') as sound,
    zipfile.ZipFile(tmp_path / 'bad.pth', 'w') as bad,
  ):
    for name in sound.namelist():
      # The shape, (3,), comes before the strides, (1,).
      bad.writestr(name, sound.read(name).replace(b'K\x03\x85', shape))
  with pytest.raises(InputError, match='a lies outside of its storage'):
    read_weights(tmp_path / 'bad.pth')


@pytest.mark.parametrize(
  'name', ['torch_tensors.pth', 'torch_tensors_legacy.pth', 'file.pkl']
)
@pytest.mark.parametrize('keep', [0, 1, 9, 300, -40])
def test_read_weights_says_in_one_line_that_a_file_is_cut_off(
  tmp_path, name, keep
):
  whole = tmp_path / 'file.pkl'
  write_pickle(whole, {'a': COUNT})
  if name != whole.name:
    whole = DATA / name
  (tmp_path / 'part').write_bytes(whole.read_bytes()[:keep])
  with pytest.raises(InputError) as error:
    read_weights(tmp_path / 'part')
  assert '\n' not in str(error.value)
  assert str(tmp_path / 'part') in str(error.value)


@pytest.mark.parametrize('content', [b'<!DOCTYPE html>', b'\x80\x02]q\x00.'])
def test_read_weights_refuses_what_holds_no_weights(tmp_path, content):
  (tmp_path / 'file').write_bytes(content)
  with pytest.raises(InputError, match='file (cannot be read|holds no arrays)'):
    read_weights(tmp_path / 'file')


def test_what_write_torch_writes_comes_back_to_the_bit(tmp_path):
  arrays = {
    'a.weight': COUNT.astype(np.float32).T,
    'b': np.float32([np.nan, -0.0, 1e-45]),
    'c': np.array(7),
    'd': np.zeros((0, 3), np.float32),
  }
  content = {'model': arrays, 'note': [1, 2.5, None, True, {'ä': 'ö'}]}
  write_torch(tmp_path / 'file.pth', content)
  found, _, facts, *_ = read_weights(tmp_path / 'file.pth')
  assert facts == {'note': content['note']}
  assert found.keys() == arrays.keys()
  for name, array in arrays.items():
    assert found[name].shape == array.shape
    assert found[name].tobytes() == array.tobytes()
  # Data begin at multiples of 64 bytes, so that torch can map the file.
  raw = (tmp_path / 'file.pth').read_bytes()
  assert raw.index(arrays['b'].tobytes()) % 64 == 0
