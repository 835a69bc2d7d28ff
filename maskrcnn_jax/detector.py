"""Loads a trained model from a checkpoint and detects objects with it."""

import collections
from collections.abc import Iterable, Iterator
import concurrent.futures
import functools
import pathlib
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, Detections, Inputs
from maskrcnn_jax.config import (
  Heads,
  compilation_facts,
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
from maskrcnn_jax.runtime.compilation import compiling
from maskrcnn_jax.runtime.precision import choose_precision, set_precision
from maskrcnn_jax.runtime.status_line import waiting

# The programs that this process has compiled: the network, the shape of the
# decoded images and the padded size.
_compiled: set[tuple[Rcnn, tuple[int, ...], tuple[int, int]]] = set()


class ImageDetections(NamedTuple):
  """The detections of one image, in pixels of the image as it is on disk."""

  row: int  # position of the image in its data set, from 0
  boxes: Float[np.ndarray, 'd 4']
  classes: Int[np.ndarray, 'd']  # 1..k-1
  scores: Float[np.ndarray, 'd']
  # Compressed COCO RLE of each mask. None if the model has no mask head.
  masks: list[dict[str, Any]] | None
  # Probability that a cell of the box belongs to the object. None if the model
  # has no mask head.
  cells: Float[np.ndarray, 'd m m'] | None


class Detector(NamedTuple):
  """A trained model with its recipe and its classes."""

  rcnn: Rcnn  # the network; its mesh has the devices of this process
  variables: dict[str, Any]  # parameters and constants, on each of the devices
  config: ml_collections.ConfigDict  # the recipe that the model is used with
  categories: tuple[coco_index.Category, ...]  # class number = position + 1
  step: int  # number of training steps after which the weights were saved

  @property
  def mesh(self) -> Mesh:
    """The devices that the images of a batch are spread over."""
    assert self.rcnn.mesh is not None  # `load_detector` gives it one.
    return self.rcnn.mesh

  def detect(self, batch: Batch, *, padded_size: tuple[int, int]) -> Detections:
    """Finds the objects in a batch of images.

    The preparation of the images is compiled separately from the network,
    because the size of the decoded images varies more than the padded size.
    The first call for a size compiles both, and announces that.

    Args:
      batch: Decoded images; their ground truth is not used. The arrays may be
        on the host or on the devices of the mesh.
      padded_size: (height, width) of the padded images, in pixels.

    Returns:
      The detections of each image, in pixels of the resized image, the highest
      score first.
    """
    key = (self.rcnn, tuple(batch.images.shape), padded_size)
    if key in _compiled:
      return self._detect(batch, padded_size)
    kind, program = compilation_facts(self.config, for_training=False)
    # The programs with and without heads, of `proposals_only`, differ.
    heads = list(self.rcnn.heads)
    with compiling(
      'detector',
      padded_size,
      kind=[kind, heads],
      program=[program, heads, list(batch.images.shape)],
    ):
      detections = self._detect(batch, padded_size)
    _compiled.add(key)
    return detections

  def lower(
    self, batch: Batch, *, padded_size: tuple[int, int]
  ) -> tuple[jax.stages.Lowered, jax.stages.Lowered]:
    """Returns the two programs of `detect` for the shapes of a batch.

    Args:
      batch: Decoded images, on the devices of the mesh.
      padded_size: (height, width) of the padded images, in pixels.

    Returns:
      The preparation of the images, and the network. If `detect` was called for
      these shapes before, `compile` of both takes no time.
    """
    inputs = _prepare(self.rcnn, batch, padded_size=padded_size)
    return (
      _prepare.lower(self.rcnn, batch, padded_size=padded_size),
      _detect.lower(
        self.rcnn, self.variables, inputs.images, inputs.image_sizes
      ),
    )

  def _detect(self, batch: Batch, padded_size: tuple[int, int]) -> Detections:
    """Does the work of `detect`; has the same arguments and result."""
    inputs = _prepare(self.rcnn, batch, padded_size=padded_size)
    return _detect(self.rcnn, self.variables, inputs.images, inputs.image_sizes)


@functools.partial(jax.jit, static_argnames=('rcnn', 'padded_size'))
def _prepare(rcnn: Rcnn, batch: Batch, padded_size: tuple[int, int]) -> Inputs:
  """Resizes, normalises and pads the images of a batch; compiled by `jit`.

  Args:
    rcnn: The network, whose recipe decides the sizes and the normalisation.
    batch: Decoded images.
    padded_size: (height, width) of the padded images, in pixels.
  """
  return rcnn.prepare(batch, padded_size=padded_size)


@functools.partial(jax.jit, static_argnames='rcnn')
def _detect(
  rcnn: Rcnn,
  variables: dict[str, Any],
  images: Float[Array, 'b h w 3'],
  image_sizes: Int[Array, 'b 2'],
) -> Detections:
  """Finds the objects in prepared images; compiled by `jit`.

  Args:
    rcnn: The network.
    variables: Parameters and constants of the network.
    images: Normalised and padded images.
    image_sizes: (height, width) of the images before padding, in pixels.
  """
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
  """Converts the detections of one image to pixels of the image on disk.

  Padding slots are dropped, boxes are scaled and clipped to the image, and the
  masks, which have a fixed size, are pasted into the image.

  Args:
    detections: Detections of the image, as NumPy arrays without batch axis.
    image_size: (height, width) of the image after resizing, in pixels.
    row: Position of the image in its data set, from 0.
    original_size: (height, width) of the image on disk, in pixels.
    mask_threshold: A pixel belongs to the object if its probability is at least
      this value; [0, 1].
    paste_rule: 'sampled' or 'resized', the two ways of `paste_masks` to enlarge
      a mask to the size of its box.
  """
  valid = np.asarray(detections.valid)
  height, width = original_size
  y_scale, x_scale = height / image_size[0], width / image_size[1]
  boxes = np.asarray(detections.boxes)[valid] * np.array(
    [x_scale, y_scale, x_scale, y_scale], np.float32
  )
  boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
  masks = cells = None
  if detections.masks is not None:
    cells = np.asarray(detections.masks)[valid]
    masks = paste_masks(
      cells,
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
    cells,
  )


def load_detector(path: pathlib.Path, recipe: Recipe | None = None) -> Detector:
  """Loads a trained model from a checkpoint onto the devices.

  Args:
    path: A workdir, its folder of checkpoints, or the folder of one step.
    recipe: The recipe that the user gave. It decides only some of the values:
      see `config_for_use`. `None` uses the recipe stored in the checkpoint.

  Raises:
    InputError: If there is no checkpoint, if it is damaged, holds only a part
      of a model, has weights that are not finite or does not fit the recipe, or
      if the recipe is wrong.
  """
  path = checkpoint.find_checkpoint(path)
  metadata = checkpoint.read_metadata(path)
  if metadata.is_partial:
    raise InputError(
      f'C08: {path} holds only a part of a model. Train a model from it '
      f'with --mode=train --init_from={path}.'
    )
  config = stored_config(metadata.recipe)
  ignored: list[str] = []
  if recipe is not None:
    config, ignored = config_for_use(recipe, metadata.recipe)
  check_config(config, for_training=False)
  for line in ignored:
    logging.info('%s', line)
  config.precision = choose_precision(config.precision)
  mesh = cluster.make_mesh()
  local_mesh = cluster.make_local_mesh()
  categories = tuple(coco_index.Category(*pair) for pair in metadata.categories)
  rcnn = Rcnn.from_config(
    config,
    num_classes=len(categories) + 1,
    dtype=set_precision(config.precision),
    mesh=local_mesh,
  )
  with waiting('Loading the checkpoint'):
    shapes = jax.eval_shape(rcnn.init, jax.random.key(0))
    target = cluster.replicated_shapes(shapes, mesh)
    variables = checkpoint.restore_model(path, target)
    checkpoint.check_finite(path, variables)
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
  """Returns the same model without box and mask head.

  The detections of that model are the proposals of the RPN.
  """
  return detector._replace(
    rcnn=detector.rcnn._replace(heads=Heads(boxes=False, masks=False))
  )


def detect_batches(
  detector: Detector,
  batches: Iterable[tuple[Batch, np.ndarray]],
  index: coco_index.CocoIndex,
  plan: canvases.CanvasPlan,
  *,
  num_threads: int = 2,
) -> Iterator[ImageDetections]:
  """Yields the detections of each image, batch after batch.

  While the device processes a batch, threads of the host paste the masks of
  the batches before. If several processes run this function, each has batches
  of its own, and they do not wait for each other.

  Args:
    detector: The model.
    batches: (batch, rows) pairs. `rows` are the positions in the data set of
      the images of the batch. All images of a batch have the same canvas, and
      the first is not padding. Images that are padding, where `image_valid` is
      False, are skipped.
    index: The data set, which gives the size of each image on disk.
    plan: The canvas of each image of the data set. A canvas is the static
      padded size that images are put on.
    num_threads: Number of threads that paste masks.
  """
  conventions = detector.rcnn.geometry
  pasting: collections.deque[concurrent.futures.Future[ImageDetections]] = (
    collections.deque()
  )

  def finish(
    threads: concurrent.futures.Executor,
    detections: Detections,
    batch: Batch,
    rows: Int[np.ndarray, 'b'],
  ) -> None:
    """Waits for the detections of a batch; has the masks pasted in threads."""
    detections = jax.device_get(detections)
    for i, row in enumerate(rows):
      if batch.image_valid[i]:
        future = threads.submit(
          to_original,
          jax.tree.map(lambda field, i=i: field[i], detections),
          tuple(batch.image_sizes[i].tolist()),
          row=int(row),
          original_size=(int(index.heights[row]), int(index.widths[row])),
          mask_threshold=conventions.mask_threshold,
          paste_rule=conventions.paste_rule,
        )
        pasting.append(future)

  def pasted(most_left: int) -> Iterator[ImageDetections]:
    """Yields pasted images in order until at most so many are left."""
    while pasting and (len(pasting) > most_left or pasting[0].done()):
      yield pasting.popleft().result()

  pending = None
  with concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
    for batch, rows in batches:
      canvas = plan.canvases[plan.canvas_of_image[rows[0]]]
      detections = detector.detect(
        cluster.shard_batch(batch, detector.mesh), padded_size=canvas.padded
      )
      if pending:
        finish(threads, *pending)
      pending = (detections, batch, rows)
      # The device has the next batch already.
      yield from pasted(most_left=len(rows) + num_threads)
    if pending:
      finish(threads, *pending)
    yield from pasted(most_left=0)


def category_of(
  detector: Detector, class_: int | np.integer
) -> coco_index.Category:
  """Returns the category of a class: its id in COCO files and its name.

  If the model has no box head, its detections are proposals; every proposal has
  the category 'object' with the id 1.

  Args:
    detector: The model.
    class_: Class number of a detection, 1 to k - 1, where k is the number of
      classes including background.
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
    width_offset: Number of pixels that are added to x2 - x1 and y2 - y1: 1 in
      the old convention in which x2 and y2 are the last pixels inside the box,
      otherwise 0.

  Returns:
    The corner and the size. No side is negative: in the old convention, x2 may
    be up to 1 below x1 in a thin box, and more in an image that was shrunk for
    the model, because x2 - x1 is enlarged with the box. The side is then 0.
  """
  x1, y1, x2, y2 = map(float, box)
  return [
    x1,
    y1,
    max(x2 - x1 + width_offset, 0.0),
    max(y2 - y1 + width_offset, 0.0),
  ]
