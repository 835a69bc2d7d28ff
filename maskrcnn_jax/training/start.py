"""The state that a run begins with: of a checkpoint, or a new one."""

import itertools
import pathlib

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from maskrcnn_jax.config import (
  differences,
  facts_of,
  format_differences,
  plain,
  source_of,
  stored_config,
)
from maskrcnn_jax.config.keys import BY_NAME, names
from maskrcnn_jax.data.coco_index import has_names
from maskrcnn_jax.errors import DamagedCheckpoint, InputError
from maskrcnn_jax.model.backbone import frozen_prefixes
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.run_checkpoints import set_aside
from maskrcnn_jax.training.image_fingerprint import image_change
from maskrcnn_jax.training.state import (
  TrainState,
  restored_state,
  start_average,
  training_state,
  variables_of,
)

# Layers whose shape depends on the number of classes, and the heads that have
# them. If a checkpoint has other classes, these layers start with random
# weights; all other layers take the weights of the checkpoint.
CLASS_LAYERS = ('cls_score', 'bbox_pred', 'mask_fcn_logits')
CLASS_HEADS = ('box_head', 'mask_head')

# Modules that some models lack, depending on `model.output` of the recipe.
# `layer4` is a stage of the ResNet; in a C4 model it is a part of the heads.
HEADS = ('box_head', 'mask_head', 'layer4')


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
  """Returns the state that the run begins with, replicated over all devices.

  It is the state of the newest checkpoint of the workdir. If there is no
  checkpoint, it is the new state, with weights from `init_from` if that is
  given. All processes must call this function.

  Args:
    state: A new state, with random weights.
    workdir: The folder of the run. If its newest checkpoints are damaged, they
      are moved to another folder, and the newest readable checkpoint is used.
    metadata: Metadata of this run. A checkpoint of the workdir must have the
      same classes and, unless `allow_changes`, the same training set.
    config: The recipe.
    mesh: All devices.
    init_from: Checkpoint to take the initial weights from, or `None`.
    resume: Whether to continue the run of the workdir. If not, a workdir that
      holds a checkpoint is an error.
    allow_changes: Whether to continue a run although its recipe or its
      training set has changed.

  Raises:
    InputError: If the checkpoint does not fit the run, if no checkpoint can be
      read, if the workdir holds a checkpoint but `resume` is False, or if the
      processes have different recipes, data or checkpoints.
  """
  directory = workdir / 'checkpoints'
  steps = checkpoint.saved_steps(directory)
  if steps and not resume:
    raise InputError(
      f'C10: {workdir} already holds a checkpoint of step {steps[-1]}. Give '
      'another --workdir, or continue the run without --noresume.'
    )
  cluster.check_agreement(
    _recipe_facts(config)
    | {
      'training set': metadata.training_set,
      'checkpoints': steps,
      'version of JAX': jax.__version__,
    }
  )
  if not steps:
    random_arrays = list(checkpoint.named_leaves(variables_of(state)))
    if init_from is not None:
      state, random_arrays = _take_weights(
        checkpoint.find_checkpoint(init_from),
        state,
        config,
        mesh,
        categories=metadata.categories,
      )
    _warn_of_frozen(random_arrays, config.freeze_at)
    return cluster.replicate(start_average(state, config), mesh)
  state = start_average(state, config)
  for step in reversed(steps):
    damage = ''
    restored: TrainState | None = None
    try:
      restored = _resume(
        directory / str(step),
        state,
        metadata,
        config,
        mesh,
        allow_changes=allow_changes,
      )
    except DamagedCheckpoint as error:
      damage = str(error)
    # If one process cannot read the checkpoint, all of them skip it.
    damages = [text for text in cluster.gather(damage) if text]
    if damages:
      logging.warning('%s', damages[0])
      continue
    # A process without damage has restored a state.
    assert restored is not None
    moved = set_aside(directory, after=step)
    # No process may open the directory before process 0 has moved the damaged
    # checkpoints.
    multihost_utils.sync_global_devices('damaged checkpoints are set aside')
    for path in moved:
      logging.warning(
        'C08: A damaged checkpoint was moved to %s; going on from step %d.',
        path,
        step,
      )
    return cluster.replicate(restored, mesh)
  raise InputError(
    f'C08: None of the checkpoints in {directory} can be read. To start a '
    'new training, give another --workdir.'
  )


def _resume(
  path: pathlib.Path,
  state: TrainState,
  metadata: checkpoint.Metadata,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  allow_changes: bool,
) -> TrainState:
  """Reads the state of a checkpoint after checking that it fits the run.

  Args:
    path: Folder of one saved step.
    state: A new state of this run, which has the shapes of all arrays.
    metadata: Metadata of this run.
    config: The recipe of this run.
    mesh: All devices.
    allow_changes: Whether another recipe or training set is accepted.

  Raises:
    DamagedCheckpoint: If the checkpoint cannot be read.
    InputError: If the classes differ; if the recipe or the training set differs
      and `allow_changes` is False; if the checkpoint has more steps than the
      recipe; or if the arrays do not fit the model.
  """
  stored = checkpoint.read_metadata(path)
  stored_recipe = stored_config(stored.recipe)
  different = [
    difference
    for difference in differences(config, plain(stored_recipe))
    if not _may_differ(difference.key, config)
  ]
  if different and allow_changes:
    logging.warning(
      'C07: Going on with another recipe (this run | saved run): %s.',
      format_differences(different),
    )
  elif different:
    raise InputError(
      f'C07: {path.parent.parent} holds a run with another recipe (this run '
      f'| saved run): {format_differences(different)}. Give another '
      f'--workdir, take only its weights with --init_from={path}, or '
      'continue it with the new values with --allow_changes.'
    )
  if stored.categories != metadata.categories:
    raise InputError(
      f'C07: The run in {path.parent.parent} was trained on other classes '
      f'than those of {source_of(config, "train")}. Give another --workdir.'
    )
  if stored.training_set != metadata.training_set:
    text = (
      f'C07: The run in {path.parent.parent} was trained on '
      f'{stored.training_set}, but {source_of(config, "train")} has '
      f'{metadata.training_set}.'
    )
    if not allow_changes:
      raise InputError(
        f'{text} Give another --workdir, take only its weights with '
        f'--init_from={path}, or continue it on the new data with '
        '--allow_changes.'
      )
    logging.warning('%s', text)
  change = image_change(stored.images, metadata.images)
  if change:
    logging.warning(
      'C07: Image files of the training set have changed since %s was saved: '
      '%s.',
      path,
      change,
    )
  if stored.step > config.train.num_steps:
    raise InputError(
      f'C07: {path} has {stored.step} steps, more than '
      f'config.train.num_steps ({config.train.num_steps}). Give at least '
      f'--config.train.num_steps={stored.step}, or another --workdir.'
    )
  variables = checkpoint.restore_model(
    path, cluster.replicated_shapes(variables_of(state), mesh)
  )
  kept = checkpoint.restore_optimizer(
    path, cluster.replicated_shapes(training_state(state), mesh)
  )
  logging.info('Resuming from step %d of %s.', stored.step, path)
  if stored_recipe.precision != config.precision:
    kept['loss_scale'] = state.loss_scale
  return restored_state(stored.step, variables, kept)


def _warn_of_frozen(random_arrays: list[str], freeze_at: int) -> None:
  """Warns of stages that are neither trained nor taken from a checkpoint.

  Args:
    random_arrays: Names of the arrays that start with random values.
    freeze_at: Number of stages of the backbone that are not trained, as in the
      recipe.
  """
  frozen = [
    '/'.join(prefix)
    for prefix in frozen_prefixes(freeze_at)
    if any(f'params/{"/".join(prefix)}/' in name for name in random_arrays)
  ]
  if frozen:
    logging.warning(
      'FROZEN AND RANDOM: %s start with random weights, and '
      'config.freeze_at=%d keeps them random for the whole training. Give '
      'pretrained weights with --init_from=CHECKPOINT (--list_weights lists '
      'names of some to download), or train all stages '
      'with --config.freeze_at=0 (without pretrained weights, also give '
      '--config.model.norm=group).',
      ', '.join(frozen),
      freeze_at,
    )


def _other_classes(categories: list, stored_categories: list) -> list[str]:
  """Compares the names of the classes of this run and of a checkpoint.

  COCO's ids of the classes are not compared.

  Args:
    categories: [[id, name], ...] of this run, in the order of class numbers.
    stored_categories: [[id, name], ...] of a checkpoint, in the same order.

  Returns:
    'number: name | stored name' for each class that differs. [] if the names
    of either are unknown.
  """
  own_names, stored_names = (
    [name for _, name in table] for table in (categories, stored_categories)
  )
  if not own_names or not stored_names or not has_names(stored_names):
    return []
  return [
    f'{i + 1}: {name!r} | {stored_name!r}'
    for i, (name, stored_name) in enumerate(
      itertools.zip_longest(own_names, stored_names, fillvalue='nothing')
    )
    if name != stored_name
  ]


def _take_weights(
  path: pathlib.Path,
  state: TrainState,
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  *,
  categories: list,
) -> tuple[TrainState, list[str]]:
  """Replaces the weights of a new state by those of a checkpoint.

  Some arrays keep their random values:
  - layers that depend on the classes, if the number or the names of the classes
    differ, or if a layer has another shape;
  - heads that the checkpoint does not have at all;
  - if the checkpoint holds only a part of a model, all arrays that it lacks.
  Heads of the checkpoint that the model does not have are ignored.

  Args:
    path: Folder of one saved step.
    state: A new state, with random weights.
    config: The recipe.
    mesh: All devices.
    categories: [[id, name], ...] of this run, in the order of class numbers.

  Returns:
    The state, and the names of the arrays that keep their random values.

  Raises:
    InputError: If the weights do not fit the model or are not finite.
  """
  metadata = checkpoint.read_metadata(path)
  different = [
    difference
    for difference in differences(config, plain(stored_config(metadata.recipe)))
    if difference.key in names(unseen=True)
  ]
  if different:
    logging.warning(
      'C13: The weights of %s were trained with other values (this run | '
      'checkpoint): %s. Set these keys to the values of the checkpoint, '
      'unless you want to train the weights for the new values.',
      path,
      format_differences(different),
    )
  expected = checkpoint.named_leaves(variables_of(state))
  stored = checkpoint.model_shapes(path)
  other = _other_classes(categories, metadata.categories)
  own_heads, stored_heads = (
    {_head_of(name) for name in arrays} for arrays in (expected, stored)
  )
  unused = [
    name for name in stored if _head_of(name) in stored_heads - own_heads
  ]
  fresh = [
    name
    for name in expected
    if name in stored
    and (other or stored[name] != expected[name].shape)
    and name.split('/')[1] in CLASS_HEADS
    and name.split('/')[2] in CLASS_LAYERS
    or name not in stored
    and (metadata.is_partial or _head_of(name) in own_heads - stored_heads)
  ]
  difference = checkpoint.compare_trees(
    {n: s for n, s in stored.items() if n not in fresh and n not in unused},
    {n: tuple(x.shape) for n, x in expected.items() if n not in fresh},
  )
  if difference:
    raise InputError(f'C02: {path} does not fit this model: {difference}.')
  weights = checkpoint.named_leaves(
    checkpoint.restore_model(
      path,
      checkpoint.nested(
        {
          name: jax.ShapeDtypeStruct(
            shape, jnp.float32, sharding=cluster.replicated(mesh)
          )
          for name, shape in stored.items()
        }
      ),
    )
  )
  checkpoint.check_finite(path, weights)
  taken = checkpoint.nested(
    expected
    | {n: x for n, x in weights.items() if n not in fresh and n not in unused}
  )
  if other and any(name.split('/')[2] in CLASS_LAYERS for name in fresh):
    logging.info(
      'The classes are not those of %s, so the layers that depend on them '
      'start afresh (this run | checkpoint): %s%s.',
      path,
      '; '.join(other[:5]),
      f'; and {len(other) - 5} more' if len(other) > 5 else '',
    )
  logging.info(
    'Took %d arrays from %s; started afresh: %s.',
    len(expected) - len(fresh),
    path,
    ', '.join(fresh) or 'none',
  )
  if unused:
    logging.info(
      'Ignored, because this model has no such head: %s.', ', '.join(unused)
    )
  return state._replace(
    params=taken['params'], constants=taken.get('constants', {})
  ), fresh


def _head_of(name: str) -> str | None:
  """Returns the head that an array belongs to, or `None` if to none.

  Args:
    name: Path of the array, such as 'params/box_head/fc6/bias'.
  """
  return next((head for head in HEADS if f'/{head}/' in name), None)


def _recipe_facts(config: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns {'config.KEY': value as text} for keys that all processes share.

  These are all keys but those with the property `per_process`.
  """
  may_differ = names(per_process=True)
  return {
    f'config.{key}': str(value)
    for key, value in facts_of(config).items()
    if key not in may_differ
  }


def _may_differ(name: str, config: ml_collections.ConfigDict) -> bool:
  """Tells whether a run may be continued with another value of a key.

  Args:
    name: Name of the key, such as 'train.num_steps'.
    config: The recipe of this run. With the schedule 'cosine', its
      'train.num_steps' must stay the same.
  """
  if name == 'train.num_steps' and config.optimizer.schedule == 'cosine':
    return False  # The learning rate of every step depends on this key.
  return name in BY_NAME and BY_NAME[name].may_differ_on_resume
