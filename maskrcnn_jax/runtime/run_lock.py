"""A lock on the workdir of a training, so that no other training writes there.

The lock is the file `WORKDIR/training.lock`, which names its holder. While the
holder runs, the kernel keeps the file locked, and it removes the lock when the
process ends in whatever way. Between machines that share a folder, such a lock
may not work, so the holder also counts heartbeats in the file.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any

from absl import logging

from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime import cluster, watchdog
from maskrcnn_jax.runtime.status_line import waiting

LOCK_FILE = 'training.lock'

# Seconds between two heartbeats, and the time after which a holder on another
# machine without a heartbeat has ended.
HEARTBEAT = 10.0
PATIENCE = 60.0

# Bytes of the file. Each record fills it, so that a new record replaces all of
# the old one in a single write.
_SIZE = 1024


@contextlib.contextmanager
def only_training(workdir: pathlib.Path) -> Iterator[None]:
  """Context manager that keeps other trainings out of a workdir.

  Process 0 holds the lock for all processes of its run; all of them must call
  this function. Evaluation and prediction need no lock.

  If a process on this machine has left the lock behind, it is taken over at
  once. If the file names another machine, this function first waits for a
  heartbeat of its holder.

  Args:
    workdir: The folder of the run; made if it does not exist.

  Raises:
    InputError: If another training holds the lock, or if the workdir cannot be
      written.
  """
  lock: _Lock | None = None
  refusal = ''
  if cluster.is_main():
    try:
      lock = _Lock(workdir)
    except InputError as error:
      refusal = str(error)
  try:
    refusal = cluster.gather(refusal)[0]
    if refusal:
      raise InputError(refusal)
    yield
  finally:
    if lock is not None:
      lock.release()


class _Lock:
  """A lock that this process holds, with the thread of its heartbeat."""

  def __init__(self, workdir: pathlib.Path):
    """Takes the lock; see `only_training`.

    Args:
      workdir: The folder of the run.

    Raises:
      InputError: If another training holds the lock, or if the workdir cannot
        be written.
    """
    self._path = workdir / LOCK_FILE
    self._record: dict[str, Any] = {
      'host': socket.gethostname(),
      'pid': os.getpid(),
      'machine': _machine(),
      'start': time.time_ns(),
      'heartbeats': 0,
    }
    self._file = -1
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      self._file = _take(self._path)
      self._write()
    except OSError as error:
      if self._file >= 0:
        os.close(self._file)
      raise InputError(
        f'C10: {workdir} cannot be written ({error.strerror}); give another '
        '--workdir.'
      ) from error
    self._released = threading.Event()
    self._thread = threading.Thread(
      target=self._beat, name='lock of the workdir', daemon=True
    )
    self._thread.start()

  def release(self) -> None:
    """Stops the heartbeat and removes the file, unless another has taken it."""
    self._released.set()
    self._thread.join()
    # A full or vanished disk must not hide the error that ended the run.
    with contextlib.suppress(OSError):
      if not self._is_lost():
        self._path.unlink(missing_ok=True)
      os.close(self._file)

  def _beat(self) -> None:
    """Counts heartbeats until the release; runs in a thread of its own.

    If another training has taken over the lock, this process ends, because two
    trainings would destroy each other's checkpoints.
    """
    while not self._released.wait(HEARTBEAT):
      # A heartbeat that fails, for example while a network disk is away, is not
      # worth the end of the run.
      with contextlib.suppress(OSError):
        if self._is_lost():
          print_error(
            f'C17: another training{_name(_read(self._path))} has taken over '
            f'{self._path.parent}, because it saw no heartbeat of this one.'
          )
          os._exit(1)
        self._record['heartbeats'] += 1
        self._write()

  def _write(self) -> None:
    """Writes the record to the file and to the disk."""
    os.pwrite(self._file, json.dumps(self._record).ljust(_SIZE).encode(), 0)
    os.fsync(self._file)

  def _is_lost(self) -> bool:
    """Tells whether the file now names another holder."""
    record = _read(self._path)
    names = ('host', 'pid', 'start')
    return record is not None and any(
      record.get(name) != self._record[name] for name in names
    )


def _take(path: pathlib.Path) -> int:
  """Locks the file, after making sure that its holder has ended.

  Args:
    path: The file; made if it does not exist.

  Returns:
    The descriptor of the locked file.

  Raises:
    InputError: If the holder has not ended.
    OSError: If the file cannot be written.
  """
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      is_locked = works = True
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        is_locked = False
      except OSError:
        works = False  # The file system has no locks.
      if is_locked and not _is_same_file(file, path):
        continue  # Its holder has just removed it.
      holder = _read(path)
      for _ in range(20):
        if is_locked or holder:
          break
        time.sleep(0.1)  # The holder has just locked the file.
        holder = _read(path)
      if not is_locked and (not holder or holder['machine'] == _machine()):
        raise _refusal(path, holder)
      if holder and (holder['machine'] != _machine() or not works):
        _wait_for_heartbeat(path, holder)
        if not is_locked:
          path.unlink(missing_ok=True)
        if not _is_same_file(file, path):
          continue
      # Another start must not name a holder that has ended.
      os.ftruncate(file, 0)
      kept, file = file, -1
      return kept
    finally:
      if file >= 0:
        os.close(file)


def _wait_for_heartbeat(path: pathlib.Path, holder: dict[str, Any]) -> None:
  """Waits until it is certain that the holder of a lock has ended.

  The clocks of the two machines are not compared.

  Args:
    path: The file.
    holder: Its record.

  Raises:
    InputError: If the holder gives a heartbeat.
  """
  logging.info(
    '%s names process %d on %s; waiting %.0f s for a heartbeat of it.',
    path,
    holder['pid'],
    holder['host'],
    PATIENCE,
  )
  end = time.monotonic() + PATIENCE
  with waiting('Waiting for a heartbeat of another training'):
    while time.monotonic() < end:
      time.sleep(0.5)
      watchdog.progress('waiting for a heartbeat')
      if not path.exists():
        return  # The holder has released the lock.
      now = _read(path)
      if now is not None and now != holder:
        raise _refusal(path, now)
  logging.warning(
    'The training of process %d on %s gives no heartbeat; its workdir %s is '
    'taken over.',
    holder['pid'],
    holder['host'],
    path.parent,
  )


def _refusal(path: pathlib.Path, holder: dict[str, Any] | None) -> InputError:
  """Returns the error of a lock that another training holds.

  Args:
    path: The file.
    holder: Its record; `None` if it could not be read.
  """
  return InputError(
    f'C17: {path.parent} is in use by another training{_name(holder)}; stop '
    'that training, wait for its end, or give another --workdir.'
  )


def _name(holder: dict[str, Any] | None) -> str:
  """Returns ' (process PID on HOST)' for a record; '' if there is none."""
  return f' (process {holder["pid"]} on {holder["host"]})' if holder else ''


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record in the file; `None` if there is none.

  It opens the file anew, because over NFS an open file may show old content.
  """
  try:
    record = json.loads(path.read_bytes())
  except (OSError, ValueError):
    return None
  needed = {'host': str, 'pid': int, 'machine': str}
  if not isinstance(record, dict) or any(
    not isinstance(record.get(name), type_) for name, type_ in needed.items()
  ):
    return None
  return record


def _is_same_file(file: int, path: pathlib.Path) -> bool:
  """Tells whether an open file still has its path."""
  try:
    return os.path.samestat(os.fstat(file), os.stat(path))
  except FileNotFoundError:
    return False


def _machine() -> str:
  """Returns a text that differs for each machine, and after each of its boots.

  Containers of a machine have the same text, because its kernel is the same and
  its locks work between them.
  """
  try:
    return pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    return socket.gethostname()
