"""The cache of named weights: downloaded files and converted checkpoints.

The folder is $MASKRCNN_JAX_WEIGHTS, or else maskrcnn_jax/weights in the user's
cache. A file lies there below the host and the folders of its address, as
`wget --force-directories` stores it. A file that is there already is not
downloaded. Converted checkpoints are in `converted/`.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import sys

from absl import logging

from maskrcnn_jax import __version__
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.named_weights.download import check, download
from maskrcnn_jax.named_weights.table import NamedWeights, find_row
from maskrcnn_jax.runtime.status_line import waiting


def find_checkpoint(text: str) -> str:
  """Returns the checkpoint that named weights were converted to.

  At the first use, the weights are downloaded and converted. If several
  processes ask for the same weights, one works and the others wait.

  Args:
    text: A name, such as 'torchvision:maskrcnn_resnet50_fpn_v2'.

  Returns:
    The path of a checkpoint directory in the cache.

  Raises:
    InputError: If there are no weights of this name, or if they cannot be
      downloaded, are not the published file, or cannot be stored.
  """
  row = find_row(text)
  # Another version of this program may convert in another way.
  slug = re.sub(r'[^\w.-]+', '_', row.name)
  folder = _folder() / 'converted'
  converted = folder / f'{slug}-{__version__}'
  if not converted.is_dir():
    with _locked(folder, slug):
      if not converted.is_dir():
        _convert(_fetch(row), converted, row)
  return str(converted)


def find_file(text: str) -> pathlib.Path:
  """Returns the weight file that a name stands for; downloads it if necessary.

  Args:
    text: A name, such as 'torchvision:resnet50'.

  Raises:
    InputError: As in `find_checkpoint`.
  """
  row = find_row(text)
  with _locked(_folder() / 'converted', re.sub(r'[^\w.-]+', '_', row.name)):
    return _fetch(row)


def _folder() -> pathlib.Path:
  """Returns the folder of the cache."""
  given = os.environ.get('MASKRCNN_JAX_WEIGHTS')
  if given:
    return pathlib.Path(given)
  caches = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(caches) / 'maskrcnn_jax' / 'weights'


@contextlib.contextmanager
def _locked(folder: pathlib.Path, name: str) -> Iterator[None]:
  """Lets one process at a time into the block.

  Args:
    folder: Where the lock file is; made if it does not exist.
    name: Name of the lock file, without its ending.

  Raises:
    InputError: If the folder cannot be written to.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / f'{name}.lock').open('w')
  except OSError as error:
    raise InputError(
      f'C10: cannot write to {folder}: {error.strerror or error}. The variable '
      'MASKRCNN_JAX_WEIGHTS names another folder for weights.'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      logging.info('Waiting for another process that fetches %s.', name)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _fetch(row: NamedWeights) -> pathlib.Path:
  """Returns the checked weight file of a row; downloads it if it is not there.

  Raises:
    InputError: If it cannot be downloaded or has another checksum.
  """
  path = _folder() / row.place
  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    download(_mirrored(row), path)
  check(path, row.checksum)
  return path


def _mirrored(row: NamedWeights) -> str:
  """Returns the address to download from: the publisher's, or a mirror's.

  $MASKRCNN_JAX_MIRROR is the address of a folder that holds copies below the
  hosts and folders of their addresses, as `wget --force-directories` stores
  them.

  Raises:
    InputError: If the variable is not an address.
  """
  mirror = os.environ.get('MASKRCNN_JAX_MIRROR', '')
  if not mirror:
    return row.address
  if not re.match(r'https?://[^/]', mirror):
    raise InputError(
      f'MASKRCNN_JAX_MIRROR is {mirror}; give an address that begins with '
      f'https:// or http://. {row.name} is looked for at '
      f'ADDRESS/{row.place}.'
    )
  return f'{mirror.rstrip("/")}/{row.place}'


def _convert(
  file: pathlib.Path, destination: pathlib.Path, row: NamedWeights
) -> None:
  """Converts a weight file in a process of its own.

  JAX must not be used in this process yet: several processes of a run first
  have to find each other. A process of its own also leaves the GPU alone.

  Args:
    file: The weight file.
    destination: The checkpoint directory. It appears when it is complete.
    row: The weights.

  Raises:
    InputError: If the file cannot be converted.
    RuntimeError: If the conversion fails for another reason.
  """
  partial = destination.with_name(destination.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  logging.info('Converting %s to %s (once).', file, destination)
  root = str(pathlib.Path(__file__).parents[2])
  path = os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH'))))
  with waiting('Converting the weights'):
    done = subprocess.run(
      [
        sys.executable,
        '-m',
        'maskrcnn_jax.convert_weights',
        str(file),
        str(partial),
        *row.conventions,
      ],
      env=os.environ | {'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
    )
  for line in done.stdout.splitlines():
    logging.info('%s', line)
  if done.returncode:
    shutil.rmtree(partial, ignore_errors=True)
    for line in done.stderr.splitlines():
      if done.returncode == 2 and line.startswith('error: '):
        raise InputError(line.removeprefix('error: '))
    raise RuntimeError(
      f'{file} could not be converted (status {done.returncode}): '
      f'{done.stderr[-2000:]}'
    )
  partial.rename(destination)
