"""Training: from a recipe and a workdir to a trained, evaluated model."""

import contextlib
import pathlib

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.config import (
  canvas_arguments,
  fine_tuning,
  has_eval_set,
  plain,
  scaled_to_batch,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.data import canvases, image_sets
from maskrcnn_jax.data.source import how_to_give
from maskrcnn_jax.detector import (
  Detector,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.precision import set_precision
from maskrcnn_jax.runtime.stop_signal import Stopped, StopSignal
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training.evaluations import (
  TrainEvaluations,
  expected_lines,
  steps_between,
)
from maskrcnn_jax.training.loop import (
  Run,
  evaluate_state,
  is_due,
  is_over,
  run_steps,
)
from maskrcnn_jax.training.start import (
  adopt_checkpoint,
  check_device,
  check_eval_set,
  describe_training_set,
  first_state,
  read_training_set,
)
from maskrcnn_jax.training.state import (
  initial_state,
  make_recipe_optimizer,
  training_state,
  variables_of,
)
from maskrcnn_jax.training.step import Trainer, jit_train_step

# Is in the workdir of a run that a signal ended, until it goes on.
INTERRUPTED = 'interrupted'


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    init_from: pathlib.Path | None = None,
    skip_test: bool = False,
    resume: bool = True,
    allow_changes: bool = False,
    given_keys: frozenset[str] = frozenset(),
    profile_steps: range = range(0),
) -> None:
  """Trains until `config.train.num_steps`, then evaluates.

  A workdir with a checkpoint of the same recipe is continued from its newest
  step, as if it had never stopped. SIGTERM or Ctrl-C ends the run after the
  step that it is at, which is saved; `WORKDIR/interrupted` then says so. Of
  several processes, it ends all if one gets it, after the same step.

  Args:
    config: The recipe.
    workdir: Gets log.txt, TensorBoard events, checkpoints/, and of evaluations
      inference/, evaluations.json and best/.
    init_from: Checkpoint to take the initial weights from. Layers that depend
      on the classes start afresh where their number or names differ.
    skip_test: Whether to leave out the evaluation at the end.
    resume: Whether to continue; if not, a workdir with a checkpoint is an
      error.
    allow_changes: Whether to continue a run of another recipe, or on other
      images, too.
    given_keys: Keys that the command line gave: they are not scaled with the
      batch size, and a fine-tuning keeps them.
    profile_steps: Of which a trace is written into WORKDIR/profile.
  """
  with StopSignal() as stop:
    try:
      ends = _train(
          config, workdir, init_from, skip_test, resume, allow_changes,
          given_keys, profile_steps, stop,
      )
    except Stopped:
      ends = False
  if not ends:
    text = (
        f'Stopped by {stop.name}; all steps that were done are saved. The same '
        'command goes on from there.'
    )
    logging.info(text)
    if cluster.is_main():
      (workdir / INTERRUPTED).write_text(text + '\n', encoding='utf-8')


def _train(
    config, workdir, init_from, skip_test, resume, allow_changes, given_keys,
    profile_steps, stop,
):
  """Does what `train` says; False if it was stopped before its end."""
  config, remarks = scaled_to_batch(config, given_keys)
  fine_tune = config.train.fine_tune
  if fine_tune:
    config = adopt_checkpoint(config, init_from, given_keys)
  mesh = cluster.make_mesh()
  cluster.check_batch_size(
      config.train.batch_size, mesh, key='config.train.batch_size'
  )
  _check_micro_batches(config, mesh)
  check_device(config.precision)
  data_set, rows = read_training_set(config)
  index = data_set.index
  if fine_tune:
    config, remark = fine_tuning.fit(
        config,
        num_images=len(rows),
        most_objects=image_sets.most_objects(index),
    )
    check_config(config)
    remarks.append(remark)
  eval_every = steps_between(config, len(rows))
  if eval_every and not has_eval_set(config):
    raise InputError(
        'config.train.eval_every needs an evaluation set: '
        f'{how_to_give("eval")}.'
    )
  if eval_every or not skip_test:
    check_eval_set(config, index)
  limits = image_sets.find_limits(index, max_objects=config.data.max_objects)
  plan = canvases.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
  )

  rcnn = Rcnn.from_config(
      config, num_classes=len(index.categories) + 1,
      dtype=set_precision(config.precision), mesh=mesh,
  )
  schedule, optimizer = make_recipe_optimizer(config)
  metadata = checkpoint.Metadata(
      0, plain(config), [list(category) for category in index.categories],
      describe_training_set(index, rows),
  )
  state = first_state(
      initial_state(rcnn, optimizer, config), workdir, metadata, config, mesh,
      init_from=init_from, resume=resume, allow_changes=allow_changes,
  )
  _check_room(state, workdir, config)
  first_step = int(state.step)
  if cluster.is_main():
    (workdir / INTERRUPTED).unlink(missing_ok=True)

  evaluations = None
  if has_eval_set(config) and (eval_every or not skip_test):
    local_mesh = cluster.make_local_mesh()
    evaluations = TrainEvaluations(
        workdir,
        Detector(
            rcnn._replace(mesh=local_mesh), {}, config, index.categories, 0
        ),
        metadata, config, first_step=first_step, keep_best=bool(eval_every),
    )
  # Whatever stops the run, what is being saved and logged is finished.
  with (
      contextlib.closing(
          TrainingLog(
              workdir, num_steps=config.train.num_steps,
              writes=cluster.is_main(),
          )
      ) as log,
      contextlib.closing(
          checkpoint.RunCheckpoints(
              workdir, keep=config.train.keep_checkpoints
          )
      ) as saved,
  ):
    run = Run(
        config, workdir, data_set, rows, limits, plan, schedule, mesh,
        log, saved, metadata, stop, evaluations, eval_every, profile_steps,
    )
    for line in remarks:
      log.line(line)
    if is_over(run, first_step):
      logging.info(
          'The run in %s is at its end, step %d.', workdir, first_step
      )
    else:
      _describe(run, first_step, rcnn.kernel_choice)
      train_step = jit_train_step(
          Trainer.from_config(config, rcnn, optimizer, limits)
      )
      state = run_steps(run, state, train_step)
      if not is_over(run, int(state.step)):
        return False
    _finish(run, state, skip_test)
  return True


def _check_micro_batches(config, mesh):
  """Raises an InputError unless each part of a batch fills the devices."""
  parts = config.train.micro_batches
  if config.train.batch_size % (parts * mesh.size):
    raise InputError(
        f'config.train.micro_batches ({parts}) times the device count '
        f'({mesh.size}) must divide config.train.batch_size '
        f'({config.train.batch_size}).'
    )


def _check_room(state, workdir, config):
  """Finds out at once whether the checkpoints can be written."""
  size = checkpoint.tree_bytes((variables_of(state), training_state(state)))
  # One is written before the oldest is removed.
  warning = checkpoint.check_room(
      workdir / 'checkpoints', size=size,
      count=config.train.keep_checkpoints + 1,
  )
  if warning:
    logging.warning('%s', warning)


def _finish(run: Run, state, skip_test):
  """Evaluates at the end, and says how that compares with what is expected."""
  step = int(state.step)
  if step < run.config.train.num_steps:
    run.log.line(
        f'The training ends at step {step}: box AP has reached '
        f'{run.config.train.min_box_ap} and mask AP '
        f'{run.config.train.min_mask_ap}'
    )
    return
  if run.evaluations is None:
    return
  is_missing = is_due(run, step) and run.evaluations.of(step) is None
  if is_missing or not skip_test:
    aps = evaluate_state(run, state, step)
    for line in expected_lines(aps, **run.config.expected):
      run.log.line(line)


def _describe(run: Run, first_step: int, kernel_choice: str):
  """Writes what is about to be trained."""
  log, rows, config = run.log, run.rows, run.config
  index = run.data_set.index
  log.line(
      f'Training on {len(rows)} images of {len(index.categories)} classes, '
      f'{config.train.batch_size} a step on {run.mesh.size} '
      f'{jax.devices()[0].platform} device(s), from step {first_step} to '
      f'{config.train.num_steps}; '
      f'{len(rows) / config.train.batch_size:.1f} steps an epoch'
  )
  sizes = ', '.join(
      f'{c.padded[0]}x{c.padded[1]} '
      f'({int(np.sum(run.plan.canvas_of_image[rows] == k))})'
      for k, c in enumerate(run.plan.canvases)
  )
  log.line(kernel_choice)
  log.line(
      f'Static sizes (images): {sizes}; '
      f'{100 * canvases.share_padding(run.plan, rows):.1f} % padding'
  )
  over = image_sets.count_objects_over(index, config.data.max_objects)
  if over:
    log.line(
        f'A24: {over} objects are beyond the {config.data.max_objects} slots '
        'of their image and are not trained on; '
        'raise --config.data.max_objects to have them all'
    )
