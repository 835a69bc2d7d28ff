"""Canvases: the static sizes that images share, and who goes to which.

A canvas is a pair of sizes, of decoded images and of padded ones, that all
images of a batch share; the jitted step compiles once for each.
"""

from typing import NamedTuple

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import errors

# Coarsest stride of the pyramid up to level 5; level 6 takes every second cell.
_STRIDE = 32


class Canvas(NamedTuple):
  """A pair of static sizes, (height, width), both multiples of 32."""

  padded: tuple[int, int]  # what the network sees
  source: tuple[int, int]  # holds each decoded image before it is resized


class CanvasPlan(NamedTuple):
  """Which canvas each of n images goes to, and how it gets there."""

  canvases: tuple[Canvas, ...]  # only those that have images
  canvas_of_image: Int[np.ndarray, 'n']
  image_sizes: Int[np.ndarray, 'n 2']  # (height, width) to resize it to
  reduce: Int[np.ndarray, 'n']  # decoded at one reduce-th of the size


def resized_size(
  height: int,
  width: int,
  *,
  short_side: int,
  long_side: int,
  rule: str = 'nearest',
) -> tuple[int, int]:
  """Picks the size to resize an image to, keeping its aspect.

  Args:
    height: Of the image.
    width: Of the image.
    short_side: What the shorter side becomes,
    long_side: unless the longer one would exceed this.
    rule: How to round. 'nearest': both sides to the nearest. 'down': both
      sides down. 'legacy': the shorter side to the nearest, half to even, the
      longer one down.

  Returns:
    (height, width), each at least 1.

  Source:
    'nearest': detectron2 ResizeShortestEdge.get_output_shape. 'down':
    torchvision `models/detection/transform.py`, `_resize_image_and_masks`.
    'legacy': maskrcnn-benchmark `data/transforms/transforms.py`, `Resize`.
    Differs: sides are at least 1.
  """
  shorter, longer = min(height, width), max(height, width)
  match rule:
    case 'nearest':
      pass
    case 'down':
      scale = min(short_side / shorter, long_side / longer)
      return max(int(height * scale), 1), max(int(width * scale), 1)
    case 'legacy':
      if longer / shorter * short_side > long_side:
        short_side = int(round(long_side * shorter / longer))
      short_side = max(short_side, 1)
      if shorter == short_side:
        return height, width
      if width < height:
        return int(short_side * height / width), short_side
      return short_side, int(short_side * width / height)
    case _:
      raise ValueError(
        f"rule must be 'nearest', 'down' or 'legacy', not {rule!r}."
      )
  scale = short_side / shorter
  if height < width:
    new_height, new_width = float(short_side), scale * width
  else:
    new_height, new_width = scale * height, float(short_side)
  if max(new_height, new_width) > long_side:
    scale = long_side / max(new_height, new_width)
    new_height, new_width = new_height * scale, new_width * scale
  return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


def plan_canvases(
  heights: Int[np.ndarray, 'n'],
  widths: Int[np.ndarray, 'n'],
  *,
  short_side: int,
  long_side: int,
  padded_sizes: tuple[tuple[int, int], ...],
  max_source_side: int,
  resize_rule: str = 'nearest',
) -> CanvasPlan:
  """Gives each image the smallest padded size that it fits in once resized.

  Args:
    heights: Of the images, as their annotations say.
    widths: Likewise.
    short_side: See `resized_size`.
    long_side: See `resized_size`.
    padded_sizes: The (height, width) to choose from, multiples of 32.
    max_source_side: A longer image is decoded at the largest 1/2, 1/3, ... of
      its size that has no longer side.
    resize_rule: See `resized_size`.

  Raises:
    InputError: If a padded size is no multiple of 32, or none is large enough.
  """
  padded_sizes = sorted(
    (tuple(map(int, size)) for size in padded_sizes),
    key=lambda size: size[0] * size[1],
  )
  for size in padded_sizes:
    if min(size) < 1 or any(side % _STRIDE for side in size):
      raise errors.InputError(
        f'The padded size {size} must be two multiples of {_STRIDE}.'
      )
  sizes, size_of_image = np.unique(
    np.stack([heights, widths], axis=1), axis=0, return_inverse=True
  )
  size_of_image = size_of_image.reshape(-1)
  canvas_of_size = np.zeros(len(sizes), np.int32)
  resized = np.zeros((len(sizes), 2), np.int32)
  for i, (height, width) in enumerate(sizes.tolist()):
    h, w = resized_size(
      height,
      width,
      short_side=short_side,
      long_side=long_side,
      rule=resize_rule,
    )
    resized[i] = h, w
    fits = (
      k
      for k, padded in enumerate(padded_sizes)
      if h <= padded[0] and w <= padded[1]
    )
    canvas_of_size[i] = next(fits, -1)
    if canvas_of_size[i] < 0:
      enough = _round_up(h, _STRIDE), _round_up(w, _STRIDE)
      raise errors.InputError(
        f'An image of {height}x{width} (height x width) is resized to'
        f' {h}x{w}, which fits in none of the padded sizes'
        f' {padded_sizes}; add {enough}.'
      )
  reduce = -(-sizes.max(axis=1, initial=0) // max_source_side)
  source = -(-sizes // reduce[:, None])
  kept, canvas_of_size = np.unique(canvas_of_size, return_inverse=True)
  canvases = []
  for k, padded in enumerate(kept):
    largest = source[canvas_of_size == k].max(axis=0).tolist()
    canvases.append(
      Canvas(
        padded=padded_sizes[padded],
        source=tuple(_round_up(side, _STRIDE) for side in largest),
      )
    )
  return CanvasPlan(
    canvases=tuple(canvases),
    canvas_of_image=canvas_of_size[size_of_image].astype(np.int32),
    image_sizes=resized[size_of_image],
    reduce=reduce[size_of_image].astype(np.int32),
  )


def share_padding(plan: CanvasPlan, rows: Int[np.ndarray, 'n']) -> float:
  """Returns how much of the pixels that the network sees is padding, [0, 1].

  Args:
    plan: Says how large each image and its canvas are.
    rows: Of the images, at least one.
  """
  padded = np.array([canvas.padded for canvas in plan.canvases])
  seen = padded[plan.canvas_of_image[rows]].prod(axis=1).sum()
  return float(1 - plan.image_sizes[rows].prod(axis=1).sum() / seen)


def share_of_process(
  plan: CanvasPlan, process_index: int, process_count: int
) -> Int[np.ndarray, 'm']:
  """Returns the images that a process evaluates: an equal part of each canvas.

  The parts of all processes together are all images, each once.

  Args:
    plan: Of all images.
    process_index: Whose part.
    process_count: How many there are.
  """
  # One canvas after the other, so that the sizes of the parts differ by one.
  rows = np.argsort(plan.canvas_of_image, kind='stable')
  return np.sort(rows[process_index::process_count])


def _round_up(value: int, multiple: int) -> int:
  """Rounds up to a multiple."""
  return -(-value // multiple) * multiple
