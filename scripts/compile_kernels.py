r"""Compiles every kernel and the training step for GPUs, without a GPU.

  pip install "jax-cuda13-plugin==$V" "jax-cuda13-pjrt==$V" nvidia-cuda-nvcc \
      nvidia-nvvm nvidia-cuda-crt                       # V: the version of jax
  PATH=$SITE_PACKAGES/nvidia/cu13/bin:$PATH JAX_PLATFORMS=cpu \
      python scripts/compile_kernels.py [--only=WORD] [--targets=h200,a100]

  python scripts/compile_kernels.py --recipes=r50_fpn,r50_c4    # whole recipes

To compile for a GPU, XLA needs only its description (scripts/gpu_targets).
Prints the memory that each program needs, with kernels and with plain JAX, and
with NMS by jax-triton if that is installed. The programs are not run, so that
this shows neither speed nor results.
"""

import argparse
import contextlib
import functools
import importlib.util
import pathlib
import sys
import time
from typing import Any
import warnings

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Detections, GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.recipe import read_recipe
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
  """Returns a mesh of GPUs that this machine need not have.

  Args:
    target: Kind of GPU, the name of a file in scripts/gpu_targets.
    num_gpus: Number of GPUs, all in one machine.
  """
  described = topologies.get_topology_desc(
    platform='cuda',
    topology_name=target,
    topology=f'1x{num_gpus}x1',
    target_config=(TARGETS / f'{target}.txtpb').read_text(),
  )
  return Mesh(np.array(described.devices), ('data',))


def compile_for(
  mesh: Mesh, function: Any, *arguments: Any, **statics: Any
) -> jax.stages.Compiled:
  """Compiles a jitted function for the GPUs of a mesh.

  Args:
    mesh: The GPUs.
    function: Result of `jax.jit`.
    *arguments: Trees of shapes with shardings on the mesh.
    **statics: Static keyword arguments.
  """
  # Pallas asks which GPU it compiles for. With several GPUs the function uses
  # shard_map, which tells it.
  abstract = (
    jax.sharding.use_abstract_mesh(mesh.abstract_mesh)
    if mesh.size == 1
    else contextlib.nullcontext()
  )
  with abstract, warnings.catch_warnings():
    # JAX warns that Pallas's Triton backend will be removed.
    warnings.simplefilter('ignore', DeprecationWarning)
    lowered = function.trace(*arguments, **statics).lower(
      lowering_platforms=('cuda',)
    )
    # Autotuning would need the GPU, to time candidates on it.
    return lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})


def shapes_on(mesh: Mesh, tree: Any, spec: tuple[str, ...] = ()) -> Any:
  """Returns a tree of shapes and dtypes, all with the same sharding.

  A program can be compiled for these shapes without any arrays.

  Args:
    mesh: Devices of the sharding.
    tree: Tree of arrays or of shapes with dtypes.
    spec: The names of the mesh axes over which the first axes of each array are
      split: ('data',) splits axis 0 over the axis 'data'. () puts the whole
      array on every device.
  """
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
  )


def report(title: str, started: float, compiled: jax.stages.Compiled) -> None:
  """Prints the memory that a compiled program needs, and the compile time.

  Args:
    title: Name of the program.
    started: `time.monotonic()` when its compilation began.
    compiled: The program.
  """
  memory = compiled.memory_analysis()
  assert memory is not None  # GPUs have it.
  arguments, results, temporary = (
    size / 2**20
    for size in (
      memory.argument_size_in_bytes,
      memory.output_size_in_bytes,
      memory.temp_size_in_bytes,
    )
  )
  print(
    f'{title}: arguments {arguments:.1f}, results {results:.1f}, temporary '
    f'{temporary:.1f} MiB; compiled in {time.monotonic() - started:.1f} s',
    flush=True,
  )


def compile_cases(target: str, size: kernel_cases.Size, only: str) -> None:
  """Compiles each operation that has a kernel, with kernels and in plain JAX.

  Args:
    target: Kind of GPU, the name of a file in scripts/gpu_targets.
    size: Sizes of the arguments.
    only: Compiles only operations whose name contains this word.
  """
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
  config: ml_collections.ConfigDict,
  target: str,
  num_gpus: int,
  *,
  batch_size: int,
  padded_size: tuple[int, int],
  implementations: tuple[str, ...] = ('pallas', 'xla'),
) -> None:
  """Compiles the training step and inference.

  Args:
    config: Recipe; its key `kernels` is changed.
    target: Kind of GPU, the name of a file in scripts/gpu_targets.
    num_gpus: Number of GPUs, all in one machine.
    batch_size: Number of images of all GPUs together.
    padded_size: (height, width) of the images, in pixels.
    implementations: Values of the key `kernels` to compile with.
  """
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
    ('data',),
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
  for kernels in implementations:
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

    def detect(
      variables: Any,
      batch: Batch,
      padded_size: tuple[int, int],
      rcnn: Rcnn = rcnn,
    ) -> Detections:
      """Detects the objects of a batch; the arguments are `Detector`'s."""
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


def compile_recipe(
  name: str, target: str, padded_size: tuple[int, int]
) -> None:
  """Compiles the training step and inference of a recipe for one GPU, in bf16.

  A GPU has an eighth of the images of the recipe's batch, or the whole batch of
  a recipe for one GPU.

  Args:
    name: Name or file of the recipe.
    target: Kind of GPU, the name of a file in scripts/gpu_targets.
    padded_size: (height, width) of the images, in pixels.
  """
  config = read_recipe(name).config
  config.precision = 'bf16'
  num_images = config.train.batch_size
  if '1gpu' not in name:
    num_images = max(num_images // 8, 1)
  print(f'{name}:', flush=True)
  compile_model(
    config,
    target,
    1,
    batch_size=num_images,
    padded_size=padded_size,
    implementations=('pallas',),
  )


def main() -> None:
  """Compiles the programs that the command line selects."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--targets',
    default='h200,a100',
    help='kinds of GPU, names of files in scripts/gpu_targets',
  )
  parser.add_argument(
    '--only', default='', help='only operations whose name contains this word'
  )
  parser.add_argument(
    '--recipes',
    default='',
    help='only training step and inference of these recipes, in bf16',
  )
  parser.add_argument(
    '--no_model',
    action='store_true',
    help='leave out the training step and inference',
  )
  parser.add_argument(
    '--quick', action='store_true', help='small images and few boxes'
  )
  arguments = parser.parse_args()
  if importlib.util.find_spec('jax_plugins') is None:
    print(
      'error: the CUDA plugin of jax is not installed; see '
      'scripts/compile_kernels.py --help.',
      file=sys.stderr,
    )
    sys.exit(2)
  targets = arguments.targets.split(',')
  padded_size = (128, 160) if arguments.quick else (800, 1344)
  if arguments.recipes:
    for target in targets:
      for name in arguments.recipes.split(','):
        compile_recipe(name, target, padded_size)
    return
  if 'triton' not in kernels_on_gpu('nms'):
    print('NMS by jax-triton is left out: it is not installed', flush=True)
  size = kernel_cases.QUICK if arguments.quick else kernel_cases.TRAINING
  for target in targets:
    compile_cases(target, size, arguments.only)
  if arguments.no_model:
    return
  config = default_config()
  config.roi.sampling_ratio = 2
  config.precision = 'bf16'
  for target in targets:
    compile_model(config, target, 1, batch_size=8, padded_size=padded_size)
  compile_model(
    config,
    targets[0],
    8,
    batch_size=64,
    padded_size=padded_size,
  )


if __name__ == '__main__':
  main()
