"""Chooses the images and objects to train on, and finds the static sizes."""

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.array_types import GroundTruthLimits
from maskrcnn_jax.data import coco_index

# Share of all objects that may be left out because of `max_objects`. More are
# an error.
_MAX_LOST = 0.05

# Smallest static size of a buffer of vertices. All sizes are powers of two.
_MIN_VERTICES = 64

# Static sizes for batches without ground truth.
NO_TRUTH = GroundTruthLimits(
  max_objects=1,
  max_image_vertices=_MIN_VERTICES,
  max_object_vertices=_MIN_VERTICES,
  max_parts=1,
)


def filter_images(
  index: coco_index.CocoIndex, *, keep_empty: bool
) -> tuple[Int[np.ndarray, 'n'], list[tuple[str, int]]]:
  """Chooses the images to train on.

  Args:
    index: The training data.
    keep_empty: Whether to train on images without objects, or with crowd
      regions only. The whole of such an image is background.

  Returns:
    The rows of the images to train on, rising; and a table of (description,
    count) for `format_waterfall`: the numbers of images and of objects in the
    file, left out for each reason, and trained on.

  Raises:
    InputError: If there is no object to train on.
  """
  per_image = _objects_per_image(index)
  empty = per_image == 0
  rows = np.flatnonzero(~empty | keep_empty)
  lost = {
    reason: count
    for reason, count in index.dropped.items()
    if reason != coco_index.BAD_POLYGON
  }
  num_objects = len(index.classes) + sum(lost.values())
  fate = 'kept as background' if keep_empty else 'left out'
  waterfall = [
    ('images in the file', len(per_image)),
    (f'images without objects, {fate}', int(empty.sum())),
    ('images trained on', len(rows)),
    ('objects in the file', num_objects),
    *index.dropped.items(),
    ('crowd regions, not trained on', int(index.crowd.sum())),
    ('objects trained on', int(per_image.sum())),
  ]
  if not per_image.sum():
    steps = '; '.join(f'{count} {what}' for what, count in waterfall)
    raise errors.InputError(f'A23: nothing to train on: {steps}.')
  return rows, waterfall


def format_waterfall(waterfall: list[tuple[str, int]]) -> str:
  """Formats the counts of chosen images and objects as a table for the log.

  Args:
    waterfall: (description, count) of each line, as `filter_images` returns
      them.
  """
  return '\n'.join(f'{count:>9,} {what}' for what, count in waterfall)


def count_objects_over(index: coco_index.CocoIndex, max_objects: int) -> int:
  """Returns how many objects a limit per image leaves out of training.

  If an image has more than `max_objects` objects, the objects with the smallest
  areas are left out. They are added up over all images. Crowd regions are not
  counted.

  Args:
    index: The data set.
    max_objects: Largest number of objects of an image that are trained on.
  """
  return int(np.maximum(_objects_per_image(index) - max_objects, 0).sum())


def most_objects(index: coco_index.CocoIndex) -> int:
  """Returns the largest number of objects of an image; crowds do not count."""
  return int(_objects_per_image(index).max(initial=0))


def find_limits(
  index: coco_index.CocoIndex, *, max_objects: int
) -> GroundTruthLimits:
  """Finds the static sizes that hold the ground truth of every image.

  Args:
    index: The training data.
    max_objects: Largest number of objects of an image. If an image has more,
      only the objects with the largest areas are trained on.

  Raises:
    InputError: If more than 5 % of all objects, without crowd regions, would be
      left out.
  """
  per_image = _objects_per_image(index)
  lost = count_objects_over(index, max_objects)
  if lost > _MAX_LOST * per_image.sum():
    raise errors.InputError(
      f'A24: with max_objects={max_objects}, {lost} of {per_image.sum()}'
      ' objects would not be trained on; set it to'
      f' {per_image.max()} to train on all objects.'
    )
  kept = ~index.crowd
  for row in np.flatnonzero(per_image > max_objects):
    kept[index.object_starts[row] : index.object_starts[row + 1]] = False
    kept[training_objects(index, int(row), max_objects)] = True
  lengths = np.where(kept, np.diff(index.outline_starts), 0)
  total = np.concatenate([[0], np.cumsum(lengths)])
  of_image = np.diff(total[index.object_starts])
  return GroundTruthLimits(
    max_objects=max_objects,
    max_image_vertices=_power_of_two(int(of_image.max(initial=0))),
    max_object_vertices=_power_of_two(int(lengths.max(initial=0))),
    max_parts=int(index.parts.max(initial=0)) + 1,
  )


def training_objects(
  index: coco_index.CocoIndex, row: int, max_objects: int
) -> np.ndarray:
  """Returns the objects of an image to train on, in the order of the file.

  Crowd regions are left out.

  Args:
    index: The training data.
    row: Row of the image in the index.
    max_objects: Largest number of objects; the objects with the largest areas
      are chosen.

  Returns:
    Numbers of objects in the index, rising.
  """
  start, end = index.object_starts[row : row + 2]
  objects = start + np.flatnonzero(~index.crowd[start:end])
  largest = np.argsort(-index.areas[objects], kind='stable')[:max_objects]
  return np.sort(objects[largest])


def _objects_per_image(index: coco_index.CocoIndex) -> np.ndarray:
  """Returns the number of objects of each image, without crowd regions."""
  before = np.concatenate([[0], np.cumsum(~index.crowd)])
  return np.diff(before[index.object_starts])


def _power_of_two(value: int) -> int:
  """Rounds a number of vertices up to a power of two, at least 64."""
  return max(1 << max(value - 1, 0).bit_length(), _MIN_VERTICES)
