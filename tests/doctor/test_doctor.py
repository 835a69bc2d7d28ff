"""Tests of the doctor: which machines it accepts, and which it does not."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from maskrcnn_jax.doctor import kernel_cases
from maskrcnn_jax.doctor import machine_check as doctor
from maskrcnn_jax.runtime import numerics

CPU = (types.SimpleNamespace(platform='cpu', device_kind='cpu'),)
GPU = (
  types.SimpleNamespace(
    platform='gpu',
    device_kind='NVIDIA H200',
    client=types.SimpleNamespace(platform_version='PJRT C API\ncuda 13000'),
  ),
)
AN_H200 = ['NVIDIA H200, 580.65.06, 143771 MiB']


@pytest.fixture
def machine(monkeypatch):
  """Returns a function that sets JAX_PLATFORMS and the versions of packages."""

  def make(asked=None, **packages):
    monkeypatch.delenv('JAX_PLATFORMS', raising=False)
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
    if asked is not None:
      monkeypatch.setenv('JAX_PLATFORMS', asked)
    versions = {name.replace('_', '-'): v for name, v in packages.items()}
    monkeypatch.setattr(doctor, 'installed', versions.get)

  return make


def failures(findings):
  return [text for status, text in findings if status == 'FAIL']


@pytest.mark.parametrize(
  ('asked', 'devices', 'gpus', 'packages', 'advice'),
  [
    (None, CPU, [], {}, None),
    ('cpu', CPU, AN_H200, {}, None),
    (None, GPU, AN_H200, {}, None),
    ('cuda', GPU, AN_H200, {}, None),
    (None, CPU, AN_H200, {}, "pip install 'jax[cuda13]'"),
    ('cuda,cpu', CPU, [], {}, 'JAX_PLATFORMS=cuda to see why'),
    (
      None,
      CPU,
      AN_H200,
      {'jax_cuda13_plugin': '0.12.0'},
      'JAX_PLATFORMS=cuda to see why',
    ),
    (
      None,
      CPU,
      [],
      {'jax_cuda13_plugin': '0.12.0'},
      'install the driver',
    ),
  ],
)
def test_a_gpu_that_is_not_used_is_a_failure(
  machine, asked, devices, gpus, packages, advice
):
  machine(asked, **packages)
  found = failures(doctor.check_devices(devices, gpus))
  assert len(found) == (advice is not None)
  assert advice is None or advice in found[0]


@pytest.mark.parametrize('fraction', ['0', '1', '75', 'most'])
def test_a_wrong_share_of_memory_is_a_failure(machine, monkeypatch, fraction):
  machine()
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', fraction)
  (found,) = failures(doctor.check_devices(GPU, AN_H200))
  assert f'FRACTION={fraction} must be' in found


@pytest.mark.parametrize(
  ('version', 'status'),
  [
    ('0.10.2', 'FAIL'),
    ('0.11.0', 'FAIL'),
    ('0.11.1', None),
    ('0.12.0.1', None),
    ('0.13.0', 'note'),
  ],
)
def test_versions_of_jax(machine, monkeypatch, version, status):
  machine()
  monkeypatch.setattr(jax, '__version__', version)
  found = [f for f in doctor.check_versions() if f.status != 'ok']
  assert [f.status for f in found] == ([status] if status else [])
  assert not found or "pip install 'jax>=0.11.1" in found[0].text


def test_a_plugin_of_another_version_is_a_failure(machine):
  machine(jaxlib='0.12.0', jax_cuda13_plugin='0.11.2')
  (found,) = failures(doctor.check_versions())
  assert 'jax-cuda13-plugin 0.11.2 is not for jaxlib 0.12.0' in found


@pytest.mark.parametrize(
  ('has_plugin', 'gpus', 'advice'),
  [
    (True, [], 'there is no GPU, or no driver for it'),
    (True, AN_H200, doctor.INSTALL_GPU),
    (False, [], doctor.INSTALL_GPU),
  ],
)
@pytest.mark.parametrize(
  ('error', 'reason'),
  [
    (RuntimeError('No backend cuda\nand more'), 'No backend cuda'),
    (AssertionError(), 'AssertionError'),
  ],
)
def test_jax_that_does_not_start_is_the_last_line(
  machine, monkeypatch, has_plugin, gpus, advice, error, reason
):
  versions = {'jax-cuda13-plugin': '0.11.1'} if has_plugin else {}
  machine('cuda', **versions)

  def refuse():
    raise error

  monkeypatch.setattr(doctor, 'nvidia_gpus', lambda: gpus)
  monkeypatch.setattr(jax, 'devices', refuse)
  *_, last = doctor.examine()
  assert last.status == 'FAIL'
  assert last.text == (
    f'devices: JAX does not start with JAX_PLATFORMS=cuda: {reason}; {advice} '
    '(JAX_PLATFORMS=cpu runs on the CPU)'
  )


def test_numbers_of_this_device_are_right():
  assert numerics.check_numerics() == {}


@pytest.mark.parametrize(
  ('name', 'function', 'wrong', 'text'),
  [
    ('single operations', 'sqrt', lambda x: x, 'sqrt(512) is 512'),
    ('single operations', 'ones', jnp.zeros, '1 + 1 is [1.0'),
    ('joined arrays', 'where', lambda c, x, y: x, 'wrong by'),
    ('random numbers', 'normal', None, 'a mean of'),
    ('sums by index', 'zeros', jnp.ones, 'is wrong'),
    ('convolutions', 'conv', None, '7x7 convolution of stride 2 in bf'),
  ],
)
def test_wrong_numbers_are_found(monkeypatch, name, function, wrong, text):
  if function == 'normal':
    monkeypatch.setattr(
      jax.random, 'normal', lambda key, shape: jnp.ones(shape)
    )
  elif function == 'conv':
    run = jax.lax.conv_general_dilated

    def lose(x, kernel, *arguments, **options):
      y = run(x, kernel, *arguments, **options)
      return y * 1.05 if y.dtype == jnp.bfloat16 else y

    monkeypatch.setattr(jax.lax, 'conv_general_dilated', lose)
    text = 'in bfloat16'
  else:
    monkeypatch.setattr(jnp, function, wrong)
  faults = numerics.check_numerics()
  monkeypatch.undo()
  assert text in faults[name]


def test_a_slow_sum_by_index_is_a_fault(monkeypatch):
  times = iter([1.0, 0.001])
  monkeypatch.setattr(numerics, '_least_seconds', lambda *_: next(times))
  faults = numerics.check_numerics()
  assert faults == {
    'sums by index': 'a sum of elements by index takes 1000 times as long as '
    'reading these elements by index; ' + numerics.OTHER_VERSION
  }


def cases_of(monkeypatch, *cases):
  monkeypatch.setattr(kernel_cases, 'make_cases', lambda size: cases)


def a_case(call):
  return kernel_cases.Case(
    'nms', '3 boxes', lambda key: (jnp.arange(3.0),), call, 0, 1e-6
  )


def raise_error(x, kernels):
  if kernels == 'interpret':
    raise NotImplementedError('no such thing\nin Triton')
  return x


@pytest.mark.parametrize(
  ('call', 'status', 'text'),
  [
    (lambda x, kernels: x, 'ok', 'kernel nms (3 boxes, interpret)'),
    (
      lambda x, kernels: x + (kernels == 'interpret'),
      'FAIL',
      'the largest difference is 0.5 of the largest number; run with '
      '--config.kernels=xla',
    ),
    (raise_error, 'FAIL', 'interpret): no such thing; run with'),
  ],
)
def test_a_kernel_is_held_against_plain_jax(monkeypatch, call, status, text):
  cases_of(monkeypatch, a_case(call))
  (finding,) = doctor.check_kernels(jax.random.key(0))
  assert finding.status == status
  assert text in finding.text


def test_report_is_a_line_each_and_tells_whether_all_is_well(capsys):
  ok, note, fail = (
    doctor.Finding(status, text)
    for status, text in (('ok', 'a'), ('note', 'b'), ('FAIL', 'c'))
  )
  assert doctor.report([ok, note])
  assert not doctor.report([fail, ok])
  assert capsys.readouterr().out == 'ok   a\nnote b\nFAIL c\nok   a\n'


@pytest.mark.parametrize(('finding', 'status'), [('ok', None), ('FAIL', 1)])
def test_exit_status(monkeypatch, capsys, finding, status):
  monkeypatch.setattr(sys, 'argv', ['doctor'])
  monkeypatch.setattr(
    doctor, 'examine', lambda: [doctor.Finding(finding, 'all of it')]
  )
  if status is None:
    doctor.main()
    assert 'All is well.' in capsys.readouterr().out
  else:
    with pytest.raises(SystemExit) as exit_:
      doctor.main()
    assert exit_.value.code == status


def test_a_wrong_argument_is_status_2(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['doctor', '--cure'])
  with pytest.raises(SystemExit) as exit_:
    doctor.main()
  assert exit_.value.code == 2
  assert '--cure' in capsys.readouterr().err


def test_nvidia_gpus_reads_what_nvidia_smi_prints(monkeypatch):
  monkeypatch.setattr(doctor.shutil, 'which', lambda name: '/bin/' + name)
  answer = subprocess.CompletedProcess([], 0, stdout=AN_H200[0] + '\n\n')
  monkeypatch.setattr(doctor.subprocess, 'run', lambda *_, **__: answer)
  assert doctor.nvidia_gpus() == AN_H200


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
  monkeypatch.setattr(doctor.shutil, 'which', lambda name: None)
  monkeypatch.setattr(doctor, 'DRIVER_FILE', tmp_path / 'version')
  assert doctor.nvidia_gpus() == []
  (tmp_path / 'version').write_text('NVRM version: 580.65\nGCC\n')
  assert doctor.nvidia_gpus() == ['NVRM version: 580.65']
