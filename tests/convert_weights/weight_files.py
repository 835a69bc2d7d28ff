"""Small weight files of other programs, and what a checkpoint holds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_array_equal

from maskrcnn_jax.config import default_config
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  peer_names,
  to_peer,
)
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint

SMALL = dict(
  depth=18,
  width=2,
  fpn_channels=4,
  box_fcs=2,
  box_features=8,
  mask_convs=2,
  mask_channels=4,
)
GROUP = SMALL | dict(
  norm='group',
  width=32,
  fpn_channels=32,
  mask_channels=32,
  box_convs=1,
  box_fcs=1,
)


def shapes_of(sizes, num_classes=4):
  return dict(_shapes_of(tuple(sizes.items()), num_classes))


@functools.cache
def _shapes_of(sizes, num_classes):
  config = default_config()
  config.model.update(dict(sizes))
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  return checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))


def random_leaves(sizes, num_classes=4):
  """Returns random arrays of a model by name, as large as trained ones."""
  rng = np.random.default_rng(0)
  leaves = {}
  for name, x in shapes_of(sizes, num_classes).items():
    std = (2 / math.prod(x.shape[:-1])) ** 0.5 if len(x.shape) > 1 else 0.1
    array = rng.normal(0, std, x.shape)
    if name.endswith(('/scale', '/var')):
      array = 1 + abs(array)
    leaves[name] = array.astype(np.float32)
  return leaves


def peer_arrays(leaves, program, *, alias=0):
  """Returns the arrays of our model as they are in a file of another program.

  Args:
    leaves: Our arrays by our names.
    program: The other program, a key of `NAMINGS`.
    alias: Which of the program's names to use, if an array has several.
  """
  arrays = {}
  for name, array in leaves.items():
    names = peer_names(name, NAMINGS[program])
    if names:
      arrays[names[min(alias, len(names) - 1)]] = to_peer(
        name, array, NAMINGS[program], box_side=7
      )
  return arrays


def read_checkpoint(directory):
  """Returns the arrays by name and the metadata of a checkpoint."""
  path = checkpoint.find_checkpoint(directory)
  shapes = checkpoint.model_shapes(path)
  model = checkpoint.restore_model(
    path,
    checkpoint.nested(
      {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in shapes.items()
      }
    ),
  )
  leaves = checkpoint.named_leaves(model)
  return (
    {name: np.asarray(leaf) for name, leaf in leaves.items()},
    checkpoint.read_metadata(path),
  )


def assert_same(one, other):
  assert one.keys() == other.keys()
  for name in one:
    assert_array_equal(one[name], other[name], err_msg=name)
