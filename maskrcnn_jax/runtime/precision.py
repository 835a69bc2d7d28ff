"""What convolutions and matmuls are computed in, and the scale of the loss."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.errors import InputError

# Source: the seed's torch.cuda.amp.GradScaler, `engine/trainer.py`: it starts
# at 8192 and otherwise has torch's defaults.
INITIAL_SCALE = 8192.0
GROWTH_INTERVAL = 2000
# Below 1 the gradients are no longer what is too large for float16.
MIN_SCALE = 1.0
# Source: apex `amp/scaler.py`, max_loss_scale. Torch has no limit.
MAX_SCALE = 2.0**24


class LossScale(NamedTuple):
  """What the loss is multiplied by, so that float16 holds its gradients."""

  scale: Float[Array, '']  # a power of two
  good_steps: Int[Array, '']  # since it last changed
  skipped: Int[Array, '']  # steps of the run that changed no parameter


def initial_loss_scale(precision: str) -> LossScale:
  """Returns the scale of step 0; it is 1 and stays so unless in 'fp16'."""
  scale = INITIAL_SCALE if precision == 'fp16' else 1.0
  return LossScale(jnp.float32(scale), jnp.int32(0), jnp.int32(0))


def next_loss_scale(
    loss_scale: LossScale, is_finite: Bool[Array, '']
) -> LossScale:
  """Halves the scale after an overflow; doubles it after 2000 good steps.

  Args:
    loss_scale: Of this step.
    is_finite: Whether the losses and gradients of this step are.

  Source:
    Mixed Precision Training (arXiv:1710.03740), section 3.2;
    torch.amp.GradScaler.
    Differs: the scale stays between 1 and 2**24.
  """
  scale, good_steps, skipped = loss_scale
  grows = good_steps + 1 >= GROWTH_INTERVAL
  grown = jnp.where(grows, jnp.minimum(2 * scale, MAX_SCALE), scale)
  return LossScale(
      jnp.where(is_finite, grown, jnp.maximum(scale / 2, MIN_SCALE)),
      jnp.where(is_finite & ~grows, good_steps + 1, 0),
      jnp.where(is_finite, skipped, skipped + 1),
  )


def set_precision(precision: str):
  """Sets the process's matmul precision and returns the compute dtype.

  Args:
    precision: 'fp32': all of float32. 'tf32': float32 with ten bits of
      mantissa inside matmuls, where the device has that; elsewhere as fp32.
      'bf16': bfloat16. 'fp16': float16, which needs a scaled loss.
      Parameters, boxes, logits and losses are float32 in each.
  """
  match precision:
    case 'fp32':
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.float32
    case 'tf32':
      jax.config.update('jax_default_matmul_precision', 'tensorfloat32')
      return jnp.float32
    case 'bf16' | 'fp16':
      # What stays in float32 stays exact.
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.bfloat16 if precision == 'bf16' else jnp.float16
  raise InputError(
      f'config.precision is {precision!r}; choose one of '
      "'fp32', 'tf32', 'bf16', 'fp16'."
  )
