"""The end of a process that C++ code aborts, as a line and status 1.

JAX's C++ code calls abort() when memory is missing, and when another process
of the run has died or gives no heartbeat. Python's own signal handlers do not
help, because abort() does not wait until Python runs them, and JAX's Python
callback for a missing heartbeat fails (std::bad_cast in jaxlib 0.12).
"""

import ctypes
import os
import signal


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end(_: int) -> None:
  """Handles SIGABRT: prints a line and ends the process with status 1."""
  # print is not safe here, because print itself may have been interrupted.
  os.write(
    2,
    b'\nerror: JAX has ended this process; the lines above give the reason. '
    b'std::bad_alloc means that there is not enough memory. If several '
    b'processes run together, the usual reason is that another one has died '
    b'or hangs; see its output.\n',
  )
  os._exit(1)


def set_status_of_aborts() -> None:
  """Makes this process end with a line and status 1 when C++ code aborts it."""
  library = ctypes.CDLL(None)
  library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
  library.signal.restype = ctypes.c_void_p
  library.signal(signal.SIGABRT, ctypes.cast(_end, ctypes.c_void_p))
