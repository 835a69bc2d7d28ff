"""One training step, jitted: from a batch of images to new parameters."""

from collections.abc import Callable
import functools
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree
import ml_collections
import optax

from maskrcnn_jax.array_types import Batch, GroundTruthLimits, Inputs
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

# The figures of a step: {name: number}, with names such as 'loss', 'loss_mask'
# and 'grad_norm'.
Figures = dict[str, Float[Array, ''] | Int[Array, '']]

# A function with the arguments of `scaled_loss` that returns its value, and the
# gradient with respect to its first argument: ((scaled loss, losses),
# gradients).
Differentiate = Callable[..., tuple[tuple[Float[Array, ''], Losses], dict]]


class Trainer(NamedTuple):
  """The model, the optimizer and the options of a training step."""

  rcnn: Rcnn
  optimizer: optax.GradientTransformationExtraArgs
  limits: GroundTruthLimits  # static sizes of the ground truth
  augmentation: AugmentationOptions
  seed: int  # of the random numbers of all steps
  frozen: tuple[tuple[str, ...], ...]  # path prefixes of untrained parameters
  micro_batches: int  # number of equal parts that a batch is processed in
  # Part of the moving average of the weights that a step keeps; 0 for no
  # average.
  ema_decay: float
  scales_loss: bool  # True for float16, whose gradients would underflow

  @classmethod
  def from_config(
    cls,
    config: ml_collections.ConfigDict,
    rcnn: Rcnn,
    optimizer: optax.GradientTransformationExtraArgs,
    limits: GroundTruthLimits,
  ) -> 'Trainer':
    """Makes the trainer of a recipe.

    Args:
      config: The recipe.
      rcnn: The model, on the devices to train on.
      optimizer: The optimizer.
      limits: Static sizes of the ground truth of the training set.
    """
    data = config.data
    return cls(
      rcnn=rcnn,
      optimizer=optimizer,
      limits=limits,
      augmentation=AugmentationOptions(
        flip_probability=data.flip_probability,
        scale_jitter=tuple(data.scale_jitter),
        color_jitter=tuple(data.color_jitter),
      ),
      seed=config.seed,
      frozen=frozen_prefixes(config.freeze_at),
      micro_batches=config.train.micro_batches,
      ema_decay=config.train.ema_decay,
      scales_loss=config.precision == 'fp16',
    )


@runtime_checkable
class JittedStep(Protocol):
  """The type of a jitted training step, which `jit_train_step` makes."""

  def __call__(
    self, state: TrainState, batch: Batch, *, padded_size: tuple[int, int]
  ) -> tuple[TrainState, Figures]:
    """Makes one training step; returns the new state and the step's figures.

    Args:
      state: The state after the step before. Its memory is reused.
      batch: Images and ground truth as the host has decoded them.
      padded_size: (height, width) in pixels to which the images are padded.
    """

  def lower(
    self, state: TrainState, batch: Batch, *, padded_size: tuple[int, int]
  ) -> jax.stages.Lowered:
    """Traces the step for the shapes of these arrays, for `.compile()`."""


def jit_train_step(trainer: Trainer) -> JittedStep:
  """Returns the jitted function `train_step(state, batch, padded_size=)`.

  The new state takes over the memory of the given one, which must not be used
  any more. On a mesh, the state is replicated, and the images of the batch are
  spread over the devices.
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
  """Makes one training step: computes losses and gradients, updates parameters.

  A step whose losses or gradients are not all finite is skipped: parameters,
  optimizer state and average stay as they are. The count of steps still rises,
  because the step's batch and random numbers are used up; learning rates
  follow that count.

  Args:
    trainer: The model, the optimizer and the options.
    state: The state after the step before.
    batch: Images and ground truth as the host has decoded them.
    padded_size: (height, width) in pixels to which the images are padded after
      resizing; static.

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
  # A gradient can overflow although all losses are finite.
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
    trainable: The parameters to differentiate by. They are a separate argument
      so that the backward pass skips the frozen stages.
    state: Gives the frozen parameters, the constants and the loss scale.
    batch: A batch or a part of one, as the host has decoded it.
    keys: Random keys of each image, for augmentation, anchors and RoIs.
    samples: Anchors and RoIs to compute the losses from. `None` draws them.
    counts: Number of samples that each loss is averaged over. By default, the
      samples of `batch` are counted.
    trainer: The model and the options.
    padded_size: (height, width) in pixels to which the images are padded.
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
  differentiate: Differentiate,
  trainable: dict,
  state: TrainState,
  batch: Batch,
  keys: Key[Array, 'b 3'],
  padded_size: tuple[int, int],
) -> tuple[Losses, dict]:
  """Returns losses and gradients of a batch, processed in micro-batches.

  Only one micro-batch at a time needs memory for its activations. The losses
  and gradients are still those of the whole batch: a first forward pass, as far
  as the proposals, draws the samples of all micro-batches and counts them, so
  that each loss is averaged over the samples of the whole batch.

  Args:
    trainer: The model and the options, with the number of micro-batches.
    differentiate: The value and gradient of `scaled_loss`.
    trainable: The parameters to differentiate by.
    state: Gives the frozen parameters, the constants and the loss scale.
    batch: The whole batch, as the host has decoded it.
    keys: Random keys of each image, for augmentation, anchors and RoIs.
    padded_size: (height, width) in pixels to which the images are padded.

  Returns:
    The losses, and the gradients of their sum times the loss scale.
  """
  rcnn = trainer.rcnn

  def draw_samples(
    rows: tuple[Batch, Key[Array, 'i 3']],
  ) -> tuple[Samples, SampleCounts]:
    """Draws and counts the anchors and RoIs of a micro-batch."""
    batch, keys = rows
    inputs = prepare_batch(trainer, batch, keys[:, 0], padded_size)
    variables = _variables(state, trainable)
    pyramid = rcnn.extract(variables, inputs.images, inputs.image_sizes)
    rpn = rcnn.rate_anchors(variables, pyramid, inputs.image_sizes)
    samples = rcnn.sample(rpn, inputs, keys[:, 1:])
    return samples, rcnn.count_samples(samples, inputs.outlines)

  rows = split_rows((batch, keys), trainer.micro_batches)
  samples, counts = jax.lax.map(draw_samples, rows)
  counts = jax.tree.map(jnp.sum, counts)

  def add(
    sums: tuple[Losses, dict],
    rows: tuple[Batch, Key[Array, 'i 3'], Samples],
  ) -> tuple[tuple[Losses, dict], None]:
    """Adds losses and gradients of a micro-batch to the sums; for `scan`."""
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
) -> Inputs:
  """Augments, resizes, normalises and pads the images of a batch on the device.

  Args:
    trainer: The model and the options of the augmentation.
    batch: Images and ground truth as the host has decoded them.
    keys: One random key for each image.
    padded_size: (height, width) in pixels to which the images are padded.
  """
  options = trainer.augmentation
  return trainer.rcnn.prepare(
    batch,
    draw_augmentation(
      keys,
      jnp.asarray(batch.source_sizes),
      batch.size_choices,
      options,
      padded_size=padded_size,
    ),
    padded_size=padded_size,
    # Only scale jitter crops images, so only then boxes must be cropped too.
    max_object_vertices=(
      trainer.limits.max_object_vertices if options.scale_jitter else None
    ),
  )


def image_keys(
  seed: int, step: Int[Array, ''], num_images: int
) -> Key[Array, 'b 3']:
  """Makes the random keys of each image of a step's batch.

  They depend on the seed, the step and the row in the global batch only, so
  that the training is the same on any number of devices and after a resume.

  Args:
    seed: Seed of the training.
    step: Number of steps done before.
    num_images: Number of images of the batch, on all devices together.

  Returns:
    For each image a key for augmentation, one for anchors and one for RoIs.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  row_keys = jax.vmap(lambda row: jax.random.fold_in(step_key, row))(
    jnp.arange(num_images)
  )
  return jax.vmap(lambda key: jax.random.split(key, 3))(row_keys)


def split_rows(tree: PyTree, num_parts: int) -> PyTree:
  """Splits the rows of arrays: [b, ...] becomes [num_parts, rows, ...].

  Part i has the rows i, i + num_parts, i + 2 * num_parts and so on. A device
  holds neighbouring rows, so it has equally many rows of each part.

  Args:
    tree: Arrays with the same number of rows.
    num_parts: Number of parts; it divides the number of rows.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, num_parts, *x.shape[1:]).swapaxes(0, 1), tree
  )


def _variables(state: TrainState, trainable: dict) -> dict:
  """Returns params and constants of the network, given its trainable params."""
  return {
    'params': join_parameters(state.params, trainable),
    'constants': state.constants,
  }
