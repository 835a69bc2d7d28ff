"""The figures of a step, such as its losses: fetched, checked and logged."""

from collections.abc import Sequence
import math
from typing import NamedTuple

import jax
import numpy as np

from maskrcnn_jax.runtime import watchdog
from maskrcnn_jax.runtime.precision import MIN_SCALE
from maskrcnn_jax.runtime.training_log import TrainingLog
from maskrcnn_jax.training.optimizer import Schedule
from maskrcnn_jax.training.step import Figures

# In this many first steps, a loss that is not finite usually comes from a
# learning rate that is too high for the batch size. In later steps, the data is
# as likely to be the cause.
_EARLY = 100


class PendingStep(NamedTuple):
  """A step that was started, but whose figures have not been fetched yet."""

  step: int  # number of steps done before
  figures: Figures
  batch_rows: np.ndarray  # rows of the index, for the batch of all processes
  stops: jax.Array | bool  # whether a signal has told any process to stop
  step_time: float  # seconds since the start of the step before
  data_time: float  # seconds that the step waited for its batch


def take_figures(
  pending: PendingStep,
  log: TrainingLog,
  *,
  image_ids: Sequence,
  schedule: Schedule,
  scales_loss: bool,
) -> int:
  """Fetches the figures of a step, checks that they are finite and logs them.

  Args:
    pending: The step, which may still be running.
    log: Receives the figures.
    image_ids: COCO's ids of the images, by row of the index.
    schedule: Function from a step to its learning rate.
    scales_loss: Whether the loss is scaled, as it is in float16. The training
      step then skips a step that is not finite, and this function only logs it.
      It is an error once the loss scale is at its minimum.

  Returns:
    Number of steps skipped so far.

  Raises:
    FloatingPointError: If a figure is not finite and lowering the loss scale
      cannot help.
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
      log.advance(step + 1)
      return skipped
    rate = float(schedule(np.int32(step)))
    message = (
      f'C04: {text} (learning rate {rate:g}, images {ids}). The last '
      f'checkpoint is from before this. {_likely_cause(step, len(ids))}'
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
  log.advance(step + 1)
  return skipped


def _likely_cause(step: int, batch_size: int) -> str:
  """Returns advice on the most likely cause of a loss that is not finite.

  Before the first update, the cause is the images or the weights that the run
  began with. In the first `_EARLY` steps it is most likely the learning rate or
  its warm-up; later it is the learning rate or the images.

  Args:
    step: Number of updates before the step with this loss.
    batch_size: Number of images of a batch, in all processes together. The
      advice only mentions it, beside the learning rate.
  """
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
