"""Reads several data sets as one training set."""

import os
import pathlib
from typing import Any, NamedTuple

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, findings
from maskrcnn_jax.data.coco_index import CocoIndex, concatenate
from maskrcnn_jax.data.source import SeveralImages, Source


class SeveralSets(NamedTuple):
  """Several data sets with the same classes, which are read as one.

  The images of a set follow those of the set before it. Images of different
  sets may have the same id or the same file name.
  """

  sets: tuple[Source, ...]

  def __str__(self) -> str:
    """Returns the names of the data sets for messages."""
    return ', '.join(map(str, self.sets))

  @property
  def images(self) -> str:
    """The folders of the images, for messages."""
    return ', '.join(getattr(one, 'images', '') for one in self.sets)

  def check_is_there(self, option: str) -> None:
    """Checks that the annotations of all sets exist.

    Args:
      option: Prefix of the option names in messages.

    Raises:
      InputError: If the annotations of a set do not exist, or if its folder of
        images was not given.
    """
    for one in self.sets:
      one.check_is_there(option)

  def read(self, **options: Any) -> tuple[CocoIndex, SeveralImages]:
    """Reads and checks the annotations of all sets, and joins them.

    Args:
      **options: Keyword arguments of `coco.read_coco`. The report also gets a
        warning for each set with images that an earlier set has too.

    Raises:
      InputError: If the annotations of a set cannot be read, or are wrong and
        `options` have no `report`; or if the classes of the sets differ.
    """
    report = options.pop('report', None) or findings.Report(stop=True)
    indices: list[CocoIndex] = []
    parts: list[Any] = []
    starts: list[int] = []
    set_of_file: dict[str, str] = {}
    for name, one in zip(map(str, self.sets), self.sets, strict=True):
      start = sum(len(index.image_ids) for index in indices)
      num_kept = len(report.kept)
      index, part = one.read(report=report, **options)
      # The rows of these findings count from the first image of the set.
      report.kept[num_kept:] = [
        found if found.row < 0 else found._replace(row=found.row + start)
        for found in report.kept[num_kept:]
      ]
      difference = coco.class_table_difference(
        index.categories,
        (indices or [index])[0].categories,
        there_name=str(self.sets[0]),
      )
      if difference:
        raise errors.InputError(
          f'{name}: A21: it has other classes than {self.sets[0]}, but both are'
          f' read as one training set: {coco.format_difference(difference)}.'
        )
      if isinstance(part, str | pathlib.Path):
        _warn_of_shared_images(index, part, name, set_of_file, report)
      indices.append(index)
      parts.append(part)
      starts.append(start)
    return concatenate(indices), SeveralImages(
      tuple(parts), tuple(map(str, self.sets)), tuple(starts)
    )

  def read_content(self) -> dict[str, Any]:
    """Refuses to make one COCO document, whose ids would not be unique.

    Raises:
      InputError: Always. An evaluation needs the ids of a single set.
    """
    raise errors.InputError(
      f'C05: {self} are several sets, which can only be trained on; give one'
      ' of them for an evaluation.'
    )


def _warn_of_shared_images(
  index: CocoIndex,
  folder: str | pathlib.Path,
  name: str,
  set_of_file: dict[str, str],
  report: findings.Report,
) -> None:
  """Warns of images of a set whose file an earlier set has too.

  Args:
    index: The annotations of the set.
    folder: The folder of its images.
    name: Name of the set, for messages.
    set_of_file: {path of an image: name of the first set that has it}. The
      images of the set are added.
    report: Gets a warning for each earlier set with such images.
  """
  folder = os.path.realpath(folder)
  shared: dict[str, list[str]] = {}
  for file_name in index.file_names:
    path = os.path.normpath(os.path.join(folder, file_name))
    first = set_of_file.setdefault(path, name)
    if first != name:
      shared.setdefault(first, []).append(file_name)
  for first, names in shared.items():
    shown = ', '.join(names[:5]) + (', ...' if len(names) > 5 else '')
    report.warn(
      'A20',
      name,
      '',
      f'{len(names)} of its images are in {first} too: {shown}.',
      count=len(names),
    )
