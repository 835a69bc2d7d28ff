"""A recipe so small that a test can train with it, and helpers for such runs.

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

# Number of training and of evaluation images that `tiny_data` draws.
NUM_TRAIN, NUM_VAL = 8, 5

# XLA_FLAGS for programs that compile much and compute little. With the usual
# flags, compiling takes two thirds of their time.
QUICK_COMPILATION = (
  '--xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_parallel_codegen_split_count=1'
)


def get_config():
  """Returns a recipe for 64 x 64 pixels with frozen stages and constants."""
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
  # With this, also an untrained network has detections in each image.
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


def narrow(config, width):
  """Makes a recipe narrow and its numbers of boxes small, in place.

  Args:
    config: The recipe.
    width: Number of channels of the stem, of the pyramid and of the heads.
      Group norm needs a multiple of 32.
  """
  model = config.model
  model.update(width=width, fpn_channels=width, mask_channels=width)
  model.box_features = 4 * width
  if model.groups > 1:
    # For a stem of `width` channels, a group has half as many in layer1.
    model.update(groups=4, group_width=32)
  config.anchors.sizes = (
    ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    if model.body == 'fpn'
    else ((8.0, 16.0, 32.0, 64.0),)
  )
  config.rpn.num_samples = 64
  for part in (config.rpn.train, config.rpn.eval):
    part.update(pre_nms=128, post_nms=64, num_proposals=64)
  config.roi.num_samples = 32
  config.detections.max_detections = 16
  config.data.update(
    short_side=64,
    long_side=64,
    padded_sizes=((64, 64),),
    max_objects=8,
    keep_empty=True,
  )


def with_data(config, data: pathlib.Path):
  """Sets the data set of a recipe, in place, and returns the recipe.

  Args:
    config: The recipe.
    data: The folder of a data set that `write_shapes` has written.
  """
  for part, name in ((config.data.train, 'train'), (config.data.eval, 'val')):
    part.images = str(data / 'images')
    part.annotations = str(data / f'instances_{name}.json')
  return config


def data_flags(data: pathlib.Path) -> list[str]:
  """Returns the arguments that give a data set of `write_shapes` to main.py."""
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
  """Context manager that records the unrounded figures of each training step.

  Yields:
    A list to which each step adds {name: figure}.
  """
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
  """Trains and returns the figures of each step.

  Args:
    config: The recipe.
    workdir: The workdir of the run.
    **options: Options of `train`. By default there is no evaluation.
  """
  with recorded_figures() as figures:
    train.train(config, workdir, **{'skip_test': True} | options)
  return figures


class IdleStep:
  """Replaces the jitted training step; needs no compiling and trains nothing.

  An object stands for the jitted, the lowered and the compiled function.
  """

  def __init__(self):
    """Creates a step that is not compiled for any size yet."""
    self.padded_sizes = []  # the sizes that `lower` was called with

  def lower(self, state, batch, *, padded_size):
    """Records the padded size, as if the step was lowered for it."""
    self.padded_sizes.append(padded_size)
    return self

  def compile(self):
    """Returns this object as the compiled function."""
    return self

  def memory_analysis(self):
    """Returns None, as on a device that reports no memory."""

  def __call__(self, state, batch):
    """Increments the step number of the state, and changes nothing else."""
    return state._replace(step=state.step + 1), {'loss': 0.0, 'grad_norm': 0.0}


def saved_arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
  """Returns {name: array} of the model and optimizer of a saved step."""
  path = (workdir / 'checkpoints' / str(step)).absolute()
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  arrays = {}
  for item in ('model', 'optimizer'):
    with ocp.StandardCheckpointer() as checkpointer:
      # Everything is restored onto one device, because the devices that the
      # checkpoint was saved from may not exist here.
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
  """Checks that two results of `saved_arrays` are equal to the bit."""
  assert one.keys() == other.keys()
  for name in one:
    assert_array_equal(one[name], other[name], err_msg=name, strict=True)


# Finite, but the sums of its products are not.
TOO_LARGE = 3e38


def save_with_value(
  workdir: pathlib.Path, target: pathlib.Path, layer: str, value: float
) -> None:
  """Copies the newest checkpoint of a run, with other weights in a layer.

  Args:
    workdir: The workdir of the run.
    target: The workdir to write the copy to.
    layer: Part of the names of the arrays that change.
    value: The number that all elements of these arrays become.
  """
  path = checkpoint.find_checkpoint(workdir)
  with ocp.StandardCheckpointer() as checkpointer:
    stored = {
      item: checkpointer.restore((path / item).absolute())
      for item in ('model', 'optimizer')
    }
  stored['model'] = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf * 0 + value if layer in jax.tree_util.keystr(path) else leaf
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
