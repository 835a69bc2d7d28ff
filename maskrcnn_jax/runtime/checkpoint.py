"""Checkpoints of models: saving, finding, checking and reading them.

A checkpoint directory has one folder for each saved step, named after the step.
Such a folder holds three items, which orbax writes:

- `model`: params and constants;
- `optimizer`: the state of the optimizer, the loss scale, and, if `model` holds
  averaged params, the params themselves;
- `metadata`: the step, the recipe and the classes, and checksums of all arrays
  and of the metadata itself.

A model can be used without the item `optimizer`.
"""

from collections.abc import Iterable, Mapping
import json
import pathlib
import re
from typing import Any, NamedTuple
import zlib

from absl import logging
import jax
from jaxtyping import PyTree
import numpy as np
import orbax.checkpoint as ocp

from maskrcnn_jax.errors import DamagedCheckpoint, InputError
from maskrcnn_jax.runtime.memory_limit import lacks_memory
from maskrcnn_jax.runtime.orbax_errors import hide_orbax_errors

# Number of the layout of a checkpoint, which is stored in it.
FORMAT = 1


class Metadata(NamedTuple):
  """The description that is stored with the arrays of a checkpoint."""

  step: int  # number of steps done
  recipe: dict  # plain nested dict; 'config' in the stored file
  categories: list  # [[COCO's id, name], ...]; class number = position + 1
  training_set: str = ''  # description of the training set, in one line
  # True if layers are missing, so that the checkpoint can only give a training
  # its initial weights.
  is_partial: bool = False
  # Fingerprint of the files of the training images; '' if there is none.
  images: str = ''


# {field of `Metadata`: its name in the stored file}, where they differ.
_STORED_NAMES = {'recipe': 'config'}

# Names in the stored file: {item: {array: checksum}}, and the checksum of all
# other content of the file.
_ARRAY_CHECKSUMS = 'array_checksums'
_OWN_CHECKSUM = 'checksum'


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
  hide_orbax_errors()
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
  arrays: dict[str, PyTree] = {'model': model}
  if optimizer is not None:
    arrays['optimizer'] = optimizer
  items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
  # Only process 0 writes the metadata.
  checksums = (
    {name: array_checksums(tree) for name, tree in arrays.items()}
    if jax.process_index() == 0
    else {}
  )
  items['metadata'] = ocp.args.JsonSave(_stored_metadata(metadata, checksums))
  is_saved = manager.save(
    metadata.step, args=ocp.args.Composite(**items), force=force
  )
  if not is_saved:
    raise ValueError(
      f'Step {metadata.step} was not saved: {manager.directory} already '
      f'holds step {manager.latest_step()}; steps must rise.'
    )


def _stored_metadata(
  metadata: Metadata, checksums: dict[str, dict[str, str]]
) -> dict:
  """Returns the content of the stored file.

  Args:
    metadata: The fields to store.
    checksums: {item: {array: checksum}}.
  """
  stored = {
    _STORED_NAMES.get(name, name): value
    for name, value in metadata._asdict().items()
  } | {'format': FORMAT, _ARRAY_CHECKSUMS: checksums}
  return stored | {_OWN_CHECKSUM: _metadata_checksum(stored)}


def _metadata_checksum(stored: dict) -> str:
  """Returns the checksum of the stored metadata, without the checksum itself.

  Args:
    stored: The content of the file, before it is written or after it was read.
  """
  # Writing and reading turns tuples into lists and all keys into strings.
  content = json.loads(json.dumps(stored))
  content.pop(_OWN_CHECKSUM, None)
  return _checksum(json.dumps(content, sort_keys=True).encode())


def array_checksums(tree: PyTree) -> dict[str, str]:
  """Describes each array of a tree by its dtype, shape and CRC-32.

  Args:
    tree: NumPy arrays, or JAX arrays of which each device has a whole copy.

  Returns:
    {path of an array: text such as 'float32 (3,) 30c8bc70'}.
  """
  leaves = named_leaves(tree)
  signatures = _signature(leaves)
  checksums = {}
  for name, leaf in leaves.items():
    array = np.ascontiguousarray(
      leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
    )
    checksum = _checksum(array.reshape(-1).view(np.uint8))
    checksums[name] = f'{signatures[name]} {checksum}'
  return checksums


def _checksum(data: bytes | np.ndarray) -> str:
  """Returns the CRC-32 of bytes, as eight hexadecimal digits."""
  return f'{zlib.crc32(data):08x}'


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
  # Older checkpoints lack these fields.
  older: dict[str, Any] = {'is_partial': False, 'images': ''}
  stored = older | _read_stored(path)
  try:
    metadata = Metadata(
      **{
        name: stored[_STORED_NAMES.get(name, name)] for name in Metadata._fields
      }
    )
  except KeyError as error:
    raise _damaged(path, 'metadata', error) from error
  fault = _wrong_type(metadata)
  if fault:
    raise _damaged(path, 'metadata', TypeError(fault))
  return metadata


def _wrong_type(metadata: Metadata) -> str:
  """Names the first field of metadata that has a wrong type; '' if none has."""
  for name, value, type_ in (
    ('step', metadata.step, int),
    ('config', metadata.recipe, dict),
    ('categories', metadata.categories, list),
    ('training_set', metadata.training_set, str),
    ('is_partial', metadata.is_partial, bool),
    ('images', metadata.images, str),
  ):
    if type(value) is not type_:
      return f'{name} is {value!r:.50}, not of the type {type_.__name__}'
  for entry in metadata.categories:
    match entry:
      case [int() | str(), str()]:
        continue
    return f'categories has {entry!r:.50}, which is not an id and a name'
  return ''


def _read_stored(path: pathlib.Path) -> dict[str, Any]:
  """Reads the file of the metadata and checks its checksum, if it has one.

  Args:
    path: Folder of one saved step.

  Raises:
    DamagedCheckpoint: If the file cannot be read or its checksum is wrong.
    InputError: If the checkpoint has another format.
  """
  try:
    # Orbax's Checkpointer would wait until all processes read the file.
    stored = ocp.JsonCheckpointHandler().restore(
      (path / 'metadata').absolute(), args=ocp.args.JsonRestore()
    )
  except (ValueError, OSError, RecursionError) as error:
    if lacks_memory(error):
      raise
    raise _damaged(path, 'metadata', error) from error
  if not isinstance(stored, dict):
    raise _damaged(path, 'metadata', TypeError('they are no JSON object'))
  # If one of the two names were damaged, the other would still be there.
  if _ARRAY_CHECKSUMS in stored or _OWN_CHECKSUM in stored:
    if stored.get(_OWN_CHECKSUM) != _metadata_checksum(stored):
      raise _damaged(path, 'metadata', ValueError('its checksum is wrong'))
  number = stored.get('format')
  if type(number) is not int:
    raise _damaged(path, 'metadata', TypeError(f'format is {number!r:.50}'))
  if number != FORMAT:
    raise InputError(
      f'C08: {path} is not a checkpoint of this program (format {number}, '
      f'expected {FORMAT}).'
    )
  return stored


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
  """Returns the first line of an error's message, of at most 200 characters.

  A longer line loses its middle, because the messages of tensorstore begin with
  the place of the error, which is long, and end with the reason.
  """
  line = (str(error).strip().splitlines() or [type(error).__name__])[0]
  return line if len(line) <= 200 else f'{line[:75]} ... {line[-120:]}'


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
  hide_orbax_errors()
  saved = _saved_checksums(path, item)
  stored = _signature(_stored_leaves(path, item))
  if saved is not None and stored != {
    name: text.rpartition(' ')[0] for name, text in saved.items()
  }:
    raise _damaged(path, item, ValueError('the list of its arrays is wrong'))
  # Orbax would silently cast arrays of another dtype, and its errors do not say
  # which array is wrong.
  difference = compare_trees(stored, _signature(named_leaves(target)))
  if difference:
    raise InputError(f'C02: {path} does not fit this model: {difference}.')
  try:
    with _reader(item, ocp.StandardCheckpointHandler()) as reader:
      restored = reader.restore(
        path.absolute(),
        args=ocp.args.Composite(
          **{item: ocp.args.StandardRestore(_abstract(target))}
        ),
      )[item]
  # Orbax raises an exception of any type if one of its files is damaged.
  except Exception as error:
    if lacks_memory(error):
      raise
    raise _damaged(path, item, error) from error
  if saved is not None:
    found = array_checksums(restored)
    changed = [name for name in found if found[name] != saved[name]]
    if changed:
      raise _damaged(
        path, item, ValueError(f'the checksum of {changed[0]} is wrong')
      )
  return restored


def _saved_checksums(path: pathlib.Path, item: str) -> dict[str, str] | None:
  """Returns the checksums of an item as `array_checksums` does, or `None`.

  Args:
    path: Folder of one saved step. If it was saved without checksums, the
      result is `None`, and a line is logged for the item 'model'.
    item: 'model' or 'optimizer'.

  Raises:
    DamagedCheckpoint: If the metadata cannot be read.
  """
  stored = _read_stored(path)
  if _ARRAY_CHECKSUMS in stored:
    return stored[_ARRAY_CHECKSUMS].get(item, {})
  if item == 'model':
    logging.info(
      '%s was saved without checksums, so that damage to its arrays may not be '
      'noticed.',
      path,
    )
  return None


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
  # Orbax raises an exception of any type if one of its files is damaged.
  except Exception as error:
    if lacks_memory(error):
      raise
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
