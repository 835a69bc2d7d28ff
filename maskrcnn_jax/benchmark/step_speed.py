"""Times the training step and inference on made-up images."""

import math
import statistics
import time
from typing import Any

import jax
import ml_collections

from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.benchmark.profile import largest_costs
from maskrcnn_jax.benchmark.recipes import complete_recipe
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.precision import choose_precision, set_precision
from maskrcnn_jax.runtime.training_log import peak_memory
from maskrcnn_jax.training import state as train_state
from maskrcnn_jax.training import step as train_step
from maskrcnn_jax.training.optimizer import make_optimizer


def benchmark_step(
  config: ml_collections.ConfigDict,
  *,
  mode: str,
  image_size: tuple[int, int],
  batch_size: int,
  num_steps: int,
  num_objects: int,
  num_classes: int,
  num_costs: int = 0,
) -> dict[str, Any]:
  """Compiles and times the training step, or inference, on made-up images.

  Args:
    config: The recipe.
    mode: 'train' or 'inference'.
    image_size: (height, width) in pixels; padded to multiples of 32.
    batch_size: Number of images in a step.
    num_steps: Number of steps that are timed. Two steps before them are not,
      because they compile and warm up.
    num_objects: Number of objects in each image.
    num_classes: Number of classes, background included.
    num_costs: Number of the most expensive operations that are listed. 0 lists
      none and does not profile.

  Returns:
    `median_s`, `least_s` and `most_s`, the seconds of the timed steps;
    `images_per_s` at the median; `compile_s`, the seconds of the first step
    minus the median; `peak_memory_mib`; and `costs`, the most expensive
    operations as `largest_costs` returns them. `mode`, `image_size`,
    `batch_size`, `precision`, `device` (number and kind) and `jax` (its
    version) describe the conditions.

  Raises:
    InputError: If a number is out of its range, or if the batch size is not a
      multiple of the number of devices.
  """
  config = complete_recipe(
    config, num_images=batch_size, most_objects=num_objects
  )
  for name, value, least, most in (
    ('batch_size', batch_size, 1, math.inf),
    ('steps', num_steps, 1, math.inf),
    ('objects', num_objects, 0, config.data.max_objects),
    ('classes', num_classes - 1, 1, math.inf),
    ('costs', num_costs, 0, math.inf),
  ):
    if not least <= value <= most:
      raise InputError(
        f'--{name}={value} must be '
        + (
          f'from {least} to {most}.' if most < math.inf else f'{least} or more.'
        )
      )
  mesh = cluster.make_mesh()
  cluster.check_batch_size(batch_size, mesh, key='batch_size')
  config = config.copy_and_resolve_references()
  config.precision = choose_precision(config.precision)
  dtype = set_precision(config.precision)
  height, width = (math.ceil(side / 32) * 32 for side in image_size)
  padded_size = height, width
  rcnn = Rcnn.from_config(
    config, num_classes=num_classes, dtype=dtype, mesh=mesh
  )
  batch = cluster.shard_batch(
    made_up_batch(
      image_size=image_size,
      batch_size=batch_size,
      num_objects=num_objects,
      max_objects=config.data.max_objects,
      num_classes=num_classes,
    ),
    mesh,
  )
  optimizer = make_optimizer(
    config.optimizer.name,
    momentum=config.optimizer.momentum,
    beta2=config.optimizer.beta2,
    weight_decay=config.optimizer.weight_decay,
    clip_norm=config.optimizer.clip_norm,
    # The learning rate is tiny, so that the loss of a network with random
    # weights stays finite while it is timed.
    schedule=lambda step: 1e-6,
    bias_schedule=lambda step: 1e-6,
  )
  state = cluster.replicate(
    train_state.initial_state(rcnn, optimizer, config), mesh
  )
  if mode == 'train':
    limits = GroundTruthLimits(config.data.max_objects, 512, 64, 1)
    run = train_step.jit_train_step(
      train_step.Trainer.from_config(config, rcnn, optimizer, limits)
    )

    def step() -> None:
      """Does one training step and waits for its end."""
      nonlocal state
      state, figures = run(state, batch, padded_size=padded_size)
      jax.block_until_ready(figures)
  else:
    detector = Detector(rcnn, train_state.variables_of(state), config, (), 0)

    def step() -> None:
      """Detects once in the batch and waits for the result."""
      jax.block_until_ready(detector.detect(batch, padded_size=padded_size))

  times = []
  for _ in range(num_steps + 2):
    started = time.monotonic()
    step()
    times.append(time.monotonic() - started)
  timed = times[2:]
  median = statistics.median(timed)
  return {
    'mode': mode,
    'image_size': list(image_size),
    'batch_size': batch_size,
    'precision': config.precision,
    'device': f'{mesh.size} x {jax.devices()[0].device_kind}',
    'jax': jax.__version__,
    'median_s': median,
    'least_s': min(timed),
    'most_s': max(timed),
    'images_per_s': batch_size / median,
    'compile_s': times[0] - median,
    'peak_memory_mib': peak_memory(),
    'costs': largest_costs(step, num_costs) if num_costs else [],
  }
