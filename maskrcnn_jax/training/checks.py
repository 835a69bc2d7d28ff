"""Checks before a training starts: device, batch size, disk and data sets."""

import pathlib
import zlib

from absl import logging
import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from maskrcnn_jax.config import (
  geometry_of,
  heads_of,
  source_of,
)
from maskrcnn_jax.data import coco, coco_index, findings, image_sets
from maskrcnn_jax.data.source import (
  DataSet,
  check_images_exist,
  header_warnings,
  options_of,
  read_set,
  shared_images,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import check_backend
from maskrcnn_jax.evaluation.coco_input import check_truth
from maskrcnn_jax.runtime import cluster, numerics, run_checkpoints
from maskrcnn_jax.training.state import (
  TrainState,
  training_state,
  variables_of,
)


def check_batch_size(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Checks that batches and micro-batches fill the devices evenly.

  Args:
    config: The recipe, which gives the batch size and the number of
      micro-batches.
    mesh: The devices that a batch is spread over.

  Raises:
    InputError: If the devices would get different numbers of images.
  """
  cluster.check_batch_size(
    config.train.batch_size, mesh, key='config.train.batch_size'
  )
  micro_batches = config.train.micro_batches
  if config.train.batch_size % (micro_batches * mesh.size):
    raise InputError(
      f'config.train.micro_batches ({micro_batches}) times the device count '
      f'({mesh.size}) must divide config.train.batch_size '
      f'({config.train.batch_size}).'
    )


def check_room(
  state: TrainState, workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks, before the training, that its checkpoints can be written.

  Args:
    state: A state of the run, which has the arrays of a checkpoint.
    workdir: The folder of the run.
    config: The recipe, which says how many checkpoints are kept.

  Raises:
    InputError: If not even one checkpoint can be written.
  """
  size = run_checkpoints.tree_bytes(
    (variables_of(state), training_state(state))
  )
  # A new checkpoint is written before the oldest one is removed.
  warning = run_checkpoints.check_room(
    workdir / 'checkpoints',
    size=size,
    num_steps=config.train.keep_checkpoints + 1,
  )
  if warning:
    logging.warning('%s', warning)


def check_device(precision: str) -> None:
  """Refuses to train on a device that computes wrongly.

  Runs the small programs of `numerics`. Their faults were seen on GPUs only, so
  CPUs are not checked.

  Args:
    precision: The recipe's precision. With 'fp32' and 'tf32', wrong
      half-precision convolutions are accepted.

  Raises:
    InputError: If a check fails.
  """
  if jax.default_backend() == 'cpu':
    return
  logging.info('Numerics self-test (seconds)')
  faults = numerics.check_numerics()
  if precision in ('fp32', 'tf32'):
    faults.pop(numerics.CONVOLUTIONS_CHECK, None)
  if faults:
    name, fault = next(iter(faults.items()))
    raise InputError(
      f'{jax.devices()[0].device_kind} computes wrongly with jax '
      f'{jax.__version__} ({name}): {fault}. Nothing was trained; '
      'python -m maskrcnn_jax.doctor shows all faults.'
    )


def read_training_set(
  config: ml_collections.ConfigDict,
) -> tuple[DataSet, np.ndarray]:
  """Reads, filters and checks the training set.

  Logs the warnings, and how many images and objects are trained on and left
  out.

  Args:
    config: The recipe, which names the data set.

  Returns:
    The data set, and the rows of its index that are trained on.

  Raises:
    InputError: If the set is missing or has errors.
  """
  source = source_of(config, 'train')
  if source is None:
    raise InputError(f'No training set: give {options_of("train")}.')
  logging.info('Training set: %s', source)
  source.check_is_there('--config.data.train.')
  report = findings.Report(stop=True)
  data_set = read_set(
    source,
    require_masks=heads_of(config).masks,
    width_offset=geometry_of(config).width_offset,
    report=report,
  )
  for line in report.warnings():
    logging.warning('%s', line)
  rows, waterfall = image_sets.filter_images(
    data_set.coco_index, keep_empty=config.data.keep_empty
  )
  for line in image_sets.format_waterfall(waterfall).splitlines():
    logging.info('%s', line)
  check_images_exist(data_set)
  for line in header_warnings(data_set, apply_exif=config.data.apply_exif):
    logging.warning('%s', line)
  return data_set, rows


def check_eval_set(
  config: ml_collections.ConfigDict, training_set: DataSet
) -> None:
  """Checks, before the training, that evaluations of the model can run.

  If the recipe names no evaluation set, this is only logged. A warning is
  logged if images of the evaluation set are in the training set too.

  Args:
    config: The recipe.
    training_set: The training set, which must have the same classes.

  Raises:
    InputError: If the evaluation set is missing or has errors or other classes,
      or if the library that computes the AP is not installed.
  """
  check_backend(config.eval.backend)
  source = source_of(config, 'eval')
  if source is None:
    logging.info(
      'No evaluation set (--config.data.eval.images, .annotations, or '
      '.tfds): the model is not evaluated at the end of the training.'
    )
    return
  source.check_is_there('--config.data.eval.')
  data_set = read_set(source, require_masks=False)
  difference = coco.class_table_difference(
    data_set.coco_index.categories,
    training_set.coco_index.categories,
    there_name='the training set',
  )
  if difference:
    raise InputError(
      f'A21: {source} has other classes than the training set: '
      f'{coco.format_difference(difference)}.'
    )
  check_images_exist(data_set)
  shared = shared_images(training_set, data_set)
  if shared:
    shown = ', '.join(shared[:5]) + (', ...' if len(shared) > 5 else '')
    logging.warning(
      'A20: %d of the %d images of %s are in the training set too, so its AP '
      'says nothing about new images: %s.',
      len(shared),
      len(data_set.coco_index.file_names),
      source,
      findings.printable(shown),
    )
  content = source.read_content()
  for kind in ('bbox', 'segm')[: 2 if heads_of(config).masks else 1]:
    check_truth(content, kind=kind)


def describe_training_set(index: coco_index.CocoIndex, rows: np.ndarray) -> str:
  """Describes the training set in a line that differs for different data.

  A checkpoint stores this line, so that a resumed run notices other data.

  Args:
    index: Index of the training set.
    rows: Rows of the index that are trained on.

  Returns:
    Text with the number of images that are trained on, the number of objects
    of the whole set, and a checksum of file names, rows, boxes, classes and
    outlines.
  """
  checksum = zlib.crc32(repr(index.file_names).encode())
  for array in (rows, index.boxes, index.classes, index.vertices):
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
  return (
    f'{len(rows)} images with {len(index.classes)} objects (checksum '
    f'{checksum:08x})'
  )
