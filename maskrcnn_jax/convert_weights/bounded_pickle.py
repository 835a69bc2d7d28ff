"""Reads pickles in a time and a memory that the size of the file bounds.

A pickle is a program of a small machine. A few hundred bytes can ask Python's
reader for gigabytes or for years: by the length of a string that is not there,
by a large number of a place in the machine's memory, or by a tuple that holds
another one twice, that one a third one twice, and so on, as the key of a
dictionary. The reader here refuses such programs. It is the reader of the
standard library in its version in Python, whose steps can be replaced one by
one.
"""

from collections.abc import Callable, Collection, Iterable, Sized
import io
import pickle
import struct
from typing import Any, ClassVar

from maskrcnn_jax.errors import InputError

# Units of work that a pickle may ask for. Reading a number is two units, a step
# and its argument. All of them take about a second and at most 200 MB. A
# checkpoint of a detector with its optimizer needs about 100,000.
MAX_WORK = 3_000_000
# Units of work of a new object that holds others. An empty set has 216 bytes.
_CONTAINER = 4
# Units of work of an object's place in the memory of the machine.
_MEMO = 2
# Units of work of a key that is a tuple or a frozen set.
_TUPLE_KEY = 1000
# Objects in a key of a dictionary, or in an item of a set.
_MAX_KEY = 100
# Bytes that any file may copy, however small it is.
_FREE_COPIES = 2**24

_ADVICE = 'so it is not read; save the weights alone (state_dict).'

_Step = Callable[[Any], None]


def brief(value: object) -> str:
  """Describes an object of a file in a few characters, for a message.

  The text of a hostile object may be endless, so only that of a number or of a
  string is used.
  """
  if isinstance(value, str | bytes):
    return repr(value[:60])
  if value is None or isinstance(value, float):
    return repr(value)
  return f'an object of the type {type(value).__name__}'


def require_keys(keys: Collection[object]) -> int:
  """Refuses keys of a dictionary, or items of a set, that take long to hash.

  The hash of a tuple that holds the same tuple many times takes years, and many
  integers of more than 64 bits have the same hash. An attacker can also compute
  tuples of equal hash, and n of them take n * n comparisons.

  Returns:
    The number of keys that are tuples or frozen sets.

  Raises:
    InputError: If a key holds many objects or a large integer, or if many keys
      are tuples.
  """
  num_tuples = 0
  for key in keys:
    _require_key(key)
    num_tuples += isinstance(key, tuple | frozenset)
  if num_tuples > MAX_WORK // _TUPLE_KEY:
    raise InputError(f'has very many keys that are tuples, {_ADVICE}')
  return num_tuples


def _require_key(key: object) -> None:
  """Refuses a key that holds many objects or a large integer."""
  items, count = [key], 0
  while items:
    item = items.pop()
    count += 1
    if isinstance(item, tuple | frozenset):
      count += len(item)
      if count <= _MAX_KEY:
        items += item
    if count > _MAX_KEY or (isinstance(item, int) and item.bit_length() > 64):
      raise InputError(f'has a key of many objects or digits, {_ADVICE}')


class _Reader:
  """The file that a pickle is read from, with a count of the work.

  Attributes:
    work: Units of work so far.
  """

  def __init__(self, file: io.BufferedIOBase, size: int):
    """Wraps a file whose length in bytes is `size`."""
    self._read = file.read
    self._readline = file.readline
    # A file that ends in a step has another message than one whose lengths are
    # wrong. The arguments of steps have up to 8 bytes.
    self._most = max(size, 8)
    self.work = 0

  def spend(self, work: int) -> None:
    """Counts units of work.

    Raises:
      InputError: If they are more than `MAX_WORK` in all.
    """
    self.work += work
    if self.work > MAX_WORK:
      raise InputError(f'has far more objects than weights need, {_ADVICE}')

  def read(self, count: int) -> bytes:
    """Reads bytes.

    Raises:
      InputError: If the count is larger than the file.
    """
    self.work += 1
    if self.work > MAX_WORK:
      self.spend(0)
    if count > self._most:
      raise InputError(
        f'is damaged: it gives a length of {count} bytes, which is more than '
        'the whole file has.'
      )
    return self._read(count)

  def readline(self) -> bytes:
    """Reads a line with its end."""
    self.spend(1)
    return self._readline()


class BoundedUnpickler(pickle._Unpickler):
  """Python's reader of pickles, with limits.

  A subclass defines `find_class` and `persistent_load`.

  Attributes:
    stateful: Classes whose objects may take over a state.
  """

  # Attributes and methods of the base class, which its type stub leaves out.
  stack: list[Any]  # the objects since the last mark
  append: Callable[[Any], None]
  dispatch: ClassVar[dict[int, _Step]]

  stateful: ClassVar[tuple[type, ...]] = ()

  def __init__(self, file: io.BufferedIOBase, file_size: int):
    """Prepares to read one pickle from the current position of a file.

    Args:
      file: The file.
      file_size: Length of the file in bytes.
    """
    self._source = _Reader(file, file_size)
    self._free_copies = file_size + _FREE_COPIES
    # Python 2 wrote the bytes of arrays as strings.
    super().__init__(self._source, encoding='latin1')

  def spend(self, work: int) -> None:
    """Counts units of work; refuses the file if there are too many."""
    self._source.spend(work)

  def check_keys(self, keys: Collection[object]) -> None:
    """Refuses keys whose hashes take long, and too many tuples as keys."""
    self.spend(_TUPLE_KEY * require_keys(keys))

  def check_call(self, arguments: object, named: object = None) -> None:
    """Counts the work of a call, which may copy its arguments.

    Args:
      arguments: The arguments.
      named: The arguments by name, if there are any.

    Raises:
      InputError: If they are no arguments, or if the file has asked for too
        many copies. A file can refer to the same long string many times.
    """
    if not isinstance(arguments, tuple | list) or named:
      raise InputError(f'has a call with strange arguments, {_ADVICE}')
    self._count_copies(arguments)

  def check_state(self) -> None:
    """Refuses a state for an object that must not take over one."""
    *_, target, state = self.stack
    if not isinstance(target, self.stateful):
      raise InputError(f'sets attributes of {brief(target)}, {_ADVICE}')
    is_table = isinstance(state, dict)
    self._count_copies(
      state.values() if is_table else state if isinstance(state, tuple) else ()
    )

  def _count_copies(self, values: Collection[object]) -> None:
    """Counts the work of copying some objects, each without its items."""
    self.spend(_CONTAINER + len(values))
    for value in values:
      if isinstance(value, str | bytes | bytearray):
        self._free_copies -= len(value)
      elif isinstance(value, Sized):
        self.spend(len(value))
    if self._free_copies < 0:
      raise InputError(f'uses the same data again and again, {_ADVICE}')

  def load_bytearray(self) -> None:
    """Reads an array of bytes, whose length comes before them."""
    (count,) = struct.unpack('<Q', self._source.read(8))
    self.append(bytearray(self._source.read(count)))

  def skip_frame(self) -> None:
    """Skips the length of a frame, by which other readers read ahead."""
    self._source.read(8)

  def refuse_unknown(self) -> None:
    """Refuses a byte that is no step."""
    raise pickle.UnpicklingError('it is no pickle')

  def refuse_extension(self) -> None:
    """Refuses a number by which a program has registered a class."""
    raise InputError(f'has a class as a number (extension), {_ADVICE}')


def _after(check: _Step, codes: Iterable[bytes]) -> dict[int, _Step]:
  """Returns steps of the machine that run a check before they do their work.

  Args:
    check: The check, which gets the reader. It may raise an InputError.
    codes: The steps, as they appear in a pickle.
  """

  def checked(step: _Step) -> _Step:
    """Returns a step that runs the check first."""

    def run(reader: Any) -> None:
      """Runs the check and the step."""
      check(reader)
      step(reader)

    return run

  return {
    code[0]: checked(pickle._Unpickler.dispatch[code[0]]) for code in codes
  }


BoundedUnpickler.dispatch = {
  **dict.fromkeys(range(256), BoundedUnpickler.refuse_unknown),
  **pickle._Unpickler.dispatch,
  **_after(
    lambda reader: reader.spend(_CONTAINER),
    [
      pickle.EMPTY_DICT,
      pickle.EMPTY_LIST,
      pickle.EMPTY_SET,
      pickle.LIST,
      pickle.TUPLE,
      pickle.TUPLE1,
      pickle.TUPLE2,
      pickle.TUPLE3,
    ],
  ),
  **_after(
    lambda reader: reader.spend(_MEMO),
    [pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE],
  ),
  **_after(
    lambda reader: reader.check_keys(reader.stack[-2:-1]), [pickle.SETITEM]
  ),
  **_after(
    lambda reader: reader.check_keys(reader.stack[::2]),
    [pickle.SETITEMS, pickle.DICT],
  ),
  **_after(
    lambda reader: reader.check_keys(reader.stack),
    [pickle.ADDITEMS, pickle.FROZENSET],
  ),
  **_after(
    lambda reader: reader.check_call(reader.stack[-1]),
    [pickle.REDUCE, pickle.NEWOBJ],
  ),
  **_after(
    lambda reader: reader.check_call(*reader.stack[-2:]), [pickle.NEWOBJ_EX]
  ),
  **_after(
    lambda reader: reader.check_call(reader.stack), [pickle.INST, pickle.OBJ]
  ),
  **_after(BoundedUnpickler.check_state, [pickle.BUILD]),
  pickle.BYTEARRAY8[0]: BoundedUnpickler.load_bytearray,
  pickle.FRAME[0]: BoundedUnpickler.skip_frame,
  pickle.EXT1[0]: BoundedUnpickler.refuse_extension,
  pickle.EXT2[0]: BoundedUnpickler.refuse_extension,
  pickle.EXT4[0]: BoundedUnpickler.refuse_extension,
}
