"""Loads a trained model from a checkpoint and detects objects with it."""

from collections.abc import Iterable, Iterator
import functools
import pathlib
from typing import NamedTuple

from absl import logging
import jax
from jax.sharding import Mesh
from jaxtyping import Float, Int
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Detections, Inputs
from maskrcnn_jax.config import (
  Heads,
  stored_config,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.precedence import config_for_use
from maskrcnn_jax.config.recipe import Recipe
from maskrcnn_jax.data import canvases, coco_index
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.precision import set_precision


class ImageDetections(NamedTuple):
  """The detections of one image, in pixels of the image as it is on disk."""

  row: int  # position of the image in the index of its data set
  boxes: Float[np.ndarray, 'd 4']
  classes: Int[np.ndarray, 'd']  # 1..k-1
  scores: Float[np.ndarray, 'd']
  masks: list[dict] | None  # compressed RLE; None if there is no mask head


class Detector(NamedTuple):
  """A trained model with its recipe and its classes."""

  rcnn: Rcnn  # on the devices of this process
  variables: dict  # parameters and constants, replicated over these devices
  config: ml_collections.ConfigDict  # the recipe of this evaluation
  categories: tuple[coco_index.Category, ...]  # class number = position + 1
  step: int  # number of steps that the model was trained for

  @property
  def mesh(self) -> Mesh:
    """The devices that the images of a batch are spread over."""
    return self.rcnn.mesh

  def detect(self, batch: Batch, *, padded_size: tuple[int, int]) -> Detections:
    """Finds the objects in a batch of images.

    The preparation of the images is compiled separately from the network,
    because the size of the decoded images varies more than the padded size.

    Args:
      batch: Decoded images, as the host makes them. They may be on the host or
        on the devices of the mesh.
      padded_size: (height, width) of the padded images, in pixels.

    Returns:
      Detections in pixels of the resized images, best first.
    """
    inputs = _prepare(self.rcnn, batch, padded_size=padded_size)
    return _detect(self.rcnn, self.variables, inputs.images, inputs.image_sizes)


@functools.partial(jax.jit, static_argnames=('rcnn', 'padded_size'))
def _prepare(rcnn: Rcnn, batch: Batch, padded_size: tuple[int, int]) -> Inputs:
  """Calls `Rcnn.prepare`, jitted."""
  return rcnn.prepare(batch, padded_size=padded_size)


@functools.partial(jax.jit, static_argnames='rcnn')
def _detect(rcnn: Rcnn, variables: dict, images, image_sizes) -> Detections:
  """Calls `Rcnn.detect`, jitted."""
  return rcnn.detect(variables, images, image_sizes)


def to_original(
  detections: Detections,
  image_size: tuple[int, int],
  *,
  row: int,
  original_size: tuple[int, int],
  mask_threshold: float,
  paste_rule: str = 'sampled',
) -> ImageDetections:
  """Maps one image's detections to the pixels of the image on disk.

  Args:
    detections: Detections of the image, as NumPy arrays.
    image_size: (height, width) of the image after resizing, in pixels.
    row: Position of the image in the index of its data set.
    original_size: (height, width) of the image on disk, in pixels.
    mask_threshold: Probability from which a pixel belongs to the object: see
      `paste_masks`.
    paste_rule: How masks are pasted into the image, 'sampled' or 'resized': see
      `paste_masks`.
  """
  valid = np.asarray(detections.valid)
  height, width = original_size
  y_scale, x_scale = height / image_size[0], width / image_size[1]
  boxes = np.asarray(detections.boxes)[valid] * np.array(
    [x_scale, y_scale, x_scale, y_scale], np.float32
  )
  boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
  masks = None
  if detections.masks is not None:
    masks = paste_masks(
      np.asarray(detections.masks)[valid],
      boxes,
      height=height,
      width=width,
      threshold=mask_threshold,
      rule=paste_rule,
    )
  return ImageDetections(
    row,
    boxes,
    np.asarray(detections.classes)[valid],
    np.asarray(detections.scores)[valid],
    masks,
  )


def load_detector(path: pathlib.Path, recipe: Recipe | None = None) -> Detector:
  """Restores a trained model.

  Args:
    path: A workdir, its folder of checkpoints, or the folder of one step.
    recipe: The recipe that the user gave. It decides only some of the values:
      see `config_for_use`. None uses the recipe stored in the checkpoint.

  Raises:
    InputError: If the checkpoint holds only a part of a model, or does not fit
      the recipe.
  """
  path = checkpoint.find_checkpoint(path)
  metadata = checkpoint.read_metadata(path)
  if metadata.is_partial:
    raise InputError(
      f'C08: {path} holds only a part of a model. Train a model from it '
      f'with --mode=train --init_from={path}.'
    )
  config, lines = stored_config(metadata.recipe), []
  if recipe is not None:
    config, lines = config_for_use(recipe, metadata.recipe)
  check_config(config, for_training=False)
  for line in lines:
    logging.info('%s', line)
  mesh = cluster.make_mesh()
  local_mesh = cluster.make_local_mesh()
  categories = tuple(coco_index.Category(*pair) for pair in metadata.categories)
  rcnn = Rcnn.from_config(
    config,
    num_classes=len(categories) + 1,
    dtype=set_precision(config.precision),
    mesh=local_mesh,
  )
  shapes = jax.eval_shape(rcnn.init, jax.random.key(0))
  target = cluster.replicated_shapes(shapes, mesh)
  variables = checkpoint.restore_model(path, target)
  logging.info('Restored step %d from %s.', metadata.step, path)
  logging.info('%s', rcnn.kernel_choice)
  return Detector(
    rcnn,
    cluster.to_mesh(variables, local_mesh),
    config,
    categories,
    metadata.step,
  )


def proposals_only(detector: Detector) -> Detector:
  """Returns the same model without heads; its detections are proposals."""
  return detector._replace(
    rcnn=detector.rcnn._replace(heads=Heads(boxes=False, masks=False))
  )


def detect_batches(
  detector: Detector,
  batches: Iterable[tuple[Batch, np.ndarray]],
  index: coco_index.CocoIndex,
  plan: canvases.CanvasPlan,
) -> Iterator[ImageDetections]:
  """Yields the detections of each image of each batch.

  While the device processes a batch, the host pastes the masks of the previous
  batch. The processes of a cluster do not wait for each other.

  Args:
    detector: The model.
    batches: Batches with the rows of their images in the index. All images of a
      batch have the same canvas.
    index: The data set, which gives the original size of each image.
    plan: The canvas of each image of the data set. A canvas is the static
      padded size that images are put on.
  """
  conventions = detector.rcnn.geometry

  def finish(detections, batch, rows):
    detections = jax.device_get(detections)
    for i, row in enumerate(rows):
      if batch.image_valid[i]:
        yield to_original(
          jax.tree.map(lambda field, i=i: field[i], detections),
          tuple(batch.image_sizes[i].tolist()),
          row=int(row),
          original_size=(int(index.heights[row]), int(index.widths[row])),
          mask_threshold=conventions.mask_threshold,
          paste_rule=conventions.paste_rule,
        )

  pending = None
  for batch, rows in batches:
    canvas = plan.canvases[plan.canvas_of_image[rows[0]]]
    detections = detector.detect(
      cluster.shard_batch(batch, detector.mesh), padded_size=canvas.padded
    )
    if pending:
      yield from finish(*pending)
    pending = (detections, batch, rows)
  if pending:
    yield from finish(*pending)


def category_of(
  detector: Detector, class_: int | np.integer
) -> coco_index.Category:
  """Returns COCO's id and the name of a class.

  If the model has no box head, its detections are proposals, and each of them
  is an 'object' with the id 1.

  Args:
    detector: The model.
    class_: Class number of the detection, 1 to k - 1.
  """
  if not detector.rcnn.heads.boxes:
    return coco_index.Category(1, 'object')
  return detector.categories[class_ - 1]


def to_xywh(
  box: Float[np.ndarray, '4'], *, width_offset: float = 0.0
) -> list[float]:
  """Converts a box to (x, y, width, height), as in COCO's files.

  Args:
    box: (x1, y1, x2, y2) in pixels.
    width_offset: Pixels by which a box is wider than x2 - x1: see
      `ops/boxes.py`.
  """
  x1, y1, x2, y2 = map(float, box)
  return [x1, y1, x2 - x1 + width_offset, y2 - y1 + width_offset]
