"""Writes weight files as other programs do, with weights that a test draws."""

import jax
import jax.numpy as jnp
import numpy as np

from maskrcnn_jax.convert_weights.torch_files import write_pickle
from maskrcnn_jax.convert_weights.weight_names import (
  NAMINGS,
  peer_names,
  to_peer,
)
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint


def peer_shapes(config, num_classes, program):
  """Returns {name: shape} of the arrays in another program's file.

  Args:
    config: The recipe of the model.
    num_classes: Number of classes, background included.
    program: The other program, a key of `NAMINGS`.
  """
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  leaves = checkpoint.named_leaves(jax.eval_shape(rcnn.init, jax.random.key(0)))
  naming = NAMINGS[program]
  shapes = {}
  for name, leaf in leaves.items():
    array = np.broadcast_to(np.float32(0), leaf.shape)
    array = to_peer(name, array, naming, box_side=config.roi.box_side)
    # The first name is that of the newest files.
    shapes[peer_names(name, naming)[0]] = array.shape
  return shapes


def write_weights(path, shapes, draw):
  """Writes a weight file and returns its path.

  Args:
    path: The file to write.
    shapes: {name: shape} of the arrays.
    draw: Function (name, shape) that returns an array; `None` leaves it out.
  """
  arrays = {name: draw(name, shape) for name, shape in shapes.items()}
  kept = {name: array for name, array in arrays.items() if array is not None}
  write_pickle(path, kept)
  return path


def draw_small(name, shape):
  """Draws an array whose values are about as large as those of a trained model.

  Args:
    name: Name of the array in torch's style.
    shape: Its shape.
  """
  rng = np.random.default_rng(list(name.encode()))
  array = rng.normal(0, 0.1, shape)
  if name.endswith('running_var') or (
    len(shape) == 1 and name.endswith('weight')
  ):
    array = 1 + abs(array)
  elif len(shape) > 1:
    array *= 10 * (2 / np.prod(shape[1:])) ** 0.5
  if 'stem.conv1' in name:
    # The programs that have this name pass pixels of up to 255 to the network.
    array *= 0.02
  return array.astype(np.float32)
