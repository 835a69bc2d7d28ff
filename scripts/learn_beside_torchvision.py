r"""Trains the same Mask R-CNN here and in torchvision, and compares the two.

  python scripts/learn_beside_torchvision.py --torch_python=ENV/bin/python \
      --images=DIR --annotations=TRAIN.json --eval_images=DIR \
      --eval_annotations=VAL.json --out=OUT

ENV is another Python environment, with torch, torchvision and pycocotools. Both
programs train a ResNet-18-FPN with group norm on crops of 128 x 128 pixels, on
the CPU. They have the same initial weights, images, batches and learning rates.
Only the random choice of anchors and RoIs is each program's own. Two tests
follow:

- The sharp test compares the five losses of several batches at fixed weights,
  before and after a training, over many draws of each program's samples.
- The long test compares the losses of whole trainings with several seeds of the
  sampling, and the AP of the final models. As a control, further trainings of
  torchvision are compared with torchvision's own.

Each program evaluates all final models, its own and the converted ones of the
other. Prints tables, and writes OUT/figures.json and OUT/curves.png.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
# JAX reads this when it is imported. torchvision runs on the CPU too.
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jaxtyping import Array, Float, Int, Key  # noqa: E402
import learning_figures  # noqa: E402
import ml_collections  # noqa: E402
import coco_crops  # noqa: E402
import numpy as np  # noqa: E402

from maskrcnn_jax.array_types import Batch, GroundTruthLimits  # noqa: E402
from maskrcnn_jax.config import (  # noqa: E402
  canvas_arguments,
  default_config,
  geometry_of,
)
from maskrcnn_jax.convert_weights.weight_names import (  # noqa: E402
  NAMINGS,
  from_peer,
  peer_names,
  to_peer,
)
from maskrcnn_jax.data import canvases, image_sets, loader  # noqa: E402
from maskrcnn_jax.data.source import CocoFiles, read_set  # noqa: E402
from maskrcnn_jax.detector import Detector  # noqa: E402
from maskrcnn_jax.evaluation.evaluate import evaluate  # noqa: E402
from maskrcnn_jax.rcnn import Rcnn  # noqa: E402
from maskrcnn_jax.runtime import checkpoint, cluster  # noqa: E402
from maskrcnn_jax.runtime.precision import initial_loss_scale  # noqa: E402
from maskrcnn_jax.training.optimizer import make_recipe_optimizer  # noqa: E402
from maskrcnn_jax.training.state import TrainState  # noqa: E402
from maskrcnn_jax.training.step import (  # noqa: E402
  Figures,
  Trainer,
  train_step,
)

BATCH_SIZE = 2
NAMING = NAMINGS['torchvision']
SIZE = coco_crops.SIZE


def make_recipe(num_steps: int) -> ml_collections.ConfigDict:
  """Returns the recipe of the comparison.

  Args:
    num_steps: Number of training steps.
  """
  config = default_config()
  config.geometry = 'torchvision'
  config.model.depth = 18
  config.model.norm = 'group'
  config.freeze_at = 0
  config.anchors.sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
  for limits in (config.rpn.train, config.rpn.eval):
    limits.update(pre_nms=500, post_nms=300, num_proposals=300)
  config.roi.num_samples = 128
  config.data.short_side = config.data.long_side = SIZE
  config.data.padded_sizes = ((SIZE, SIZE),)
  config.data.flip_probability = 0.0
  config.train.batch_size = BATCH_SIZE
  config.train.num_steps = num_steps
  config.optimizer.learning_rate = 0.01
  # torchvision's training script has one learning rate for all parameters.
  config.optimizer.bias_rate_factor = 1.0
  config.optimizer.warmup_steps = 20
  config.optimizer.warmup_factor = 0.1
  config.optimizer.decay_steps = ()
  return config


def torchvision_settings(
  config: ml_collections.ConfigDict, num_classes: int
) -> dict[str, Any]:
  """Returns the arguments of `torchvision_learner.build_model` for a recipe.

  Args:
    config: The recipe.
    num_classes: Number of classes, background included.
  """
  rpn, roi = config.rpn, config.roi
  model = config.model
  return {
    'depth': model.depth,
    'norm': model.norm,
    'fpn_channels': model.fpn_channels,
    'box_features': model.box_features,
    'mask_convs': model.mask_convs,
    'mask_channels': model.mask_channels,
    'num_classes': num_classes,
    'anchor_sizes': config.anchors.sizes,
    'options': {
      'min_size': config.data.short_side,
      'max_size': config.data.long_side,
      'rpn_pre_nms_top_n_train': rpn.train.pre_nms,
      'rpn_post_nms_top_n_train': rpn.train.num_proposals,
      'rpn_pre_nms_top_n_test': rpn.eval.pre_nms,
      'rpn_post_nms_top_n_test': rpn.eval.num_proposals,
      'rpn_batch_size_per_image': rpn.num_samples,
      'rpn_positive_fraction': rpn.foreground_fraction,
      'box_batch_size_per_image': roi.num_samples,
      'box_positive_fraction': roi.foreground_fraction,
      'box_score_thresh': config.detections.min_score,
      'box_nms_thresh': config.detections.iou_threshold,
      'box_detections_per_img': config.detections.max_detections,
    },
  }


class Torchvision:
  """Runs jobs of `torchvision_learner.py` in the environment of torchvision."""

  def __init__(self, python: str, libraries: str, folder: pathlib.Path):
    """Remembers how torchvision is started.

    Args:
      python: Python of the environment.
      libraries: Folder that is put before LD_LIBRARY_PATH; '' for none.
      folder: Folder for the file with the jobs.
    """
    self.python, self.folder = python, folder
    paths = [libraries, os.environ.get('LD_LIBRARY_PATH', '')]
    self.environment = os.environ | {
      'LD_LIBRARY_PATH': os.pathsep.join(filter(None, paths))
    }
    # The paths of this process's packages do not suit another Python.
    self.environment.pop('PYTHONPATH', None)

  def run(self, jobs: list[dict[str, Any]]) -> None:
    """Runs jobs one after the other, in one process, and waits for the end.

    Args:
      jobs: See `torchvision_learner.py`.

    Raises:
      SystemExit: If a job fails. Its output has been printed.
    """
    path = self.folder / 'jobs.json'
    path.write_text(json.dumps(jobs, default=str))
    script = HERE / 'torchvision_learner.py'
    done = subprocess.run(
      [self.python, str(script), str(path)], env=self.environment, check=False
    )
    if done.returncode:
      sys.exit(f'error: {script.name} failed; its messages are above.')


class Ours:
  """This program with the model, the data and the batches of the comparison."""

  def __init__(
    self, config: ml_collections.ConfigDict, data: pathlib.Path, num_images: int
  ):
    """Reads the training data.

    Args:
      config: The recipe.
      data: Folder that `coco_crops.write_set` has written.
      num_images: Number of training images.
    """
    self.config, self.data = config, data
    data_set = read_set(self.source('train'), require_masks=True)
    index = data_set.coco_index
    self.categories = index.categories
    self.rcnn = Rcnn.from_config(
      config,
      num_classes=len(self.categories) + 1,
      dtype=jnp.float32,
      mesh=cluster.make_mesh(),
    )
    plan = canvases.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
    )
    self.limits: GroundTruthLimits = image_sets.find_limits(
      index, max_objects=image_sets.most_objects(index)
    )
    self.rows = [
      loader.load_row(data_set, plan, row, self.limits)
      for row in range(num_images)
    ]
    self.padded_size = SIZE, SIZE

  def source(self, part: str) -> CocoFiles:
    """Returns a part of the data: 'train' or 'val'."""
    return CocoFiles(str(self.data / 'images'), str(self.data / f'{part}.json'))

  def batch(self, images: list[int]) -> Batch:
    """Returns a batch of training images, given their positions in the set."""
    return jax.tree.map(
      lambda *rows: np.concatenate(rows), *(self.rows[i] for i in images)
    )

  def read_weights(self, path: pathlib.Path) -> dict[str, Any]:
    """Converts weights of torchvision to variables of this program's network.

    Args:
      path: A .npz file that `torchvision_learner.py` has written.
    """
    with np.load(path) as file:
      arrays = {name: file[name] for name in file}
    shapes = checkpoint.named_leaves(
      jax.eval_shape(self.rcnn.init, jax.random.key(0))
    )
    leaves = {}
    for name, shape in shapes.items():
      array = arrays.pop(peer_names(name, NAMING)[0])
      leaves[name] = jnp.asarray(
        from_peer(name, array, NAMING, box_side=self.config.roi.box_side)
      )
      assert leaves[name].shape == shape.shape, name
    assert not arrays, f'not converted: {sorted(arrays)}'
    return checkpoint.nested(leaves)

  def write_weights(self, path: pathlib.Path, variables: dict) -> None:
    """Writes variables of this program's network as weights of torchvision.

    Args:
      path: The .npz file to write.
      variables: The variables.
    """
    arrays = {
      peer_names(name, NAMING)[0]: to_peer(
        name, np.asarray(leaf), NAMING, box_side=self.config.roi.box_side
      )
      for name, leaf in checkpoint.named_leaves(variables).items()
    }
    np.savez(path, **{k: np.ascontiguousarray(v) for k, v in arrays.items()})

  def train(
    self, initial: pathlib.Path, order: list[list[int]], folder: pathlib.Path,
    *, seeds: range,
  ) -> None:
    """Trains with each seed; writes losses and final weights to .npz files.

    Args:
      initial: File with the initial weights.
      order: For each step, the positions of the images of its batch.
      folder: Folder for the files `ours_SEED.npz` and
        `ours_SEED_weights.npz`, as the job 'train' of torchvision writes them.
      seeds: Seeds of the sampling of anchors and RoIs.
    """
    _, optimizer = make_recipe_optimizer(self.config)
    trainer = Trainer.from_config(
      self.config, self.rcnn, optimizer, self.limits
    )

    # The seed is an argument, so that the step is compiled only once.
    @jax.jit
    def step(
      state: TrainState, batch: Batch, seed: Int[Array, '']
    ) -> tuple[TrainState, Figures]:
      """Makes one training step with a seed for its random numbers."""
      seeded: Any = trainer._replace(seed=seed)  # type: ignore[arg-type]
      return train_step(seeded, state, batch, self.padded_size)

    for seed in seeds:
      started = time.monotonic()
      params = self.read_weights(initial)['params']
      state = TrainState(
        step=jnp.int32(0),
        params=params,
        constants={},
        optimizer=optimizer.init(params),
        loss_scale=initial_loss_scale('fp32'),
        average={},
      )
      curve = []
      for images in order:
        state, figures = step(state, self.batch(images), jnp.int32(seed))
        curve.append([float(figures[name]) for name in learning_figures.LOSSES])
      np.savez(folder / f'ours_{seed}.npz', losses=np.array(curve))
      self.write_weights(
        folder / f'ours_{seed}_weights.npz', {'params': state.params}
      )
      seconds = time.monotonic() - started
      print(f'ours: train seed {seed}, {seconds:.0f} s', flush=True)

  def measure(
    self,
    weights: pathlib.Path,
    order: list[list[int]],
    out: pathlib.Path,
    *,
    draws: int,
    seed: int,
  ) -> None:
    """Computes the losses of several batches at fixed weights, several times.

    Args:
      weights: File with the weights.
      order: For each batch, the positions of its images.
      out: The .npz file to write, as the job 'measure' of torchvision does.
      draws: How often the anchors and RoIs of each batch are sampled.
      seed: Seed of the sampling.
    """
    rcnn, padded_size = self.rcnn, self.padded_size

    @jax.jit
    def run(
      variables: dict, batch: Batch, keys: Key[Array, 'n b 2']
    ) -> tuple[Float[Array, 'n l'], Int[Array, 'n 4']]:
      """Returns the losses and the numbers of samples of each draw."""
      inputs = rcnn.prepare(batch, padded_size=padded_size)
      rpn = rcnn.rate_anchors(variables, rcnn.extract(variables, inputs.images))

      def draw(
        keys: Key[Array, 'b 2'],
      ) -> tuple[Float[Array, 'l'], Int[Array, '4']]:
        """Samples anchors and RoIs once."""
        samples = rcnn.sample(rpn, inputs, keys)
        assert samples.roi is not None  # The model has a box head.
        losses = rcnn.compute_losses(
          variables, inputs, keys, limits=self.limits, samples=samples
        ).by_name()
        counts = [
          jnp.sum(chosen)
          for part in (samples.rpn, samples.roi)
          for chosen in (part.foreground, part.valid & ~part.foreground)
        ]
        return (
          jnp.stack([losses[name] for name in learning_figures.LOSSES]),
          jnp.stack(counts),
        )

      return jax.lax.map(draw, keys)

    variables = self.read_weights(weights)
    keys = jax.random.split(
      jax.random.key(seed), (len(order), draws, BATCH_SIZE, 2)
    )
    found = [
      run(variables, self.batch(images), keys[i])
      for i, images in enumerate(order)
    ]
    losses, counts = (np.array(part) for part in zip(*found, strict=True))
    np.savez(out, losses=losses, counts=counts)
    print(f'ours: measure {out}', flush=True)

  def evaluate(self, weights: pathlib.Path) -> dict[str, list[float]]:
    """Returns (AP, AP50) of a model on the held-out crops, by kind.

    Args:
      weights: File with the weights, as torchvision lays them out.
    """
    detector = Detector(
      self.rcnn, self.read_weights(weights), self.config, self.categories, 0
    )
    with contextlib.redirect_stdout(io.StringIO()):
      found = evaluate(
        detector,
        source=self.source('val'),
        workdir=weights.parent / 'evaluation',
        config=self.config,
      )
    print(f'ours: evaluate {weights}', flush=True)
    return {
      kind: [result.stats['AP'], result.stats['AP50']]
      for kind, result in found.items()
    }


def draw_order(num_images: int, num_steps: int, seed: int) -> list[list[int]]:
  """Returns the images of each batch, epoch after epoch in random order.

  Args:
    num_images: Number of training images, a multiple of `BATCH_SIZE`.
    num_steps: Number of batches.
    seed: Seed of the order.
  """
  rng = np.random.default_rng(seed)
  epochs = -(-num_steps * BATCH_SIZE // num_images)
  order = np.concatenate([rng.permutation(num_images) for _ in range(epochs)])
  return order.reshape(-1, BATCH_SIZE)[:num_steps].tolist()


def run_programs(
  arguments: argparse.Namespace, config: ml_collections.ConfigDict
) -> None:
  """Runs both programs; they write their results to files in the folder `out`.

  Args:
    arguments: Arguments of the command line.
    config: The recipe.
  """
  out, seeds = arguments.out, arguments.seeds
  data = out / 'data'
  for part, images, annotations, count in (
    ('train', arguments.images, arguments.annotations, arguments.crops),
    (
      'val',
      arguments.eval_images,
      arguments.eval_annotations,
      arguments.eval_crops,
    ),
  ):
    coco_crops.write_set(data, part, images, annotations, count)
  ours = Ours(config, data, arguments.crops)
  peer = Torchvision(arguments.torch_python, arguments.torch_libraries, out)
  settings = torchvision_settings(config, len(ours.categories) + 1)
  initial = out / 'initial.npz'
  common = {'settings': settings, 'data': data / 'train.npz'}

  order = draw_order(arguments.crops, config.train.num_steps, seed=0)
  schedule, _ = make_recipe_optimizer(config)
  jobs: list[dict[str, Any]] = [
    {'task': 'initialize', 'settings': settings, 'seed': 0, 'out': initial}
  ]
  # The second half of the seeds is the control.
  for seed in range(2 * seeds):
    jobs.append(
      common
      | {
        'task': 'train',
        'weights': initial,
        'order': order,
        'rates': [float(schedule(step)) for step in range(len(order))],
        'momentum': config.optimizer.momentum,
        'weight_decay': config.optimizer.weight_decay,
        'seed': seed,
        'out': out / f'torchvision_{seed}.npz',
        'out_weights': out / f'torchvision_{seed}_weights.npz',
      }
    )
  measured = draw_order(arguments.crops, arguments.batches, seed=1)
  fixed = {
    'initial': initial,
    'trained': out / 'torchvision_0_weights.npz',
  }
  for name, weights in fixed.items():
    jobs.append(
      common
      | {
        'task': 'measure',
        'weights': weights,
        'order': measured,
        'draws': arguments.draws,
        'seed': 0,
        'out': out / f'torchvision_{name}.npz',
      }
    )
  peer.run(jobs)
  for name, weights in fixed.items():
    ours.measure(
      weights, measured, out / f'ours_{name}.npz', draws=arguments.draws, seed=0
    )
  ours.train(initial, order, out, seeds=range(seeds))

  models = [f'torchvision_{seed}' for seed in range(2 * seeds)]
  models += [f'ours_{seed}' for seed in range(seeds)]
  peer.run(
    [
      {
        'task': 'evaluate',
        'settings': settings,
        'weights': out / f'{model}_weights.npz',
        'images': data / 'images',
        'annotations': data / 'val.json',
        'out': out / f'{model}_ap_torchvision.json',
      }
      for model in models
    ]
  )
  for model in models:
    aps = ours.evaluate(out / f'{model}_weights.npz')
    (out / f'{model}_ap_ours.json').write_text(json.dumps(aps))


def main() -> None:
  """Runs both programs and prints the comparison."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add('--torch_python', required=True, help="Python of torchvision's environment")
  add(
    '--torch_libraries',
    default='',
    help='folder for LD_LIBRARY_PATH of that environment',
  )
  add('--images', type=pathlib.Path, required=True, help='training images')
  add('--annotations', type=pathlib.Path, required=True, help='their COCO JSON')
  add('--eval_images', type=pathlib.Path, required=True, help='held-out images')
  add(
    '--eval_annotations',
    type=pathlib.Path,
    required=True,
    help='their COCO JSON',
  )
  add('--out', type=pathlib.Path, required=True, help='folder for the results')
  add('--seeds', type=int, default=5, help='trainings of each program')
  add('--steps', type=int, default=120, help='steps of a training')
  add('--window', type=int, default=20, help='steps of a window')
  add('--crops', type=int, default=24, help='number of training images')
  add('--eval_crops', type=int, default=12, help='number of held-out images')
  add('--batches', type=int, default=12, help='batches of the sharp test')
  add('--draws', type=int, default=10, help='samples of each of these batches')
  arguments = parser.parse_args()
  if arguments.crops % BATCH_SIZE:
    parser.error(f'--crops must be a multiple of {BATCH_SIZE}.')
  arguments.out = arguments.out.absolute()
  arguments.out.mkdir(parents=True, exist_ok=True)
  config = make_recipe(arguments.steps)
  geometry_of(config)
  started = time.monotonic()
  run_programs(arguments, config)
  print(f'{(time.monotonic() - started) / 60:.0f} minutes in total')
  learning_figures.report(
    arguments.out, seeds=arguments.seeds, window=arguments.window
  )


if __name__ == '__main__':
  main()
