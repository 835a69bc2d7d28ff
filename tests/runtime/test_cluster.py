"""Tests of mesh and launch, on this device and on four simulated ones."""

import os
import pathlib
import socket
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


def plan(
  coordinator=None,
  num_processes=None,
  process_id=None,
  *,
  num_gpus=0,
  **environment,
):
  return cluster.plan_launch(
    coordinator,
    num_processes,
    process_id,
    environment=environment,
    num_gpus=num_gpus,
  )


# As `srun` sets them on the second of two machines.
SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'node[1-2]',
  'SLURM_STEP_NUM_NODES': '2',
  'SLURM_STEP_TASKS_PER_NODE': '8(x2)',
  'SLURM_NODEID': '1',
  'SLURM_NTASKS': '16',
  'SLURM_PROCID': '11',
  'SLURM_LOCALID': '3',
}


def test_plan_launch_of_one_process_is_none():
  assert plan() is None
  assert plan(num_processes=1, **SLURM) is None
  assert plan(**SLURM | {'SLURM_NTASKS': '1'}) is None
  assert plan(OMPI_COMM_WORLD_SIZE='1', OMPI_COMM_WORLD_RANK='0') is None
  # A pod that is no part of an indexed job.
  assert plan(KUBERNETES_SERVICE_HOST='10.0.0.1') is None
  # In a batch script, before srun.
  batch = {k: v for k, v in SLURM.items() if 'STEP' not in k}
  assert plan(**batch) is None


def test_plan_launch_takes_what_the_user_gives():
  launch = plan('node1:1234', 4, 3)
  assert launch[:3] == ('node1:1234', 4, 3)
  assert launch.launcher is None
  assert launch.local_device_ids is None


@pytest.mark.parametrize(
  ('environment', 'launcher', 'num_hosts', 'on_first_host'),
  [
    (SLURM, 'SLURM', 2, False),
    (SLURM | {'SLURM_NODEID': '0'}, 'SLURM', 2, True),
    (
      {
        'OMPI_COMM_WORLD_SIZE': '6',
        'OMPI_COMM_WORLD_RANK': '5',
        'OMPI_COMM_WORLD_LOCAL_SIZE': '4',
        'OMPI_COMM_WORLD_LOCAL_RANK': '1',
      },
      'Open MPI',
      2,
      False,
    ),
    (
      {'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '1'},
      'Kubernetes',
      1,
      True,
    ),
  ],
)
def test_plan_launch_knows_the_launchers(
  environment, launcher, num_hosts, on_first_host
):
  launch = plan(**environment)
  assert launch.launcher == launcher
  assert launch.coordinator is launch.process_id is None
  assert launch.num_hosts == num_hosts
  assert launch.on_first_host == on_first_host


@pytest.mark.parametrize(
  ('tasks', 'num_gpus', 'ids'),
  [
    ('8(x2)', 8, (3,)),  # One each.
    ('4(x2)', 8, (6, 7)),  # Two each.
    ('8(x2)', 1, (0,)),  # Bound to one, as by --gpus-per-task=1.
    ('1(x2)', 8, tuple(range(8))),  # One process for all.
    ('2,8', 8, (3,)),
    ('8(x2)', 0, None),  # No GPUs at all.
  ],
)
def test_plan_launch_shares_the_gpus_of_a_machine(tasks, num_gpus, ids):
  local_id = '0' if tasks == '1(x2)' else '3'
  environment = SLURM | {
    'SLURM_STEP_TASKS_PER_NODE': tasks,
    'SLURM_LOCALID': local_id,
  }
  assert plan(num_gpus=num_gpus, **environment).local_device_ids == ids


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('node1:1234',), '--num_processes and --process_id missing'),
    ((None, 2, 0), '--coordinator missing'),
    (('node1', 2, 0), 'give HOST:PORT'),
    (('node1:1234', 0, 0), 'must be at least 1'),
    (('node1:1234', 2, 2), 'must be from 0 to 1'),
    (('node1:1234', 2, -1), 'must be from 0 to 1'),
  ],
)
def test_plan_launch_says_what_is_wrong(arguments, message):
  with pytest.raises(InputError, match=message):
    plan(*arguments)


def test_plan_launch_refuses_more_processes_than_gpus():
  with pytest.raises(InputError, match='8 processes of this machine share 4'):
    plan(num_gpus=4, **SLURM)


@pytest.mark.parametrize(
  ('coordinator', 'loopback'),
  [
    ('127.0.0.1:1', True),
    ('127.0.1.1:1', True),
    ('localhost:1', True),
    ('[::1]:1', True),
    ('10.1.2.3:1', False),
    ('no.such.host.:1', False),
  ],
)
def test_is_loopback(coordinator, loopback):
  assert cluster.is_loopback(coordinator) == loopback


def test_start_processes_refuses_a_coordinator_that_is_this_machine():
  launch = plan('127.0.1.1:1234', **SLURM)
  with pytest.raises(InputError) as error:
    cluster.start_processes(launch, timeout=1)
  assert '127.0.1.1:1234 is this machine itself (127.0.1.1)' in str(error.value)
  assert 'SLURM runs processes on 2 machines' in str(error.value)


def test_processes_that_do_not_all_come_are_given_up():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  code = (
    'import os\nfrom maskrcnn_jax.runtime import cluster\n'
    f'cluster.start_processes(cluster.plan_launch({address!r}, 2, 0, '
    'environment=os.environ, num_gpus=0), timeout=2)'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    timeout=120,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 1
  assert 'error: the processes did not find each other within 2 s' in (
    done.stderr
  )
  assert address in done.stderr


def test_gather_and_check_agreement_of_one_process():
  assert cluster.gather({'a': [1]}) == [{'a': [1]}]
  cluster.check_agreement({'a': 1})


def test_check_agreement_names_process_and_fact(monkeypatch):
  monkeypatch.setattr(
    cluster, 'gather', lambda facts: [facts, facts, facts | {'data': 'b'}]
  )
  with pytest.raises(
    InputError, match='Process 2 has another data than process 0: b instead'
  ):
    cluster.check_agreement({'config.seed': '0', 'data': 'a'})


@pytest.fixture
def cache_settings():
  """Puts back what a test changes."""
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
  assert f'is kept in {folder}' in caplog.text


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


# One process, since starting one costs seconds.
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

# A mean over what counts is over the whole batch, wherever its rows are, and
# its gradient is the same everywhere.
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

# What is whole everywhere is taken to one of the devices without a copy.
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
