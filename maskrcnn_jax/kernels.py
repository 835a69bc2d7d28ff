"""Chooses the implementation of each operation that has a kernel.

An operation of `ops/` that has a kernel takes an argument `kernels`:
  'xla': plain JAX, which runs anywhere.
  'pallas': the kernel in `pallas_kernels/` with the same arguments and results.
  'interpret': the same kernel, interpreted by JAX. This is slow and for tests.
  'triton': the same kernel, compiled by jax-triton, an optional dependency.
    Only NMS has it.
"""

import importlib.util
from typing import NamedTuple


class Kernels(NamedTuple):
  """The implementation of each operation that has a kernel.

  A field is named like the operation, a function in `ops/`. Its value is 'xla'
  for plain JAX, 'pallas' for the GPU kernel, 'interpret' for this kernel
  interpreted by JAX, or, for `nms` only, 'triton' for this kernel compiled by
  jax-triton.
  """

  pairwise_iou: str = 'xla'
  match_by_overlap: str = 'xla'
  select_boxes: str = 'xla'
  nms: str = 'xla'
  roi_align: str = 'xla'
  rasterize_outlines: str = 'xla'


XLA = Kernels()

# Operations whose kernel was run by `scripts/gpu_check.sh`, gave the results of
# plain JAX and was faster: {device kind: {(major, minor) of JAX: operations}}.
# None has been measured yet, so 'auto' is 'xla' everywhere.
MEASURED: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {}

# Module that compiles the kernels of `pallas_kernels`. JAX has announced that
# this module will be removed.
BACKEND = 'jax.experimental.pallas.triton'

# Module that compiles NMS if `BACKEND` is missing and this one is installed.
OTHER_BACKEND = 'jax_triton'


def kernels_on_gpu(operation: str) -> tuple[str, ...]:
  """Returns the kernels of an operation that this installation can compile.

  Args:
    operation: A field of `Kernels`, or 'anchors_at', which is a part of
      `select_boxes`.

  Returns:
    'pallas', 'triton', both or neither. If there are two, the first is the one
    to use.
  """
  kernels = []
  if importlib.util.find_spec(BACKEND) is not None:
    kernels.append('pallas')
  if operation == 'nms' and importlib.util.find_spec(OTHER_BACKEND) is not None:
    kernels.append('triton')
  return tuple(kernels)


def all_kernels(implementation: str) -> Kernels:
  """Returns a `Kernels` whose fields all have the same value, such as 'xla'."""
  return Kernels(*[implementation] * len(Kernels._fields))


def choose_kernels(
  wanted: str,
  *,
  platform: str,
  device_kind: str,
  jax_version: str,
  compute_capability: float | None = None,
) -> tuple[Kernels, str]:
  """Chooses the implementation of each operation.

  Args:
    wanted: The recipe's choice. 'xla' uses plain JAX. 'pallas' uses kernels as
      far as this machine has them; on a CPU, JAX interprets them. 'auto' uses
      the kernels that `MEASURED` lists for this device. An operation without a
      usable kernel uses plain JAX.
    platform: Platform of the devices: 'cpu', 'gpu' or another of JAX's names.
    device_kind: JAX's name of the devices, for example 'NVIDIA H200'.
    jax_version: Version of JAX, for example '0.12.0'.
    compute_capability: Compute capability of an NVIDIA GPU; the kernels need
      8.0. `None` if it is unknown.

  Returns:
    The implementations, and a line for the log that names them and gives the
    reason.

  Raises:
    ValueError: If `wanted` is none of the three.
  """
  if wanted == 'xla':
    return XLA, 'Kernels: xla, as configured'
  offered = {
    name: kernels[0]
    for name in Kernels._fields
    if (kernels := kernels_on_gpu(name))
  }
  lack = None
  if 'pallas' not in offered.values():
    lack = f'jax {jax_version} has no {BACKEND}'
    if not offered:
      lack += ', and jax-triton is not installed'
  if wanted == 'pallas':
    if platform == 'cpu' and not lack:
      return all_kernels('interpret'), (
        'Kernels: pallas, as configured; on a CPU they are interpreted, '
        'which gives correct results but is very slow'
      )
    if platform not in ('gpu', 'cuda', 'cpu'):
      reason = f'they are for NVIDIA GPUs, not {platform}'
    elif platform == 'cpu' or not offered:
      assert lack is not None  # Otherwise a CPU interprets, and Pallas offers.
      reason = lack
    elif compute_capability is not None and compute_capability < 8:
      reason = (
        f'{device_kind} has compute capability {compute_capability}, but '
        'they need 8.0'
      )
    elif lack:
      return Kernels(**offered), (
        f'Kernels: jax-triton for {", ".join(offered)}, xla instead of '
        f'pallas for the rest: {lack}'
      )
    else:
      return Kernels(**offered), 'Kernels: pallas, as configured'
    return XLA, f'Kernels: xla instead of pallas: {reason}'
  if wanted != 'auto':
    raise ValueError(
      f"kernels must be 'auto', 'xla' or 'pallas', not {wanted!r}."
    )
  major, minor = jax_version.split('.')[:2]
  version = int(major), int(minor)
  measured = MEASURED.get(device_kind, {}).get(version, ())
  chosen = {name: offered[name] for name in measured if name in offered}
  if not chosen:
    return XLA, (
      'Kernels: xla; no other implementation is known to be faster on '
      f'{device_kind} with jax {jax_version}'
    )
  listed = ', '.join(f'{kernel} for {name}' for name, kernel in chosen.items())
  return Kernels(**chosen), f'Kernels: {listed}, measured on {device_kind}'
