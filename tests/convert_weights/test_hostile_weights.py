"""Weight files that ask for much more time or memory than their size."""

import io
import json
import pickle
import resource
import struct
import zipfile

import pytest

from maskrcnn_jax.convert_weights import bounded_pickle
from maskrcnn_jax.convert_weights.torch_files import read_weights
from maskrcnn_jax.errors import InputError

# Bytes by which reading a file may enlarge the process.
MEMORY = 300 * 2**20


def plain(value):
  """Returns the pickle of a plain value without header and stop."""
  return pickle.dumps(value, 2)[2:-1]


def nested_tuples(depth=60):
  """Returns steps that make a tuple whose text has 2**depth copies of 'x'."""
  code = plain('x')
  for i in range(depth):
    code += b'q%ch%c\x86' % (i, i)
  return code


def numbered(items):
  """Returns steps that make a dictionary of these keys, each given as steps."""
  return b'}(' + b''.join(key + b'N' for key in items) + b'u'


TABLE = numbered(b'J' + struct.pack('<i', i) for i in range(10_000)) + b'q\xff'
TEXT = plain('x' * 100_000) + b'q\xff'
NAMES = {
  'ordered': b'ccollections\nOrderedDict\n',
  'size': b'ctorch\nSize\n',
  'encode': b'c_codecs\nencode\n',
  'dtype': b'cnumpy\ndtype\n',
  'set': b'c__builtin__\nset\n',
  'old': b'ccopy_reg\n_reconstructor\n',
  'other': b'cother\nThing\n',
}
BOMB = nested_tuples()
AGAIN = 5000
PICKLES = {
  # A tuple whose hash or text takes years.
  'key': b'}' + BOMB + b'Ns.',
  'keys': b'}(' + BOMB + b'Nu.',
  'dict': b'(' + BOMB + b'Nd.',
  'set': b'\x8f(' + BOMB + b'\x90.',
  'frozenset': b'(' + BOMB + b'\x91.',
  'called set': NAMES['set'] + b']' + BOMB + b'a\x85R.',
  'pairs': NAMES['ordered'] + b']' + BOMB + b'N\x86a\x85R.',
  'kind of a reference': b'(' + BOMB + b'NNNNtQ.',
  'key of a reference': (
    b'(' + plain('storage') + b'ctorch\nFloatStorage\n' + BOMB + b'NNtQ.'
  ),
  'type code': NAMES['dtype'] + BOMB + b'\x85R.',
  'encoding': NAMES['encode'] + plain('a') + BOMB + b'\x86R.',
  # Integers of one hash.
  'collisions': numbered(
    b'\x8a\x0c' + (i * (2**61 - 1)).to_bytes(12, 'little')
    for i in range(10_000)
  )
  + b'.',
  # Lengths that the file does not have.
  'length': b'\x8e' + struct.pack('<Q', 2**40) + b'abc.',
  'array of bytes': b'\x96' + struct.pack('<Q', 2**34) + b'abc.',
  'long integer': b'\x8b' + struct.pack('<i', 2**31 - 1) + b'\xff.',
  # Copies of the same thing.
  'dictionary again': TABLE
  + b'('
  + (NAMES['ordered'] + b'h\xff\x85R') * AGAIN
  + b'l.',
  'old dictionary again': TABLE
  + b'('
  + (NAMES['old'] + NAMES['other'] + b'Nh\xff\x87R') * AGAIN
  + b'l.',
  'attributes again': TABLE
  + b'0('
  + (NAMES['other'] + b')\x81}' + plain('_parameters') + b'h\xffsb') * AGAIN
  + b'l.',
  'shape again': b'('
  + b'N' * 20_000
  + b'lq\xff('
  + (NAMES['size'] + b'h\xff\x85\x81') * AGAIN
  + b'l.',
  'text again': TEXT
  + b'('
  + (NAMES['encode'] + b'h\xff' + plain('latin1') + b'\x86R') * AGAIN
  + b'l.',
  # Numbers, or objects, without end.
  'nested lists': b']' * 100_000 + b'.',
  'sets': b'(' + b'\x8f' * 100_000 + b'l.',
  'numbers': b'(' + b'N' * 200_000 + b'l.',
  # A state for a function of this program, and a class by its number.
  'state': NAMES['encode'] + b'N}' + plain('__defaults__') + b')s\x86b.',
  'number of a class': b'\x82\x01.',
  'bytes by their number': b'cnumpy.core.multiarray\n_reconstruct\n)R('
  + b'K\x01'
  + plain((2**34,))
  + NAMES['dtype']
  + plain('u1')
  + b'\x85R\x89'
  + plain(2**34)
  + b'tb.',
}


@pytest.mark.parametrize('name', PICKLES)
def test_read_weights_refuses_a_pickle_that_needs_much_time_or_memory(
  tmp_path, monkeypatch, name
):
  # The checks of types, which only tests have, make each unit much slower.
  monkeypatch.setattr(bounded_pickle, 'MAX_WORK', 100_000)
  (tmp_path / 'file.pkl').write_bytes(b'\x80\x04' + PICKLES[name])
  refuse(tmp_path / 'file.pkl')


def refuse(path):
  """Asserts that a file is refused in one line and with little memory."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(InputError, match=r'^C08: ') as error:
    read_weights(path)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert str(error.value).isprintable()
  assert len(str(error.value)) < 500
  assert (after - before) * 1024 < MEMORY


def test_read_weights_ignores_the_number_of_a_place_in_memory(tmp_path):
  place = struct.pack('<I', 2**31 - 1)
  content = b'\x80\x02]r' + place + b'.'
  (tmp_path / 'file.pkl').write_bytes(content)
  with pytest.raises(InputError, match='holds no arrays by name'):
    read_weights(tmp_path / 'file.pkl')


def tensor(shape, strides, *, key='0', size=1):
  """Returns steps that make a tensor; shape and strides are given as steps."""
  return (
    b'ctorch._utils\n_rebuild_tensor_v2\n(('
    + plain('storage')
    + b'ctorch\nFloatStorage\n'
    + plain(key)
    + plain('cpu')
    + plain(size)
    + b'tQK\x00'
    + shape
    + strides
    + b'\x89ccollections\nOrderedDict\n)RtR'
  )


def torch_file(tensors):
  """Returns the entries of a file with tensors of one storage of 4 bytes."""
  items = b''.join(plain(f'a{i}') + t for i, t in enumerate(tensors))
  code = b'\x80\x02}(' + items + b'u.'
  return {'archive/data.pkl': code, 'archive/data/0': bytes(4)}


def write_zip(path, entries):
  """Writes a zip archive without compression."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in entries.items():
      archive.writestr(name, content)


def test_read_weights_bounds_the_arrays_of_a_file_by_its_size(tmp_path):
  repeated = tensor(plain((2**21,)), plain((0,)))
  write_zip(tmp_path / 'few.pth', torch_file([repeated] * 3))
  assert len(read_weights(tmp_path / 'few.pth').arrays) == 3
  write_zip(tmp_path / 'many.pth', torch_file([repeated] * 100))
  with pytest.raises(InputError, match='much larger than the file'):
    read_weights(tmp_path / 'many.pth')


def test_read_weights_does_not_multiply_endless_shapes(tmp_path):
  many = b'(' + plain(2**62) * 20_000 + b't'
  write_zip(tmp_path / 'file.pth', torch_file([tensor(many, many)]))
  with pytest.raises(InputError, match='a0 lies outside of its storage'):
    read_weights(tmp_path / 'file.pth')


def test_read_weights_refuses_entries_that_overlap(tmp_path):
  count = 2**22
  tensors = [
    tensor(plain((count // 4,)), plain((1,)), key=str(i), size=count // 4)
    for i in range(200)
  ]
  entries = torch_file(tensors) | {'archive/data/0': bytes(count)}
  file = tmp_path / 'file.pth'
  with zipfile.ZipFile(file, 'w') as archive:
    for name, content in entries.items():
      archive.writestr(name, content)
    first = archive.getinfo('archive/data/0')
    for i in range(1, 200):
      entry = zipfile.ZipInfo(f'archive/data/{i}')
      entry.header_offset = first.header_offset
      entry.CRC = first.CRC
      entry.file_size = entry.compress_size = count
      archive.filelist.append(entry)
  refuse(file)


def test_read_weights_refuses_an_endless_list_of_entries(tmp_path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    archive.writestr('archive/data.pkl', b'\x80\x02}.')
  content = buffer.getvalue()
  start, end = content.rfind(b'PK\x01\x02'), content.rfind(b'PK\x05\x06')
  entries = content[start:end] * 300_000
  (tmp_path / 'file.pth').write_bytes(
    content[:start]
    + entries
    + content[end : end + 8]
    + struct.pack('<HHIIH', 0xFFFF, 0xFFFF, len(entries), start, 0)
  )
  refuse(tmp_path / 'file.pth')


def test_read_weights_refuses_safetensors_that_overlap(tmp_path):
  entry = {'dtype': 'F32', 'shape': [2**18], 'data_offsets': [0, 2**20]}
  header = json.dumps({f'a{i}': entry for i in range(2000)}).encode()
  (tmp_path / 'file.safetensors').write_bytes(
    struct.pack('<Q', len(header)) + header + bytes(2**20)
  )
  refuse(tmp_path / 'file.safetensors')


def test_read_weights_finds_its_way_among_many_models(tmp_path):
  # Each of these dictionaries has the first two names of a ResNet.
  array = (
    b'cnumpy.core.multiarray\n_reconstruct\n)R('
    + b'K\x01'
    + plain((1,))
    + b'cnumpy\ndtype\n'
    + plain('u1')
    + b'\x85R\x89'
    + plain('a')
    + b'tbq\xff'
  )
  names = plain('conv1.weight'), plain('layer1.0.conv1.weight')
  model = b'}(' + b'h\xff'.join((*names, b'')) + b'u'
  models = b''.join(plain(f'm{i}') + model for i in range(300))
  code = b'\x80\x02' + array + b'0}(' + models + b'u.'
  (tmp_path / 'file.pkl').write_bytes(code)
  assert len(read_weights(tmp_path / 'file.pkl').arrays) == 2
