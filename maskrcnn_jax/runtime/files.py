"""Files of results: whole or not there."""

import json
import pathlib
import tempfile

from maskrcnn_jax.errors import InputError


def make_writable(directory: pathlib.Path) -> None:
  """Makes a directory, and finds out early whether it can be written to.

  Raises:
    InputError: If it cannot.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
      file.write(bytes(1 << 16))
  except OSError as error:
    raise InputError(
      f'C10: cannot write to {directory}: {error.strerror or error}.'
    ) from error


def write_json(path: pathlib.Path, content) -> None:
  """Writes a JSON file that is either whole or not there."""
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(content), encoding='utf-8')
  partial.replace(path)
