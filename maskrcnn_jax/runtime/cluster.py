"""Devices and processes: one mesh over all of them, images spread along it."""

from collections.abc import Callable, Mapping
import functools
import importlib.util
import json
import os
import pathlib
import re
import socket
import sys
import threading
from typing import Any, NamedTuple, NoReturn
import zlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from maskrcnn_jax.errors import InputError

# The launchers that JAX takes the processes from, and the variables by which
# each shows itself.
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
  """How this process is to find the others; None is for JAX to find out."""

  coordinator: str | None  # host:port of process 0
  num_processes: int | None
  process_id: int | None
  local_device_ids: tuple[int, ...] | None  # GPUs of this process
  launcher: str | None  # whose variables were found
  num_hosts: int = 1  # as far as the launcher says
  on_first_host: bool = True  # where process 0 is; likewise


def plan_launch(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  *,
  environment: Mapping[str, str],
  num_gpus: int,
) -> Launch | None:
  """Says how to start the processes that work together; None for just one.

  Args:
    coordinator: As the user gave it, host:port; None if not.
    num_processes: Likewise. 1 keeps a launcher's variables from being used.
    process_id: Likewise.
    environment: Variables of this process.
    num_gpus: That this process can see.

  Raises:
    InputError: If the given options are incomplete or wrong.
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
      f'--coordinator={coordinator}: give HOST:PORT, where HOST is what the '
      'other machines call that of process 0.'
    )
  if num_processes is not None and num_processes < 1:
    raise InputError(f'--num_processes={num_processes} must be at least 1.')
  if process_id is not None and not 0 <= process_id < (
    num_processes or process_id + 1
  ):
    raise InputError(
      f'--process_id={process_id} must be from 0 to {num_processes - 1}.'
    )

  num_hosts, on_first_host = 1, True
  here = rank_here = None
  if launcher == 'SLURM':
    if num_processes is None and environment['SLURM_NTASKS'] == '1':
      return None
    num_hosts = int(environment.get('SLURM_STEP_NUM_NODES', 1))
    here = _slurm_tasks_here(environment)
    rank_here = int(environment['SLURM_LOCALID'])
    on_first_host = environment.get('SLURM_NODEID', '0') == '0'
  elif launcher == 'Open MPI':
    size = int(environment['OMPI_COMM_WORLD_SIZE'])
    if num_processes is None and size == 1:
      return None
    if 'OMPI_COMM_WORLD_LOCAL_SIZE' in environment:
      here = int(environment['OMPI_COMM_WORLD_LOCAL_SIZE'])
      rank_here = int(environment['OMPI_COMM_WORLD_LOCAL_RANK'])
      num_hosts = -(-size // here)
      on_first_host = rank_here == int(environment['OMPI_COMM_WORLD_RANK'])
  return Launch(
    coordinator,
    num_processes,
    process_id,
    _share_of_gpus(num_gpus, here, rank_here),
    launcher,
    num_hosts,
    on_first_host,
  )


def start_processes(launch: Launch, *, timeout: int) -> None:
  """Joins the processes that work together; nothing of JAX may run before.

  Ends this process with status 1 if they do not all come.

  Args:
    launch: As `plan_launch` gives it.
    timeout: Seconds to wait for the others.

  Raises:
    InputError: If they cannot come together.
  """
  loopback = launch.coordinator is not None and is_loopback(launch.coordinator)
  # Debian gives a machine's own name 127.0.1.1, which does process 0 no harm.
  if loopback and not launch.on_first_host:
    raise InputError(
      f'{launch.coordinator} is this machine itself '
      f'({", ".join(_addresses(launch.coordinator))}), but process 0 is on '
      f'another: {launch.launcher} runs processes on {launch.num_hosts} '
      'machines. Give --coordinator=HOST:PORT with an address of process 0 '
      'that all can reach, and see whether /etc/hosts gives its name as '
      '127.0.0.1 or 127.0.1.1.'
    )
  if loopback:
    logging.warning(
      'The coordinator %s is this machine itself; processes on other '
      'machines cannot reach it.',
      launch.coordinator,
    )
  # JAX, too, would end the process, but with a stack of its own code.
  timer = threading.Timer(timeout, _give_up, [launch, timeout, loopback])
  timer.daemon = True
  timer.start()
  is_complete = None not in launch[:3]
  try:
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
    len(of_process)
    for of_process in _devices_by_process(jax.devices()).values()
  }
  if len(counts) > 1:
    raise InputError(
      f'The processes have {sorted(counts)} devices; each must have the '
      'same number.'
    )


def is_loopback(coordinator: str) -> bool:
  """Tells whether a HOST:PORT leads back to the machine that asks."""
  addresses = _addresses(coordinator)
  return bool(addresses) and all(
    address.startswith('127.') or address == '::1' for address in addresses
  )


def is_main() -> bool:
  """Tells whether this process is the one that writes logs and results."""
  return jax.process_index() == 0


def find_devices() -> list[jax.Device]:
  """Returns JAX's devices.

  Raises:
    InputError: If there is none of the kind that was asked for; JAX itself
      goes on with a CPU where a GPU was meant.
  """
  asked = os.environ.get('JAX_PLATFORMS', '')
  try:
    devices = jax.devices()
  # JAX has an assertion for what it asked for and did not get.
  except (RuntimeError, AssertionError) as error:
    raise InputError(
      f'C12: JAX finds no device of the kind JAX_PLATFORMS={asked}: '
      f'{" ".join(str(error).split())[:200] or "no reason given"}. '
      'JAX_PLATFORMS=cpu runs on the CPU.'
    ) from error
  if (
    not asked
    and devices[0].platform == 'cpu'
    and any(
      importlib.util.find_spec(f'jax_cuda{version}_plugin')
      for version in (12, 13)
    )
  ):
    raise InputError(
      'C12: JAX is installed for GPUs, but finds none that it can use; see '
      'nvidia-smi and the warnings above. JAX_PLATFORMS=cpu runs on the CPU.'
    )
  return devices


def leave(status: int) -> NoReturn:
  """Ends this process at once, without waiting for the others.

  An orderly exit waits for all, and they may be waiting for this one.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if jax.distributed.is_initialized():
    os._exit(status)
  sys.exit(status)


def gather(value: Any) -> list[Any]:
  """Returns the values of all processes, in their order, to all of them.

  Args:
    value: A value that JSON can hold. All processes must call this.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(zlib.compress(json.dumps(value).encode()), np.uint8)
  sizes = np.asarray(
    multihost_utils.process_allgather(np.int32(len(data)))
  ).reshape(-1)
  # Each size would be another compilation.
  room = 1 << max(int(sizes.max()) - 1, 1).bit_length()
  padded = np.zeros(room, np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(zlib.decompress(row[:size].tobytes()))
    for row, size in zip(rows, sizes, strict=True)
  ]


def any_process(value: bool, mesh: Mesh) -> jax.Array | bool:
  """Tells whether a value is true in any process.

  All processes must call this. They wait for each other only when the result
  is looked at.

  Args:
    value: Of this process.
    mesh: Of all devices.
  """
  if jax.process_count() == 1:
    return value
  values = shard_batch(np.full(jax.local_device_count(), value), mesh)
  return _any_of(mesh)(values)


def check_agreement(facts: dict[str, Any]) -> None:
  """Raises an InputError unless all processes were started alike.

  Args:
    facts: {what: value that JSON can hold}. Those that have another training
      set than process 0 would train on something else in silence.
  """
  everywhere = gather(facts)
  for process, other in enumerate(everywhere):
    for what, value in everywhere[0].items():
      if other[what] != value:
        raise InputError(
          f'Process {process} has another {what} than process 0: '
          f'{_shorten(other[what])} instead of {_shorten(value)}. All '
          'processes need the same command, data and workdir.'
        )


def keep_compiled(folder: str | None) -> None:
  """Keeps compiled programs on disk for the next run, and logs where.

  Args:
    folder: '' for none. None: $JAX_COMPILATION_CACHE_DIR, else the user's
      cache. Where there are several processes it should be a folder that all
      see: process 0 alone writes.
  """
  if folder is None:
    folder = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if folder is None:
    caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = str(
      pathlib.Path(caches) / 'maskrcnn_jax' / f'compiled-{_platform()}'
    )
  if not folder:
    jax.config.update('jax_enable_compilation_cache', False)
    logging.info('What is compiled is not kept.')
    return
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    logging.warning('What is compiled is not kept: %s.', error)
    jax.config.update('jax_enable_compilation_cache', False)
    return
  jax.config.update('jax_compilation_cache_dir', folder)
  # By default, programs that compile in less than a second are not kept.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  logging.info('What is compiled is kept in %s (--compilation_cache).', folder)


def make_mesh() -> Mesh:
  """Returns a mesh of all devices of all processes.

  Its one axis, 'data', spreads the images of a batch.
  """
  return Mesh(np.array(jax.devices()), ('data',))


def make_local_mesh() -> Mesh:
  """Returns a mesh of the devices of this process."""
  return Mesh(np.array(jax.local_devices()), ('data',))


def is_single_cpu(mesh: Mesh) -> bool:
  """Tells whether all work is done by one CPU device."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'


def check_batch_size(batch_size: int, mesh: Mesh, *, key: str) -> None:
  """Raises an InputError unless the devices share the batch evenly."""
  if batch_size % mesh.size:
    rounded = max(mesh.size, batch_size // mesh.size * mesh.size)
    raise InputError(
      f'C06: {key} ({batch_size}) must be a multiple of the device count '
      f'({mesh.size}); try --{key}={rounded}.'
    )


def each_image(function: Callable, mesh: Mesh | None) -> Callable:
  """Like `jax.vmap`, each device working on the images that it holds.

  Left to itself, XLA gathers the arguments of a sort or a top-k on all
  devices, and makes all devices wait for each other in each round of a loop
  that ends when the last image is done.

  Args:
    function: Of one image. It may close over static values only.
    mesh: Over which the images are spread; None or one device: as `vmap`.
  """
  batched = jax.vmap(function)
  if mesh is None or mesh.size == 1:
    return batched
  return jax.shard_map(
    batched,
    mesh=mesh,
    in_specs=PartitionSpec('data'),
    out_specs=PartitionSpec('data'),
    check_vma=False,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of arrays that are whole on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree, mesh: Mesh):
  """Puts a whole copy of every array on every device.

  Every process must have the same values.
  """
  sharding = replicated(mesh)

  def put(leaf):
    if getattr(leaf, 'sharding', None) == sharding:
      return leaf
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    # Unlike device_put, does not compare the values of all processes.
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    )

  return jax.tree.map(put, tree)


def to_mesh(tree, mesh: Mesh):
  """Takes replicated arrays to a mesh of some of their devices, uncopied."""
  sharding = replicated(mesh)
  devices = list(mesh.devices.flat)

  def take(leaf):
    if leaf.sharding == sharding:
      return leaf
    copies = {s.device: s.data for s in leaf.addressable_shards}
    return jax.make_array_from_single_device_arrays(
      leaf.shape, sharding, [copies[device] for device in devices]
    )

  return jax.tree.map(take, tree)


def shard_batch(batch, mesh: Mesh):
  """Puts this process's rows of a batch on its devices, a share on each."""
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(sharding, rows),
    batch,
  )


def replicated_shapes(tree, mesh: Mesh):
  """Returns the shapes of a tree, each to be whole on every device."""
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def visible_gpus() -> int:
  """Counts the NVIDIA GPUs that this process can see, without starting JAX."""
  chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
  if chosen is not None:
    return len([part for part in chosen.split(',') if part.strip()])
  return len(list(pathlib.Path('/dev').glob('nvidia[0-9]*')))


def _give_up(launch, timeout, loopback) -> NoReturn:
  where = launch.coordinator or f'where {launch.launcher} says'
  hint = (
    ' The coordinator is an address of this machine only (127.x); processes '
    'on other machines need one that they can reach.'
    if loopback
    else ''
  )
  print(
    f'error: the processes did not find each other within {timeout} s '
    f'(--initialization_timeout). Process 0 must run at the coordinator '
    f'({where}), that port be free there and open to the others, and all '
    f'processes be started.{hint}',
    file=sys.stderr,
    flush=True,
  )
  os._exit(1)


def _share_of_gpus(num_gpus, processes_here, rank_here):
  """The GPUs of a process, where a launcher says how many processes share."""
  if processes_here is None or num_gpus == 0:
    return None
  # Bound by the launcher, as by --gpus-per-task=1: the only one is number 0,
  # whereas JAX would ask for that of the process's rank.
  if num_gpus == 1:
    return (0,)
  if num_gpus < processes_here:
    raise InputError(
      f'{processes_here} processes of this machine share {num_gpus} GPUs; '
      'start one process a GPU, or fewer.'
    )
  share = num_gpus // processes_here
  return tuple(range(rank_here * share, (rank_here + 1) * share))


def _slurm_tasks_here(environment) -> int | None:
  """Reads '8(x2),4': two machines of eight tasks and one of four."""
  text = environment.get('SLURM_STEP_TASKS_PER_NODE')
  if not text or 'SLURM_NODEID' not in environment:
    return None
  counts = []
  for part in text.split(','):
    count, times = re.fullmatch(r'(\d+)(?:\(x(\d+)\))?', part).groups()
    counts += [int(count)] * int(times or 1)
  return counts[int(environment['SLURM_NODEID'])]


def _addresses(coordinator: str) -> list[str]:
  """The addresses of the host of a HOST:PORT; none if it is not known."""
  host = coordinator.rpartition(':')[0].strip('[]')
  try:
    found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
  except OSError:
    return []
  return sorted({entry[4][0] for entry in found})


@functools.cache
def _any_of(mesh):
  return jax.jit(jnp.any, out_shardings=replicated(mesh))


def _devices_by_process(devices):
  by_process = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  return by_process


def _platform() -> str:
  """Names the platform that compiled programs are for.

  XLA's programs for a CPU may not run on an older one that shares the folder.
  """
  platform = jax.default_backend()
  if platform != 'cpu':
    return platform
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform
  flags = next((x for x in lines if x.startswith(('flags', 'Features'))), '')
  return f'{platform}-{zlib.crc32(flags.encode()):08x}'


def _shorten(value) -> str:
  text = str(value)
  return text if len(text) <= 200 else f'{text[:200]}...'
