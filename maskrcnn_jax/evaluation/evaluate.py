"""Detects the objects in every image of a data set and computes the AP."""

from collections.abc import Mapping
import contextlib
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import jax
from jaxtyping import Int
import ml_collections
import numpy as np

from maskrcnn_jax.config import canvas_arguments, geometry_of, pixel_range_of
from maskrcnn_jax.data import canvases, coco, loader
from maskrcnn_jax.data.coco_index import has_names
from maskrcnn_jax.data.source import (
  DataSet,
  Source,
  check_images_exist,
  header_warnings,
  read_set,
)
from maskrcnn_jax.detector import (
  Detector,
  category_of,
  detect_batches,
  proposals_only,
  to_xywh,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import (
  ApResult,
  check_backend,
  evaluate_detections,
  format_table,
)
from maskrcnn_jax.evaluation.average_recall import (
  RecallResult,
  evaluate_proposals,
  format_recalls,
)
from maskrcnn_jax.evaluation.coco_input import check_truth
from maskrcnn_jax.evaluation.prediction_file import (
  open_part,
  write_part,
  write_predictions,
)
from maskrcnn_jax.runtime import cluster, watchdog
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.status_line import progress, waiting
from maskrcnn_jax.runtime.training_log import log_line


class _SetDetections(NamedTuple):
  """The detections of all processes in a data set.

  Attributes:
    results: A COCO result for each detection: a dict with `image_id`,
      `category_id`, `score`, `bbox` (x, y, width, height) in pixels of the
      image on disk and, if the model has a mask head, `segmentation`, a
      compressed RLE. The images have the order of the data set, and the
      detections of an image are sorted by score, the highest first.
    counts: Number of detections of each process.
    places: For each result, its position among the detections of process 0,
      then process 1, and so on.
    mask_side: Number of cells of a mask in each direction; 0 without masks.
  """

  results: list[dict[str, Any]]
  counts: list[int]
  places: Int[np.ndarray, 'n']
  mask_side: int


def evaluate(
  detector: Detector,
  *,
  source: Source,
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  skip_eval: bool = False,
) -> dict[str, ApResult | RecallResult]:
  """Detects the objects in every image of a data set and prints their AP.

  Each process detects in its share of the images; process 0 prints and writes.
  All processes must call this function.

  The files are written to WORKDIR/inference: bbox.json if the model gives
  boxes, segm.json if it gives masks; proposals.json if it gives proposals only,
  or if `eval.proposals` is set; predictions.npz, the arrays of
  `write_predictions`; and coco_results.json unless `skip_eval`. A line with the
  time and the speed is added to WORKDIR/log.txt.

  Args:
    detector: The model.
    source: The data set. Its classes must be those of the model. With
      `skip_eval` its JSON need not have annotations.
    workdir: The folder to write to. With several processes, all machines must
      see the same folder.
    config: The recipe. Its image sizes, batch size and `eval` keys are used.
    skip_eval: Whether the detections are only written, and no AP is computed.

  Returns:
    The AP by the keys 'bbox' and 'segm' and the recall by 'proposals', for the
    files that were written. All processes get the same. Empty if `skip_eval`.

  Raises:
    InputError: If the data set is missing or damaged, lists no images, or has
      other classes than the model; if the files cannot be written; or if the
      library that computes the AP is not installed.
  """
  check_backend(config.eval.backend)
  heads = detector.rcnn.heads
  source.check_is_there('--config.data.eval.')
  with waiting('Reading the evaluation set'):
    data_set = read_set(
      source, require_masks=False, require_annotations=not skip_eval
    )
  index = data_set.coco_index
  if skip_eval and not index.categories:
    # A list of images that has no annotations need not have classes.
    index = index._replace(categories=detector.categories)
    data_set = data_set._replace(coco_index=index)
  difference = coco.class_table_difference(
    index.categories, detector.categories
  )
  # Proposals have no classes that could differ.
  if difference and heads.boxes:
    advice = 'Evaluate on a set with the classes that it was trained on.'
    names = [category.name for category in detector.categories]
    if not has_names(names) and len(names) == len(index.categories):
      advice = (
        'The checkpoint has no names of classes: convert the weight file again '
        'with --categories=FILE.json, where FILE.json lists the classes in the '
        'order of the training, such as the annotations of this set.'
      )
    raise InputError(
      f'C01: {source} has other classes than the checkpoint: '
      f'{coco.format_difference(difference)}. {advice}'
    )
  if not index.image_ids:
    raise InputError(
      f'A23: {source} lists no images, so that nothing can be evaluated; give '
      'a file that lists images.'
    )
  with waiting('Looking for the images'):
    check_images_exist(data_set)
    warnings = header_warnings(data_set, apply_exif=config.data.apply_exif)
  for line in warnings:
    logging.warning('%s', line)
  truth = None
  if not skip_eval:
    # Every process checks the ground truth, so that all processes stop if it is
    # wrong, and none waits for another that has stopped.
    with waiting('Checking the ground truth'):
      truth = source.read_content()
      for kind in ('bbox', 'segm')[: 2 if heads.masks else 1]:
        check_truth(truth, kind=kind)
  plan = canvases.plan_canvases(
    index.heights, index.widths, **canvas_arguments(config)
  )
  if cluster.is_main():
    make_writable(workdir / 'inference')
    # The scores of an earlier evaluation do not belong to the detections that
    # are about to be written.
    (workdir / 'inference' / 'coco_results.json').unlink(missing_ok=True)
  else:
    truth = None
  found = _detect_set(detector, data_set, plan, config, workdir)
  if cluster.is_main():
    with waiting('Writing the detections'):
      write_predictions(
        workdir / 'inference',
        found.results,
        categories=detector.categories
        if heads.boxes
        else [category_of(detector, 1)],
        width_offset=geometry_of(detector.config).width_offset,
        mask_side=found.mask_side,
        counts=found.counts,
        places=found.places,
      )
  results = {}
  if heads.boxes:
    results['bbox'] = [_without(one, 'segmentation') for one in found.results]
    if heads.masks:
      results['segm'] = [_without(one, 'bbox') for one in found.results]
    if config.eval.proposals:
      proposals = proposals_only(detector)
      results['proposals'] = _detect_set(
        proposals, data_set, plan, config, workdir
      ).results
  else:
    results['proposals'] = found.results
  scores = {}
  if cluster.is_main():
    scores = _score(results, truth, workdir, config, detector)
  # All processes return the scores of process 0. They travel as JSON, which
  # turns tuples into lists.
  return {
    kind: RecallResult(**score)
    if kind == 'proposals'
    else ApResult(
      **score
      | {name: tuple(score[name]) for name in ('max_detections', 'notes')}
    )
    for kind, score in cluster.gather(scores)[0].items()
  }


def _score(
  results: Mapping[str, list[dict[str, Any]]],
  truth: dict[str, Any] | None,
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  detector: Detector,
) -> dict[str, dict[str, Any]]:
  """Writes the detections to files, computes and prints their AP or recall.

  Args:
    results: COCO results by their kind: 'bbox', 'segm' or 'proposals'.
    truth: A COCO JSON as loaded. With `None` the detections are only written.
    workdir: The files are written to the folder `inference` in this folder.
    config: The recipe. Its `eval` keys and its limit of detections are used.
    detector: The model; its step is written beside the figures.

  Returns:
    The fields of an `ApResult` by the keys 'bbox' and 'segm', and of a
    `RecallResult` by 'proposals'. Empty without ground truth.
  """
  directory = workdir / 'inference'
  with waiting('Writing the detections'):
    for kind, detections in results.items():
      write_json(directory / f'{kind}.json', detections)
  logging.info('Predictions are in %s.', directory)
  if truth is None:
    return {}

  largest = max(100, config.detections.max_detections)
  aps = {}
  for kind, detections in results.items():
    if kind != 'proposals':
      name = {'bbox': 'boxes', 'segm': 'masks'}[kind]
      with waiting(f'Computing the AP of the {name}'):
        aps[kind] = evaluate_detections(
          truth,
          detections,
          kind=kind,
          max_detections=(1, 10, largest),
          backend=config.eval.backend,
        )
  if aps:
    print(format_table(aps), flush=True)
  scores = {kind: ap._asdict() for kind, ap in aps.items()}
  if 'proposals' in results:
    with waiting('Computing the recall of the proposals'):
      recall = evaluate_proposals(truth, results['proposals'])
    print(format_recalls(recall), flush=True)
    scores['proposals'] = recall._asdict()
  write_json(directory / 'coco_results.json', scores | {'step': detector.step})
  return scores


def _without(result: dict[str, Any], key: str) -> dict[str, Any]:
  """Returns a copy of a COCO result without one of its keys."""
  return {name: value for name, value in result.items() if name != key}


def _detect_set(
  detector: Detector,
  data_set: DataSet,
  plan: canvases.CanvasPlan,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
) -> _SetDetections:
  """Detects the objects in all images of a data set.

  Each process detects in its share of the images. All processes must call this
  function, because they exchange their results at the end. If the model has a
  mask head, each process leaves the file of `open_part` in WORKDIR/inference.

  Args:
    detector: The model.
    data_set: The data set.
    plan: The canvas (static padded size) of each image.
    config: The recipe. Its `eval.batch_size` is the number of images that a
      process detects in at once, rounded up to a multiple of the number of
      its devices. `data.num_threads`, `data.pixel_range` and
      `data.apply_exif` are used too.
    workdir: Process 0 writes time and speed to its log.txt.

  Returns:
    The detections. All processes get the same.
  """
  index = data_set.coco_index
  # The batch size may be rounded up, because the detections of an image do not
  # depend on the other images of its batch.
  num_devices = detector.mesh.size
  batch_size = -(-config.eval.batch_size // num_devices) * num_devices
  share = canvases.share_of_process(
    plan, jax.process_index(), jax.process_count()
  )
  batches = loader.eval_batches(
    data_set,
    plan,
    batch_size=batch_size,
    rows=share,
    num_threads=config.data.num_threads,
    pixel_range=pixel_range_of(config),
    apply_exif=config.data.apply_exif,
  )
  started = time.monotonic()
  width_offset = geometry_of(detector.config).width_offset
  results: list[dict[str, Any]] = []
  mask_side = 0
  with (
    open_part(workdir / 'inference', jax.process_index())
    if detector.rcnn.heads.masks
    else contextlib.nullcontext() as masks_file,
    # Closing it removes the bar if an exception ends the loop.
    contextlib.closing(
      progress(
        detect_batches(
          detector,
          batches,
          index,
          plan,
          num_threads=config.data.num_threads,
        ),
        total=len(share),
        description='Evaluating',
        shown=cluster.is_main(),
      )
    ) as images,
  ):
    for image in images:
      watchdog.progress(f'the detections of image {index.image_ids[image.row]}')
      for i, (box, class_, score) in enumerate(
        zip(image.boxes, image.classes, image.scores, strict=True)
      ):
        results.append(
          {
            'image_id': index.image_ids[image.row],
            'category_id': category_of(detector, class_).id,
            'score': float(score),
            'bbox': to_xywh(box, width_offset=width_offset),
          }
        )
        if image.masks is not None:
          results[-1]['segmentation'] = image.masks[i]
      if masks_file is not None:
        assert image.cells is not None  # The model has a mask head.
        write_part(masks_file, image.cells)
        mask_side = image.cells.shape[1]
  seconds = time.monotonic() - started
  parts = cluster.gather(
    {'results': results, 'seconds': seconds, 'mask_side': mask_side}
  )
  watchdog.progress('gathering the detections of all processes')
  if cluster.is_main():
    # The slowest process decides.
    seconds = max(part['seconds'] for part in parts)
    num_images, num_devices = len(index.image_ids), num_devices * len(parts)
    log_line(
      workdir,
      f'Total inference time: {seconds:.1f} s '
      f'({seconds * num_devices / num_images:.4f} s / img per device, on '
      f'{num_devices} devices); {num_images / seconds:.2f} images/s',
    )
  results = [result for part in parts for result in part['results']]
  # The order must not depend on the number of processes.
  rows = {id_: row for row, id_ in enumerate(index.image_ids)}
  places = sorted(
    range(len(results)), key=lambda i: rows[results[i]['image_id']]
  )
  return _SetDetections(
    [results[i] for i in places],
    [len(part['results']) for part in parts],
    np.array(places, np.int64),
    max(part['mask_side'] for part in parts),
  )
