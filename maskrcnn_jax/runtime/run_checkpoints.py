"""The checkpoints that a run writes while it trains, and its best model."""

from collections.abc import Collection, Iterator
import contextlib
import errno
import os
import pathlib
import shutil

import jax
from jax.experimental import multihost_utils
from jaxtyping import PyTree
import numpy as np

from maskrcnn_jax.errors import InputError, SaveError
from maskrcnn_jax.runtime import checkpoint

# Suffix of a step's folder while the folder is being deleted.
REMOVED = '.removed'


class RunCheckpoints:
  """Writes the checkpoints of a run in the background and removes old ones.

  An old step is removed only after a newer one was written and could be read
  again. `WORKDIR/last_checkpoint` then names the newer one, for people and
  scripts; this program does not read it.

  All processes make and use this object together. Process 0 removes the old
  steps and writes `last_checkpoint`.

  Attributes:
    directory: `WORKDIR/checkpoints`.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    """Opens `WORKDIR/checkpoints` and removes all but the newest steps.

    Args:
      workdir: The folder of the run.
      keep: Number of complete steps to keep.

    Raises:
      InputError: If the newest step is incomplete.
    """
    self.directory = workdir / 'checkpoints'
    self._keep = keep
    self._started: int | None = None  # step whose save has not been finished
    self._has_failed = False
    self._manager = checkpoint.open_checkpoints(self.directory)
    # Process 0 removes old steps only after all processes have read the
    # directory.
    multihost_utils.sync_global_devices('the checkpoints are open')
    self._remove_old()

  def save(
    self, *, model: dict, training: PyTree, metadata: checkpoint.Metadata
  ) -> None:
    """Starts to save a step, after the save before it has been finished.

    Args:
      model: Params and constants.
      training: All other arrays that resuming the run needs, such as the state
        of the optimizer.
      metadata: The description of the checkpoint, with its step.

    Raises:
      SaveError: If this save or the one before has failed.
    """
    self.finish()
    self._started = metadata.step
    with self._failures():
      checkpoint.save_checkpoint(
        self._manager, model=model, optimizer=training, metadata=metadata
      )

  def poll(self) -> None:
    """Does the work of `finish` if the save has ended; does not wait for it.

    Raises:
      SaveError: If the save has ended and has failed.
    """
    if self._started is not None and (
      not self._manager.is_saving_in_progress()
    ):
      self.finish()

  def finish(self) -> None:
    """Waits for the save in progress, checks it and removes old steps.

    Without a save in progress, this method does nothing.

    Raises:
      SaveError: If the save has failed.
    """
    if self._started is None:
      return
    path = self.directory / str(self._started)
    with self._failures():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
      checkpoint.check_saved(path, ['model', 'optimizer'])
    self._started = None
    if jax.process_index() == 0:
      _write_text(self.directory.parent / 'last_checkpoint', f'{path}\n')
    self._remove_old()

  def close(self) -> None:
    """Finishes the save in progress and closes the directory.

    If a save has failed before, this method only closes the directory and
    raises no error, so that the user sees the first error.

    Raises:
      SaveError: If the save in progress fails now.
    """
    try:
      if not self._has_failed:
        self.finish()
    finally:
      # After a failed save, closing raises the same error again.
      with contextlib.suppress(*([Exception] if self._has_failed else [])):
        self._manager.close()

  @contextlib.contextmanager
  def _failures(self) -> Iterator[None]:
    """Context manager that turns any error while saving into a SaveError."""
    try:
      yield
    # Orbax passes on the errors of its threads, which are of any type.
    except Exception as error:
      self._has_failed = True
      whole = [
        step
        for step in checkpoint.saved_steps(self.directory)
        if step != self._started
      ]
      kept = f'step {whole[-1]} is whole' if whole else 'no step was saved yet'
      raise SaveError(
        f'C10: Saving step {self._started} in {self.directory} failed '
        f'({checkpoint.first_line(error)}); {kept}. '
        f'{_remedy(self.directory, error)}, then give the same command again.'
      ) from error

  def _remove_old(self) -> None:
    """Removes all steps but the newest ones, in process 0 only."""
    if jax.process_index() == 0:
      _remove_other_steps(
        self.directory, checkpoint.saved_steps(self.directory)[-self._keep :]
      )


def save_best(
  directory: pathlib.Path, *, model: dict, metadata: checkpoint.Metadata
) -> None:
  """Saves the best model of a run, then removes the earlier best model.

  If the directory already has a complete checkpoint of this step, it is kept.

  Args:
    directory: Checkpoint directory that holds one step, the best one.
    model: Params and constants.
    metadata: The description of the checkpoint, with its step.

  Raises:
    SaveError: If saving fails. The earlier model is then still there.
  """
  path = directory / str(metadata.step)
  try:
    if metadata.step not in checkpoint.saved_steps(directory):
      if path.exists() and jax.process_index() == 0:
        shutil.rmtree(path)
      with contextlib.closing(checkpoint.open_manager(directory)) as manager:
        # The directory may hold a later step, if the run has been continued
        # from a checkpoint before that step.
        checkpoint.save_checkpoint(
          manager,
          model=model,
          optimizer=None,
          metadata=metadata,
          force=True,
        )
        manager.wait_until_finished()
        manager.check_for_errors()
    checkpoint.check_saved(path, ['model'])
  except Exception as error:
    raise SaveError(
      f'C10: Saving the best model in {path} failed '
      f'({checkpoint.first_line(error)}). {_remedy(directory, error)}, then '
      'give the same command again.'
    ) from error
  if jax.process_index() == 0:
    _remove_other_steps(directory, [metadata.step])


def check_room(directory: pathlib.Path, *, size: int, num_steps: int) -> str:
  """Checks that checkpoints can be written and that the disk has room for them.

  Args:
    directory: The checkpoint directory; made if it does not exist.
    size: Size of one checkpoint, in bytes.
    num_steps: Largest number of steps that the directory will hold at a time,
      steps that it already holds included.

  Returns:
    A warning if there is room for one more step but not for all of them; ''
    otherwise.

  Raises:
    InputError: If not even one more step can be written.
  """
  # All processes do this at the same time, so each has a file of its own.
  probe = directory / f'.probe-{jax.process_index()}'
  try:
    directory.mkdir(parents=True, exist_ok=True)
    probe.write_text('to see whether this can be written')
    probe.unlink()
    free = shutil.disk_usage(directory).free
  except OSError as error:
    raise InputError(
      f'C10: {directory} cannot be written ({error.strerror}); give another '
      '--workdir.'
    ) from error
  num_new = max(num_steps - len(checkpoint.saved_steps(directory)), 1)
  needed = size * num_new
  if free < size:
    raise InputError(
      f'C10: {directory} has {free / 2**20:.0f} MiB left, but a checkpoint '
      f'needs {size / 2**20:.0f}; make room, or give another --workdir.'
    )
  if free < needed:
    return (
      f'C10: {directory} has {free / 2**20:.0f} MiB left, but the '
      f'checkpoints of this run will need {needed / 2**20:.0f}.'
    )
  return ''


def set_aside(directory: pathlib.Path, *, after: int) -> list[pathlib.Path]:
  """Moves the later steps of a run to the folder `damaged` in its workdir.

  A run that continues from an earlier step will write checkpoints of the same
  names. Only process 0 moves the later steps.

  Args:
    directory: The checkpoint directory of the run.
    after: The step that the run continues from. All later steps are moved.

  Returns:
    The new paths of the moved steps; [] in other processes than process 0.
  """
  moved: list[pathlib.Path] = []
  if jax.process_index():
    return moved
  for path in checkpoint.step_directories(directory):
    if int(path.name) > after:
      target = directory.parent / 'damaged' / path.name
      while target.exists():
        target = target.with_name(target.name + '_')
      target.parent.mkdir(exist_ok=True)
      moved.append(path.rename(target))
  return moved


def _remedy(directory: pathlib.Path, error: Exception) -> str:
  """Returns the first half of a sentence: the remedy after a failed save.

  Args:
    directory: The directory that the save was to write to.
    error: The error of the save.
  """
  if not directory.is_dir():
    return (
      f'{directory} no longer exists: it was removed or moved, or its disk is '
      'no longer there. Bring it back'
    )
  full = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
  if any(text in str(error) for text in full):
    return 'Make room'
  return f'Make sure that {directory} can be written'


def tree_bytes(tree: PyTree) -> int:
  """Returns the number of bytes of all arrays of a tree."""
  return sum(
    np.dtype(leaf.dtype).itemsize * int(np.prod(leaf.shape))
    for leaf in jax.tree.leaves(tree)
  )


def _remove_other_steps(directory: pathlib.Path, kept: Collection[int]) -> None:
  """Removes all steps of a checkpoint directory but the given ones.

  A step gets another name before its files are deleted, so that a process that
  is killed meanwhile leaves no incomplete step behind.

  Args:
    directory: The checkpoint directory.
    kept: The steps to keep.
  """
  for path in checkpoint.step_directories(directory):
    if int(path.name) not in kept:
      path.rename(path.with_name(path.name + REMOVED))
  for path in directory.glob('*' + REMOVED):
    shutil.rmtree(path)


def _write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file; an interruption leaves the old file or the new, no mixture.

  Args:
    path: The file. Its folder exists.
    text: Its new content.
  """
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)
