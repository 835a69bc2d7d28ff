"""The state of a training, and the parts of it that a checkpoint stores."""

from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import ml_collections
import optax

from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime.precision import LossScale, initial_loss_scale
from maskrcnn_jax.training.optimizer import (
  join_parameters,
  split_parameters,
)


class TrainState(NamedTuple):
  """All arrays that a training step reads and replaces."""

  step: Int[Array, '']  # number of steps done, skipped ones included
  params: dict  # all parameters, frozen ones included
  constants: dict  # statistics of frozen batch norm; never changed
  optimizer: Any  # state of the optimizer
  loss_scale: LossScale
  average: dict  # moving average of the trained parameters; {} without one


def initial_state(
  rcnn: Rcnn,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
) -> TrainState:
  """Returns the state of step 0 with random weights that the seed determines.

  Args:
    rcnn: The model.
    optimizer: The optimizer; its initial state is a part of the result.
    config: The recipe, which gives the seed, the frozen stages and the
      precision.
  """
  # XLA would need ten times longer to compile an optimised program, which would
  # not draw the numbers faster.
  init = jax.jit(
    rcnn.init, compiler_options={'xla_backend_optimization_level': 0}
  )
  return state_with(init(jax.random.key(config.seed)), optimizer, config)


def state_with(
  variables: dict,
  optimizer: optax.GradientTransformation,
  config: ml_collections.ConfigDict,
) -> TrainState:
  """Returns the state of step 0 with given weights.

  Args:
    variables: Parameters and constants of the model, as `Rcnn.init` makes them.
    optimizer: The optimizer; its initial state is a part of the result.
    config: The recipe, which gives the frozen stages and the precision.
  """
  trainable, _ = split_parameters(
    variables['params'], frozen_prefixes(config.freeze_at)
  )
  return TrainState(
    step=jnp.int32(0),
    params=variables['params'],
    constants=variables.get('constants', {}),
    optimizer=optimizer.init(trainable),
    loss_scale=initial_loss_scale(config.precision),
    average={},
  )


def start_average(
  state: TrainState, config: ml_collections.ConfigDict
) -> TrainState:
  """Starts the moving average of the weights if the recipe asks for it.

  Args:
    state: A state without an average.
    config: The recipe; `train.ema_decay` is 0 if it asks for no average.
  """
  if not config.train.ema_decay:
    return state
  trainable, _ = split_parameters(
    state.params, frozen_prefixes(config.freeze_at)
  )
  # Copies the arrays, because the training step donates the buffers of the
  # state that it receives.
  return state._replace(average=jax.tree.map(jnp.copy, trainable))


def variables_of(state: TrainState) -> dict:
  """Returns the model to evaluate and to save as the result of the training.

  Returns:
    {'params': ..., 'constants': ...}. The trained params are averaged if the
    state has an average. 'constants' is missing if the model has none.
  """
  variables = {'params': join_parameters(state.params, state.average)}
  if state.constants:
    variables['constants'] = state.constants
  return variables


def training_state(state: TrainState) -> dict:
  """Returns the arrays that a checkpoint stores besides the model.

  Together with the model, as `variables_of` returns it, they suffice to resume
  the training.

  Returns:
    {'momentum': state of the optimizer, 'loss_scale': ...}, and 'params', the
    trained params, if the model has averaged ones instead.
  """
  kept = {'momentum': state.optimizer, 'loss_scale': state.loss_scale}
  if state.average:
    # `variables_of` has the average of these parameters instead.
    kept['params'] = _same_leaves(state.params, state.average)
  return kept


def restored_state(step: int, variables: dict, kept: dict) -> TrainState:
  """Rebuilds the state of a training from the arrays of its checkpoint.

  Args:
    step: Number of steps done.
    variables: The model, as `variables_of` has returned it.
    kept: The other arrays, as `training_state` has returned them.
  """
  params, average = variables['params'], {}
  if 'params' in kept:
    average = _same_leaves(params, kept['params'])
    params = join_parameters(params, kept['params'])
  return TrainState(
    step=jnp.int32(step),
    params=params,
    constants=variables.get('constants', {}),
    optimizer=kept['momentum'],
    loss_scale=kept['loss_scale'],
    average=average,
  )


def _same_leaves(tree: dict, other: dict) -> dict:
  """Returns the leaves of a nested dict whose paths occur in another one too.

  Args:
    tree: The nested dict that the leaves are taken from.
    other: The nested dict that says which paths are taken; its leaves are not
      used.
  """
  paths = traverse_util.flatten_dict(other).keys()
  return traverse_util.unflatten_dict(
    {
      path: leaf
      for path, leaf in traverse_util.flatten_dict(tree).items()
      if path in paths
    }
  )
