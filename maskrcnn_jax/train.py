"""Training: the loop around the jitted step."""

import contextlib
import functools
import math
import pathlib
import time
from typing import NamedTuple
import zlib

from absl import logging
import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from maskrcnn_jax import checkpoint, cluster
from maskrcnn_jax.config import (
    config_difference,
    geometry_of,
    is_free,
    plain,
    scaled_to_batch,
    stored_config,
)
from maskrcnn_jax.data import coco, loader
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluate import (
  Detector,
  canvas_arguments,
  make_detect,
  make_model,
)
from maskrcnn_jax.optimizer import Schedule, learning_rate, make_optimizer
from maskrcnn_jax.precision import MIN_SCALE, set_precision
from maskrcnn_jax.stop_signal import Stopped, StopSignal
from maskrcnn_jax.train_evaluation import (
  TrainEvaluations,
  expected_lines,
  reaches,
  steps_between,
)
from maskrcnn_jax.train_step import (
  TrainState,
  initial_state,
  make_train_step,
  restored_state,
  start_average,
  training_state,
  variables_of,
)
from maskrcnn_jax.training_log import TrainingLog

# Leaves whose shape depends on the number of classes: fine-tuning on other
# classes starts these afresh, and nothing else.
CLASS_LAYERS = ('cls_score', 'bbox_pred', 'mask_fcn_logits')
CLASS_HEADS = ('box_head', 'mask_head')

# Keys of the recipe without which weights see something else than they were
# trained on.
WEIGHT_KEYS = (
    'data.pixel_mean', 'data.pixel_std', 'geometry', 'model.norm_eps',
    'model.stride_in_1x1',
)

# Is in the workdir of a run that SIGTERM ended, until it goes on.
INTERRUPTED = 'interrupted'


class Run(NamedTuple):
  """What every step of a run needs."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  index: coco.CocoIndex
  rows: np.ndarray  # of the index, to be trained on
  plan: loader.CanvasPlan
  schedule: Schedule
  mesh: Mesh
  log: TrainingLog
  saved: checkpoint.RunCheckpoints
  metadata: checkpoint.Metadata
  stop: StopSignal
  evaluations: TrainEvaluations | None
  eval_every: int  # steps; 0: at the end only
  final_eval: bool


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    init_from: pathlib.Path | None = None,
    skip_test: bool = False,
    resume: bool = True,
    allow_changes: bool = False,
    given_keys: frozenset[str] = frozenset(),
) -> None:
  """Trains until `config.train.num_steps`, then evaluates.

  A workdir with a checkpoint of the same recipe is continued from its newest
  step, as if it had never stopped. SIGTERM ends the run after the step that it
  is at, which is saved; `WORKDIR/interrupted` then says so.

  Args:
    config: The recipe.
    workdir: Gets log.txt, TensorBoard events, checkpoints/, and of evaluations
      inference/, evaluations.json and best/.
    init_from: Checkpoint to take the initial weights from. Layers that depend
      on the number of classes start afresh where that differs.
    skip_test: Whether to leave out the evaluation at the end.
    resume: Whether to continue; if not, a workdir with a checkpoint is an
      error.
    allow_changes: Whether to continue a run of another recipe, or on other
      images, too.
    given_keys: Keys of the recipe that are not to be scaled with the batch.
  """
  with StopSignal() as stop:
    try:
      ends = _train(
          config, workdir, init_from, skip_test, resume, allow_changes,
          given_keys, stop,
      )
    except Stopped:
      ends = False
  if not ends:
    text = (
        'Stopped by SIGTERM; all steps that were done are saved. The same '
        'command goes on from there.'
    )
    logging.info(text)
    if jax.process_index() == 0:
      (workdir / INTERRUPTED).write_text(text + '\n', encoding='utf-8')


def _train(
    config, workdir, init_from, skip_test, resume, allow_changes, given_keys,
    stop,
):
  """Does what `train` says; False if it was stopped before its end."""
  config, scaling = scaled_to_batch(config, given_keys)
  mesh = cluster.make_mesh()
  cluster.check_batch_size(
      config.train.batch_size, mesh, key='config.train.batch_size'
  )
  _check_micro_batches(config, mesh)
  index, rows, folder = _read_training_set(config)
  eval_every = steps_between(config, len(rows))
  _check_eval_set(config, index, skip_test and not eval_every)
  if eval_every and not config.data.eval.annotations:
    raise InputError(
        'config.train.eval_every needs an evaluation set: give '
        '--config.data.eval.images=DIR and '
        '--config.data.eval.annotations=FILE.json.'
    )
  limits = loader.find_limits(index, max_objects=config.data.max_objects)
  plan = loader.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
  )

  dtype = set_precision(config.precision)
  model = make_model(
      config, num_classes=len(index.categories) + 1, dtype=dtype
  )
  schedule, optimizer = _make_optimizer(config)
  state = initial_state(model, optimizer, config)
  metadata = checkpoint.Metadata(
      0, plain(config), [list(category) for category in index.categories],
      _describe_training_set(index, rows),
  )
  state = _first_state(
      state, workdir / 'checkpoints', metadata, config, mesh,
      init_from=init_from, resume=resume, allow_changes=allow_changes,
  )
  _check_room(state, workdir, config)
  state = cluster.replicate(state, mesh)
  first_step = int(state.step)
  (workdir / INTERRUPTED).unlink(missing_ok=True)

  evaluations = None
  if config.data.eval.annotations and (eval_every or not skip_test):
    evaluations = TrainEvaluations(
        workdir,
        Detector(
            make_detect(model, config), {}, config, index.categories, mesh, 0
        ),
        metadata, config, first_step=first_step, keep_best=bool(eval_every),
    )
  # Whatever stops the run, what is being saved and logged is finished.
  with (
      contextlib.closing(
          TrainingLog(workdir, num_steps=config.train.num_steps)
      ) as log,
      contextlib.closing(
          checkpoint.RunCheckpoints(
              workdir, keep=config.train.keep_checkpoints
          )
      ) as saved,
  ):
    run = Run(
        config, workdir, index, rows, plan, schedule, mesh, log, saved,
        metadata, stop, evaluations, eval_every,
        final_eval=evaluations is not None and not skip_test,
    )
    for line in scaling:
      log.line(line)
    if not _is_over(run, first_step):
      _describe(
          log, index, rows, plan, limits, config, mesh, first_step
      )
      batches = loader.train_batches(
          index, plan, rows, images_dir=folder, limits=limits,
          seed=config.seed, start_step=first_step,
          num_steps=config.train.num_steps - first_step,
          batch_size=config.train.batch_size,
          process_index=jax.process_index(),
          process_count=jax.process_count(),
          num_workers=config.data.num_workers,
          num_threads=config.data.num_threads,
      )
      train_step = make_train_step(
          model, optimizer, config, limits,
          skip_background=cluster.is_single_cpu(mesh),
      )
      state = _loop(run, state, train_step, batches)
      if stop.requested:
        return False
    else:
      logging.info(
          'The run in %s is at its end, step %d.', workdir, first_step
      )
    _finish(run, state)
  return True


def _first_state(
    state, directory, metadata, config, mesh, *, init_from, resume,
    allow_changes,
):
  """The state to begin with: a saved one, one with given weights, or new."""
  steps = checkpoint.saved_steps(directory)
  if not steps:
    if init_from is not None:
      state = _take_weights(
          checkpoint.find_checkpoint(init_from), state, config
      )
    return start_average(state, config)
  if not resume:
    raise InputError(
        f'{directory.parent} already holds a checkpoint of step {steps[-1]}; '
        'give another --workdir, or leave --noresume out to continue.'
    )
  state = start_average(state, config)
  for step in reversed(steps):
    try:
      state = _resume(
          directory / str(step), state, metadata, config, mesh,
          allow_changes=allow_changes,
      )
    except checkpoint.DamagedCheckpoint as error:
      logging.warning('C08 %s', error)
      continue
    for path in checkpoint.set_aside(directory, after=step):
      logging.warning(
          'C08 A damaged checkpoint is now in %s; going on from step %d.',
          path, step,
      )
    return state
  raise InputError(
      f'C08 None of the checkpoints in {directory} can be read. Give another '
      '--workdir to start anew.'
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


def _loop(run: Run, state, train_step, batches):
  """Runs the steps that are left, or until it is stopped; the last state."""
  num_steps = run.config.train.num_steps
  compiled = {}
  pending = None
  skipped = 0
  first_step = done = int(state.step)
  last_saved = first_step if first_step else None
  last = time.monotonic()
  started, apart = last, 0.0

  def take_pending():
    nonlocal pending, skipped
    # Only a state whose losses have been seen to be finite is saved.
    if pending:
      skipped = _take_figures(
          pending, run.log, run.index, run.schedule, run.config.precision
      )
      pending = None

  if _is_due(run, done) and run.evaluations.of(done) is None:
    # It was killed before that was through.
    _evaluate(run, state, done)
    apart += time.monotonic() - last
    last = time.monotonic()
  while not _is_over(run, done) and not run.stop.requested:
    asked = time.monotonic()
    loaded = _next_batch(batches, run.stop)
    if loaded is None:
      break
    batch, batch_rows = loaded
    canvas = run.plan.canvases[run.plan.canvas_of_image[batch_rows[0]]]
    batch = cluster.shard_batch(batch, run.mesh)
    data_time = time.monotonic() - asked
    if canvas not in compiled:
      compiled[canvas] = _compile(train_step, state, batch, canvas, run.log)
      last = time.monotonic() - data_time
    state, figures = compiled[canvas](state, batch)
    # The figures of the step before are looked at while this one runs.
    take_pending()
    now = time.monotonic()
    pending = (done, figures, batch_rows, now - last, data_time)
    last = now
    done += 1
    is_last = done == num_steps
    if done % run.config.train.log_every == 0 or is_last:
      take_pending()
      run.log.report(
          done, learning_rate=float(run.schedule(np.int32(done - 1))),
          skipped=skipped if run.config.precision == 'fp16' else None,
      )
    run.saved.poll()
    is_due = _is_due(run, done)
    if done % run.config.train.checkpoint_every == 0 or is_last or is_due:
      take_pending()
      _save(run, state, done)
      last_saved = done
    if is_due and not is_last:
      before = time.monotonic()
      _evaluate(run, state, done)
      apart += time.monotonic() - before
      last += time.monotonic() - before
  take_pending()
  if last_saved != done and done > first_step:
    _save(run, state, done)
  run.saved.finish()
  if done > first_step:
    seconds = time.monotonic() - started - apart
    num_canvases = len(np.unique(run.plan.canvas_of_image[run.rows]))
    length = time.strftime('%H:%M:%S', time.gmtime(seconds))
    run.log.line(
        f'Total training time: {length} '
        f'({seconds / (done - first_step):.4f} s / it); '
        f'{len(compiled)} compilations for {num_canvases} static sizes'
    )
  return state


def _next_batch(batches, stop):
  """The next batch, or None if the signal has ended those who load it."""
  try:
    return next(batches)
  except RuntimeError:
    # Some clusters send it to the worker processes too.
    if stop.requested:
      return None
    raise


def _save(run: Run, state, step: int):
  """Starts to save a state."""
  run.saved.save(
      model=variables_of(state), training=training_state(state),
      metadata=run.metadata._replace(step=step),
  )


def _is_due(run: Run, step: int) -> bool:
  """Tells whether there is an evaluation after so many steps."""
  return bool(run.eval_every and step and step % run.eval_every == 0)


def _evaluate(run: Run, state, step: int):
  """Evaluates a state; the signal ends that at once."""
  # A state that was evaluated must be there to go on from.
  run.saved.finish()
  with run.stop.interrupting():
    aps = run.evaluations.run(state, step)
  run.log.scalars(step, {
      f'eval/{kind}_{name}': figure
      for kind, ap in aps.items()
      for name, figure in ap.stats.items() if figure is not None
  })
  now = run.evaluations.of(step)
  text = (
      f'Evaluation at step {step}: box AP {_figure(now.box_ap)}, mask AP '
      f'{_figure(now.mask_ap)}'
  )
  if run.eval_every:
    best = run.evaluations.best()
    text += f'; best so far at step {best.step}, in {run.workdir / "best"}'
  run.log.line(text)
  return aps


def _figure(ap: float | None) -> str:
  return 'n/a' if ap is None else f'{ap:.4f}'


def _is_over(run: Run, step: int) -> bool:
  """Tells whether the training ends after so many steps."""
  if step >= run.config.train.num_steps:
    return True
  return run.evaluations is not None and reaches(
      run.evaluations.of(step), min_box_ap=run.config.train.min_box_ap,
      min_mask_ap=run.config.train.min_mask_ap,
  )


def _finish(run: Run, state):
  """Evaluates at the end, and says how that compares with what is expected."""
  step = int(state.step)
  if step < run.config.train.num_steps:
    run.log.line(
        f'The training ends at step {step}: box AP has reached '
        f'{run.config.train.min_box_ap} and mask AP '
        f'{run.config.train.min_mask_ap}'
    )
    return
  is_missing = _is_due(run, step) and run.evaluations.of(step) is None
  if run.final_eval or is_missing:
    aps = _evaluate(run, state, step)
    for line in expected_lines(aps, **run.config.expected):
      run.log.line(line)


def _make_optimizer(config):
  """Returns the learning rate as a function of the step, and the optimizer."""
  recipe = config.optimizer
  arguments = dict(
      warmup=recipe.warmup,
      warmup_steps=recipe.warmup_steps,
      warmup_factor=recipe.warmup_factor,
      schedule=recipe.schedule,
      decay_steps=tuple(recipe.decay_steps),
      decay_factor=recipe.decay_factor,
      num_steps=config.train.num_steps,
  )
  schedule = functools.partial(
      learning_rate, base=recipe.learning_rate, **arguments
  )
  bias_schedule = functools.partial(
      learning_rate, base=recipe.learning_rate * recipe.bias_rate_factor,
      **arguments
  )
  return schedule, make_optimizer(
      momentum=recipe.momentum,
      weight_decay=recipe.weight_decay,
      schedule=schedule,
      bias_schedule=bias_schedule,
      clip_norm=recipe.clip_norm,
  )


def _compile(train_step, state, batch, canvas, log):
  """Compiles the step for one canvas and says what that took."""
  height, width = canvas.padded
  started = time.monotonic()
  step = train_step.lower(state, batch, padded_size=canvas.padded).compile()
  seconds = time.monotonic() - started
  text = f'Compiled the step for {height}x{width} images in {seconds:.1f} s'
  memory = step.memory_analysis()
  if memory is not None:
    mib = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    ) / 2**20
    text += f'; it needs {mib:.0f} MiB a device'
  log.line(text)
  return step


def _take_figures(pending, log, index, schedule, precision):
  """Fetches a step's figures, stops if one is not finite, and logs them.

  In fp16 a step that is not finite is skipped, and that is said; only where a
  lower scale of the loss can help no more is it an error.

  Returns:
    Steps skipped so far.
  """
  step, figures, batch_rows, step_time, data_time = pending
  figures = {n: float(v) for n, v in jax.device_get(figures).items()}
  scale = figures.pop('loss_scale', 1.0)
  skipped = int(figures.pop('skipped', 0))
  wrong = [
      f'{name} is {value}' for name, value in figures.items()
      if not math.isfinite(value)
  ]
  if wrong:
    ids = [index.image_ids[row] for row in batch_rows]
    text = f'{", ".join(wrong)} at step {step}'
    if precision == 'fp16' and scale > MIN_SCALE:
      log.line(
          f'Skipped a step: {text} (images {ids}); the scale of the loss goes '
          f'from {scale:g} to {scale / 2:g}; {skipped} skipped so far'
      )
      log.add(time=step_time, data=data_time)
      return skipped
    rate = float(schedule(np.int32(step)))
    message = (
        f'{text} (learning rate {rate:g}, images {ids}). The last checkpoint '
        'is from before this. Lower --config.optimizer.learning_rate or look '
        'at these images.'
    )
    if precision == 'fp16':
      message += (
          ' The scale of the loss is at its least; if --config.precision=bf16 '
          'or fp32 trains, float16 cannot hold the features.'
      )
    log.line(message)
    raise FloatingPointError(message)
  norm = figures.pop('grad_norm')
  if precision == 'fp16':
    figures['loss_scale'] = scale
  log.add(**figures, grad_norm=norm, time=step_time, data=data_time)
  return skipped


def _check_micro_batches(config, mesh):
  """Raises an InputError unless each part of a batch fills the devices."""
  parts = config.train.micro_batches
  if config.train.batch_size % (parts * mesh.size):
    raise InputError(
        f'config.train.micro_batches ({parts}) times the device count '
        f'({mesh.size}) must divide config.train.batch_size '
        f'({config.train.batch_size}).'
    )


def _read_training_set(config):
  """Reads, filters and checks the training set; logs what was dropped."""
  annotations = config.data.train.annotations
  if not annotations or not config.data.train.images:
    raise InputError(
        'No training set: give --config.data.train.images=DIR and '
        '--config.data.train.annotations=FILE.json.'
    )
  folder = pathlib.Path(config.data.train.images)
  index = coco.read_coco(
      pathlib.Path(annotations),
      width_offset=geometry_of(config).width_offset,
  )
  rows, waterfall = loader.filter_images(
      index, keep_empty=config.data.keep_empty
  )
  for line in loader.format_waterfall(waterfall).splitlines():
    logging.info('%s', line)
  loader.check_images_exist(index, folder)
  return index, rows, folder


def _check_eval_set(config, index, skip_test):
  """Finds out before training what would stop the evaluation after it."""
  if skip_test:
    return
  if not config.data.eval.annotations:
    logging.info(
        'No evaluation set (--config.data.eval.images, .annotations): there '
        'will be no evaluation at the end.'
    )
    return
  truth = coco.read_coco(
      pathlib.Path(config.data.eval.annotations), require_masks=False
  )
  difference = coco.class_table_difference(truth.categories, index.categories)
  if difference:
    raise InputError(
        f'A21 {config.data.eval.annotations} has other classes than '
        f'{config.data.train.annotations}: {"; ".join(difference[:10])}.'
    )
  loader.check_images_exist(truth, pathlib.Path(config.data.eval.images))


def _describe_training_set(index, rows) -> str:
  """Says what is trained on, so that a resume on other data is noticed."""
  checksum = zlib.crc32(repr(index.file_names).encode())
  for array in (rows, index.boxes, index.classes, index.vertices):
    checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
  return (
      f'{len(rows)} images with {len(index.classes)} objects (checksum '
      f'{checksum:08x})'
  )


def _resume(
    path, state, metadata, config, mesh, *, allow_changes
) -> TrainState:
  """The state of a saved step of the same recipe and classes."""
  stored = checkpoint.read_metadata(path)
  there = stored_config(stored.config)
  different = [
      line for line in config_difference(config, plain(there))
      if not is_free(line)
      # The rate of every step depends on where the cosine ends.
      or line.startswith('train.num_steps:')
      and config.optimizer.schedule == 'cosine'
  ]
  if different and allow_changes:
    logging.warning(
        'C07 Going on with another recipe (here | there): %s.',
        '; '.join(different),
    )
  elif different:
    raise InputError(
        f'C07 {path.parent.parent} holds a run of another recipe (here | '
        f'there): {"; ".join(different)}. Give another --workdir, start from '
        f'its weights alone with --init_from={path}, or go on all the same '
        'with --allow_changes.'
    )
  if stored.categories != metadata.categories:
    raise InputError(
        f'{path.parent.parent} holds a run on other classes than '
        f'{config.data.train.annotations} has. Give another --workdir.'
    )
  if stored.training_set != metadata.training_set:
    text = (
        f'C07 {path.parent.parent} holds a run on {stored.training_set}, but '
        f'{config.data.train.annotations} has {metadata.training_set}.'
    )
    if not allow_changes:
      raise InputError(
          f'{text} Give another --workdir, start from its weights alone with '
          f'--init_from={path}, or go on all the same with --allow_changes.'
      )
    logging.warning('%s', text)
  if stored.step > config.train.num_steps:
    raise InputError(
        f'{path} has {stored.step} steps, more than config.train.num_steps '
        f'({config.train.num_steps}).'
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


def _take_weights(path, state: TrainState, config) -> TrainState:
  """A state of step 0 with a checkpoint's weights, heads of classes aside.

  Of a partial checkpoint, layers that it lacks start afresh too.
  """
  metadata = checkpoint.read_metadata(path)
  different = [
      line for line in config_difference(
          config, plain(stored_config(metadata.config))
      )
      if line.startswith(WEIGHT_KEYS)
  ]
  if different:
    logging.warning(
        'C13 The weights of %s expect other values (here | there): %s. Set '
        'these keys to theirs, unless you mean to train them anew.', path,
        '; '.join(different),
    )
  expected = checkpoint.named_leaves(variables_of(state))
  stored = checkpoint.model_shapes(path)
  fresh = [
      name for name in expected
      if name in stored and stored[name] != expected[name].shape
      and name.split('/')[1] in CLASS_HEADS
      and name.split('/')[2] in CLASS_LAYERS
      or name not in stored and metadata.is_partial
  ]
  difference = checkpoint.compare_trees(
      {n: s for n, s in stored.items() if n not in fresh},
      {n: tuple(x.shape) for n, x in expected.items() if n not in fresh},
  )
  if difference:
    raise InputError(f'{path} does not fit this model: {difference}.')
  weights = checkpoint.named_leaves(checkpoint.restore_model(
      path, checkpoint.nested({
          name: jax.ShapeDtypeStruct(shape, expected[name].dtype)
          for name, shape in stored.items()
      })
  ))
  taken = checkpoint.nested(
      expected | {n: x for n, x in weights.items() if n not in fresh}
  )
  logging.info(
      'Took %d arrays from %s; started afresh: %s.',
      len(expected) - len(fresh), path, ', '.join(fresh) or 'none',
  )
  return state._replace(
      params=taken['params'], constants=taken.get('constants', {})
  )


def _describe(log, index, rows, plan, limits, config, mesh, first_step):
  """Writes what is about to be trained."""
  log.line(
      f'Training on {len(rows)} images of {len(index.categories)} classes, '
      f'{config.train.batch_size} a step on {mesh.size} '
      f'{jax.devices()[0].platform} device(s), from step {first_step} to '
      f'{config.train.num_steps}; '
      f'{len(rows) / config.train.batch_size:.1f} steps an epoch'
  )
  sizes = ', '.join(
      f'{c.padded[0]}x{c.padded[1]} '
      f'({int(np.sum(plan.canvas_of_image[rows] == k))})'
      for k, c in enumerate(plan.canvases)
  )
  log.line(f'Static sizes (images): {sizes}')
  over = loader.count_objects_over(index, config.data.max_objects)
  if over:
    log.line(
        f'A24 {over} objects are beyond the {config.data.max_objects} slots '
        'of their image and are not trained on; '
        'raise --config.data.max_objects to have them all'
    )
