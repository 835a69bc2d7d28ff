"""The end of a process by JAX's C++ code, as one line and status 1.

C++ code ends the process when memory is missing, and JAX does when another
process of the run has died or gives no heartbeat. It calls abort(), or throws
an exception that nothing catches. Python's own signal handlers do not help,
because abort() does not wait until Python runs them.
"""

from collections.abc import Iterator
import contextlib
import ctypes
import os
import signal

from maskrcnn_jax.runtime import peers

# Made before, because there may be no memory for a new text.
_NO_MEMORY = (
  b'\nerror: there is not enough memory (std::bad_alloc). Lower '
  b'--config.train.batch_size, --config.eval.batch_size or '
  b'--config.data.num_workers, or give the program more memory.\n'
)
_ABORTED = (
  b'\nerror: JAX has ended this process; the lines above give the reason. '
  b'std::bad_alloc means that there is not enough memory. If several '
  b'processes run together, the usual reason is that another one has died '
  b'or hangs; see its output.\n'
)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end_after_abort(_: int) -> None:
  """Handles SIGABRT: prints a line and ends the process with status 1."""
  # print is not safe here, because print itself may have been interrupted.
  os.write(2, _ABORTED)
  os._exit(1)


@ctypes.CFUNCTYPE(None)
def _end_after_exception() -> None:
  """Ends the process with a line after a C++ exception that nothing catches.

  An exception of a type that has no line here is left to the C++ library, which
  prints it and aborts the process.
  """
  name = _exception_name()
  if name == b'St9bad_alloc':
    os.write(2, _NO_MEMORY)
    os._exit(1)
  # JAX calls back when it has lost a process, but it cannot convert the
  # argument to a Python object.
  if name == b'St8bad_cast':
    peers.end_if_lost()
  if _before:
    ctypes.CFUNCTYPE(None)(_before[0])()


# The address of the C++ library's own function for such exceptions.
_before: list[int] = []


def _exception_name() -> bytes:
  """Returns the C++ name of the type of the current exception; b'' if none."""
  library = ctypes.CDLL('libstdc++.so.6')
  find = library.__cxa_current_exception_type
  find.restype = ctypes.c_void_p
  type_info = find()
  if not type_info:
    return b''
  # A std::type_info is the address of its methods and that of its name.
  at = type_info + ctypes.sizeof(ctypes.c_void_p)
  return ctypes.c_char_p.from_address(at).value or b''


def set_status_of_aborts() -> None:
  """Makes this process end with a line and status 1 if C++ code ends it."""
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  library.signal.restype = ctypes.c_void_p
  library.signal(signal.SIGABRT, ctypes.cast(_end_after_abort, ctypes.c_void_p))
  if _before:
    return
  try:
    # std::set_terminate of GCC's library, which jaxlib uses.
    set_terminate = ctypes.CDLL('libstdc++.so.6')._ZSt13set_terminatePFvvE
  except (OSError, AttributeError):
    return
  set_terminate.argtypes = (ctypes.c_void_p,)
  set_terminate.restype = ctypes.c_void_p
  _before.append(
    set_terminate(ctypes.cast(_end_after_exception, ctypes.c_void_p))
  )


@contextlib.contextmanager
def without_stacks() -> Iterator[None]:
  """Context manager for `jax.distributed.initialize`: keeps C++ stacks away.

  By default, JAX ends the process with a stack of its own code when it has lost
  another process. If it is given a callback, it throws an exception instead.
  """
  from jax._src import distributed

  library = distributed._jax
  make_client = library.get_distributed_runtime_client
  if 'missed_heartbeat_callback' not in (make_client.__doc__ or ''):
    yield
    return

  def make_with_callback(*args: object, **options: object) -> object:
    """Makes JAX's client, which watches the other processes."""
    return make_client(
      *args, missed_heartbeat_callback=lambda status: None, **options
    )

  library.get_distributed_runtime_client = make_with_callback
  try:
    yield
  finally:
    library.get_distributed_runtime_client = make_client
