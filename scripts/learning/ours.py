"""Trains and evaluates the model of the comparison with this program."""

import contextlib
import io
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import ml_collections
import numpy as np

from learning import crops, figures
from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.config import canvas_arguments, default_config
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  from_peer,
  peer_names,
  to_peer,
)
from maskrcnn_jax.data import canvases, image_sets, loader
from maskrcnn_jax.data.source import CocoFiles, read_set
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.precision import initial_loss_scale
from maskrcnn_jax.training.optimizer import make_recipe_optimizer
from maskrcnn_jax.training.state import TrainState
from maskrcnn_jax.training.step import Figures, Trainer, train_step

SIZE = crops.SIZE
BATCH_SIZE = 2
NAMING = NAMINGS['torchvision']


def make_recipe(num_steps: int) -> ml_collections.ConfigDict:
  """Returns the recipe of the comparison.

  Args:
    num_steps: Number of training steps.
  """
  config = default_config()
  config.geometry = 'torchvision'
  config.model.depth = 18
  config.model.norm = 'group'
  # A fourth of the usual channels, so that a step takes less than a second.
  config.model.fpn_channels = config.model.mask_channels = 64
  config.model.box_features = 256
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
  config.optimizer.learning_rate = 0.02
  # torchvision's training script has one learning rate for all parameters.
  config.optimizer.bias_rate_factor = 1.0
  config.optimizer.warmup_steps = 20
  config.optimizer.warmup_factor = 0.1
  config.optimizer.decay_steps = ()
  return config


class Program:
  """This program with the model, the data and the batches of the comparison."""

  def __init__(
    self, config: ml_collections.ConfigDict, data: pathlib.Path, num_images: int
  ):
    """Reads the training data.

    Args:
      config: The recipe.
      data: Folder that `crops.write_set` has written.
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
      path: A .npz file that `torchvision_jobs.py` has written.
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
    arrays: dict[str, Any] = {
      peer_names(name, NAMING)[0]: to_peer(
        name, np.asarray(leaf), NAMING, box_side=self.config.roi.box_side
      )
      for name, leaf in checkpoint.named_leaves(variables).items()
    }
    np.savez(path, **arrays)

  def train(
    self,
    initial: pathlib.Path,
    order: list[list[int]],
    folder: pathlib.Path,
    *,
    seeds: range,
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
      # The field is declared as int; here it is a traced number.
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
        state, found = step(state, self.batch(images), jnp.int32(seed))
        curve.append([float(found[name]) for name in figures.LOSSES])
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
      pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
      rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)

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
          jnp.stack([losses[name] for name in figures.LOSSES]),
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

  def evaluate(self, weights: pathlib.Path) -> dict[str, list[float | None]]:
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
