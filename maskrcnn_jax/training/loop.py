"""The loop over the training steps, with its log, checkpoints, evaluations."""

from collections.abc import Callable, Generator
import contextlib
import pathlib
import time
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch
from maskrcnn_jax.config import compilation_facts, pixel_range_of
from maskrcnn_jax.data import canvases, loader, train_order
from maskrcnn_jax.data.source import DataSet
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.evaluation.average_recall import RecallResult
from maskrcnn_jax.runtime import checkpoint, cluster, watchdog
from maskrcnn_jax.runtime.compilation import compiling
from maskrcnn_jax.runtime.run_checkpoints import RunCheckpoints
from maskrcnn_jax.runtime.status_line import waiting
from maskrcnn_jax.runtime.stop_signal import StopSignal
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training.evaluations import (
  TrainEvaluations,
  describe,
  reaches,
)
from maskrcnn_jax.training.figures import PendingStep, take_figures
from maskrcnn_jax.training.optimizer import Schedule
from maskrcnn_jax.training.state import TrainState, training_state, variables_of
from maskrcnn_jax.training.step import Figures, JittedStep, Trainer

# A training step, compiled for one canvas.
_CompiledStep = Callable[[TrainState, Batch], tuple[TrainState, Figures]]


class Run(NamedTuple):
  """The objects that stay the same in a run, and its open files."""

  config: ml_collections.ConfigDict  # the recipe
  workdir: pathlib.Path  # folder of the run
  data_set: DataSet  # training set
  rows: np.ndarray  # rows of its index that are trained on
  plan: canvases.CanvasPlan
  schedule: Schedule
  trainer: Trainer
  mesh: Mesh  # all devices of all processes
  log: TrainingLog
  checkpoints: RunCheckpoints
  metadata: checkpoint.Metadata  # of the checkpoints, but for the step
  stop: StopSignal
  evaluations: TrainEvaluations | None  # None if the run never evaluates
  eval_every: int  # steps between evaluations; 0 evaluates at the end only
  profile_steps: range  # steps to trace


def run_steps(
  run: Run, state: TrainState, train_step: JittedStep
) -> TrainState:
  """Trains until the end of the run or until a signal tells the run to stop.

  Args:
    run: The constants and open files of the run.
    state: The state to begin with, replicated on every device.
    train_step: The jitted training step.

  Returns:
    The last state, which has been saved.

  Raises:
    FloatingPointError: If a loss or gradient is not finite. In float16, such a
      step is skipped, and it is an error only at the smallest loss scale.
    SaveError: If a checkpoint cannot be written.
    Stopped: If a signal interrupts an evaluation; the state is saved by then.
  """
  config, mesh = run.config, run.mesh
  compiled: dict[canvases.Canvas, _CompiledStep] = {}
  pending: PendingStep | None = None
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

  def take_pending() -> None:
    """Waits for the figures of the last step, checks and logs them.

    It is called before each save, because a state whose losses are not finite
    must not be saved.

    Raises:
      FloatingPointError: If a figure is not finite and the step cannot be
        skipped.
    """
    nonlocal pending, skipped, stops
    if pending:
      skipped = take_figures(
        pending,
        run.log,
        image_ids=run.data_set.coco_index.image_ids,
        schedule=run.schedule,
        scales_loss=run.trainer.scales_loss,
      )
      stops = bool(pending.stops)
      pending = None

  def evaluate() -> None:
    """Evaluates the state; the time it takes does not count for the steps."""
    nonlocal evaluating, last
    before = time.monotonic()
    evaluate_state(run, state, done)
    evaluating += time.monotonic() - before
    last += time.monotonic() - before

  with (
    run.log.bar(),
    contextlib.closing(_load_batches(run, first_step)) as batches,
  ):
    if is_due(run, done) and not is_evaluated(run, done):
      # The run was killed before this evaluation was finished.
      evaluate()
    # A single process stops after the current step. Several processes must stop
    # after the same step: `any_process` tells all of them of a signal.
    while (
      not is_over(run, done)
      and not stops
      and not (run.stop.requested and jax.process_count() == 1)
    ):
      trace.begin(done)
      asked = time.monotonic()
      with waiting('Loading the first batch', shown=not compiled):
        batch = next(batches)
      batch_rows = run.rows[order.rows(done)]
      canvas = run.plan.canvases[run.plan.canvas_of_image[batch_rows[0]]]
      batch = cluster.shard_batch(batch, mesh)
      data_time = time.monotonic() - asked
      if canvas not in compiled:
        compiled[canvas] = _compile(run, train_step, state, batch, canvas)
        last = time.monotonic() - data_time
      state, figures = compiled[canvas](state, batch)
      any_stops = cluster.any_process(run.stop.requested, mesh)
      trace.end(done, figures)
      # The device works on this step while the host logs the step before.
      take_pending()
      now = time.monotonic()
      pending = PendingStep(
        done, figures, batch_rows, any_stops, now - last, data_time
      )
      last = now
      done += 1
      is_last = done == config.train.num_steps
      if done % config.train.log_every == 0 or is_last:
        take_pending()
        _report(run, done, skipped)
      run.checkpoints.poll()
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
  with waiting('Saving the checkpoint'):
    run.checkpoints.finish()
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
  """Tells whether the recipe asks for an evaluation after `step` steps.

  It does after every multiple of `run.eval_every`, and never if that is 0.
  """
  return bool(run.eval_every and step and step % run.eval_every == 0)


def is_evaluated(run: Run, step: int) -> bool:
  """Tells whether the model after `step` steps has been evaluated already."""
  return run.evaluations is not None and run.evaluations.of(step) is not None


def is_over(run: Run, step: int) -> bool:
  """Tells whether the training ends after `step` steps.

  It ends after the recipe's number of steps, or as soon as an evaluation
  reaches the APs that the recipe asks for.
  """
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
  """Evaluates a state and logs its AP.

  All processes must call this function.

  Args:
    run: The constants and open files of a run that evaluates.
    state: The state after `step` steps.
    step: Number of steps done.

  Returns:
    Results by kind: 'bbox', 'segm' or 'proposals'.

  Raises:
    Stopped: If a signal comes while the AP is computed, and the run has a
      single process. Several processes finish the evaluation first, because if
      one stopped, the others would wait for it.
  """
  assert run.evaluations is not None
  # An evaluated state must be on disk, so that the run can continue from it.
  with waiting('Saving the checkpoint'):
    run.checkpoints.finish()
  with (
    run.stop.interrupting()
    if jax.process_count() == 1
    else contextlib.nullcontext()
  ):
    aps = run.evaluations.run(state, step)
  # Writing the best model and the list takes a moment, so that a signal waits
  # for it.
  run.evaluations.keep(aps, state, step)
  run.log.evaluation(
    step,
    {
      f'{kind}_{name}': figure
      for kind, ap in aps.items()
      for name, figure in ap.stats.items()
      if figure is not None
    },
  )
  now = run.evaluations.of(step)
  assert now is not None
  text = describe(now)
  if run.eval_every:
    best = run.evaluations.best()
    text += f'; best so far at step {best.step}, in {run.workdir / "best"}'
  run.log.line(text)
  return aps


def _load_batches(run: Run, first_step: int) -> Generator[Batch, None, None]:
  """Yields this process's rows of the batch of each remaining step.

  Args:
    run: The constants of the run.
    first_step: Number of steps done before the first batch.
  """
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
      apply_exif=run.config.data.apply_exif,
      scratch_dir=run.workdir,
    )
    try:
      # Closing the generator ends its worker processes.
      with contextlib.closing(batches):
        for batch, _ in batches:
          step += 1
          yield batch
      return
    except RuntimeError:
      # Ctrl-C, and SIGTERM of some clusters, also reach the worker processes. A
      # worker that has only just started is ended by it. This process then
      # loads the few batches that are needed before the run stops.
      if not run.stop.requested or not num_workers:
        raise
      num_workers = 0


def _report(run: Run, done: int, skipped: int) -> None:
  """Writes a line with the figures so far to the log.

  Args:
    run: The constants and open files of the run.
    done: Number of steps done.
    skipped: Number of steps that were skipped because of an overflow.
  """
  run.log.report(
    done,
    learning_rate=float(run.schedule(np.int32(done - 1))),
    skipped=skipped if run.trainer.scales_loss else None,
  )


def _report_total(
  run: Run, seconds: float, num_steps: int, num_compiled: int
) -> None:
  """Writes to the log how long the training took.

  Args:
    run: The constants and open files of the run.
    seconds: Time of the steps, without evaluations.
    num_steps: Number of steps since the run was started or resumed.
    num_compiled: Number of canvases for which a step was compiled.
  """
  num_canvases = len(np.unique(run.plan.canvas_of_image[run.rows]))
  length = time.strftime('%H:%M:%S', time.gmtime(seconds))
  run.log.line(
    f'Total training time: {length} ({seconds / num_steps:.4f} s / it); '
    f'{num_compiled} compilations for {num_canvases} static sizes'
  )


def _save(run: Run, state: TrainState, step: int) -> None:
  """Starts to save the state after `step` steps."""
  run.checkpoints.save(
    model=variables_of(state),
    training=training_state(state),
    metadata=run.metadata._replace(step=step),
  )


class _Trace:
  """Traces the chosen steps with JAX's profiler; process 0 writes the trace."""

  def __init__(self, run: Run, first_step: int):
    """Leaves out the chosen steps that this run does not make.

    Args:
      run: The constants of the run, with the chosen steps.
      first_step: Number of steps done when the run starts or resumes.
    """
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

  def begin(self, step: int) -> None:
    """Starts the trace if `step` is the first of the chosen steps."""
    if self._steps and step == self._steps[0]:
      jax.profiler.start_trace(self._directory, create_perfetto_trace=True)
      self._runs = True

  def end(self, step: int, results: PyTree, *, stops: bool = False) -> None:
    """Writes the trace if it is running and this is its last step.

    Args:
      step: The step that has just been started.
      results: Arrays of this step, which are waited for before the trace ends.
      stops: Whether the training stops, so that no further step can be traced.
    """
    if self._runs and (stops or step == self._steps[-1]):
      jax.block_until_ready(results)
      jax.profiler.stop_trace()
      self._runs = False
      self._log.line(
        f'Traced steps {self._steps[0]} to {step}: {self._directory}; '
        'TensorBoard shows it, and ui.perfetto.dev its '
        'perfetto_trace.json.gz'
      )


def _compile(
  run: Run,
  train_step: JittedStep,
  state: TrainState,
  batch: Batch,
  canvas: canvases.Canvas,
) -> _CompiledStep:
  """Compiles the training step for one canvas and logs its time and memory.

  Args:
    run: The constants and open files of the run.
    train_step: The jitted training step.
    state: Any state of the run.
    batch: Any batch of this canvas.
    canvas: The sizes of the images.
  """
  height, width = canvas.padded
  kind, program = compilation_facts(run.config, for_training=True)
  shapes = [list(np.shape(array)) for array in jax.tree.leaves(batch)]
  started = time.monotonic()
  with compiling(
    'training step', canvas.padded, kind=kind, program=[program, shapes]
  ):
    step = train_step.lower(state, batch, padded_size=canvas.padded).compile()
  seconds = time.monotonic() - started
  watchdog.progress(f'compiling the step for {height}x{width} images')
  text = f'Compiled the step for {height}x{width} images in {seconds:.1f} s'
  memory = step.memory_analysis()
  if memory is not None:
    mib = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
    text += f'; it needs {mib:.0f} MiB a device'
  run.log.line(text)
  return step
