"""Evaluations while training goes on, and the best model so far."""

import json
import pathlib
from typing import NamedTuple

import ml_collections

from maskrcnn_jax.config import source_of
from maskrcnn_jax.detector import Detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.evaluation.average_recall import RecallResult
from maskrcnn_jax.evaluation.evaluate import evaluate
from maskrcnn_jax.runtime import checkpoint, cluster
from maskrcnn_jax.runtime.files import write_json
from maskrcnn_jax.training.state import TrainState, variables_of


class Evaluation(NamedTuple):
  """What is remembered of one."""

  step: int
  box_ap: float | None  # None where there is no truth
  mask_ap: float | None  # likewise, and of a model without masks
  recall: float | None = None  # AR@1000, of proposals that were evaluated


class TrainEvaluations:
  """The evaluations of a run.

  `WORKDIR/evaluations.json` lists them, `WORKDIR/best` holds the model with
  the highest mask AP (of equal ones, or if there is none, that with the higher
  box AP, then recall, then the first). Both are written once an evaluation is
  through, the list last, so that a run that is killed before does it again. Of
  several processes, all evaluate together, and process 0 writes.
  """

  def __init__(
      self,
      workdir: pathlib.Path,
      detector: Detector,
      metadata: checkpoint.Metadata,
      config: ml_collections.ConfigDict,
      *,
      first_step: int,
      keep_best: bool,
  ):
    """Reads what was evaluated up to `first_step`; the rest is yet to come."""
    self._workdir = workdir
    self._detector = detector
    self._metadata = metadata
    self._config = config
    self._keep_best = keep_best
    self._file = workdir / 'evaluations.json'
    self.done = [e for e in _read(self._file) if e.step <= first_step]

  def run(
      self, state: TrainState, step: int
  ) -> dict[str, ApResult | RecallResult]:
    """Evaluates the model of a step, prints its AP and keeps it if it is best.

    Args:
      state: Of which the averaged weights are taken where there are any.
      step: Steps done.
    """
    variables = variables_of(state)
    aps = evaluate(
        self._detector._replace(
            variables=cluster.to_mesh(variables, self._detector.mesh),
            step=step,
        ),
        source=source_of(self._config, 'eval'),
        workdir=self._workdir, config=self._config,
    )
    now = Evaluation(step, *(
        aps[kind].stats[name] if kind in aps else None for kind, name in (
            ('bbox', 'AP'), ('segm', 'AP'), ('proposals', 'AR@1000')
        )
    ))
    self.done = [e for e in self.done if e.step != step] + [now]
    if self._keep_best and self.best() == now:
      checkpoint.save_best(
          self._workdir / 'best', model=variables,
          metadata=self._metadata._replace(step=step),
      )
    if cluster.is_main():
      write_json(self._file, [e._asdict() for e in self.done])
    return aps

  def best(self) -> Evaluation:
    """The best of all; see the class."""
    return max(
        self.done,
        key=lambda e: (e.mask_ap or 0, e.box_ap or 0, e.recall or 0, -e.step),
    )

  def of(self, step: int) -> Evaluation | None:
    """The evaluation of a step, if there was one."""
    return next((e for e in self.done if e.step == step), None)


def reaches(
    evaluation: Evaluation | None, *, min_box_ap: float, min_mask_ap: float
) -> bool:
  """Tells whether an evaluation is good enough to end the training.

  Args:
    evaluation: None is not.
    min_box_ap: If both are 0, none is.
    min_mask_ap: Both must be reached.

  Source:
    The seed's MIN_BBOX_MAP and MIN_MASK_MAP, `tools/train_net.py`.
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
  """Compares AP with what a recipe should reach: a line for each.

  A higher AP than that passes too.

  Args:
    aps: Of 'bbox' and 'segm'.
    box_ap: Mean and tolerance; None: nothing is expected.
    mask_ap: Likewise.

  Source:
    The seed's TEST.EXPECTED_RESULTS, `evaluation/coco/coco_eval.py`.
    Differs: the tolerance is one figure, not a number of deviations, and
    downwards only: a model that is better than expected is no fault.
  """
  lines = []
  for name, kind, expected in (
      ('box', 'bbox', box_ap), ('mask', 'segm', mask_ap)
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
    if passes and ap > mean + tolerance:
      line += '; it is above that'
    lines.append(line)
  return lines


def steps_between(
    config: ml_collections.ConfigDict, num_images: int
) -> int:
  """Returns after how many steps there is an evaluation; 0: at the end only."""
  epochs = config.train.eval_every_epochs
  if epochs:
    return max(round(epochs * num_images / config.train.batch_size), 1)
  return config.train.eval_every


def _read(path) -> list[Evaluation]:
  if not path.is_file():
    return []
  try:
    return [
        Evaluation(**e) for e in json.loads(path.read_text(encoding='utf-8'))
    ]
  except (ValueError, TypeError) as error:
    raise InputError(
        f'{path} cannot be read ({error}); it lists the evaluations of the '
        'run: move it away to go on without them.'
    ) from error
