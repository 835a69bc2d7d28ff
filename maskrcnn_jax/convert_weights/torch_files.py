"""Reads and writes weight files of other programs without those programs."""

from collections.abc import Callable, Iterator
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

from maskrcnn_jax.convert_weights import search
from maskrcnn_jax.convert_weights.safe_pickle import (
  BFLOAT16,
  Storage,
  StoredArray,
  Tensor,
  Unpickler,
)
from maskrcnn_jax.errors import InputError

# The arrays of a file may have this many times as many bytes as the file,
# because several tensors may share a storage.
_MAX_GROWTH = 4
# Bytes of arrays that any file may have, however small it is. A view may repeat
# one element, and without a limit, a small file could fill the memory.
_FREE_BYTES = 2**26
# Axes of an array; those of weights have at most 4.
_MAX_AXES = 32

# Bytes of the header of a .safetensors file. The header of a detector has about
# 100,000. JSON needs up to 30 times as much memory as its text has bytes.
_MAX_HEADER = 2_000_000

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
# Files that torch.save wrote before version 1.6 begin with a pickle of this
# number.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)
# Bytes of the list of the entries of a zip archive, of about 100 each. torch
# makes an entry for each tensor.
_MAX_DIRECTORY = 2**23
# As in torch, the data of each tensor begins at a multiple of this many bytes.
_ALIGNMENT = 64


# Returns the elements of a storage of a torch file, in one dimension.
_LoadStorage = Callable[[Storage], np.ndarray]


class WeightFile(NamedTuple):
  """The content of a weight file."""

  arrays: dict[str, np.ndarray]  # arrays of the model by name, without prefix
  prefix: str  # text before these names in the file
  facts: dict[str, Any]  # the entries that are not arrays, by name
  # Names of arrays in the dictionary of the model that lack its prefix.
  outside: list[str]
  # Prefix with which --prefix takes the backbone of the model alone.
  # `None` if the names are not those of a ResNet.
  backbone: str | None
  notes: list[str]  # lines to print, about the choice and ignored objects


def read_weights(
  path: pathlib.Path, *, key: str | None = None, prefix: str | None = None
) -> WeightFile:
  """Reads a .pth, .pkl or .safetensors file.

  The format is recognised by the first bytes of the file, not by its name. The
  weights are searched for by their names; see `search`.

  Args:
    path: The file.
    key: Path of the dictionary that holds the weights, such as 'ema.module'.
      `None` and '' as in `search.choose`.
    prefix: Text before the names of the weights, such as 'module.'.

  Raises:
    InputError: If the file does not exist, has another format, is damaged,
      names a function by which files attack, or has no such key or prefix.
  """
  if not path.is_file():
    raise InputError(
      f'C09: {path} is not a file; give a weight file on this machine.'
    )
  try:
    with path.open('rb') as file:
      file_size = path.stat().st_size
      content, load, ignored = _read_content(file, file_size)
      return _find_weights(
        content,
        load,
        ignored,
        key=key,
        prefix=prefix,
        free_bytes=_FREE_BYTES + _MAX_GROWTH * file_size,
      )
  except InputError as error:
    raise InputError(f'C08: {path} {error}') from error
  # A damaged or hostile pickle can make the unpickler raise any exception.
  except Exception as error:
    reason = (str(error) or type(error).__name__)[:200]
    raise InputError(
      f'C08: {path} cannot be read as a weight file ({reason}); is it whole, '
      'and a .pth, .pkl or .safetensors file?'
    ) from error


def _read_content(
  file: io.BufferedReader, file_size: int
) -> tuple[Any, _LoadStorage, list[str]]:
  """Reads a weight file of any format.

  Args:
    file: The file, at its start.
    file_size: Length of the file in bytes.

  Returns:
    content: The saved object, with `Tensor`s.
    load: Function that returns the elements of a storage. It works as long as
      the file is open.
    ignored: Names of the classes whose objects were ignored.
  """
  start = file.read(len(_LEGACY_START))
  file.seek(0)
  if start.startswith(b'PK'):
    return _read_zip(file, file_size)
  if start == _LEGACY_START:
    return _read_legacy(file, file_size)
  if start[8:9] == b'{':
    return _read_safetensors(file, file_size), _load_nothing, []
  unpickler = Unpickler(file, file_size)
  return unpickler.load(), _load_nothing, list(unpickler.ignored)


def _load_nothing(storage: Storage) -> np.ndarray:
  """Refuses to load a storage, for files of formats that have no storages.

  Raises:
    InputError: Always.
  """
  raise InputError(f'refers to the data {storage.key!r}, but has none.')


class _LimitedFile(io.BufferedReader):
  """A file that is read in pieces up to a length, for `zipfile`.

  `zipfile` reads the list of entries in one piece, and makes an object of some
  hundred bytes for each entry.

  Attributes:
    limit: Length of the longest piece in bytes.
  """

  limit = _MAX_DIRECTORY

  def __init__(self, file: io.BufferedReader):
    """Reads the same file as an open one."""
    super().__init__(file.raw)

  def read(self, size: int | None = -1, /) -> bytes:
    """Reads bytes.

    Raises:
      InputError: If the piece is longer than the limit.
    """
    if size is not None and size > self.limit:
      raise InputError('is a zip archive, but not one of torch.save.')
    return super().read(size)


def _read_zip(
  file: io.BufferedReader, file_size: int
) -> tuple[Any, _LoadStorage, list[str]]:
  """Reads a file that torch.save wrote since version 1.6: a zip archive.

  Args:
    file: The file.
    file_size: Length of the file in bytes.

  Returns:
    content: The saved object, with `Tensor`s.
    load: Function that returns the elements of a storage. It works as long as
      the file is open.
    ignored: Names of the classes whose objects were ignored.

  Raises:
    InputError: If torch.save has not written the archive, if it lists very many
      entries, or if an entry is compressed or longer than the file.
  """
  reader = _LimitedFile(file)
  archive = zipfile.ZipFile(reader)
  reader.limit = file_size
  names = archive.namelist()
  pickles = [name for name in names if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise InputError('is a zip archive, but not one of torch.save.')
  folder = pickles[0].removesuffix('data.pkl')
  num_left = file_size  # bytes that may still be read

  def read(name: str) -> bytes:
    """Returns the bytes of an entry of the archive.

    Raises:
      InputError: If the entry is compressed, or if it and the entries before
        it are longer than the file, because they overlap.
    """
    nonlocal num_left
    entry = archive.getinfo(name)
    # torch.save never compresses. A compressed entry could fill the memory.
    if entry.compress_type != zipfile.ZIP_STORED:
      raise InputError(f'has {name} compressed, as torch.save never does.')
    num_left -= max(entry.file_size, entry.compress_size)
    if num_left < 0:
      raise InputError('is damaged: its entries are longer than the file.')
    return archive.read(entry)

  code = read(pickles[0])
  unpickler = Unpickler(io.BytesIO(code), len(code))
  content = unpickler.load()
  order = folder + 'byteorder'
  is_big_endian = order in names and read(order) == b'big'

  def load(storage: Storage) -> np.ndarray:
    """Returns the elements of a storage."""
    data = read(f'{folder}data/{storage.key}')
    dtype = storage.dtype.newbyteorder('>') if is_big_endian else storage.dtype
    return np.frombuffer(data, dtype)

  return content, load, list(unpickler.ignored)


def _read_legacy(
  file: io.BufferedReader, file_size: int
) -> tuple[Any, _LoadStorage, list[str]]:
  """Reads a file that torch.save wrote before version 1.6.

  It is a sequence of pickles, followed by the storages.

  Args:
    file: The file, at its start.
    file_size: Length of the file in bytes.

  Returns:
    content: The saved object, with `Tensor`s.
    load: Function that returns the elements of a storage.
    ignored: Names of the classes whose objects were ignored.

  Raises:
    InputError: If a storage is longer than the file.
  """
  for _ in range(3):  # magic number, protocol version, system
    Unpickler(file, file_size).load()
  unpickler = Unpickler(file, file_size)
  content = unpickler.load()
  data = {}
  for key in Unpickler(file, file_size).load():
    if not isinstance(key, str):
      raise InputError('is damaged: a key of its data is not a string.')
    (size,) = struct.unpack('<q', file.read(8))
    dtype = unpickler.storages[key].dtype
    if not 0 <= size * dtype.itemsize <= file_size:
      raise InputError(f'is damaged: the data {key!r} lies outside of it.')
    data[key] = np.frombuffer(file.read(size * dtype.itemsize), dtype)
  return content, lambda storage: data[storage.key], list(unpickler.ignored)


def _read_safetensors(
  file: io.BufferedReader, file_size: int
) -> dict[str, np.ndarray]:
  """Reads the arrays of a .safetensors file by name.

  Args:
    file: The file, at its start.
    file_size: Length of the file in bytes.

  Raises:
    InputError: If the file is too short, or an array has a type that is not
      read.
  """
  (header_size,) = struct.unpack('<Q', file.read(8))
  if header_size > file_size:
    raise InputError('is shorter than its header says.')
  if header_size > _MAX_HEADER:
    raise InputError(f'has a header of more than {_MAX_HEADER:,} bytes.')
  header = json.loads(file.read(header_size))
  header.pop('__metadata__', None)
  body = memoryview(file.read())
  num_left = len(body)  # arrays do not overlap
  arrays = {}
  for name, entry in header.items():
    if entry['dtype'] not in _SAFETENSORS:
      raise InputError(f'has {name} as {entry["dtype"]}, which is not read.')
    begin, end = entry['data_offsets']
    if not 0 <= begin <= end <= len(body):
      raise InputError(f'is damaged: {name} lies outside of it.')
    num_left -= end - begin
    if num_left < 0:
      raise InputError('is damaged: its arrays overlap.')
    dtype = _SAFETENSORS[entry['dtype']]
    arrays[name] = np.frombuffer(body[begin:end], dtype).reshape(entry['shape'])
  return arrays


def _find_weights(
  content: Any,
  load: _LoadStorage,
  ignored: list[str],
  *,
  key: str | None,
  prefix: str | None,
  free_bytes: int,
) -> WeightFile:
  """Finds the weights in the content of a file and converts them to arrays.

  Args:
    content: The object that the file stores, normally a dict. The weights in it
      are `Tensor`s, `StoredArray`s or arrays.
    load: Function that returns the elements of a storage.
    ignored: Names of the classes whose objects were ignored.
    key: See `read_weights`.
    prefix: See `read_weights`.
    free_bytes: Number of bytes that the arrays may have.

  Raises:
    InputError: If there are no weights, if one is damaged, if they are larger
      than allowed, or if the flags are of no model in the file.
  """
  try:
    chosen = search.choose(content, key=key, prefix=prefix)
  except InputError as error:
    if ignored:
      raise InputError(f'{error} It {_ignored_line(ignored)}.') from error
    raise
  loaded: dict[str, np.ndarray] = {}
  arrays: dict[str, np.ndarray] = {}
  for name, value in chosen.arrays.items():
    if isinstance(value, Tensor):
      storage = value.storage
      if storage.key not in loaded:
        loaded[storage.key] = load(storage)
      flat = loaded[storage.key]
      if len(flat) != storage.size:
        raise InputError(f'is damaged: the data of {name} is incomplete.')
      free_bytes -= _check_view(flat, value, name) * flat.itemsize
      _require_free(free_bytes)
      arrays[name] = _view(flat, value)
    else:
      array = value.array if isinstance(value, StoredArray) else value
      assert isinstance(array, np.ndarray)  # `choose` returns nothing else.
      free_bytes -= array.nbytes
      _require_free(free_bytes)
      arrays[name] = array
  notes = list(chosen.notes)
  if ignored:
    notes.append(f'The file {_ignored_line(ignored)}')
  return WeightFile(
    arrays, chosen.prefix, chosen.facts, chosen.outside, chosen.backbone, notes
  )


def _require_free(free_bytes: int) -> None:
  """Refuses a file that has used up more bytes than its arrays may have."""
  if free_bytes < 0:
    raise InputError(
      'has arrays that are much larger than the file, because they share or '
      'repeat their data, so it is not read; save the weights alone '
      '(state_dict).'
    )


def _ignored_line(ignored: list[str]) -> str:
  """Returns a clause that names the classes whose objects were ignored."""
  more = f' and {len(ignored) - 5} more' if len(ignored) > 5 else ''
  return f'has objects that were ignored: {", ".join(ignored[:5])}{more}'


def _check_view(flat: np.ndarray, tensor: Tensor, name: str) -> int:
  """Checks that a tensor is inside its storage.

  Without the check, NumPy would read any memory address that the offset and
  the strides lead to.

  Args:
    flat: [n] elements of the storage.
    tensor: The tensor as the file describes it, unchecked.
    name: Name of the tensor, for the message.

  Returns:
    The number of elements of the tensor.

  Raises:
    InputError: If an element of the tensor is not in the storage.
  """
  _, offset, shape, strides = tensor
  numbers = (offset, *shape, *strides)
  # The number of axes comes first: the product of many numbers takes long.
  is_sound = len(shape) == len(strides) <= _MAX_AXES and all(
    type(number) is int and 0 <= number < 2**63 for number in numbers
  )
  count = math.prod(shape) if is_sound else 0
  if count:
    last = offset + sum(
      (n - 1) * s for n, s in zip(shape, strides, strict=True)
    )
    is_sound = last < len(flat)
  if not is_sound:
    raise InputError(f'is damaged: {name} lies outside of its storage.')
  return count


def _view(flat: np.ndarray, tensor: Tensor) -> np.ndarray:
  """Returns a copy of a tensor, which `_check_view` has checked.

  Args:
    flat: [n] elements of the storage.
    tensor: The tensor as the file describes it.
  """
  if math.prod(tensor.shape) == 0:
    return np.zeros(tensor.shape, flat.dtype)
  return np.lib.stride_tricks.as_strided(
    flat[tensor.offset :],
    tensor.shape,
    [s * flat.itemsize for s in tensor.strides],
  ).copy()


def write_pickle(path: pathlib.Path, content: dict) -> None:
  """Writes nested dicts of arrays, numbers and strings as a plain pickle.

  The file appears under its name only when it is complete.
  """
  with _replacing(path) as file:
    pickle.dump(content, file, protocol=4)


def write_torch(path: pathlib.Path, content: dict) -> None:
  """Writes a file as torch.save does, for torch.load(weights_only=True).

  The file appears under its name only when it is complete.

  Args:
    path: The file.
    content: Nested dicts and lists of arrays, numbers and strings. Floating
      point arrays become float32 tensors, and others int64 tensors.
  """
  arrays: list[np.ndarray] = []
  code = b'\x80\x02' + _torch_code(content, arrays) + b'.'
  with _replacing(path) as file, zipfile.ZipFile(file, 'w') as archive:
    _add(archive, file, 'archive/data.pkl', code)
    _add(archive, file, 'archive/byteorder', b'little')
    for i, array in enumerate(arrays):
      _add(archive, file, f'archive/data/{i}', array.tobytes())
    _add(archive, file, 'archive/version', b'3\n')


def _torch_code(value: Any, arrays: list[np.ndarray]) -> bytes:
  """Returns the pickle of a value without the header and the final stop.

  The pickle is made by hand, because the pickle module would need torch's own
  classes.

  Args:
    value: Nested dicts and lists of arrays, numbers and strings.
    arrays: The arrays that are in the file so far. Those of `value` are
      appended; the pickle refers to an array by its index.
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


def _plain_code(value: Any) -> bytes:
  """Returns the pickle of a number, string or tuple without header and stop."""
  return pickle.dumps(value, 2)[2:-1]


def _add(
  archive: zipfile.ZipFile, file: io.BufferedIOBase, name: str, data: bytes
) -> None:
  """Adds an entry to a zip archive, aligned so that torch can map it.

  Args:
    archive: The archive.
    file: The file that the archive writes to.
    name: Name of the entry.
    data: Bytes of the entry, which will begin at a multiple of `_ALIGNMENT` in
      the file.
  """
  entry = zipfile.ZipInfo(name)
  start = file.tell() + 30 + len(name) + 4  # headers before the data
  padding = -start % _ALIGNMENT
  entry.extra = b'FB' + struct.pack('<H', padding) + b'Z' * padding
  archive.writestr(entry, data)


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[io.BufferedIOBase]:
  """Context manager that writes a file under its name only when it is complete.

  It yields a temporary file beside `path`, which is renamed at the end. After
  an error the temporary file is deleted, and `path` is as before.
  """
  partial = path.with_name(path.name + '.partial')
  try:
    with partial.open('wb') as file:
      yield file
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
