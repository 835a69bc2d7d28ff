"""Measures the time that saving and restoring a checkpoint takes.

  python scripts/checkpoint_speed.py DIR [--recipe=r50_fpn] [--repeat=5]

Saves the weights and the optimizer state of a recipe into DIR, restores both,
and prints the median seconds. `save` is the time for which the training waits,
`finish` the time until the checkpoint is on disk, in the background. DIR must
not exist; it is removed at the end.
"""

import argparse
from collections.abc import Iterator
import contextlib
import pathlib
import shutil
import time

import jax
import numpy as np

from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint, cluster, run_checkpoints
from maskrcnn_jax.training.optimizer import make_recipe_optimizer
from maskrcnn_jax.training.state import (
  initial_state,
  training_state,
  variables_of,
)


def main() -> None:
  """Measures the times and prints them."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path, metavar='DIR')
  parser.add_argument('--recipe', default='r50_fpn')
  parser.add_argument('--repeat', type=int, default=5)
  arguments = parser.parse_args()
  arguments.folder.mkdir(parents=True)
  config = read_recipe(arguments.recipe, [], for_training=True).config
  mesh = cluster.make_mesh()
  rcnn = Rcnn.from_config(config, num_classes=81, dtype='float32', mesh=mesh)
  _, optimizer = make_recipe_optimizer(config)
  state = cluster.replicate(initial_state(rcnn, optimizer, config), mesh)
  model, training = variables_of(state), training_state(state)
  size = run_checkpoints.tree_bytes((model, training))
  targets = [cluster.replicated_shapes(x, mesh) for x in (model, training)]
  times: dict[str, list[float]] = {}

  @contextlib.contextmanager
  def measured(name: str) -> Iterator[None]:
    """Context manager that adds the seconds inside it to `times`."""
    started = time.perf_counter()
    yield
    times.setdefault(name, []).append(time.perf_counter() - started)

  with contextlib.closing(
    run_checkpoints.RunCheckpoints(arguments.folder, keep=1)
  ) as checkpoints:
    for step in range(1, arguments.repeat + 1):
      metadata = checkpoint.Metadata(step, {}, [])
      with measured('save'):
        checkpoints.save(model=model, training=training, metadata=metadata)
      with measured('finish'):
        checkpoints.finish()
      path = arguments.folder / 'checkpoints' / str(step)
      with measured('restore the model'):
        jax.block_until_ready(checkpoint.restore_model(path, targets[0]))
      with measured('restore the optimizer'):
        jax.block_until_ready(checkpoint.restore_optimizer(path, targets[1]))
  shutil.rmtree(arguments.folder)
  print(f'{arguments.recipe}: {size / 1e6:.0f} MB, {jax.devices()[0]}')
  for name, seconds in times.items():
    print(f'{name}: {np.median(seconds):.2f} s')


if __name__ == '__main__':
  main()
