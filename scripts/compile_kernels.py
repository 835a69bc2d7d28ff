"""Compiles every kernel and the training step for GPUs that are not there.

  pip install "jax-cuda13-plugin==$V" "jax-cuda13-pjrt==$V" nvidia-cuda-nvcc \
      nvidia-nvvm nvidia-cuda-crt                       # V: the version of jax
  PATH=$SITE_PACKAGES/nvidia/cu13/bin:$PATH JAX_PLATFORMS=cpu \
      python scripts/compile_kernels.py [--only=WORD] [--targets=h200,a100]

XLA needs no more than the description of a GPU (scripts/gpu_targets) to compile
for it. Prints the memory of each program, for the kernels and for plain JAX;
for NMS by jax-triton too, where that is installed.
Nothing is run: speed and results it cannot tell.
"""

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import sys
import time
import warnings

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.config import default_config
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.doctor import kernel_cases
from maskrcnn_jax.kernels import kernels_on_gpu
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime.precision import set_precision
from maskrcnn_jax.training import state as train_state
from maskrcnn_jax.training import step as train_step
from maskrcnn_jax.training.optimizer import make_optimizer

TARGETS = pathlib.Path(__file__).parent / 'gpu_targets'


def gpu_mesh(target: str, num_gpus: int = 1) -> Mesh:
  """Returns a mesh of GPUs that need not exist."""
  described = topologies.get_topology_desc(
    platform='cuda',
    topology_name=target,
    topology=f'1x{num_gpus}x1',
    target_config=(TARGETS / f'{target}.txtpb').read_text(),
  )
  return Mesh(np.array(described.devices), ('data',))


def compile_for(mesh: Mesh, function, *arguments, **statics):
  """Compiles a jitted function for arguments with shardings on the mesh."""
  # Pallas asks which GPU it compiles for; inside shard_map it finds out.
  abstract = (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    if mesh.size == 1
    else contextlib.nullcontext()
  )
  with abstract, warnings.catch_warnings():
    # Pallas's Triton backend says that it will go one day.
    warnings.simplefilter('ignore', DeprecationWarning)
    lowered = function.trace(*arguments, **statics).lower(
      lowering_platforms=('cuda',)
    )
    # Autotuning would time candidates on the GPU that is not there.
    return lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})


def shapes_on(mesh: Mesh, tree, spec=()):
  """Returns the shapes of a tree, each with the same sharding."""
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def report(title: str, started: float, compiled) -> None:
  """Prints what a program needs."""
  memory = compiled.memory_analysis()
  arguments, results, own = (
    size / 2**20
    for size in (
      memory.argument_size_in_bytes,
      memory.output_size_in_bytes,
      memory.temp_size_in_bytes,
    )
  )
  print(
    f'{title}: arguments {arguments:.1f}, results {results:.1f}, temporary '
    f'{own:.1f} MiB; compiled in {time.monotonic() - started:.1f} s',
    flush=True,
  )


def compile_cases(target: str, size: kernel_cases.Size, only: str) -> None:
  """Compiles each case of `kernel_check`, as kernel and as plain JAX."""
  mesh = gpu_mesh(target)
  for case in kernel_cases.make_cases(size):
    if only not in case.name:
      continue
    arguments = shapes_on(
      mesh, jax.eval_shape(case.make_arguments, jax.random.key(0))
    )
    for kernels in (*kernels_on_gpu(case.name), 'xla'):
      started = time.monotonic()
      compiled = compile_for(
        mesh,
        jax.jit(functools.partial(case.call, kernels=kernels)),
        *arguments,
      )
      report(
        f'{target} {case.name} ({case.detail}) {kernels}', started, compiled
      )


def compile_model(
  config,
  target: str,
  num_gpus: int,
  *,
  batch_size: int,
  padded_size: tuple[int, int],
) -> None:
  """Compiles the training step and inference, with kernels and without."""
  mesh = gpu_mesh(target, num_gpus)
  dtype = set_precision(config.precision)
  batch = shapes_on(
    mesh,
    made_up_batch(
      image_size=padded_size,
      batch_size=batch_size,
      num_objects=8,
      max_objects=config.data.max_objects,
      num_classes=81,
    ),
    ['data'],
  )
  optimizer = make_optimizer(
    momentum=config.optimizer.momentum,
    weight_decay=config.optimizer.weight_decay,
    clip_norm=config.optimizer.clip_norm,
    schedule=lambda step: 1e-6,
    bias_schedule=lambda step: 1e-6,
  )
  state = None
  limits = GroundTruthLimits(config.data.max_objects, 512, 64, 1)
  for kernels in ('pallas', 'xla'):
    config.kernels = kernels
    title = (
      f'{num_gpus} x {target}, {kernels}, {batch_size} images of '
      f'{padded_size[0]}x{padded_size[1]}, {config.precision}'
    )
    started = time.monotonic()
    rcnn = Rcnn.from_config(config, num_classes=81, dtype=dtype, mesh=mesh)
    if state is None:
      state = shapes_on(
        mesh, train_state.initial_state(rcnn, optimizer, config)
      )
    step = train_step.jit_train_step(
      train_step.Trainer.from_config(config, rcnn, optimizer, limits)
    )
    compiled = compile_for(mesh, step, state, batch, padded_size=padded_size)
    report(f'training step, {title}', started, compiled)
    started = time.monotonic()

    def detect(variables, batch, padded_size, rcnn=rcnn):
      detector = Detector(rcnn, variables, config, (), 0)
      return detector.detect(batch, padded_size=padded_size)

    compiled = compile_for(
      mesh,
      jax.jit(detect, static_argnames=('padded_size', 'rcnn')),
      train_state.variables_of(state),
      batch,
      padded_size=padded_size,
    )
    report(f'inference, {title}', started, compiled)


def main() -> None:
  """Compiles all that is asked for; any failure is an error."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--targets', default='h200,a100')
  parser.add_argument('--only', default='', help='operations named like this')
  parser.add_argument('--no_model', action='store_true')
  parser.add_argument('--quick', action='store_true', help='small sizes')
  arguments = parser.parse_args()
  if importlib.util.find_spec('jax_plugins') is None:
    print(
      'error: the CUDA plugin of jax is not installed; see '
      'scripts/compile_kernels.py --help.',
      file=sys.stderr,
    )
    sys.exit(2)
  if 'triton' not in kernels_on_gpu('nms'):
    print('NMS by jax-triton is left out: it is not installed', flush=True)
  size = kernel_cases.QUICK if arguments.quick else kernel_cases.TRAINING
  for target in arguments.targets.split(','):
    compile_cases(target, size, arguments.only)
  if arguments.no_model:
    return
  config = default_config()
  config.roi.sampling_ratio = 2
  config.precision = 'bf16'
  padded_size = (800, 1344)
  if arguments.quick:
    padded_size = (128, 160)
  for target in arguments.targets.split(','):
    compile_model(config, target, 1, batch_size=8, padded_size=padded_size)
  compile_model(
    config,
    arguments.targets.split(',')[0],
    8,
    batch_size=64,
    padded_size=padded_size,
  )


if __name__ == '__main__':
  main()
