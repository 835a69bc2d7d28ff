"""One training step, jitted: from a batch of images to new parameters."""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import ml_collections
import optax

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.config import geometry_of
from maskrcnn_jax.inputs import (
  AugmentationOptions,
  draw_augmentation,
)
from maskrcnn_jax.losses import Losses
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.rcnn import (
  OF_THIS_BATCH,
  Rcnn,
  SampleCounts,
  Samples,
)
from maskrcnn_jax.runtime.cluster import replicated
from maskrcnn_jax.runtime.precision import next_loss_scale
from maskrcnn_jax.training.optimizer import (
  join_parameters,
  next_average,
  split_parameters,
)
from maskrcnn_jax.training.state import TrainState

# Names of a step's figures ('loss', 'loss_mask', 'grad_norm', ...) and values.
Figures = dict[str, Float[Array, ''] | Int[Array, '']]


class Trainer(NamedTuple):
  """The constants of a run that every training step needs."""

  rcnn: Rcnn
  optimizer: optax.GradientTransformationExtraArgs
  limits: GroundTruthLimits  # static sizes of the ground truth
  augmentation: AugmentationOptions
  seed: int
  frozen: tuple[tuple[str, ...], ...]  # path prefixes of untrained parameters
  micro_batches: int  # equal parts that a batch is processed in
  ema_decay: float  # of the average of the weights; 0: no average
  scales_loss: bool  # True for float16, whose gradients would underflow

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    rcnn: Rcnn,
    optimizer: optax.GradientTransformationExtraArgs,
    limits: GroundTruthLimits,
  ) -> 'Trainer':
    """Returns the trainer of a recipe.

    Args:
      config: The recipe.
      rcnn: Its model, on the devices to train on.
      optimizer: Its optimizer.
      limits: Static sizes of the ground truth.
    """
    data = config.data
    return cls(
      rcnn=rcnn,
      optimizer=optimizer,
      limits=limits,
      augmentation=AugmentationOptions(
        flip_probability=data.flip_probability,
        short_sides=tuple(data.short_sides),
        scale_jitter=tuple(data.scale_jitter),
        color_jitter=tuple(data.color_jitter),
        long_side=data.long_side,
        resize_rule=geometry_of(config).input_format.resize_rule,
      ),
      seed=config.seed,
      frozen=frozen_prefixes(config.freeze_at),
      micro_batches=config.train.micro_batches,
      ema_decay=config.train.ema_decay,
      scales_loss=config.precision == 'fp16',
    )


def jit_train_step(trainer: Trainer) -> Callable:
  """Returns `train_step(state, batch, padded_size=)`, jitted.

  The memory of the new state replaces that of the old one. On a mesh the state
  is replicated and the images of the batch are spread over the devices.
  """
  mesh = trainer.rcnn.mesh
  return jax.jit(
    functools.partial(train_step, trainer),
    static_argnames='padded_size',
    donate_argnums=0,
    out_shardings=replicated(mesh) if mesh else None,
  )


def train_step(
  trainer: Trainer,
  state: TrainState,
  batch: Batch,
  padded_size: tuple[int, int],
) -> tuple[TrainState, Figures]:
  """Makes one step: losses, gradients, new parameters.

  A step whose losses or gradients are not all finite is skipped: parameters,
  optimizer state and average stay as they are. The count of steps still rises,
  because the step's batch and random numbers are used up; learning rates
  follow that count.

  Args:
    trainer: The constants of the run.
    state: Parameters and optimizer state.
    batch: As decoded by the host.
    padded_size: (height, width) of the canvas; static.

  Returns:
    The new state and the figures of the step: the losses, their sum 'loss',
    'grad_norm', the 'loss_scale' in use and the number of 'skipped' steps so
    far, this one included.
  """
  keys = image_keys(trainer.seed, state.step, batch.images.shape[0])
  trainable, _ = split_parameters(state.params, trainer.frozen)
  differentiate = jax.value_and_grad(
    functools.partial(scaled_loss, trainer=trainer, padded_size=padded_size),
    has_aux=True,
  )
  if trainer.micro_batches == 1:
    (_, losses), gradients = differentiate(trainable, state, batch, keys)
  else:
    losses, gradients = accumulate_gradients(
      trainer, differentiate, trainable, state, batch, keys, padded_size
    )
  total = losses.total()
  scale = state.loss_scale.scale
  gradients = jax.tree.map(lambda x: x / scale, gradients)
  # A gradient can overflow where no loss does.
  norm = optax.tree.norm(gradients)
  is_finite = jnp.isfinite(total) & jnp.isfinite(norm)

  updates, optimizer_state = trainer.optimizer.update(
    gradients, state.optimizer, trainable, step=state.step
  )
  updated = optax.apply_updates(trainable, updates)
  average = state.average
  if trainer.ema_decay:
    average = next_average(
      average, updated, state.step, decay=trainer.ema_decay
    )
  updated, optimizer_state, average = jax.tree.map(
    lambda new, old: jnp.where(is_finite, new, old),
    (updated, optimizer_state, average),
    (trainable, state.optimizer, state.average),
  )
  loss_scale = next_loss_scale(state.loss_scale, is_finite)
  if not trainer.scales_loss:
    loss_scale = state.loss_scale._replace(skipped=loss_scale.skipped)
  state = TrainState(
    step=state.step + 1,
    params=join_parameters(state.params, updated),
    constants=state.constants,
    optimizer=optimizer_state,
    loss_scale=loss_scale,
    average=average,
  )
  return state, {'loss': total} | losses.by_name() | {
    'grad_norm': norm,
    'loss_scale': scale,
    'skipped': loss_scale.skipped,
  }


def scaled_loss(
  trainable: dict,
  state: TrainState,
  batch: Batch,
  keys: Key[Array, 'b 3'],
  samples: Samples | None = None,
  counts: SampleCounts = OF_THIS_BATCH,
  *,
  trainer: Trainer,
  padded_size: tuple[int, int],
) -> tuple[Float[Array, ''], Losses]:
  """Returns the sum of the losses times the loss scale, and the losses.

  Args:
    trainable: The parameters to differentiate by. That they are a separate
      argument spares the backward pass through frozen stages.
    state: All else: frozen parameters, constants, loss scale.
    batch: A batch or a part of one.
    keys: Random keys of each image: for augmentation, anchors and RoIs.
    samples: See `Rcnn.compute_losses`.
    counts: See `Rcnn.compute_losses`.
    trainer: The constants of the run.
    padded_size: (height, width) of the canvas.
  """
  inputs = prepare_batch(trainer, batch, keys[:, 0], padded_size)
  losses = trainer.rcnn.compute_losses(
    _variables(state, trainable),
    inputs,
    keys[:, 1:],
    limits=trainer.limits,
    samples=samples,
    counts=counts,
  )
  return state.loss_scale.scale * losses.total(), losses


def accumulate_gradients(
  trainer: Trainer,
  differentiate: Callable,
  trainable: dict,
  state: TrainState,
  batch: Batch,
  keys: Key[Array, 'b 3'],
  padded_size: tuple[int, int],
) -> tuple[Losses, dict]:
  """Returns losses and gradients of a batch, processed part by part.

  Each micro-batch needs the memory of its own images only. Losses and
  gradients are those of the whole batch: a first pass, forward as far as the
  proposals, draws the samples of all parts and counts them.

  Args:
    trainer: The constants of the run, with the number of parts.
    differentiate: The value and gradient of `scaled_loss`.
    trainable: The parameters to differentiate by.
    state: All else.
    batch: The whole batch.
    keys: Random keys of each image.
    padded_size: (height, width) of the canvas.
  """
  rcnn = trainer.rcnn

  def draw_samples(rows):
    batch, keys = rows
    inputs = prepare_batch(trainer, batch, keys[:, 0], padded_size)
    variables = _variables(state, trainable)
    rpn = rcnn.rate_anchors(variables, rcnn.extract(variables, inputs.images))
    samples = rcnn.sample(rpn, inputs, keys[:, 1:])
    return samples, rcnn.count_samples(samples, inputs.outlines)

  rows = split_rows((batch, keys), trainer.micro_batches)
  samples, counts = jax.lax.map(draw_samples, rows)
  counts = jax.tree.map(jnp.sum, counts)

  def add(sums, rows):
    (_, losses), gradients = differentiate(trainable, state, *rows, counts)
    return jax.tree.map(jnp.add, sums, (losses, gradients)), None

  first = jax.tree.map(lambda x: x[0], (*rows, samples))
  (_, losses), gradients = jax.eval_shape(
    differentiate, trainable, state, *first, counts
  )
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), (losses, gradients)
  )
  sums, _ = jax.lax.scan(add, zeros, (*rows, samples))
  return sums


def prepare_batch(
  trainer: Trainer,
  batch: Batch,
  keys: Key[Array, 'b'],
  padded_size: tuple[int, int],
):
  """Returns the augmented, resized and normalised images and their objects.

  Args:
    trainer: The constants of the run.
    batch: As decoded by the host.
    keys: A random key an image.
    padded_size: (height, width) of the canvas.
  """
  options = trainer.augmentation
  return trainer.rcnn.prepare(
    batch,
    draw_augmentation(
      keys, batch.source_sizes, options, padded_size=padded_size
    ),
    padded_size=padded_size,
    # Only scale jitter cuts images, and only then boxes must be cut too.
    max_object_vertices=(
      trainer.limits.max_object_vertices if options.scale_jitter else None
    ),
  )


def image_keys(
  seed: int, step: Int[Array, ''], num_images: int
) -> Key[Array, 'b 3']:
  """Returns the random keys of a step: for augmentation, anchors and RoIs.

  They depend on the seed, the step and the row in the global batch alone, so
  that the same training happens on any number of devices, and after a resume.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  row_keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(
    jnp.arange(num_images)
  )
  return jax.vmap(lambda key: jax.random.split(key, 3))(row_keys)


def split_rows(tree, num_parts: int):
  """Splits all arrays into equal parts: [b, ...] becomes [i, b / i, ...].

  Part i has the rows i, i + num_parts, .... The rows of a device lie together,
  so that each device has equally many rows of every part.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), tree
  )


def _variables(state: TrainState, trainable: dict) -> dict:
  """Returns the variables that the network is applied to."""
  return {
    'params': join_parameters(state.params, trainable),
    'constants': state.constants,
  }
