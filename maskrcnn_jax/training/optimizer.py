"""SGD as the recipe has it, and which parameters it trains."""

from collections.abc import Callable
import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
import optax

# From a step, counted from 0, to its learning rate.
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
    step: Steps done before, skipped ones included.
    base: The rate after the warm-up.
    warmup: What the first `warmup_steps` have. 'constant': `base` *
      `warmup_factor`. 'linear': a line from there to `base`. 'mlperf_linear':
      a line that rises by `warmup_factor` a step and ends at `base`.
    warmup_steps: 0 for none.
    warmup_factor: See `warmup`.
    schedule: 'multistep': the rate is multiplied by `decay_factor` at each of
      `decay_steps`. 'cosine': it falls along half a cosine, to 0 at
      `num_steps`.
    decay_steps: See `schedule`.
    decay_factor: See `schedule`.
    num_steps: See `schedule`.

  Source:
    maskrcnn-benchmark `solver/lr_scheduler.py`, WarmupMultiStepLR; the seed's
    for 'mlperf_linear'. Cosine: SGDR (arXiv:1608.03983), equation 5, without
    restarts, with the warm-up's factor as in detectron2 `solver/`.
  """
  step = jnp.asarray(step)
  if schedule == 'cosine':
    progress = jnp.minimum(step / num_steps, 1)
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress))
  else:
    decays = sum(
        (step >= at).astype(jnp.float32) for at in decay_steps
    ) if decay_steps else 0.0
    decay = decay_factor**decays
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


def make_optimizer(
    *,
    momentum: float,
    weight_decay: float,
    schedule: Schedule,
    bias_schedule: Schedule,
    clip_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
  """Returns SGD with momentum, in the order of torch.optim.SGD.

  v <- momentum * v + g + weight_decay * p; p <- p - rate * v. A parameter
  named 'bias' does not decay and has a rate of its own. Its `update` wants the
  step as well: `update(gradients, state, params, step=)`; the state is the
  momentum alone, so that there is one count of steps.

  Args:
    momentum: Of the gradients.
    weight_decay: Of all but biases.
    schedule: Gives the learning rate of a step.
    bias_schedule: Likewise, of biases.
    clip_norm: Gradients whose norm, of all together, is longer are made as
      long as this; 0: none are.

  Source:
    maskrcnn-benchmark `solver/build.py`. Clipping: arXiv:1211.5063,
    algorithm 1.
  """
  chain = [
      optax.add_decayed_weights(
          weight_decay, mask=functools.partial(_biases, are=False)
      ),
      optax.trace(decay=momentum),
      _scale_by_rates(schedule, bias_schedule),
  ]
  if clip_norm:
    chain.insert(0, optax.clip_by_global_norm(clip_norm))
  return optax.chain(*chain)


def next_average(
    average: dict, params: dict, step: Int[ArrayLike, ''], *, decay: float
) -> dict:
  """Moves the average of the weights towards those of a step.

  Args:
    average: So far.
    params: Of this step, a tree like `average`.
    step: Steps done before.
    decay: What the average keeps of itself; less in the first steps, for it
      starts from weights that have learned nothing.

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
    params: Nested dict.
    frozen: Path prefixes such as ('backbone', 'layer1').

  Returns:
    trainable and fixed, nested dicts; `join_parameters` puts them together.
  """
  trainable, fixed = {}, {}
  for path, leaf in traverse_util.flatten_dict(params).items():
    is_fixed = any(path[: len(prefix)] == prefix for prefix in frozen)
    (fixed if is_fixed else trainable)[path] = leaf
  return (
      traverse_util.unflatten_dict(trainable),
      traverse_util.unflatten_dict(fixed),
  )


def join_parameters(trainable: dict, fixed: dict) -> dict:
  """Undoes `split_parameters`."""
  return traverse_util.unflatten_dict(
      traverse_util.flatten_dict(trainable) | traverse_util.flatten_dict(fixed)
  )


def _biases(params, *, are: bool):
  """A tree like `params` that says of each leaf whether it is a bias."""
  return traverse_util.path_aware_map(
      lambda path, _: (path[-1] == 'bias') == are, params
  )


def _scale_by_rates(schedule, bias_schedule):
  """Multiplies updates by minus the learning rate of their kind."""

  def update(updates, state, params=None, *, step, **_):
    del params
    rates = {True: bias_schedule(step), False: schedule(step)}
    return jax.tree.map(
        lambda update, is_bias: -rates[is_bias] * update,
        updates, _biases(updates, are=True),
    ), state

  return optax.GradientTransformationExtraArgs(
      lambda params: optax.EmptyState(), update
  )
