"""The precision of convolutions and matmuls, and the scale of the loss."""

from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from maskrcnn_jax.errors import InputError

# Source: NVIDIA's Mask R-CNN For PyTorch, `engine/trainer.py`. Its
# torch.cuda.amp.GradScaler starts at 8192 and otherwise has torch's defaults.
INITIAL_SCALE = 8192.0
# Number of steps in a row without an overflow after which the scale doubles.
GROWTH_INTERVAL = 2000
# If gradients overflow even at a scale below 1, they are infinite themselves,
# and no scale will help.
MIN_SCALE = 1.0
# Source: apex `amp/scaler.py`, max_loss_scale. Torch has no limit.
MAX_SCALE = 2.0**24
# Compute capability of the first NVIDIA GPUs that have TF32, those of the
# Ampere architecture.
TF32_CAPABILITY = 8.0


class LossScale(NamedTuple):
  """The factor of the loss that keeps small gradients nonzero in float16."""

  scale: Float[Array, '']  # factor of the loss, a power of two
  # Number of steps in a row without an overflow, since the start or since the
  # scale last changed.
  good_steps: Int[Array, '']
  skipped: Int[Array, '']  # number of steps that were skipped in this run


def initial_loss_scale(precision: str) -> LossScale:
  """Returns the loss scale of step 0: 8192 for 'fp16', otherwise 1."""
  scale = INITIAL_SCALE if precision == 'fp16' else 1.0
  return LossScale(jnp.float32(scale), jnp.int32(0), jnp.int32(0))


def next_loss_scale(
  loss_scale: LossScale, is_finite: Bool[Array, '']
) -> LossScale:
  """Halves the scale after an overflow; doubles it after 2000 good steps.

  A good step is a step without an overflow. The 2000 steps must follow each
  other: an overflow, and also a doubling, makes the count begin at 0 again. A
  step with an overflow adds 1 to `skipped`.

  Args:
    loss_scale: Loss scale of this step.
    is_finite: Whether all losses and gradients of this step are finite. If not,
      the step is an overflow.

  Returns:
    Loss scale of the next step, with its counts.

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


def choose_precision(precision: str, *, stored: str | None = None) -> str:
  """Replaces 'auto' by the precision that suits the devices, and logs it.

  Args:
    precision: A precision of the recipe. One that is not 'auto' is returned as
      it is.
    stored: Precision of the checkpoint that a training is continued from. With
      'auto', a training in 'fp32' or 'tf32' keeps its precision, also on other
      devices. `None` without a checkpoint.

  Returns:
    For 'auto': 'tf32' if all devices of all processes are NVIDIA GPUs that have
    it (compute capability 8.0 and higher), otherwise 'fp32'.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, README, "Enabling TF32": TF32 is the
    default on Ampere GPUs, FP32 on Volta.
  """
  if precision != 'auto':
    return precision
  if stored in ('fp32', 'tf32'):
    chosen, reason = stored, 'as the training began'
  else:
    devices = jax.devices()
    # Only NVIDIA GPUs have this attribute. JAX gives it as a text.
    lowest = min(
      float(getattr(device, 'compute_capability', 0)) for device in devices
    )
    chosen = 'tf32' if lowest >= TF32_CAPABILITY else 'fp32'
    reason = devices[0].device_kind
    if lowest:
      reason += f', compute capability {lowest}'
  logging.info('Precision: %s (auto; %s)', chosen, reason)
  return chosen


def set_precision(precision: str) -> DTypeLike:
  """Sets the process's matmul precision and returns the compute dtype.

  Args:
    precision: 'fp32' computes in float32. 'tf32' computes in float32, but
      matmuls use ten bits of mantissa if the device supports it. 'bf16'
      computes in bfloat16. 'fp16' computes in float16, which needs a scaled
      loss. Parameters, boxes, logits and losses are always float32.

  Returns:
    Dtype of the convolutions and the matmuls of the network.

  Raises:
    InputError: If there is no precision of this name.
  """
  match precision:
    case 'fp32':
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.float32
    case 'tf32':
      jax.config.update('jax_default_matmul_precision', 'tensorfloat32')
      return jnp.float32
    case 'bf16' | 'fp16':
      # Matmuls of float32 arrays keep their full precision.
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.bfloat16 if precision == 'bf16' else jnp.float16
  raise InputError(
    f'config.precision is {precision!r}; choose one of '
    "'fp32', 'tf32', 'bf16', 'fp16'."
  )
