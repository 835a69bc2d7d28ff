"""What a training starts from: its images, and its first state."""

import itertools
import pathlib
import zlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections
import numpy as np

from maskrcnn_jax.config import (
  differences,
  facts_of,
  fine_tuning,
  format_differences,
  geometry_of,
  heads_of,
  plain,
  source_of,
  stored_config,
)
from maskrcnn_jax.config.keys import BY_NAME, names
from maskrcnn_jax.data import coco, coco_index, findings, image_sets
from maskrcnn_jax.data.source import (
  DataSet,
  check_images_exist,
  check_is_there,
  options_of,
  read_content,
  read_set,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import check_backend, check_truth
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.runtime import checkpoint, cluster, numerics
from maskrcnn_jax.training.state import (
  TrainState,
  restored_state,
  start_average,
  training_state,
  variables_of,
)

# Leaves whose shape depends on the number of classes: fine-tuning on other
# classes starts these afresh, and nothing else.
CLASS_LAYERS = ('cls_score', 'bbox_pred', 'mask_fcn_logits')
CLASS_HEADS = ('box_head', 'mask_head')

# Parts that a model need not have: see `model.output` in a recipe. Of the
# backbone, layer4 is one of a C4 model's heads.
HEADS = ('box_head', 'mask_head', 'layer4')


def adopt_checkpoint(
    config: ml_collections.ConfigDict,
    init_from: pathlib.Path | None,
    given: frozenset[str] = frozenset(),
) -> ml_collections.ConfigDict:
  """Returns the recipe of a fine-tuning with the values its weights need.

  Args:
    config: A recipe with `train.fine_tune`.
    init_from: The checkpoint to fine-tune.
    given: Keys that the command line gave.
  """
  if init_from is None:
    raise InputError(
        '--init_from=CHECKPOINT is missing: what to fine-tune, also when the '
        'run is continued. --config=nuclei trains from nothing.'
    )
  path = checkpoint.find_checkpoint(init_from)
  config, lines = fine_tuning.adopt(
      config, checkpoint.read_metadata(path).recipe, given
  )
  for line in lines:
    logging.info('%s', line)
  return config


def check_batch_size(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Checks that batches and micro-batches fill the devices evenly.

  Raises:
    InputError: If they do not.
  """
  cluster.check_batch_size(
      config.train.batch_size, mesh, key='config.train.batch_size'
  )
  parts = config.train.micro_batches
  if config.train.batch_size % (parts * mesh.size):
    raise InputError(
        f'config.train.micro_batches ({parts}) times the device count '
        f'({mesh.size}) must divide config.train.batch_size '
        f'({config.train.batch_size}).'
    )


def check_room(
    state: TrainState, workdir: pathlib.Path, config: ml_collections.ConfigDict
) -> None:
  """Checks, before the training, that its checkpoints can be written.

  Args:
    state: A state of the run, whose size counts.
    workdir: The folder of the run.
    config: The recipe, which says how many checkpoints are kept.

  Raises:
    InputError: If not even one checkpoint can be written.
  """
  size = checkpoint.tree_bytes((variables_of(state), training_state(state)))
  # A new checkpoint is written before the oldest one is removed.
  warning = checkpoint.check_room(
      workdir / 'checkpoints', size=size,
      count=config.train.keep_checkpoints + 1,
  )
  if warning:
    logging.warning('%s', warning)


def check_device(precision: str) -> None:
  """Refuses to train on a device that gives wrong numbers: see `numerics`.

  Such faults were seen on GPUs only, so a CPU is not asked to prove itself.

  Args:
    precision: Of the recipe; without half precision its convolutions need not
      be right.

  Raises:
    InputError: Something is wrong.
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
        'python -m maskrcnn_jax.doctor shows all that is wrong.'
    )


def read_training_set(
    config: ml_collections.ConfigDict,
) -> tuple[DataSet, np.ndarray]:
  """Reads, filters and checks the training set; logs what was left out.

  Returns:
    The data set, and the rows of its index to train on.
  """
  source = source_of(config, 'train')
  if source is None:
    raise InputError(f'No training set: give {options_of("train")}.')
  logging.info('Training set: %s', source)
  check_is_there(source, '--config.data.train.')
  report = findings.Report(stop=True)
  data_set = read_set(
      source, require_masks=heads_of(config).masks,
      width_offset=geometry_of(config).width_offset, report=report,
  )
  for line in report.warnings():
    logging.warning('%s', line)
  rows, waterfall = image_sets.filter_images(
      data_set.index, keep_empty=config.data.keep_empty
  )
  for line in image_sets.format_waterfall(waterfall).splitlines():
    logging.info('%s', line)
  check_images_exist(data_set)
  return data_set, rows


def check_eval_set(
    config: ml_collections.ConfigDict, index: coco_index.CocoIndex
) -> None:
  """Raises before training what would stop the evaluation after it.

  Args:
    config: The recipe.
    index: The training set, which must have the same classes.
  """
  check_backend(config.eval.backend)
  source = source_of(config, 'eval')
  if source is None:
    logging.info(
        'No evaluation set (--config.data.eval.images, .annotations, or '
        '.tfds): there will be no evaluation at the end.'
    )
    return
  check_is_there(source, '--config.data.eval.')
  data_set = read_set(source, require_masks=False)
  truth = data_set.index
  difference = coco.class_table_difference(truth.categories, index.categories)
  if difference:
    raise InputError(
        f'A21: {source} has other classes than the training set: '
        f'{"; ".join(difference[:10])}.'
    )
  check_images_exist(data_set)
  content = read_content(source)
  for kind in ('bbox', 'segm')[: 2 if heads_of(config).masks else 1]:
    check_truth(content, kind=kind)


def describe_training_set(index: coco_index.CocoIndex, rows: np.ndarray) -> str:
  """Says what is trained on, so that a resume on other data is noticed."""
  checksum = zlib.crc32(repr(index.file_names).encode())
  for array in (rows, index.boxes, index.classes, index.vertices):
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
  return (
      f'{len(rows)} images with {len(index.classes)} objects (checksum '
      f'{checksum:08x})'
  )


def first_state(
    state: TrainState,
    workdir: pathlib.Path,
    metadata: checkpoint.Metadata,
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    *,
    init_from: pathlib.Path | None,
    resume: bool,
    allow_changes: bool,
) -> TrainState:
  """The state to begin with: a saved one, one with given weights, or new.

  All processes must call this; the state is whole on every device.

  Args:
    state: A new one.
    workdir: Whose newest checkpoint is taken that is not damaged; those are
      moved out of the way.
    metadata: Of the run.
    config: The recipe.
    mesh: Of all devices.
    init_from: See `train.train`.
    resume: See `train.train`.
    allow_changes: See `train.train`.
  """
  directory = workdir / 'checkpoints'
  steps = checkpoint.saved_steps(directory)
  if steps and not resume:
    raise InputError(
        f'C10: {workdir} already holds a checkpoint of step {steps[-1]}; give '
        'another --workdir, or leave --noresume out to continue.'
    )
  cluster.check_agreement(
      _recipe_facts(config) | {
          'training set': metadata.training_set,
          'checkpoints': steps,
          'version of JAX': jax.__version__,
      }
  )
  if not steps:
    random = list(checkpoint.named_leaves(variables_of(state)))
    if init_from is not None:
      state, random = _take_weights(
          checkpoint.find_checkpoint(init_from), state, config, mesh,
          categories=metadata.categories,
      )
    _warn_of_frozen(random, config.freeze_at)
    return cluster.replicate(start_average(state, config), mesh)
  state = start_average(state, config)
  for step in reversed(steps):
    damage, restored = '', None
    try:
      restored = _resume(
          directory / str(step), state, metadata, config, mesh,
          allow_changes=allow_changes,
      )
    except checkpoint.DamagedCheckpoint as error:
      damage = str(error)
    # What one process cannot read, none goes on from.
    damages = [text for text in cluster.gather(damage) if text]
    if damages:
      logging.warning('C08: %s', damages[0])
      continue
    moved = checkpoint.set_aside(directory, after=step)
    # Before it is over, no process opens the directory.
    multihost_utils.sync_global_devices('damaged checkpoints are set aside')
    for path in moved:
      logging.warning(
          'C08: A damaged checkpoint is now in %s; going on from step %d.',
          path, step,
      )
    return cluster.replicate(restored, mesh)
  raise InputError(
      f'C08: None of the checkpoints in {directory} can be read. Give another '
      '--workdir to start anew.'
  )


def _resume(
    path, state, metadata, config, mesh, *, allow_changes
) -> TrainState:
  """The state of a saved step of the same recipe and classes."""
  stored = checkpoint.read_metadata(path)
  there = stored_config(stored.recipe)
  different = [
      difference for difference in differences(config, plain(there))
      if not _may_differ(difference.key, config)
  ]
  if different and allow_changes:
    logging.warning(
        'C07: Going on with another recipe (here | there): %s.',
        format_differences(different),
    )
  elif different:
    raise InputError(
        f'C07: {path.parent.parent} holds a run of another recipe (here | '
        f'there): {format_differences(different)}. Give another --workdir, '
        f'start from its weights alone with --init_from={path}, or go on all '
        'the same with --allow_changes.'
    )
  if stored.categories != metadata.categories:
    raise InputError(
        f'C07: {path.parent.parent} holds a run on other classes than '
        f'{source_of(config, "train")} has. Give another --workdir.'
    )
  if stored.training_set != metadata.training_set:
    text = (
        f'C07: {path.parent.parent} holds a run on {stored.training_set}, but '
        f'{source_of(config, "train")} has {metadata.training_set}.'
    )
    if not allow_changes:
      raise InputError(
          f'{text} Give another --workdir, start from its weights alone with '
          f'--init_from={path}, or go on all the same with --allow_changes.'
      )
    logging.warning('%s', text)
  if stored.step > config.train.num_steps:
    raise InputError(
        f'C07: {path} has {stored.step} steps, more than '
        f'config.train.num_steps ({config.train.num_steps}).'
    )
  variables = checkpoint.restore_model(
      path, cluster.replicated_shapes(variables_of(state), mesh)
  )
  kept = checkpoint.restore_optimizer(
      path, cluster.replicated_shapes(training_state(state), mesh)
  )
  logging.info('Resuming from step %d of %s.', stored.step, path)
  if there.precision != config.precision:
    kept['loss_scale'] = state.loss_scale
  return restored_state(state, stored.step, variables, kept)


def _warn_of_frozen(random: list[str], freeze_at: int) -> None:
  """Warns of stages that are neither trained nor taken from a checkpoint.

  Args:
    random: Names of the arrays that start afresh.
    freeze_at: Stages that are not trained.
  """
  frozen = [
      '/'.join(prefix) for prefix in frozen_prefixes(freeze_at)
      if any(f'params/{"/".join(prefix)}/' in name for name in random)
  ]
  if frozen:
    logging.warning(
        'FROZEN AND RANDOM: %s start with random weights, and '
        'config.freeze_at=%d keeps them so for the whole training. Give '
        'pretrained weights, --init_from=CHECKPOINT, or train all: '
        '--config.freeze_at=0 (from nothing, with '
        '--config.model.norm=group).', ', '.join(frozen), freeze_at,
    )


def _other_classes(here: list, there: list) -> list[str]:
  """Returns 'number: name here | there' for each class that differs.

  Ids may differ. Where the names of either are not known, nothing does.

  Args:
    here: [[id, name], ...] by class number.
    there: Likewise, of a checkpoint.
  """
  here, there = ([name for _, name in table] for table in (here, there))
  # So `convert_weights` names classes that a file does not name.
  unknown = [f'class {i + 1}' for i in range(len(there))]
  if not here or not there or there == unknown:
    return []
  return [
      f'{i + 1}: {one!r} | {other!r}'
      for i, (one, other) in enumerate(
          itertools.zip_longest(here, there, fillvalue='nothing')
      ) if one != other
  ]


def _take_weights(
    path, state: TrainState, config, mesh, *, categories: list
) -> tuple[TrainState, list[str]]:
  """A state of step 0 with a checkpoint's weights, layers of classes aside.

  Those start afresh where the classes are others, by number or by name.

  Of a partial checkpoint, layers that it lacks start afresh too; of any, heads
  that it lacks as a whole. Heads that only it has are left out. Also returns
  the names of the arrays that start afresh.
  """
  metadata = checkpoint.read_metadata(path)
  different = [
      difference for difference in differences(
          config, plain(stored_config(metadata.recipe))
      )
      if difference.key in names(unseen=True)
  ]
  if different:
    logging.warning(
        'C13: The weights of %s expect other values (here | there): %s. Set '
        'these keys to theirs, unless you mean to train them anew.', path,
        format_differences(different),
    )
  expected = checkpoint.named_leaves(variables_of(state))
  stored = checkpoint.model_shapes(path)
  other = _other_classes(categories, metadata.categories)
  here, there = ({_head_of(n) for n in names} for names in (expected, stored))
  unused = [n for n in stored if _head_of(n) in there - here]
  fresh = [
      name for name in expected
      if name in stored and (other or stored[name] != expected[name].shape)
      and name.split('/')[1] in CLASS_HEADS
      and name.split('/')[2] in CLASS_LAYERS
      or name not in stored and (
          metadata.is_partial or _head_of(name) in here - there
      )
  ]
  difference = checkpoint.compare_trees(
      {n: s for n, s in stored.items() if n not in fresh and n not in unused},
      {n: tuple(x.shape) for n, x in expected.items() if n not in fresh},
  )
  if difference:
    raise InputError(f'C02: {path} does not fit this model: {difference}.')
  weights = checkpoint.named_leaves(checkpoint.restore_model(
      path, checkpoint.nested({
          name: jax.ShapeDtypeStruct(
              shape, jnp.float32, sharding=cluster.replicated(mesh)
          )
          for name, shape in stored.items()
      })
  ))
  taken = checkpoint.nested(
      expected | {
          n: x for n, x in weights.items() if n not in fresh and n not in unused
      }
  )
  if other and any(name.split('/')[2] in CLASS_LAYERS for name in fresh):
    logging.info(
        'The classes are not those of %s, so their layers start afresh (here | '
        'there): %s%s.', path, '; '.join(other[:5]),
        f'; and {len(other) - 5} more' if len(other) > 5 else '',
    )
  logging.info(
      'Took %d arrays from %s; started afresh: %s.',
      len(expected) - len(fresh), path, ', '.join(fresh) or 'none',
  )
  if unused:
    logging.info('Left out, for this model: %s.', ', '.join(unused))
  return state._replace(
      params=taken['params'], constants=taken.get('constants', {})
  ), fresh


def _head_of(name: str) -> str | None:
  """The one of HEADS that an array belongs to."""
  return next((head for head in HEADS if f'/{head}/' in name), None)


def _recipe_facts(config) -> dict[str, str]:
  """Returns {key: value} of the keys that are the same in all processes."""
  may_differ = names(per_process=True)
  return {
      f'config.{key}': str(value) for key, value in facts_of(config).items()
      if key not in may_differ
  }


def _may_differ(name: str, config) -> bool:
  """Tells whether a run may go on with another value of a key."""
  if name == 'train.num_steps' and config.optimizer.schedule == 'cosine':
    return False  # The learning rate of every step depends on it.
  return name in BY_NAME and BY_NAME[name].may_differ_on_resume
