"""Canvases: the static image sizes of batches, and the plan for each image.

A canvas is a pair of sizes that all images of a batch share: one for decoded
images and one for resized, padded images. The jitted step is compiled once for
each canvas.

Axis letters here: n images, m images of one process.
"""

from typing import NamedTuple

from jaxtyping import Bool, Int
import numpy as np

from maskrcnn_jax import errors

# Pixels. Sides of padded images are multiples of the stride of pyramid level 5.
# Level 6 takes every second cell of level 5, for any number of cells.
_STRIDE = 32


class Canvas(NamedTuple):
  """A pair of static sizes, (height, width), both multiples of 32."""

  padded: tuple[int, int]  # input of the network: resized image and padding
  source: tuple[int, int]  # pixels that the device gets, and padding


class CanvasPlan(NamedTuple):
  """The canvas of each of n images, and how the image is resized for it."""

  canvases: tuple[Canvas, ...]  # only canvases that have images
  canvas_of_image: Int[np.ndarray, 'n']  # index into `canvases`
  image_sizes: Int[np.ndarray, 'n 2']  # (height, width) after resizing
  # (height, width) before the device resizes the image. If it is not the size
  # of the file, the host resizes the image to it.
  source_sizes: Int[np.ndarray, 'n 2']
  # The sizes (height, width) that training draws from, one for each of k
  # lengths of the shorter side. `None` if no size is drawn from a list.
  size_choices: Int[np.ndarray, 'n k 2'] | None
  # Whether shrinking averages over all old pixels that a new pixel covers.
  antialias: bool


def resized_size(
  height: int,
  width: int,
  *,
  short_side: int,
  long_side: int,
  rule: str = 'nearest',
) -> tuple[int, int]:
  """Computes the size of an image after resizing, which keeps its aspect ratio.

  Args:
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    short_side: Length of the shorter side after resizing, in pixels.
    long_side: Upper limit of the longer side, in pixels. If it would be
      exceeded, both sides shrink.
    rule: How the two sides are rounded. 'nearest' rounds both to the nearest
      integer, 'down' rounds both down. 'legacy' rounds the longer side down
      and, if both sides shrink, the shorter side to the nearest integer, with
      halves to the even one.

  Returns:
    (height, width) in pixels, each at least 1.

  Raises:
    ValueError: If there is no rule of this name.

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
  antialias: bool = True,
  short_sides: tuple[int, ...] = (),
  scale_jitter: tuple[float, float] | tuple[()] = (),
) -> CanvasPlan:
  """Chooses for each image the smallest canvas that holds it once resized.

  The device resizes images. If an image has a side longer than
  `max_source_side`, the host makes it smaller first, so that one large picture
  does not enlarge the arrays of all others:

  - If the device draws the size, the host resizes the image to the largest size
    that can be drawn, or not at all if the image is smaller.
  - Otherwise, with `antialias`, the host resizes it to its final size. Without
    `antialias`, it only leaves out pixels that the device does not use. In
    both cases the result is the same as without the limit.

  Args:
    heights: Heights of the images in pixels, as in the annotations.
    widths: Widths of the images in pixels, as in the annotations.
    short_side: Length of the shorter side after resizing, in pixels.
    long_side: Upper limit of the longer side after resizing, in pixels.
    padded_sizes: The (height, width) of the canvases to choose from, in pixels.
      All must be multiples of 32.
    max_source_side: If a side of an image is longer, in pixels, the host makes
      the image smaller.
    resize_rule: How sizes are rounded: 'nearest', 'down' or 'legacy'; the
      `rule` of `resized_size`.
    antialias: Whether shrinking averages over all old pixels that a new pixel
      covers.
    short_sides: Lengths of the shorter side that training draws from, in
      pixels; none is above `short_side`. () draws none.
    scale_jitter: (smallest, largest) factor for the largest size that fits on
      the canvas; training draws from this range. () draws none.

  Returns:
    The plan. Canvases without images are left out of it.

  Raises:
    InputError: If a side of a padded size is not a multiple of 32, or if an
      image fits in none of the padded sizes.
  """
  by_area = sorted(
    ((int(height), int(width)) for height, width in padded_sizes),
    key=lambda size: size[0] * size[1],
  )
  for size in by_area:
    if min(size) < 1 or any(side % _STRIDE for side in size):
      raise errors.InputError(
        f'The padded size {size} must be two multiples of {_STRIDE}.'
      )
  sizes, size_of_image = np.unique(
    np.stack([heights, widths], axis=1), axis=0, return_inverse=True
  )
  size_of_image = size_of_image.reshape(-1)
  canvas_of_size = np.zeros(len(sizes), np.int32)

  def resize_all(side: int) -> Int[np.ndarray, 'sizes 2']:
    """Returns all sizes after resizing the shorter side to this length."""
    resized = [
      resized_size(h, w, short_side=side, long_side=long_side, rule=resize_rule)
      for h, w in sizes.tolist()
    ]
    return np.array(resized, np.int32).reshape(-1, 2)

  resized = resize_all(short_side)
  for i, (h, w) in enumerate(resized.tolist()):
    height, width = sizes[i].tolist()
    fits = (
      k for k, area in enumerate(by_area) if h <= area[0] and w <= area[1]
    )
    canvas_of_size[i] = next(fits, -1)
    if canvas_of_size[i] < 0:
      enough = _round_up(h, _STRIDE), _round_up(w, _STRIDE)
      raise errors.InputError(
        f'An image of {height}x{width} (height x width) is resized to'
        f' {h}x{w}, which fits in none of the padded sizes'
        f' {by_area}; add {enough}.'
      )
  choices = None
  if short_sides:
    choices = np.stack([resize_all(side) for side in short_sides], axis=1)
  largest = resized if choices is None else choices.max(axis=1)
  if scale_jitter:
    room = np.array(by_area).reshape(-1, 2)[canvas_of_size]
    fit = (room / sizes).min(axis=1, initial=np.inf)[:, None]
    largest = np.maximum(np.rint(sizes * fit * scale_jitter[1]), 1)
  source, arrays = _source_sizes(
    sizes,
    largest.astype(np.int32),
    is_large=sizes.max(axis=1, initial=0) > max_source_side,
    resizes=antialias or bool(short_sides or scale_jitter),
  )
  used, used_of_size = np.unique(canvas_of_size, return_inverse=True)
  canvases = []
  for k, padded in enumerate(used):
    height, width = arrays[used_of_size == k].max(axis=0).tolist()
    canvases.append(
      Canvas(
        padded=by_area[padded],
        source=(_round_up(height, _STRIDE), _round_up(width, _STRIDE)),
      )
    )
  return CanvasPlan(
    canvases=tuple(canvases),
    canvas_of_image=used_of_size[size_of_image].astype(np.int32),
    image_sizes=resized[size_of_image],
    source_sizes=source[size_of_image],
    size_choices=None if choices is None else choices[size_of_image],
    antialias=antialias,
  )


def _source_sizes(
  sizes: Int[np.ndarray, 'n 2'],
  largest: Int[np.ndarray, 'n 2'],
  *,
  is_large: Bool[np.ndarray, 'n'],
  resizes: bool,
) -> tuple[Int[np.ndarray, 'n 2'], Int[np.ndarray, 'n 2']]:
  """Returns the sizes of images and arrays before the device resizes an image.

  Args:
    sizes: (height, width) of the images, in pixels.
    largest: The largest (height, width) to which the device resizes each image.
    is_large: Whether the host makes an image smaller.
    resizes: Whether the host resizes large images to `largest`, if this is
      smaller. Otherwise it only leaves out the pixels that interpolation to
      this size does not use.

  Returns:
    (height, width) of each image, and of the array that holds its pixels.
  """
  if resizes:
    shrinks = is_large & (largest <= sizes).all(axis=1)
    source = np.where(shrinks[:, None], largest, sizes).astype(np.int32)
    return source, source
  # Interpolation uses two old pixels for each new pixel.
  used = np.where(is_large[:, None], np.minimum(2 * largest, sizes), sizes)
  return sizes.astype(np.int32), used.astype(np.int32)


def count_shrunk(
  plan: CanvasPlan,
  heights: Int[np.ndarray, 'n'],
  widths: Int[np.ndarray, 'n'],
  rows: Int[np.ndarray, 'm'],
) -> int:
  """Returns the number of images that the host resizes.

  Args:
    plan: The size of each image before the device resizes it.
    heights: Heights of the images of the plan in pixels, as in the annotations.
    widths: Widths of these images in pixels, as in the annotations.
    rows: The images to count, as rows of the index.
  """
  sizes = np.stack([heights, widths], axis=1)
  return int((plan.source_sizes[rows] != sizes[rows]).any(axis=1).sum())


def share_padding(plan: CanvasPlan, rows: Int[np.ndarray, 'n']) -> float:
  """Returns the share of padding among all pixels that the network receives.

  Args:
    plan: The canvas and the size of each image.
    rows: The images to count, as rows of the index; at least one.

  Returns:
    A number in [0, 1).
  """
  padded = np.array([canvas.padded for canvas in plan.canvases])
  seen = padded[plan.canvas_of_image[rows]].prod(axis=1).sum()
  return float(1 - plan.image_sizes[rows].prod(axis=1).sum() / seen)


def share_of_process(
  plan: CanvasPlan, process_index: int, process_count: int
) -> Int[np.ndarray, 'm']:
  """Returns the images that one process evaluates: its share of each canvas.

  The shares of all processes together contain each image once. The numbers of
  images in the shares differ by one at most, and so do the numbers of images of
  a single canvas.

  Args:
    plan: The canvases of all images.
    process_index: Number of the process, from 0.
    process_count: Number of processes.

  Returns:
    The rows of these images in the index, rising.
  """
  # Every process_count-th image of a list sorted by canvas makes equal shares.
  rows = np.argsort(plan.canvas_of_image, kind='stable')
  return np.sort(rows[process_index::process_count])


def _round_up(value: int, multiple: int) -> int:
  """Rounds up to the next multiple; a multiple stays as it is."""
  return -(-value // multiple) * multiple
