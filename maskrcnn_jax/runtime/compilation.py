"""Announces compilations, with the seconds that earlier ones have taken.

The seconds are kept in a file in the folder of JAX's compilation cache, so that
a record and the compiled program that it is about are removed together.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import json
import os
import pathlib
import tempfile
import time
from typing import Any, NamedTuple
import zlib

import jax

from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.console import announce
from maskrcnn_jax.runtime.status_line import waiting

# Name of the file in the folder of the compilation cache.
FILE_NAME = 'compilation_times.json'

# Number of records that the file keeps.
_MAX_RECORDS = 500

# JAX counts these events: a program was found in the compilation cache, or it
# was compiled and added to it.
_FOUND = '/jax/compilation_cache/cache_hits'
_ADDED = '/jax/compilation_cache/cache_misses'

# {event: how often it has happened in this process}.
_events: dict[str, int] = {}

# The records of this process, used if there is no folder for the file.
_records: list['Record'] = []


class Record(NamedTuple):
  """How long a program has once taken to compile, or to load from the cache."""

  kind: str  # name and checksum of programs that take about equally long
  size: str  # size of the images, such as '800x1344'
  program: str  # checksum of all that the program depends on
  seconds: float
  is_loaded: bool  # whether it was found in the compilation cache
  is_kept: bool  # whether it is in the compilation cache now


@contextlib.contextmanager
def compiling(
  name: str, size: tuple[int, int], *, kind: Any, program: Any
) -> Iterator[None]:
  """Context manager that announces a compilation, and measures its time.

  Process 0 logs a line before the compilation, for example 'Compiling the
  training step for 800x1344 (about 20 s)'. The number is the time of the last
  compilation of this program on this machine, if there was one: for this size
  of images, or else for another size. If the program is in the compilation
  cache, the line says that it is loaded and how long that took before.

  Args:
    name: The program, such as 'training step'.
    size: (height, width) of the padded images, in pixels.
    kind: Facts that decide how long the compilation takes, such as the layers
      of the model; a value that JSON can store.
    program: All facts that decide the compiled program, as far as the recipe
      and the sizes of the arrays do; a value that JSON can store.
  """
  if not cluster.is_main():
    yield
    return
  _count_events()
  place = [jax.default_backend(), jax.devices()[0].device_kind]
  wanted = Record(
    f'{name} {_checksum([kind, place, jax.device_count()])}',
    f'{size[0]}x{size[1]}',
    _checksum(
      [name, size, program, place, jax.device_count(), _version_of_program()]
    ),
    0.0,
    False,
    False,
  )
  text = announcement(name, wanted, _read_records())
  announce(text)
  before = dict(_events)
  started = time.monotonic()
  with waiting(text):
    yield
  found, added = (
    _events.get(event, 0) - before.get(event, 0) for event in (_FOUND, _ADDED)
  )
  is_loaded = found > 0 and added == 0
  record = wanted._replace(
    seconds=time.monotonic() - started,
    is_loaded=is_loaded,
    is_kept=is_loaded or added > 0,
  )
  _write_record(record)


def announcement(name: str, wanted: Record, records: Sequence[Record]) -> str:
  """Returns the line that announces a compilation.

  Args:
    name: The program, such as 'training step'.
    wanted: The program that will be compiled; its last three fields are not
      used.
    records: Earlier compilations on this machine, the newest last.
  """
  newest_first = list(reversed(records))
  same = [r for r in newest_first if r.program == wanted.program]
  is_kept = bool(same) and same[0].is_kept
  similar = [
    r for r in newest_first if r.kind == wanted.kind and r.is_loaded == is_kept
  ]
  # The sort is stable: among records of the same size, the newest is first.
  similar.sort(key=lambda r: r.size != wanted.size)
  text = (
    f'Loading the {name} for {wanted.size}, which was compiled before'
    if is_kept
    else f'Compiling the {name} for {wanted.size}'
  )
  return f'{text} (about {_length(similar[0].seconds)})' if similar else text


def _length(seconds: float) -> str:
  """Returns a time in seconds, or in minutes if it is long."""
  if seconds < 90:
    return f'{max(round(seconds), 1)} s'
  return f'{round(seconds / 60)} min'


@functools.cache
def _count_events() -> None:
  """Begins to count the events of JAX's compilation cache; once a process."""

  def count(event: str, **_: object) -> None:
    """Counts an event; JAX calls this function."""
    if event in (_FOUND, _ADDED):
      _events[event] = _events.get(event, 0) + 1

  jax.monitoring.register_event_listener(count)


def _checksum(facts: Any) -> str:
  """Returns a checksum of a value that JSON can store."""
  return f'{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}'


@functools.cache
def _version_of_program() -> list[str]:
  """Returns facts, besides recipe and data, on which compiled programs depend.

  They are the version of JAX, the flags of the compiler, and a checksum of the
  source files of this package, because programs are traced from them.
  """
  package = pathlib.Path(__file__).parents[1]
  folders = (package, package.parent / 'pallas_kernels')
  checksum = 0
  for folder in folders:
    for file in sorted(folder.rglob('*.py')):
      checksum = zlib.crc32(file.read_bytes(), checksum)
  return [jax.__version__, os.environ.get('XLA_FLAGS', ''), f'{checksum:08x}']


def _file() -> pathlib.Path | None:
  """Returns the file of the records; `None` if JAX keeps no programs."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder or not jax.config.jax_enable_compilation_cache:
    return None
  # The cache may also be in cloud storage, where no file can be kept.
  return None if '://' in folder else pathlib.Path(folder) / FILE_NAME


def _read_records() -> list[Record]:
  """Returns the records of this machine, or of this process without a file.

  If the file is missing or damaged, there are none. This is no error, because
  the file only serves an estimate.
  """
  file = _file()
  if file is None:
    return _records
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
    return [
      Record(**record | {'seconds': float(record['seconds'])})
      for record in content
    ]
  except (OSError, ValueError, TypeError, KeyError):
    return []


def _write_record(record: Record) -> None:
  """Adds a record to the file, or keeps it in this process without a file.

  If the file cannot be written, the record is lost.
  """
  file = _file()
  if file is None:
    _records.append(record)
    return
  records = [*_read_records(), record][-_MAX_RECORDS:]
  with contextlib.suppress(OSError):
    # Several programs may write at the same time, so each has its own file.
    with tempfile.NamedTemporaryFile(
      'w', dir=file.parent, suffix='.partial', delete=False, encoding='utf-8'
    ) as partial:
      json.dump([r._asdict() for r in records], partial)
    os.replace(partial.name, file)
