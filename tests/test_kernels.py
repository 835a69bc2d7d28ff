"""Tests of the choice between kernels and plain JAX."""

import importlib.metadata
import importlib.util

import pytest

from maskrcnn_jax import kernels
from maskrcnn_jax.kernels import XLA, Kernels, all_kernels

H200 = {
    'platform': 'gpu', 'device_kind': 'NVIDIA H200', 'jax_version': '0.11.2',
    'compute_capability': 9.0,
}


@pytest.fixture
def installed(monkeypatch):
  """Sets whether JAX has Pallas's Triton backend, and jax-triton's version."""
  def install(*, backend, jax_triton):
    def version(name):
      if jax_triton is None:
        raise importlib.metadata.PackageNotFoundError(name)
      return jax_triton

    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: object() if backend else None
    )
    monkeypatch.setattr(importlib.metadata, 'version', version)

  return install


def test_where_pallas_can_be_compiled_jax_triton_changes_nothing(installed):
  for jax_triton in (None, '0.4.1'):
    installed(backend=True, jax_triton=jax_triton)
    assert kernels.choose_kernels('pallas', **H200) == (
        all_kernels('pallas'), 'Kernels: pallas, as configured'
    )


def test_without_pallas_nms_is_by_jax_triton(installed):
  installed(backend=False, jax_triton='0.4.1')
  assert kernels.choose_kernels('pallas', **H200) == (
      Kernels(nms='triton'),
      'Kernels: jax-triton for nms, xla instead of pallas for the rest: '
      'jax 0.11.2 has no jax.experimental.pallas.triton',
  )
  # Not so unless asked for or measured.
  assert kernels.choose_kernels('xla', **H200)[0] == XLA
  assert kernels.choose_kernels('auto', **H200)[0] == XLA


@pytest.mark.parametrize(
    ('jax_triton', 'changed', 'why'),
    [
        (None, {}, 'and jax-triton is not installed'),
        (
            '0.4.1', {'jax_version': '0.12.0.1'},
            'and jax-triton 0.4.1 fails with jax 0.12.0.1',
        ),
        ('0.4.1', {'compute_capability': 7.5}, 'capability 7.5'),
        ('0.4.1', {'platform': 'tpu'}, 'not tpu'),
        ('0.4.1', {'platform': 'cpu'}, 'has no jax.experimental.pallas'),
    ],
)
def test_without_pallas_and_what_jax_triton_needs_it_is_plain_jax(
    installed, jax_triton, changed, why
):
  installed(backend=False, jax_triton=jax_triton)
  chosen, line = kernels.choose_kernels('pallas', **H200 | changed)
  assert chosen == XLA
  assert line.startswith('Kernels: xla instead of pallas: ')
  assert why in line


def test_a_later_jax_triton_is_taken_to_work(installed):
  installed(backend=False, jax_triton='0.4.2')
  chosen, _ = kernels.choose_kernels(
      'pallas', **H200 | {'jax_version': '0.13.0'}
  )
  assert chosen == Kernels(nms='triton')


def test_auto_takes_of_what_was_measured_what_there_is(installed, monkeypatch):
  monkeypatch.setattr(
      kernels, 'MEASURED', {'NVIDIA H200': {(0, 11): ('nms', 'roi_align')}}
  )
  installed(backend=True, jax_triton='0.4.1')
  chosen, line = kernels.choose_kernels('auto', **H200)
  assert chosen == Kernels(nms='pallas', roi_align='pallas')
  assert line == (
      'Kernels: pallas for nms, pallas for roi_align, measured on NVIDIA H200'
  )
  installed(backend=False, jax_triton='0.4.1')
  assert kernels.choose_kernels('auto', **H200)[0] == Kernels(nms='triton')
  installed(backend=False, jax_triton=None)
  assert kernels.choose_kernels('auto', **H200)[0] == XLA


def test_nms_alone_has_a_kernel_by_jax_triton(installed):
  installed(backend=True, jax_triton='0.4.1')
  ways = {
      name: kernels.kernels_on_gpu(name, jax_version='0.11.2')
      for name in (*Kernels._fields, 'anchors_at')
  }
  assert ways.pop('nms') == ('pallas', 'triton')
  assert set(ways.values()) == {('pallas',)}
  assert kernels.kernels_on_gpu('nms', jax_version='0.12.0.1') == ('pallas',)
