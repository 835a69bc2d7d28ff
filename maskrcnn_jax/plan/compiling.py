"""Compiles training steps and inference for GPUs that need not be here.

To compile for a GPU, XLA needs only a description of it: the files in targets/.
"""

import contextlib
import functools
import importlib.resources
import importlib.util
import os
import pathlib
import time
from typing import Any, NamedTuple
import warnings

import jax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Detections, GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime.precision import set_precision
from maskrcnn_jax.training import state as train_state
from maskrcnn_jax.training import step as train_step
from maskrcnn_jax.training.optimizer import (
  make_recipe_optimizer,
  split_parameters,
)

# Number of objects of each made-up image.
_NUM_OBJECTS = 8


class Memory(NamedTuple):
  """Memory that a program needs on each device, in bytes."""

  arguments: int  # parameters, optimizer state and one batch
  results: int  # without those that take over the memory of an argument
  temporary: int  # activations and gradients

  @property
  def total(self) -> int:
    """Sum of the three."""
    return self.arguments + self.results + self.temporary


class CompiledStep(NamedTuple):
  """A program that was compiled and not run."""

  text: str  # the program of one device, in XLA's language HLO
  memory: Memory
  batch_bytes: int  # bytes of the batch on each device
  seconds: float  # time that compiling took
  trainable_bytes: int  # bytes of the parameters that a training changes
  num_trainable: int  # number of these parameters


def find_compiler() -> None:
  """Puts NVIDIA's assembler on PATH.

  Raises:
    InputError: If the assembler or JAX's plugin for GPUs is not installed.
  """
  try:
    plugin = importlib.util.find_spec('jax_plugins.xla_cuda13')
  except ModuleNotFoundError:
    plugin = None
  nvidia = importlib.util.find_spec('nvidia')
  folders = [
    pathlib.Path(folder) / 'cu13' / 'bin'
    for folder in (nvidia.submodule_search_locations or [] if nvidia else [])
  ]
  if plugin is None or not any((f / 'ptxas').is_file() for f in folders):
    raise InputError(
      'To compile for GPUs, the packages of the extra `plan` must be installed '
      "(270 MB to download, 760 MB on disk): pip install 'jax[cuda13-local]' "
      'nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt. A GPU is not needed.'
    )
  os.environ['PATH'] = os.pathsep.join(
    [*map(str, folders), os.environ.get('PATH', '')]
  )


def gpu_mesh(target: str, num_gpus: int = 1, num_hosts: int = 1) -> Mesh:
  """Returns a mesh of GPUs that this machine need not have.

  Args:
    target: Kind of GPU, the name of a file in targets/.
    num_gpus: Number of GPUs of each machine.
    num_hosts: Number of machines.
  """
  file = importlib.resources.files('maskrcnn_jax.plan') / 'targets'
  described = topologies.get_topology_desc(
    platform='cuda',
    topology_name=target,
    topology=f'{num_hosts}x{num_gpus}x1',
    target_config=(file / f'{target}.txtpb').read_text(encoding='utf-8'),
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


def shapes_on(mesh: Mesh, tree: PyTree, spec: tuple[str, ...] = ()) -> PyTree:
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


def compile_step(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  batch_size: int,
  padded_size: tuple[int, int],
  num_classes: int,
  mode: str = 'train',
  example: Batch | None = None,
  limits: GroundTruthLimits | None = None,
) -> CompiledStep:
  """Compiles the training step or the inference of a recipe for GPUs.

  Args:
    config: The recipe. Its precision is not 'auto'.
    mesh: The GPUs.
    batch_size: Number of images of all GPUs together, a multiple of their
      number.
    padded_size: (height, width) of the padded images, in pixels.
    num_classes: Number of classes, background included.
    mode: 'train' or 'inference'.
    example: A batch of any number of images, whose arrays have the shapes of
      the training set. `None` takes the shapes of made-up images.
    limits: Static sizes of the ground truth; `None` for made-up images.
  """
  dtype = set_precision(config.precision)
  rcnn = Rcnn.from_config(
    config, num_classes=num_classes, dtype=dtype, mesh=mesh
  )
  _, optimizer = make_recipe_optimizer(config)
  state = jax.eval_shape(
    lambda: train_state.start_average(
      train_state.state_with(
        rcnn.init(jax.random.key(config.seed)), optimizer, config
      ),
      config,
    )
  )
  if example is None:
    example = made_up_batch(
      image_size=padded_size,
      batch_size=1,
      num_objects=min(_NUM_OBJECTS, config.data.max_objects),
      max_objects=config.data.max_objects,
      num_classes=num_classes,
    )
  batch = shapes_on(
    mesh,
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype),
      example,
    ),
    ('data',),
  )
  started = time.monotonic()
  if mode == 'train':
    step = train_step.jit_train_step(
      train_step.Trainer.from_config(
        config,
        rcnn,
        optimizer,
        limits or GroundTruthLimits(config.data.max_objects, 512, 64, 1),
      )
    )
    compiled = compile_for(
      mesh, step, shapes_on(mesh, state), batch, padded_size=padded_size
    )
  else:
    compiled = compile_for(
      mesh,
      jax.jit(
        functools.partial(_detect, rcnn, config),
        static_argnames='padded_size',
      ),
      shapes_on(mesh, train_state.variables_of(state)),
      batch,
      padded_size=padded_size,
    )
  seconds = time.monotonic() - started
  text = compiled.as_text()
  assert text is not None  # XLA's programs for GPUs have a text.
  trainable = jax.tree.leaves(
    split_parameters(state.params, frozen_prefixes(config.freeze_at))[0]
  )
  return CompiledStep(
    text,
    memory_of(compiled),
    sum(map(_bytes, jax.tree.leaves(batch))) // mesh.size,
    seconds,
    sum(map(_bytes, trainable)),
    sum(leaf.size for leaf in trainable),
  )


def _detect(
  rcnn: Rcnn,
  config: ml_collections.ConfigDict,
  variables: dict[str, Any],
  batch: Batch,
  padded_size: tuple[int, int],
) -> Detections:
  """Detects the objects of a batch; the arguments are `Detector`'s."""
  detector = Detector(rcnn, variables, config, (), 0)
  return detector.detect(batch, padded_size=padded_size)


def memory_of(compiled: jax.stages.Compiled) -> Memory:
  """Returns the memory that a compiled program needs on each device."""
  memory = compiled.memory_analysis()
  assert memory is not None  # CPUs and GPUs have it.
  return Memory(
    memory.argument_size_in_bytes,
    memory.output_size_in_bytes - memory.alias_size_in_bytes,
    memory.temp_size_in_bytes,
  )


def _bytes(leaf: Any) -> int:
  """Returns the number of bytes of an array, given its shape and dtype."""
  return leaf.size * np.dtype(leaf.dtype).itemsize
