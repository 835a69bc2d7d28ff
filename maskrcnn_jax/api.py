"""The functions of this program for use from Python.

They are available as `maskrcnn_jax.load`, `maskrcnn_jax.train` and
`maskrcnn_jax.evaluate`.
"""

from collections.abc import Iterable, Iterator, Mapping
import os
import pathlib
from typing import Any, overload

from absl import logging
import jax
import ml_collections
import numpy as np
from PIL import Image

from maskrcnn_jax import named_weights
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.command_line import apply_overrides, parse_overrides
from maskrcnn_jax.config.recipe import Recipe, read_overrides, read_recipe
from maskrcnn_jax.detector import Detector, load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import ApResult
from maskrcnn_jax.evaluation.average_recall import RecallResult
from maskrcnn_jax.evaluation.published_ap import expect_published_ap
from maskrcnn_jax.prediction.picture_batches import (
  Picture,
  detect_pictures,
  name_of,
)
from maskrcnn_jax.prediction.results import Result, class_names_of, make_result
from maskrcnn_jax.runtime import cluster
from maskrcnn_jax.runtime.console import shown_log
from maskrcnn_jax.runtime.watchdog import watchdog
from maskrcnn_jax.training.evaluations import evaluate_and_report
from maskrcnn_jax.training.initial_weights import find_weights
from maskrcnn_jax.training.run import train as train_in_workdir

PathLike = str | os.PathLike[str]

# Values of keys of a recipe, as `--config.KEY=VALUE` gives them to the command
# line, for example {'data.short_side': 600}.
Overrides = Mapping[str, Any]


class ObjectDetector:
  """A trained model that finds the objects in pictures; see `load`.

  Attributes:
    class_names: The names of the classes, class number 1 first.
    step: Number of training steps after which the weights were saved.
    config: The recipe that the model is used with.
  """

  def __init__(self, detector: Detector, source: str):
    """Makes a detector of a loaded model.

    Args:
      detector: The model.
      source: Where it comes from, for `repr`.
    """
    self._detector = detector
    self._source = source
    self.class_names = class_names_of(detector)
    self.step = detector.step
    self.config = detector.config

  def __repr__(self) -> str:
    """Returns a line with the checkpoint, its step and its classes."""
    names = ', '.join(self.class_names[:5])
    more = ', ...' if len(self.class_names) > 5 else ''
    count = len(self.class_names)
    return (
      f'ObjectDetector({self._source!r}, step {self.step}, {count} '
      f'class{"" if count == 1 else "es"}: {names}{more})'
    )

  @overload
  def __call__(self, pictures: Picture, *, batch_size: int = 1) -> Result: ...
  @overload
  def __call__(
    self,
    pictures: list[Any] | tuple[Any, ...],
    *,
    batch_size: int = 1,
  ) -> list[Result]: ...
  @overload
  def __call__(
    self, pictures: Iterator[Picture], *, batch_size: int = 1
  ) -> Iterator[Result]: ...
  def __call__(
    self,
    pictures: Picture | Iterable[Picture],
    *,
    batch_size: int = 1,
  ) -> Result | list[Result] | Iterator[Result]:
    """Finds the objects in a picture, or in each of several pictures.

    The first picture of each padded size takes longer, because the model is
    compiled for it, or read from the cache of compiled programs. A line says so
    before, unless the caller has set absl's verbosity.

    Args:
      pictures: The path of a picture; an array (height, width, 3) of uint8 in
        RGB; an image of PIL; or a list, a tuple, a generator or another
        iterable of these. Pictures may have any sizes. The EXIF orientation of
        files and images is applied.
      batch_size: Number of pictures that the device works on at once. A batch
        has pictures of one padded size, and is filled up with black pictures
        if there are not enough. Larger batches can be faster on a GPU.

    Returns:
      A result for a picture, and a list of results for a list or a tuple. Any
      other iterable gives an iterator of results, and about two batches of
      pictures are taken from it ahead of the results; use it if the pictures
      do not fit into memory together. The order is that of the pictures.

    Raises:
      InputError: If a picture cannot be read. An iterator raises it at the
        place of that picture, after the results of the pictures before.

    Examples:
      >>> result = detector('photo.jpg')
      >>> result.boxes.shape == (len(result), 4)
      True
      >>> height, width = result.size
      >>> result.masks.shape == (len(result), height, width)
      True
      >>> for result in detector(pathlib.Path('pictures').glob('*.jpg')):
      ...   result.save(pathlib.Path('found', pathlib.Path(result.path).name))
      >>> sorted(path.name for path in pathlib.Path('found').iterdir())
      ['a.jpg', 'b.jpg']
    """
    if isinstance(pictures, list | tuple):
      return list(self._detect(pictures, batch_size))
    if isinstance(pictures, str | os.PathLike | Image.Image):
      (result,) = self._detect([pictures], batch_size)
      return result
    if hasattr(pictures, '__array__'):  # An array of NumPy, JAX or torch.
      (result,) = self._detect([np.asarray(pictures)], batch_size)
      return result
    if isinstance(pictures, bytes | bytearray) or not isinstance(
      pictures, Iterable
    ):
      raise InputError(
        f'A {type(pictures).__name__} is no picture; give the path of a file, '
        'a uint8 array (height, width, 3) in RGB, an image of PIL, or a list '
        'of these. PIL.Image.open(io.BytesIO(content)) opens the content of a '
        'file.'
      )
    return self._detect(pictures, batch_size)

  def _detect(
    self, pictures: Iterable[Picture], batch_size: int
  ) -> Iterator[Result]:
    """Yields the result of each picture; the arguments are as for a call."""
    if batch_size < 1:
      raise InputError(f'batch_size ({batch_size}) must be at least 1.')
    # The names of the pictures that have been taken, but have no result yet.
    names: dict[int, str] = {}

    def taking() -> Iterator[Picture]:
      """Yields the pictures, and notes their names."""
      for row, picture in enumerate(pictures):
        names[row] = name_of(picture, row)
        yield picture

    for row, found in enumerate(
      detect_pictures(
        self._detector, taking(), config=self.config, batch_size=batch_size
      )
    ):
      if isinstance(found, InputError):
        raise found
      name = names.pop(row)
      # A file is read again when the result is drawn.
      picture = name if found.pixels is None else found.pixels
      yield make_result(
        self._detector, found, picture, name, config=self.config
      )


def load(
  model: PathLike, *, overrides: Overrides | None = None
) -> ObjectDetector:
  """Loads a trained model.

  Compiled programs are kept in the folder of JAX's compilation cache: the one
  that is configured, else `~/.cache/maskrcnn_jax`. With the environment
  variable JAX_COMPILATION_CACHE_DIR='' none are kept.

  Args:
    model: The workdir of a training, whose newest checkpoint is used; the
      folder of one checkpoint, WORKDIR/checkpoints/STEP; weights that
      `convert_weights` has converted; or the name of published weights, such as
      'torchvision:maskrcnn_resnet50_fpn_v2', which are downloaded and converted
      at the first use.
    overrides: {key: value} of keys of the recipe that may be changed after the
      training, for example {'detections.min_score': 0.3}.

  Returns:
    The detector: call it with pictures.

  Raises:
    InputError: If there is no checkpoint, if it is damaged or holds only a part
      of a model, if it cannot be downloaded, or if a key cannot be changed.

  Examples:
    >>> detector = load('runs/mine')
    >>> detector  # doctest: +ELLIPSIS
    ObjectDetector('runs/mine', step ..., ... classes: ...)
    >>> load('runs/mine', overrides={'detections.max_detections': 3}).config[
    ...   'detections'
    ... ].max_detections
    3
  """
  _keep_compiled()
  cluster.find_devices()  # It raises an error if there is none.
  recipe = read_overrides(_as_texts(overrides))
  with shown_log():
    path = _path_of(model)
  return ObjectDetector(load_detector(path, recipe), os.fspath(model))


def train(
  config: PathLike | ml_collections.ConfigDict,
  workdir: PathLike,
  *,
  init_from: PathLike | None = None,
  overrides: Overrides | None = None,
  skip_test: bool = False,
  resume: bool = True,
  allow_changes: bool = False,
) -> None:
  """Trains a model, as `python -m maskrcnn_jax.main` does.

  The log goes to the standard error output, unless the caller has set absl's
  verbosity: `absl.logging.set_verbosity(absl.logging.ERROR)` hides it.

  A workdir with a checkpoint is continued. SIGTERM or Ctrl-C ends the training
  after the current step, which is saved; the file `interrupted` in the workdir
  then says so. `load(workdir)` loads the trained model.

  Args:
    config: The name of a recipe that comes with the program, such as
      'finetune'; a recipe file; or a recipe, which is not changed.
    workdir: The folder for checkpoints, logs and results.
    init_from: Checkpoint or name of published weights to take the initial
      weights from.
    overrides: {key: value} of keys of the recipe, for example
      {'train.batch_size': 8}. Their values are not adapted to the batch size or
      the data.
    skip_test: Whether to leave out the evaluation at the end.
    resume: Whether to continue the run of the workdir. If not, a workdir that
      holds a checkpoint is an error.
    allow_changes: Whether to continue a run although its recipe or its
      training set has changed.

  Raises:
    InputError: If the recipe, the data, the checkpoint or the device cannot be
      used.
    FloatingPointError: If a loss or gradient is not finite.
    SaveError: If a checkpoint cannot be written.
  """
  texts = _as_texts(overrides)
  if isinstance(config, ml_collections.ConfigDict):
    changed = config.copy_and_resolve_references()
    given = parse_overrides(texts)
    apply_overrides(changed, given)
    check_config(changed)
    recipe = Recipe(changed, given, None)
  else:
    recipe = read_recipe(os.fspath(config), texts)
  with shown_log(), watchdog(recipe.config.train.watchdog_seconds):
    for line in recipe.notes:
      logging.info('%s', line)
    _keep_compiled()
    workdir = pathlib.Path(workdir)
    train_in_workdir(
      recipe.config,
      workdir,
      init_from=find_weights(
        None if init_from is None else os.fspath(init_from),
        workdir,
        is_fine_tuning=recipe.config.train.fine_tune,
      ),
      skip_test=skip_test,
      resume=resume,
      allow_changes=allow_changes,
      given_keys=frozenset(recipe.given),
    )


def evaluate(
  workdir: PathLike,
  *,
  checkpoint: PathLike | None = None,
  overrides: Overrides | None = None,
  skip_eval: bool = False,
) -> dict[str, ApResult | RecallResult]:
  """Computes COCO's AP of a trained model, as `--mode=eval` does.

  It prints the table, logs as `train` does, and writes the detections and the
  figures to WORKDIR/inference. The AP of published weights on COCO val2017 is
  compared with the AP that their authors published.

  Args:
    workdir: The folder to write to.
    checkpoint: The model, as for `load`. By default that of the workdir.
    overrides: {key: value} of keys of the recipe. Another evaluation set than
      that of the training is {'data.eval.images': DIR,
      'data.eval.annotations': FILE}.
    skip_eval: Whether to write the detections only, and compute no AP.

  Returns:
    The AP by the keys 'bbox' and 'segm', for example
    `evaluate('runs/mine')['segm'].stats['AP']` in [0, 1]. A model that only
    makes proposals has 'proposals' instead. Empty if `skip_eval`.

  Raises:
    InputError: If the checkpoint, the recipe or the evaluation set cannot be
      used.

  Examples:
    >>> figures = evaluate('runs/mine')  # doctest: +ELLIPSIS
    5 images; detections: ...
    >>> 0 <= figures['segm'].stats['AP'] <= 1
    True
  """
  recipe = read_overrides(_as_texts(overrides))
  with shown_log(), watchdog(recipe.config.train.watchdog_seconds):
    _keep_compiled()
    cluster.find_devices()
    workdir = pathlib.Path(workdir)
    path = _path_of(checkpoint) if checkpoint else workdir
    detector = load_detector(path, recipe)
    name = os.fspath(checkpoint or '')
    if named_weights.is_name(name) and not skip_eval:
      logging.info('%s', expect_published_ap(detector.config, name))
    return evaluate_and_report(detector, workdir, skip_eval=skip_eval)


def _path_of(model: PathLike) -> pathlib.Path:
  """Returns the path of a checkpoint, or of named weights in the cache.

  Raises:
    InputError: If named weights are unknown or cannot be downloaded.
  """
  text = os.fspath(model)
  if named_weights.is_name(text):
    text = named_weights.find_checkpoint(text)
  return pathlib.Path(text)


def _as_texts(overrides: Overrides | None) -> list[tuple[str, str | None]]:
  """Returns values of keys as (key, text) pairs, as the command line has them.

  So their types and ranges are checked in the same way.
  """
  return [(key, str(value)) for key, value in (overrides or {}).items()]


def _keep_compiled() -> None:
  """Switches the cache of compiled programs on, unless it is configured."""
  if jax.config.jax_compilation_cache_dir is None:
    cluster.keep_compiled(None)
