"""The network put to use: from a checkpoint and images to what is in them.

Also what training shares with that: the network of a recipe, its anchors,
pooling and kernels.
"""

from collections.abc import Callable, Iterable, Iterator
import functools
import pathlib
from typing import NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
import ml_collections
import numpy as np

from maskrcnn_jax import geometry
from maskrcnn_jax.array_types import Batch, Detections, Inputs
from maskrcnn_jax.config import geometry_of, stored_config
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.precedence import config_for_use
from maskrcnn_jax.config.recipe import Recipe
from maskrcnn_jax.data import canvases, coco_index
from maskrcnn_jax.detections import detect_boxes, select_masks
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.inputs import prepare_inputs
from maskrcnn_jax.kernels import Kernels, choose_kernels
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.model.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops.anchors import AnchorLevel, anchor_levels, pad_size
from maskrcnn_jax.ops.roi_align import assign_levels, roi_align
from maskrcnn_jax.proposals import make_proposals
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.precision import set_precision

# The coarsest level that RoIs are pooled from; level 6 is for the RPN alone.
MAX_ROI_LEVEL = 5


class ImageDetections(NamedTuple):
  """What was found in one image, in pixels of the image as it is on disk."""

  row: int  # of the image in its index
  boxes: Float[np.ndarray, 'd 4']
  classes: Int[np.ndarray, 'd']  # 1..k-1
  scores: Float[np.ndarray, 'd']
  masks: list[dict] | None  # compressed RLE; None of a model without masks


class Detector(NamedTuple):
  """A trained model, ready to be run."""

  detect: Callable[..., Detections]  # (variables, Batch, padded_size=)
  variables: dict
  config: ml_collections.ConfigDict  # that it was trained with
  categories: tuple[coco_index.Category, ...]
  mesh: Mesh  # of the devices of this process
  step: int


def make_model(
    config: ml_collections.ConfigDict, *, num_classes: int, dtype
) -> MaskRCNN:
  """Returns the network of a recipe for `num_classes`, background included."""
  # `backbone` is chosen here; there is no other than the ResNet yet.
  arguments = {
      name: value for name, value in config.model.items() if name != 'backbone'
  }
  return MaskRCNN(
      num_classes=num_classes,
      anchors_per_cell=len(config.anchors.sizes[0])
      * len(config.anchors.ratios),
      dtype=dtype,
      **arguments,
  )


def anchor_arguments(config: ml_collections.ConfigDict) -> dict:
  """Returns the arguments of `anchor_levels` that a recipe asks for."""
  first_level = {'fpn': 2, 'c4': 4}[config.model.body]
  return {
      'sizes': dict(
          enumerate(map(tuple, config.anchors.sizes), start=first_level)
      ),
      'ratios': tuple(config.anchors.ratios),
      'rounding': geometry_of(config).anchor_rounding,
  }


def image_anchors(
    config: ml_collections.ConfigDict,
    padded_size: tuple[int, int],
    image_size: Int[Array, '2'],
) -> tuple[tuple[AnchorLevel, ...], Int[Array, '2'] | None]:
  """Returns where the anchors of one image on its canvas are.

  Returns:
    The levels, and the `fit_to` of `make_anchors`.
  """
  shape = geometry_of(config)
  levels = anchor_levels(padded_size, **anchor_arguments(config))
  if not shape.fit_strides:
    return levels, None
  return levels, pad_size(
      image_size, padding_multiple=shape.padding_multiple
  )


def input_arguments(config: ml_collections.ConfigDict) -> dict:
  """Returns the arguments of `prepare_inputs` that a recipe asks for."""
  shape = geometry_of(config)
  mean, std = shape.input_format.rgb_255()
  return {
      'pixel_mean': mean,
      'pixel_std': std,
      'antialias': shape.input_format.antialias,
      'width_offset': shape.width_offset,
  }


def pool(
    pyramid: dict[int, Float[Array, 'b h w c']],
    boxes: Float[Array, 'b r 4'],
    *,
    side: int,
    shape: geometry.Geometry,
    kernels: str = 'xla',
    mesh: Mesh | None = None,
) -> Float[Array, 'b r {side} {side} c']:
  """Pools each image's boxes from the level that suits their size.

  Args:
    pyramid: Of a batch.
    boxes: In pixels.
    side: Cells along each side of the result.
    shape: How RoIs are measured.
    kernels: See `kernels.py`.
    mesh: Over which the images are spread; None for one device.
  """
  features = {
      level: x for level, x in pyramid.items() if level <= MAX_ROI_LEVEL
  }
  levels = assign_levels(
      boxes, min_level=min(features), max_level=max(features),
      epsilon=shape.level_epsilon, shift=shape.level_shift,
      width_offset=shape.width_offset,
  )
  pool_image = functools.partial(
      roi_align, side=side, sampling_ratio=shape.sampling_ratio,
      offset=shape.roi_offset, min_side=shape.roi_min_side, kernels=kernels,
  )
  # XLA spreads what it compiles itself; a kernel it cannot split.
  pool_batch = cluster.each_image(
      pool_image, mesh if kernels != 'xla' else None
  )
  return pool_batch(features, boxes, levels)


def kernels_of(
    config: ml_collections.ConfigDict, mesh: Mesh | None
) -> tuple[Kernels, str]:
  """Returns the implementations for a recipe on these devices, and why."""
  device = mesh.devices.flat[0] if mesh else jax.local_devices()[0]
  return choose_kernels(
      config.kernels, platform=device.platform,
      device_kind=device.device_kind, jax_version=jax.__version__,
      compute_capability=float(getattr(device, 'compute_capability', 8)),
  )


def make_detect(
    model: MaskRCNN,
    config: ml_collections.ConfigDict,
    *,
    mesh: Mesh | None = None,
) -> Callable[..., Detections]:
  """Returns the function that finds the objects in a batch of images.

  Preparing the images is compiled apart from the network, for the canvas of
  the decoded images varies more than the padded size does.

  Args:
    model: The network.
    config: The recipe that it was trained with.
    mesh: Over which the images will be spread; None for one device.

  Returns:
    `detect(variables, batch, padded_size=(height, width))`, which gives
    Detections in pixels of the resized images. Proposals are of class 1.
  """
  shape = geometry_of(config)
  output = config.model.output
  kernels, _ = kernels_of(config, mesh)
  pool_batch = functools.partial(
      pool, shape=shape, kernels=kernels.roi_align, mesh=mesh
  )

  @functools.partial(jax.jit, static_argnames='padded_size')
  def prepare(batch: Batch, padded_size) -> Inputs:
    flips = jnp.zeros(batch.images.shape[0], bool)
    return prepare_inputs(
        batch, flips, padded_size=padded_size, **input_arguments(config)
    )

  @jax.jit
  def run(variables, images, image_sizes) -> Detections:
    pyramid = model.apply(variables, images, method='extract')
    rpn = model.apply(variables, pyramid, method='propose')

    def propose(logits, deltas, size):
      levels, fit_to = image_anchors(config, images.shape[1:3], size)
      return make_proposals(
          logits, deltas, levels, size, fit_to=fit_to,
          iou_threshold=config.rpn.iou_threshold,
          delta_weights=shape.anchor_delta_weights,
          padding_multiple=shape.padding_multiple,
          min_size=shape.proposal_min_size,
          width_offset=shape.width_offset, kernels=kernels,
          **config.rpn.eval,
      )

    proposals = cluster.each_image(propose, mesh)(
        rpn.objectness_logits, rpn.anchor_deltas, image_sizes
    )
    if output == 'proposals':
      return Detections(
          proposals.boxes, proposals.valid.astype(jnp.int32),
          proposals.scores, None, proposals.valid,
      )
    pooled = pool_batch(pyramid, proposals.boxes, side=config.roi.box_side)
    heads = model.apply(variables, pooled, method='classify')
    boxes, classes, scores, valid = cluster.each_image(
        lambda logits, deltas, p, size: detect_boxes(
            logits, deltas, p, size,
            delta_weights=shape.roi_delta_weights,
            min_size=shape.detection_min_size,
            width_offset=shape.width_offset, kernels=kernels,
            **config.detections,
        ),
        mesh,
    )(heads.class_logits, heads.box_deltas, proposals, image_sizes)
    if output == 'boxes':
      return Detections(boxes, classes, scores, None, valid)
    pooled = pool_batch(pyramid, boxes, side=config.roi.mask_side)
    mask_logits = model.apply(variables, pooled, method='segment')
    masks = jax.vmap(select_masks)(mask_logits, classes)
    return Detections(boxes, classes, scores, masks, valid)

  def detect(variables, batch: Batch, *, padded_size) -> Detections:
    inputs = prepare(batch, padded_size=padded_size)
    return run(variables, inputs.images, inputs.image_sizes)

  return detect


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
    detections: Of one image, as NumPy arrays.
    image_size: (height, width) after resizing.
    row: Of the image in its index.
    original_size: (height, width) on disk.
    mask_threshold: See `paste_masks`.
    paste_rule: See `paste_masks`.
  """
  found = np.asarray(detections.valid)
  height, width = original_size
  y_scale, x_scale = height / image_size[0], width / image_size[1]
  boxes = np.asarray(detections.boxes)[found] * np.array(
      [x_scale, y_scale, x_scale, y_scale], np.float32
  )
  boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
  masks = None
  if detections.masks is not None:
    masks = paste_masks(
        np.asarray(detections.masks)[found], boxes, height=height, width=width,
        threshold=mask_threshold, rule=paste_rule,
    )
  return ImageDetections(
      row, boxes, np.asarray(detections.classes)[found],
      np.asarray(detections.scores)[found], masks,
  )


def load_detector(
    path: pathlib.Path, recipe: Recipe | None = None
) -> Detector:
  """Restores a trained model.

  Args:
    path: A workdir, its checkpoints, or one saved step.
    recipe: The recipe that the user gave; None for the stored one. See
      `config_for_use` for the values that it decides.
  """
  path = checkpoint.find_checkpoint(path)
  metadata = checkpoint.read_metadata(path)
  if metadata.is_partial:
    raise InputError(
        f'C08: {path} holds a part of a model only; train one from it with '
        '--mode=train --init_from.'
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
  dtype = set_precision(config.precision)
  model = make_model(config, num_classes=len(categories) + 1, dtype=dtype)
  shapes = jax.eval_shape(
      functools.partial(init_variables, model, config), jax.random.key(0)
  )
  target = cluster.replicated_shapes(shapes, mesh)
  variables = checkpoint.restore_model(path, target)
  logging.info('Restored step %d from %s.', metadata.step, path)
  logging.info('%s', kernels_of(config, local_mesh)[1])
  return Detector(
      make_detect(model, config, mesh=local_mesh),
      cluster.to_mesh(variables, local_mesh), config, categories, local_mesh,
      metadata.step,
  )


def init_variables(
    model: MaskRCNN, config: ml_collections.ConfigDict, key: Key[Array, '']
) -> dict:
  """Returns the network's initial params and, if it has any, constants."""
  images = jnp.zeros((1, 64, 64, 3))
  return dict(
      model.init(
          key, images, box_side=config.roi.box_side,
          mask_side=config.roi.mask_side,
      )
  )


def detect_batches(
    detector: Detector,
    batches: Iterable[tuple[Batch, np.ndarray]],
    index: coco_index.CocoIndex,
    plan: canvases.CanvasPlan,
) -> Iterator[ImageDetections]:
  """Yields the detections of each image of each batch.

  While the device works on a batch, the host pastes the masks of the one
  before it. Nothing waits for other processes.
  """
  shape = geometry_of(detector.config)

  def finish(detections, batch, rows):
    detections = jax.device_get(detections)
    for i, row in enumerate(rows):
      if batch.image_valid[i]:
        yield to_original(
            jax.tree.map(lambda field, i=i: field[i], detections),
            tuple(batch.image_sizes[i].tolist()), row=int(row),
            original_size=(int(index.heights[row]), int(index.widths[row])),
            mask_threshold=shape.mask_threshold, paste_rule=shape.paste_rule,
        )

  pending = None
  for batch, rows in batches:
    canvas = plan.canvases[plan.canvas_of_image[rows[0]]]
    detections = detector.detect(
        detector.variables, cluster.shard_batch(batch, detector.mesh),
        padded_size=canvas.padded,
    )
    if pending:
      yield from finish(*pending)
    pending = (detections, batch, rows)
  if pending:
    yield from finish(*pending)


def category_of(
    detector: Detector, class_: int | np.integer
) -> coco_index.Category:
  """Returns COCO's id and the name of a class; proposals are of 1, 'object'."""
  if detector.config.model.output == 'proposals':
    return coco_index.Category(1, 'object')
  return detector.categories[class_ - 1]


def canvas_arguments(config: ml_collections.ConfigDict) -> dict:
  """Returns the arguments of `plan_canvases` that a recipe asks for."""
  return {
      'resize_rule': geometry_of(config).input_format.resize_rule,
      'short_side': config.data.short_side,
      'long_side': config.data.long_side,
      'padded_sizes': tuple(map(tuple, config.data.padded_sizes)),
      'max_source_side': config.data.max_source_side,
  }


def to_xywh(
    box: Float[np.ndarray, '4'], *, width_offset: float = 0.0
) -> list[float]:
  """Returns COCO's (x, y, width, height)."""
  x1, y1, x2, y2 = map(float, box)
  return [x1, y1, x2 - x1 + width_offset, y2 - y1 + width_offset]
