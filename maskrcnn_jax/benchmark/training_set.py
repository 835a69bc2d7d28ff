"""The training set of a benchmark: read, filtered and planned for loading."""

from collections.abc import Generator
from typing import NamedTuple

from jaxtyping import Int
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.benchmark.recipes import complete_recipe
from maskrcnn_jax.config import (
  canvas_arguments,
  drawn_sizes,
  heads_of,
  pixel_range_of,
)
from maskrcnn_jax.data import canvases, image_sets, loader
from maskrcnn_jax.data.source import (
  DataSet,
  Source,
  check_images_exist,
  read_set,
)


class TrainingSet(NamedTuple):
  """A training set, with all that the loader needs to know."""

  config: ml_collections.ConfigDict  # the complete recipe
  data_set: DataSet
  rows: Int[np.ndarray, 'n']  # rows of the index that are trained on
  plan: canvases.CanvasPlan
  limits: GroundTruthLimits  # static sizes of the ground truth

  @property
  def num_classes(self) -> int:
    """Number of classes, background included."""
    return len(self.data_set.coco_index.categories) + 1

  @property
  def pixel_range(self) -> tuple[float, float] | None:
    """Values of images of more than 8 bits that become black and white."""
    return pixel_range_of(self.config)

  def padded_size(self, row: int) -> tuple[int, int]:
    """Returns the (height, width) to which an image is padded, in pixels.

    Args:
      row: Row of the image in the index.
    """
    return self.plan.canvases[self.plan.canvas_of_image[row]].padded

  def load(
    self,
    *,
    batch_size: int,
    num_steps: int,
    num_workers: int,
    num_threads: int,
  ) -> Generator[tuple[Batch, Int[np.ndarray, 'b']], None, None]:
    """Yields the batches of the first steps of a training, and their rows.

    Closing the generator ends its threads and worker processes.

    Args:
      batch_size: Number of images of a batch.
      num_steps: Number of batches.
      num_workers: Number of worker processes. With 0, threads of this process
        load.
      num_threads: Number of threads in each process.
    """
    return loader.train_batches(
      self.data_set,
      self.plan,
      self.rows,
      limits=self.limits,
      seed=self.config.seed,
      start_step=0,
      num_steps=num_steps,
      batch_size=batch_size,
      num_workers=num_workers,
      num_threads=num_threads,
      pixel_range=self.pixel_range,
      apply_exif=self.config.data.apply_exif,
    )


def open_training_set(
  config: ml_collections.ConfigDict, source: Source, *, option: str = '--'
) -> TrainingSet:
  """Reads and checks the annotations of a data set, and plans its canvases.

  Args:
    config: The recipe. If it is the recipe of a fine-tuning, the keys that it
      leaves open are filled in.
    source: The data set.
    option: Prefix of the option names in messages, such as
      '--config.data.train.'; '--' if --images and --annotations give the data
      set.

  Raises:
    InputError: If the data set does not exist or is damaged.
  """
  source.check_is_there(option)
  data_set = read_set(source, require_masks=heads_of(config).masks)
  check_images_exist(data_set)
  index = data_set.coco_index
  rows, _ = image_sets.filter_images(index, keep_empty=config.data.keep_empty)
  config = complete_recipe(
    config,
    num_images=len(rows),
    most_objects=image_sets.most_objects(index),
  )
  return TrainingSet(
    config,
    data_set,
    rows,
    canvases.plan_canvases(
      index.heights,
      index.widths,
      **canvas_arguments(config),
      **drawn_sizes(config),
    ),
    image_sets.find_limits(index, max_objects=config.data.max_objects),
  )
