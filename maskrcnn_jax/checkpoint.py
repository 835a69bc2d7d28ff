"""Checkpoints: saved by orbax, checked leaf by leaf when they come back.

A checkpoint directory holds, for each saved step, the items `model` (params
and constants), `optimizer` (its state) and `metadata` (step, config, class
table), so that a model can be used without its optimizer.
"""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.errors import InputError

FORMAT = 1


class Metadata(NamedTuple):
  """What a checkpoint says about itself."""

  step: int
  config: dict  # plain nested dict
  categories: list  # [[COCO's id, name], ...]; class number = position + 1
  training_set: str = ''  # what it was trained on, in a line
  is_partial: bool = False  # lacks layers: to start a training from, no more


def open_checkpoints(
    directory: pathlib.Path, *, keep: int | None = None
) -> ocp.CheckpointManager:
  """Opens the checkpoints of a run for writing, which happens in background.

  Args:
    directory: Made if it is not there.
    keep: The newest so many stay.

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
  return ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
          max_to_keep=keep, create=True, enable_async_checkpointing=True
      ),
  )


def save_checkpoint(
    manager: ocp.CheckpointManager,
    *,
    model: dict,
    optimizer: Any,
    metadata: Metadata,
) -> None:
  """Starts to save; waits for the save before, and raises if that failed.

  Args:
    manager: Of the directory.
    model: Params and constants.
    optimizer: Its state; None for weights that no training made.
    metadata: With the step.
  """
  manager.wait_until_finished()
  manager.check_for_errors()
  items = {
      'model': ocp.args.StandardSave(model),
      'metadata': ocp.args.JsonSave({'format': FORMAT, **metadata._asdict()}),
  }
  if optimizer is not None:
    items['optimizer'] = ocp.args.StandardSave(optimizer)
  is_saved = manager.save(metadata.step, args=ocp.args.Composite(**items))
  if not is_saved:
    raise ValueError(
        f'Step {metadata.step} was not saved: {manager.directory} already '
        f'holds step {manager.latest_step()}; steps must rise.'
    )


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
  """Returns the directory of one saved step.

  Args:
    path: That directory itself, or one that holds saved steps, or a workdir
      that holds `checkpoints`; of several steps the newest.
  """
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
  """Reads what a saved step says about itself.

  Args:
    path: As `find_checkpoint` returns it.
  """
  try:
    with _reader('metadata', ocp.JsonCheckpointHandler()) as reader:
      stored = reader.restore(
          path.absolute(), args=ocp.args.Composite(
              metadata=ocp.args.JsonRestore()
          )
      )['metadata']
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
    return Metadata(**{name: stored[name] for name in Metadata._fields})
  except KeyError as error:
    raise _damaged(path, 'metadata', error) from error


def restore_model(path: pathlib.Path, target: dict) -> dict:
  """Reads the parameters of a saved step.

  Args:
    path: As `find_checkpoint` returns it.
    target: What is expected: a tree of arrays or ShapeDtypeStructs, whose
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
      f'{name} is not known here'
      for name in sorted(set(stored) - set(expected))
  ]
  if not lines:
    return ''
  shown = '; '.join(lines[:10])
  return shown + (f'; and {len(lines) - 10} more' if len(lines) > 10 else '')


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


def _damaged(path, item, error) -> InputError:
  return InputError(
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
