"""A recipe and a data set so tiny that a test can train; runs of them.

The file is itself a recipe: --config=tests/tiny.py.
"""

import contextlib
import pathlib

import jax
import numpy as np
from numpy.testing import assert_array_equal
import orbax.checkpoint as ocp

from maskrcnn_jax.config import default_config
from maskrcnn_jax.runtime import checkpoint
from maskrcnn_jax.training import run as train

# As `tiny_data` draws them: 8 to train on, 5 to evaluate.
NUM_TRAIN, NUM_VAL = 8, 5

# XLA_FLAGS for programs that compile much and compute little: compiling takes
# two thirds of the time.
QUICK_COMPILATION = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)


def get_config():
  """Returns a recipe of 64 px pictures that has frozen stages and constants."""
  config = default_config()
  config.model.depth = 18
  config.model.width = 8
  config.model.fpn_channels = 16
  config.model.box_fcs = 1
  config.model.box_features = 32
  config.model.mask_convs = 1
  config.model.mask_channels = 16
  config.anchors.sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
  config.rpn.num_samples = 32
  for part in (config.rpn.train, config.rpn.eval):
    part.pre_nms = 32
    part.post_nms = 16
    part.num_proposals = 16
  config.roi.num_samples = 16
  config.roi.sampling_ratio = 2
  config.detections.max_detections = 8
  # A network that has learned nothing finds something in each picture too.
  config.detections.min_score = 0.0
  config.data.short_side = 64
  config.data.long_side = 64
  config.data.padded_sizes = ((64, 64),)
  config.data.max_source_side = 80
  config.data.keep_empty = True
  config.data.max_objects = 8
  config.train.batch_size = 2
  config.train.num_steps = 4
  config.train.checkpoint_every = 2
  config.train.log_every = 1
  config.optimizer.learning_rate = 0.01
  config.optimizer.warmup_steps = 3
  config.eval.batch_size = 2
  config.predict.min_score = 0.0
  return config


def with_data(config, data: pathlib.Path):
  """Points a recipe to a data set of `write_shapes` and returns it."""
  for part, name in ((config.data.train, 'train'), (config.data.eval, 'val')):
    part.images = str(data / 'images')
    part.annotations = str(data / f'instances_{name}.json')
  return config


def data_flags(data: pathlib.Path) -> list[str]:
  """The same for the command line."""
  return [
    f'--config.data.{part}.{key}={value}'
    for part, name in (('train', 'train'), ('eval', 'val'))
    for key, value in (
      ('images', data / 'images'),
      ('annotations', data / f'instances_{name}.json'),
    )
  ]


@contextlib.contextmanager
def recorded_figures():
  """Gives a list that gets the figures of each training step, unrounded."""
  figures = []
  add = train.TrainingLog.add

  def record(log, **step):
    figures.append({k: v for k, v in step.items() if k not in ('time', 'data')})
    add(log, **step)

  train.TrainingLog.add = record
  try:
    yield figures
  finally:
    train.TrainingLog.add = add


def run_training(config, workdir: pathlib.Path, **options) -> list[dict]:
  """Trains, without an evaluation, and returns the figures of each step."""
  with recorded_figures() as figures:
    train.train(config, workdir, **{'skip_test': True} | options)
  return figures


class IdleStep:
  """Stands for a training step; changes nothing and takes no compiling."""

  def __init__(self):
    """Starts with no step compiled."""
    self.padded_sizes = []  # that it was compiled for

  def lower(self, state, batch, *, padded_size):
    """Takes the place of the jitted function's."""
    self.padded_sizes.append(padded_size)
    return self

  def compile(self):
    """Takes the place of the lowered function's."""
    return self

  def memory_analysis(self):
    """Takes the place of the compiled function's."""

  def __call__(self, state, batch):
    """Counts the step."""
    return state._replace(step=state.step + 1), {'loss': 0.0, 'grad_norm': 0.0}


def saved_arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Returns {name: array} of the model and optimizer of a saved step."""
  path = (workdir / 'checkpoints' / str(step)).absolute()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  arrays = {}
  for item in ('model', 'optimizer'):
    with ocp.StandardCheckpointer() as checkpointer:
      # The devices that it was saved from need not be there.
      target = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=here
        ),
        checkpointer.metadata(path / item).item_metadata.tree,
      )
      stored = checkpointer.restore(path / item, target)
    for name, leaf in checkpoint.named_leaves(stored).items():
      arrays[f'{item}/{name}'] = np.asarray(leaf)
  return arrays


def assert_same_arrays(one: dict, other: dict) -> None:
  """Checks that two `saved_arrays` are the same to the bit."""
  assert one.keys() == other.keys()
  for name in one:
    assert_array_equal(one[name], other[name], err_msg=name, strict=True)


def save_with_nan(
  workdir: pathlib.Path, target: pathlib.Path, layer: str
) -> None:
  """Copies a run's newest checkpoint with NaN for the kernel of a layer."""
  path = checkpoint.find_checkpoint(workdir)
  with ocp.StandardCheckpointer() as checkpointer:
    stored = {
      item: checkpointer.restore((path / item).absolute())
      for item in ('model', 'optimizer')
    }
  stored['model'] = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf * np.nan if layer in jax.tree_util.keystr(path) else leaf
    ),
    stored['model'],
  )
  with contextlib.closing(
    checkpoint.open_checkpoints(target / 'checkpoints')
  ) as manager:
    checkpoint.save_checkpoint(
      manager, metadata=checkpoint.read_metadata(path), **stored
    )
    manager.wait_until_finished()
