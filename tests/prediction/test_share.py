"""Tests of the share of the pictures that a process predicts on."""

import jax
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.prediction.lines import Share
from maskrcnn_jax.prediction.share import plan_share

# Variables as `srun` and `mpirun` set them.
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
OPEN_MPI = {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2'}
KUBERNETES = {
  'KUBERNETES_SERVICE_HOST': '10.0.0.1',
  'JOB_COMPLETION_INDEX': '1',
}


@pytest.mark.parametrize(
  ('num_processes', 'process_id', 'environment', 'share'),
  [
    (None, None, {}, Share(0, 1)),
    (2, 1, {}, Share(1, 2)),
    (1, None, SLURM, Share(0, 1)),
    (None, None, SLURM, Share(11, 16)),
    (None, None, OPEN_MPI, Share(2, 4)),
    (3, None, KUBERNETES, Share(1, 3)),
    (8, 5, OPEN_MPI, Share(5, 8)),
  ],
)
def test_plan_share(num_processes, process_id, environment, share):
  assert share == plan_share(
    num_processes, process_id, environment=environment, num_gpus=0
  )


@pytest.mark.parametrize(
  ('num_processes', 'process_id', 'environment', 'message'),
  [
    (2, None, {}, '--process_id missing'),
    (None, 1, {}, '--num_processes missing'),
    (2, 2, {}, '--process_id=2 must be from 0 to 1'),
    (None, 4, OPEN_MPI, '--process_id=4 must be from 0 to 3'),
    (None, None, KUBERNETES, 'give --num_processes'),
  ],
)
def test_plan_share_refuses(num_processes, process_id, environment, message):
  with pytest.raises(InputError, match=message):
    plan_share(num_processes, process_id, environment=environment, num_gpus=0)


def test_plan_share_leaves_each_process_its_gpus(monkeypatch):
  changes = {}
  monkeypatch.setattr(jax.config, 'update', changes.__setitem__)
  plan_share(None, None, environment=SLURM, num_gpus=16)
  assert changes == {'jax_cuda_visible_devices': '6,7'}
