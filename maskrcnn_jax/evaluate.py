"""Evaluation: detections of every image of a set, and their AP."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import functools
import json
import pathlib
import tempfile
import time
import types
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key
import ml_collections
import numpy as np

from maskrcnn_jax import (
    checkpoint,
    cluster,
    fine_tuning,
    geometry,
    watchdog,
)
from maskrcnn_jax.array_types import Batch, Detections, Inputs
from maskrcnn_jax.average_precision import (
  ApResult,
  check_backend,
  check_truth,
  evaluate_detections,
  format_table,
)
from maskrcnn_jax.average_recall import (
  RecallResult,
  evaluate_proposals,
  format_recalls,
)
from maskrcnn_jax.config import (
    check_config,
    config_difference,
    geometry_of,
    pixel_range_of,
    plain,
    stored_config,
)
from maskrcnn_jax.data import canvases, coco, coco_index, image_sets, loader
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.detections import detect_boxes, select_masks
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.inputs import prepare_inputs
from maskrcnn_jax.kernels import Kernels, choose_kernels
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.model.mask_rcnn import MaskRCNN
from maskrcnn_jax.ops.anchors import AnchorLevel, anchor_levels, pad_size
from maskrcnn_jax.ops.roi_align import assign_levels, roi_align
from maskrcnn_jax.precision import set_precision
from maskrcnn_jax.proposals import make_proposals
from maskrcnn_jax.training_log import progress

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
  return MaskRCNN(
      num_classes=num_classes,
      anchors_per_cell=len(config.anchors.sizes[0])
      * len(config.anchors.ratios),
      dtype=dtype,
      **config.model,
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
    path: pathlib.Path,
    config: ml_collections.ConfigDict | None,
    changes: Mapping[str, Any] = types.MappingProxyType({}),
) -> Detector:
  """Restores a trained model.

  Args:
    path: A workdir, its checkpoints, or one saved step.
    config: The recipe that the user gave, None for the stored one. What it
      says of the model must be what the checkpoint was trained with.
    changes: Values by key ('data.eval.images') that are not to be as in the
      stored recipe, where that is taken: without `config`, or for a
      fine-tuning's.
  """
  path = checkpoint.find_checkpoint(path)
  metadata = checkpoint.read_metadata(path)
  if metadata.is_partial:
    raise InputError(
        f'C08: {path} holds a part of a model only; train one from it with '
        '--mode=train --init_from.'
    )
  stored = stored_config(metadata.config)
  if config is None or config.train.fine_tune:
    given = config
    config = stored_config(metadata.config)
    if given is not None:
      config = fine_tuning.for_use(given, metadata.config)
    with config.ignore_type():
      config.update_from_flattened_dict(changes)
    check_config(config)
  # data.pixel_range tells of the images, not of the weights.
  fixed = ('model.', 'geometry', 'anchors.', 'data.pixel_mean',
           'data.pixel_std', 'roi.box_side', 'roi.mask_side',
           'roi.sampling_ratio')
  different = [
      line for line in config_difference(config, plain(stored))
      if line.startswith(fixed)
  ]
  if different:
    raise InputError(
        f'C02: {path} was trained with another recipe than --config gives '
        f'(here | there): {"; ".join(different)}. Leave --config=FILE out: the '
        'checkpoint has its own recipe.'
    )
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


def evaluate(
    detector: Detector,
    *,
    images: str,
    annotations: str,
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    skip_eval: bool = False,
    records: Records | None = None,
) -> dict[str, ApResult | RecallResult]:
  """Detects the objects in every image of a set and prints their AP.

  Each process takes its share of the images; process 0 prints and writes. All
  must call this.

  Writes bbox.json and segm.json to WORKDIR/inference, of a model of proposals
  or with `eval.proposals` proposals.json, and unless `skip_eval`
  coco_results.json.

  Args:
    detector: The model.
    images: Folder of the images.
    annotations: Their COCO JSON. Its class table must be the model's. With
      `skip_eval` it may have images and classes alone.
    workdir: Where to write.
    config: The recipe; says how images are batched.
    skip_eval: Whether to stop before the AP.
    records: To read instead of `annotations` and `images`.

  Returns:
    The AP of 'bbox' and 'segm' and the recall of 'proposals', whichever there
    is, in all processes; nothing if `skip_eval`.
  """
  check_backend(config.eval.backend)
  output = detector.config.model.output
  if records is None:
    coco.check_is_there(annotations, '--config.data.eval.annotations')
  index, folder = image_sets.read_set(
      annotations, images, records, require_masks=False,
      require_annotations=not skip_eval,
  )
  annotations = records or annotations
  difference = coco.class_table_difference(
      index.categories, detector.categories
  )
  # Proposals have no class.
  if difference and output != 'proposals':
    raise InputError(
        f'C01: {annotations} has other classes than the checkpoint: '
        f'{"; ".join(difference[:10])}. Evaluate on a set with the classes '
        'that it was trained on.'
    )
  if not index.image_ids:
    raise InputError(
        f'A23: {annotations} lists no images; nothing to evaluate.'
    )
  image_sets.check_images_exist(index, folder)
  truth = None
  if not skip_eval:
    # All processes look, so that none waits for one that has stopped.
    truth = image_sets.read_content(annotations)
    for kind in ('bbox', 'segm')[: 2 if output == 'masks' else 1]:
      check_truth(truth, kind=kind)
  plan = canvases.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
  )
  if cluster.is_main():
    make_writable(workdir / 'inference')
    # Of other predictions than those that are about to be written.
    (workdir / 'inference' / 'coco_results.json').unlink(missing_ok=True)
  else:
    truth = None
  results = {}
  if output != 'proposals':
    found = _detect_set(detector, index, plan, folder, config)
    results['bbox'] = [_without(result, 'segmentation') for result in found]
    if output == 'masks':
      results['segm'] = [_without(result, 'bbox') for result in found]
  if output == 'proposals' or config.eval.proposals:
    results['proposals'] = _detect_set(
        _proposer(detector), index, plan, folder, config
    )
  scores = {}
  if cluster.is_main():
    scores = _score(results, truth, workdir, config, detector)
  # Process 0's, everywhere. JSON makes tuples lists.
  return {
      kind: RecallResult(**score) if kind == 'proposals' else ApResult(
          **score | {
              name: tuple(score[name]) for name in ('max_detections', 'notes')
          }
      )
      for kind, score in cluster.gather(scores)[0].items()
  }


def _score(results, truth, workdir, config, detector):
  """Writes results and, if there is a truth, computes and prints their AP."""
  directory = workdir / 'inference'
  for kind, found in results.items():
    write_json(directory / f'{kind}.json', found)
  logging.info('Predictions are in %s.', directory)
  if truth is None:
    return {}

  largest = max(100, config.detections.max_detections)
  scores = {
      kind: evaluate_detections(
          truth, found, kind=kind, max_detections=(1, 10, largest),
          backend=config.eval.backend,
      )
      for kind, found in results.items() if kind != 'proposals'
  }
  if scores:
    print(format_table(scores['bbox'], scores.get('segm')), flush=True)
  if 'proposals' in results:
    scores['proposals'] = evaluate_proposals(truth, results['proposals'])
    print(format_recalls(scores['proposals']), flush=True)
  scores = {kind: score._asdict() for kind, score in scores.items()}
  write_json(
      directory / 'coco_results.json', scores | {'step': detector.step}
  )
  return scores


def make_writable(directory: pathlib.Path) -> None:
  """Makes a directory, and finds out early whether it can be written to.

  Raises:
    InputError: If it cannot.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
      file.write(bytes(1 << 16))
  except OSError as error:
    raise InputError(
        f'C10: cannot write to {directory}: {error.strerror or error}.'
    ) from error


def _without(result, key):
  return {name: value for name, value in result.items() if name != key}


def _detect_set(detector, index, plan, folder, config) -> list[dict]:
  """What all processes find in the images of a set, in their order."""
  # What it finds in an image does not depend on the other images.
  num_devices = detector.mesh.size
  batch_size = -(-config.eval.batch_size // num_devices) * num_devices
  share = canvases.share_of_process(
      plan, jax.process_index(), jax.process_count()
  )
  batches = loader.eval_batches(
      index, plan, images_dir=folder, batch_size=batch_size, rows=share,
      num_threads=config.data.num_threads, pixel_range=pixel_range_of(config),
  )
  started = time.monotonic()
  width_offset = geometry_of(detector.config).width_offset
  results = []
  for found in progress(
      detect_batches(detector, batches, index, plan),
      total=len(share), description='Evaluating', shown=cluster.is_main(),
  ):
    watchdog.progress(f'the detections of image {index.image_ids[found.row]}')
    for i, (box, class_, score) in enumerate(
        zip(found.boxes, found.classes, found.scores, strict=True)
    ):
      results.append({
          'image_id': index.image_ids[found.row],
          'category_id': category_of(detector, class_).id,
          'score': float(score),
          'bbox': to_xywh(box, width_offset=width_offset),
      })
      if found.masks is not None:
        results[-1]['segmentation'] = found.masks[i]
  seconds = time.monotonic() - started
  logging.info(
      'Total inference time: %.1f s (%.4f s / img per device, on %d devices)',
      seconds, seconds * num_devices / max(len(share), 1),
      num_devices * jax.process_count(),
  )
  results = [r for part in cluster.gather(results) for r in part]
  watchdog.progress('gathering the detections of all processes')
  # In an order that does not depend on the number of processes.
  places = {id_: row for row, id_ in enumerate(index.image_ids)}
  return sorted(results, key=lambda result: places[result['image_id']])


def _proposer(detector: Detector) -> Detector:
  """The same model, stopped at its proposals."""
  config = detector.config.copy_and_resolve_references()
  config.model.output = 'proposals'
  model = make_model(
      config, num_classes=len(detector.categories) + 1,
      dtype=set_precision(config.precision),
  )
  return detector._replace(
      detect=make_detect(model, config, mesh=detector.mesh), config=config
  )


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


def write_json(path: pathlib.Path, content) -> None:
  """Writes a JSON file that is either whole or not there."""
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(content), encoding='utf-8')
  partial.replace(path)
