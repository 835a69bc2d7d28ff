"""Tests of the choice between the kernels and plain JAX."""

import importlib.util

import pytest

from maskrcnn_jax import kernels
from maskrcnn_jax.kernels import XLA, Kernels, all_kernels

H200 = {
  'platform': 'gpu',
  'device_kind': 'NVIDIA H200',
  'jax_version': '0.11.2',
  'compute_capability': 9.0,
}


@pytest.fixture
def installed(monkeypatch):
  """Returns a function that pretends which compilers of kernels are installed.

  They are Pallas's Triton backend and jax-triton.
  """

  def install(*, backend, jax_triton):
    found = {kernels.BACKEND: backend, kernels.OTHER_BACKEND: jax_triton}
    monkeypatch.setattr(
      importlib.util, 'find_spec', lambda name: found[name] or None
    )

  return install


def test_jax_triton_is_not_used_if_pallas_can_be_compiled(installed):
  for jax_triton in (False, True):
    installed(backend=True, jax_triton=jax_triton)
    assert kernels.choose_kernels('pallas', **H200) == (
      all_kernels('pallas'),
      'Kernels: pallas, as configured',
    )


def test_without_pallas_jax_triton_compiles_nms(installed):
  installed(backend=False, jax_triton=True)
  assert kernels.choose_kernels('pallas', **H200) == (
    Kernels(nms='triton'),
    'Kernels: jax-triton for nms, xla instead of pallas for the rest: '
    'jax 0.11.2 has no jax.experimental.pallas.triton',
  )
  # 'xla' does not use it, and 'auto' only if it was measured to be faster.
  assert kernels.choose_kernels('xla', **H200)[0] == XLA
  assert kernels.choose_kernels('auto', **H200)[0] == XLA


@pytest.mark.parametrize(
  ('jax_triton', 'changed', 'why'),
  [
    (False, {}, 'and jax-triton is not installed'),
    (True, {'compute_capability': 7.5}, 'capability 7.5'),
    (True, {'platform': 'tpu'}, 'not tpu'),
    (True, {'platform': 'cpu'}, 'has no jax.experimental.pallas'),
  ],
)
def test_plain_jax_is_used_if_neither_pallas_nor_jax_triton_can_be(
  installed, jax_triton, changed, why
):
  installed(backend=False, jax_triton=jax_triton)
  chosen, line = kernels.choose_kernels('pallas', **H200 | changed)
  assert chosen == XLA
  assert line.startswith('Kernels: xla instead of pallas: ')
  assert why in line


def test_auto_uses_the_measured_kernels_that_can_be_compiled(
  installed, monkeypatch
):
  monkeypatch.setattr(
    kernels, 'MEASURED', {'NVIDIA H200': {(0, 11): ('nms', 'roi_align')}}
  )
  installed(backend=True, jax_triton=True)
  chosen, line = kernels.choose_kernels('auto', **H200)
  assert chosen == Kernels(nms='pallas', roi_align='pallas')
  assert line == (
    'Kernels: pallas for nms, pallas for roi_align, measured on NVIDIA H200'
  )
  installed(backend=False, jax_triton=True)
  assert kernels.choose_kernels('auto', **H200)[0] == Kernels(nms='triton')
  installed(backend=False, jax_triton=False)
  assert kernels.choose_kernels('auto', **H200)[0] == XLA


def test_only_nms_has_a_kernel_for_jax_triton(installed):
  installed(backend=True, jax_triton=True)
  ways = {
    name: kernels.kernels_on_gpu(name)
    for name in (*Kernels._fields, 'anchors_at')
  }
  assert ways.pop('nms') == ('pallas', 'triton')
  assert set(ways.values()) == {('pallas',)}
  installed(backend=True, jax_triton=False)
  assert kernels.kernels_on_gpu('nms') == ('pallas',)
