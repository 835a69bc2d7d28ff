"""The file metrics.jsonl of a run: a line of JSON for each report."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any, TextIO


class MetricsFile:
  """Writes the figures of reports, so that other programs can plot them.

  Each line is a JSON object with `step`, `kind` ('train' or 'eval') and the
  figures by name. A step has at most one line of each kind, also if the run was
  killed and continued from an earlier step.
  """

  def __init__(self, path: pathlib.Path | None, *, first_step: int):
    """Opens the file of a run, and removes lines that the run writes again.

    Args:
      path: The file, which need not exist; `None` writes nothing.
      first_step: Number of steps done when the run starts or resumes. Lines of
        later steps are removed, and a last line that is cut off.
    """
    self._path = path
    self._stream: TextIO | None = None
    if path is None:
      return
    self._lines = {
      place: line
      for place, line in _read(path).items()
      if place[0] <= first_step
    }
    self._rewrite()

  def write(
    self, step: int, kind: str, figures: Mapping[str, float | int]
  ) -> None:
    """Adds a line, in place of an earlier one of the same step and kind.

    Args:
      step: Number of steps done.
      kind: 'train' or 'eval'.
      figures: {name: finite number}.
    """
    if self._stream is None:
      return
    line = json.dumps({'step': step, 'kind': kind} | dict(figures)) + '\n'
    is_new = (step, kind) not in self._lines
    self._lines[step, kind] = line
    if not is_new:
      self._rewrite()
      return
    self._stream.write(line)
    self._stream.flush()

  def close(self) -> None:
    """Closes the file."""
    if self._stream is not None:
      self._stream.close()

  def _rewrite(self) -> None:
    """Replaces the file by one with the lines that count, and opens it."""
    assert self._path is not None
    self.close()
    partial = self._path.with_suffix('.partial')
    partial.write_text(''.join(self._lines.values()), encoding='utf-8')
    partial.replace(self._path)
    self._stream = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115


def _read(path: pathlib.Path) -> dict[tuple[int, str], str]:
  """Returns the lines of a file by step and kind, the newest of each.

  Lines that are not from this program, or are cut off, are left out.
  """
  if not path.is_file():
    return {}
  lines: dict[tuple[int, str], str] = {}
  for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
    try:
      content: Any = json.loads(line)
      place = (int(content['step']), str(content['kind']))
    except (ValueError, TypeError, KeyError):
      continue
    lines[place] = line + '\n'
  return lines
