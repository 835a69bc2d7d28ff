"""The other processes of a run, and which of them a failure comes from.

If a process of a run ends or hangs, the others fail too: their arithmetic needs
its part of the batch. The reason is in the output of that process only.
"""

import os
import pathlib
import re
import socket
import threading
import time
import traceback
from typing import NamedTuple

# Errors by which JAX and the libraries of its collectives say that another
# process cannot be reached.
_LOST = re.compile(
  'gloo|nccl|heartbeat|coordination_?service|std::bad_cast', re.IGNORECASE
)

_ENDED = 'has ended'

# Seconds between two looks at the other processes.
_INTERVAL = 0.5

# Seconds in which a look finds a process whose connections are closed.
_PATIENCE = 3.0

# Seconds that a process lingers after its last line. Meanwhile the others see
# that it is not the first that has ended.
_LINGER = 3.0

# Held by the thread that ends this process, so that only one prints a line.
_ending = threading.Lock()


class Peer(NamedTuple):
  """Another process of the run."""

  number: int  # its jax.process_index()
  pid: int
  host: str
  # Tells machines and containers apart that have the same name, because a PID
  # has a meaning only inside of one.
  place: str


# The other processes of this run; empty if this process works alone.
_peers: list[Peer] = []

# Texts about the processes that were the first to end or to be stopped.
_first: list[str] = []


def own_entry() -> list[int | str]:
  """Returns PID, host and place of this process, for `remember`."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    place = boot + os.readlink('/proc/self/ns/pid')
  except OSError:
    place = ''
  return [os.getpid(), socket.gethostname(), place]


def remember(entries: list[list[int | str]], own_number: int) -> None:
  """Remembers the processes of the run, so that a failure can name one.

  Args:
    entries: The result of `own_entry` of each process.
    own_number: Number of this process.
  """
  _peers[:] = [
    Peer(number, int(pid), str(host), str(place))
    for number, (pid, host, place) in enumerate(entries)
    if number != own_number
  ]
  threading.Thread(target=_watch, name='peers', daemon=True).start()


def _watch() -> None:
  """Checks the other processes again and again until one has ended."""
  while True:
    time.sleep(_INTERVAL)
    found = [text for text in map(_state, _peers) if text]
    ended = [text for text in found if text.endswith(_ENDED)]
    # A process may be stopped for a while.
    _first[:] = ended or found
    if ended:
      return


def end_if_lost(error: BaseException | None = None) -> None:
  """Ends this process with a line and status 1 if it has lost another one.

  Args:
    error: See `describe_loss`.
  """
  loss = describe_loss(error)
  if not loss:
    return
  if not _ending.acquire(blocking=False):
    time.sleep(10 * _LINGER)  # Another thread ends this process.
  if error is not None and not _first:
    traceback.print_exception(error)  # It may be an error of this process.
  # print is not safe here: JAX may call this function in any thread.
  os.write(2, f'\nerror: {loss}\n'.encode())
  time.sleep(_LINGER)
  os._exit(1)


def describe_loss(error: BaseException | None = None) -> str:
  """Describes in one line which process of the run has ended or is stopped.

  Args:
    error: The error of this process. `None` if JAX itself says that it has lost
      another process.

  Returns:
    '' if this process works alone, or if the error is one of its own.
  """
  if not _peers:
    return ''
  reason = ''
  if error is not None:
    texts = [f'{type(e).__name__}: {e}' for e in _chain(error)]
    reason = next((text for text in texts if _LOST.search(text)), '')
    if not reason:
      return ''
  deadline = time.monotonic() + _PATIENCE
  while not _first and time.monotonic() < deadline:
    time.sleep(0.1)
  found = list(_first)
  if not found:
    place = own_entry()[2]
    others = [peer for peer in _peers if peer.place != place]
    if error is not None and not others:
      return ''  # All other processes run, so the error is of this process.
    others = others or _peers
    found = [
      'one of the other processes has ended, hangs or cannot be reached: '
      + ', '.join(f'{peer.number} on {peer.host}' for peer in others[:20])
    ]
  detail = f' ({" ".join(reason.split())[:200]})' if reason else ''
  return (
    f'{"; ".join(found)}. This process cannot go on alone{detail}. See the '
    'output of the other process, and give all processes the same command '
    'again: a training goes on from its last checkpoint.'
  )


def _chain(error: BaseException) -> list[BaseException]:
  """Returns an error and the errors that it comes from."""
  chain = [error]
  while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
    if cause in chain:
      break
    chain.append(cause)
  return chain


def _state(peer: Peer) -> str:
  """Says that a process has ended or is stopped; '' if it runs.

  The result is '' too for a process on another machine.
  """
  if not peer.place or peer.place != own_entry()[2]:
    return ''
  try:
    stat = pathlib.Path(f'/proc/{peer.pid}/stat').read_text()
  except OSError:
    stat = ''
  # The state follows the name, which is in parentheses.
  state = stat.rpartition(')')[2].split()[:1] or ['X']
  what = {'Z': _ENDED, 'X': _ENDED, 'T': 'is stopped'}.get(state[0])
  if what is None:
    return ''
  return f'process {peer.number} (PID {peer.pid} on {peer.host}) {what}'
