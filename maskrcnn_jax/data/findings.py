"""What is wrong with a data set, under codes that never change their meaning.

One list of them serves all who look at data: a training run stops at the first
error, `check_data` collects all of them.
"""

import re
from typing import Any, NamedTuple

from maskrcnn_jax import errors

# The meaning of each code of annotations and images, as the report has it.
MEANINGS = {
  code: row.meaning for code, row in errors.CODES.items() if code[0] in 'AI'
}

# Cases that COCO's own files have are left out and counted; beyond this share
# of the objects the file is wrong.
MAX_SHARE = 0.01

_CODE = re.compile(r'([AIC]\d\d): ', re.ASCII)


class Finding(NamedTuple):
  """One thing that is wrong."""

  code: str  # a key of MEANINGS
  is_error: bool
  file: str
  where: str  # 'annotation 501', 'image 7'; '' for the file as a whole
  reason: str
  row: int = -1  # of the image in its index, if it is known
  count: int = 1  # of the cases that the line speaks of

  def __str__(self) -> str:
    """Says it in one line, as an error does."""
    places = ''.join(f'{place}: ' for place in (self.file, self.where) if place)
    return f'{places}{self.code}: {self.reason}'


class Report:
  """Findings: all are counted, and of each code the first are kept."""

  def __init__(self, *, stop: bool, keep: int = 20):
    """Starts without any.

    Args:
      stop: Raise the first error instead of going on.
      keep: Lines to keep of each code.
    """
    self.counts: dict[str, int] = {}
    self.kept: list[Finding] = []
    self._stop = stop
    self._keep = keep
    self._kept: dict[str, int] = {}
    self._errors: set[str] = set()

  def error(
    self, code: str, file: Any, where: str, reason: str, **more: Any
  ) -> None:
    """Adds what nobody should train with.

    Raises:
      InputError: If the report stops at errors.
    """
    self._add(Finding(code, True, str(file), where, reason, **more))

  def warn(
    self, code: str, file: Any, where: str, reason: str, **more: Any
  ) -> None:
    """Adds what a person should know of."""
    self._add(Finding(code, False, str(file), where, reason, **more))

  def error_of(self, file: Any, where: str, error: errors.InputError) -> None:
    """Adds an error whose message begins with its code."""
    code, reason = split_code(str(error))
    self.error(code, file, where, reason)

  @property
  def error_codes(self) -> list[str]:
    """The codes that have an error, sorted."""
    return sorted(self._errors)

  def warnings(self) -> list[str]:
    """One line for each code that has warnings only: how many, the first."""
    lines = []
    for code, count in sorted(self.counts.items()):
      if code not in self._errors:
        first = next(found for found in self.kept if found.code == code)
        more = f' ({count} such cases)' if count > first.count else ''
        lines.append(f'{first}{more}')
    return lines

  def _add(self, found: Finding) -> None:
    if found.is_error and self._stop:
      raise errors.InputError(printable(str(found)))
    found = found._replace(
      file=printable(found.file),
      where=printable(found.where),
      reason=printable(found.reason),
    )
    self.counts[found.code] = self.counts.get(found.code, 0) + found.count
    if found.is_error:
      self._errors.add(found.code)
    kept = self._kept.get(found.code, 0)
    if kept < self._keep:
      self._kept[found.code] = kept + 1
      self.kept.append(found)


def split_code(message: str) -> tuple[str, str]:
  """Splits 'A04: reason' into its two parts."""
  match = _CODE.search(message)
  assert match, message
  return match[1], message[: match.start()] + message[match.end() :]


def printable(text: str) -> str:
  """Makes one line, of at most 500 characters, of what may quote a file."""
  text = ''.join(c if c.isprintable() else '?' for c in text)
  return text if len(text) <= 500 else f'{text[:400]} ... {text[-95:]}'
