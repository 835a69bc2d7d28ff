"""Evaluations during a training, and the best model so far."""

import json
import pathlib
from typing import NamedTuple

import ml_collections

from maskrcnn_jax.config import source_of
from maskrcnn_jax.data.source import Source, options_of
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.evaluation.average_recall import RecallResult
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.files import write_json
from maskrcnn_jax.runtime.run_checkpoints import save_best
from maskrcnn_jax.runtime.training_log import log_line
from maskrcnn_jax.training.state import TrainState, variables_of


class Evaluation(NamedTuple):
  """The APs of an evaluation, in [0, 1], as `evaluations.json` stores them."""

  step: int  # number of steps done
  box_ap: float | None  # None without ground truth or without a box head
  mask_ap: float | None  # None without ground truth or without a mask head
  recall: float | None = None  # AR@1000 of proposals; None if not evaluated


class TrainEvaluations:
  """Evaluates the model of a run and remembers all evaluations.

  `WORKDIR/evaluations.json` lists the evaluations. With `keep_best`,
  `WORKDIR/best` holds the model with the highest mask AP. If several models
  have the same mask AP, or none has any, the box AP decides, then the recall;
  among equals, the earliest step is the best.

  Both are written when an evaluation is complete. The list is written last, so
  that a run that is killed during an evaluation repeats it when it is resumed.
  All processes evaluate together, and process 0 writes the files.

  Attributes:
    done: The evaluations so far.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    detector: Detector,
    metadata: checkpoint.Metadata,
    config: ml_collections.ConfigDict,
    *,
    source: Source,
    first_step: int,
    keep_best: bool,
  ):
    """Reads the earlier evaluations of the run.

    Args:
      workdir: The folder of the run.
      detector: The model to evaluate. Its variables are replaced by those of
        the training.
      metadata: Stored with the best model.
      config: The recipe.
      source: The evaluation set.
      first_step: Number of steps done when the run starts or resumes.
        Evaluations of later steps are forgotten.
      keep_best: Whether the best model is saved.

    Raises:
      InputError: If `evaluations.json` cannot be read.
    """
    self._workdir = workdir
    self._detector = detector
    self._metadata = metadata
    self._config = config
    self._source = source
    self._keep_best = keep_best
    self._file = workdir / 'evaluations.json'
    self.done = [e for e in _read(self._file) if e.step <= first_step]

  def run(
    self, state: TrainState, step: int
  ) -> dict[str, ApResult | RecallResult]:
    """Evaluates a model and prints its AP; `keep` remembers the results.

    Args:
      state: State of the training. If it has averaged weights, these are
        evaluated.
      step: Number of steps done.

    Returns:
      Results by kind: 'bbox', 'segm' or 'proposals'.

    Raises:
      InputError: If the evaluation set cannot be used.
    """
    return evaluate(
      self._detector._replace(
        variables=cluster.to_mesh(variables_of(state), self._detector.mesh),
        step=step,
      ),
      source=self._source,
      workdir=self._workdir,
      config=self._config,
    )

  def keep(
    self,
    aps: dict[str, ApResult | RecallResult],
    state: TrainState,
    step: int,
  ) -> None:
    """Remembers an evaluation, and saves the model if it is the best so far.

    Args:
      aps: The results that `run` has returned for this state.
      state: State of the training.
      step: Number of steps done.

    Raises:
      SaveError: If the best model cannot be saved.
    """
    now = summarize(aps, step)
    self.done = [e for e in self.done if e.step != step] + [now]
    if self._keep_best and self.best() == now:
      save_best(
        self._workdir / 'best',
        model=variables_of(state),
        metadata=self._metadata._replace(step=step),
      )
    if cluster.is_main():
      write_json(self._file, [e._asdict() for e in self.done])

  def best(self) -> Evaluation:
    """Returns the evaluation with the highest mask AP; there must be one.

    Among equal mask APs, the box AP decides, then the recall; among equals, the
    earliest step is the best.
    """
    return max(
      self.done,
      key=lambda e: (e.mask_ap or 0, e.box_ap or 0, e.recall or 0, -e.step),
    )

  def of(self, step: int) -> Evaluation | None:
    """Returns the evaluation after a step, or `None` if there is none.

    Args:
      step: Number of steps done.
    """
    return next((e for e in self.done if e.step == step), None)


def evaluate_and_report(
  detector: Detector, workdir: pathlib.Path, *, skip_eval: bool = False
) -> dict[str, ApResult | RecallResult]:
  """Evaluates a trained model on the set of its recipe; reports the figures.

  Process 0 adds the AP to WORKDIR/log.txt and prints whether it is the AP that
  the recipe expects. All processes must call this function.

  Args:
    detector: The model.
    workdir: The folder to write to.
    skip_eval: Whether the detections are only written, and no AP is computed.

  Returns:
    The results of `evaluate`.

  Raises:
    InputError: If the recipe names no evaluation set, or it cannot be used.
  """
  source = source_of(detector.config, 'eval')
  if source is None:
    raise InputError(f'No evaluation set: give {options_of("eval")}.')
  aps = evaluate(
    detector,
    source=source,
    workdir=workdir,
    config=detector.config,
    skip_eval=skip_eval,
  )
  if cluster.is_main():
    if aps:
      log_line(workdir, describe(summarize(aps, detector.step)))
    for line in expected_lines(aps, **detector.config.expected):
      print(line, flush=True)
  return aps


def summarize(aps: dict[str, ApResult | RecallResult], step: int) -> Evaluation:
  """Returns the main figures of an evaluation.

  Args:
    aps: Results by kind: 'bbox', 'segm' or 'proposals'.
    step: Number of training steps of the model.
  """
  return Evaluation(
    step,
    *(
      aps[kind].stats[name] if kind in aps else None
      for kind, name in (
        ('bbox', 'AP'),
        ('segm', 'AP'),
        ('proposals', 'AR@1000'),
      )
    ),
  )


def describe(evaluation: Evaluation) -> str:
  """Returns the line of the log about an evaluation; 'n/a' stands for no AP."""
  box_ap, mask_ap = (
    'n/a' if ap is None else f'{ap:.4f}'
    for ap in (evaluation.box_ap, evaluation.mask_ap)
  )
  text = (
    f'Evaluation at step {evaluation.step}: box AP {box_ap}, mask AP {mask_ap}'
  )
  if evaluation.recall is not None:
    text += f', recall of proposals {evaluation.recall:.4f}'
  return text


def reaches(
  evaluation: Evaluation | None, *, min_box_ap: float, min_mask_ap: float
) -> bool:
  """Tells whether an evaluation is good enough to end the training.

  Args:
    evaluation: The evaluation. `None`, no evaluation, is never good enough.
    min_box_ap: Box AP that must be reached, in [0, 1]; 0 sets no condition.
    min_mask_ap: Mask AP that must be reached too, in [0, 1]; 0 sets no
      condition. If both are 0, no evaluation ends the training.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, MIN_BBOX_MAP and MIN_MASK_MAP,
    `tools/train_net.py`.
  """
  if evaluation is None or not (min_box_ap or min_mask_ap):
    return False
  return (evaluation.box_ap or 0) >= min_box_ap and (
    (evaluation.mask_ap or 0) >= min_mask_ap
  )


def expected_lines(
  aps: dict[str, ApResult | RecallResult],
  *,
  box_ap: tuple[float, float] | None,
  mask_ap: tuple[float, float] | None,
) -> list[str]:
  """Compares the AP with the AP that the recipe expects.

  Args:
    aps: Results of an evaluation; 'bbox' and 'segm' are compared.
    box_ap: Expected box AP and its tolerance, both in [0, 1]. With `None`, the
      box AP is not compared.
    mask_ap: Expected mask AP and its tolerance, both in [0, 1]. With `None`,
      the mask AP is not compared.

  Returns:
    One line for each comparison, which begins with PASS or FAIL.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, TEST.EXPECTED_RESULTS,
    `evaluation/coco/coco_eval.py`.
    Differs: the tolerance is an AP, not a number of standard deviations, and it
    holds downwards only, because a model that is better than expected is not at
    fault.
  """
  lines = []
  for name, kind, expected in (
    ('box', 'bbox', box_ap),
    ('mask', 'segm', mask_ap),
  ):
    if expected is None or kind not in aps:
      continue
    mean, tolerance = expected
    ap = aps[kind].stats['AP']
    passes = ap is not None and ap >= mean - tolerance
    figure = 'n/a' if ap is None else f'{ap:.4f}'
    line = (
      f'{"PASS" if passes else "FAIL"}: {name} AP {figure}, expected '
      f'{mean:.4f} within {tolerance:.4f} (config.expected)'
    )
    if passes and ap is not None and ap > mean + tolerance:
      line += '; it is above that'
    lines.append(line)
  return lines


def steps_between(config: ml_collections.ConfigDict, num_images: int) -> int:
  """Returns the number of steps from one evaluation to the next.

  Args:
    config: The recipe. `train.eval_every_epochs` has precedence over
      `train.eval_every` unless it is 0.
    num_images: Number of images of an epoch.

  Returns:
    Number of steps; 0 evaluates at the end of the training only.
  """
  epochs = config.train.eval_every_epochs
  if epochs:
    return max(round(epochs * num_images / config.train.batch_size), 1)
  return config.train.eval_every


def _read(path: pathlib.Path) -> list[Evaluation]:
  """Reads the evaluations of a run from its `evaluations.json`.

  Args:
    path: The file, a JSON list with the fields of one `Evaluation` in each
      item.

  Returns:
    The evaluations in the order of the file; [] if the file does not exist.

  Raises:
    InputError: If the file has another content.
  """
  if not path.is_file():
    return []
  try:
    return [
      Evaluation(**e) for e in json.loads(path.read_text(encoding='utf-8'))
    ]
  except (ValueError, TypeError) as error:
    raise InputError(
      f'{path} cannot be read ({error}). It lists the earlier evaluations of '
      'the run. To continue without them, move the file to another folder.'
    ) from error
