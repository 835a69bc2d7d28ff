"""Tests of `set_precision`."""

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.precision import set_precision


@pytest.fixture(autouse=True)
def restored():
  """Restores JAX's matmul precision, which a test changes for the process."""
  before = jax.config.jax_default_matmul_precision
  yield
  jax.config.update('jax_default_matmul_precision', before)


@pytest.mark.parametrize(
  ('precision', 'dtype', 'algorithm'),
  [
    ('fp32', jnp.float32, 'float32'),
    ('tf32', jnp.float32, 'tensorfloat32'),
    ('bf16', jnp.bfloat16, 'float32'),
    ('fp16', jnp.float16, 'float32'),
  ],
)
def test_set_precision_chooses_dtype_and_matmul(precision, dtype, algorithm):
  assert set_precision(precision) == dtype
  assert jax.config.jax_default_matmul_precision == algorithm


@pytest.mark.parametrize('precision', ['float16', '', 'FP32'])
def test_set_precision_names_the_choices(precision):
  with pytest.raises(InputError, match="'fp32', 'tf32', 'bf16', 'fp16'"):
    set_precision(precision)


def test_matmuls_of_float32_are_exact_enough_in_each():
  # 1 + 2^-12 needs more than the ten mantissa bits of TF32. A CPU has no TF32,
  # so all precisions keep the number.
  x = jnp.full((4, 4), 1 + 2**-12)
  for precision in ('fp32', 'tf32', 'bf16', 'fp16'):
    set_precision(precision)
    assert float((x @ jnp.eye(4))[0, 0]) == 1 + 2**-12
