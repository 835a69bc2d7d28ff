"""Which implementation each operation gets; the only place that decides it.

An operation of `ops/` that has a kernel takes `kernels='xla'|'pallas'|
'interpret'`: plain JAX, which runs anywhere; the kernel in `pallas_kernels/`
that is its drop-in; and that kernel run as plain JAX, which is slow, for tests.
NMS also takes 'triton': the same kernel through jax-triton, which is an extra.
"""

import importlib.util
from typing import NamedTuple


class Kernels(NamedTuple):
  """The implementation of each operation: 'xla', 'pallas', ...; see above."""

  pairwise_iou: str = 'xla'
  match_by_overlap: str = 'xla'
  select_boxes: str = 'xla'
  nms: str = 'xla'
  roi_align: str = 'xla'
  rasterize_outlines: str = 'xla'


XLA = Kernels()

# Where each kernel has been run by `scripts/gpu_check.sh`, found equal to its
# reference and faster: {device kind: {(JAX's major, minor): operations}}.
# No GPU has been had so far, so that 'auto' is 'xla' everywhere.
MEASURED: dict[str, dict[tuple[int, int], tuple[str, ...]]] = {}

# What `pallas_kernels` is compiled by. JAX has announced that it will go.
BACKEND = 'jax.experimental.pallas.triton'

# What NMS is compiled by without it, where it is installed.
OTHER_BACKEND = 'jax_triton'


def kernels_on_gpu(operation: str) -> tuple[str, ...]:
  """Returns the kernels that there are of an operation, the first to be used.

  Args:
    operation: A field of `Kernels`, or 'anchors_at', a part of selection.
  """
  kernels = []
  if importlib.util.find_spec(BACKEND) is not None:
    kernels.append('pallas')
  if (
      operation == 'nms'
      and importlib.util.find_spec(OTHER_BACKEND) is not None
  ):
    kernels.append('triton')
  return tuple(kernels)


def all_kernels(implementation: str) -> Kernels:
  """Returns the same implementation for all operations."""
  return Kernels(*[implementation] * len(Kernels._fields))


def choose_kernels(
    wanted: str,
    *,
    platform: str,
    device_kind: str,
    jax_version: str,
    compute_capability: float | None = None,
) -> tuple[Kernels, str]:
  """Decides on the implementation of every operation.

  Args:
    wanted: 'auto': a kernel where it is known to be right and faster; 'xla';
      or 'pallas'.
    platform: Of the devices, 'cpu', 'gpu' or another.
    device_kind: For example 'NVIDIA H200'.
    jax_version: For example '0.12.0'.
    compute_capability: Of an NVIDIA GPU; the kernels need 8.0.

  Returns:
    The choice, and a line for the log that says what it is and why.
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
          'which is right but very slow'
      )
    if platform not in ('gpu', 'cuda', 'cpu'):
      reason = f'they are for NVIDIA GPUs, not {platform}'
    elif platform == 'cpu' or not offered:
      reason = lack
    elif compute_capability is not None and compute_capability < 8:
      reason = (
          f'{device_kind} has compute capability {compute_capability}, and '
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
    raise ValueError(f'kernels must be auto, xla or pallas, not {wanted!r}.')
  version = tuple(int(part) for part in jax_version.split('.')[:2])
  measured = MEASURED.get(device_kind, {}).get(version, ())
  chosen = {name: offered[name] for name in measured if name in offered}
  if not chosen:
    return XLA, (
        f'Kernels: xla; none is known to be faster on {device_kind} with jax '
        f'{jax_version}'
    )
  listed = ', '.join(f'{way} for {name}' for name, way in chosen.items())
  return Kernels(**chosen), f'Kernels: {listed}, measured on {device_kind}'
