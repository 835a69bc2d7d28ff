"""Tests of the descriptions of GPUs, against the figures of data sheets."""

import pathlib
import re

import pytest

from maskrcnn_jax.runtime.gpu_peaks import GPUS

TARGETS = (
  pathlib.Path(__file__).parents[2] / 'maskrcnn_jax' / 'plan' / 'targets'
)

# Source: NVIDIA's data sheets of the A100, H100 and H200 (SXM); the white
# papers of the Ampere and Hopper architectures: streaming multiprocessors, L2
# cache, shared memory; CUDA C++ Programming Guide, table of technical
# specifications: shared memory of a block, 163 KB and 227 KB.
DATA_SHEETS = {
  'a100_40': dict(
    memory_bandwidth=1.555e12,
    device_memory_size=40 * 2**30,
    core_count=108,
    fpus_per_core=64,
    clock_rate_ghz=1.41,
    l2_cache_size=40 * 2**20,
    shared_memory_per_core=164 * 2**10,
    shared_memory_per_block_optin=163 * 2**10,
    major=8,
  ),
  'h100': dict(
    memory_bandwidth=3.35e12,
    device_memory_size=80 * 2**30,
    core_count=132,
    fpus_per_core=128,
    clock_rate_ghz=1.98,
    l2_cache_size=50 * 2**20,
    shared_memory_per_core=228 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    major=9,
  ),
}
DATA_SHEETS['a100_80'] = DATA_SHEETS['a100_40'] | dict(
  memory_bandwidth=2.039e12, device_memory_size=80 * 2**30
)
DATA_SHEETS['h200'] = DATA_SHEETS['h100'] | dict(
  memory_bandwidth=4.8e12, device_memory_size=141e9
)


def test_there_is_a_description_of_each_gpu():
  assert {path.stem for path in TARGETS.iterdir()} == set(GPUS)
  assert set(DATA_SHEETS) == set(GPUS)


@pytest.mark.parametrize('name', DATA_SHEETS)
def test_description_agrees_with_the_data_sheet(name):
  text = (TARGETS / f'{name}.txtpb').read_text()
  for key, expected in DATA_SHEETS[name].items():
    value = re.findall(rf'\b{key}: ([\d.]+)', text)[0]
    # Data sheets round bandwidth to three digits. The memory that CUDA reports
    # is a few per cent less or more than a round number of GB.
    tolerance = {'memory_bandwidth': 1e-3, 'device_memory_size': 0.08}
    assert float(value) == pytest.approx(expected, rel=tolerance.get(key, 0))


@pytest.mark.parametrize('name', DATA_SHEETS)
def test_peaks_agree_with_the_description(name):
  text = (TARGETS / f'{name}.txtpb').read_text()
  gpu = GPUS[name]

  def number(key):
    return float(re.findall(rf'\b{key}: ([\d.]+)', text)[0])

  assert gpu.data_sheet.bandwidth == pytest.approx(
    number('memory_bandwidth'), rel=1e-3
  )
  assert gpu.memory == pytest.approx(number('device_memory_size'), rel=0.08)
  # Each unit does a multiplication and an addition in a cycle.
  assert gpu.data_sheet.flops['f32'] == pytest.approx(
    2
    * number('core_count')
    * number('fpus_per_core')
    * number('clock_rate_ghz')
    * 1e9,
    rel=0.01,
  )
  if gpu.measured:
    assert gpu.measured.bandwidth < gpu.data_sheet.bandwidth
    assert all(
      gpu.measured.flops[key] <= rate
      for key, rate in gpu.data_sheet.flops.items()
    )
