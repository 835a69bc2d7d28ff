"""The devices and processes of a run, and how arrays are spread over them.

All devices of all processes form one mesh. The images of a batch are spread
along its axis 'data'; parameters are replicated, so each device has all of
them.
"""

from collections.abc import Callable
import functools
import importlib.util
import json
import os
import pathlib
import sys
import threading
from typing import Any, NoReturn
import zlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree
import numpy as np

from maskrcnn_jax.array_types import AnyArray
from maskrcnn_jax.errors import InputError


def is_main() -> bool:
  """Tells whether this is process 0, which alone writes logs and results."""
  return jax.process_index() == 0


def find_devices() -> list[jax.Device]:
  """Returns the devices that JAX will use.

  Raises:
    InputError: If JAX has no device of the kind that $JAX_PLATFORMS names. If
      $JAX_PLATFORMS is not set, also if JAX is installed for GPUs but would use
      the CPU, of which JAX itself only warns.
  """
  asked = os.environ.get('JAX_PLATFORMS', '')
  try:
    devices = jax.devices()
  # Some of JAX's backends fail an assertion if they find no device.
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
  """Ends this process at once, without waiting for the other processes.

  `sys.exit` would wait for the other processes, which may be waiting for this
  one. A process that works alone does use `sys.exit`.

  Args:
    status: Exit status of the process.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  # After a failed save, threads of orbax wait minutes for each other, and
  # `sys.exit` would wait for them.
  is_saving = any(
    type(thread).__module__.startswith('orbax')
    for thread in threading.enumerate()
  )
  if jax.distributed.is_initialized() or is_saving:
    os._exit(status)
  sys.exit(status)


def gather(value: Any) -> list[Any]:
  """Sends a value to all processes and returns the values of all of them.

  All processes must call this function.

  Args:
    value: Value of this process, of a type that JSON can store.

  Returns:
    One value for each process, in the order of their numbers.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(zlib.compress(json.dumps(value).encode()), np.uint8)
  sizes = np.asarray(
    multihost_utils.process_allgather(np.int32(len(data)))
  ).reshape(-1)
  # Rounded up to a power of two, because JAX compiles a program for each size.
  room = 1 << max(int(sizes.max()) - 1, 1).bit_length()
  padded = np.zeros(room, np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [
    json.loads(zlib.decompress(row[:size].tobytes()))
    for row, size in zip(rows, sizes, strict=True)
  ]


def any_process(value: bool, mesh: Mesh) -> Bool[Array, ''] | bool:
  """Tells whether a value is true in at least one process.

  All processes must call this function. It does not wait for the others: only
  `bool(result)` does.

  Args:
    value: Value of this process.
    mesh: All devices of all processes.
  """
  if jax.process_count() == 1:
    return value
  values = shard_batch(np.full(jax.local_device_count(), value), mesh)
  return _any_of(mesh)(values)


def check_agreement(facts: dict[str, Any]) -> None:
  """Checks that all processes have the same values, such as the same recipe.

  All processes must call this function. Without it, processes with different
  data or options would train a wrong model and say nothing.

  Args:
    facts: {name: value}, with values of types that JSON can store.

  Raises:
    InputError: If a value differs from that of process 0.
  """
  everywhere = gather(facts)
  for process, other in enumerate(everywhere):
    for name, value in everywhere[0].items():
      if other[name] != value:
        raise InputError(
          f'Process {process} differs from process 0 in {name}: '
          f'{_shorten(other[name])} instead of {_shorten(value)}. All '
          'processes need the same command, data and workdir.'
        )


def keep_compiled(folder: str | None) -> None:
  """Has JAX keep compiled programs in a folder, so that later runs reuse them.

  If the folder cannot be made, logs a warning, and nothing is kept.

  Args:
    folder: The folder; '' keeps nothing. `None` takes
      $JAX_COMPILATION_CACHE_DIR, or else a folder in the user's cache. If there
      are several processes, all of them should see the same folder, because
      only process 0 writes to it.
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
    logging.info('Compiled programs are not kept.')
    return
  try:
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    logging.warning('Compiled programs are not kept: %s.', error)
    jax.config.update('jax_enable_compilation_cache', False)
    return
  jax.config.update('jax_compilation_cache_dir', folder)
  # By default, programs that compile in less than a second are not kept.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  logging.info(
    'Compiled programs are kept in %s (--compilation_cache).', folder
  )


def make_mesh() -> Mesh:
  """Returns a mesh of all devices of all processes, with the axis 'data'."""
  return Mesh(np.array(jax.devices()), ('data',))


def make_local_mesh() -> Mesh:
  """Returns a mesh of the devices of this process, with the axis 'data'."""
  return Mesh(np.array(jax.local_devices()), ('data',))


def is_single_cpu(mesh: Mesh) -> bool:
  """Tells whether a mesh is a single CPU device."""
  return mesh.size == 1 and mesh.devices.flat[0].platform == 'cpu'


def check_batch_size(batch_size: int, mesh: Mesh, *, key: str) -> None:
  """Checks that each device gets the same number of images of a batch.

  Args:
    batch_size: Number of images of a batch, in all processes together.
    mesh: The devices that a batch is spread over.
    key: Name of the option that gives the batch size, for the error message.

  Raises:
    InputError: If the batch size is not a multiple of the device count.
  """
  if batch_size % mesh.size:
    rounded = max(mesh.size, batch_size // mesh.size * mesh.size)
    raise InputError(
      f'C06: {key} ({batch_size}) must be a multiple of the device count '
      f'({mesh.size}); try --{key}={rounded}.'
    )


def each_image(
  function: Callable[..., Any], mesh: Mesh | None
) -> Callable[..., Any]:
  """Maps a function of one image over a batch, separately on each device.

  The result is that of `jax.vmap`. With `vmap` alone, XLA would gather the
  arguments of a sort or a top-k on all devices. In a loop that ends when the
  last image is done, it would make the devices wait for each other in each
  iteration.

  Args:
    function: Function of the arrays of one image. It may close over static
      values only, not over arrays.
    mesh: The devices that the images are spread over. `None` and a mesh of one
      device give plain `jax.vmap`.

  Returns:
    A function of arrays with a leading batch axis.
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
  """Returns the sharding that puts a whole copy of an array on each device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
  """Puts a whole copy of each array of a tree on each device of a mesh.

  All processes must call this function with the same values.
  """
  sharding = replicated(mesh)

  def put(leaf: jax.typing.ArrayLike) -> Array:
    """Replicates one array; one that is replicated already is not copied."""
    if isinstance(leaf, Array) and leaf.sharding == sharding:
      return leaf
    if jax.process_count() == 1:
      return jax.device_put(leaf, sharding)
    # With several processes, device_put would first compare their values.
    array = np.asarray(leaf)
    return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
    )

  return jax.tree.map(put, tree)


def to_mesh(tree: PyTree, mesh: Mesh) -> PyTree:
  """Turns replicated arrays into arrays on fewer devices, without copying.

  Args:
    tree: Arrays of which each device has a whole copy.
    mesh: Some of these devices, all of this process.
  """
  sharding = replicated(mesh)
  devices = list(mesh.devices.flat)

  def take(leaf: Array) -> Array:
    """Returns the array that the copies on the devices of `mesh` make up."""
    if leaf.sharding == sharding:
      return leaf
    copies = {s.device: s.data for s in leaf.addressable_shards}
    return jax.make_array_from_single_device_arrays(
      leaf.shape, sharding, [copies[device] for device in devices]
    )

  return jax.tree.map(take, tree)


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Spreads the arrays of a batch over all devices, along their first axis.

  Args:
    batch: A tree of arrays with this process's rows of the batch.
    mesh: All devices of all processes. Each one gets equally many rows.

  Returns:
    The same tree, with the rows of all processes.
  """
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.tree.map(
    lambda rows: jax.make_array_from_process_local_data(sharding, rows),
    batch,
  )


def replicated_shapes(tree: PyTree, mesh: Mesh) -> PyTree:
  """Describes the arrays of a tree as replicated, without making any array.

  Args:
    tree: Arrays, or anything else with a shape and a dtype.
    mesh: The devices of which each is to have a whole copy.

  Returns:
    The same tree, with a `jax.ShapeDtypeStruct` for each array.
  """
  sharding = replicated(mesh)
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


@functools.cache
def _any_of(mesh: Mesh) -> Callable[[AnyArray], Bool[Array, '']]:
  """Returns a jitted `jnp.any` whose result is on each device of a mesh."""
  return jax.jit(jnp.any, out_shardings=replicated(mesh))


def _platform() -> str:
  """Returns a name of the platform that programs are compiled for.

  For CPUs, the name has a checksum of the instruction set, because a program
  that was compiled on one CPU may not run on an older one.
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


def _shorten(value: Any) -> str:
  """Returns a value as text, cut off after 200 characters."""
  text = str(value)
  return text if len(text) <= 200 else f'{text[:200]}...'
