"""Tests of the figures of steps, with clocks and devices that are made up."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from maskrcnn_jax.benchmark import (
  images,
  programs,
  report,
  step_speed,
  timing,
)
from maskrcnn_jax.benchmark.training_set import (
  TrainingSet,
  open_training_set,
)
from maskrcnn_jax.config import source_of
from maskrcnn_jax.runtime import gpu_peaks
from maskrcnn_jax.training import run as training_run
from maskrcnn_jax.training.step import jit_train_step


def test_summarize_interpolates_percentiles():
  # Sorted: 1, 2, 3, 4, 5. The 90th percentile lies at position 0.9 * 4 = 3.6,
  # the 99th at 3.96.
  found = timing.summarize([3.0, 1.0, 5.0, 2.0, 4.0])
  assert found == {
    'num_steps': 5,
    'least_s': 1,
    'median_s': 3,
    'p90_s': pytest.approx(4.6),
    'p99_s': pytest.approx(4.96),
    'most_s': 5,
  }


def test_limit_counts_steps_or_seconds():
  assert not timing.Limit(3).is_reached([9.0, 9.0])
  assert timing.Limit(3).is_reached([9.0, 9.0, 9.0])
  # At least two steps are timed, so that there is a spread.
  assert not timing.Limit(None, 5.0).is_reached([9.0])
  assert not timing.Limit(None, 5.0).is_reached([2.0, 2.0])
  assert timing.Limit(None, 5.0).is_reached([2.0, 3.0])


def test_time_steps_leaves_out_the_first_steps(monkeypatch):
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(
    timing, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now)
  )
  made = []

  def step(i):
    made.append(i)
    clock.now += 10 if i < 2 else i

  assert timing.time_steps(step, timing.Limit(3)) == [2, 3, 4]
  assert made == [0, 1, 2, 3, 4]


class Recorder:
  """A program that records when its steps start and finish."""

  def __init__(self, clock):
    self.clock, self.events = clock, []

  def compile(self, batch, padded_size):
    return []

  def facts(self):
    return {}

  def start(self, batch, padded_size):
    self.events.append('start')
    assert padded_size == (64, 64)
    return len(self.events)

  def finish(self, results, batch):
    self.events.append('finish')
    self.clock.now += 2


def test_time_with_loader_starts_a_step_before_it_waits_for_the_last(
  tiny_data, monkeypatch
):
  clock = types.SimpleNamespace(now=0.0)
  monkeypatch.setattr(
    timing, 'time', types.SimpleNamespace(perf_counter=lambda: clock.now)
  )

  class SlowSet(TrainingSet):
    """A data set whose loader needs a second for each batch."""

    def load(self, *, batch_size, num_steps, num_workers, num_threads):
      assert (batch_size, num_workers, num_threads) == (1, 0, 1)
      for _ in range(num_steps):
        clock.now += 1
        yield {'images': np.zeros((1, 2, 2, 3), np.uint8)}, np.arange(1)

  config = tiny.with_data(tiny.get_config(), tiny_data)
  config.data.num_threads = 1
  source = source_of(config, 'train')
  data = SlowSet(*open_training_set(config, source))
  program = Recorder(clock)
  times, waits = timing.time_with_loader(
    program, data, batch_size=1, limit=timing.Limit(3)
  )
  # Loading takes 1 s after each step of 2 s.
  assert times == [3, 3, 3]
  assert waits == [1, 1, 1]
  assert program.events[:5] == ['start', 'start', 'finish', 'start', 'finish']
  assert program.events[-2:] == ['finish', 'finish']


def test_flops_of_a_product_of_matrices():
  product = jax.jit(jnp.dot).lower(jnp.ones((64, 32)), jnp.ones((32, 16)))
  flops = step_speed._flops_of(product.compile())
  assert flops == 2 * 64 * 32 * 16


def made_up_figures(monkeypatch, device_kind, **changes):
  """Returns the figures of steps of 0.1 s on a device."""
  monkeypatch.setattr(
    jax, 'devices', lambda: [types.SimpleNamespace(device_kind=device_kind)]
  )
  return step_speed.speed(
    [0.1, 0.1, 0.3],
    step_speed.Compiled(1.0, 49.47e12, 5.0)._replace(**changes),
    precision='bf16',
    batch_size=8,
  )


def test_utilization_is_the_share_of_the_peak(monkeypatch):
  # 49.47 TFLOP in 0.1 s are half of the 989.4 TFLOP/s of an H200.
  found = made_up_figures(monkeypatch, 'NVIDIA H200')
  assert found['utilization'] == pytest.approx(0.5)
  assert found['images_per_s'] == pytest.approx(80)


@pytest.mark.parametrize(
  ('device_kind', 'changes'), [('cpu', {}), ('NVIDIA H200', {'flops': None})]
)
def test_utilization_is_none_if_it_is_not_known(
  device_kind, changes, monkeypatch
):
  found = made_up_figures(monkeypatch, device_kind, **changes)
  assert found['utilization'] is None


def test_peaks_of_half_precision_are_twice_those_of_tf32():
  for gpu in gpu_peaks.GPUS.values():
    for device in gpu.device_kinds:
      tf32, bf16, fp16 = (
        gpu_peaks.peak_flops(device, name) for name in ('tf32', 'bf16', 'fp16')
      )
      assert tf32 * 2 == bf16 == fp16
  assert gpu_peaks.peak_flops('cpu', 'bf16') is None


@pytest.mark.parametrize(
  ('room', 'fits', 'most', 'expected', 'tried'),
  [
    # 100 MiB an image: 16 images are predicted to fit, and do.
    (1700, 16, 256, 16, [16]),
    # 16 are predicted to fit, but only 8 do.
    (1700, 8, 256, 8, [16, 8]),
    # Only the limit of the command line counts.
    (None, 99, 8, 8, [8]),
    # Nothing larger is predicted to fit.
    (150, 99, 256, None, []),
    # Nothing larger fits.
    (250, 1, 256, None, [2]),
  ],
)
def test_largest_batch_is_found(room, fits, most, expected, tried, monkeypatch):
  sizes = []

  def benchmark_step(config, options):
    sizes.append(options.batch_size)
    if options.batch_size > fits:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory')
    size = options.batch_size
    return {'batch_size': size, 'program_mib': 100 * size}

  monkeypatch.setattr(step_speed, 'benchmark_step', benchmark_step)
  monkeypatch.setattr(step_speed, '_memory_mib', lambda: room)
  found = step_speed.largest_batch(
    tiny.get_config(),
    step_speed.Options('train'),
    {'batch_size': 1, 'program_mib': 100},
    max_batch_size=most,
  )
  assert (found and found['batch_size']) == expected
  assert sizes == tried


def test_report_tells_of_skipped_steps(monkeypatch):
  figures = made_up_figures(monkeypatch, 'NVIDIA H200') | {
    'mode': 'train',
    'image_size': [64, 96],
    'batch_size': 8,
    'precision': 'fp16',
    'device': '1 x NVIDIA H200',
    'kernels': 'Kernels: xla',
    'pastes': False,
    'loss': 5.0,
    'loss_scale': 2048.0,
    'skipped': 2.0,
    'costs': [],
  }
  text = report.format_figures(figures)
  assert text.startswith(
    'train 64x96, batch 8, fp16, 1 x NVIDIA H200: 0.1 s a step, 80.00 images/s'
  )
  assert '49470.0 GFLOP a step on a device, 494.7 TFLOP/s, 50.0 % of' in (
    text.replace('50.0%', '50.0 %')
  )
  assert (
    '2 steps overflowed and changed no weights; the loss scale is 2048'
    in (text)
  )


def test_images_of_a_set_are_those_of_a_training(tiny_data):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  found = images.read_images(
    config,
    source_of(config, 'train'),
    option='--',
    batch_size=2,
    num_batches=3,
    with_loader=False,
  )
  assert found.num_classes == 4
  assert len(found.batches) == 3
  shown = np.concatenate([batch.gt_boxes for batch, _ in found.batches])
  assert len(np.unique(shown[:, 0], axis=0)) == 6  # different images
  (each_size,) = images.read_images(
    config,
    source_of(config, 'train'),
    option='--',
    batch_size=20,  # more than the set has
    num_batches=1,
    with_loader=True,
  ).batches
  assert each_size.batch.images.shape == (
    20,
    *found.batches[0].batch.images.shape[1:],
  )
  assert each_size.padded_size == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_the_timed_program_is_that_of_a_training(
  precision, tiny_data, tmp_path, monkeypatch
):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  config.precision = precision
  # The only number that the benchmark changes.
  config.optimizer.learning_rate = programs.LEARNING_RATE
  config.train.ema_decay = 0.99
  lowered = []

  class Lowered(tiny.IdleStep):
    """A step that is traced, and then trains nothing."""

    def __init__(self, trainer):
      super().__init__()
      self.step = jit_train_step(trainer)

    def lower(self, state, batch, *, padded_size):
      step = self.step.lower(state, batch, padded_size=padded_size)
      lowered.append(step.as_text())
      return super().lower(state, batch, padded_size=padded_size)

  monkeypatch.setattr(training_run, 'jit_train_step', Lowered)
  tiny.run_training(config, tmp_path / 'run')

  found = images.read_images(
    config,
    source_of(config, 'train'),
    option='--',
    batch_size=config.train.batch_size,
    num_batches=1,
    with_loader=False,
  )
  setup = programs.set_up(found, batch_size=config.train.batch_size)
  program = programs.Training(setup)
  batch, padded_size = found.batches[0]
  timed = program._step.lower(
    program._state,
    programs.cluster.shard_batch(batch, setup.mesh),
    padded_size=padded_size,
  ).as_text()
  (training,) = lowered
  assert timed == training
  # The resize uses float16 in all precisions, but convolutions do not.
  is_half = re.search('stablehlo.convolution.*xf16>', timed) is not None
  assert is_half == (precision == 'fp16')
