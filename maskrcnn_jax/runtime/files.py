"""Files of results, which appear under their name only when complete."""

import json
import pathlib
import tempfile
from typing import Any

from maskrcnn_jax.errors import InputError


def make_writable(directory: pathlib.Path) -> None:
  """Makes a directory if it is missing, and checks that it can be written to.

  A trial file is written. Permissions are not changed.

  Raises:
    InputError: If the directory cannot be made or written to.
  """
  try:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
      file.write(bytes(1 << 16))
  except OSError as error:
    raise InputError(
      f'C10: cannot write to {directory}: {error.strerror or error}.'
    ) from error


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file; an interruption leaves the old file, if there was one.

  Args:
    path: The file.
    content: The new content, of types that JSON can store.
  """
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(content), encoding='utf-8')
  partial.replace(path)
