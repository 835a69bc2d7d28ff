"""Evaluation: detections of every image of a set, and their AP."""

import pathlib
import time

from absl import logging
import jax
import ml_collections

from maskrcnn_jax.config import canvas_arguments, geometry_of, pixel_range_of
from maskrcnn_jax.data import canvases, coco, image_sets, loader
from maskrcnn_jax.data.records import Records
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
  check_truth,
  evaluate_detections,
  format_table,
)
from maskrcnn_jax.evaluation.average_recall import (
  RecallResult,
  evaluate_proposals,
  format_recalls,
)
from maskrcnn_jax.runtime import cluster, watchdog
from maskrcnn_jax.runtime.files import make_writable, write_json
from maskrcnn_jax.runtime.training_log import progress


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
  heads = detector.rcnn.heads
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
  if difference and heads.boxes:
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
    for kind in ('bbox', 'segm')[: 2 if heads.masks else 1]:
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
  if heads.boxes:
    found = _detect_set(detector, index, plan, folder, config)
    results['bbox'] = [_without(result, 'segmentation') for result in found]
    if heads.masks:
      results['segm'] = [_without(result, 'bbox') for result in found]
  if not heads.boxes or config.eval.proposals:
    results['proposals'] = _detect_set(
        proposals_only(detector), index, plan, folder, config
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
