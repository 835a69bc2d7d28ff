"""What convolutions and matmuls are computed in."""

import jax
import jax.numpy as jnp

from maskrcnn_jax.errors import InputError


def set_precision(precision: str):
  """Sets the process's matmul precision and returns the compute dtype.

  Args:
    precision: 'fp32': all of float32. 'tf32': float32 with ten bits of
      mantissa inside matmuls, where the device has that; elsewhere as fp32.
      'bf16': bfloat16. Parameters, boxes, logits and losses are float32 in
      each.
  """
  match precision:
    case 'fp32':
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.float32
    case 'tf32':
      jax.config.update('jax_default_matmul_precision', 'tensorfloat32')
      return jnp.float32
    case 'bf16':
      # What stays in float32 stays exact.
      jax.config.update('jax_default_matmul_precision', 'float32')
      return jnp.bfloat16
  raise InputError(
      f'config.precision is {precision!r}; choose one of '
      "'fp32', 'tf32', 'bf16'."
  )
