"""Tests of the mesh, on this device and on four simulated ones."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
from numpy.testing import assert_array_equal
import pytest

from maskrcnn_jax import cluster
from maskrcnn_jax.errors import InputError

KEY = 'config.train.batch_size'


def mesh_of(size):
  """A mesh of which only the size matters: one device, many times."""
  return Mesh(np.array(jax.devices()[:1] * size), ('data',))


def test_make_mesh_has_all_devices_on_one_axis():
  mesh = cluster.make_mesh()
  assert mesh.axis_names == ('data',)
  assert mesh.size == jax.device_count()


@pytest.mark.parametrize(
    ('batch_size', 'devices', 'suggestion'),
    [(6, 4, 4), (3, 4, 4), (15, 8, 8), (17, 8, 16)],
)
def test_check_batch_size_suggests_one_that_fits(
    batch_size, devices, suggestion
):
  with pytest.raises(InputError) as error:
    cluster.check_batch_size(batch_size, mesh_of(devices), key=KEY)
  assert str(error.value) == (
      f'C06: {KEY} ({batch_size}) must be a multiple of the device count '
      f'({devices}); try --{KEY}={suggestion}.'
  )


@pytest.mark.parametrize(('batch_size', 'devices'), [(16, 8), (8, 8), (3, 1)])
def test_check_batch_size_accepts_multiples(batch_size, devices):
  cluster.check_batch_size(batch_size, mesh_of(devices), key=KEY)


def test_replicated_shapes_keeps_shapes_and_dtypes():
  tree = {'a': jnp.zeros((2, 3), jnp.bfloat16), 'b': np.zeros(4, np.int32)}
  shapes = cluster.replicated_shapes(tree, cluster.make_mesh())
  assert shapes['a'].shape == (2, 3)
  assert shapes['a'].dtype == jnp.bfloat16
  assert shapes['b'].dtype == np.int32
  assert shapes['a'].sharding.is_fully_replicated


def test_shard_batch_keeps_values_and_dtypes():
  batch = {'images': np.arange(8, dtype=np.uint8).reshape(2, 4)}
  sharded = cluster.shard_batch(batch, cluster.make_mesh())
  assert sharded['images'].dtype == np.uint8
  assert_array_equal(sharded['images'], batch['images'])


# One process, since starting one costs seconds.
ON_FOUR_DEVICES = '''
import jax, jax.numpy as jnp, numpy as np
from maskrcnn_jax import cluster

mesh = cluster.make_mesh()
assert mesh.size == 4
batch = (np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8) < 5)
sharded = cluster.shard_batch(batch, mesh)
for whole, parts in zip(batch, sharded):
  np.testing.assert_array_equal(whole, parts)
  # Two rows a device, in order.
  for i, shard in enumerate(parts.addressable_shards):
    assert shard.device == jax.devices()[i]
    np.testing.assert_array_equal(shard.data, whole[2 * i : 2 * i + 2])

params = cluster.replicate({'w': np.ones(3, np.float32)}, mesh)
assert params['w'].is_fully_replicated
assert len(params['w'].addressable_shards) == 4

# A mean over what counts is over the whole batch, wherever its rows are, and
# its gradient is the same everywhere.
def loss(params, rows, counted):
  return jnp.sum((rows @ params['w']) * counted) / jnp.sum(counted)

value, gradient = jax.jit(jax.value_and_grad(loss))(params, *sharded)
# Rows 0 to 4 of 0 ... 14: the sum is 105, of 5 rows.
assert value == 21, value
np.testing.assert_allclose(gradient['w'], [6, 7, 8])
assert gradient['w'].is_fully_replicated
print('four devices agree')
'''


def test_a_batch_on_four_devices_gives_the_global_mean():
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
      'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
  }
  done = subprocess.run(
      [sys.executable, '-c', ON_FOUR_DEVICES], env=environment, timeout=120,
      capture_output=True, text=True,
  )
  assert done.stdout == 'four devices agree\n', done.stderr
