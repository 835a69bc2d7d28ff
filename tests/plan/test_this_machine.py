"""Tests of plans for this machine, and of the command line of `plan`."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest
import tiny

from maskrcnn_jax.errors import InputError
from maskrcnn_jax.plan import this_machine
from maskrcnn_jax.plan.command_line import main
from maskrcnn_jax.plan.work import read_work

ROOT = pathlib.Path(__file__).parents[2]


def test_plan_measures_some_steps_of_the_training(
  tiny_data, compilation_cache, capsys, monkeypatch
):
  monkeypatch.setattr(
    'maskrcnn_jax.runtime.cluster.keep_compiled', lambda folder: None
  )
  main(
    [
      f'--config={tiny.__file__}',
      *tiny.data_flags(tiny_data),
      '--json',
    ]
  )
  figures = json.loads(capsys.readouterr().out)
  assert figures['num_images'] == tiny.NUM_TRAIN
  assert figures['batch_size'] == 2
  assert figures['fits']
  (size,) = figures['sizes']
  assert size['size'] == [64, 64]
  assert size['share'] == 1
  assert 0 < size['step_s'] <= figures['step_s']
  assert figures['images_per_s'] == pytest.approx(2 / figures['step_s'])
  assert figures['hours'] == pytest.approx(
    (4 * figures['step_s'] + size['compile_s']) / 3600
  )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  # The parameters and the optimizer state of the tiny model need a few MiB.
  assert 0 < figures['memory_mib'] - peak < 50


def test_read_work_of_a_data_set_has_its_sizes_and_their_shares(tmp_path):
  from maskrcnn_jax.data.shapes import write_shapes

  write_shapes(tmp_path, num_train=9, num_val=1, image_size=64, seed=0)
  file = tmp_path / 'instances_train.json'
  content = json.loads(file.read_text())
  wide = [x for x in content['images'] if x['width'] > x['height']]
  tall = [x for x in content['images'] if x['width'] < x['height']]
  config = tiny.with_data(tiny.get_config(), tmp_path)
  config.data.padded_sizes = ((64, 96), (96, 64))
  config.data.long_side = 96
  work = read_work(config, frozenset())
  assert work.num_images == 9
  assert work.num_classes == len(content['categories']) + 1
  shares = {size.canvas.padded: size.share for size in work.sizes}
  assert sum(shares.values()) == pytest.approx(1)
  assert shares.get((96, 64), 0) == pytest.approx(len(tall) / 9)
  assert shares.get((64, 96), 0) >= len(wide) / 9
  for size in work.sizes:
    batch = work.load(size.canvas, 3)
    assert batch.images.shape == (3, *size.canvas.source, 3)
    assert batch.gt_boxes.shape[1] == work.limits.max_objects


def test_read_work_without_a_data_set_takes_the_largest_size():
  config = tiny.get_config()
  config.data.padded_sizes = ((64, 64), (64, 128), (96, 64))
  work = read_work(config, frozenset())
  (size,) = work.sizes
  assert (size.canvas.padded, size.share) == ((64, 128), 1)
  assert work.num_images is None
  assert work.num_classes == 81
  assert work.load(size.canvas, 2).images.shape == (2, 64, 128, 3)


def test_read_work_makes_images_up_where_the_set_of_the_recipe_is_missing():
  config = tiny.get_config()
  config.data.train.images = 'missing'
  config.data.train.annotations = 'missing.json'
  work = read_work(config, frozenset(), data_may_be_missing=True)
  assert work.num_images is None
  assert 'missing.json, is not here' in work.remarks[-1]
  with pytest.raises(InputError, match='missing.json'):
    read_work(config, frozenset())
  given = frozenset({'data.train.annotations'})
  with pytest.raises(InputError, match='missing.json'):
    read_work(config, given, data_may_be_missing=True)


def test_plan_does_not_run_a_step_that_needs_too_much_memory(
  compilation_cache, monkeypatch
):
  monkeypatch.setattr(this_machine, '_compile', lambda *_: None)
  monkeypatch.setattr(this_machine, '_expected_peak', lambda _: 2.0**60)
  monkeypatch.setattr(
    this_machine, '_time_steps', lambda *_: pytest.fail('It ran.')
  )
  config = tiny.get_config()
  figures = this_machine.plan_for_this_machine(read_work(config, frozenset()))
  assert not figures['fits']
  assert figures['hours'] is None
  text = '\n'.join(this_machine.lines_of(figures))
  assert 'GiB: DOES NOT FIT' in text
  assert 'not run' in text


def test_hours_are_those_of_the_mean_step():
  sizes = [
    {'share': 0.75, 'step_s': 2.0, 'load_s': 1.0, 'compile_s': 100.0},
    # Loading with two threads takes 5 s a batch, longer than the step.
    {'share': 0.25, 'step_s': 4.0, 'load_s': 10.0, 'compile_s': 60.0},
  ]
  speed = this_machine._speed(
    {'sizes': sizes, 'batch_size': 11, 'num_steps': 1000}, num_threads=2
  )
  assert speed['step_s'] == 0.75 * 2 + 0.25 * 5
  assert speed['images_per_s'] == 4
  assert speed['hours'] == pytest.approx((1000 * 2.75 + 160) / 3600)


def test_memory_limit_of_a_cpu_is_that_of_the_machine():
  physical = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  assert 0 < this_machine.memory_limit() <= physical


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('', '--config=RECIPE is missing'),
    ('--config=tiny --target=v100', "invalid choice: 'v100'"),
    ('--config=tiny --devices=2', '--devices is for --target=h200|h100|'),
    ('--config=tiny --target=cpu --devices=2', '--devices is for --target'),
    ('--config=tiny --target=h100 --devices=0', '--devices=0 must be'),
    ('--config=tiny --batch_size=0', 'train.batch_size'),
    ('--config=tiny --config.optimiser.name=sgd', 'optimiser'),
    ('--config=tiny --mode=train', "Unexpected argument '--mode=train'"),
    ('--config=none.py', 'none.py is not a file'),
  ],
)
def test_plan_refuses_wrong_arguments(arguments, message, capsys, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  arguments = arguments.replace('tiny', tiny.__file__)
  with pytest.raises(SystemExit) as exit_:
    main(arguments.split())
  assert exit_.value.code == 2
  line, *more = capsys.readouterr().err.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert line.startswith('error: ')
  assert message in line


def test_help_of_plan_does_not_import_jax():
  done = subprocess.run(
    [sys.executable, '-X', 'importtime', '-m', 'maskrcnn_jax.plan', '--help'],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert '--target' in done.stdout
  modules = {line.rpartition('|')[2].strip() for line in done.stderr.split()}
  assert 'argparse' in modules
  assert not modules & {'jax', 'flax'}


# Runs main.py and prints the largest memory of the process in KiB.
TRAINING = """
import atexit, resource, runpy
atexit.register(
  lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
)
runpy.run_module('maskrcnn_jax.main', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'recipe',
  [
    ('--config=shapes',),
    (
      *('--config=r50_fpn', '--config.train.batch_size=1'),
      *('--config.data.short_side=512', '--config.data.long_side=512'),
      '--config.data.padded_sizes=((512,512),)',
    ),
  ],
  ids=['shapes', 'r50_fpn'],
)
def test_predicted_memory_is_that_of_a_training(recipe, tmp_path):
  environment = {
    key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'
  } | {
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    # Both programs compile. One that is loaded needs less memory.
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
  }

  def run(*arguments):
    done = subprocess.run(
      [sys.executable, *arguments],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=True,
      env=environment,
    )
    return done.stdout.splitlines()[-1]

  draw = ('shapes', '--train=16', '--val=2')
  run('-m', 'maskrcnn_jax.data.shapes', *draw)
  data = (
    '--config.data.train.images=shapes/images',
    '--config.data.train.annotations=shapes/instances_train.json',
  )
  plan = json.loads(run('-m', 'maskrcnn_jax.plan', *recipe, *data, '--json'))
  short = (
    *('--config.train.num_steps=6', '--config.train.checkpoint_every=2'),
    *('--skip_test', '--workdir=run', '--compilation_cache='),
  )
  # A program of this name gets huge pages, as the command does.
  (tmp_path / 'maskrcnn').write_text(TRAINING)
  measured = int(run('maskrcnn', *recipe, *data, *short)) / 2**10
  assert plan['memory_mib'] == pytest.approx(measured, rel=0.1)
