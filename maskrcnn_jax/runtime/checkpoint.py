"""Checkpoints: saved by orbax, checked leaf by leaf when they come back.

A checkpoint directory holds, for each saved step, the items `model` (params
and constants), `optimizer` (its state, the loss's scale, and the params if
those of `model` are their average) and `metadata` (step, config, class
table), so that a model can be used without the state of its training.
"""

import contextlib
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.errors import InputError, SaveError

FORMAT = 1

# Ends the name of a step that is about to be removed.
REMOVED = '.removed'


class DamagedCheckpoint(InputError):
  """A checkpoint that was whole once, or never got so far."""


class Metadata(NamedTuple):
  """The description that a checkpoint holds of itself."""

  step: int
  recipe: dict  # plain nested dict; 'config' in the stored file
  categories: list  # [[COCO's id, name], ...]; class number = position + 1
  training_set: str = ''  # the training set, in a line
  is_partial: bool = False  # lacks layers: to start a training from, no more


# Names of fields in the stored file, where they differ.
_STORED_NAMES = {'recipe': 'config'}


def open_checkpoints(directory: pathlib.Path) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run for writing, which happens in background.

  Args:
    directory: Made if it is not there.

  Raises:
    InputError: If its newest step is not whole.
  """
  # Orbax would count it, and save no earlier step than it. An older one is
  # what a run leaves that is killed while it deletes.
  newest = max(saved_steps(directory), default=-1)
  for step in _step_directories(directory):
    if int(step.name) > newest:
      raise InputError(
        f'C08: {step} is not a whole checkpoint, and no training can '
        'continue beside it; move it away.'
      )
  return _open(directory)


def save_checkpoint(
  manager: ocp.CheckpointManager,
  *,
  model: dict,
  optimizer: Any,
  metadata: Metadata,
  force: bool = False,
) -> None:
  """Starts to save; waits for the save before, and raises if that failed.

  Args:
    manager: Of the directory.
    model: Params and constants.
    optimizer: Its state; None for weights that no training made.
    metadata: With the step.
    force: Whether there may be later steps.
  """
  manager.wait_until_finished()
  manager.check_for_errors()
  items = {
    'model': ocp.args.StandardSave(model),
    'metadata': ocp.args.JsonSave(_stored_metadata(metadata)),
  }
  if optimizer is not None:
    items['optimizer'] = ocp.args.StandardSave(optimizer)
  is_saved = manager.save(
    metadata.step, args=ocp.args.Composite(**items), force=force
  )
  if not is_saved:
    raise ValueError(
      f'Step {metadata.step} was not saved: {manager.directory} already '
      f'holds step {manager.latest_step()}; steps must rise.'
    )


def _stored_metadata(metadata: Metadata) -> dict:
  """Returns the metadata as a checkpoint stores it, under a format number."""
  fields = metadata._asdict().items()
  return {'format': FORMAT} | {
    _STORED_NAMES.get(name, name): value for name, value in fields
  }


class RunCheckpoints:
  """The checkpoints of a run, written while it goes on.

  An older step is removed only once a newer one has been written and looked
  at. `WORKDIR/last_checkpoint` names the newest of these, for people and
  scripts; nothing here reads it.
  """

  def __init__(self, workdir: pathlib.Path, *, keep: int):
    """Opens the checkpoints of a workdir, of which the newest `keep` stay.

    Raises:
      InputError: See `open_checkpoints`.
    """
    self.directory = workdir / 'checkpoints'
    self._keep = keep
    self._started = None  # step that is being saved
    self._has_failed = False
    self._manager = open_checkpoints(self.directory)
    # Nothing is removed while another process looks around.
    multihost_utils.sync_global_devices('the checkpoints are open')
    self._remove_old()

  def save(self, *, model: dict, training: Any, metadata: Metadata) -> None:
    """Starts to save, after the save before has ended well.

    Args:
      model: Params and constants.
      training: The state of the training beside them.
      metadata: With the step.

    Raises:
      SaveError: If this save or the one before failed.
    """
    self.finish()
    self._started = metadata.step
    with self._failures():
      save_checkpoint(
        self._manager, model=model, optimizer=training, metadata=metadata
      )

  def poll(self) -> None:
    """Finishes the save that was started, if it has ended; never waits."""
    if self._started is not None and (
      not self._manager.is_saving_in_progress()
    ):
      self.finish()

  def finish(self) -> None:
    """Waits for the save that was started, checks it and removes older ones.

    Raises:
      SaveError: If it failed.
    """
    if self._started is None:
      return
    path = self.directory / str(self._started)
    with self._failures():
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
      read_metadata(path)
      for item in ('model', 'optimizer'):
        _stored_leaves(path, item)
    self._started = None
    if jax.process_index() == 0:
      _write_text(self.directory.parent / 'last_checkpoint', f'{path}\n')
    self._remove_old()

  def close(self) -> None:
    """Finishes the save that was started, unless it has failed."""
    try:
      if not self._has_failed:
        self.finish()
    finally:
      # It raises the same error again.
      with contextlib.suppress(*([Exception] if self._has_failed else [])):
        self._manager.close()

  @contextlib.contextmanager
  def _failures(self):
    """Turns whatever goes wrong while saving into one line."""
    try:
      yield
    # Orbax passes on the errors of its threads, of any kind.
    except Exception as error:
      self._has_failed = True
      whole = [s for s in saved_steps(self.directory) if s != self._started]
      kept = f'step {whole[-1]} is whole' if whole else 'no step was saved yet'
      raise SaveError(
        f'C10: Saving step {self._started} in {self.directory} failed '
        f'({_first_line(error)}); {kept}. Make room, then give the same '
        'command again.'
      ) from error

  def _remove_old(self):
    if jax.process_index() == 0:
      _remove_other_steps(
        self.directory, saved_steps(self.directory)[-self._keep :]
      )


def save_best(
  directory: pathlib.Path, *, model: dict, metadata: Metadata
) -> None:
  """Saves a model in place of the one that a directory holds.

  Args:
    directory: Holds one step and nothing else.
    model: Params and constants.
    metadata: With the step.

  Raises:
    SaveError: If it fails; the model before is still there.
  """
  path = directory / str(metadata.step)
  try:
    if metadata.step not in saved_steps(directory):
      if path.exists() and jax.process_index() == 0:
        shutil.rmtree(path)
      with contextlib.closing(_open(directory)) as manager:
        # Of a run that went on from an earlier step, there may be a later one.
        save_checkpoint(
          manager,
          model=model,
          optimizer=None,
          metadata=metadata,
          force=True,
        )
        manager.wait_until_finished()
        manager.check_for_errors()
    read_metadata(path)
    _stored_leaves(path, 'model')
  except Exception as error:
    raise SaveError(
      f'C10: Saving the best model in {path} failed ({_first_line(error)}). '
      'Make room, then give the same command again.'
    ) from error
  if jax.process_index() == 0:
    _remove_other_steps(directory, [metadata.step])


def check_room(directory: pathlib.Path, *, size: int, count: int) -> str:
  """Finds out whether checkpoints can be written.

  Args:
    directory: Made if it is not there.
    size: Bytes of one.
    count: How many there will be at once, with those that there are.

  Returns:
    A warning; '' if there is room for all of them.

  Raises:
    InputError: If not even one can be written.
  """
  # All processes of a run do this at once.
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
  needed = size * max(count - len(saved_steps(directory)), 1)
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
  """Moves steps that a run cannot go on beside, out of its way.

  Args:
    directory: Of the steps; they go to `damaged` next to it.
    after: The step that it goes on from: all later ones are moved.

  Returns:
    Where they are now.
  """
  moved = []
  if jax.process_index():
    return moved
  for path in _step_directories(directory):
    if int(path.name) > after:
      target = directory.parent / 'damaged' / path.name
      while target.exists():
        target = target.with_name(target.name + '_')
      target.parent.mkdir(exist_ok=True)
      moved.append(path.rename(target))
  return moved


def tree_bytes(tree) -> int:
  """Returns how many bytes the arrays of a tree have."""
  return sum(
    np.dtype(leaf.dtype).itemsize * int(np.prod(leaf.shape))
    for leaf in jax.tree.leaves(tree)
  )


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
  """Returns the directory of one saved step.

  Args:
    path: That directory itself, or one that holds saved steps, or a workdir
      that holds `checkpoints`; of several steps the newest.
  """
  # As a path, http://a is http:/a.
  if re.match(r'[a-z0-9]+:/', str(path)):
    raise InputError(
      f'C09: {path} is an address, and nothing is downloaded here; give a '
      'checkpoint on this machine. python -m maskrcnn_jax.convert_weights '
      'makes one of a weight file.'
    )
  if not path.is_dir():
    raise InputError(
      f'C08: {path} is not a checkpoint directory; give the --workdir of a '
      'training run, or one of the numbered directories in its '
      'checkpoints/.'
    )
  if (path / 'metadata').is_dir() and (path / 'model').is_dir():
    return path
  for parent in (path / 'checkpoints', path):
    steps = saved_steps(parent)
    if steps:
      return parent / str(steps[-1])
  raise InputError(
    f'C08: {path} holds no finished checkpoint; train first, or give another '
    'directory with --checkpoint.'
  )


def saved_steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps that were saved completely, rising.

  A save that was cut off has left a temporary name, or lacks an item.
  """
  return sorted(
    int(step.name)
    for step in _step_directories(directory)
    if (step / 'model').is_dir() and (step / 'metadata').is_dir()
  )


def read_metadata(path: pathlib.Path) -> Metadata:
  """Reads the description of a saved step.

  Args:
    path: As `find_checkpoint` returns it.
  """
  try:
    # A checkpointer would wait for all processes to read it.
    stored = ocp.JsonCheckpointHandler().restore(
      (path / 'metadata').absolute(), args=ocp.args.JsonRestore()
    )
  except (ValueError, OSError, KeyError) as error:
    raise _damaged(path, 'metadata', error) from error
  found = stored.get('format') if isinstance(stored, dict) else None
  if found != FORMAT:
    raise InputError(
      f'C08: {path} is not a checkpoint of this program (format {found}, '
      f'expected {FORMAT}).'
    )
  try:
    # Checkpoints of complete models need not say so.
    stored = {'is_partial': False} | stored
    return Metadata(
      **{
        name: stored[_STORED_NAMES.get(name, name)] for name in Metadata._fields
      }
    )
  except KeyError as error:
    raise _damaged(path, 'metadata', error) from error


def restore_model(path: pathlib.Path, target: dict) -> dict:
  """Reads the parameters of a saved step.

  Args:
    path: As `find_checkpoint` returns it.
    target: The expected tree, of arrays or ShapeDtypeStructs, whose
      shardings the result gets.

  Raises:
    InputError: If names, shapes or dtypes differ from the target's.
  """
  return _restore_item(path, 'model', target)


def restore_optimizer(path: pathlib.Path, target: Any) -> Any:
  """Reads the optimizer's state of a saved step; see `restore_model`."""
  return _restore_item(path, 'optimizer', target)


def model_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Returns {'params/...': shape} of all arrays of a saved model."""
  return {
    name: tuple(leaf.shape)
    for name, leaf in _stored_leaves(path, 'model').items()
  }


def named_leaves(tree) -> dict[str, Any]:
  """Returns {'a/b/c': leaf} of a tree."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def nested(leaves: dict[str, Any]) -> dict:
  """Returns the tree of dicts that `named_leaves` flattens."""
  tree = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[last] = leaf
  return tree


def compare_trees(stored: dict[str, Any], expected: dict[str, Any]) -> str:
  """Says how the arrays of two models differ; '' if they do not.

  Args:
    stored: {name: shape, or shape and dtype} in the checkpoint.
    expected: Likewise, of the model to fill.
  """
  lines = [
    f'{name} is {stored[name]} there, {expected[name]} here'
    for name in sorted(stored.keys() & expected.keys())
    if stored[name] != expected[name]
  ]
  lines += [
    f'{name} is missing there' for name in sorted(set(expected) - set(stored))
  ]
  lines += [
    f'{name} is not known here' for name in sorted(set(stored) - set(expected))
  ]
  if not lines:
    return ''
  shown = '; '.join(lines[:10])
  return shown + (f'; and {len(lines) - 10} more' if len(lines) > 10 else '')


def _open(directory):
  return ocp.CheckpointManager(
    directory.absolute(),
    options=ocp.CheckpointManagerOptions(
      create=True, enable_async_checkpointing=True
    ),
  )


def _remove_other_steps(directory, kept):
  """Removes all steps but some, so that none is ever there in part."""
  for path in _step_directories(directory):
    if int(path.name) not in kept:
      path.rename(path.with_name(path.name + REMOVED))
  for path in directory.glob('*' + REMOVED):
    shutil.rmtree(path)


def _write_text(path, text):
  """Writes a file that is either whole or as it was."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text, encoding='utf-8')
  partial.replace(path)


def _step_directories(directory):
  """The directories named after a step, whole or not."""
  if not directory.is_dir():
    return []
  return [entry for entry in directory.iterdir() if entry.name.isdigit()]


def _restore_item(path, item, target):
  # Orbax casts to another dtype in silence, and names no leaf.
  difference = compare_trees(
    _signature(_stored_leaves(path, item)), _signature(named_leaves(target))
  )
  if difference:
    raise InputError(f'C02: {path} does not fit this model: {difference}.')
  try:
    with _reader(item, ocp.StandardCheckpointHandler()) as reader:
      return reader.restore(
        path.absolute(),
        args=ocp.args.Composite(
          **{item: ocp.args.StandardRestore(_abstract(target))}
        ),
      )[item]
  # Orbax raises a bare Exception where the data of an array is damaged.
  except Exception as error:
    raise _damaged(path, item, error) from error


def _stored_leaves(path, item):
  """Returns {name: what has a shape and a dtype} of a saved item."""
  handler = ocp.StandardCheckpointHandler()
  try:
    tree = handler.metadata((path / item).absolute())
  except (ValueError, OSError, KeyError) as error:
    raise _damaged(path, item, error) from error
  finally:
    handler.close()
  return named_leaves(getattr(tree, 'tree', tree))


def _damaged(path, item, error) -> DamagedCheckpoint:
  return DamagedCheckpoint(
    f'C08: {path} cannot be read as a checkpoint ({item}: '
    f'{_first_line(error)}); it may be damaged: try an earlier step.'
  )


def _reader(item, handler):
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{item: handler}))


def _abstract(tree):
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _signature(leaves):
  return {
    name: f'{np.dtype(leaf.dtype)} {tuple(leaf.shape)}'
    for name, leaf in leaves.items()
  }


def _first_line(error) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
