"""Runs the converter in this process, for its tests."""

import contextlib
import io
import json
from typing import NamedTuple

from maskrcnn_jax.convert_to_coco import convert


class Done(NamedTuple):
  """The end of a run."""

  returncode: int
  stdout: str
  stderr: str


def run(*arguments):
  """Runs the converter with arguments of the command line."""
  stdout, stderr = io.StringIO(), io.StringIO()
  status = 0
  with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
    try:
      convert.main(list(map(str, arguments)))
    except SystemExit as error:
      status = error.code
  # A wrong type annotation would otherwise look like a damaged file.
  assert 'Type-check error' not in stdout.getvalue() + stderr.getvalue()
  return Done(status, stdout.getvalue(), stderr.getvalue())


def convert_folder(folder, annotations, *options):
  """Converts the annotations of `folder / images`, which must succeed.

  Returns:
    The content of the JSON, and the printed text.
  """
  out = folder / 'coco.json'
  done = run(
    *options,
    f'--images={folder / "images"}',
    f'--annotations={annotations}',
    f'--out={out}',
  )
  assert done.returncode == 0, done.stderr
  return json.loads(out.read_text()), done.stdout
