"""What training carries from step to step, and what of it is saved."""

import functools
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import ml_collections
import optax

from maskrcnn_jax.detector import init_variables
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.runtime.precision import LossScale, initial_loss_scale
from maskrcnn_jax.training.optimizer import (
  Schedule,
  join_parameters,
  learning_rate,
  make_optimizer,
  split_parameters,
)


class TrainState(NamedTuple):
  """All that a step reads and writes."""

  step: Int[Array, '']  # steps done, those without an update included
  params: dict
  constants: dict  # frozen batch norm; never written
  optimizer: Any
  loss_scale: LossScale
  average: dict  # of what is trained, over the steps; empty if none is kept


def make_recipe_optimizer(
    config: ml_collections.ConfigDict,
) -> tuple[Schedule, optax.GradientTransformationExtraArgs]:
  """Returns the learning rate as a function of the step, and the optimizer."""
  recipe = config.optimizer
  arguments = dict(
      warmup=recipe.warmup,
      warmup_steps=recipe.warmup_steps,
      warmup_factor=recipe.warmup_factor,
      schedule=recipe.schedule,
      decay_steps=tuple(recipe.decay_steps),
      decay_factor=recipe.decay_factor,
      num_steps=config.train.num_steps,
  )
  schedule = functools.partial(
      learning_rate, base=recipe.learning_rate, **arguments
  )
  bias_schedule = functools.partial(
      learning_rate, base=recipe.learning_rate * recipe.bias_rate_factor,
      **arguments
  )
  return schedule, make_optimizer(
      momentum=recipe.momentum,
      weight_decay=recipe.weight_decay,
      schedule=schedule,
      bias_schedule=bias_schedule,
      clip_norm=recipe.clip_norm,
  )


def initial_state(model, optimizer, config) -> TrainState:
  """A state of step 0 with random weights that depend on the seed alone."""
  # Drawing numbers does not get faster by optimising the program that does
  # it, which takes XLA ten times longer.
  init = jax.jit(
      functools.partial(init_variables, model, config),
      compiler_options={'xla_backend_optimization_level': 0},
  )
  variables = init(jax.random.key(config.seed))
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
  """Has the average, where the recipe asks for one, start from the weights."""
  if not config.train.ema_decay:
    return state
  trainable, _ = split_parameters(
      state.params, frozen_prefixes(config.freeze_at)
  )
  # Of its own memory, for a step takes over that of the state it is given.
  return state._replace(average=jax.tree.map(jnp.copy, trainable))


def variables_of(state: TrainState) -> dict:
  """What the network needs to be used: averaged weights where there are any."""
  variables = {'params': join_parameters(state.params, state.average)}
  if state.constants:
    variables['constants'] = state.constants
  return variables


def training_state(state: TrainState) -> dict:
  """What is saved beside `variables_of`, for the training to go on from."""
  kept = {'momentum': state.optimizer, 'loss_scale': state.loss_scale}
  if state.average:
    # Where there is an average, `variables_of` has it in place of these.
    kept['params'] = _same_leaves(state.params, state.average)
  return kept


def restored_state(
    state: TrainState, step: int, variables: dict, kept: dict
) -> TrainState:
  """Undoes `variables_of` and `training_state`.

  Args:
    state: Any state of the same run.
    step: Steps done.
    variables: As `variables_of` gave them.
    kept: As `training_state` gave it.
  """
  params, average = variables['params'], {}
  if 'params' in kept:
    average = _same_leaves(params, kept['params'])
    params = join_parameters(params, kept['params'])
  return TrainState(
      step=jnp.int32(step), params=params,
      constants=variables.get('constants', {}), optimizer=kept['momentum'],
      loss_scale=kept['loss_scale'], average=average,
  )


def _same_leaves(tree: dict, other: dict) -> dict:
  """The leaves of a tree whose paths are in another too."""
  paths = traverse_util.flatten_dict(other).keys()
  return traverse_util.unflatten_dict({
      path: leaf for path, leaf in traverse_util.flatten_dict(tree).items()
      if path in paths
  })
