"""Tests of the mesh, on the devices of this process and on four CPU devices."""

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

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import cluster

KEY = 'config.train.batch_size'


def mesh_of(size):
  """Returns a mesh of the given size that repeats one device.

  It serves for functions that look at the size only.
  """
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


def test_gather_and_check_agreement_of_one_process():
  assert cluster.gather({'a': [1]}) == [{'a': [1]}]
  cluster.check_agreement({'a': 1})


def test_check_agreement_names_process_and_fact(monkeypatch):
  monkeypatch.setattr(
    cluster, 'gather', lambda facts: [facts, facts, facts | {'data': 'b'}]
  )
  with pytest.raises(
    InputError, match='Process 2 differs from process 0 in data: b instead of a'
  ):
    cluster.check_agreement({'config.seed': '0', 'data': 'a'})


@pytest.fixture
def cache_settings():
  """Restores JAX's settings of the compilation cache after a test."""
  names = (
    'jax_compilation_cache_dir',
    'jax_enable_compilation_cache',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.usefixtures('cache_settings')
def test_keep_compiled_has_a_place_of_its_own(monkeypatch, tmp_path, caplog):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR', raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with caplog.at_level('INFO', 'absl'):
    cluster.keep_compiled(None)
  (folder,) = (tmp_path / 'maskrcnn_jax').iterdir()
  assert folder.name.startswith(f'compiled-{jax.default_backend()}')
  assert jax.config.jax_compilation_cache_dir == str(folder)
  assert f'Compiled programs are kept in {folder}' in caplog.text


@pytest.mark.usefixtures('cache_settings')
def test_keep_compiled_goes_where_it_is_told(monkeypatch, tmp_path):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'env'))
  cluster.keep_compiled(None)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'env')
  cluster.keep_compiled(str(tmp_path / 'flag'))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / 'flag')
  (tmp_path / 'file').touch()
  cluster.keep_compiled(str(tmp_path / 'file' / 'folder'))
  assert not jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', True)
  cluster.keep_compiled('')
  assert not jax.config.jax_enable_compilation_cache


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


# All checks are in one program, because starting a process takes seconds.
ON_FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh
from maskrcnn_jax.runtime import cluster

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

# A mean over the counted rows is a mean over the whole batch, whichever devices
# hold the rows, and its gradient is the same on all devices.
def loss(params, rows, counted):
  return jnp.sum((rows @ params['w']) * counted) / jnp.sum(counted)

value, gradient = jax.jit(jax.value_and_grad(loss))(params, *sharded)
# Rows 0 to 4 of 0 ... 14: the sum is 105, of 5 rows.
assert value == 21, value
np.testing.assert_allclose(gradient['w'], [6, 7, 8])
assert gradient['w'].is_fully_replicated

# Each device works through the loops of its own images only.
def halve(x):
  return jax.lax.while_loop(lambda x: x > 1, lambda x: x / 2, x)

images = jax.device_put(
    np.arange(8, dtype=np.float32), parts.sharding
)
halved = jax.jit(cluster.each_image(halve, mesh))
np.testing.assert_array_equal(
    halved(images), [0, 1, 1, 0.75, 1, 0.625, 0.75, 0.875]
)
text = halved.lower(images).compile().as_text()
assert 'all-reduce' not in text
assert 'all-reduce' in jax.jit(jax.vmap(halve)).lower(images).compile(
    ).as_text()

# Taking a replicated array to one of its devices makes no copy.
here = Mesh(np.array(jax.devices()[2:3]), ('data',))
taken = cluster.to_mesh(params, here)
assert taken['w'].devices() == {jax.devices()[2]}
assert taken['w'].unsafe_buffer_pointer() == params[
    'w'].addressable_shards[2].data.unsafe_buffer_pointer()
print('four devices agree')
"""


def test_a_batch_on_four_devices_gives_the_global_mean():
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
  }
  done = subprocess.run(
    [sys.executable, '-c', ON_FOUR_DEVICES],
    env=environment,
    timeout=120,
    capture_output=True,
    text=True,
  )
  assert done.stdout == 'four devices agree\n', done.stderr
