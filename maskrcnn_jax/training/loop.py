"""The loop around the jitted step: figures, checkpoints, evaluations."""

from collections.abc import Iterator
import contextlib
import math
import pathlib
import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
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

# A loss that is not finite before so many steps is one of a learning rate that
# is too high for the batch; later the data is as likely.
_EARLY = 100


class Run(NamedTuple):
  """What every step of a run needs."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  data_set: DataSet
  rows: np.ndarray  # rows of its index that are trained on
  limits: GroundTruthLimits
  plan: canvases.CanvasPlan
  schedule: Schedule
  mesh: Mesh
  log: TrainingLog
  saved: checkpoint.RunCheckpoints
  metadata: checkpoint.Metadata
  stop: StopSignal
  evaluations: TrainEvaluations | None
  eval_every: int  # steps; 0: at the end only
  profile_steps: range


class _Pending(NamedTuple):
  """A step whose figures have not been looked at."""

  step: int
  figures: dict
  batch_rows: np.ndarray  # of all processes
  stops: jax.Array | bool  # whether a process had been told to stop
  step_time: float
  data_time: float


def run_steps(run: Run, state: TrainState, train_step) -> TrainState:
  """Runs the steps that are left, or until it is stopped; the last state.

  Args:
    run: Of which step `state.step` is next.
    state: Whole on every device.
    train_step: As `make_train_step` gives it.
  """
  with contextlib.closing(_load_batches(run, int(state.step))) as batches:
    return _run_steps(run, state, train_step, batches)


def _run_steps(run, state, train_step, batches):
  """Does what `run_steps` says, with the batches of the steps that are left."""
  num_steps = run.config.train.num_steps
  compiled = {}
  pending = None
  skipped = 0
  stops = False
  first_step = done = int(state.step)
  last_saved = first_step if first_step else None
  order = train_order.make_order(
      run.plan.canvas_of_image[run.rows], seed=run.config.seed,
      batch_size=run.config.train.batch_size,
  )
  trace = _Trace(run, first_step)
  last = time.monotonic()
  started, apart = last, 0.0

  def take_pending():
    nonlocal pending, skipped, stops
    # Only a state whose losses have been seen to be finite is saved.
    if pending:
      skipped = _take_figures(
          pending, run.log, run.data_set.index, run.schedule,
          run.config.precision,
      )
      stops = bool(pending.stops)
      pending = None

  if is_due(run, done) and run.evaluations.of(done) is None:
    # It was killed before that was through.
    evaluate_state(run, state, done)
    apart += time.monotonic() - last
    last = time.monotonic()
  # One process stops after the step that it is at; several after the one
  # before which all of them have heard of it.
  while not is_over(run, done) and not stops and not (
      run.stop.requested and jax.process_count() == 1
  ):
    trace.begin(done)
    asked = time.monotonic()
    batch = next(batches)
    batch_rows = run.rows[order.rows(done)]
    canvas = run.plan.canvases[run.plan.canvas_of_image[batch_rows[0]]]
    batch = cluster.shard_batch(batch, run.mesh)
    data_time = time.monotonic() - asked
    if canvas not in compiled:
      compiled[canvas] = _compile(train_step, state, batch, canvas, run.log)
      last = time.monotonic() - data_time
    state, figures = compiled[canvas](state, batch)
    any_stops = cluster.any_process(run.stop.requested, run.mesh)
    trace.end(done, figures)
    # The figures of the step before are looked at while this one runs.
    take_pending()
    now = time.monotonic()
    pending = _Pending(
        done, figures, batch_rows, any_stops, now - last, data_time
    )
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
    if done % run.config.train.checkpoint_every == 0 or is_last or is_due(
        run, done
    ):
      take_pending()
      _save(run, state, done)
      last_saved = done
    if is_due(run, done) and not is_last:
      before = time.monotonic()
      evaluate_state(run, state, done)
      apart += time.monotonic() - before
      last += time.monotonic() - before
  trace.end(done - 1, state, stops=True)
  take_pending()
  if last_saved != done and done > first_step:
    _save(run, state, done)
  run.saved.finish()
  watchdog.progress(f'the checkpoint of step {done}')
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


def is_due(run: Run, step: int) -> bool:
  """Tells whether there is an evaluation after so many steps."""
  return bool(run.eval_every and step and step % run.eval_every == 0)


def is_over(run: Run, step: int) -> bool:
  """Tells whether the training ends after so many steps."""
  if step >= run.config.train.num_steps:
    return True
  return run.evaluations is not None and reaches(
      run.evaluations.of(step), min_box_ap=run.config.train.min_box_ap,
      min_mask_ap=run.config.train.min_mask_ap,
  )


def evaluate_state(
    run: Run, state: TrainState, step: int
) -> dict[str, ApResult | RecallResult]:
  """Evaluates a state, which all processes do together, and logs its AP.

  A signal ends that at once if there is one process, with `Stopped`; several
  finish it, lest the others wait for one.
  """
  # A state that was evaluated must be there to go on from.
  run.saved.finish()
  with (
      run.stop.interrupting() if jax.process_count() == 1
      else contextlib.nullcontext()
  ):
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
  """Yields this process's part of the batch of each step that is left."""
  step = first_step
  num_workers = run.config.data.num_workers
  while True:
    batches = loader.train_batches(
        run.data_set, run.plan, run.rows, limits=run.limits,
        seed=run.config.seed, start_step=step,
        num_steps=run.config.train.num_steps - step,
        batch_size=run.config.train.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
        num_workers=num_workers, num_threads=run.config.data.num_threads,
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
      # Ctrl-C, and SIGTERM of some clusters, go to the worker processes too,
      # which end if they have only just started. What is needed until all have
      # stopped is loaded here.
      if not run.stop.requested or not num_workers:
        raise
      num_workers = 0


def _save(run: Run, state, step: int):
  """Starts to save a state."""
  run.saved.save(
      model=variables_of(state), training=training_state(state),
      metadata=run.metadata._replace(step=step),
  )


class _Trace:
  """The trace of some steps, which process 0 writes."""

  def __init__(self, run, first_step):
    self._log = run.log
    self._directory = run.workdir / 'profile'
    self._steps = range(
        max(run.profile_steps.start, first_step),
        min(run.profile_steps.stop, run.config.train.num_steps),
    ) if cluster.is_main() else range(0)
    self._runs = False

  def begin(self, step):
    """Starts it, if this is the first of the steps."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
      self._runs = True

  def end(self, step, results, *, stops=False):
    """Writes it, if this is the last of the steps or the training stops."""
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
  """Compiles the step for one canvas and says what that took."""
  height, width = canvas.padded
  started = time.monotonic()
  step = train_step.lower(state, batch, padded_size=canvas.padded).compile()
  seconds = time.monotonic() - started
  watchdog.progress(f'compiling the step for {height}x{width} images')
  text = f'Compiled the step for {height}x{width} images in {seconds:.1f} s'
  memory = step.memory_analysis()
  if memory is not None:
    mib = (
        memory.argument_size_in_bytes + memory.temp_size_in_bytes
    ) / 2**20
    text += f'; it needs {mib:.0f} MiB a device'
  log.line(text)
  return step


def _take_figures(pending: _Pending, log, index, schedule, precision) -> int:
  """Fetches a step's figures, stops if one is not finite, and logs them.

  In fp16 a step that is not finite is skipped, and that is said; only where a
  lower scale of the loss can help no more is it an error.

  Returns:
    Steps skipped so far.
  """
  step, step_time, data_time = (
      pending.step, pending.step_time, pending.data_time
  )
  figures = {
      n: float(v) for n, v in jax.device_get(pending.figures).items()
  }
  watchdog.progress(f'step {step}')
  scale = figures.pop('loss_scale', 1.0)
  skipped = int(figures.pop('skipped', 0))
  wrong = [
      f'{name} is {value}' for name, value in figures.items()
      if not math.isfinite(value)
  ]
  if wrong:
    ids = [index.image_ids[row] for row in pending.batch_rows]
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
        f'C04: {text} (learning rate {rate:g}, images {ids}). The last '
        f'checkpoint is from before this. {_likely_cause(step, rate, len(ids))}'
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


def _likely_cause(step: int, rate: float, batch_size: int) -> str:
  """Says what to do about a loss that is not finite."""
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
