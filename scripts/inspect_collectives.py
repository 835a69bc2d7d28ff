r"""Lists the data that many GPUs exchange in a training step of a recipe.

  python scripts/inspect_collectives.py --config=configs/r50_fpn.py

The training step is compiled, not run. No GPU is needed: XLA compiles for the
description of a GPU. XLA's plugin for GPUs must be installed, in the version V
of JAX:

  pip install jax-cuda13-plugin==V jax-cuda13-pjrt==V nvidia-cuda-nvcc \
      nvidia-nvvm nvidia-cuda-crt

Prints the collective operations with their bytes, and a line of JSON. It does
not show the speed.
"""

import argparse
import collections
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# JAX reads this when it is imported. The initial weights are drawn on the CPU.
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402

from maskrcnn_jax.array_types import GroundTruthLimits  # noqa: E402
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch  # noqa: E402
from maskrcnn_jax.config.command_line import split_arguments  # noqa: E402
from maskrcnn_jax.config.recipe import read_recipe  # noqa: E402
from maskrcnn_jax.model.backbone import frozen_prefixes  # noqa: E402
from maskrcnn_jax.rcnn import Rcnn  # noqa: E402
from maskrcnn_jax.runtime import cluster  # noqa: E402
from maskrcnn_jax.runtime.precision import set_precision  # noqa: E402
from maskrcnn_jax.training import state as train_state  # noqa: E402
from maskrcnn_jax.training import step as train_step  # noqa: E402
from maskrcnn_jax.training.optimizer import (  # noqa: E402
  make_recipe_optimizer,
  split_parameters,
)

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
)
TRANSFERS = ('infeed', 'outfeed', 'send', 'recv')
# XLA's text marks an array in the memory of the host in this way.
HOST_MEMORY = 'S(5)'
# Bytes of an element, by XLA's name of its dtype.
BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'bf16': 2,
  'f16': 2,
  's16': 2,
  'u16': 2,
  'f32': 4,
  's32': 4,
  'u32': 4,
  'f64': 8,
  's64': 8,
  'u64': 8,
}


def find_plugin() -> None:
  """Puts the assembler for GPUs on PATH; ends the program if it is missing.

  The assembler is in the packages that are installed with JAX's plugin for
  GPUs.
  """
  try:
    found = importlib.util.find_spec('jax_plugins.xla_cuda13')
  except ModuleNotFoundError:
    found = None
  nvidia = importlib.util.find_spec('nvidia')
  if found is None or nvidia is None:
    sys.exit(
      "error: JAX's plugin for GPUs is not installed; --help says how to "
      'install it.'
    )
  locations = nvidia.submodule_search_locations
  assert locations is not None  # It is a package, not a single file.
  folders = [str(pathlib.Path(folder) / 'cu13' / 'bin') for folder in locations]
  os.environ['PATH'] = os.pathsep.join([*folders, os.environ['PATH']])


def compile_step(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  image_size: tuple[int, int],
  num_classes: int,
) -> tuple[jax.stages.Compiled, int, int]:
  """Compiles the training step of a recipe.

  Args:
    config: The recipe.
    mesh: GPUs to compile for; this machine need not have them.
    image_size: (height, width) of the padded images, in pixels.
    num_classes: Number of classes with background.

  Returns:
    compiled: The training step.
    trainable_bytes: Number of bytes of the parameters that it trains.
    trainable: Number of these parameters.
  """
  dtype = set_precision(config.precision)
  rcnn = Rcnn.from_config(
    config, num_classes=num_classes, dtype=dtype, mesh=mesh
  )
  _, optimizer = make_recipe_optimizer(config)
  state = train_state.start_average(
    train_state.initial_state(rcnn, optimizer, config), config
  )
  trainable, _ = split_parameters(
    state.params, frozen_prefixes(config.freeze_at)
  )
  one = made_up_batch(
    image_size=image_size,
    batch_size=1,
    num_objects=8,
    max_objects=config.data.max_objects,
    num_classes=num_classes,
  )
  spread = NamedSharding(mesh, PartitionSpec('data'))
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      (config.train.batch_size, *x.shape[1:]), x.dtype, sharding=spread
    ),
    one,
  )
  limits = GroundTruthLimits(config.data.max_objects, 512, 64, 1)
  # `Any`, because `trace` is a method of jitted functions only.
  step: Any = train_step.jit_train_step(
    train_step.Trainer.from_config(config, rcnn, optimizer, limits)
  )
  lowered = step.trace(
    cluster.replicated_shapes(state, mesh), batch, padded_size=image_size
  ).lower(lowering_platforms=('cuda',))
  # Autotuning would need the GPU, to time candidates on it.
  compiled = lowered.compile(compiler_options={'xla_gpu_autotune_level': 0})
  leaves = jax.tree.leaves(trainable)
  return compiled, sum(x.nbytes for x in leaves), sum(x.size for x in leaves)


def read_program(text: str) -> dict[str, Any]:
  """Counts the exchanges of data in the text of a compiled program.

  Args:
    text: The program in XLA's HLO language.

  Returns:
    collectives: {operation: [bytes of each]}, exchanges between devices.
    in_loops: {operation: number} of those in loops or branches.
    transfers: {operation: number}, transfers from and to the host.
    callbacks: {name: number}, calls of Python on the host.
    custom_calls: {name: number}, calls of functions outside of XLA.
  """
  exchanged: dict[str, list[int]] = collections.defaultdict(list)
  in_loops: collections.Counter[str] = collections.Counter()
  transfers: collections.Counter[str] = collections.Counter()
  in_entry = False
  for line in text.splitlines():
    if line and not line[0].isspace():
      in_entry = line.startswith('ENTRY')
    found = re.search(r'= (.*?) ([a-z][a-z0-9-]*)\(', line)
    if not found:
      continue
    shapes, operation = found.groups()
    # The result of a `-start` operation lists both its input and its output.
    name = operation.removesuffix('-start')
    if name in COLLECTIVES:
      arrays = re.findall(r'([a-z]+\d*)\[([\d,]*)\]', shapes)
      size = sum(
        BYTES[dtype] * math.prod(int(n) for n in sides.split(',') if n)
        for dtype, sides in arrays
      )
      if name == 'all-reduce' and operation != name:
        size //= 2
      exchanged[name].append(size)
      if not in_entry:
        in_loops[name] += 1
    elif name.removesuffix('-done') in TRANSFERS:
      transfers[name] += 1
    elif HOST_MEMORY in shapes:
      transfers[f'{name} in host memory'] += 1
  targets = collections.Counter(
    re.findall(r'custom_call_target="([^"]*)"', text)
  )
  return {
    'collectives': dict(exchanged),
    'in_loops': dict(in_loops),
    'transfers': dict(transfers),
    'callbacks': {
      name: count
      for name, count in targets.items()
      if 'callback' in name.lower()
    },
    'custom_calls': dict(targets),
  }


def main() -> None:
  """Compiles the training step and prints its exchanges and a line of JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    '--config', help='the recipe; --config.KEY=VALUE changes a key of it'
  )
  parser.add_argument(
    '--target',
    default=HERE / 'gpu_targets' / 'h200.txtpb',
    type=pathlib.Path,
    help='file with the description of the GPU',
  )
  parser.add_argument('--hosts', type=int, default=1, help='number of machines')
  parser.add_argument(
    '--gpus', type=int, default=8, help='number of GPUs of each machine'
  )
  parser.add_argument(
    '--batch_size', type=int, help="images of all GPUs; the recipe's by default"
  )
  parser.add_argument(
    '--size', default='800x1344', help='padded size of images, HEIGHTxWIDTH'
  )
  parser.add_argument(
    '--classes', type=int, default=80, help='number of classes'
  )
  parser.add_argument('--precision', help="the recipe's by default")
  parser.add_argument(
    '--hlo', type=pathlib.Path, help='file to write the compiled program to'
  )
  path, overrides, others = split_arguments(sys.argv[1:])
  arguments = parser.parse_args(others)
  if path is None:
    parser.error('--config=RECIPE is missing')
  find_plugin()
  config = read_recipe(path, overrides).config
  if arguments.batch_size:
    config.train.batch_size = arguments.batch_size
  if arguments.precision:
    config.precision = arguments.precision

  topology = topologies.get_topology_desc(
    platform='cuda',
    topology_name='target',
    topology=f'{arguments.hosts}x{arguments.gpus}x1',
    target_config=arguments.target.read_text(),
  )
  mesh = Mesh(np.array(topology.devices), ('data',))
  cluster.check_batch_size(
    config.train.batch_size, mesh, key='config.train.batch_size'
  )
  height, width = map(int, arguments.size.split('x'))
  started = time.monotonic()
  compiled, trainable_bytes, trainable = compile_step(
    config,
    mesh,
    image_size=(height, width),
    num_classes=arguments.classes + 1,
  )
  seconds = time.monotonic() - started
  text = compiled.as_text()
  assert text is not None  # XLA's programs for GPUs have a text.
  if arguments.hlo:
    arguments.hlo.write_text(text)
  found = read_program(text)
  memory = compiled.memory_analysis()
  assert memory is not None  # GPUs have it.
  reduced = found['collectives'].get('all-reduce', [])
  # Beside gradients, a step reduces only a few numbers, such as losses.
  large = [size for size in reduced if size >= 1024]
  figures = found | {
    'config': path,
    'precision': config.precision,
    'devices': mesh.size,
    'trainable_parameters': trainable,
    'trainable_bytes': trainable_bytes,
    'all_reduce_bytes': sum(reduced),
    'compile_s': round(seconds, 1),
    'device_mib': round(
      (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
    ),
  }
  print(
    f'The step of {path}, {config.train.batch_size} images of '
    f'{arguments.size}, {config.precision}, for {mesh.size} x '
    f'{arguments.target.stem}: compiled in {seconds:.0f} s, not run; '
    f'{figures["device_mib"]} MiB a device.'
  )
  print(
    f'  all-reduces: {len(reduced)}, of {sum(reduced):,} bytes, of which '
    f'{len(large)} large ones have {sum(large):,}'
  )
  print(f'  trainable parameters: {trainable:,}, of {trainable_bytes:,} bytes')
  for name, sizes in found['collectives'].items():
    if name != 'all-reduce':
      print(f'  {name}: {len(sizes)}, of {sum(sizes):,} bytes')
  for name, title in (
    ('in_loops', 'collectives in loops or branches'),
    ('transfers', 'transfers from and to the host'),
    ('callbacks', 'callbacks of the host'),
  ):
    print(f'  {title}: {found[name] or "none"}')
  print(json.dumps(figures))


if __name__ == '__main__':
  main()
