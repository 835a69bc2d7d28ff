"""Tests of the launch of several processes."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import launch


def plan(
  coordinator=None,
  num_processes=None,
  process_id=None,
  *,
  num_gpus=0,
  **environment,
):
  """Calls `plan_launch` with these environment variables."""
  return launch.plan_launch(
    coordinator,
    num_processes,
    process_id,
    environment=environment,
    num_gpus=num_gpus,
  )


# Variables as `srun` sets them on the second of two machines.
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
  # A pod that does not belong to an indexed job.
  assert plan(KUBERNETES_SERVICE_HOST='10.0.0.1') is None
  # A batch script that has not called srun: no variable of the step is set.
  batch = {k: v for k, v in SLURM.items() if 'STEP' not in k}
  assert plan(**batch) is None


def test_plan_launch_takes_what_the_user_gives():
  planned = plan('node1:1234', 4, 3)
  assert planned[:3] == ('node1:1234', 4, 3)
  assert planned.launcher is None
  assert planned.local_device_ids is None


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
  planned = plan(**environment)
  assert planned.launcher == launcher
  assert planned.coordinator is planned.process_id is None
  assert planned.num_hosts == num_hosts
  assert planned.on_first_host == on_first_host


@pytest.mark.parametrize(
  ('tasks', 'num_gpus', 'ids'),
  [
    ('8(x2)', 8, (3,)),  # One GPU a process.
    ('4(x2)', 8, (6, 7)),  # Two GPUs a process.
    ('8(x2)', 1, (0,)),  # SLURM shows each process one GPU.
    ('1(x2)', 8, tuple(range(8))),  # One process has all GPUs.
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


def test_plan_launch_refuses_a_negative_process_id_under_a_launcher():
  with pytest.raises(InputError, match='--process_id=-1 must be at least 0'):
    plan(process_id=-1, **SLURM)


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
  assert launch.is_loopback(coordinator) == loopback


def test_start_processes_refuses_a_coordinator_that_is_this_machine():
  planned = plan('127.0.1.1:1234', **SLURM)
  with pytest.raises(InputError) as error:
    launch.start_processes(planned, timeout=1)
  assert '127.0.1.1:1234 is this machine itself (127.0.1.1)' in str(error.value)
  assert 'SLURM runs processes on 2 machines' in str(error.value)


def test_processes_that_do_not_all_come_are_given_up():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  code = (
    'import os\nfrom maskrcnn_jax.runtime import launch\n'
    f'launch.start_processes(launch.plan_launch({address!r}, 2, 0, '
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


def test_start_processes_names_a_port_that_is_in_use():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    planned = launch.Launch(f'127.0.0.1:{port}', 2, 0, None, None)
    with pytest.raises(InputError, match=f'port {port} is in use'):
      launch.start_processes(planned, timeout=1)


def test_start_processes_refuses_a_port_that_does_not_exist():
  planned = launch.Launch('127.0.0.1:70000', 2, 0, None, None)
  with pytest.raises(InputError, match='port 70000 cannot be used'):
    launch.start_processes(planned, timeout=1)


def test_an_abort_by_jax_ends_a_process_with_status_1():
  code = (
    'import os, threading\n'
    'from maskrcnn_jax.runtime import aborts\n'
    'aborts.set_status_of_aborts()\n'
    'threading.Thread(target=os.abort).start()\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[2],
  )
  assert done.returncode == 1, done.stderr
  assert 'error: JAX has ended this process' in done.stderr
