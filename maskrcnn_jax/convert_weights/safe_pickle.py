"""Reads pickles without running code that they contain or name.

A pickle may name any function, and the usual reader calls it. This reader has a
table of a few harmless names. It calls a stand-in of its own for each of them,
and refuses a file that contains any other name. The result is arrays, tensors,
numbers, strings and containers.
"""

from collections.abc import Callable
import io
import pickle
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from maskrcnn_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Mapping(dict):
  """Replaces OrderedDict and Counter: a dict whose attributes are not set."""

  def __setstate__(self, state: object) -> None:
    """Ignores the attributes that torch adds to a state_dict."""


class _Opaque:
  """Replaces an object whose content is not needed, and ignores the content."""

  def __init__(self, *arguments: object):
    pass

  def __setstate__(self, state: object) -> None:
    pass


class Storage(NamedTuple):
  """A buffer of a torch file that holds the elements of tensors."""

  dtype: np.dtype
  key: str  # name of the buffer in the file
  size: int  # number of elements


class Tensor(NamedTuple):
  """A view of a storage, as the file describes it.

  The numbers are unchecked: a damaged or hostile file may contain any values.
  """

  storage: Storage
  offset: int  # index of the first element in the storage
  shape: tuple
  strides: tuple  # in elements


class _Dtype:
  """Replaces numpy.dtype: a type code such as 'f4', and a byte order."""

  def __init__(self, code: object, *arguments: object):
    self.dtype = np.dtype(str(code))
    if self.dtype.kind not in 'fiub':
      raise InputError(f'holds an array of {code!r}; only numbers can be read.')

  def __setstate__(self, state: tuple) -> None:
    """Takes over the byte order from the state that NumPy pickles."""
    if state[1] == '>':
      self.dtype = self.dtype.newbyteorder('>')


class StoredArray:
  """Replaces numpy.ndarray.

  Attributes:
    array: The array; `None` until `__setstate__` is called.
  """

  array: np.ndarray | None = None

  def __setstate__(self, state: tuple) -> None:
    """Makes the array from the state that NumPy pickles."""
    _, shape, dtype, is_fortran, data = state
    if isinstance(data, str):  # a Python 2 string
      data = data.encode('latin1')
    flat = np.frombuffer(bytes(data), dtype.dtype)
    self.array = flat.reshape(shape, order='F' if is_fortran else 'C')


def _rebuild_scalar(dtype: _Dtype, data: str | bytes) -> int | float | bool:
  """Replaces the function that rebuilds a scalar of NumPy from its bytes."""
  if isinstance(data, str):
    data = data.encode('latin1')
  return np.frombuffer(bytes(data), dtype.dtype)[0].item()


def _rebuild_from_buffer(
  data: Any, dtype: _Dtype, shape: tuple, order: str
) -> StoredArray:
  """Replaces the function that rebuilds a NumPy array from its bytes.

  Args:
    data: The elements, an object with a buffer, such as bytes.
    dtype: Type of the elements.
    shape: Shape of the array.
    order: 'F' if the first axis varies fastest, 'C' if the last axis does.
  """
  result = StoredArray()
  result.__setstate__((1, shape, dtype, order == 'F', data))
  return result


def _rebuild_tensor(
  storage: Storage, offset: int, shape: Any, strides: Any, *rest: object
) -> Tensor:
  """Replaces the function of torch that makes a tensor of a storage."""
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _encode(text: str, encoding: str) -> bytes:
  """Replaces codecs.encode, by which Python 3 stores bytes in old pickles.

  Args:
    text: The bytes, as characters of the same numbers.
    encoding: The encoding that the pickle names.

  Raises:
    InputError: If the encoding is not Latin-1.
  """
  if encoding not in ('latin1', 'latin-1'):
    raise InputError(f'holds bytes as {encoding!r}, which is not expected.')
  return text.encode('latin1')


class _StorageType(NamedTuple):
  """Replaces the class of a storage, such as torch.FloatStorage."""

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

# (module, name) as it appears in a file -> the stand-in that is used instead.
_KNOWN: dict[tuple[str, str], Callable[..., Any] | _StorageType] = {
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
  """Reads a pickle, with the stand-ins of `_KNOWN` for the names in it.

  Attributes:
    storages: The storages that the pickle refers to, by their key.
  """

  def __init__(self, file: io.BufferedIOBase):
    """Prepares to read one pickle from the current position of the file."""
    # Python 2 wrote the bytes of arrays as strings.
    super().__init__(file, encoding='latin1')
    self.storages: dict[str, Storage] = {}

  def find_class(
    self, module: str, name: str
  ) -> Callable[..., Any] | _StorageType:
    """Returns the stand-in for a name in the pickle; `load` calls this.

    Raises:
      InputError: If the name is not in `_KNOWN`.
    """
    try:
      return _KNOWN[module, name]
    except KeyError:
      raise InputError(
        f'names {module}.{name}, which weights do not need and which might '
        'run code, so it is not read; save the weights alone (state_dict).'
      ) from None

  def persistent_load(self, pid: tuple) -> Storage:
    """Returns a storage, which torch keeps outside of the pickle.

    `load` calls this for each reference to a storage.

    Args:
      pid: The reference: ('storage', type, key, device, number of elements,
        ...).

    Raises:
      InputError: If the reference is not to a plain storage.
    """
    kind, type_, key, _, size, *view = pid
    if kind != 'storage' or not isinstance(type_, _StorageType) or any(view):
      raise InputError(f'refers to {kind!r}, which is not a plain tensor.')
    storage = Storage(type_.dtype, str(key), size)
    return self.storages.setdefault(storage.key, storage)
