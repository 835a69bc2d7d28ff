"""The programs that a benchmark times: the training step, and inference."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from maskrcnn_jax.array_types import Batch, GroundTruthLimits
from maskrcnn_jax.benchmark.images import Images
from maskrcnn_jax.config import compilation_facts, scaled_to_batch
from maskrcnn_jax.detector import Detector, to_original
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.compilation import compiling
from maskrcnn_jax.runtime.precision import choose_precision, set_precision
from maskrcnn_jax.training import checks
from maskrcnn_jax.training.optimizer import make_recipe_optimizer
from maskrcnn_jax.training.state import (
  TrainState,
  initial_state,
  start_average,
  variables_of,
)
from maskrcnn_jax.training.step import Figures, Trainer, jit_train_step

# The learning rate of all timed steps. It is tiny, so that the loss of a
# network with random weights stays finite, and stays that of torchvision, which
# has no warm-up here.
LEARNING_RATE = 1e-9

PaddedSize = tuple[int, int]  # (height, width) in pixels


class Setup(NamedTuple):
  """The model of a benchmark on its devices."""

  config: ml_collections.ConfigDict  # the complete recipe
  rcnn: Rcnn
  mesh: Mesh
  limits: GroundTruthLimits  # static sizes of the ground truth
  variables: dict | None  # weights to begin with; None draws them


@runtime_checkable
class Program(Protocol):
  """A program whose steps are timed."""

  def compile(
    self, batch: Batch, padded_size: PaddedSize
  ) -> list[jax.stages.Compiled]:
    """Compiles the program for a batch; returns all programs that a step runs.

    Args:
      batch: A batch on the devices.
      padded_size: The size that its images are padded to.
    """

  def start(self, batch: Batch, padded_size: PaddedSize) -> Any:
    """Starts a step; returns the arrays that `finish` waits for.

    Args:
      batch: A batch on the devices, of a shape that was compiled.
      padded_size: The size that its images are padded to.
    """

  def finish(self, results: Any, batch: Batch) -> None:
    """Waits for the end of a step and does the work of the host after it.

    Args:
      results: The value that `start` returned.
      batch: The batch of the step, as NumPy arrays.
    """

  def facts(self) -> dict[str, Any]:
    """Returns figures of the last step that show that it did its work."""


def set_up(
  images: Images, *, batch_size: int, variables: dict | None = None
) -> Setup:
  """Builds the model of a recipe for a batch size, as a training does.

  Args:
    images: The images, with the recipe.
    batch_size: Number of images of a batch, on all devices together.
    variables: Weights of the network. `None` draws them from the seed.

  Raises:
    InputError: If the batch cannot be divided over the devices or into
      micro-batches.
  """
  mesh = cluster.make_mesh()
  cluster.check_batch_size(batch_size, mesh, key='batch_size')
  config = images.config.copy_and_resolve_references()
  config.train.batch_size = batch_size
  config, _ = scaled_to_batch(config)
  config.optimizer.learning_rate = LEARNING_RATE
  checks.check_batch_size(config, mesh)
  config.precision = choose_precision(config.precision)
  rcnn = Rcnn.from_config(
    config,
    num_classes=images.num_classes,
    dtype=set_precision(config.precision),
    mesh=mesh,
  )
  return Setup(config, rcnn, mesh, images.limits, variables)


class Training:
  """The training step of a recipe, with its optimizer and loss scale."""

  def __init__(self, setup: Setup):
    """Makes the state of step 0.

    Args:
      setup: The model.
    """
    self._config = config = setup.config
    _, optimizer = make_recipe_optimizer(config)
    state = initial_state(setup.rcnn, optimizer, config)
    if setup.variables is not None:
      state = state._replace(
        params=setup.variables['params'],
        constants=setup.variables.get('constants', {}),
      )
    self._state: TrainState = cluster.replicate(
      start_average(state, config), setup.mesh
    )
    self._step = jit_train_step(
      Trainer.from_config(config, setup.rcnn, optimizer, setup.limits)
    )
    self._compiled: dict[tuple, jax.stages.Compiled] = {}
    self._figures: Figures = {}

  def compile(
    self, batch: Batch, padded_size: PaddedSize
  ) -> list[jax.stages.Compiled]:
    """Compiles the step for a batch; see `Program`."""
    key = batch.images.shape, padded_size
    if key not in self._compiled:
      kind, program = compilation_facts(self._config, for_training=True)
      shapes = [list(np.shape(array)) for array in jax.tree.leaves(batch)]
      with compiling(
        'training step', padded_size, kind=kind, program=[program, shapes]
      ):
        self._compiled[key] = self._step.lower(
          self._state, batch, padded_size=padded_size
        ).compile()
    return [self._compiled[key]]

  def start(self, batch: Batch, padded_size: PaddedSize) -> Figures:
    """Starts a step; see `Program`."""
    compiled = self._compiled[batch.images.shape, padded_size]
    self._state, self._figures = compiled(self._state, batch)
    return self._figures

  def finish(self, results: Figures, batch: Batch) -> None:
    """Waits for the end of a step; see `Program`."""
    del batch
    jax.block_until_ready(results)

  def facts(self) -> dict[str, Any]:
    """Returns loss, loss scale and number of skipped steps of the last step."""
    figures = jax.device_get(self._figures)
    return {
      name: float(figures[name]) for name in ('loss', 'loss_scale', 'skipped')
    }


class Inference:
  """Inference with a recipe, from decoded images to detections."""

  def __init__(self, setup: Setup, *, pastes: bool):
    """Makes a detector.

    Args:
      setup: The model.
      pastes: Whether a step includes the pasting of the masks into images of
        the size before resizing.
    """
    variables = setup.variables
    if variables is None:
      _, optimizer = make_recipe_optimizer(setup.config)
      variables = variables_of(
        initial_state(setup.rcnn, optimizer, setup.config)
      )
    self._detector = Detector(
      setup.rcnn,
      cluster.replicate(variables, setup.mesh),
      setup.config,
      (),
      0,
    )
    self._pastes = pastes
    self._detections: Any = None

  def compile(
    self, batch: Batch, padded_size: PaddedSize
  ) -> list[jax.stages.Compiled]:
    """Compiles the preparation of images and the network; see `Program`."""
    jax.block_until_ready(self.start(batch, padded_size))
    lowered = self._detector.lower(batch, padded_size=padded_size)
    return [program.compile() for program in lowered]

  def start(self, batch: Batch, padded_size: PaddedSize) -> Any:
    """Starts the detection in a batch; see `Program`."""
    return self._detector.detect(batch, padded_size=padded_size)

  def finish(self, results: Any, batch: Batch) -> None:
    """Waits for the detections, and pastes their masks; see `Program`."""
    self._detections = results
    if not self._pastes:
      jax.block_until_ready(results)
      return
    detections = jax.device_get(results)
    geometry = self._detector.rcnn.geometry
    for i in range(len(batch.images)):
      to_original(
        jax.tree.map(lambda field, i=i: field[i], detections),
        tuple(batch.image_sizes[i].tolist()),
        row=i,
        original_size=tuple(batch.source_sizes[i].tolist()),
        mask_threshold=geometry.mask_threshold,
        paste_rule=geometry.paste_rule,
      )

  def facts(self) -> dict[str, Any]:
    """Returns the number of detections in the last batch."""
    return {'detections': int(np.sum(self._detections.valid))}
