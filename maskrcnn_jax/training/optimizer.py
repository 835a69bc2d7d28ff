"""The learning rate, the optimizer, and which parameters it trains."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
import ml_collections
import optax

# A function from a step, counted from 0, to its learning rate.
Schedule = Callable[[Int[ArrayLike, '']], Float[Array, ''] | float]


def learning_rate(
  step: Int[ArrayLike, ''],
  *,
  base: float,
  warmup: str = 'linear',
  warmup_steps: int,
  warmup_factor: float,
  schedule: str = 'multistep',
  decay_steps: tuple[int, ...] = (),
  decay_factor: float = 0.1,
  num_steps: int = 0,
) -> Float[Array, '']:
  """Returns the learning rate of a step, counted from 0.

  Args:
    step: Number of steps done before, skipped steps included.
    base: Learning rate after the warm-up, before any decay.
    warmup: Form of the warm-up, the first `warmup_steps` steps. 'constant':
      the rate is `base` * `warmup_factor`. 'linear': the rate rises along a
      line from there to `base`. 'mlperf_linear': the rate rises by
      `warmup_factor` a step, so that it ends at `base`.
    warmup_steps: Number of steps of the warm-up; 0 for no warm-up.
    warmup_factor: Factor of the first rate to `base`; with 'mlperf_linear'
      the increase of the rate from step to step.
    schedule: Form of the decay. 'multistep': the rate is multiplied by
      `decay_factor` at each of `decay_steps`. 'cosine': the rate falls along
      half a cosine, to 0 at `num_steps`.
    decay_steps: Steps at which a 'multistep' rate falls.
    decay_factor: Factor by which it falls each time.
    num_steps: Number of steps of the whole training; for 'cosine' only.

  Raises:
    ValueError: If there is a warm-up, but none of this name exists.

  Source:
    maskrcnn-benchmark `solver/lr_scheduler.py`, WarmupMultiStepLR;
    'mlperf_linear': the same class of NVIDIA's Mask R-CNN For PyTorch. Cosine:
    SGDR (arXiv:1608.03983), equation 5, without restarts, with the warm-up's
    factor as in detectron2 `solver/`.
  """
  step = jnp.asarray(step)
  decay: Float[Array, ''] | float  # factor of `base` after the warm-up
  if schedule == 'cosine':
    progress = jnp.minimum(step / num_steps, 1)
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
  else:
    num_decays = (
      sum((step >= at).astype(jnp.float32) for at in decay_steps)
      if decay_steps
      else 0.0
    )
    decay = decay_factor**num_decays
  rate = jnp.asarray(base * decay, jnp.float32)
  if not warmup_steps:
    return rate
  progress = jnp.minimum(step / warmup_steps, 1)
  match warmup:
    case 'constant':
      warm = jnp.where(step < warmup_steps, warmup_factor, 1.0)
    case 'linear':
      warm = warmup_factor * (1 - progress) + progress
    case 'mlperf_linear':
      left = jnp.maximum(warmup_steps - step, 0)
      return jnp.asarray(rate - left * warmup_factor, jnp.float32)
    case _:
      raise ValueError(f'Unknown warm-up {warmup!r}.')
  return jnp.asarray(rate * warm, jnp.float32)


def make_recipe_optimizer(
  config: ml_collections.ConfigDict,
) -> tuple[Schedule, optax.GradientTransformationExtraArgs]:
  """Makes the learning rate schedule of a recipe, and its optimizer.

  Args:
    config: The recipe.

  Returns:
    The schedule of all parameters but biases, and the optimizer, which follows
    the schedules of both.
  """
  options = config.optimizer
  arguments = dict(
    warmup=options.warmup,
    warmup_steps=options.warmup_steps,
    warmup_factor=options.warmup_factor,
    schedule=options.schedule,
    decay_steps=tuple(options.decay_steps),
    decay_factor=options.decay_factor,
    num_steps=config.train.num_steps,
  )
  schedule = functools.partial(
    learning_rate, base=options.learning_rate, **arguments
  )
  bias_schedule = functools.partial(
    learning_rate,
    base=options.learning_rate * options.bias_rate_factor,
    **arguments,
  )
  return schedule, make_optimizer(
    options.name,
    momentum=options.momentum,
    beta2=options.beta2,
    weight_decay=options.weight_decay,
    schedule=schedule,
    bias_schedule=bias_schedule,
    clip_norm=options.clip_norm,
  )


def make_optimizer(
  name: str = 'sgd',
  *,
  momentum: float,
  beta2: float = 0.999,
  weight_decay: float,
  schedule: Schedule,
  bias_schedule: Schedule,
  clip_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Makes the optimizer; this is the one place where it is chosen.

  With gradient g, parameter p and the learning rate of the step:

  - 'sgd': v <- momentum * v + g + weight_decay * p; p <- p - rate * v.
  - 'adamw': p <- p - rate * (Adam's step for g + weight_decay * p), where the
    decay does not go through Adam's averages.

  A parameter named 'bias' does not decay, and has a learning rate of its own.

  The `update` of the optimizer needs the number of the step as well:
  `update(gradients, state, params, step=)`. Learning rates follow this number,
  which counts skipped steps too. The state of SGD counts no steps. The state of
  AdamW counts the updates, to correct its averages: a skipped step keeps the
  old state, so it is not counted there.

  Args:
    name: 'sgd' or 'adamw'.
    momentum: Part of the running average of the gradients that a step keeps,
      in [0, 1); the beta1 of AdamW.
    beta2: Part of the running average of the squared gradients that a step
      of AdamW keeps, in [0, 1). SGD does not use it.
    weight_decay: Factor of the weight decay of all parameters but biases.
    schedule: Function from a step to the learning rate.
    bias_schedule: Function from a step to the learning rate of biases.
    clip_norm: Largest norm of all gradients together. Longer gradients are
      scaled down to this norm; 0 does not limit it.

  Raises:
    ValueError: If there is no optimizer of this name.

  Source:
    SGD: torch.optim.SGD; the rates and the decay of biases:
    maskrcnn-benchmark `solver/build.py`. AdamW: arXiv:1711.05101,
    algorithm 2, with an epsilon of 1e-8 as in optax.adamw.
    Differs: the paper's decay follows the schedule, but not the base learning
    rate. Here the rate multiplies both, as in optax and torch.optim.AdamW, so
    that their values of weight_decay can be used.
    Clipping: arXiv:1211.5063, algorithm 1.
  """
  decay = optax.add_decayed_weights(weight_decay, mask=_is_no_bias)
  match name:
    case 'sgd':
      rule = [decay, optax.trace(decay=momentum)]
    case 'adamw':
      rule = [optax.scale_by_adam(b1=momentum, b2=beta2), decay]
    case _:
      raise ValueError(f"optimizer must be 'sgd' or 'adamw', not {name!r}.")
  clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  return optax.chain(*clip, *rule, _scale_by_rates(schedule, bias_schedule))


def next_average(
  average: dict, params: dict, step: Int[ArrayLike, ''], *, decay: float
) -> dict:
  """Moves the running average of the weights towards the weights of a step.

  Args:
    average: Average up to the step before.
    params: Weights after this step, a tree like `average`.
    step: Number of steps done before.
    decay: Part of the average that is kept, in [0, 1). In the first steps, the
      smaller part (1 + step) / (10 + step) is kept, because the average starts
      from untrained weights.

  Source:
    tf.train.ExponentialMovingAverage with `num_updates`.
  """
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)


def split_parameters(
  params: dict, frozen: tuple[tuple[str, ...], ...]
) -> tuple[dict, dict]:
  """Splits nested parameters into those to train and those to leave alone.

  Args:
    params: Parameters as a nested dict.
    frozen: Path prefixes of parameters that are not trained, such as
      ('backbone', 'layer1').

  Returns:
    The trainable and the fixed parameters, both as nested dicts.
    `join_parameters` puts them together again.
  """
  trainable: dict[tuple[str, ...], Array] = {}
  fixed: dict[tuple[str, ...], Array] = {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    is_fixed = any(path[: len(prefix)] == prefix for prefix in frozen)
    (fixed if is_fixed else trainable)[path] = leaf
  return (
    traverse_util.unflatten_dict(trainable),
    traverse_util.unflatten_dict(fixed),
  )


def join_parameters(params: dict, replacements: dict) -> dict:
  """Merges two nested dicts of parameters.

  It also undoes `split_parameters`, given both of its results.

  Args:
    params: Parameters as a nested dict.
    replacements: Parameters as a nested dict. If both dicts have a parameter of
      the same path, this one is used.
  """
  return traverse_util.unflatten_dict(
    traverse_util.flatten_dict(params)
    | traverse_util.flatten_dict(replacements)
  )


def _is_bias(params: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns a tree like `params` that is True for each bias, else False.

  A bias is a parameter whose own name, the last of its path, is 'bias'.
  """
  return traverse_util.path_aware_map(
    lambda path, _: path[-1] == 'bias', params
  )


def _is_no_bias(params: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns a tree like `params` that is False for each bias, else True.

  A bias is a parameter whose own name, the last of its path, is 'bias'.
  """
  return traverse_util.path_aware_map(
    lambda path, _: path[-1] != 'bias', params
  )


def _scale_by_rates(
  schedule: Schedule, bias_schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
  """Makes the last part of an optimizer, which applies the learning rate.

  It multiplies each update by minus the learning rate of the step. It keeps no
  state and does not count steps: the number of the step must be passed to
  `update` as the keyword argument `step`.

  Args:
    schedule: Function from a step, counted from 0, to the learning rate.
    bias_schedule: The same for biases, the parameters whose last name is
      'bias'.
  """
  return optax.GradientTransformationExtraArgs(
    optax.init_empty_state,
    functools.partial(
      _times_rates, schedule=schedule, bias_schedule=bias_schedule
    ),
  )


def _times_rates(
  updates: dict,
  state: optax.EmptyState,
  params: dict | None = None,
  *,
  step: Int[ArrayLike, ''],
  schedule: Schedule,
  bias_schedule: Schedule,
  **_: object,
) -> tuple[dict, optax.EmptyState]:
  """Multiplies each update by minus the learning rate of its parameter.

  It is the `update` function of an optax transformation, so optax determines
  the arguments and the results.

  Args:
    updates: A nested dict with the update of each parameter.
    state: The empty state; it is returned as it is.
    params: Not used.
    step: Number of steps done before.
    schedule: Function from a step to the learning rate.
    bias_schedule: Function from a step to the learning rate of biases.
    **_: Not used.
  """
  del params
  rates = {True: bias_schedule(step), False: schedule(step)}
  scaled = jax.tree.map(
    lambda update, is_bias: -rates[is_bias] * update,
    updates,
    _is_bias(updates),
  )
  return scaled, state
