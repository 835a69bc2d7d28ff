"""Finds objects with an exported Mask R-CNN; needs only JAX and NumPy.

from loader import load
detect = load('DIR')  # the folder that this file is in
[objects] = detect([picture])  # a uint8 array [height, width, 3], RGB
"""

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib

import jax
from jax import export
import jax.numpy as jnp
import numpy as np


def load(
  folder: str | pathlib.Path,
) -> Callable[[Sequence[np.ndarray]], list[dict]]:
  """Returns a function that finds the objects in pictures.

  Args:
    folder: The folder that `python -m maskrcnn_jax.export` has written.

  Returns:
    A function that takes a list of pictures, uint8 arrays [height, width, 3] in
    RGB, and returns a dict for each picture. It describes d objects, the one
    with the highest score first: `boxes` [d, 4], (x1, y1, x2, y2) in pixels of
    the picture; `classes` [d], from 1 on; `names`, a list; `scores` [d]; and,
    if the model has a mask head, `masks` [d, m, m], the probability that a cell
    of the box belongs to the object, which `paste_mask` enlarges. The function
    raises a ValueError if it cannot take a picture. It compiles a program when
    the first picture for it comes.
  """
  folder = pathlib.Path(folder)
  about = json.loads((folder / 'export.json').read_text('utf-8'))
  with np.load(folder / 'weights.npz') as file:
    weights = jax.device_put(dict(file))
  programs = {
    tuple(row['picture_size']): read_program(folder, row, weights)
    for row in about['programs']
  }

  def detect(pictures: Sequence[np.ndarray]) -> list[dict]:
    """Finds the objects in pictures; see `load`."""
    found: dict[int, dict] = {}
    waiting: dict[tuple[int, ...], list[int]] = {}
    for i, picture in enumerate(pictures):
      waiting.setdefault(choose_size(picture, list(programs)), []).append(i)
    for size, rows in waiting.items():
      for start in range(0, len(rows), about['batch']):
        batch = rows[start : start + about['batch']]
        images = np.zeros((about['batch'], *size, 3), np.uint8)
        sizes = np.ones((about['batch'], 2), np.int32)
        for k, i in enumerate(batch):
          sizes[k] = height, width = pictures[i].shape[:2]
          images[k, :height, :width] = pictures[i]
        arrays = jax.device_get(programs[size](weights, images, sizes))
        valid = arrays.pop('valid')
        for k, i in enumerate(batch):
          found[i] = {name: x[k][valid[k]] for name, x in arrays.items()}
          classes = [about['classes'][c - 1] for c in found[i]['classes']]
          found[i]['names'] = [class_['name'] for class_ in classes]
    return [found[i] for i in range(len(pictures))]

  return detect


def read_program(
  folder: pathlib.Path, row: dict, weights: dict[str, jax.Array]
) -> Callable[..., dict]:
  """Returns a program as a jitted function of weights, images and sizes.

  JAX's own files of programs need the package flatbuffers. So the file has the
  StableHLO alone, which takes the place of that of an empty function with the
  same arguments and results.

  Args:
    folder: The folder of the exported model.
    row: The part of export.json about this program.
    weights: {name: array} of the weights.

  Raises:
    ValueError: If the model was not exported for the platform of this machine.
  """

  def empty(*_: dict | jax.Array) -> dict[str, jax.Array]:
    """Returns zeros with the shapes of the results."""
    return {n: jnp.zeros(*result) for n, result in row['results'].items()}

  platform = {'gpu': 'cuda'}.get(jax.default_backend(), jax.default_backend())
  if platform not in row['files']:
    raise ValueError(
      f'The model was exported for {", ".join(row["files"])}, and this machine '
      f'has {platform}. Export it again with --platforms={platform}.'
    )
  arguments = (
    jax.ShapeDtypeStruct(*row['arguments'][name])
    for name in ('images', 'sizes')
  )
  program = dataclasses.replace(
    export.export(jax.jit(empty, keep_unused=True), platforms=[platform])(
      weights, *arguments
    ),
    mlir_module_serialized=(folder / row['files'][platform]).read_bytes(),
    calling_convention_version=row['calling_convention_version'],
  )
  return jax.jit(program.call)


def choose_size(
  picture: np.ndarray, sizes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
  """Returns the first of the sizes whose program takes a picture.

  A program takes the pictures that fit into its size and lie the same way: no
  upright picture if the size is wider than high, and no wide picture if it is
  higher than wide.

  Args:
    picture: The picture.
    sizes: (height, width) of each program.

  Raises:
    ValueError: If the picture is not an array of RGB bytes, or if no program
      takes it.
  """
  if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or not picture.size:
    raise ValueError(
      'A picture must be a uint8 array [height, width, 3] in RGB, not '
      f'{picture.dtype} {list(picture.shape)}.'
    )
  height, width, _ = picture.shape
  for h, w in sizes:
    if height <= h and width <= w and (w - h) * (width - height) >= 0:
      return h, w
  raise ValueError(
    f'No program takes a picture of {height}x{width} (height x width); there '
    f'are {", ".join(f"{h}x{w}" for h, w in sizes)}. Make the picture smaller, '
    f'or export the model again with --sizes={height}x{width}.'
  )


def paste_mask(
  mask: np.ndarray, box: np.ndarray, height: int, width: int, about: dict
) -> np.ndarray:
  """Returns which pixels of a picture belong to an object, bool [h, w].

  Args:
    mask: Probabilities of the cells of the box, [m, m].
    box: (x1, y1, x2, y2), in pixels of the picture.
    height: Height of the picture, in pixels.
    width: Width of the picture, in pixels.
    about: The content of export.json, which has the rule and the threshold.

  Source:
    'sampled': detectron2 `layers/mask_ops.py`. 'resized': torchvision
    `models/detection/roi_heads.py`, `paste_masks_in_image`.
  """
  rows, columns = (
    cell_weights(low, high, len(mask), length, about['paste_rule'])
    for low, high, length in ((box[1], box[3], height), (box[0], box[2], width))
  )
  samples = ((mask @ columns.T).T @ rows.T).T
  if about['paste_rule'] == 'sampled':
    return samples >= about['mask_threshold']
  return samples > about['mask_threshold']


def cell_weights(
  low: np.float32, high: np.float32, side: int, length: int, rule: str
) -> np.ndarray:
  """Returns the weight of each cell of a mask in each pixel of an axis.

  Args:
    low: Left or top edge of the box, in pixels.
    high: Right or bottom edge of the box, in pixels.
    side: Number of cells m along the side of the mask.
    length: Number of pixels n of the picture along this axis.
    rule: 'sampled' takes the mask at the centre of each pixel. 'resized' puts a
      border of one cell of zeros around the mask and resizes it to the pixels
      from the first corner to the last.

  Returns:
    An array [n, m].
  """
  one, half = np.float32(1), np.float32(0.5)
  if rule == 'sampled':
    if not high > low:
      return np.zeros((length, side), np.float32)
    share = (np.arange(length) + 0.5 - float(low)) / (float(high) - float(low))
    distance = np.abs(share[:, None] * side - 0.5 - np.arange(side))
    return np.maximum(1 - distance, 0).astype(np.float32)
  # The corners are truncated, so the rounding of float32 matters.
  reach = (high - low) * half * np.float32((side + 2) / side)
  center = (high + low) * half
  start, end = int(center - reach), int(center + reach)
  pixels = np.arange(length, dtype=np.float32) - np.float32(start)
  step = np.float32(side + 2) / np.float32(max(end - start + 1, 1))
  cells = np.maximum((pixels + half) * step - half, 0)
  near = np.minimum(cells.astype(np.int64), side)
  far_weight = np.minimum(cells - near.astype(np.float32), one)
  weights = np.zeros((length, side + 2), np.float32)
  weights[np.arange(length), near] = one - far_weight
  weights[np.arange(length), near + 1] = far_weight
  return weights[:, 1:-1]
