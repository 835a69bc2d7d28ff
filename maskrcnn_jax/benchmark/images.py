"""The images that a benchmark of the device works on: made up, or of a set."""

import math
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.benchmark.recipes import complete_recipe
from maskrcnn_jax.benchmark.training_set import TrainingSet, open_training_set
from maskrcnn_jax.data import loader
from maskrcnn_jax.data.source import Source
from maskrcnn_jax.errors import InputError

# Largest number of different batches of a data set that are timed. They stay on
# the device, so that nothing is sent to it while it is timed.
MAX_BATCHES = 8


class TimedBatch(NamedTuple):
  """A batch of images and the size that they are padded to."""

  batch: Batch  # NumPy arrays
  padded_size: tuple[int, int]  # (height, width) in pixels


class Images(NamedTuple):
  """The batches of a benchmark, and the facts that the program depends on."""

  config: ml_collections.ConfigDict  # the complete recipe
  num_classes: int  # number of classes, background included
  limits: GroundTruthLimits  # static sizes of the ground truth
  batches: list[TimedBatch]  # at least one; steps take them in turn
  description: str  # for the figures
  training_set: TrainingSet | None  # None if the images are made up


def make_up(
  config: ml_collections.ConfigDict,
  *,
  image_size: tuple[int, int],
  batch_size: int,
  num_objects: int,
  num_classes: int,
) -> Images:
  """Makes up a batch of noise images with ellipses as objects.

  Args:
    config: The recipe.
    image_size: (height, width) in pixels, before and after resizing; padded to
      multiples of 32.
    batch_size: Number of images.
    num_objects: Number of objects in each image.
    num_classes: Number of classes, background included.

  Raises:
    InputError: If a number is out of its range.
  """
  config = complete_recipe(
    config, num_images=max(batch_size, 1), most_objects=num_objects
  )
  check_numbers(
    ('batch_size', batch_size, 1, math.inf),
    ('objects', num_objects, 0, config.data.max_objects),
    ('classes', num_classes - 1, 1, math.inf),
  )
  batch = made_up_batch(
    image_size=image_size,
    batch_size=batch_size,
    num_objects=num_objects,
    max_objects=config.data.max_objects,
    num_classes=num_classes,
  )
  height, width = (math.ceil(side / 32) * 32 for side in image_size)
  return Images(
    config,
    num_classes,
    GroundTruthLimits(config.data.max_objects, 512, 64, 1),
    [TimedBatch(batch, (height, width))],
    f'made-up images of {image_size[0]}x{image_size[1]}',
    None,
  )


def read_images(
  config: ml_collections.ConfigDict,
  source: Source,
  *,
  option: str,
  batch_size: int,
  num_batches: int,
  with_loader: bool,
) -> Images:
  """Reads images of a data set, as a training does.

  Args:
    config: The recipe.
    source: The data set.
    option: Prefix of the option names in messages; see `open_training_set`.
    batch_size: Number of images of a batch.
    num_batches: Number of batches to read. They are the first of a training
      with this recipe.
    with_loader: Whether the batches will come from the loader while they are
      timed. Then a batch of each padded size of the set is read instead, to
      compile the program for this size.

  Raises:
    InputError: If a number is out of its range, or if the data set does not
      exist or is damaged.
  """
  check_numbers(('batch_size', batch_size, 1, math.inf))
  data = open_training_set(config, source, option=option)
  if with_loader:
    batches = _batch_of_each_size(data, batch_size)
  else:
    batches = [
      TimedBatch(batch, data.padded_size(int(rows[0])))
      for batch, rows in data.load(
        batch_size=batch_size,
        num_steps=num_batches,
        num_workers=0,
        num_threads=data.config.data.num_threads,
      )
    ]
  return Images(
    data.config,
    data.num_classes,
    data.limits,
    batches,
    f'images of {source}',
    data,
  )


def check_numbers(
  *numbers: tuple[str, float | int, float | int, float | int],
) -> None:
  """Checks numbers of the command line.

  Args:
    *numbers: (name of the option, value, smallest legal value, largest legal
      value, which may be `math.inf`).

  Raises:
    InputError: If a value is out of its range.
  """
  for name, value, least, most in numbers:
    if not least <= value <= most:
      raise InputError(
        f'--{name}={value} must be '
        + (
          f'from {least} to {most}.' if most < math.inf else f'{least} or more.'
        )
      )


def _batch_of_each_size(data: TrainingSet, batch_size: int) -> list[TimedBatch]:
  """Loads a batch of each padded size; small sets repeat their images."""
  batches = []
  canvas_of_row = data.plan.canvas_of_image[data.rows]
  for canvas in np.unique(canvas_of_row):
    rows = np.resize(data.rows[canvas_of_row == canvas], batch_size)
    images = [
      loader.load_row(
        data.data_set,
        data.plan,
        int(row),
        data.limits,
        apply_exif=data.config.data.apply_exif,
        pixel_range=data.pixel_range,
      )
      for row in rows
    ]
    batch = jax.tree.map(lambda *parts: np.concatenate(parts), *images)
    batches.append(TimedBatch(batch, data.padded_size(int(rows[0]))))
  return batches
