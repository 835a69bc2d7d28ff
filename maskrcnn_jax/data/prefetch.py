"""Loading ahead, in threads of this process or in worker processes."""

from collections.abc import Callable, Iterator
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

# Bytes; arrays in shared memory begin at multiples of it.
_ALIGNMENT = 64


def load_ahead(
  load: Callable[[int], Any],
  count: int,
  *,
  num_threads: int,
  num_workers: int = 0,
) -> Iterator[Any]:
  """Yields load(0), ..., load(count - 1), in order, loaded ahead.

  Args:
    load: Sent to each worker.
    count: How many there are; may be 0 or less.
    num_threads: Loading at a time, in each worker.
    num_workers: Processes that load; 0: this one.

  Raises:
    InputError: That `load` raised.
    RuntimeError: If it raised anything else, or a worker died.
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
    # Grain reads its own flags, which a program that parses none leaves raw.
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
    for value, wrong_input, failure in loaded:
      if wrong_input:
        raise errors.InputError(wrong_input)
      if failure:
        raise RuntimeError(f'Loading failed in a worker:\n{failure}')
      yield value
  finally:
    loaded.close()


def _try(load: Callable[[int], Any], i: int) -> tuple[Any, str, str]:
  """Returns (value, wrong input, failure), of which the last two are text.

  A worker that raises what cannot be pickled would hang its reader.
  """
  try:
    return load(i), '', ''
  except errors.InputError as error:
    return None, str(error), ''
  except Exception:
    return None, '', traceback.format_exc()


def _start_worker(index: int, count: int) -> None:
  """Has a worker end when the main process says so or ends itself.

  Ctrl-C, and SIGTERM of some clusters, go to the workers too. One that ended
  at once would leave behind what it has in shared memory, and the main process
  without the batches of the steps until it stops.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process once its parent is gone."""
  multiprocessing.parent_process().join()
  os._exit(1)


class _Parcel:
  """What `_try` returned; arrays in it are pickled into shared memory.

  Grain would do that too. But then the memory is freed by whoever used it last:
  what is loaded in vain, or in use when the program ends, is left behind. Here
  it is freed where it arrives, once it has been copied.
  """

  def __init__(self, outcome: tuple[Any, str, str]):
    self._outcome = outcome

  def __reduce__(self):
    """Sends what `_open_parcel` opens, so that there is no parcel any more."""
    buffers = []
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
      # Raised here nobody would hear of it, and the reader wait for ever.
      failure = None, '', traceback.format_exc()
      return _open_parcel, (pickle.dumps(failure), '', [])
    whole = np.frombuffer(memory.buf, np.uint8)
    for part, array in zip(parts, raw, strict=True):
      whole[part] = array
    del whole
    memory.close()
    return _open_parcel, (content, memory.name, parts)


def _open_parcel(
  content: bytes, name: str, parts: list[slice]
) -> tuple[Any, str, str]:
  """Unpickles what `_Parcel` pickled and frees its shared memory."""
  whole = np.zeros(0, np.uint8)
  if name:
    memory = shared_memory.SharedMemory(name)
    memory.unlink()
    whole = np.frombuffer(memory.buf, np.uint8).copy()
    memory.close()
  return pickle.loads(content, buffers=[whole[part] for part in parts])
