"""Reads pickles without running code that they contain or name.

A pickle may name any function, and the usual reader calls it. This reader
imports nothing. It has a table of the few names that make up arrays and
containers, and calls its own function in place of each. Any other name
becomes an empty class, so that no function of another program is ever called.
Most such names belong to harmless objects that were saved beside the weights,
such as a path. Names by which files attack, such as os.system, are refused
nevertheless, because nobody should use such a file, not even with this reader.
The result is arrays, tensors, numbers, strings, containers and `Ignored`
objects.
"""

import _compat_pickle
import builtins
from collections.abc import Callable
import io
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from maskrcnn_jax.convert_weights.bounded_pickle import (
  BoundedUnpickler,
  brief,
  require_keys,
)
from maskrcnn_jax.errors import InputError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class _Mapping(dict):
  """Replaces OrderedDict and Counter: a dict whose attributes are not set."""

  def __init__(self, items: Any = ()):
    """Copies a dict, or makes one of pairs (key, value)."""
    if not isinstance(items, dict):
      items = [(key, value) for key, value in items]
      require_keys([key for key, _ in items])
    super().__init__(items)

  def __setstate__(self, state: object) -> None:
    """Ignores the attributes that torch adds to a state_dict."""


class Ignored(dict):
  """Base class of the stand-ins for objects that are not needed.

  A stand-in ignores the arguments and the state that a pickle gives it. It
  keeps two things, because they may hold weights: the items of a subclass of
  dict, and the arrays and submodules of a torch module. It is a dict of them.

  Attributes:
    name: Module and name of the class or the function in the file.
  """

  name = ''

  def __init__(self, *arguments: object, **named: object):
    """Ignores the arguments that a pickle calls the class with."""
    super().__init__()

  def __setstate__(self, state: object) -> None:
    """Takes over the parameters, buffers and submodules of a torch module."""
    if isinstance(state, dict) and '_parameters' in state:
      for part in ('_parameters', '_buffers', '_modules'):
        if isinstance(state.get(part), dict):
          self.update(state[part])

  def append(self, item: object) -> None:
    """Ignores an item of a list."""

  def extend(self, items: object) -> None:
    """Ignores items of a list."""

  def add(self, item: object) -> None:
    """Ignores an item of a set."""

  def __eq__(self, other: object) -> bool:
    """Tells whether the other object is the same one."""
    return self is other

  # An object may be a key of a dict or an item of a set. The base class, a
  # dict, declares `__hash__` to be None, which the type checker would keep.
  def __hash__(self) -> int:  # type: ignore[override]
    """Returns a number that depends on the identity of the object."""
    return id(self)


class Storage(NamedTuple):
  """A buffer of a torch file that holds the elements of tensors."""

  dtype: np.dtype
  key: str  # name of the buffer in the file
  size: Any  # number of elements


class Tensor(NamedTuple):
  """A view of a storage, as the file describes it.

  The numbers are unchecked: a damaged or hostile file may contain any values.
  """

  storage: Any  # a `Storage`, or any object in a damaged or hostile file
  offset: Any  # index of the first element in the storage
  shape: tuple
  strides: tuple  # in elements


# Characters of a type code, such as 'f4' or 'M8[ns]'.
_MAX_CODE = 100


class _Dtype:
  """Replaces numpy.dtype: a type code such as 'f4', and a byte order.

  Attributes:
    code: The type code.
    dtype: The type; `None` if it is not a type of numbers.
  """

  def __init__(self, code: object, *arguments: object):
    if not isinstance(code, str) or len(code) > _MAX_CODE:
      raise InputError(f'has elements of the unknown type {brief(code)}.')
    self.code = code
    dtype = np.dtype(self.code)
    self.dtype = dtype if dtype.kind in 'fiub' else None

  def __setstate__(self, state: Any) -> None:
    """Takes over the byte order from the state that NumPy pickles."""
    if state[1] == '>' and self.dtype is not None:
      self.dtype = self.dtype.newbyteorder('>')


def _buffer(data: object) -> bytes | bytearray:
  """Returns the bytes of an array or a scalar; strings are of Python 2.

  Raises:
    InputError: If they are anything else, such as a number.
  """
  if isinstance(data, str):
    return data.encode('latin1')
  if not isinstance(data, bytes | bytearray):
    raise InputError(f'has {brief(data)} where the bytes of an array belong.')
  return data


class StoredArray:
  """Replaces numpy.ndarray.

  Attributes:
    array: The array; `None` until `__setstate__` is called, and if it does not
      consist of numbers.
    code: The type code of the elements.
  """

  array: np.ndarray | None = None
  code = ''

  def __setstate__(self, state: Any) -> None:
    """Makes the array from the state that NumPy pickles."""
    _, shape, dtype, is_fortran, data = state
    self.code = dtype.code
    if dtype.dtype is None:
      return
    flat = np.frombuffer(_buffer(data), dtype.dtype)
    self.array = flat.reshape(shape, order='F' if is_fortran else 'C')


def _rebuild_scalar(dtype: Any, data: Any) -> int | float | bool | None:
  """Replaces the function that rebuilds a scalar of NumPy from its bytes.

  A scalar that is not a number, such as a date, becomes `None`.
  """
  if dtype.dtype is None:
    return None
  return np.frombuffer(_buffer(data), dtype.dtype)[0].item()


def _rebuild_from_buffer(
  data: Any,
  dtype: Any,
  shape: Any,
  order: Any,
  axis_order: Any = None,
) -> StoredArray:
  """Replaces the function that rebuilds a NumPy array from its bytes.

  Args:
    data: The elements, an object with a buffer, such as bytes.
    dtype: Type of the elements.
    shape: Shape of the array.
    order: 'F' if the first axis varies fastest, 'C' if the last axis does, 'K'
      if the last axis does before the axes are transposed.
    axis_order: The order 'K' transposes the axes to this order.

  Source:
    numpy/_core/numeric.py, `_frombuffer`.
  """
  result = StoredArray()
  result.__setstate__((1, shape, dtype, order == 'F', data))
  if order == 'K' and axis_order is not None and result.array is not None:
    result.array = result.array.transpose(axis_order)
  return result


def _rebuild_tensor(
  storage: Any, offset: Any, shape: Any, strides: Any, *rest: object
) -> Tensor:
  """Replaces the function of torch that makes a tensor of a storage."""
  return Tensor(storage, offset, tuple(shape), tuple(strides))


def _reconstruct_object(
  class_: object, base: object, content: object
) -> Ignored:
  """Replaces the function by which old pickles make objects of a class.

  Args:
    class_: Stand-in of the class.
    base: Stand-in of its built-in base class.
    content: Content of the base class, such as the items of a dict.
  """
  result = Ignored()
  if isinstance(class_, type) and issubclass(class_, Ignored):
    result = class_()
  if isinstance(content, dict):
    result.update(content)
  return result


def _encode(text: Any, encoding: Any) -> bytes:
  """Replaces codecs.encode, by which Python 3 stores bytes in old pickles.

  Args:
    text: The bytes, as characters of the same numbers.
    encoding: The encoding that the pickle names.

  Raises:
    InputError: If there is no text, or if the encoding is not Latin-1.
  """
  if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
    raise InputError(
      f'holds bytes as {brief(encoding)}, which is not expected.'
    )
  return text.encode('latin1')


def _ignored_class(name: str) -> type[Ignored]:
  """Makes the stand-in for a class or a function whose objects are ignored.

  Args:
    name: Module and name of the class or the function in the file.
  """
  return type('Ignored', (Ignored,), {'name': name})


def _make_set(items: Any = ()) -> set:
  """Replaces the class of sets, by which protocols below 4 store sets."""
  require_keys(items)
  return set(items)


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
# Their arguments are anything that a file gives, so the types are not declared.
_KNOWN: dict[tuple[str, str], Callable[..., Any] | _StorageType] = {
  ('collections', 'OrderedDict'): _Mapping,
  ('collections', 'Counter'): _Mapping,
  # The argument, if there is one, makes the values of missing keys.
  ('collections', 'defaultdict'): lambda *arguments: _Mapping(),
  ('builtins', 'set'): _make_set,
  ('copyreg', '_reconstructor'): _reconstruct_object,
  ('_codecs', 'encode'): _encode,
  ('numpy', 'ndarray'): StoredArray,
  ('numpy', 'dtype'): _Dtype,
  ('torch', 'Size'): tuple,
  ('torch', 'device'): _ignored_class('torch.device'),
  ('torch._utils', '_rebuild_tensor'): _rebuild_tensor,
  ('torch._utils', '_rebuild_tensor_v2'): _rebuild_tensor,
  ('torch._utils', '_rebuild_parameter'): lambda tensor, *rest: tensor,
  ('torch._utils', '_rebuild_parameter_with_state'): lambda tensor, *rest: (
    tensor
  ),
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


# Modules of Python's standard library whose classes are data that programs save
# beside weights. None of them can run code.
_DATA_MODULES = frozenset(
  '_collections_abc argparse array calendar collections copyreg dataclasses '
  'datetime decimal enum fractions functools ipaddress itertools logging '
  'numbers pathlib random re statistics string time typing uuid weakref '
  'zoneinfo'.split()
)
# Single names of other modules.
_DATA_NAMES = frozenset(
  [
    ('_io', 'BytesIO'),
    ('_io', 'StringIO'),
    ('os', 'stat_result'),
    ('platform', 'uname_result'),
    ('types', 'MappingProxyType'),
    ('types', 'SimpleNamespace'),
  ]
)
# A file may name this many classes that are ignored. Without a limit, a file
# could fill the memory with classes.
_MAX_IGNORED = 1000
# Characters of the name of a class, or of its module.
_MAX_NAME = 1000


def _is_sign_of_attack(module: str, name: str) -> bool:
  """Tells whether no harmless file would have a name.

  Names of other programs are harmless here, because nothing of them is
  imported. The standard library has the functions by which files attack: eval,
  os.system, subprocess.Popen, operator.methodcaller and more. So names of its
  modules are suspicious, except those of data.

  Args:
    module: The module of the class or the function, as Python 3 names it.
    name: Its name in the module.
  """
  top = module.partition('.')[0]
  if top == 'builtins':
    return not isinstance(getattr(builtins, name, None), type)
  if top not in sys.stdlib_module_names:
    return False
  # The name 'os.system' in pathlib would be the function that pathlib imports.
  is_data = top in _DATA_MODULES or (module, name) in _DATA_NAMES
  return not is_data or '.' in name


class Unpickler(BoundedUnpickler):
  """Reads a pickle, with stand-ins for the names in it.

  Attributes:
    storages: The storages that the pickle refers to, by their key.
    ignored: {'module.name': its stand-in} for the names that are not in
      `_KNOWN`, in the order of the file.
  """

  # Objects of these classes take over a state. Functions and classes must not:
  # the state would change them for all later files.
  stateful = (Ignored, _Mapping, StoredArray, _Dtype)

  def __init__(self, file: io.BufferedIOBase, file_size: int):
    """Prepares to read one pickle from the current position of the file."""
    super().__init__(file, file_size)
    self.storages: dict[str, Storage] = {}
    self.ignored: dict[str, type[Ignored]] = {}

  def find_class(
    self, module: str, name: str
  ) -> Callable[..., Any] | _StorageType:
    """Returns the stand-in for a name in the pickle; `load` calls this.

    Raises:
      InputError: If the name is one by which files attack or is very long, or
        if there are too many names.
    """
    if max(len(module), len(name)) > _MAX_NAME:
      raise InputError(
        f'names a class by more than {_MAX_NAME} characters, so it is not read.'
      )
    if (module, name) in _KNOWN:
      return _KNOWN[module, name]
    # Old pickles have the names of Python 2.
    module, name = _compat_pickle.NAME_MAPPING.get(
      (module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name)
    )
    if (module, name) in _KNOWN:
      return _KNOWN[module, name]
    full_name = f'{module}.{name}'
    if _is_sign_of_attack(module, name):
      raise InputError(
        f'names {full_name}, which weights do not need and which might run '
        'code, so it is not read; save the weights alone (state_dict).'
      )
    if full_name not in self.ignored:
      if len(self.ignored) == _MAX_IGNORED:
        raise InputError(
          f'names more than {_MAX_IGNORED} classes that are no arrays, so it '
          'is not read; save the weights alone (state_dict).'
        )
      self.ignored[full_name] = _ignored_class(full_name)
    return self.ignored[full_name]

  def persistent_load(self, pid: Any) -> Any:
    """Returns a storage, which torch keeps outside of the pickle.

    `load` calls this for each reference to a storage.

    Args:
      pid: The reference: ('storage', type, key, device, number of elements,
        ...).

    Returns:
      A `Storage`. If the type of its elements is not read, such as complex
      numbers, the stand-in of the type.

    Raises:
      InputError: If the reference is not to a plain storage.
    """
    kind, type_, key, _, size, *view = pid
    if kind != 'storage' or not isinstance(key, str | int):
      raise InputError(
        f'refers to {brief(kind)} {brief(key)}, which is not a plain tensor.'
      )
    is_ignored = isinstance(type_, type) and issubclass(type_, Ignored)
    if is_ignored and not any(view):
      return type_
    if not isinstance(type_, _StorageType) or any(view):
      raise InputError('refers to a part of a storage or to another object.')
    storage = Storage(type_.dtype, str(key), size)
    return self.storages.setdefault(storage.key, storage)
