"""Devices: one mesh over all of them, images spread along its only axis."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from maskrcnn_jax.errors import InputError


def make_mesh() -> Mesh:
  """Returns a mesh of all devices of all processes along the axis 'data'."""
  return Mesh(np.array(jax.devices()), ('data',))


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


def replicate(tree, mesh: Mesh):
  """Puts a whole copy of every array on every device."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard_batch(batch, mesh: Mesh):
  """Puts this process's rows of a batch on its devices, a share on each."""
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  return jax.tree.map(
      lambda rows: jax.make_array_from_process_local_data(sharding, rows),
      batch,
  )


def replicated_shapes(tree, mesh: Mesh):
  """Returns the shapes of a tree, each to be whole on every device."""
  sharding = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=sharding
      ),
      tree,
  )
