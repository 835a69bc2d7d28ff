"""Checks whether this machine trains on its GPU and with correct numbers.

  python -m maskrcnn_jax.doctor

Prints one line for each check: ok, note, or FAIL with the remedy.
Exit status: 0 all is well, 1 a check failed, 2 wrong arguments.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import Any, NamedTuple
import warnings

import jax
from jaxtyping import Array, Key

from maskrcnn_jax.doctor import kernel_cases, kernel_check
from maskrcnn_jax.kernels import choose_kernels
from maskrcnn_jax.runtime import numerics

# Supported versions of jax, as in setup.cfg. Older versions give wrong numbers
# or are slow on GPUs; newer versions have not been tried.
OLDEST_JAX, TOO_NEW_JAX = (0, 11, 1), (0, 13)

PLUGINS = ('jax-cuda13-plugin', 'jax-cuda12-plugin')
GPU_PLATFORMS = {'cuda', 'gpu', 'rocm'}
# Packages that bring a cuDNN of their own. All packages of a process then use
# the cuDNN that is loaded first.
COMPANIONS = ('torch', 'tensorflow')
# File in which the driver of NVIDIA states its version.
DRIVER_FILE = pathlib.Path('/proc/driver/nvidia/version')

INSTALL_GPU = "install JAX for GPUs: pip install 'jax[cuda13]'"


class Finding(NamedTuple):
  """One line of the report."""

  status: str  # 'ok', 'note' or 'FAIL'
  text: str


def installed(package: str) -> str | None:
  """Returns the version of a package; `None` if it is not installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def release(version: str) -> tuple[int, ...]:
  """Returns the numbers of a version: (0, 12, 1) for '0.12.1.dev3'."""
  numbers = re.match(r'\d+(\.\d+)*', version)
  assert numbers is not None, version
  return tuple(map(int, numbers.group().split('.')))


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, or else its type."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nvidia_gpus() -> list[str]:
  """Returns a line for each NVIDIA GPU of the machine: name, driver, memory.

  It asks nvidia-smi, not JAX. If only the driver answers, the result is one
  line with the version of the driver, and without a driver it is empty.
  """
  program = shutil.which('nvidia-smi')
  if program:
    query = subprocess.run(
      [
        program,
        '--query-gpu=name,driver_version,memory.total',
        '--format=csv,noheader',
      ],
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    if query.returncode == 0:
      return [line for line in query.stdout.splitlines() if line.strip()]
  if DRIVER_FILE.exists():
    return [DRIVER_FILE.read_text().splitlines()[0]]
  return []


def check_versions() -> Iterator[Finding]:
  """Checks the versions of Python, JAX and its plugins."""
  names = ('jax', 'jaxlib', *PLUGINS, 'flax', 'optax', 'numpy')
  versions = {name: installed(name) for name in names}
  listed = ', '.join(f'{n} {v}' for n, v in versions.items() if v)
  yield Finding('ok', f'versions: Python {platform.python_version()}, {listed}')
  ours = release(jax.__version__)
  if ours < OLDEST_JAX:
    yield Finding(
      'FAIL',
      f'versions: jax {jax.__version__} is known to give wrong numbers, or '
      'to be very slow on GPUs; install a newer one: '
      "pip install 'jax>=0.11.1,<0.13'",
    )
  elif ours >= TOO_NEW_JAX:
    yield Finding(
      'note',
      f'versions: this program was not tried with jax {jax.__version__}; '
      "if something fails: pip install 'jax>=0.11.1,<0.13'",
    )
  for plugin in PLUGINS:
    if versions[plugin] and versions[plugin] != versions['jaxlib']:
      yield Finding(
        'FAIL',
        f'versions: {plugin} {versions[plugin]} is not for jaxlib '
        f'{versions["jaxlib"]}, and JAX ignores it; {INSTALL_GPU}',
      )


def check_devices(devices: Sequence[Any], gpus: list[str]) -> Iterator[Finding]:
  """Checks that JAX uses the GPU, if there is one and the CPU is not asked for.

  Args:
    devices: Devices that JAX uses, as `jax.devices()` returns them.
    gpus: A line for each NVIDIA GPU of the machine.
  """
  wanted = os.environ.get('JAX_PLATFORMS', '')
  used = devices[0].platform
  kinds = sorted({device.device_kind for device in devices})
  yield Finding('ok', f'devices: {len(devices)} x {", ".join(kinds)} ({used})')
  if used in GPU_PLATFORMS:
    yield from _check_gpu(devices[0])
    return
  asked = set(wanted.replace(' ', '').split(',')) - {''}
  plugins = [name for name in PLUGINS if installed(name)]
  if asked and not asked & GPU_PLATFORMS:
    if gpus:
      yield Finding(
        'note',
        f'devices: the GPU is not used, because JAX_PLATFORMS={wanted}',
      )
  elif gpus and not plugins:
    yield Finding(
      'FAIL',
      f'devices: this machine has a GPU, but JAX runs on {used}; '
      f'{INSTALL_GPU} (or set JAX_PLATFORMS=cpu if that is intended)',
    )
  elif asked or gpus:
    yield Finding(
      'FAIL',
      f'devices: a GPU was asked for, but JAX runs on {used}; start '
      'with JAX_PLATFORMS=cuda to see why (driver too old, or all of its '
      'memory taken)',
    )
  elif plugins:
    yield Finding(
      'FAIL',
      f'devices: {plugins[0]} is installed, but there is no GPU that '
      'it can use; install the driver, or set JAX_PLATFORMS=cpu to train on '
      'the CPU',
    )


def _check_gpu(device: Any) -> Iterator[Finding]:
  """Checks the libraries and the memory setting of a GPU that JAX uses.

  Args:
    device: One of `jax.devices()`.
  """
  version = ' '.join(device.client.platform_version.split())
  yield Finding('ok', f'runtime: {version}')
  for package in COMPANIONS:
    if importlib.util.find_spec(package):
      yield Finding(
        'note',
        f'runtime: {package} is in the same environment with a cuDNN '
        'of its own; if convolutions fail, install it elsewhere',
      )
  fraction = os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.75')
  try:
    allowed = 0 < float(fraction) < 1
  except ValueError:
    allowed = False
  if not allowed:
    yield Finding(
      'FAIL',
      f'memory: XLA_PYTHON_CLIENT_MEM_FRACTION={fraction} must be '
      'more than 0 and less than 1; unset it, or set 0.9',
    )


def check_numbers() -> Iterator[Finding]:
  """Checks that JAX computes correct numbers on its device."""
  faults = numerics.check_numerics()
  for check in numerics.CHECKS:
    if check.name in faults:
      yield Finding('FAIL', f'numbers: {check.name}: {faults[check.name]}')
    else:
      yield Finding('ok', f'numbers: {check.name}')


def check_kernels(key: Key[Array, '']) -> Iterator[Finding]:
  """Compares each kernel with plain JAX on this device.

  Args:
    key: Random key for the input.
  """
  device = jax.devices()[0]
  chosen, why = choose_kernels(
    'pallas',
    platform=device.platform,
    device_kind=device.device_kind,
    jax_version=jax.__version__,
    compute_capability=float(getattr(device, 'compute_capability', 8)),
  )
  if 'xla' in chosen:
    yield Finding('note', f'{why}; this costs speed, nothing else')
  on_gpu = device.platform in GPU_PLATFORMS
  size = kernel_cases.QUICK if on_gpu else kernel_cases.TINY
  for case in kernel_cases.make_cases(size):
    # An operation that is not a field of `Kernels` is a part of select_boxes.
    implementation = getattr(chosen, case.name, chosen.select_boxes)
    if implementation == 'xla':
      continue
    title = f'kernel {case.name} ({case.detail}, {implementation})'
    try:
      fault = kernel_check.make_check(case, implementation)(key)
    # A compiler may raise any exception.
    except Exception as error:
      fault = first_line(error)
    if fault:
      yield Finding('FAIL', f'{title}: {fault}; run with --config.kernels=xla')
    else:
      yield Finding('ok', title)


def report(findings: Iterable[Finding]) -> bool:
  """Prints each finding as soon as it is made; returns whether none is FAIL."""
  is_well = True
  for status, text in findings:
    print(f'{status:4} {text}', flush=True)
    is_well &= status != 'FAIL'
  return is_well


def examine() -> Iterator[Finding]:
  """Runs all checks, the quick ones first."""
  yield from check_versions()
  gpus = nvidia_gpus()
  for gpu in gpus:
    yield Finding('ok', f'GPU in this machine: {gpu}')
  try:
    devices = jax.devices()
  # JAX raises an AssertionError for an unknown platform in JAX_PLATFORMS.
  except (RuntimeError, AssertionError) as error:
    asked = os.environ.get('JAX_PLATFORMS', '')
    advice = 'there is no GPU, or no driver for it'
    if gpus or not any(map(installed, PLUGINS)):
      advice = INSTALL_GPU
    yield Finding(
      'FAIL',
      f'devices: JAX does not start with JAX_PLATFORMS={asked}: '
      f'{first_line(error)}; {advice} (JAX_PLATFORMS=cpu runs on the CPU)',
    )
    return
  yield from check_devices(devices, gpus)
  yield from check_numbers()
  # JAX warns that Pallas's Triton backend will be removed.
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', DeprecationWarning)
    yield from check_kernels(jax.random.key(0))


def main() -> None:
  """Runs all checks and prints the report; ends with status 1 after a FAIL."""
  argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.doctor',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  ).parse_args()
  if report(examine()):
    print('All is well.')
  else:
    print('Something is not well; see the lines with FAIL.', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
  main()
