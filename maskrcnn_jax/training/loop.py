"""The loop around the jitted step: figures, checkpoints, evaluations."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import math
import pathlib
import time
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch
from maskrcnn_jax.config import pixel_range_of
from maskrcnn_jax.data import canvases, loader, train_order
from maskrcnn_jax.data.source import DataSet
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.evaluation.average_recall import RecallResult
from maskrcnn_jax.runtime import checkpoint, cluster, watchdog
from maskrcnn_jax.runtime.precision import MIN_SCALE
from maskrcnn_jax.runtime.stop_signal import StopSignal
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training.evaluations import TrainEvaluations, reaches
from maskrcnn_jax.training.optimizer import Schedule
from maskrcnn_jax.training.state import TrainState, training_state, variables_of
from maskrcnn_jax.training.step import Trainer

# A loss that is not finite within so many steps is usually the fault of a
# learning rate that is too high for the batch size. Later, the data is as
# likely.
_EARLY = 100


class Run(NamedTuple):
  """The constants and open files of a run."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  data_set: DataSet
  rows: np.ndarray  # rows of its index that are trained on
  plan: canvases.CanvasPlan
  schedule: Schedule
  trainer: Trainer
  log: TrainingLog
  saved: checkpoint.RunCheckpoints
  metadata: checkpoint.Metadata
  stop: StopSignal
  evaluations: TrainEvaluations | None
  eval_every: int  # steps between evaluations; 0: only at the end
  profile_steps: range  # steps to trace


class _Pending(NamedTuple):
  """A step that has been started and whose figures were not looked at yet."""

  step: int
  figures: dict
  batch_rows: np.ndarray  # rows of the index, of all processes
  stops: jax.Array | bool  # whether any process has been told to stop
  step_time: float  # seconds from the start of the step before
  data_time: float  # seconds that the step waited for its batch


def run_steps(run: Run, state: TrainState, train_step: Callable) -> TrainState:
  """Runs the remaining steps, or until the run is told to stop.

  Args:
    run: The constants and open files of the run.
    state: The state to begin with, replicated on every device.
    train_step: The jitted training step.

  Returns:
    The last state, which has been saved.
  """
  config, mesh = run.config, run.trainer.rcnn.mesh
  compiled = {}
  pending = None
  skipped = 0
  stops = False
  first_step = done = int(state.step)
  last_saved = first_step if first_step else None
  order = train_order.make_order(
    run.plan.canvas_of_image[run.rows],
    seed=config.seed,
    batch_size=config.train.batch_size,
  )
  trace = _Trace(run, first_step)
  last = started = time.monotonic()
  evaluating = 0.0  # seconds

  def take_pending():
    nonlocal pending, skipped, stops
    # A state is saved only after its losses have been found to be finite.
    if pending:
      skipped = _take_figures(
        pending,
        run.log,
        image_ids=run.data_set.coco_index.image_ids,
        schedule=run.schedule,
        scales_loss=run.trainer.scales_loss,
      )
      stops = bool(pending.stops)
      pending = None

  def evaluate():
    nonlocal evaluating, last
    before = time.monotonic()
    evaluate_state(run, state, done)
    evaluating += time.monotonic() - before
    last += time.monotonic() - before

  with contextlib.closing(_load_batches(run, first_step)) as batches:
    if is_due(run, done) and run.evaluations.of(done) is None:
      # The run was killed before this evaluation was finished.
      evaluate()
    # A single process stops after the current step. Several processes stop
    # after the same step, once all of them have heard of the signal.
    while (
      not is_over(run, done)
      and not stops
      and not (run.stop.requested and jax.process_count() == 1)
    ):
      trace.begin(done)
      asked = time.monotonic()
      batch = next(batches)
      batch_rows = run.rows[order.rows(done)]
      canvas = run.plan.canvases[run.plan.canvas_of_image[batch_rows[0]]]
      batch = cluster.shard_batch(batch, mesh)
      data_time = time.monotonic() - asked
      if canvas not in compiled:
        compiled[canvas] = _compile(train_step, state, batch, canvas, run.log)
        last = time.monotonic() - data_time
      state, figures = compiled[canvas](state, batch)
      any_stops = cluster.any_process(run.stop.requested, mesh)
      trace.end(done, figures)
      # While this step runs, the figures of the step before are looked at.
      take_pending()
      now = time.monotonic()
      pending = _Pending(
        done, figures, batch_rows, any_stops, now - last, data_time
      )
      last = now
      done += 1
      is_last = done == config.train.num_steps
      if done % config.train.log_every == 0 or is_last:
        take_pending()
        _report(run, done, skipped)
      run.saved.poll()
      if (
        done % config.train.checkpoint_every == 0
        or is_last
        or is_due(run, done)
      ):
        take_pending()
        _save(run, state, done)
        last_saved = done
      if is_due(run, done) and not is_last:
        evaluate()
    trace.end(done - 1, state, stops=True)
    take_pending()
    if last_saved != done and done > first_step:
      _save(run, state, done)
  run.saved.finish()
  watchdog.progress(f'the checkpoint of step {done}')
  if done > first_step:
    _report_total(
      run,
      time.monotonic() - started - evaluating,
      done - first_step,
      len(compiled),
    )
  return state


def is_due(run: Run, step: int) -> bool:
  """Tells whether there is an evaluation after so many steps."""
  return bool(run.eval_every and step and step % run.eval_every == 0)


def is_over(run: Run, step: int) -> bool:
  """Tells whether the training ends after so many steps."""
  if step >= run.config.train.num_steps:
    return True
  return run.evaluations is not None and reaches(
    run.evaluations.of(step),
    min_box_ap=run.config.train.min_box_ap,
    min_mask_ap=run.config.train.min_mask_ap,
  )


def evaluate_state(
  run: Run, state: TrainState, step: int
) -> dict[str, ApResult | RecallResult]:
  """Evaluates a state and logs its AP. All processes must call this.

  Raises:
    Stopped: If a signal comes while a single process evaluates. Several
      processes finish the evaluation, so that none waits for another.
  """
  # An evaluated state must be on disk, so that the run can continue from it.
  run.saved.finish()
  with (
    run.stop.interrupting()
    if jax.process_count() == 1
    else contextlib.nullcontext()
  ):
    aps = run.evaluations.run(state, step)
  run.log.scalars(
    step,
    {
      f'eval/{kind}_{name}': figure
      for kind, ap in aps.items()
      for name, figure in ap.stats.items()
      if figure is not None
    },
  )
  now = run.evaluations.of(step)
  text = (
    f'Evaluation at step {step}: box AP {_figure(now.box_ap)}, mask AP '
    f'{_figure(now.mask_ap)}'
  )
  if now.recall is not None:
    text += f', recall of proposals {now.recall:.4f}'
  if run.eval_every:
    best = run.evaluations.best()
    text += f'; best so far at step {best.step}, in {run.workdir / "best"}'
  run.log.line(text)
  return aps


def _figure(ap: float | None) -> str:
  return 'n/a' if ap is None else f'{ap:.4f}'


def _load_batches(run: Run, first_step: int) -> Iterator[Batch]:
  """Yields this process's part of the batch of each remaining step."""
  step = first_step
  num_workers = run.config.data.num_workers
  while True:
    batches = loader.train_batches(
      run.data_set,
      run.plan,
      run.rows,
      limits=run.trainer.limits,
      seed=run.config.seed,
      start_step=step,
      num_steps=run.config.train.num_steps - step,
      batch_size=run.config.train.batch_size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      num_workers=num_workers,
      num_threads=run.config.data.num_threads,
      pixel_range=pixel_range_of(run.config),
      scratch_dir=run.workdir,
    )
    try:
      with contextlib.closing(batches):
        for batch, _ in batches:
          step += 1
          yield batch
      return
    except RuntimeError:
      # Ctrl-C, and SIGTERM of some clusters, reach the worker processes too,
      # and a worker that has only just started ends. This process then loads
      # the batches that are needed until all processes have stopped.
      if not run.stop.requested or not num_workers:
        raise
      num_workers = 0


def _report(run: Run, done: int, skipped: int) -> None:
  """Writes the line of the last steps to the log."""
  run.log.report(
    done,
    learning_rate=float(run.schedule(np.int32(done - 1))),
    skipped=skipped if run.trainer.scales_loss else None,
  )


def _report_total(
  run: Run, seconds: float, num_steps: int, num_compiled: int
) -> None:
  """Writes to the log how long the training took."""
  num_canvases = len(np.unique(run.plan.canvas_of_image[run.rows]))
  length = time.strftime('%H:%M:%S', time.gmtime(seconds))
  run.log.line(
    f'Total training time: {length} ({seconds / num_steps:.4f} s / it); '
    f'{num_compiled} compilations for {num_canvases} static sizes'
  )


def _save(run: Run, state, step: int):
  """Starts to save a state."""
  run.saved.save(
    model=variables_of(state),
    training=training_state(state),
    metadata=run.metadata._replace(step=step),
  )


class _Trace:
  """The profiler's trace of the chosen steps, which process 0 writes."""

  def __init__(self, run, first_step):
    self._log = run.log
    self._directory = run.workdir / 'profile'
    self._steps = (
      range(
        max(run.profile_steps.start, first_step),
        min(run.profile_steps.stop, run.config.train.num_steps),
      )
      if cluster.is_main()
      else range(0)
    )
    self._runs = False

  def begin(self, step):
    """Starts the trace if this is the first of the chosen steps."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
      self._runs = True

  def end(self, step, results, *, stops=False):
    """Writes the trace if this is the last step or the training stops."""
    if self._runs and (stops or step == self._steps[-1]):
      jax.block_until_ready(results)
      jax.profiler.stop_trace()
      self._runs = False
      self._log.line(
        f'Traced steps {self._steps[0]} to {step}: {self._directory}; '
        'TensorBoard shows it, and ui.perfetto.dev its '
        'perfetto_trace.json.gz'
      )


def _compile(train_step, state, batch, canvas, log):
  """Compiles the step for one canvas and logs the time and the memory."""
  height, width = canvas.padded
  started = time.monotonic()
  step = train_step.lower(state, batch, padded_size=canvas.padded).compile()
  seconds = time.monotonic() - started
  watchdog.progress(f'compiling the step for {height}x{width} images')
  text = f'Compiled the step for {height}x{width} images in {seconds:.1f} s'
  memory = step.memory_analysis()
  if memory is not None:
    mib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
    text += f'; it needs {mib:.0f} MiB a device'
  log.line(text)
  return step


def _take_figures(
  pending: _Pending,
  log: TrainingLog,
  *,
  image_ids: Sequence,
  schedule: Schedule,
  scales_loss: bool,
) -> int:
  """Fetches the figures of a step, checks that they are finite and logs them.

  Args:
    pending: The step.
    log: The log to write to.
    image_ids: COCO's ids of the images, by row of the index.
    schedule: Function from a step to its learning rate.
    scales_loss: True in float16, where a step that is not finite is skipped
      and logged. It is an error only once the loss scale is at its minimum.

  Returns:
    Number of steps skipped so far.

  Raises:
    FloatingPointError: If a figure is not finite.
  """
  step, step_time, data_time = (
    pending.step,
    pending.step_time,
    pending.data_time,
  )
  figures = {n: float(v) for n, v in jax.device_get(pending.figures).items()}
  watchdog.progress(f'step {step}')
  scale = figures.pop('loss_scale', 1.0)
  skipped = int(figures.pop('skipped', 0))
  wrong = [
    f'{name} is {value}'
    for name, value in figures.items()
    if not math.isfinite(value)
  ]
  if wrong:
    ids = [image_ids[row] for row in pending.batch_rows]
    text = f'{", ".join(wrong)} at step {step}'
    if scales_loss and scale > MIN_SCALE:
      log.line(
        f'Skipped a step: {text} (images {ids}); the loss scale goes '
        f'from {scale:g} to {scale / 2:g}; {skipped} skipped so far'
      )
      log.add(time=step_time, data=data_time)
      return skipped
    rate = float(schedule(np.int32(step)))
    message = (
      f'C04: {text} (learning rate {rate:g}, images {ids}). The last '
      f'checkpoint is from before this. {_likely_cause(step, rate, len(ids))}'
    )
    if scales_loss:
      message += (
        ' The loss scale is at its minimum; if --config.precision=bf16 '
        'or fp32 trains, float16 cannot hold the features.'
      )
    log.line(message)
    raise FloatingPointError(message)
  norm = figures.pop('grad_norm')
  if scales_loss:
    figures['loss_scale'] = scale
  log.add(**figures, grad_norm=norm, time=step_time, data=data_time)
  return skipped


def _likely_cause(step: int, rate: float, batch_size: int) -> str:
  """Returns the most likely cause of a loss that is not finite."""
  if step == 0:
    return (
      'No update was made yet: look at these images, and at the weights '
      'that the run began with.'
    )
  if step < _EARLY:
    return (
      f'Within the first {_EARLY} steps the likely cause is the learning '
      f'rate, for {batch_size} images a step: lower '
      '--config.optimizer.learning_rate or raise '
      '--config.optimizer.warmup_steps; else look at these images.'
    )
  return 'Lower --config.optimizer.learning_rate or look at these images.'
