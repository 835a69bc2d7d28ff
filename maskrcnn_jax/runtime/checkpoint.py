"""Checkpoints of models: saving, finding, checking and reading them.

A checkpoint directory has one folder for each saved step, named after the step.
Such a folder holds three items, which orbax writes:

- `model`: params and constants;
- `optimizer`: the state of the optimizer, the loss scale, and, if `model` holds
  averaged params, the params themselves;
- `metadata`: the step, the recipe and the classes.

A model can be used without the item `optimizer`.
"""

from collections.abc import Iterable, Mapping
import pathlib
import re
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.errors import InputError

# Number of the layout of a checkpoint, which is stored in it.
FORMAT = 1


class DamagedCheckpoint(InputError):
  """A checkpoint cannot be read: it is damaged, or saving it was cut off."""


class Metadata(NamedTuple):
  """The description that is stored with the arrays of a checkpoint."""

  step: int  # number of steps done
  recipe: dict  # plain nested dict; 'config' in the stored file
  categories: list  # [[COCO's id, name], ...]; class number = position + 1
  training_set: str = ''  # description of the training set, in one line
  # True if layers are missing, so that the checkpoint can only give a training
  # its initial weights.
  is_partial: bool = False


# {field of `Metadata`: its name in the stored file}, where they differ.
_STORED_NAMES = {'recipe': 'config'}


def open_checkpoints(directory: pathlib.Path) -> ocp.CheckpointManager:
  """Opens a checkpoint directory for writing, after checking its newest step.

  Args:
    directory: The checkpoint directory; made if it does not exist.

  Returns:
    A manager that writes in the background.

  Raises:
    InputError: If the newest step is incomplete.
  """
  # Orbax would take the incomplete step for the latest one and refuse to save
  # earlier steps. An incomplete step before the newest complete one does no
  # harm: a run leaves one if it is killed while it removes an old checkpoint.
  newest = max(saved_steps(directory), default=-1)
  for step in step_directories(directory):
    if int(step.name) > newest:
      raise InputError(
        f'C08: {step} is not a whole checkpoint, and no training can '
        'continue beside it; move it away.'
      )
  return open_manager(directory)


def open_manager(directory: pathlib.Path) -> ocp.CheckpointManager:
  """Opens a checkpoint directory for writing, whatever steps it holds.

  Args:
    directory: The checkpoint directory; made if it does not exist.

  Returns:
    A manager that writes in the background.
  """
  return ocp.CheckpointManager(
    directory.absolute(),
    options=ocp.CheckpointManagerOptions(
      create=True, enable_async_checkpointing=True
    ),
  )


def save_checkpoint(
  manager: ocp.CheckpointManager,
  *,
  model: dict,
  optimizer: PyTree | None,
  metadata: Metadata,
  force: bool = False,
) -> None:
  """Starts to save a checkpoint in the background.

  First waits for the save that the manager started before, and raises its
  error if it failed.

  Args:
    manager: Writes to the checkpoint directory.
    model: Params and constants.
    optimizer: State of the optimizer; `None` for weights that were not trained
      here, such as converted ones.
    metadata: The description of the checkpoint, with its step.
    force: Whether to save although the directory may hold a later step.

  Raises:
    ValueError: If the directory holds this step or, without `force`, a later
      step.
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
  """Returns the content of the stored file: format number and all fields."""
  fields = metadata._asdict().items()
  return {'format': FORMAT} | {
    _STORED_NAMES.get(name, name): value for name, value in fields
  }


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
  """Finds the folder of the checkpoint that a user means by a path.

  Args:
    path: The folder of one saved step, a checkpoint directory, or the workdir
      of a run. If there are several steps, the newest is taken.

  Returns:
    The folder of one saved step.

  Raises:
    InputError: If there is no complete checkpoint.
  """
  # pathlib shortens http://a to http:/a.
  if re.match(r'[a-z0-9]+:/', str(path)):
    raise InputError(
      f'C09: {path} is an address, and only weights that --list_weights lists '
      'are downloaded; give a name of that list, or a checkpoint on this '
      'machine. python -m maskrcnn_jax.convert_weights makes one of a weight '
      'file.'
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
  """Returns the steps of the complete checkpoints of a directory, rising.

  Incomplete checkpoints are left out: if a save was cut off, the folder has a
  temporary name or lacks an item. The list is empty if there is no directory.
  """
  return sorted(
    int(step.name)
    for step in step_directories(directory)
    if (step / 'model').is_dir() and (step / 'metadata').is_dir()
  )


def read_metadata(path: pathlib.Path) -> Metadata:
  """Reads the metadata of a checkpoint.

  Args:
    path: Folder of one saved step.

  Raises:
    DamagedCheckpoint: If the metadata cannot be read.
    InputError: If the checkpoint has another format.
  """
  try:
    # Orbax's Checkpointer would wait until all processes read the file.
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
    # Checkpoints of complete models may lack this field.
    stored = {'is_partial': False} | stored
    return Metadata(
      **{
        name: stored[_STORED_NAMES.get(name, name)] for name in Metadata._fields
      }
    )
  except KeyError as error:
    raise _damaged(path, 'metadata', error) from error


def restore_model(path: pathlib.Path, target: dict) -> dict:
  """Reads the params and constants of a checkpoint.

  Args:
    path: Folder of one saved step.
    target: The expected tree of arrays or `jax.ShapeDtypeStruct`s. The result
      gets the shardings of its leaves.

  Raises:
    InputError: If names, shapes or dtypes differ from those of the target.
    DamagedCheckpoint: If the arrays cannot be read.
  """
  return _restore_item(path, 'model', target)


def check_finite(path: pathlib.Path, model: PyTree) -> None:
  """Checks that the arrays of a model have only finite numbers.

  A model with NaN would find nothing, without an error.

  Args:
    path: Folder of one saved step, for the message.
    model: The arrays that were read from it. Each is whole on each device.

  Raises:
    InputError: If an array has NaN or infinite numbers.
  """
  # On the host: compiling a reduction of 300 arrays would take seconds.
  bad = [
    name
    for name, leaf in named_leaves(model).items()
    if not np.isfinite(leaf.addressable_data(0)).all()
  ]
  if bad:
    more = f' and {len(bad) - 1} more arrays' if len(bad) > 1 else ''
    raise InputError(
      f'C14: {path} has weights that are not finite, in {bad[0]}{more}; the '
      'training that wrote it has diverged. Take an earlier checkpoint.'
    )


def restore_optimizer(path: pathlib.Path, target: PyTree) -> PyTree:
  """Reads the item `optimizer` of a checkpoint, the state of the training.

  Args:
    path: Folder of one saved step.
    target: The expected tree of arrays or `jax.ShapeDtypeStruct`s. The result
      gets the shardings of its leaves.

  Raises:
    InputError: If names, shapes or dtypes differ from those of the target.
    DamagedCheckpoint: If the arrays cannot be read.
  """
  return _restore_item(path, 'optimizer', target)


def model_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each array of a checkpoint's model, by its path.

  Args:
    path: Folder of one saved step.

  Returns:
    {'params/...' or 'constants/...': shape}.

  Raises:
    DamagedCheckpoint: If the list of the arrays cannot be read.
  """
  return {
    name: tuple(leaf.shape)
    for name, leaf in _stored_leaves(path, 'model').items()
  }


def check_saved(path: pathlib.Path, items: Iterable[str]) -> None:
  """Checks that the metadata and some items of a checkpoint can be read.

  Only the list of an item's arrays is read, not their numbers.

  Args:
    path: Folder of one saved step.
    items: Names of the items, such as 'model'.

  Raises:
    InputError: If the metadata or an item cannot be read.
  """
  read_metadata(path)
  for item in items:
    _stored_leaves(path, item)


def named_leaves(tree: PyTree) -> dict[str, Any]:
  """Flattens a tree to {path: leaf}, with paths like 'params/conv/bias'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def nested(leaves: dict[str, Any]) -> dict:
  """Makes nested dicts of {path: leaf}; `named_leaves` does the opposite."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[last] = leaf
  return tree


def compare_trees(stored: dict[str, Any], expected: dict[str, Any]) -> str:
  """Describes how the arrays of a checkpoint differ from those of a model.

  Args:
    stored: {path of an array: its shape, or its dtype and shape} in the
      checkpoint.
    expected: The same for the model.

  Returns:
    The first ten differences; '' if there are none.
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


def step_directories(directory: pathlib.Path) -> list[pathlib.Path]:
  """Lists the folders that are named after a step, also incomplete ones."""
  if not directory.is_dir():
    return []
  return [entry for entry in directory.iterdir() if entry.name.isdigit()]


def first_line(error: Exception) -> str:
  """Returns the first line of an error's message, of at most 200 characters."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _restore_item(path: pathlib.Path, item: str, target: PyTree) -> PyTree:
  """Reads an item of a checkpoint after comparing it with a target.

  Args:
    path: Folder of one saved step.
    item: 'model' or 'optimizer'.
    target: The expected tree of arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    InputError: If names, shapes or dtypes differ from those of the target.
    DamagedCheckpoint: If the arrays cannot be read.
  """
  # Orbax would silently cast arrays of another dtype, and its errors do not say
  # which array is wrong.
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
  # Orbax raises a bare Exception if the data of an array is damaged.
  except Exception as error:
    raise _damaged(path, item, error) from error


def _stored_leaves(path: pathlib.Path, item: str) -> dict[str, Any]:
  """Reads the names, shapes and dtypes of the arrays of a checkpoint's item.

  Args:
    path: Folder of one saved step.
    item: 'model' or 'optimizer'.

  Returns:
    {path of an array: object with `shape` and `dtype`}.

  Raises:
    DamagedCheckpoint: If they cannot be read.
  """
  handler = ocp.StandardCheckpointHandler()
  try:
    tree = handler.metadata((path / item).absolute())
  except (ValueError, OSError, KeyError) as error:
    raise _damaged(path, item, error) from error
  finally:
    handler.close()
  return named_leaves(getattr(tree, 'tree', tree))


def _damaged(
  path: pathlib.Path, item: str, error: Exception
) -> DamagedCheckpoint:
  """Returns the error of an item that cannot be read.

  Args:
    path: Folder of one saved step.
    item: 'model', 'optimizer' or 'metadata'.
    error: The error that reading the item has raised.
  """
  return DamagedCheckpoint(
    f'C08: {path} cannot be read as a checkpoint ({item}: '
    f'{first_line(error)}); it may be damaged: try an earlier step.'
  )


def _reader(item: str, handler: ocp.CheckpointHandler) -> ocp.Checkpointer:
  """Returns a checkpointer that reads a single item of checkpoints.

  Args:
    item: 'model', 'optimizer' or 'metadata'.
    handler: Orbax's handler for items of this type.
  """
  return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{item: handler}))


def _abstract(tree: PyTree) -> PyTree:
  """Replaces the arrays of a tree by `jax.ShapeDtypeStruct`s."""
  return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _signature(leaves: Mapping[str, Any]) -> dict[str, str]:
  """Returns {path of an array: its dtype and shape as text}."""
  return {
    name: f'{np.dtype(leaf.dtype)} {tuple(leaf.shape)}'
    for name, leaf in leaves.items()
  }
