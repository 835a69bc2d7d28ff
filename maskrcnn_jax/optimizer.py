"""SGD as the recipe has it, and which parameters it trains."""

import functools

from flax import traverse_util
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int
import optax


def learning_rate(
    step: Int[ArrayLike, ''],
    *,
    base: float,
    warmup_steps: int,
    warmup_factor: float,
    decay_steps: tuple[int, ...],
    decay_factor: float,
) -> Float[Array, '']:
  """Returns the learning rate of a step, counted from 0.

  It rises in a line from `base` * `warmup_factor` to `base`, and is multiplied
  by `decay_factor` at each of `decay_steps`.

  Source:
    maskrcnn-benchmark `solver/lr_scheduler.py`, WarmupMultiStepLR.
  """
  step = jnp.asarray(step)
  progress = jnp.minimum(step / max(warmup_steps, 1), 1)
  warmup = warmup_factor * (1 - progress) + progress if warmup_steps else 1.0
  decays = sum(
      (step >= at).astype(jnp.float32) for at in decay_steps
  ) if decay_steps else 0.0
  return jnp.asarray(base * warmup * decay_factor**decays, jnp.float32)


def make_optimizer(
    *,
    momentum: float,
    weight_decay: float,
    bias_rate_factor: float,
    schedule,
) -> optax.GradientTransformation:
  """Returns SGD with momentum, in the order of torch.optim.SGD.

  v <- momentum * v + g + weight_decay * p; p <- p - rate * v. A parameter
  named 'bias' does not decay and moves at `bias_rate_factor` times the rate.

  Source:
    maskrcnn-benchmark `solver/build.py`.
  """
  return optax.chain(
      optax.add_decayed_weights(
          weight_decay, mask=functools.partial(_biases, are=False)
      ),
      optax.trace(decay=momentum),
      optax.masked(
          optax.scale(bias_rate_factor),
          functools.partial(_biases, are=True),
      ),
      optax.scale_by_learning_rate(schedule),
  )


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
