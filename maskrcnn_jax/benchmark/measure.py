"""Times the training step, inference or the loading of data of a recipe.

  python -m maskrcnn_jax.benchmark --config=configs/r50_fpn.py \
      --mode=train --size=800x1333 --batch_size=1
  python -m maskrcnn_jax.benchmark --config=configs/r50_fpn.py \
      --mode=loader --images=DIR --annotations=FILE.json --workers=0,1,2 \
      --batch_size=16 --steps=30

train, inference: on made-up images, all that the device does for a batch that
it has been given as bytes: resizing, network, losses and update, or network and
detections. The host's part (decoding, pasting masks) is not.

loader: the host's part of training, from files to a batch on the device, with
each number of workers; and whether a step that takes 1.25 times as long (or
--step_seconds) ever waits for its batch.
"""

import argparse
import collections
import functools
import json
import math
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import numpy as np

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.benchmark import loader_speed
from maskrcnn_jax.config import canvas_arguments, fine_tuning, pixel_range_of
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.data import canvases, coco, image_sets, loader
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.precision import set_precision
from maskrcnn_jax.runtime.training_log import peak_memory
from maskrcnn_jax.training import state as train_state
from maskrcnn_jax.training import step as train_step
from maskrcnn_jax.training.optimizer import make_optimizer


def made_up_batch(
    *,
    image_size: tuple[int, int],
    batch_size: int,
    num_objects: int,
    max_objects: int,
    num_classes: int,
) -> Batch:
  """Returns noise with ellipses as truth; no resizing is needed.

  Args:
    image_size: (height, width) in pixels.
    batch_size: Images.
    num_objects: Objects of each.
    max_objects: Slots for them.
    num_classes: With background.
  """
  height, width = image_size
  rng = np.random.default_rng(0)
  corners = 24
  angles = np.linspace(0, 2 * np.pi, corners)
  circle = np.stack([np.cos(angles), np.sin(angles)], -1)
  shape = (batch_size, num_objects)
  center = rng.uniform(0.2, 0.8, (*shape, 2)) * [width, height]
  radius = rng.uniform(0.05, 0.2, (*shape, 2)) * [width, height]
  vertices = center[..., None, :] + radius[..., None, :] * circle
  boxes = np.zeros((batch_size, max_objects, 4), np.float32)
  boxes[:, :num_objects] = np.concatenate(
      [center - radius, center + radius], axis=-1
  )
  classes = np.zeros((batch_size, max_objects), np.int32)
  classes[:, :num_objects] = rng.integers(1, num_classes, shape)
  parts = np.zeros((batch_size, num_objects, corners), np.int16)
  parts[:, :, -1] = -1
  starts = np.minimum(np.arange(max_objects + 1), num_objects) * corners
  sizes = np.tile(np.array([image_size], np.int32), (batch_size, 1))
  return Batch(
      images=rng.integers(0, 256, (batch_size, height, width, 3), np.uint8),
      source_sizes=sizes,
      image_sizes=sizes,
      image_valid=np.ones(batch_size, bool),
      gt_boxes=boxes,
      gt_classes=classes,
      gt_valid=classes > 0,
      outlines=Outlines(
          vertices.reshape(batch_size, -1, 2).astype(np.float32),
          parts.reshape(batch_size, -1),
          np.tile(starts.astype(np.int32), (batch_size, 1)),
      ),
  )


def benchmark(
    config, *, mode: str, image_size: tuple[int, int], batch_size: int,
    num_steps: int, num_objects: int, num_classes: int, num_costs: int = 0,
) -> dict:
  """Compiles and times one program.

  Args:
    config: The recipe.
    mode: 'train' or 'inference'.
    image_size: (height, width); padded to multiples of 32.
    batch_size: Images a step.
    num_steps: Steps timed, after two that are not.
    num_objects: Objects in an image.
    num_classes: With background.
    num_costs: How many of the operations that take most are to be named.

  Returns:
    Seconds a step (median, least, most), seconds to compile, images a second,
    peak memory in MiB, and what `largest_costs` does.
  """
  config = _complete(config, num_images=batch_size, most_objects=num_objects)
  for name, value, least, most in (
      ('batch_size', batch_size, 1, math.inf),
      ('steps', num_steps, 1, math.inf),
      ('objects', num_objects, 0, config.data.max_objects),
      ('classes', num_classes - 1, 1, math.inf),
      ('costs', num_costs, 0, math.inf),
  ):
    if not least <= value <= most:
      raise InputError(f'--{name}={value} must be from {least} to {most}.')
  mesh = cluster.make_mesh()
  cluster.check_batch_size(batch_size, mesh, key='batch_size')
  dtype = set_precision(config.precision)
  padded_size = tuple(math.ceil(side / 32) * 32 for side in image_size)
  rcnn = Rcnn.from_config(
      config, num_classes=num_classes, dtype=dtype, mesh=mesh
  )
  batch = cluster.shard_batch(
      made_up_batch(
          image_size=image_size, batch_size=batch_size,
          num_objects=num_objects, max_objects=config.data.max_objects,
          num_classes=num_classes,
      ),
      mesh,
  )
  optimizer = make_optimizer(
      momentum=config.optimizer.momentum,
      weight_decay=config.optimizer.weight_decay,
      clip_norm=config.optimizer.clip_norm,
      # A network of random weights must not run away while it is timed.
      schedule=lambda step: 1e-6,
      bias_schedule=lambda step: 1e-6,
  )
  state = cluster.replicate(
      train_state.initial_state(rcnn, optimizer, config), mesh
  )
  if mode == 'train':
    limits = image_sets.Limits(config.data.max_objects, 512, 64, 1)
    run = train_step.jit_train_step(
        train_step.Trainer.from_config(config, rcnn, optimizer, limits)
    )

    def step():
      nonlocal state
      state, figures = run(state, batch, padded_size=padded_size)
      jax.block_until_ready(figures)
  else:
    detector = Detector(rcnn, train_state.variables_of(state), config, (), 0)

    def step():
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


def benchmark_loader(
    config, *, images: str, annotations: str, batch_size: int, num_steps: int,
    workers: list[int], num_threads: int, step_s: float | None,
) -> dict:
  """Times the loading of training batches.

  Args:
    config: The recipe.
    images: Folder of the images.
    annotations: Their COCO JSON.
    batch_size: Images a step.
    num_steps: Steps timed.
    workers: Numbers of processes to try.
    num_threads: Of each process.
    step_s: Seconds that a step is to take; None: 1.25 times what loading its
      batch takes.

  Returns:
    What was loaded, and `loader_speed.LoaderSpeed` of each number of workers.
  """
  if batch_size < 1 or num_steps < 1 or num_threads < 1 or min(workers) < 0:
    raise InputError(
        '--batch_size, --steps and --threads must be at least 1, and --workers '
        'at least 0.'
    )
  if step_s is not None and not 0 <= step_s < math.inf:
    raise InputError(f'--step_seconds={step_s} must be 0 or more.')
  mesh = cluster.make_mesh()
  cluster.check_batch_size(batch_size, mesh, key='batch_size')
  coco.check_is_there(annotations, '--annotations')
  index, folder = image_sets.read_set(
      annotations, images, require_masks=config.model.output == 'masks'
  )
  image_sets.check_images_exist(index, folder)
  rows, _ = image_sets.filter_images(index, keep_empty=config.data.keep_empty)
  config = _complete(
      config, num_images=len(rows),
      most_objects=image_sets.most_objects(index),
  )
  plan = canvases.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
  )
  load = functools.partial(
      loader.train_batches, index, plan, rows, images_dir=folder,
      limits=image_sets.find_limits(index, max_objects=config.data.max_objects),
      seed=config.seed, start_step=0, batch_size=batch_size,
      pixel_range=pixel_range_of(config),
  )
  return {
      'mode': 'loader',
      'num_images': len(rows),
      'batch_size': batch_size,
      'static_sizes': len(np.unique(plan.canvas_of_image[rows])),
      'share_padding': canvases.share_padding(plan, rows),
      'speeds': [
          loader_speed.measure(
              load, mesh, batch_size=batch_size, num_steps=num_steps,
              num_workers=count, num_threads=num_threads, step_s=step_s,
          )
          for count in workers
      ],
  }


def largest_costs(step, count: int) -> list[dict]:
  """Profiles a step and returns the operations that took most of it.

  Args:
    step: To be run once.
    count: How many operations.

  Returns:
    For each its name in the compiled program, the one that it has in the source
    where that is known, its milliseconds, and its share of all operations'.
  """
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      step()
    (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
  on_gpu = [plane for plane in planes if plane.name.startswith('/device:GPU')]
  spent, sources = collections.Counter(), {}
  for plane in on_gpu or planes:
    for line in plane.lines:
      # Of a GPU other lines than its streams tell the same again.
      if on_gpu and not line.name.startswith('Stream'):
        continue
      for name, source, nanoseconds in _own_times(line.events):
        spent[name] += nanoseconds
        sources[name] = source
  total = sum(spent.values())
  return [
      {
          'operation': name, 'source': sources[name],
          'ms': nanoseconds / 1e6, 'share': nanoseconds / total,
      }
      for name, nanoseconds in spent.most_common(count)
  ]


def _own_times(events):
  """Yields (operation, source, nanoseconds without those of its parts)."""
  open_ = []  # [end, own time, operation, source], each inside the one before

  def close(until):
    while open_ and open_[-1][0] <= until:
      _, own, name, source = open_.pop()
      yield name, source, max(own, 0)

  for event in sorted(events, key=lambda e: (e.start_ns, -e.duration_ns)):
    stats = dict(event.stats)
    name = stats.get('hlo_op')
    if name is None:
      continue
    yield from close(event.start_ns)
    if open_:
      open_[-1][1] -= event.duration_ns
    source = stats.get('tf_op') or stats.get('name') or event.name
    open_.append(
        [event.start_ns + event.duration_ns, event.duration_ns, name, source]
    )
  yield from close(math.inf)


def main() -> None:
  """Prints the figures of one benchmark, for people and as a line of JSON."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--config', required=True, help='the recipe, a file')
  parser.add_argument(
      '--mode', choices=('train', 'inference', 'loader'), required=True
  )
  parser.add_argument('--size', default='800x1333', help='HEIGHTxWIDTH')
  parser.add_argument('--batch_size', type=int, default=1)
  parser.add_argument('--steps', type=int, default=5, help='steps to time')
  parser.add_argument('--objects', type=int, default=8, help='in an image')
  parser.add_argument('--classes', type=int, default=80)
  parser.add_argument('--precision', choices=('fp32', 'tf32', 'bf16'))
  parser.add_argument('--images', help='loader: folder of the images')
  parser.add_argument('--annotations', help='loader: their COCO JSON')
  parser.add_argument(
      '--workers', default='0', help='loader: numbers of processes to try,\n'
      'for example 0,1,2; 0 loads in threads of the main process',
  )
  parser.add_argument(
      '--threads', type=int, default=2, help='loader: of each process'
  )
  parser.add_argument(
      '--step_seconds', type=float, help='loader: that a step is to take'
  )
  parser.add_argument('--kernels', choices=('auto', 'xla', 'pallas'))
  parser.add_argument(
      '--costs', type=int, default=0,
      help='profile one more step, and name so many operations that take most',
  )
  arguments = parser.parse_args()
  try:
    if arguments.mode == 'loader':
      _print_loader(arguments)
      return
    cluster.find_devices()
    figures = benchmark(
        _read_config(arguments), mode=arguments.mode,
        image_size=_parse_size(arguments.size),
        batch_size=arguments.batch_size, num_steps=arguments.steps,
        num_objects=arguments.objects, num_classes=arguments.classes + 1,
        num_costs=arguments.costs,
    )
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(
      f'{figures["mode"]} {arguments.size}, batch {arguments.batch_size}, '
      f'{figures["precision"]}, {figures["device"]}: '
      f'{figures["median_s"]:.3f} s a step '
      f'({figures["least_s"]:.3f} to {figures["most_s"]:.3f}), '
      f'{figures["images_per_s"]:.2f} images/s; compiled in '
      f'{figures["compile_s"]:.0f} s; peak memory '
      f'{figures["peak_memory_mib"]:.0f} MiB'
  )
  for cost in figures['costs']:
    print(
        f'{cost["share"]:6.1%} {cost["ms"]:9.2f} ms {cost["operation"]}: '
        f'{cost["source"]}'
    )
  print(json.dumps(figures))


def _print_loader(arguments):
  if not arguments.images or not arguments.annotations:
    raise InputError(
        '--mode=loader needs --images=DIR and --annotations=FILE.json.'
    )
  try:
    workers = [int(count) for count in arguments.workers.split(',')]
  except ValueError:
    raise InputError(
        f'--workers={arguments.workers}: give whole numbers, such as 0,1,2.'
    ) from None
  figures = benchmark_loader(
      _read_config(arguments), images=arguments.images,
      annotations=arguments.annotations, batch_size=arguments.batch_size,
      num_steps=arguments.steps, workers=workers,
      num_threads=arguments.threads, step_s=arguments.step_seconds,
  )
  speeds = figures['speeds']
  print(
      f'loader: {figures["num_images"]} images, batches of '
      f'{figures["batch_size"]}, {figures["static_sizes"]} static sizes, '
      f'{100 * figures["share_padding"]:.1f} % of the pixels are padding'
  )
  print(loader_speed.format_speeds(speeds))
  print(json.dumps(figures | {'speeds': [s._asdict() for s in speeds]}))


def _complete(config, **facts):
  """Fills in what a fine-tuning leaves open, but for the checkpoint's part."""
  if not config.train.fine_tune:
    return config
  config, _ = fine_tuning.fit(fine_tuning.adopt_defaults(config), **facts)
  check_config(config)
  return config


def _read_config(arguments):
  config = read_recipe(arguments.config).config
  if arguments.precision:
    config.precision = arguments.precision
  if arguments.kernels:
    config.kernels = arguments.kernels
  check_config(config)
  return config


def _parse_size(text: str) -> tuple[int, int]:
  try:
    height, width = map(int, text.split('x'))
    if min(height, width) < 1:
      raise ValueError
  except ValueError:
    raise InputError(f'--size={text}: give HEIGHTxWIDTH in pixels.') from None
  return height, width


if __name__ == '__main__':
  main()
