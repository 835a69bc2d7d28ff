"""Loads values ahead of their use, in threads or in worker processes."""

from collections.abc import Callable, Generator
import functools
import multiprocessing
from multiprocessing import shared_memory
import os
import pickle
import signal
import sys
import threading
import traceback
from typing import Any

from absl import flags
import grain
import numpy as np

from maskrcnn_jax import errors

# Bytes. Each array in shared memory starts at a multiple of this.
_ALIGNMENT = 64

# (value, text of an InputError, traceback of another error). The texts are ''
# if loading succeeded.
_Outcome = tuple[Any, str, str]


def load_ahead(
  load: Callable[[int], Any],
  count: int,
  *,
  num_threads: int,
  num_workers: int = 0,
) -> Generator[Any, None, None]:
  """Yields load(0), ..., load(count - 1) in order, loading them ahead of use.

  Args:
    load: Returns the value of a number. It is pickled for each worker process,
      and is called by several threads at the same time.
    count: Number of values. Nothing is yielded if it is 0 or negative.
    num_threads: Number of values that each process loads at the same time.
    num_workers: Number of worker processes. With 0, threads of this process
      load.

  Raises:
    InputError: The InputError that `load` raised.
    RuntimeError: If `load` raised another error, with its traceback, or if a
      worker process died.
  """
  if count <= 0:
    return
  dataset = grain.MapDataset.range(count).map(functools.partial(_try, load))
  dataset = dataset.to_iter_dataset(
    grain.ReadOptions(
      num_threads=num_threads, prefetch_buffer_size=2 * num_threads
    )
  )
  if num_workers:
    # Grain reads flags of its own, which fails in a program that parses none.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS(sys.argv[:1])
    dataset = dataset.map(_Parcel).mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=num_workers, per_worker_buffer_size=2
      ),
      worker_init_fn=_start_worker,
    )
  loaded = iter(dataset)
  try:
    for value, wrong_input, failure in loaded:  # an _Outcome
      if wrong_input:
        raise errors.InputError(wrong_input)
      if failure:
        raise RuntimeError(f'Loading failed in a worker:\n{failure}')
      yield value
  finally:
    loaded.close()


def _try(load: Callable[[int], Any], i: int) -> _Outcome:
  """Returns load(i), or the text of the error that it raised.

  An error that cannot be pickled would make the process that waits for the
  worker hang. A text can always be pickled.

  Args:
    load: Returns the value of a number.
    i: The number.

  Returns:
    (value, text of an InputError, traceback of another error). The texts are
    '' if loading succeeded.
  """
  try:
    return load(i), '', ''
  except errors.InputError as error:
    return None, str(error), ''
  except Exception:
    return None, '', traceback.format_exc()


def _start_worker(index: int, count: int) -> None:
  """Sets up a worker to ignore stop signals, and to end with the main process.

  Ctrl-C goes to the workers too, and so does SIGTERM on some clusters. A worker
  that ended at once would leave its arrays in shared memory. And the main
  process, which finishes a step before it stops, would get no more batches.

  Args:
    index: Number of the worker. Grain passes it; it is not used.
    count: Number of workers. Grain passes it; it is not used.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Waits until the parent process is gone, then ends this process."""
  parent = multiprocessing.parent_process()
  assert parent is not None  # a worker was started by its parent
  parent.join()
  os._exit(1)


class _Parcel:
  """An outcome for the main process, whose arrays go through shared memory.

  Unpickling a parcel gives the outcome, not a parcel. The receiver copies the
  arrays and frees the shared memory at once. Grain can also use shared memory,
  but frees it only after the last use. Then the memory of batches that are
  never used, or are in use when the program ends, would not be freed.
  """

  def __init__(self, outcome: _Outcome):
    """Wraps an outcome that has not been pickled yet."""
    self._outcome = outcome

  def __reduce__(
    self,
  ) -> tuple[Callable[..., _Outcome], tuple[bytes, str, list[slice]]]:
    """Moves the arrays to shared memory; `_open_parcel` will unpickle the rest.

    Returns:
      `_open_parcel` and its arguments, as `pickle` demands.
    """
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(
      self._outcome, protocol=5, buffer_callback=buffers.append
    )
    raw = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    parts, end = [], 0
    for array in raw:
      parts.append(slice(end, end + len(array)))
      end += -(-len(array) // _ALIGNMENT) * _ALIGNMENT
    if not end:
      return _open_parcel, (content, '', parts)
    try:
      memory = shared_memory.SharedMemory(create=True, size=end)
    except OSError:
      # An error that is raised here gets lost, and the reader waits for ever.
      failure = None, '', traceback.format_exc()
      return _open_parcel, (pickle.dumps(failure), '', [])
    assert memory.buf is not None  # it is None after close
    whole = np.frombuffer(memory.buf, np.uint8)
    for part, array in zip(parts, raw, strict=True):
      whole[part] = array
    del whole
    memory.close()
    return _open_parcel, (content, memory.name, parts)


def _open_parcel(content: bytes, name: str, parts: list[slice]) -> _Outcome:
  """Returns the outcome of a pickled `_Parcel`, and frees its shared memory.

  Args:
    content: The pickled outcome without the data of its arrays.
    name: Name of the shared memory that holds the data; '' if there is none.
    parts: The bytes of each array in the shared memory.
  """
  whole = np.zeros(0, np.uint8)
  if name:
    memory = shared_memory.SharedMemory(name)
    memory.unlink()
    assert memory.buf is not None  # it is None after close
    whole = np.frombuffer(memory.buf, np.uint8).copy()
    memory.close()
  return pickle.loads(content, buffers=[whole[part] for part in parts])
