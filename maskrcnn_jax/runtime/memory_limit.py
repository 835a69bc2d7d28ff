"""One line at the end of a process that its memory limit has ended.

If the limit of `ulimit -v` is reached, C and C++ code ends a process in any
way: by abort(), by a segmentation fault, or by _exit without a word.
"""

import ctypes
import os
import resource
import signal

from maskrcnn_jax.errors import print_error

# Signals that the parent passes on.
_PASSED_ON = {signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}

# Signals that terminals and launchers send to all processes, so that the child
# has them already. A second SIGINT would end a training without saving.
_SENT_TO_ALL = {signal.SIGINT, signal.SIGQUIT}

# Signals by which a process ends for another reason than its memory.
_FROM_OUTSIDE = {*_PASSED_ON, *_SENT_TO_ALL, signal.SIGKILL}

# Exit status of the C library if it has no memory for a thread's variables.
_STATUS_OF_C = 127

_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h.


def lacks_memory(error: BaseException) -> bool:
  """Tells whether an error, or its cause, says that there is too little memory.

  The texts are those of XLA, of the system, and of Python's threads, whose
  stacks need memory.
  """
  if isinstance(error, MemoryError) or any(
    text in str(error)
    for text in (
      'Out of memory',
      'Cannot allocate memory',
      "can't start new thread",
      'unable to start watchdog thread',
      'std::bad_alloc',
    )
  ):
    return True
  cause = error.__cause__ or error.__context__
  return cause is not None and lacks_memory(cause)


def remark_on_limit() -> str:
  """Returns a sentence for the message of an unexpected error.

  Libraries that find no memory can fail in any way. Without a limit of `ulimit
  -v` the sentence is empty; otherwise it begins with a space.
  """
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit == resource.RLIM_INFINITY:
    return ''
  return (
    f' ulimit -v allows {limit / 2**30:.1f} GiB; if the program needs more '
    'memory, it can fail in any way.'
  )


def guard_memory_limit() -> None:
  """Goes on in a child process if the memory of this process is limited.

  The parent passes SIGTERM on, ends as the child does, and prints a line if the
  child has died. Without a limit, nothing happens. Call this function
  before any thread is started.
  """
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit == resource.RLIM_INFINITY:
    return
  watched = {*_PASSED_ON, *_SENT_TO_ALL, signal.SIGCHLD}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
  parent = os.getpid()
  child = os.fork()
  if child:
    _end_like(_wait(child, watched), limit)
  signal.pthread_sigmask(signal.SIG_SETMASK, before)
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if os.getppid() != parent:
    os._exit(1)  # The parent has been killed meanwhile.


def _wait(child: int, watched: set[signal.Signals]) -> int:
  """Waits for the end of a child and passes signals on to it.

  Args:
    child: PID of the child.
    watched: The signals to wait for, which are blocked.

  Returns:
    The exit status, or minus the number of the signal that ended the child.
  """
  while True:
    info = signal.sigwaitinfo(watched)
    if info.si_signo == signal.SIGCHLD:
      pid, status = os.waitpid(child, os.WNOHANG)
      if pid:
        return os.waitstatus_to_exitcode(status)
    elif info.si_signo in _PASSED_ON:
      os.kill(child, info.si_signo)


def _end_like(status: int, limit: int) -> None:
  """Ends this process as its child has ended; prints a line if that has died.

  Args:
    status: The result of `_wait`.
    limit: The limit of the memory, in bytes.
  """
  if -status in _FROM_OUTSIDE:
    if -status != signal.SIGKILL:
      signal.signal(-status, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.kill(os.getpid(), -status)
  if status < 0 or status == _STATUS_OF_C:
    print_error(
      'the program has died, most likely because there is not enough memory: '
      f'ulimit -v allows {limit / 2**30:.1f} GiB. Raise this limit, or lower '
      '--config.train.batch_size, --config.eval.batch_size or '
      '--config.data.num_workers.'
    )
    status = 1
  os._exit(status)
