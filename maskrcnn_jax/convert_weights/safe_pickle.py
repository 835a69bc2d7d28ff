"""A reader of pickles that runs no code from the file.

A pickle may name any function for its reader to call. This reader knows a
table of harmless ones, puts a stand-in in the place of each, and refuses
whatever else a file names: what comes out is arrays, tensors, numbers, strings
and containers.
"""

import io
import pickle
from typing import NamedTuple

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Mapping(dict):
  """Stands for OrderedDict and Counter; has no attributes to be set."""

  def __setstate__(self, state):
    """Ignores what torch attaches to a state_dict."""


class _Opaque:
  """Stands for an object whose content nobody needs."""

  def __init__(self, *arguments):
    pass

  def __setstate__(self, state):
    pass


class Storage(NamedTuple):
  """Where the elements of tensors lie in a torch file."""

  dtype: np.dtype
  key: str
  size: int  # elements


class Tensor(NamedTuple):
  """A view of a storage; nothing in it has been checked."""

  storage: Storage
  offset: int
  shape: tuple
  strides: tuple  # in elements


class _Dtype:
  """Stands for numpy.dtype: a code such as 'f4' and a byte order."""

  def __init__(self, code, *arguments):
    self.dtype = np.dtype(str(code))
    if self.dtype.kind not in 'fiub':
      raise InputError(f'holds an array of {code!r}; only numbers can be read.')

  def __setstate__(self, state):
    if state[1] == '>':
      self.dtype = self.dtype.newbyteorder('>')


class StoredArray:
  """Stands for numpy.ndarray."""

  array = None

  def __setstate__(self, state):
    """Takes what NumPy stores."""
    _, shape, dtype, is_fortran, data = state
    if isinstance(data, str):  # a Python 2 string
      data = data.encode('latin1')
    flat = np.frombuffer(bytes(data), dtype.dtype)
    self.array = flat.reshape(shape, order='F' if is_fortran else 'C')


def _rebuild_scalar(dtype, data):
  if isinstance(data, str):
    data = data.encode('latin1')
  return np.frombuffer(bytes(data), dtype.dtype)[0].item()


def _rebuild_from_buffer(data, dtype, shape, order):
  result = StoredArray()
  result.__setstate__((1, shape, dtype, order == 'F', data))
  return result


def _rebuild_tensor(storage, offset, shape, strides, *rest):
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _encode(text, encoding):
  if encoding not in ('latin1', 'latin-1'):
    raise InputError(f'holds bytes as {encoding!r}, which is not expected.')
  return text.encode('latin1')


class _StorageType(NamedTuple):
  """Stands for torch.FloatStorage and its like."""

  dtype: np.dtype


_STORAGES = {
  'FloatStorage': np.dtype('<f4'),
  'HalfStorage': np.dtype('<f2'),
  'DoubleStorage': np.dtype('<f8'),
  'BFloat16Storage': BFLOAT16,
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
  'ShortStorage': np.dtype('<i2'),
  'CharStorage': np.dtype('i1'),
  'ByteStorage': np.dtype('u1'),
  'BoolStorage': np.dtype('?'),
}

# (module, name) as a file names it -> what is put in its place.
_KNOWN = {
  ('collections', 'OrderedDict'): _Mapping,
  ('collections', 'Counter'): _Mapping,
  ('argparse', 'Namespace'): _Opaque,
  ('builtins', 'set'): set,
  ('_codecs', 'encode'): _encode,
  ('numpy', 'ndarray'): StoredArray,
  ('numpy', 'dtype'): _Dtype,
  ('torch', 'Size'): tuple,
  ('torch', 'device'): _Opaque,
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): lambda tensor, *rest: tensor,
  **{
    (f'numpy.{core}.multiarray', name): stand_in
    for core in ('core', '_core')
    for name, stand_in in (
      ('_reconstruct', lambda *arguments: StoredArray()),
      ('scalar', _rebuild_scalar),
    )
  },
  **{
    (f'numpy.{core}.numeric', '_frombuffer'): _rebuild_from_buffer
    for core in ('core', '_core')
  },
  **{('torch', name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class Unpickler(pickle.Unpickler):
  """Reads a pickle that needs nothing but the table above.

  Attributes:
    storages: {key: Storage} of those that the pickle refers to.
  """

  def __init__(self, file: io.BufferedIOBase):
    """Prepares to read one pickle from where the file is."""
    # Python 2 wrote the bytes of arrays as strings.
    super().__init__(file, encoding='latin1')
    self.storages = {}

  def find_class(self, module: str, name: str):
    """Returns what stands for a name; called by `load`."""
    try:
      return _KNOWN[module, name]
    except KeyError:
      raise InputError(
        f'names {module}.{name}, which weights do not need and which might '
        'run code, so it is not read; save the weights alone (state_dict).'
      ) from None

  def persistent_load(self, pid: tuple) -> Storage:
    """Returns what torch keeps outside of the pickle; called by `load`."""
    kind, type_, key, _, size, *view = pid
    if kind != 'storage' or not isinstance(type_, _StorageType) or any(view):
      raise InputError(f'refers to {kind!r}, which is not a plain tensor.')
    storage = Storage(type_.dtype, str(key), size)
    return self.storages.setdefault(storage.key, storage)
