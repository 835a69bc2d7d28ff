"""The work that a training will do: recipe, data set and sizes of images."""

from collections.abc import Callable
import contextlib
from typing import NamedTuple

import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.benchmark.made_up_batch import made_up_batch
from maskrcnn_jax.benchmark.recipes import complete_recipe
from maskrcnn_jax.config import (
  canvas_arguments,
  drawn_sizes,
  pixel_range_of,
  scaled_to_batch,
  source_of,
)
from maskrcnn_jax.data import canvases, image_sets, loader
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training.checks import read_training_set

# Number of objects of a made-up image, unless the recipe has fewer slots.
_NUM_OBJECTS = 8

# Number of classes without a data set, background included: those of COCO.
_NUM_CLASSES = 81


class ImageSize(NamedTuple):
  """A canvas, and how much of the training uses it."""

  canvas: canvases.Canvas
  share: float  # of the steps, in (0, 1]


class Work(NamedTuple):
  """A training that has not begun."""

  config: ml_collections.ConfigDict  # the complete recipe
  num_classes: int  # background included
  sizes: tuple[ImageSize, ...]  # those with the most pixels first
  limits: GroundTruthLimits  # static sizes of the ground truth
  # Loads a batch of images that have a canvas, or makes one up. The integer is
  # the number of images.
  load: Callable[[canvases.Canvas, int], Batch]
  num_images: int | None  # number of images to train on; None without data
  remarks: tuple[str, ...]  # lines about values that were computed


def read_work(
  config: ml_collections.ConfigDict,
  given_keys: frozenset[str],
  *,
  data_may_be_missing: bool = False,
) -> Work:
  """Reads the training set, if there is one, and completes the recipe.

  Args:
    config: The recipe. Without a training set, the images are made up: of the
      largest padded size of the recipe, with 80 classes and 8 objects each.
    given_keys: Keys of the recipe that the command line gave.
    data_may_be_missing: Whether images are made up, with a remark, if the
      training set of a recipe is not on this machine. It must be there if the
      command line gave it.

  Raises:
    InputError: If the data set is missing or has errors.
  """
  config, remarks = scaled_to_batch(config, given_keys)
  source = source_of(config, 'train')
  if source is None:
    return _made_up_work(config, remarks)
  if data_may_be_missing and not any(
    key.startswith('data.train.') for key in given_keys
  ):
    try:
      source.check_is_there('--config.data.train.')
    except InputError:
      remarks.append(
        f'The training set of the recipe, {source}, is not here. The plan is '
        f'for made-up images with {_NUM_OBJECTS} objects of '
        f'{_NUM_CLASSES - 1} classes.'
      )
      return _made_up_work(config, remarks)
  data_set, rows = read_training_set(config)
  index = data_set.coco_index
  config = complete_recipe(
    config, num_images=len(rows), most_objects=image_sets.most_objects(index)
  )
  plan = canvases.plan_canvases(
    index.heights,
    index.widths,
    **canvas_arguments(config),
    **drawn_sizes(config),
  )
  limits = image_sets.find_limits(index, max_objects=config.data.max_objects)
  of_row = plan.canvas_of_image[rows]

  def load(canvas: canvases.Canvas, batch_size: int) -> Batch:
    """Loads a batch of images that have a canvas, as a training does."""
    batches = loader.train_batches(
      data_set,
      plan,
      rows[of_row == plan.canvases.index(canvas)],
      limits=limits,
      seed=config.seed,
      start_step=0,
      num_steps=1,
      batch_size=batch_size,
      num_threads=config.data.num_threads,
      pixel_range=pixel_range_of(config),
      apply_exif=config.data.apply_exif,
    )
    with contextlib.closing(batches):
      return next(batches)[0]

  sizes = [
    ImageSize(canvas, float(np.mean(of_row == number)))
    for number, canvas in enumerate(plan.canvases)
    if np.any(of_row == number)
  ]
  return Work(
    config,
    len(index.categories) + 1,
    tuple(sorted(sizes, key=_pixels, reverse=True)),
    limits,
    load,
    len(rows),
    tuple(remarks),
  )


def _made_up_work(
  config: ml_collections.ConfigDict, remarks: list[str]
) -> Work:
  """Returns a training on made-up images; see `read_work`.

  Args:
    config: The recipe, scaled to its batch size.
    remarks: Lines about the values that were scaled.
  """
  config = complete_recipe(config, num_images=1000, most_objects=_NUM_OBJECTS)
  padded = max(config.data.padded_sizes, key=lambda size: size[0] * size[1])
  canvas = canvases.Canvas(tuple(padded), tuple(padded))

  def load(canvas: canvases.Canvas, batch_size: int) -> Batch:
    """Returns a batch of made-up images that have the size of a canvas."""
    return made_up_batch(
      image_size=canvas.padded,
      batch_size=batch_size,
      num_objects=min(_NUM_OBJECTS, config.data.max_objects),
      max_objects=config.data.max_objects,
      num_classes=_NUM_CLASSES,
    )

  return Work(
    config,
    _NUM_CLASSES,
    (ImageSize(canvas, 1.0),),
    GroundTruthLimits(config.data.max_objects, 512, 64, 1),
    load,
    None,
    tuple(remarks),
  )


def _pixels(size: ImageSize) -> int:
  """Returns the number of pixels of the padded images of a canvas."""
  height, width = size.canvas.padded
  return height * width
