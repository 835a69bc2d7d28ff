"""Large pages of memory for the arrays of a program, which save time on a CPU.

On most systems, memory is divided into pages of 4 KiB unless a program asks for
huge pages, which have 2 MiB. A step uses gigabytes, so that finding its pages
takes a good part of its time. The C library asks for huge pages if the
environment variable GLIBC_TUNABLES says so when the process starts.

Sources: section "Memory Allocation Tunables" of the manual of the GNU C library
(glibc.malloc.hugetlb); admin-guide/mm/transhuge.rst of the Linux kernel.
"""

from collections.abc import Mapping
import contextlib
import os
import pathlib
import sys

_VARIABLE = 'GLIBC_TUNABLES'
_TUNABLE = 'glibc.malloc.hugetlb'

# The first version of the GNU C library that knows the tunable.
_FIRST_VERSION = (2, 35)

# The option `-X` of Python that marks a process that has been started again.
_MARK = 'huge_pages'

# The words always, madvise and never; the one in brackets holds.
_POLICY = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def with_huge_pages(environment: Mapping[str, str]) -> dict[str, str]:
  """Returns the environment of a program that shall have huge pages.

  Args:
    environment: The environment of the program otherwise.
  """
  tunables = [environment.get(_VARIABLE), f'{_TUNABLE}=1']
  return {**environment, _VARIABLE: ':'.join(filter(None, tunables))}


def restart_with_huge_pages() -> None:
  """Starts this program again in the same process, with huge pages.

  The command line and the environment stay the same, and so do the number of
  the process and its open files. Nothing happens if huge pages would not come
  by this means, if GLIBC_TUNABLES already says whether the program shall have
  them, or if this program runs inside another one, such as a notebook. The
  processes that the program starts later get the user's own value of
  GLIBC_TUNABLES.

  This must be called before the program does anything else.
  """
  tunables = os.environ.get(_VARIABLE, '')
  if _MARK in sys._xoptions:
    rest = tunables.removesuffix(f'{_TUNABLE}=1').removesuffix(':')
    os.environ.pop(_VARIABLE, None)
    if rest:
      os.environ[_VARIABLE] = rest
    return
  if _TUNABLE in tunables or not _is_own_process() or not _would_help():
    return
  arguments = [sys.executable, '-X', _MARK, *sys.orig_argv[1:]]
  # If the process cannot be started again, it goes on without huge pages.
  with contextlib.suppress(OSError):
    os.execve(sys.executable, arguments, with_huge_pages(os.environ))


def _is_own_process() -> bool:
  """Tells whether the command line of this process is that of this package.

  It is `python -m maskrcnn_jax.TOOL` or the script `maskrcnn`.
  """
  script = pathlib.Path(*sys.orig_argv[1:2]).name
  modules = {
    argument.removeprefix('-m').partition('.')[0]
    for argument in sys.orig_argv[1:]
  }
  return bool(sys.executable) and (
    script == 'maskrcnn' or 'maskrcnn_jax' in modules
  )


def _would_help() -> bool:
  """Tells whether programs get huge pages only if they ask for them."""
  try:
    library = os.confstr('CS_GNU_LIBC_VERSION') or ''
    policy = _POLICY.read_text()
  except (AttributeError, OSError, ValueError):
    return False  # This is not Linux, or it has another C library.
  name, _, number = library.partition(' ')
  if name != 'glibc':
    return False
  version = tuple(map(int, number.split('.')[:2]))
  return version >= _FIRST_VERSION and '[madvise]' in policy
