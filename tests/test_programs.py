"""Tests that every program reads the arguments of a recipe in the same way."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[1]

# The arguments cover a folder whose name is a number, values after a space, and
# two spellings of boolean keys.
RECIPE = (
  f'--config={tiny.__file__}',
  '--config.data.train.images=2017',
  '--config.data.train.annotations',
  'train.json',
  '--config.data.keep_empty=true',
  '--noconfig.train.auto_scale',
  '--config.data.short_side',
  '48',
  '--config.data.long_side=64',
  '--config.data.color_jitter',
  '0.1,0.1,0.1',
)


@pytest.fixture
def folder(tiny_data, tmp_path):
  """A data set whose folder of images is called 2017."""
  shutil.copytree(tiny_data / 'images', tmp_path / '2017')
  shutil.copy(tiny_data / 'instances_train.json', tmp_path / 'train.json')
  return tmp_path


def program(folder, name, *arguments):
  done = subprocess.run(
    [sys.executable, '-m', f'maskrcnn_jax.{name}', *arguments],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ
    | {
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    },
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_check_data_takes_the_training_set_of_the_recipe(folder):
  text = program(folder, 'check_data', *RECIPE, '--workers=1')
  assert text.startswith('train.json, images in 2017\n8 images')
  assert 'No errors.' in text


def test_benchmark_loads_the_training_set_of_the_recipe(folder):
  text = program(
    folder,
    'benchmark',
    *RECIPE,
    '--mode=loader',
    '--batch_size=2',
    '--steps=2',
  )
  assert json.loads(text.splitlines()[-1])['num_images'] == 8


def test_main_trains_on_the_training_set_of_the_recipe(
  folder, run, monkeypatch
):
  monkeypatch.chdir(folder)
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.jit_train_step', lambda _: tiny.IdleStep()
  )
  status, _, err = run(*RECIPE, '--workdir=run')
  assert status == 0, err
  log = (folder / 'run' / 'log.txt').read_text()
  assert 'Training on 8 images of 3 classes' in log
  assert (folder / 'run' / 'checkpoints' / '4').is_dir()
