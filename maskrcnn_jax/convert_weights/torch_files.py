"""Weight files of other programs, read and written without those programs."""

from collections.abc import Iterator
import contextlib
import io
import json
import math
import pathlib
import pickle
import struct
from typing import Any, NamedTuple
import zipfile

import numpy as np

from maskrcnn_jax.convert_weights.safe_pickle import (
  BFLOAT16,
  StoredArray,
  Tensor,
  Unpickler,
)
from maskrcnn_jax.errors import InputError

# Where programs keep the weights among other things.
CONTAINERS = ('model', 'state_dict', 'model_state_dict', 'model_state', 'blobs')

# A view that repeats elements of its storage may have so many; more would be
# a way to fill the memory with a small file.
MAX_REPEATED = 2**24

_SAFETENSORS = {
  'F64': np.dtype('<f8'),
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': BFLOAT16,
  'I64': np.dtype('<i8'),
  'I32': np.dtype('<i4'),
  'I16': np.dtype('<i2'),
  'I8': np.dtype('i1'),
  'U8': np.dtype('u1'),
  'BOOL': np.dtype('?'),
}
# What torch.save wrote before version 1.6 begins with this number as a pickle.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)
# torch aligns the data of each tensor so.
_ALIGNMENT = 64


class WeightFile(NamedTuple):
  """What a file holds."""

  arrays: dict[str, np.ndarray]  # by name, without 'module.'
  facts: dict[str, Any]  # whatever else lies beside them


def read_weights(path: pathlib.Path) -> WeightFile:
  """Reads a .pth, .pkl or .safetensors file; what it is, its bytes tell.

  Args:
    path: Of the file.

  Raises:
    InputError: If it is none, is damaged, or names what this reader does not
      know, which includes all that could run code.
  """
  if not path.is_file():
    raise InputError(
      f'C09: {path} is not a file; give a weight file on this machine.'
    )
  try:
    with path.open('rb') as file:
      start = file.read(len(_LEGACY_START))
      file.seek(0)
      if start.startswith(b'PK'):
        return _pick(*_read_zip(file))
      if start == _LEGACY_START:
        return _pick(*_read_legacy(file))
      if start[8:9] == b'{':
        return _pick(_read_safetensors(file, path.stat().st_size), None)
      return _pick(Unpickler(file).load(), None)
  except InputError as error:
    raise InputError(f'C08: {path} {_printable(str(error))}') from error
  # A damaged or hostile pickle makes the unpickler raise all kinds of things.
  except Exception as error:
    reason = _printable(str(error) or type(error).__name__)[:200]
    raise InputError(
      f'C08: {path} cannot be read as a weight file ({reason}); is it whole, '
      'and a .pth, .pkl or .safetensors file?'
    ) from error


def _printable(text: str) -> str:
  """Makes one line of what may quote a hostile file."""
  return ''.join(c if c.isprintable() else '?' for c in text)


def _read_zip(file):
  """Returns (content, function from a storage to its elements)."""
  archive = zipfile.ZipFile(file)
  names = archive.namelist()
  pickles = [name for name in names if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise InputError('is a zip archive, but not one of torch.save.')
  folder = pickles[0].removesuffix('data.pkl')

  def read(name):
    entry = archive.getinfo(name)
    # torch.save never compresses; what does could grow without bound.
    if entry.compress_type != zipfile.ZIP_STORED:
      raise InputError(f'has {name} compressed, as torch.save never does.')
    return archive.read(entry)

  content = Unpickler(io.BytesIO(read(pickles[0]))).load()
  order = folder + 'byteorder'
  is_big_endian = order in names and read(order) == b'big'

  def load(storage):
    data = read(f'{folder}data/{storage.key}')
    dtype = storage.dtype.newbyteorder('>') if is_big_endian else storage.dtype
    return np.frombuffer(data, dtype)

  # The archive is open only as long as the file.
  return content, load


def _read_legacy(file):
  """The same, for what torch.save wrote before version 1.6."""
  for _ in range(3):  # magic number, protocol version, system
    Unpickler(file).load()
  unpickler = Unpickler(file)
  content = unpickler.load()
  data = {}
  for key in Unpickler(file).load():
    (size,) = struct.unpack('<q', file.read(8))
    dtype = unpickler.storages[key].dtype
    data[key] = np.frombuffer(file.read(size * dtype.itemsize), dtype)
  return content, lambda storage: data[storage.key]


def _read_safetensors(file, file_size):
  (header_size,) = struct.unpack('<Q', file.read(8))
  if header_size > file_size:
    raise InputError('is shorter than its header says.')
  header = json.loads(file.read(header_size))
  header.pop('__metadata__', None)
  body = file.read()
  arrays = {}
  for name, entry in header.items():
    if entry['dtype'] not in _SAFETENSORS:
      raise InputError(f'has {name} as {entry["dtype"]}, which is not read.')
    begin, end = entry['data_offsets']
    if not 0 <= begin <= end <= len(body):
      raise InputError(f'is damaged: {name} lies outside of it.')
    dtype = _SAFETENSORS[entry['dtype']]
    arrays[name] = np.frombuffer(body[begin:end], dtype).reshape(entry['shape'])
  return arrays


def _pick(content, load) -> WeightFile:
  """Finds the weights in what a file holds, and makes arrays of them."""
  facts = {}
  while isinstance(content, dict):
    inner = next(
      (key for key in CONTAINERS if isinstance(content.get(key), dict)), None
    )
    if inner is None:
      break
    facts |= {k: v for k, v in content.items() if k != inner}
    content = content[inner]
  if not isinstance(content, dict):
    raise InputError(
      f'holds a {type(content).__name__}, not weights by name (state_dict).'
    )
  loaded = {}
  arrays = {}
  for name, value in content.items():
    if not str(name).isprintable():
      raise InputError(f'has an array of the strange name {name!r}.')
    if isinstance(value, Tensor):
      storage = value.storage
      if storage.key not in loaded:
        loaded[storage.key] = load(storage)
      if len(loaded[storage.key]) != storage.size:
        raise InputError(f'is damaged: the data of {name} is incomplete.')
      value = _view(loaded[storage.key], value, name)
    elif isinstance(value, StoredArray):
      value = value.array
    if isinstance(value, np.ndarray):
      arrays[str(name)] = value
    else:
      facts[str(name)] = value
  if not arrays:
    raise InputError('holds no arrays by name.')
  if all(name.startswith('module.') for name in arrays):
    arrays = {k.removeprefix('module.'): v for k, v in arrays.items()}
  return WeightFile(arrays, facts)


def _view(flat, tensor, name) -> np.ndarray:
  """Returns a tensor's elements, after checking that they are in its storage.

  NumPy would read any address that strides lead to.
  """
  _, offset, shape, strides = tensor
  numbers = (offset, *shape, *strides)
  count = math.prod(shape)
  is_sound = (
    all(type(number) is int and number >= 0 for number in numbers)
    and len(shape) == len(strides)
    and count <= max(len(flat), MAX_REPEATED)
    and (
      count == 0
      or offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
      < len(flat)
    )
  )
  if not is_sound:
    raise InputError(f'is damaged: {name} lies outside of its storage.')
  if count == 0:
    return np.zeros(shape, flat.dtype)
  return np.lib.stride_tricks.as_strided(
    flat[offset:], shape, [s * flat.itemsize for s in strides]
  ).copy()


def write_pickle(path: pathlib.Path, content: dict) -> None:
  """Writes nested dicts of arrays, numbers and strings as a plain pickle."""
  with _replacing(path) as file:
    pickle.dump(content, file, protocol=4)


def write_torch(path: pathlib.Path, content: dict) -> None:
  """Writes the same as torch.save would, for torch.load(weights_only=True).

  Arrays become float32 or int64 tensors.
  """
  arrays = []
  code = b'\x80\x02' + _torch_code(content, arrays) + b'.'
  with _replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    _add(archive, file, 'archive/data.pkl', code)
    _add(archive, file, 'archive/byteorder', b'little')
    for i, array in enumerate(arrays):
      _add(archive, file, f'archive/data/{i}', array.tobytes())
    _add(archive, file, 'archive/version', b'3\n')


def _torch_code(value, arrays) -> bytes:
  """The pickle of a value without its frame; tensors are appended to `arrays`.

  Written by hand because pickle would need torch's own classes.
  """
  if isinstance(value, dict):
    items = (
      _torch_code(k, arrays) + _torch_code(v, arrays) for k, v in value.items()
    )
    return b'}(' + b''.join(items) + b'u'
  if isinstance(value, list):
    return b'](' + b''.join(_torch_code(v, arrays) for v in value) + b'e'
  if isinstance(value, np.ndarray):
    is_float = value.dtype.kind == 'f'
    array = np.ascontiguousarray(value, '<f4' if is_float else '<i8')
    array = array.reshape(value.shape)
    strides = tuple(s // array.itemsize for s in array.strides)
    kind = b'FloatStorage' if is_float else b'LongStorage'
    arrays.append(array)
    return (
      b'ctorch._utils\n_rebuild_tensor_v2\n(('
      + _plain_code('storage')
      + b'ctorch\n'
      + kind
      + b'\n'
      + _plain_code(str(len(arrays) - 1))
      + _plain_code('cpu')
      + _plain_code(array.size)
      + b'tQ'
      + _plain_code(0)
      + _plain_code(array.shape)
      + _plain_code(strides)
      + b'\x89ccollections\nOrderedDict\n)RtR'
    )
  return _plain_code(value)


def _plain_code(value) -> bytes:
  """The pickle of a number, a string or a tuple, without its frame."""
  return pickle.dumps(value, 2)[2:-1]


def _add(archive, file, name, data) -> None:
  """Adds an entry whose data begins at a multiple of `_ALIGNMENT`."""
  entry = zipfile.ZipInfo(name)
  start = file.tell() + 30 + len(name) + 4  # headers before the data
  padding = -start % _ALIGNMENT
  entry.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
  archive.writestr(entry, data)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
  """Opens a file that appears under its name only when it is whole."""
  partial = path.with_name(path.name + '.partial')
  try:
    with partial.open('wb') as file:
      yield file
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
