"""Training: from a recipe to a trained and evaluated model in a workdir."""

import contextlib
import pathlib

from absl import logging
import jax
import ml_collections
import numpy as np

from maskrcnn_jax.config import (
  canvas_arguments,
  drawn_sizes,
  fine_tuning,
  plain,
  scaled_to_batch,
  source_of,
  stored_config,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.recipe_file import write_recipe
from maskrcnn_jax.data import canvases, image_sets
from maskrcnn_jax.data.source import options_of
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import DamagedCheckpoint, InputError
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.precision import choose_precision, set_precision
from maskrcnn_jax.runtime.run_checkpoints import RunCheckpoints
from maskrcnn_jax.runtime.run_lock import only_training
from maskrcnn_jax.runtime.status_line import waiting
from maskrcnn_jax.runtime.stop_signal import Stopped, StopSignal
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training.checks import (
  check_batch_size,
  check_device,
  check_eval_set,
  check_room,
  describe_training_set,
  read_training_set,
)
from maskrcnn_jax.training.evaluations import (
  TrainEvaluations,
  expected_lines,
  steps_between,
)
from maskrcnn_jax.training.image_fingerprint import fingerprint_images
from maskrcnn_jax.training.initial_weights import adopt_checkpoint
from maskrcnn_jax.training.loop import (
  Run,
  evaluate_state,
  is_due,
  is_evaluated,
  is_over,
  run_steps,
)
from maskrcnn_jax.training.optimizer import make_recipe_optimizer
from maskrcnn_jax.training.start import first_state
from maskrcnn_jax.training.state import TrainState, initial_state
from maskrcnn_jax.training.step import Trainer, jit_train_step

# Name of the file that tells that a signal has stopped the run of a workdir. It
# is removed when the run continues.
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
  early: StopSignal | None = None,
) -> None:
  """Trains a model in a workdir and evaluates it at the end.

  A workdir with a checkpoint of the same recipe is continued from its newest
  step, as if the run had never stopped. SIGTERM or Ctrl-C ends the run after
  the current step, which is saved; `WORKDIR/interrupted` then says so. If one
  of several processes receives the signal, all of them end after the same
  step.

  Args:
    config: The recipe.
    workdir: The folder of the run. It receives config.yaml, log.txt,
      metrics.jsonl, TensorBoard events and checkpoints/, and from evaluations
      inference/, evaluations.json and best/.
    init_from: Checkpoint to take the initial weights from. If its classes
      differ in number or name, layers that depend on the classes start with
      random weights.
    skip_test: Whether to leave out the evaluation at the end.
    resume: Whether to continue the run of the workdir. If not, a workdir that
      holds a checkpoint is an error.
    allow_changes: Whether to continue a run although its recipe or its
      training set has changed.
    given_keys: Keys of the recipe that the command line gave. Their values are
      neither scaled with the batch size nor changed by a fine-tuning.
    profile_steps: Steps of which a trace is written to WORKDIR/profile.
    early: Recorded signals until this call. `None` if nothing did.

  Raises:
    InputError: If the recipe, the data, the checkpoint or the device cannot be
      used, or if another training runs in the workdir.
    FloatingPointError: If a loss or gradient is not finite. In float16, such a
      step is skipped, and it is an error only at the smallest loss scale.
    SaveError: If a checkpoint cannot be written.
  """
  with only_training(workdir):
    is_done = False
    with StopSignal(before=early) as stop, contextlib.suppress(Stopped):
      # Several processes stop together, after the first step.
      if stop.requested and jax.process_count() == 1:
        raise Stopped
      run, state, remarks = prepare_run(
        config,
        workdir,
        stop,
        init_from=init_from,
        skip_test=skip_test,
        resume=resume,
        allow_changes=allow_changes,
        given_keys=given_keys,
        profile_steps=profile_steps,
      )
      # An error also closes both, so that no pending save or log line is lost.
      with contextlib.closing(run.log), contextlib.closing(run.checkpoints):
        for line in remarks:
          run.log.line(line)
        first_step = int(state.step)
        if is_over(run, first_step):
          logging.info(
            'The run in %s is at its end, step %d.', workdir, first_step
          )
        else:
          _describe(run, first_step)
          state = run_steps(run, state, jit_train_step(run.trainer))
        if is_over(run, int(state.step)):
          # A signal may interrupt the evaluation at the end.
          _finish(run, state, skip_test)
          is_done = True
    if not is_done:
      _mark_interrupted(workdir, stop)


def end_before_training(workdir: pathlib.Path, stop: StopSignal) -> None:
  """Marks a run as interrupted that a signal has stopped before `train`.

  Several processes may do so at the same time, before they have found each
  other. If another training has the workdir, it is not marked.

  Args:
    workdir: The folder of the run; made if it does not exist.
    stop: Has recorded the signal.
  """
  with contextlib.suppress(InputError), only_training(workdir):
    _mark_interrupted(workdir, stop)


def _mark_interrupted(workdir: pathlib.Path, stop: StopSignal) -> None:
  """Logs that a signal has stopped the run, and writes `WORKDIR/interrupted`.

  Args:
    workdir: The folder of the run.
    stop: Has recorded the signal.
  """
  text = (
    f'Stopped by {stop.name}; all finished steps are saved. The same command '
    'continues from there.'
  )
  logging.info(text)
  if cluster.is_main():
    (workdir / INTERRUPTED).write_text(text + '\n', encoding='utf-8')


def prepare_run(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  stop: StopSignal,
  *,
  init_from: pathlib.Path | None,
  skip_test: bool,
  resume: bool,
  allow_changes: bool,
  given_keys: frozenset[str],
  profile_steps: range,
) -> tuple[Run, TrainState, list[str]]:
  """Reads the data, builds the model and restores or makes the first state.

  Args:
    config: The recipe.
    workdir: The folder of the run.
    stop: Tells whether a signal has come.
    init_from: Checkpoint to take the initial weights from.
    skip_test: Whether to leave out the evaluation at the end.
    resume: Whether to continue the run of the workdir. If not, a workdir that
      holds a checkpoint is an error.
    allow_changes: Whether to continue a run although its recipe or its
      training set has changed.
    given_keys: Keys of the recipe that the command line gave. Their values are
      neither scaled with the batch size nor changed by a fine-tuning.
    profile_steps: Steps to trace.

  Returns:
    The run, with its log and its checkpoints open; the state to begin with; and
    lines for the log that say which values of the recipe were computed from the
    batch size or the data.

  Raises:
    InputError: If the recipe, the data, the checkpoint, the workdir or the
      device cannot be used.
  """
  config, remarks = scaled_to_batch(config, given_keys)
  is_fine_tuning = config.train.fine_tune
  if is_fine_tuning:
    config = adopt_checkpoint(config, init_from, given_keys)
  config = _with_chosen_precision(config, workdir)
  mesh = cluster.make_mesh()
  check_batch_size(config, mesh)
  check_device(config.precision)
  with waiting('Reading the training set'):
    data_set, rows = read_training_set(config)
  index = data_set.coco_index
  if is_fine_tuning:
    config, remark = fine_tuning.fit(
      config,
      num_images=len(rows),
      most_objects=image_sets.most_objects(index),
    )
    check_config(config)
    remarks.append(remark)
    warning = fine_tuning.shrink_warning(
      index.heights[rows], index.widths[rows], config
    )
    if warning and cluster.is_main():
      logging.warning('%s', warning)
  eval_every = steps_between(config, len(rows))
  eval_source = source_of(config, 'eval')
  if eval_every and eval_source is None:
    raise InputError(
      'config.train.eval_every needs an evaluation set: '
      f'give {options_of("eval")}.'
    )
  if eval_every or not skip_test:
    with waiting('Checking the evaluation set'):
      check_eval_set(config, data_set)
  rcnn = Rcnn.from_config(
    config,
    num_classes=len(index.categories) + 1,
    dtype=set_precision(config.precision),
    mesh=mesh,
  )
  schedule, optimizer = make_recipe_optimizer(config)
  # Each process may have the images on a disk of its own; those of process 0
  # are looked at.
  with waiting('Looking at the image files'):
    images = (
      str(fingerprint_images(data_set, rows)) if cluster.is_main() else ''
    )
  metadata = checkpoint.Metadata(
    0,
    plain(config),
    [list(category) for category in index.categories],
    describe_training_set(index, rows),
    images=images,
  )
  limits = image_sets.find_limits(index, max_objects=config.data.max_objects)
  plan = canvases.plan_canvases(
    index.heights,
    index.widths,
    **canvas_arguments(config),
    **drawn_sizes(config),
  )
  with waiting('Preparing the weights'):
    state = first_state(
      initial_state(rcnn, optimizer, config),
      workdir,
      metadata,
      config,
      mesh,
      init_from=init_from,
      resume=resume,
      allow_changes=allow_changes,
    )
  check_room(state, workdir, config)
  if cluster.is_main():
    (workdir / INTERRUPTED).unlink(missing_ok=True)
    if not write_recipe(config, workdir / 'config.yaml'):
      logging.warning(
        '%s is not from this program and is kept; the recipe of this training '
        'is not written.',
        workdir / 'config.yaml',
      )
  evaluations = None
  if eval_source is not None and (eval_every or not skip_test):
    evaluations = TrainEvaluations(
      workdir,
      Detector(
        rcnn._replace(mesh=cluster.make_local_mesh()),
        {},
        config,
        index.categories,
        0,
      ),
      metadata,
      config,
      source=eval_source,
      first_step=int(state.step),
      keep_best=bool(eval_every),
    )
  trainer = Trainer.from_config(config, rcnn, optimizer, limits)
  log = TrainingLog(
    workdir,
    num_steps=config.train.num_steps,
    batch_size=config.train.batch_size,
    first_step=int(state.step),
    writes=cluster.is_main(),
  )
  with contextlib.ExitStack() as on_failure:
    on_failure.callback(log.close)
    checkpoints = RunCheckpoints(workdir, keep=config.train.keep_checkpoints)
    on_failure.pop_all()
  run = Run(
    config,
    workdir,
    data_set,
    rows,
    plan,
    schedule,
    trainer,
    mesh,
    log,
    checkpoints,
    metadata,
    stop,
    evaluations,
    eval_every,
    profile_steps,
  )
  return run, state, remarks


def _with_chosen_precision(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
  """Replaces the precision 'auto', so that checkpoints store the chosen one.

  Args:
    config: The recipe; it is not changed.
    workdir: The folder of the run. The newest checkpoint that can be read says
      which precision the run began with.

  Returns:
    The recipe; its precision is not 'auto'.
  """
  config = config.copy_and_resolve_references()
  stored = None
  if config.precision == 'auto':
    directory = workdir / 'checkpoints'
    for step in reversed(checkpoint.saved_steps(directory)):
      # `first_state` reports and moves a damaged checkpoint.
      with contextlib.suppress(DamagedCheckpoint):
        metadata = checkpoint.read_metadata(directory / str(step))
        stored = stored_config(metadata.recipe).precision
        break
  config.precision = choose_precision(config.precision, stored=stored)
  return config


def _finish(run: Run, state: TrainState, skip_test: bool) -> None:
  """Evaluates the trained model and compares its AP with the expected AP.

  A run that has ended early, because it has reached the APs of the recipe, has
  been evaluated already.

  Args:
    run: The constants and open files of the run.
    state: The last state.
    skip_test: Whether to evaluate only if the recipe asks for an evaluation
      after this step.
  """
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
  is_missing = is_due(run, step) and not is_evaluated(run, step)
  if is_missing or not skip_test:
    aps = evaluate_state(run, state, step)
    for line in expected_lines(aps, **run.config.expected):
      run.log.line(line)


def _describe(run: Run, first_step: int) -> None:
  """Writes a description of the run to the log: data, steps and image sizes.

  Args:
    run: The constants and open files of the run.
    first_step: Number of steps done when the run starts or resumes.
  """
  log, rows, config = run.log, run.rows, run.config
  index, rcnn = run.data_set.coco_index, run.trainer.rcnn
  log.line(
    f'Training on {len(rows)} images of {len(index.categories)} classes, '
    f'{config.train.batch_size} a step on {run.mesh.size} '
    f'{jax.devices()[0].platform} device(s), from step {first_step} to '
    f'{config.train.num_steps}; '
    f'{len(rows) / config.train.batch_size:.1f} steps an epoch'
  )
  sizes = ', '.join(
    f'{canvas.padded[0]}x{canvas.padded[1]} '
    f'({int(np.sum(run.plan.canvas_of_image[rows] == number))})'
    for number, canvas in enumerate(run.plan.canvases)
  )
  log.line(rcnn.kernel_choice)
  log.line(
    f'Static sizes (images): {sizes}; '
    f'{100 * canvases.share_padding(run.plan, rows):.1f} % padding'
  )
  shrunk = canvases.count_shrunk(run.plan, index.heights, index.widths, rows)
  if shrunk:
    log.line(
      f'{shrunk} images have a side above config.data.max_source_side '
      f'({config.data.max_source_side}); they are shrunk while they are read, '
      'to the largest size that training uses'
    )
  over = image_sets.count_objects_over(index, config.data.max_objects)
  if over:
    log.line(
      f'A24: {over} objects are beyond the {config.data.max_objects} slots '
      'of their image and are not trained on; '
      'raise --config.data.max_objects to train on all of them'
    )
