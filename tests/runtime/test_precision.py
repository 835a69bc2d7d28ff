"""Tests of `choose_precision` and `set_precision`."""

import types

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime.precision import choose_precision, set_precision


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


def gpus(*capabilities):
  """Returns stand-ins for NVIDIA GPUs; JAX gives the capability as a text."""
  return [
    types.SimpleNamespace(device_kind='NVIDIA X', compute_capability=capability)
    for capability in capabilities
  ]


@pytest.mark.parametrize(
  ('devices', 'expected'),
  [
    (gpus('7.0'), 'fp32'),  # V100
    (gpus('7.5'), 'fp32'),  # T4
    (gpus('8.0'), 'tf32'),  # A100
    (gpus('9.0', '9.0'), 'tf32'),  # H200
    (gpus('12.0'), 'tf32'),  # RTX PRO 6000
    (gpus('8.0', '7.0'), 'fp32'),
    ([types.SimpleNamespace(device_kind='cpu')], 'fp32'),
  ],
)
def test_auto_is_tf32_where_all_devices_have_it(
  devices, expected, monkeypatch, caplog
):
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  with caplog.at_level('INFO'):
    assert choose_precision('auto') == expected
  assert f'Precision: {expected} (auto; ' in caplog.text
  for precision in ('fp32', 'tf32', 'bf16', 'fp16'):
    assert choose_precision(precision, stored='tf32') == precision


@pytest.mark.parametrize(
  ('stored', 'expected'),
  [('fp32', 'fp32'), ('tf32', 'tf32'), ('bf16', 'tf32'), (None, 'tf32')],
)
def test_auto_keeps_the_full_precision_that_a_training_began_with(
  stored, expected, monkeypatch
):
  monkeypatch.setattr(jax, 'devices', lambda: gpus('9.0'))
  assert choose_precision('auto', stored=stored) == expected


def test_matmuls_of_float32_are_exact_enough_in_each():
  # 1 + 2^-12 needs more than the ten mantissa bits of TF32. A CPU has no TF32,
  # so all precisions keep the number.
  x = jnp.full((4, 4), 1 + 2**-12)
  for precision in ('fp32', 'tf32', 'bf16', 'fp16'):
    set_precision(precision)
    assert float((x @ jnp.eye(4))[0, 0]) == 1 + 2**-12
