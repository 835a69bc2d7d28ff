"""The results of a prediction on disk: a line of JSON for each picture.

A process appends a line to a file of its own as soon as a picture is done, so
a process that is killed loses at most the pictures it was working on. When all
pictures are done, the lines of all processes are merged.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import errno
import fcntl
import itertools
import json
import pathlib
from typing import IO, Any, NamedTuple

import numpy as np

from maskrcnn_jax.data.coco import is_outside
from maskrcnn_jax.errors import InputError, SaveError

# A line about a picture: first `file_name`, then `overlay` and `objects`, or
# `error`, which says why the picture cannot be used.
Line = dict[str, Any]

# The last line of a result that is complete.
_FINISHED = {'finished': True}

# The file of a single process, and of the merged result.
LINES_FILE = 'predictions.jsonl'

# How each line about a picture begins.
_NAME = b'{"file_name": '


class Share(NamedTuple):
  """The part of the pictures that a process predicts on."""

  number: int = 0  # number of the process, from 0
  processes: int = 1  # how many there are

  @property
  def file_name(self) -> str:
    """Name of the file that the process writes its lines to."""
    if self.processes == 1:
      return LINES_FILE
    return f'predictions-{self.number}-of-{self.processes}.jsonl'


# The share of a process that works alone.
ALL_PICTURES = Share()


class Places(NamedTuple):
  """Where the lines about pictures are."""

  files: list[pathlib.Path]
  # For each picture, an index into `files`; -1 if it has no line yet.
  file_of: np.ndarray
  offset_of: np.ndarray  # for each picture, where its line begins, in bytes
  # (index into `files`, offset) of the pictures that are not in the list.
  others: list[tuple[int, int]]

  @property
  def is_done(self) -> np.ndarray:
    """Whether there is a line about each picture."""
    return self.file_of >= 0


def start(directory: pathlib.Path, fingerprint: dict[str, Any]) -> bool:
  """Prepares a folder for a prediction.

  A result that is complete is removed with its overlay pictures, and so is the
  predictions.json of an earlier version. A result that is not complete stays.

  Args:
    directory: The folder of the result.
    fingerprint: Facts about the prediction, {name: value}, of types that JSON
      can store. Only a prediction with the same facts is continued.

  Returns:
    Whether there is a result that is continued.

  Raises:
    InputError: If there is an unfinished result with another fingerprint.
  """
  with _locked(directory):
    if _is_finished(directory / LINES_FILE):
      _remove(directory)
    files = _files(directory)
    for path in files:
      found = _fingerprint_of(path)
      if found is None:  # The process was killed in its first moment.
        continue
      # JSON has no tuples, so both are compared as JSON stores them.
      wanted = json.loads(json.dumps(fingerprint))
      if found != wanted:
        raise InputError(
          f'{path} is an unfinished result of another prediction: '
          f'{_difference(found, wanted)}. Give --output=DIR for this one, '
          f'finish the other with its own command, or remove {directory}.'
        )
    if not files:
      (directory / 'predictions.json').unlink(missing_ok=True)
    return bool(files)


@contextlib.contextmanager
def open_lines(
  directory: pathlib.Path, share: Share, fingerprint: dict[str, Any]
) -> Iterator[IO[bytes]]:
  """Context manager that opens the file of a process to append lines to it.

  A line that was cut off is removed from the end of the file.

  Args:
    directory: The folder of the result.
    share: The share of this process.
    fingerprint: As for `start`.

  Raises:
    InputError: If another process has the file open.
  """
  path = directory / share.file_name
  with open(path, 'ab+', buffering=0) as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(
        f'Another process is writing to {path}. Wait for it, or give '
        '--output=DIR.'
      ) from error
    except OSError as error:
      if not _has_no_locks(error):
        raise
    end = _end_of_lines(path)
    file.truncate(end)
    if not end:
      append(file, {'fingerprint': fingerprint})
    yield file


def append(file: IO[bytes], line: Line) -> None:
  """Writes a line to the end of a file.

  Args:
    file: The unbuffered file of `open_lines`.
    line: The line.

  Raises:
    SaveError: If it cannot be written, for example on a full disk.
  """
  data = memoryview(json.dumps(line).encode() + b'\n')
  with saving():
    while data:
      data = data[file.write(data) :]


@contextlib.contextmanager
def saving() -> Iterator[None]:
  """Context manager that turns a failed write into a SaveError of one line."""
  try:
    yield
  except OSError as error:
    advice = (
      'Make room and give' if error.errno == errno.ENOSPC else 'Then give'
    )
    raise SaveError(
      f'C10: a result cannot be written: {error.strerror or error}'
      f'{f" ({error.filename})" if error.filename else ""}. {advice} the same '
      'command again: it goes on after the pictures that are done.'
    ) from error


def find_lines(directory: pathlib.Path, names: Sequence[str]) -> Places:
  """Finds the lines about pictures in the files of all processes.

  Args:
    directory: The folder of the result.
    names: The `file_name` of each picture.

  Returns:
    The places. Of several lines about a picture, the first counts.
  """
  row_of = {name: row for row, name in enumerate(names)}
  files = _files(directory)
  file_of = np.full(len(names), -1, np.int32)
  offset_of = np.zeros(len(names), np.int64)
  others: dict[str, tuple[int, int]] = {}
  for number, path in enumerate(files):
    for offset, name in _file_names(path):
      row = row_of.get(name)
      if row is None:
        others.setdefault(name, (number, offset))
      elif file_of[row] < 0:
        file_of[row], offset_of[row] = number, offset
  return Places(files, file_of, offset_of, list(others.values()))


def read_lines(places: Places, rows: Iterable[int]) -> Iterator[Line]:
  """Yields the lines about pictures.

  Args:
    places: Where the lines are.
    rows: The pictures, which all have a line.
  """
  chosen = (
    (int(places.file_of[row]), int(places.offset_of[row])) for row in rows
  )
  yield from _read_at(places, chosen)


def merge(
  directory: pathlib.Path, names: Sequence[str], fingerprint: dict[str, Any]
) -> bool:
  """Makes predictions.json of the lines of all processes, if all are there.

  The lines are also merged into a single file, predictions.jsonl, in the order
  of the pictures. Both files appear when they are complete.

  Args:
    directory: The folder of the result.
    names: The `file_name` of each picture.
    fingerprint: As for `start`.

  Returns:
    Whether all pictures are done. If not, nothing is written.

  Raises:
    SaveError: If a file cannot be written, for example on a full disk.
  """
  with _locked(directory):
    places = find_lines(directory, names)
    if not places.is_done.all():
      return False
    if not _is_finished(directory / LINES_FILE):
      with saving():
        _write_merged(directory, places, fingerprint)
  return True


def finished_lines(directory: pathlib.Path) -> Iterator[Line]:
  """Yields the lines about the pictures of a merged result, in their order."""
  for line in _lines(directory / LINES_FILE):
    if 'file_name' in line:
      yield line


def _write_merged(
  directory: pathlib.Path, places: Places, fingerprint: dict[str, Any]
) -> None:
  """Writes both files of the merged result, and removes those of processes.

  If the process is killed in between, the result counts as unfinished, or as
  finished with superfluous files.
  """
  found = [directory / 'predictions.json', directory / LINES_FILE]
  partial = [path.with_name(f'{path.name}.partial') for path in found]
  rows = zip(places.file_of.tolist(), places.offset_of.tolist(), strict=True)
  try:
    with (
      open(partial[0], 'w', encoding='utf-8') as coco,
      open(partial[1], 'w', encoding='utf-8') as lines,
    ):
      _write(lines, {'fingerprint': fingerprint})
      separator = '['
      for line in _read_at(places, itertools.chain(rows, places.others)):
        _write(lines, line)
        for result in line.get('objects', ()):
          coco.write(separator + json.dumps(result))
          separator = ', '
      coco.write('[]' if separator == '[' else ']')
      _write(lines, _FINISHED)
    for old, new in zip(partial, found, strict=True):
      old.replace(new)
  finally:
    for path in partial:
      path.unlink(missing_ok=True)
  for path in places.files:
    if path.name != LINES_FILE:
      path.unlink()


def _write(file: IO[str], line: Line) -> None:
  """Writes a line of JSON to a text file."""
  file.write(json.dumps(line) + '\n')


def _read_at(places: Places, at: Iterable[tuple[int, int]]) -> Iterator[Line]:
  """Yields the lines at (index of the file, offset in bytes)."""
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(open(path, 'rb')) for path in places.files]
    for number, offset in at:
      files[number].seek(offset)
      yield json.loads(files[number].readline())


def _file_names(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields (offset in bytes, `file_name`) of the lines about pictures.

  The rest of a line is not parsed, because masks make it long. A line that was
  cut off, or is not JSON after a power failure, is left out: its picture counts
  as not done.
  """
  decoder = json.JSONDecoder()
  with open(path, 'rb') as file:
    offset = 0
    for data in file:
      if data.startswith(_NAME) and data.endswith(b'}\n'):
        name, _ = decoder.raw_decode(data.decode('ascii'), len(_NAME))
        yield offset, name
      offset += len(data)


def _lines(path: pathlib.Path) -> Iterator[Line]:
  """Yields the lines of a file that are whole."""
  with open(path, 'rb') as file:
    for data in file:
      with contextlib.suppress(ValueError):
        line = json.loads(data)
        if isinstance(line, dict) and data.endswith(b'\n'):
          yield line


def _end_of_lines(path: pathlib.Path) -> int:
  """Returns the number of bytes up to the end of the last whole line."""
  end = path.stat().st_size
  with open(path, 'rb') as file:
    while end:
      begin = max(0, end - (1 << 16))
      file.seek(begin)
      last = file.read(end - begin).rfind(b'\n')
      if last >= 0:
        return begin + last + 1
      end = begin
  return 0


def _files(directory: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files with lines of a folder."""
  files = sorted(directory.glob('predictions-*-of-*.jsonl'))
  return [path for path in [directory / LINES_FILE] if path.exists()] + files


def _fingerprint_of(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the fingerprint of a file; `None` if it has no line yet."""
  first = next(_lines(path), None)
  return None if first is None else first.get('fingerprint', {})


def _is_finished(path: pathlib.Path) -> bool:
  """Tells whether a file holds a complete result; it may be missing."""
  if not path.exists():
    return False
  last = json.dumps(_FINISHED).encode() + b'\n'
  with open(path, 'rb') as file:
    file.seek(max(0, path.stat().st_size - len(last)))
    return file.read() == last


def _remove(directory: pathlib.Path) -> None:
  """Removes a complete result: the overlay pictures that its lines name, too.

  The file that says that the result is complete goes last, so that a process
  that is killed meanwhile leaves a result that the next one removes.
  """
  folders = set()
  for line in finished_lines(directory):
    # A file that somebody has edited must not lead out of the folder.
    if line.get('overlay') and not is_outside(line['overlay']):
      overlay = directory / line['overlay']
      overlay.unlink(missing_ok=True)
      folders.update(overlay.relative_to(directory).parents)
  for folder in sorted(folders, key=lambda f: -len(f.parts)):
    if folder.parts:
      with contextlib.suppress(OSError):  # It holds something else.
        (directory / folder).rmdir()
  (directory / 'predictions.json').unlink(missing_ok=True)
  for path in reversed(_files(directory)):
    path.unlink()


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
  """Names the first facts in which two fingerprints differ."""
  names = [
    name for name in found | wanted if found.get(name) != wanted.get(name)
  ]
  facts = [
    f'{name} was {_short(found.get(name))}, now {_short(wanted.get(name))}'
    for name in names[:3]
  ]
  return '; '.join(facts) + ('; and more' if len(names) > 3 else '')


def _short(value: Any) -> str:
  """Returns a value as a short text."""
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) < 100 else f'{text[:97]}...'


@contextlib.contextmanager
def _locked(directory: pathlib.Path) -> Iterator[None]:
  """Context manager that lets one process at a time start or merge."""
  with open(directory / '.lock', 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
      if not _has_no_locks(error):
        raise
    yield


def _has_no_locks(error: OSError) -> bool:
  """Tells whether an error means that the file system knows no locks."""
  return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
