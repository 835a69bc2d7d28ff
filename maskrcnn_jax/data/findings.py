"""Collects the faults of a data set, under codes of a fixed meaning.

A training run and `check_data` use the same checks and codes: a training run
stops at the first error, `check_data` collects all of them.
"""

import os
import re
from typing import NamedTuple

from maskrcnn_jax import errors

# {code: meaning} of all codes for annotations (A) and images (I).
MEANINGS = {
  code: row.meaning for code, row in errors.CODES.items() if code[0] in 'AI'
}

# Largest share of the objects that may have a certain fault, if COCO's own
# files have this fault too: the objects, or their wrong polygons, are then left
# out with a warning. If more objects have the fault, it is an error.
MAX_SHARE = 0.01
_FEW = 5
_FEW_SHARE = 0.05

_CODE = re.compile(r'([AIC]\d\d): ', re.ASCII)


class Finding(NamedTuple):
  """A fault of a data set, or several of the same kind."""

  code: str  # a key of MEANINGS, or a code that begins with C
  is_error: bool  # whether the data set must not be used; else a warning
  file: str  # path of the file; '' if the fault is in no file
  where: str  # 'annotation 501', 'image 7'; '' for the file as a whole
  reason: str  # description of the fault
  row: int = -1  # row of the image in the index; -1 if it is not known
  num_cases: int = 1  # number of faults that the finding stands for

  def __str__(self) -> str:
    """Formats the finding as one line, in the form of an error message."""
    places = ''.join(f'{place}: ' for place in (self.file, self.where) if place)
    return f'{places}{self.code}: {self.reason}'


class Report:
  """Collects findings: counts all, and keeps the first ones of each code.

  Attributes:
    counts: {code: number of cases}.
    kept: The findings that are kept, in the order in which they were added.
  """

  def __init__(self, *, stop: bool, keep: int = 20):
    """Makes a report without findings.

    Args:
      stop: Whether to raise the first error instead of collecting it.
      keep: Number of findings of each code that are kept.
    """
    self.counts: dict[str, int] = {}
    self.kept: list[Finding] = []
    self._stop = stop
    self._keep = keep
    self._num_kept: dict[str, int] = {}
    self._errors: set[str] = set()

  def error(
    self,
    code: str,
    file: str | os.PathLike[str],
    where: str,
    reason: str,
    *,
    row: int = -1,
    count: int = 1,
  ) -> None:
    """Adds an error: a fault with which the data set must not be used.

    Args:
      code: A key of MEANINGS.
      file: The file that has the fault; '' if it is in no file.
      where: Name of the image or annotation; '' for the file as a whole.
      reason: Description of the fault.
      row: Row of the image in the index; -1 if it is not known.
      count: Number of cases. It is 0 if each case is also added by itself.

    Raises:
      InputError: If the report stops at the first error.
    """
    self._add(Finding(code, True, str(file), where, reason, row, count))

  def warn(
    self,
    code: str,
    file: str | os.PathLike[str],
    where: str,
    reason: str,
    *,
    row: int = -1,
    count: int = 1,
  ) -> None:
    """Adds a warning: a fault with which the data set can still be used.

    Args:
      code: A key of MEANINGS.
      file: The file that has the fault; '' if it is in no file.
      where: Name of the image or annotation; '' for the file as a whole.
      reason: Description of the fault.
      row: Row of the image in the index; -1 if it is not known.
      count: Number of cases.
    """
    self._add(Finding(code, False, str(file), where, reason, row, count))

  def error_from_exception(
    self,
    file: str | os.PathLike[str],
    where: str,
    error: errors.InputError,
  ) -> None:
    """Adds an error that was raised as an exception.

    Args:
      file: The file that has the fault; '' if it is in no file.
      where: Name of the image or annotation; '' for the file as a whole.
      error: The exception. Its message must contain a code and a colon, such as
        'A04: '. The rest of the message becomes the reason of the finding.

    Raises:
      InputError: If the report stops at the first error.
    """
    code, reason = split_code(str(error))
    self.error(code, file, where, reason)

  @property
  def error_codes(self) -> list[str]:
    """The sorted codes under which errors, not only warnings, were added."""
    return sorted(self._errors)

  def warnings(self) -> list[str]:
    """Returns a line for each code that has only warnings.

    The line is the first warning, with the number of cases if there are more.
    """
    lines = []
    for code, count in sorted(self.counts.items()):
      if code not in self._errors:
        first = next(found for found in self.kept if found.code == code)
        more = f' ({count} such cases)' if count > first.num_cases else ''
        lines.append(f'{first}{more}')
    return lines

  def _add(self, found: Finding) -> None:
    """Counts a finding, and keeps it if it is among the first of its code.

    Raises:
      InputError: If it is an error and the report stops at the first error.
    """
    if found.is_error and self._stop:
      raise errors.InputError(printable(str(found)))
    found = found._replace(
      file=printable(found.file),
      where=printable(found.where),
      reason=printable(found.reason),
    )
    self.counts[found.code] = self.counts.get(found.code, 0) + found.num_cases
    if found.is_error:
      self._errors.add(found.code)
    num_kept = self._num_kept.get(found.code, 0)
    if num_kept < self._keep:
      self._num_kept[found.code] = num_kept + 1
      self.kept.append(found)


def are_many(count: int, total: int) -> bool:
  """Tells whether so many objects have a fault that it is no accident.

  Args:
    count: Number of objects that have the fault.
    total: Number of all objects of the file.
  """
  if count <= _FEW and count <= _FEW_SHARE * total:
    return False
  return count > MAX_SHARE * total


def split_code(message: str) -> tuple[str, str]:
  """Splits a message such as 'a.json: A04: reason' into its code and the rest.

  Args:
    message: A message that contains a code of the letters A, I or C, followed
      by a colon and a space. The first code is taken.

  Returns:
    The code, and the message without it: ('A04', 'a.json: reason').
  """
  match = _CODE.search(message)
  assert match, message
  return match[1], message[: match.start()] + message[match.end() :]


def printable(text: str) -> str:
  """Makes one line of at most 500 characters of a text that may quote a file.

  Characters that cannot be printed, such as line breaks, become '?'. A longer
  text loses its middle.
  """
  text = ''.join(c if c.isprintable() else '?' for c in text)
  return text if len(text) <= 500 else f'{text[:400]} ... {text[-95:]}'
