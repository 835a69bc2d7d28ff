"""Finds the share of the pictures that this process predicts on."""

from collections.abc import Mapping

import jax

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.prediction.lines import Share
from maskrcnn_jax.runtime.launch import plan_launch

# {launcher: the variables with the number of this process, from 0, and with the
# number of processes}. Kubernetes does not tell the latter.
_VARIABLES = {
  'SLURM': ('SLURM_PROCID', 'SLURM_NTASKS'),
  'Open MPI': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
  'Kubernetes': ('JOB_COMPLETION_INDEX', ''),
}


def plan_share(
  num_processes: int | None,
  process_id: int | None,
  *,
  environment: Mapping[str, str],
  num_gpus: int,
) -> Share:
  """Finds the share of this process, and leaves it its share of the GPUs.

  The processes of a prediction do not talk to each other, so JAX starts as if
  each was alone. This function must be called before any other use of JAX.

  Args:
    num_processes: The user's --num_processes; `None` if not given.
    process_id: The user's --process_id, from 0; `None` if not given.
    environment: Environment variables, which show whether a launcher such as
      SLURM has started this process.
    num_gpus: Number of GPUs that this process can see.

  Raises:
    InputError: If the options are incomplete or wrong.
  """
  is_given = num_processes is not None or process_id is not None
  launch = plan_launch(
    # It must be given beside the other two, and is not used.
    'nowhere:0' if is_given else None,
    num_processes,
    process_id,
    environment=environment,
    num_gpus=num_gpus,
  )
  if launch is None:
    return Share()
  if launch.launcher is not None:
    number, count = _VARIABLES[launch.launcher]
    if process_id is None:
      process_id = int(environment[number])
    if num_processes is None:
      if not count:
        raise InputError(
          f'{launch.launcher} does not tell how many processes there are; give '
          '--num_processes.'
        )
      num_processes = int(environment[count])
  assert num_processes is not None  # `plan_launch` refuses this.
  assert process_id is not None
  if process_id >= num_processes:
    raise InputError(
      f'--process_id={process_id} must be from 0 to {num_processes - 1}.'
    )
  if launch.local_device_ids is not None:
    gpus = ','.join(map(str, launch.local_device_ids))
    jax.config.update('jax_cuda_visible_devices', gpus)
  return Share(process_id, num_processes)
