"""Tests of the benchmark: its figures, and the arguments that it refuses."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
from jax.sharding import Mesh
import numpy as np
import pytest
import tiny

from maskrcnn_jax.benchmark.command_line import main
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.benchmark.step_speed import Options, benchmark_step
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn

RECIPE = str(pathlib.Path(tiny.__file__))
FINE_TUNING = pathlib.Path(__file__).parents[2] / 'configs' / 'finetune.py'

pytestmark = pytest.mark.usefixtures('compilation_cache')


def run(*arguments):
  main([f'--config={RECIPE}', *arguments])


@pytest.mark.parametrize('mode', ['train', 'inference'])
def test_benchmark_reports_positive_figures(mode, capsys):
  run(
    f'--mode={mode}',
    '--size=64x64',
    '--steps=2',
    '--batch_size=2',
    '--objects=3',
    '--classes=3',
    *(['--paste'] if mode == 'inference' else []),
  )
  text, *_, line = capsys.readouterr().out.splitlines()
  assert text.startswith(f'{mode} 64x64, batch 2, fp32, ')
  figures = json.loads(line)
  assert figures['mode'] == mode
  assert figures['image_size'] == [64, 64]
  order = ('least_s', 'median_s', 'p90_s', 'p99_s', 'most_s')
  times = [0, *(figures[name] for name in order)]
  assert times == sorted(times)
  assert figures['num_steps'] == 2
  assert figures['images_per_s'] == pytest.approx(2 / figures['median_s'])
  assert figures['compile_s'] > 0
  assert figures['peak_memory_mib'] > figures['program_mib'] > 0
  # The compiler does not count the repetitions of loops on a CPU, and a CPU's
  # peak is not known.
  assert figures['flops'] is None
  assert figures['utilization'] is None
  if mode == 'train':
    assert math.isfinite(figures['loss'])
  else:
    # The recipe keeps 8 detections, however low their scores are.
    assert 0 < figures['detections'] <= 16


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--size=64', '--size=64: give HEIGHTxWIDTH'),
    ('--size=64x64x3', 'give HEIGHTxWIDTH'),
    ('--size=0x64', 'give HEIGHTxWIDTH'),
    ('--size=axb', 'give HEIGHTxWIDTH'),
    ('--steps=0', '--steps=0'),
    ('--batch_size=0', '--batch_size=0'),
    ('--objects=9', '--objects=9 must be from 0 to 8'),
    ('--classes=0', '--classes=0'),
    ('--config=none.py', 'none.py is not a file'),
    ('--seconds=-1', '--seconds=-1.0 must be from 0'),
    ('--paste', '--paste is for --mode=inference.'),
    ('--trace=DIR', '--trace is for --costs=N.'),
    ('--workers=1', '--workers is for --mode=loader.'),
    ('--torch_python=python', '--torch_python is for --compare=torchvision.'),
    ('--real_images', '--size is for made-up images, without --real_images.'),
  ],
)
def test_benchmark_refuses_wrong_arguments(argument, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    run('--mode=train', '--size=64x64', argument)
  assert exit_.value.code == 2
  line, *more = capsys.readouterr().err.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert line.startswith('error: ')
  assert message in line


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ['--mode=train', '--steps=3', '--seconds=3'],
      '--steps is for a benchmark without --seconds.',
    ),
    (
      ['--mode=train', '--compare=torchvision', '--max_batch_size=8'],
      '--max_batch_size is for a benchmark without --compare.',
    ),
    (
      ['--mode=loader', '--size=64x64'],
      '--size is for --mode=train or --mode=inference.',
    ),
    (
      ['--mode=train', '--images=DIR'],
      '--annotations=FILE.json is missing: --images and --annotations',
    ),
    (['--mode=train', '--with_loader'], 'No data set: give --images=DIR'),
  ],
)
def test_benchmark_refuses_arguments_without_effect(arguments, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    run(*arguments)
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {message}')


def test_benchmark_without_the_device_that_is_asked_for(monkeypatch, capsys):
  def fail():
    raise AssertionError

  monkeypatch.setattr(jax, 'devices', fail)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(SystemExit) as exit_:
    run('--mode=train', '--size=64x64')
  assert exit_.value.code == 2
  line, _ = capsys.readouterr().err.splitlines()
  assert line.startswith('error: C12: JAX finds no device of the kind JAX_PLAT')


def test_benchmark_needs_a_mode(capsys):
  with pytest.raises(SystemExit) as exit_:
    run('--mode=test')
  assert exit_.value.code == 2
  assert "'test'" in capsys.readouterr().err


def test_made_up_batch_has_ellipses_in_their_boxes():
  batch = made_up_batch(
    image_size=(64, 96),
    batch_size=2,
    num_objects=3,
    max_objects=5,
    num_classes=4,
  )
  assert batch.images.shape == (2, 64, 96, 3)
  assert batch.gt_valid.tolist() == [[True] * 3 + [False] * 2] * 2
  assert set(np.unique(batch.gt_classes[:, :3])) <= {1, 2, 3}
  starts = batch.outlines.starts[0]
  assert starts.tolist() == [0, 24, 48, 72, 72, 72]
  for i in range(3):
    vertices = batch.outlines.vertices[0, starts[i] : starts[i + 1]]
    x1, y1, x2, y2 = batch.gt_boxes[0, i]
    assert (vertices >= np.array([x1, y1]) - 1e-3).all()
    assert (vertices <= np.array([x2, y2]) + 1e-3).all()
    # The polygon of 24 corners is at most slightly narrower than its box.
    assert np.ptp(vertices[:, 0]) == pytest.approx(x2 - x1, rel=0.02)


def test_benchmark_refuses_a_batch_that_devices_cannot_share(monkeypatch):
  mesh = Mesh(np.array(jax.devices()[:1] * 3), ('data',))
  monkeypatch.setattr('maskrcnn_jax.runtime.cluster.make_mesh', lambda: mesh)
  with pytest.raises(InputError, match='batch_size .4. must be a multiple'):
    benchmark_step(
      tiny.get_config(),
      Options('train', batch_size=4, image_size=(64, 64), num_objects=1),
    )


def loader_arguments(data, *more):
  return (
    '--mode=loader',
    f'--images={data / "images"}',
    f'--annotations={data / "instances_train.json"}',
    '--batch_size=2',
    '--steps=2',
    *more,
  )


@pytest.mark.parametrize('mode', ['train', 'inference'])
def test_benchmark_completes_the_recipe_of_a_fine_tuning(
  mode, monkeypatch, capsys
):
  completed = []

  def stop(_, config, **__):
    completed.append(config)
    raise InputError('That is all.')

  monkeypatch.setattr(Rcnn, 'from_config', classmethod(stop))
  with pytest.raises(SystemExit):
    run(f'--mode={mode}', f'--config={FINE_TUNING}')
  assert capsys.readouterr().err == 'error: That is all.\n'
  # A made-up image has 8 objects.
  assert completed[0].data.max_objects == 8
  assert completed[0].rpn.num_samples == 256


def test_benchmark_times_the_loader_of_a_fine_tuning(tiny_data, capsys):
  run(*loader_arguments(tiny_data, f'--config={FINE_TUNING}'))
  assert json.loads(capsys.readouterr().out.splitlines()[-1])['num_images'] == 8


def test_benchmark_times_the_loader(tiny_data, capsys):
  run(*loader_arguments(tiny_data, '--workers=0,1'))
  text, _, threads, workers, line = capsys.readouterr().out.splitlines()
  assert re.fullmatch(
    r'loader: 8 images, batches of 2, 1 static sizes, \d\.\d % of the pixels'
    ' are padding',
    text,
  )
  assert threads.split()[:2] == ['0', '2']
  assert workers.split()[:2] == ['1', '2']
  speeds = json.loads(line)['speeds']
  for speed in speeds:
    assert speed['images_per_s'] > 0
    assert speed['bytes_per_image'] > 64 * 64 * 3
  assert speeds[1]['worker_mib'] > 10


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--annotations=', '--annotations=FILE.json is missing: --images and'),
    ('--annotations=none.json', 'none.json'),
    ('--images=/nowhere', 'no folder of images /nowhere'),
    ('--workers=two', '--workers=two: give whole numbers'),
    ('--workers=-1', '--workers at least 0'),
    ('--batch_size=0', '--batch_size, --steps and --threads must be'),
    ('--step_seconds=-1', '--step_seconds=-1.0 must be 0 or more'),
  ],
)
def test_benchmark_of_the_loader_refuses_wrong_arguments(
  argument, message, tiny_data, capsys
):
  with pytest.raises(SystemExit) as exit_:
    run(*loader_arguments(tiny_data, argument))
  assert exit_.value.code == 2
  line, *more = capsys.readouterr().err.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert message in line


def test_benchmark_needs_a_recipe(capsys):
  with pytest.raises(SystemExit) as exit_:
    main(['--mode=train'])
  assert exit_.value.code == 2
  assert 'error: --config=RECIPE is missing' in capsys.readouterr().err


def test_benchmark_of_the_loader_needs_a_data_set(capsys):
  with pytest.raises(SystemExit) as exit_:
    run('--mode=loader')
  assert exit_.value.code == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: No data set: give --images=DIR and --annotat')
  assert '--config.data.train.tfds=NAME' in line


@pytest.mark.parametrize(
  ('arguments', 'num_images'),
  [
    # Two of the three images have no object to train on: one is empty, and one
    # has only a crowd region.
    (['--config.data.keep_empty=false'], 1),
    (['--config.data.keep_empty', 'false'], 1),
    (['--noconfig.data.keep_empty'], 1),
    (['--config.data.keep_empty=true'], 3),
    ([], 3),
  ],
)
def test_benchmark_takes_overrides(arguments, num_images, tfds_set, capsys):
  run(*loader_arguments(tfds_set[0], *arguments))
  figures = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert figures['num_images'] == num_images


def test_benchmark_takes_digits_as_a_folder(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit):
    run(
      '--mode=loader',
      '--config.data.train.images=2017',
      '--config.data.train.annotations=none.json',
    )
  assert 'none.json; --config.data.train.annotations says where' in (
    capsys.readouterr().err
  )


def test_benchmark_times_the_loader_of_a_tfds_set(tiny_tfds):
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'maskrcnn_jax.benchmark',
      f'--config={RECIPE}',
      '--mode=loader',
      '--batch_size=2',
      '--steps=2',
      '--workers=0,1',
      '--config.data.train.tfds=coco_instances/folder',
      '--config.data.train.split',
      'val',
      f'--config.data.tfds_dir={tiny_tfds}',
    ],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  figures = json.loads(done.stdout.splitlines()[-1])
  assert figures['num_images'] == tiny.NUM_VAL
  assert [speed['num_workers'] for speed in figures['speeds']] == [0, 1]


def test_help_does_not_import_jax():
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      'import contextlib, sys\n'
      'from maskrcnn_jax.benchmark.command_line import main\n'
      'with contextlib.suppress(SystemExit):\n'
      '  main(["--help"])\n'
      'assert not {"jax", "flax"} & set(sys.modules)',
    ],
    env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert '--compare' in done.stdout
