"""What is wrong with a data set, under codes that never change their meaning.

One list of them serves all who look at data: a training run stops at the first
error, `check_data` collects all of them.
"""

import re
from typing import Any, NamedTuple

from maskrcnn_jax import errors

# What each code of data means, as the report has it.  README.md has the table.
MEANINGS = {
    'A01': 'box without area',
    'A02': 'box outside of its image',
    'A03': 'boxes given by their corners',
    'A04': 'number that is none, or not finite',
    'A05': 'polygon with fewer than 6 numbers or an odd count',
    'A06': 'object without a mask',
    'A07': 'segmentation of another form',
    'A09': 'RLE that does not fit its image',
    'A10': 'mask without a pixel',
    'A11': 'box and mask disagree',
    'A12': 'iscrowd missing or not 0 or 1',
    'A13': 'category without id or name',
    'A14': 'annotation of an unknown image or category',
    'A15': 'category twice',
    'A16': 'background as a category',
    'A17': 'image id twice',
    'A18': 'annotation ids that are missing or not unique',
    'A19': 'image without a usable id',
    'A20': 'image twice',
    'A21': 'class tables differ',
    'A22': 'class without objects',
    'A23': 'nothing to train on',
    'A24': 'more objects in an image than slots',
    'A25': 'not a COCO instances file',
    'A26': 'area missing or wrong',
    'A27': 'outline too long',
    'I01': 'image file missing',
    'I02': 'image file damaged',
    'I03': 'no image',
    'I05': 'size of an image wrong',
    'I07': 'transparency dropped',
    'I09': 'more than 8 bits a channel',
    'I10': 'floating-point pixels',
    'I11': 'channels that are not RGB',
    'I12': 'image too large',
    'I13': 'image tiny or very long',
    'I14': 'only the first picture of the file is used',
    'I15': 'file name leads out of the folder',
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
        file=printable(found.file), where=printable(found.where),
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
