"""Builds this network with the weights of another program, to compare results.

The other program's results ("golden" numbers) are in files. Weights, images and
ground truth are not stored: the module `seeded.py` beside these files draws
them from names and seeds. Each file in the folder is tested; the environment
variable MASKRCNN_GOLDEN names another folder.
"""

import importlib.util
import os
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from peer_files import write_weights
import pytest

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.recipe import read_overrides
from maskrcnn_jax.convert_weights.convert import convert
from maskrcnn_jax.data import outlines as outline_files
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.rcnn import Rcnn

GOLDEN = pathlib.Path(__file__).parents[2] / 'shared' / 'golden'
FOLDER = pathlib.Path(os.environ.get('MASKRCNN_GOLDEN', GOLDEN))

needs_golden = pytest.mark.skipif(
  not (GOLDEN / 'seeded.py').exists(),
  reason='needs ../shared/golden: not in this checkout',
)


def golden_files(peer, **marks):
  """Returns the files of a program's results as parameters of a test.

  Args:
    peer: Beginning of the names of the files, before the seed: the name of the
      program, if a file holds the results of each stage of its R50-FPN.
    **marks: pytest mark of each file, by the file's name.
  """
  return [
    pytest.param(path, id=path.stem, marks=marks.get(path.stem, ()))
    for path in sorted(FOLDER.glob(f'{peer}_seed*.npz'))
  ] or [pytest.param(None, marks=pytest.mark.skip(reason=f'no {peer} file'))]


def read_golden(path):
  """Returns {name: array} of a file of another program's results."""
  with np.load(path) as file:
    return dict(file)


def load_seeded():
  """Imports and returns the module `seeded.py`, which draws the weights."""
  spec = importlib.util.spec_from_file_location('seeded', GOLDEN / 'seeded.py')
  seeded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(seeded)
  return seeded


def parity_config(geometry, image_size):
  """Returns a recipe whose padded size is that of one image, without excess."""
  config = default_config()
  config.geometry = geometry
  padded = tuple(-(-side // 32) * 32 for side in image_size)
  config.data.padded_sizes = (padded,)
  return config


def make_batch(image, boxes=(), classes=(), masks=(), polygons=()):
  """Returns a batch of one image with its ground truth.

  Args:
    image: uint8 RGB, [height, width, 3].
    boxes: Boxes of the objects, in pixels.
    classes: Class number of each object.
    masks: Bitmap of each object, [height, width]; or none, if there are
      polygons.
    polygons: Polygon of each object, [corners, 2], in pixels.
  """
  height, width = image.shape[:2]
  padded = [-(-side // 32) * 32 for side in (height, width)]
  canvas = np.zeros((1, *padded, 3), np.uint8)
  canvas[0, :height, :width] = image
  size = np.array([[height, width]], np.int32)
  count = max(len(boxes), 1)
  drawn = [outline_files.mask_to_outline(mask.astype(bool)) for mask in masks]
  drawn += [
    outline_files.polygons_to_outline([polygon.ravel().tolist()])
    for polygon in polygons
  ]
  ends = np.cumsum([0] + [len(parts) for _, parts in drawn])
  empty = [(np.zeros((1, 2), np.float32), np.full(1, -1, np.int16))]
  vertices, parts = zip(*(drawn or empty), strict=True)
  return Batch(
    images=canvas,
    source_sizes=size,
    image_sizes=size,
    image_valid=np.ones(1, bool),
    gt_boxes=np.array(boxes, np.float32).reshape(1, -1, 4)
    if len(boxes)
    else np.zeros((1, 1, 4), np.float32),
    gt_classes=np.array(classes, np.int32)[None]
    if len(boxes)
    else np.zeros((1, 1), np.int32),
    gt_valid=np.full((1, count), len(boxes) > 0),
    outlines=Outlines(
      np.concatenate(vertices)[None],
      np.concatenate(parts)[None],
      (ends if drawn else np.zeros(2)).astype(np.int32)[None],
    ),
  )


def build(config, num_classes, draw, seed, fill):
  """Returns the model and the variables that `fill` draws for it.

  Args:
    config: The recipe.
    num_classes: Number of classes, background included.
    draw: Function (name, shape, seed) that draws an array of the other program.
    seed: Seed of the weights.
    fill: Function (shapes, draw, seed) that returns the variables.
  """
  rcnn = Rcnn.from_config(config, num_classes=num_classes, dtype=jnp.float32)
  shapes = jax.eval_shape(rcnn.init, jax.random.key(0))
  return rcnn, fill(shapes, draw, seed)


def load_converted(folder, shapes, draw, image_size, *given):
  """Converts a weight file of another program and loads it to detect objects.

  Args:
    folder: An empty folder for the file and the checkpoint.
    shapes: {name: shape} of the arrays of the file.
    draw: Function (name, shape) that draws an array of the other program.
    image_size: (height, width) of the images, which are not resized, and padded
      only to the next multiple of 32 pixels.
    *given: Further (key, text) pairs of the command line.
  """
  write_weights(folder / 'file.pkl', shapes, draw)
  convert(folder / 'file.pkl', folder / 'converted')
  padded = tuple(-(-side // 32) * 32 for side in image_size)
  sizes = {
    'short_side': min(image_size),
    'long_side': max(image_size),
    'padded_sizes': (padded,),
  }
  overrides = [(f'data.{key}', str(size)) for key, size in sizes.items()]
  return load_detector(
    folder / 'converted', read_overrides([*overrides, *given])
  )


def error(ours, theirs):
  """Returns the largest difference, divided by the largest of their numbers."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def pair_boxes(ours, theirs, *, atol):
  """Pairs the boxes of two sets that are equal up to `atol`, in any order.

  Some boxes may have no partner: if two boxes overlap by almost exactly the
  threshold of an NMS, the two programs may keep different ones.

  Returns:
    The indices of the paired boxes in `ours`, and those in `theirs`.
  """
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  distance = np.abs(ours[:, None] - theirs[None]).max(axis=-1)
  pairs = []
  while len(pairs) < min(distance.shape):
    i, j = np.unravel_index(np.argmin(distance), distance.shape)
    if distance[i, j] > atol:
      break
    pairs.append((i, j))
    distance[i, :] = distance[:, j] = np.inf
  return np.array(pairs, int).reshape(-1, 2).T


def torchvision_name(path):
  """Returns torchvision's name of the variable at a path of this network."""
  leaves = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
  }
  collection, part, *modules, leaf = path
  leaf = leaves[leaf]
  match part, modules:
    case 'backbone', [*stem, module]:
      module = module.replace('downsample_conv', 'downsample.0')
      module = module.replace('downsample_bn', 'downsample.1')
      return '.'.join(['backbone.body', *stem, module, leaf])
    case 'fpn', [module]:
      kind, level = module[:-1], int(module[-1])
      return f'backbone.fpn.{kind}_blocks.{level - 2}.0.{leaf}'
    case 'rpn', ['conv']:
      return f'rpn.head.conv.0.0.{leaf}'
    case 'rpn', [module]:
      return f'rpn.head.{module}.{leaf}'
    case 'box_head', ['fc6' | 'fc7' as module]:
      return f'roi_heads.box_head.{module}.{leaf}'
    case 'box_head', [module]:
      return f'roi_heads.box_predictor.{module}.{leaf}'
    case 'mask_head', ['conv5_mask' | 'mask_fcn_logits' as module]:
      return f'roi_heads.mask_predictor.{module}.{leaf}'
    case 'mask_head', [module]:
      return f'roi_heads.mask_head.{int(module[-1]) - 1}.0.{leaf}'
  raise AssertionError((collection, path))


def torchvision_variables(shapes, draw, seed):
  """Returns variables of this network with the values of torchvision's."""
  return peer_variables(shapes, draw, seed, torchvision_name)


def peer_variables(shapes, draw, seed, peer_name):
  """Returns variables of this network with the values of another program's.

  The arrays are drawn by their names and shapes in the other program and then
  transposed. Its kernels have the axes (out, in, row, column); here they have
  (row, column, in, out).

  Args:
    shapes: Tree of the shapes of the variables of this network.
    draw: Function (name, shape, seed) that draws an array of the other program.
    seed: Seed of the weights.
    peer_name: Function from the path of a variable to its name in the other
      program.
  """
  flat = {}
  for path, x in traverse_util.flatten_dict(shapes).items():
    name, shape = peer_name(path), x.shape
    if path[-2:] == ('fc6', 'kernel'):
      y = draw(name, (shape[1], shape[0]), seed)
      side, channels = 7, shape[0] // 49
      y = y.reshape(shape[1], channels, side, side)
      y = y.transpose(2, 3, 1, 0).reshape(shape)
    elif path[-2:] == ('conv5_mask', 'kernel'):
      y = draw(name, (shape[2], shape[3], 2, 2), seed).transpose(2, 3, 0, 1)
    elif len(shape) == 4:
      y = draw(name, (shape[3], shape[2], shape[0], shape[1]), seed)
      y = y.transpose(2, 3, 1, 0)
    elif len(shape) == 2:
      y = draw(name, shape[::-1], seed).T
    else:
      y = draw(name, shape, seed)
    assert y.shape == shape
    flat[path] = y
  return traverse_util.unflatten_dict(flat)


def detectron2_name(path):
  """Returns detectron2's name of the variable at a path of this network."""
  leaves = {
    'kernel': 'weight',
    'scale': 'norm.weight',
    'bias': 'bias',
    'mean': 'norm.running_mean',
    'var': 'norm.running_var',
  }
  collection, part, *modules, leaf = path
  leaf = leaves[leaf]
  if collection == 'constants' and leaf == 'bias':
    leaf = 'norm.bias'
  match part, modules:
    case 'backbone', [_]:
      return f'backbone.bottom_up.stem.conv1.{leaf}'
    case 'backbone', [stage, block, module]:
      stage = f'res{int(stage[-1]) + 1}'
      module = {'downsample_conv': 'shortcut', 'downsample_bn': 'shortcut'}.get(
        module, module.replace('bn', 'conv')
      )
      return f'backbone.bottom_up.{stage}.{block}.{module}.{leaf}'
    case 'fpn', [module]:
      kind = {'inner': 'lateral', 'layer': 'output'}[module[:-1]]
      return f'backbone.fpn_{kind}{module[-1]}.{leaf}'
    case 'rpn', [module]:
      names = {'cls_logits': 'objectness_logits', 'bbox_pred': 'anchor_deltas'}
      module = names.get(module, module)
      return f'proposal_generator.rpn_head.{module}.{leaf}'
    case 'box_head', ['fc6' | 'fc7' as module]:
      return f'roi_heads.box_head.fc{int(module[-1]) - 5}.{leaf}'
    case 'box_head', [module]:
      return f'roi_heads.box_predictor.{module}.{leaf}'
    case 'mask_head', [module]:
      names = {'conv5_mask': 'deconv', 'mask_fcn_logits': 'predictor'}
      return f'roi_heads.mask_head.{names.get(module, module)}.{leaf}'
  raise AssertionError(path)


def detectron2_variables(shapes, draw, seed):
  """Returns variables of this network with the values of detectron2's.

  In detectron2, the background is the last class and has no box and no mask,
  and the channels of the image are BGR.
  """

  def draw_all(name, shape, seed):
    part = name.rsplit('.', 1)[0]
    if part.endswith('cls_score'):
      return np.roll(draw(name, shape, seed), 1, axis=0)
    if part.endswith(('bbox_pred', 'mask_head.predictor')):
      background = 4 if part.endswith('bbox_pred') else 1
      rest = draw(name, (shape[0] - background, *shape[1:]), seed)
      return np.pad(rest, ((background, 0), *((0, 0),) * (rest.ndim - 1)))
    if part.endswith('stem.conv1') and len(shape) == 4:
      return draw(name, shape, seed)[:, ::-1]
    return draw(name, shape, seed)

  return peer_variables(shapes, draw_all, seed, detectron2_name)
