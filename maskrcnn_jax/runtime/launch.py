"""The start of several processes that train or evaluate together."""

from collections.abc import Mapping, Sequence
import errno
import os
import pathlib
import re
import socket
import sys
import threading
from typing import NamedTuple, NoReturn

from absl import logging
import jax

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import cluster, peers
from maskrcnn_jax.runtime.aborts import set_status_of_aborts, without_stacks

# The launchers that JAX can ask for the processes of a run. A launcher is
# recognised by these environment variables, which it sets for each process.
# Source: jax `_src/clusters/`.
LAUNCHERS = {
  'SLURM': (
    'SLURM_JOB_ID',
    'SLURM_STEP_NODELIST',
    'SLURM_NTASKS',
    'SLURM_PROCID',
    'SLURM_LOCALID',
  ),
  'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
  'Kubernetes': ('KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'),
}


class Launch(NamedTuple):
  """How this process is to find the other processes of its run.

  If one of the first four fields is `None`, JAX finds it out from the launcher,
  which is the program that has started the processes, such as SLURM.
  """

  coordinator: str | None  # host:port of process 0
  num_processes: int | None
  process_id: int | None  # number of this process, counted from 0
  local_device_ids: tuple[int, ...] | None  # GPUs that this process uses
  launcher: str | None  # name of the launcher; None if none was recognised
  num_hosts: int = 1  # number of machines; 1 if the launcher does not say
  # Whether this machine runs process 0; True if the launcher does not say.
  on_first_host: bool = True


def plan_launch(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  environment: Mapping[str, str],
  num_gpus: int,
) -> Launch | None:
  """Finds out how this process is to join the others of its run.

  Args:
    coordinator: The user's --coordinator, host:port of process 0; `None` if
      not given.
    num_processes: The user's --num_processes; `None` if not given. 1 makes
      this process work alone, even under a launcher.
    process_id: The user's --process_id, counted from 0; `None` if not given.
    environment: Environment variables of this process, which show whether a
      launcher started it.
    num_gpus: Number of GPUs that this process can see.

  Returns:
    The options for `start_processes`; `None` if this process works alone.

  Raises:
    InputError: If the user's options are incomplete or wrong, or if several
      processes share this machine and it has several GPUs, but fewer than
      processes.
  """
  if num_processes == 1:
    return None
  launcher = next(
    (
      name
      for name, needed in LAUNCHERS.items()
      if all(variable in environment for variable in needed)
    ),
    None,
  )
  given = {
    '--coordinator': coordinator,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if launcher is None:
      return None
  elif missing and launcher is None:
    raise InputError(
      f'{" and ".join(missing)} missing: several processes need '
      '--coordinator=HOST:PORT (of process 0), --num_processes=N and '
      '--process_id=0 to N-1, unless SLURM, Open MPI or Kubernetes starts '
      'them.'
    )
  if coordinator is not None and not re.fullmatch(r'.+:\d+', coordinator):
    raise InputError(
      f'--coordinator={coordinator}: give HOST:PORT, where HOST is a name or '
      'an address by which all machines can reach the machine of process 0.'
    )
  if num_processes is not None and num_processes < 1:
    raise InputError(f'--num_processes={num_processes} must be at least 1.')
  if process_id is not None:
    last = None if num_processes is None else num_processes - 1
    if process_id < 0 or (last is not None and process_id > last):
      allowed = 'at least 0' if last is None else f'from 0 to {last}'
      raise InputError(f'--process_id={process_id} must be {allowed}.')

  num_hosts, on_first_host = 1, True
  processes_here = rank_here = None
  if launcher == 'SLURM':
    if num_processes is None and environment['SLURM_NTASKS'] == '1':
      return None
    num_hosts = int(environment.get('SLURM_STEP_NUM_NODES', 1))
    processes_here = _slurm_tasks_here(environment)
    rank_here = int(environment['SLURM_LOCALID'])
    on_first_host = environment.get('SLURM_NODEID', '0') == '0'
  elif launcher == 'Open MPI':
    size = int(environment['OMPI_COMM_WORLD_SIZE'])
    if num_processes is None and size == 1:
      return None
    if 'OMPI_COMM_WORLD_LOCAL_SIZE' in environment:
      processes_here = int(environment['OMPI_COMM_WORLD_LOCAL_SIZE'])
      rank_here = int(environment['OMPI_COMM_WORLD_LOCAL_RANK'])
      num_hosts = -(-size // processes_here)
      on_first_host = rank_here == int(environment['OMPI_COMM_WORLD_RANK'])
  return Launch(
    coordinator,
    num_processes,
    process_id,
    _share_of_gpus(num_gpus, processes_here, rank_here),
    launcher,
    num_hosts,
    on_first_host,
  )


def start_processes(launch: Launch, *, timeout: int) -> None:
  """Connects this process with the other processes of its run.

  It must be called before any other use of JAX. If some processes do not appear
  in time, it prints an error and ends this process with status 1.

  Args:
    launch: The result of `plan_launch`.
    timeout: Seconds to wait for the other processes.

  Raises:
    InputError: If JAX cannot connect the processes, if they have different
      numbers of devices, if the port of the coordinator is in use, or if
      process 0 runs on another machine, but the coordinator is a loopback
      address, which means this machine.
  """
  if launch.coordinator is not None and launch.process_id == 0:
    _check_port(launch.coordinator)
  is_local = False
  if launch.coordinator is not None and is_loopback(launch.coordinator):
    is_local = True
    # On the machine of process 0 this is no error: Debian gives a machine's own
    # name the address 127.0.1.1.
    if not launch.on_first_host:
      raise InputError(
        f'{launch.coordinator} is this machine itself '
        f'({", ".join(_addresses(launch.coordinator))}), but process 0 is on '
        f'another: {launch.launcher} runs processes on {launch.num_hosts} '
        'machines. Give --coordinator=HOST:PORT with an address of process 0 '
        'that all can reach, and see whether /etc/hosts gives its name as '
        '127.0.0.1 or 127.0.1.1.'
      )
    logging.warning(
      'The coordinator %s is this machine itself; processes on other '
      'machines cannot reach it.',
      launch.coordinator,
    )
  set_status_of_aborts()
  # JAX would end the process too, but with a stack trace of its own code. The
  # timer comes first and prints a message for the user.
  timer = threading.Timer(timeout, _give_up, [launch, timeout, is_local])
  timer.daemon = True
  timer.start()
  is_complete = None not in launch[:3]
  # JAX's service for SIGTERM would take the signal away from this program.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    with without_stacks():
      jax.distributed.initialize(
        launch.coordinator,
        launch.num_processes,
        launch.process_id,
        local_device_ids=launch.local_device_ids,
        cluster_detection_method='deactivate' if is_complete else None,
        initialization_timeout=timeout + 60,
      )
  except (RuntimeError, ValueError) as error:
    raise InputError(
      f'JAX could not join the processes: {str(error).splitlines()[0]} '
      'Give --coordinator, --num_processes and --process_id, or '
      '--num_processes=1 for this process alone.'
    ) from error
  finally:
    timer.cancel()
  counts = {
    len(devices) for devices in _devices_by_process(jax.devices()).values()
  }
  if len(counts) > 1:
    raise InputError(
      f'The processes have {sorted(counts)} devices; each must have the '
      'same number.'
    )
  peers.remember(cluster.gather(peers.own_entry()), jax.process_index())


def is_loopback(coordinator: str) -> bool:
  """Tells whether a HOST:PORT is an address of this machine only.

  These are the addresses 127.x and ::1. The result is False for an unknown
  host.
  """
  addresses = _addresses(coordinator)
  return bool(addresses) and all(
    address.startswith('127.') or address == '::1' for address in addresses
  )


def visible_gpus() -> int:
  """Counts the NVIDIA GPUs that this process can see, without starting JAX.

  They are the entries of $CUDA_VISIBLE_DEVICES or, if it is not set, the files
  /dev/nvidia0, /dev/nvidia1 and so on.
  """
  chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
  if chosen is not None:
    return len([part for part in chosen.split(',') if part.strip()])
  return len(list(pathlib.Path('/dev').glob('nvidia[0-9]*')))


def _check_port(coordinator: str) -> None:
  """Checks that process 0 can listen on the port of the coordinator.

  JAX would share the port with another run, or end with an error that does not
  name the port.

  Args:
    coordinator: HOST:PORT, of which this process uses the port.

  Raises:
    InputError: If the port is in use or cannot be used.
  """
  port = int(coordinator.rpartition(':')[2])
  family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
  try:
    with socket.socket(family, socket.SOCK_STREAM) as listener:
      # The closed connections of an earlier run may be on the port.
      listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      listener.bind(('', port))
      listener.listen()
  except (OSError, OverflowError) as error:
    is_used = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    reason = (
      'is in use by another program of this machine'
      if is_used
      else f'cannot be used ({error})'
    )
    raise InputError(
      f'--coordinator={coordinator}: port {port} {reason}; give another port '
      'to all processes.'
    ) from error


def _give_up(launch: Launch, timeout: int, is_local: bool) -> NoReturn:
  """Prints that the processes did not find each other; ends this process.

  Args:
    launch: How this process was to find the others.
    timeout: Seconds that it has waited.
    is_local: Whether the coordinator is a loopback address.
  """
  where = launch.coordinator or f'where {launch.launcher} says'
  hint = (
    ' The coordinator is an address of this machine only (127.x); processes '
    'on other machines need one that they can reach.'
    if is_local
    else ''
  )
  print(
    f'error: the processes did not find each other within {timeout} s '
    '(--initialization_timeout). Check that process 0 runs at the coordinator '
    f'({where}), that no other program uses this port, that the other '
    'machines can reach it, and that all processes were started.'
    f'{hint}',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _share_of_gpus(
  num_gpus: int, processes_here: int | None, rank_here: int | None
) -> tuple[int, ...] | None:
  """Returns the numbers of the GPUs that this process uses, from 0.

  Args:
    num_gpus: Number of GPUs that this process can see. With 1, the launcher has
      chosen the GPU of each process, and the result is (0,).
    processes_here: Number of processes on this machine; `None` if unknown.
    rank_here: Number of this process among them, from 0; `None` if unknown.

  Returns:
    An equal share of the GPUs. `None` leaves the choice to JAX: there is no
    GPU, or the launcher does not tell about the processes of this machine.

  Raises:
    InputError: If the machine has fewer GPUs than processes.
  """
  if processes_here is None or rank_here is None or num_gpus == 0:
    return None
  # The launcher has bound each process to one GPU, as by --gpus-per-task=1. The
  # process sees it as number 0, but JAX would ask for the number of its rank.
  if num_gpus == 1:
    return (0,)
  if num_gpus < processes_here:
    raise InputError(
      f'{processes_here} processes of this machine share {num_gpus} GPUs; '
      'start one process a GPU, or fewer.'
    )
  share = num_gpus // processes_here
  return tuple(range(rank_here * share, (rank_here + 1) * share))


def _slurm_tasks_here(environment: Mapping[str, str]) -> int | None:
  """Returns the number of SLURM's tasks on this machine; `None` if unknown.

  The variable SLURM_STEP_TASKS_PER_NODE lists the tasks of all machines of the
  job step: '8(x2),4' stands for two machines with eight tasks each and one
  machine with four. SLURM_NODEID is the number of this machine, from 0.

  Args:
    environment: The environment variables of this process. If one of the two is
      missing, the result is `None`.
  """
  text = environment.get('SLURM_STEP_TASKS_PER_NODE')
  if not text or 'SLURM_NODEID' not in environment:
    return None
  counts: list[int] = []
  for part in text.split(','):
    match = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part)
    assert match, f'SLURM_STEP_TASKS_PER_NODE={text}'
    tasks, times = match.groups()
    counts += [int(tasks)] * int(times or 1)
  return counts[int(environment['SLURM_NODEID'])]


def _addresses(coordinator: str) -> list[str]:
  """Looks up the IP addresses of a HOST:PORT; [] if the host is unknown."""
  host = coordinator.rpartition(':')[0].strip('[]')
  try:
    found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
  except OSError:
    return []
  return sorted({str(entry[4][0]) for entry in found})


def _devices_by_process(
  devices: Sequence[jax.Device],
) -> dict[int, list[jax.Device]]:
  """Groups devices by the number of the process that they belong to."""
  by_process: dict[int, list[jax.Device]] = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  return by_process
