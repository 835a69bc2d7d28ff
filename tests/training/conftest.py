"""Fixtures of the tests of training."""

import shutil

import pytest
import tiny


@pytest.fixture
def config(tiny_data):
  """The tiny recipe with its data set."""
  return tiny.with_data(tiny.get_config(), tiny_data)


@pytest.fixture
def workdir(tiny_run, tmp_path):
  """A copy of a finished run of the tiny recipe, which a test may change."""
  return shutil.copytree(tiny_run[0], tmp_path / 'run')


@pytest.fixture
def idle_step(monkeypatch):
  """Replaces the training step by one that changes nothing."""
  step = tiny.IdleStep()
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.jit_train_step', lambda _: step
  )
  return step
