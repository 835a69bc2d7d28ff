"""The checkpoint that --init_from gives, or published weights by their name."""

import pathlib

from absl import logging
import ml_collections

from maskrcnn_jax import named_weights
from maskrcnn_jax.config import fine_tuning
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.runtime import checkpoint


def find_weights(
  init_from: str | None, workdir: pathlib.Path, *, is_fine_tuning: bool
) -> pathlib.Path | None:
  """Returns the path of the checkpoint that a training takes its weights from.

  Named weights are downloaded and converted, unless the training is continued
  and does not need them any more.

  Args:
    init_from: The checkpoint, or the name of published weights; `None` or ''
      if the training starts with random weights.
    workdir: The folder of the run.
    is_fine_tuning: Whether the recipe takes values from the checkpoint, which
      it needs also when the training is continued.

  Returns:
    The path; `None` if there is no checkpoint.

  Raises:
    InputError: If there are no weights of this name, or if they cannot be
      downloaded.
  """
  if not init_from:
    return None
  is_needed = is_fine_tuning or not checkpoint.saved_steps(
    workdir / 'checkpoints'
  )
  if is_needed and named_weights.is_name(init_from):
    init_from = named_weights.find_checkpoint(init_from)
  return pathlib.Path(init_from)


def adopt_checkpoint(
  config: ml_collections.ConfigDict,
  init_from: pathlib.Path | None,
  given: frozenset[str] = frozenset(),
) -> ml_collections.ConfigDict:
  """Gives a fine-tuning recipe the values that the weights were trained with.

  Args:
    config: A recipe with `train.fine_tune`.
    init_from: The checkpoint to fine-tune. `None` is an error.
    given: Keys of the recipe that the command line gave.

  Returns:
    The changed recipe.

  Raises:
    InputError: If there is no checkpoint, or if a key of the command line does
      not fit it.
  """
  if init_from is None:
    raise InputError(
      '--init_from=CHECKPOINT is missing. A fine-tuning needs the checkpoint '
      'that it starts from, also when it is continued. CHECKPOINT is a workdir '
      'of this program, converted weights, or the name of published weights, '
      f'which are downloaded: {named_weights.proposal()}; --list_weights '
      'lists all. To train without a checkpoint, use --config=nuclei.'
    )
  path = checkpoint.find_checkpoint(init_from)
  config, lines = fine_tuning.adopt(
    config, checkpoint.read_metadata(path).recipe, given
  )
  for line in lines:
    logging.info('%s', line)
  return config
