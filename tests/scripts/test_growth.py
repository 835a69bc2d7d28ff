"""Tests of scripts/growth.py, which times a growing amount of work."""

import json
import pathlib
import sys

from PIL import Image
import pytest

from maskrcnn_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))

import growth  # noqa: E402


def test_steepest_is_the_exponent_of_a_power():
  assert growth.steepest('objects', {'1': 3.0, '10': 3.0}) == 0
  linear = {'100': 1.0, '200': 4.0, '400': 16.0}
  # Four times the pixels take four times as long.
  assert growth.steepest('pixels', linear) == pytest.approx(1)
  assert growth.steepest('classes', linear) == pytest.approx(2)
  step = {'1': 1.0, '2': 1.0, '4': 8.0, '8': 8.0}
  assert growth.steepest('batch_size', step) == pytest.approx(3)


def test_table_and_figure_show_every_number():
  times = {
    'train': {'batch_size': {'1': 0.5, '2': 1.0}, 'pixels': {'128': 0.25}},
    'inference': {'batch_size': {'1': 0.2, '2': 0.3}},
  }
  lines = growth.format_table(times).splitlines()
  assert lines[2] == '| train | batch_size | 1: 0.5, 2: 1 | 1.00 |'
  assert lines[3] == '| train | pixels | 128: 0.25 | n/a |'
  first, second, *_ = growth.growth_figure(times).axes
  assert first.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 1]]
  assert second.lines[0].get_xydata().tolist() == [[128**2, 0.25]]


def test_a_run_continues_and_refuses_other_arguments(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(
    growth,
    'NUMBERS',
    {'batch_size': (1, 2), 'pixels': (64,), 'objects': (1,), 'classes': (1,)},
  )
  calls = []

  def measure(arguments):
    calls.append(arguments)
    if len(calls) == 3:
      raise InputError('stopped')
    return len(calls) / 10

  monkeypatch.setattr(growth, 'measure', measure)
  arguments = ['--config=shapes', f'--out={tmp_path}', '--config.seed=1']
  # A flag without a value means True.
  arguments.append('--config.eval.proposals')
  with pytest.raises(SystemExit) as stop:
    growth.main(arguments)
  assert stop.value.code == 2
  growth.main(arguments)
  # Two were done, and the third was tried twice.
  assert len(calls) == 2 * 5 + 1
  assert '--config.eval.proposals=True' in calls[0]
  assert '--config.seed=1' in calls[0] and calls[1][-1] == '--batch_size=2'
  assert (
    '| train | batch_size | 1: 0.1, 2: 0.2 | 1.00 |' in capsys.readouterr().out
  )
  with pytest.raises(SystemExit):
    growth.main([*arguments, '--steps=3'])
  assert 'give another --out' in capsys.readouterr().err


@pytest.mark.slow
def test_the_real_benchmark_is_timed(tmp_path, monkeypatch):
  monkeypatch.setattr(
    growth,
    'NUMBERS',
    # The recipe has room for 8 objects.
    {'batch_size': (1,), 'pixels': (64,), 'objects': (9,), 'classes': (3,)},
  )
  growth.main(
    ['--config=tests/tiny.py', f'--out={tmp_path}', '--steps=1', '--size=64x64']
  )
  times = json.loads((tmp_path / 'growth.json').read_text())['times']
  assert all(times[m]['pixels']['64'] > 0 for m in ('train', 'inference'))
  with Image.open(tmp_path / 'growth.png') as picture:
    assert picture.size == (1000, 700)
