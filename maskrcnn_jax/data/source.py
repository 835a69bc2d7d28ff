"""Where a data set comes from, and functions to read it.

A `Source` says where the annotations and the images of a data set are, and
reads them. `CocoFiles` are a JSON file of annotations and a folder of images.
`Records` are written by `build_tfds` for tensorflow-datasets and hold the
images too. `SeveralSets` (in several_sets.py) are several of these, read as
one training set. The rest of the program takes a `Source` and need not know
which of them it is.

To add another kind of annotations, write a class with the methods of `Source`
in a file of its own beside this one, and add one line to `source_of_files`.
CONTRIBUTING.md has an example.
"""

import bisect
import concurrent.futures
import filecmp
import os
import pathlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, findings
from maskrcnn_jax.data.coco_index import CocoIndex, normal_file_name
from maskrcnn_jax.data.columns import StoredIndex
from maskrcnn_jax.data.file_names import FileFinder
from maskrcnn_jax.data.image_checks import header_notes
from maskrcnn_jax.data.image_files import case_hint
from maskrcnn_jax.data.records import RecordImage, RecordImages

# Largest number of image files of which a training looks at the header before
# it starts, and the number of threads that do.
_NUM_HEADERS = 2_000
_HEADER_THREADS = 8


class SeveralImages(NamedTuple):
  """The images of several data sets that are read as one."""

  # Folder or records of each set.
  parts: tuple[str | pathlib.Path | RecordImages, ...]
  names: tuple[str, ...]  # name of each set, for messages
  starts: tuple[int, ...]  # row of the first image of each set in the index


# The images of a data set: the folder that they are in, the records, or those
# of several sets.
Images = str | pathlib.Path | RecordImages | SeveralImages


@runtime_checkable
class Source(Protocol):
  """A data set before reading. Its `str` is its name in messages."""

  def check_is_there(self, option: str) -> None:
    """Checks that the annotations exist, without reading them.

    Args:
      option: Prefix of the option names in messages, such as
        '--config.data.eval.'; '--' if --images and --annotations give the data
        set.

    Raises:
      InputError: If the annotations do not exist, or if the folder of images
        was not given.
    """

  def read(self, **options: Any) -> tuple[CocoIndex, Images]:
    """Reads and checks all annotations, and returns the images too.

    Args:
      **options: Keyword arguments of `coco.read_coco`, such as `require_masks`.

    Raises:
      InputError: If the annotations cannot be read, or are wrong and `options`
        have no `report`. Its message contains a code, such as A25.
    """
    ...

  def read_content(self) -> dict[str, Any]:
    """Returns the annotations as a COCO document, not checked.

    A COCO document is the content of a COCO JSON: nested dicts and lists. They
    are new at each call, because `coco.index_coco` empties them.
    """
    ...


class CocoFiles(NamedTuple):
  """A data set in COCO's format."""

  images: str  # the folder that file names are relative to
  annotations: str  # the JSON file

  def __str__(self) -> str:
    """Returns the name of the data set for messages."""
    return self.annotations

  def check_is_there(self, option: str) -> None:
    """Checks that the JSON exists and that the folder was given.

    Args:
      option: Prefix of the option names in messages, such as
        '--config.data.eval.'; '--' if --images and --annotations give the data
        set.

    Raises:
      InputError: If the JSON does not exist or the folder was not given.
    """
    coco.check_set_is_there(self.images, self.annotations, option)

  def read(self, **options: Any) -> tuple[CocoIndex, pathlib.Path]:
    """Reads and checks the JSON; returns the folder of the images too.

    Args:
      **options: Keyword arguments of `coco.read_coco`.

    Raises:
      InputError: If the JSON cannot be read, or is wrong and `options` have no
        `report`.
    """
    index = coco.read_coco(self.annotations, **options)
    return index, pathlib.Path(self.images)

  def read_content(self) -> dict[str, Any]:
    """Returns the content of the JSON; the annotations are not checked.

    Raises:
      InputError: If the file cannot be read, or is not a COCO instances file.
    """
    return coco.read_json(pathlib.Path(self.annotations))


def source_of_files(images: str, annotations: str) -> Source:
  """Returns the data set of a folder of images and their annotations.

  A recipe and the command line give a data set by these two paths. The ending
  of the path of the annotations decides which class reads them. Without a line
  for this ending they are COCO JSON. To read another format, return another
  class here for its ending.

  Args:
    images: Path of the folder of the images.
    annotations: Path of the annotations.
  """
  return CocoFiles(images, annotations)


class DataSet(NamedTuple):
  """A data set after reading: its annotations, and where its images are."""

  coco_index: CocoIndex
  images: Images


class StoredDataSet(NamedTuple):
  """A data set for the worker processes of the loader.

  Its annotations are in files, because pickling them for each worker would take
  much memory.
  """

  coco_index: StoredIndex
  images: Images


class ImageFile(NamedTuple):
  """One encoded image: a file on disk or the bytes in a record."""

  path: str  # path on disk; if the image is in a record, only its file_name
  record: RecordImage | None = None  # the record; None if it is a file on disk

  def content(self) -> bytes | None:
    """Returns the bytes of an image in a record; `None` for a file on disk."""
    return None if self.record is None else self.record.read()


def options_of(part: str) -> str:
  """Returns the command-line options that give a data set, for messages.

  Args:
    part: The part of `config.data` that the data set belongs to: 'train' or
      'eval'.
  """
  key = f'--config.data.{part}'
  return (
    f'{key}.images=DIR and {key}.annotations=FILE.json, or'
    f' {key}.tfds=NAME and --config.data.tfds_dir=DIR'
  )


def choose_source(
  images: str | None, annotations: str | None, of_recipe: Source | None
) -> tuple[Source, str]:
  """Returns the data set of --images and --annotations, or that of the recipe.

  Args:
    images: The value of --images. `None` or '' if it was not given.
    annotations: The value of --annotations. `None` or '' if it was not given.
    of_recipe: The training set of the recipe. `None` if it names none.

  Returns:
    The data set, and the prefix of the option names in messages: '--' or
    '--config.data.train.'.

  Raises:
    InputError: If there is no data set, or if only one of the two options is
      given.
  """
  if images and annotations:
    return source_of_files(images, annotations), '--'
  if images or annotations:
    missing = '--annotations=FILE.json' if images else '--images=DIR'
    raise errors.InputError(
      f'{missing} is missing: --images and --annotations belong together.'
    )
  if of_recipe is None:
    raise errors.InputError(
      'No data set: give --images=DIR and --annotations=FILE.json; or'
      f' {options_of("train")}.'
    )
  return of_recipe, '--config.data.train.'


def read_set(source: Source, **options: Any) -> DataSet:
  """Reads and checks all annotations of a data set.

  Args:
    source: The data set.
    **options: Keyword arguments of `coco.read_coco`, such as `require_masks`.

  Returns:
    The index of the annotations, and the folder or the records that hold the
    images. The images are not read.

  Raises:
    InputError: If the annotations cannot be read, or are wrong and `options`
      have no `report`.
  """
  return DataSet(*source.read(**options))


def image_file(images: Images, row: int, file_name: str) -> ImageFile:
  """Returns the encoded image of a row of the index.

  Args:
    images: The images of the data set.
    row: Row of the image in the index.
    file_name: File name of the image in the index.
  """
  if isinstance(images, SeveralImages):
    number = bisect.bisect_right(images.starts, row) - 1
    return image_file(
      images.parts[number], row - images.starts[number], file_name
    )
  if isinstance(images, RecordImages):
    return ImageFile(file_name, images.image(row))
  return ImageFile(os.path.join(images, file_name))


def set_name(images: Images, row: int) -> str:
  """Returns the set that an image belongs to, if the data set has several.

  Args:
    images: The images of the data set.
    row: Row of the image in the index.

  Returns:
    The name of the set for messages; '' if the data set is a single set.
  """
  if not isinstance(images, SeveralImages):
    return ''
  return images.names[bisect.bisect_right(images.starts, row) - 1]


def check_images_exist(
  data_set: DataSet, *, report: findings.Report | None = None
) -> list[int]:
  """Checks that the file of each image exists inside the folder of images.

  Images in records are not checked: `build_tfds` writes no record without its
  image.

  Args:
    data_set: The data set.
    report: Receives an error for each missing image. If it is `None`, the first
      error is raised.

  Returns:
    The rows of the images that are missing or whose file name leads out of the
    folder, rising. If the folder does not exist, these are all rows.

  Raises:
    InputError: If there is such an image or no folder, and no report.
  """
  report = report or findings.Report(stop=True)
  index, images = data_set
  if not isinstance(images, SeveralImages):
    rows = range(len(index.file_names))
    return _missing_images(index, images, rows, '', report)
  ends = (*images.starts[1:], len(index.file_names))
  return [
    row
    for part, name, start, end in zip(*images, ends, strict=True)
    for row in _missing_images(index, part, range(start, end), name, report)
  ]


def shared_images(one: DataSet, other: DataSet) -> list[str]:
  """Returns the file names of images that two data sets have in common.

  These are images of the same name that are the same file, or that have the
  same bytes. Different folders often have different images of the same name.

  Args:
    one: A data set.
    other: Another data set, whose file names are returned, sorted.
  """
  rows: dict[str, list[int]] = {}
  for row, name in enumerate(one.coco_index.file_names):
    rows.setdefault(normal_file_name(name), []).append(row)
  shared = set()
  for row, name in enumerate(other.coco_index.file_names):
    file = image_file(other.images, row, name)
    for there in rows.get(normal_file_name(name), ()):
      other_name = one.coco_index.file_names[there]
      if _are_same(file, image_file(one.images, there, other_name)):
        shared.add(name)
        break
  return sorted(shared)


def _are_same(one: ImageFile, other: ImageFile) -> bool:
  """Tells whether two image files are the same or have the same bytes.

  A file that cannot be read is not the same as any other.

  Args:
    one: An image file.
    other: Another image file.
  """
  try:
    if one.record is None and other.record is None:
      # Files of different sizes are not read.
      return os.path.samefile(one.path, other.path) or filecmp.cmp(
        one.path, other.path, shallow=False
      )
    contents = [
      pathlib.Path(file.path).read_bytes()
      if file.record is None
      else file.content()
      for file in (one, other)
    ]
  except (OSError, ValueError):
    return False
  return contents[0] == contents[1]


def header_warnings(data_set: DataSet, *, apply_exif: bool) -> list[str]:
  """Returns the warnings that the headers of the image files show.

  `check_data` gives the same warnings, of all images. Here at most
  `_NUM_HEADERS` images, evenly spread over the data set, are looked at, because
  a training cannot wait until millions of files are opened.

  Args:
    data_set: The data set. All of its image files must exist.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Returns:
    A line for each code: the first warning, and the number of cases.
  """
  index = data_set.coco_index
  total = len(index.file_names)
  rows = np.unique(
    np.linspace(0, max(total - 1, 0), min(total, _NUM_HEADERS)).astype(int)
  ).tolist()

  def look(row: int) -> tuple[str, ...]:
    """Returns the warnings about the image of a row."""
    file = image_file(data_set.images, row, index.file_names[row])
    return header_notes(
      file.path,
      (int(index.heights[row]), int(index.widths[row])),
      apply_exif=apply_exif,
      content=file.content(),
    )

  report = findings.Report(stop=False, keep=1)
  # Threads hide the latency of a network disk.
  with concurrent.futures.ThreadPoolExecutor(_HEADER_THREADS) as pool:
    for row, notes in zip(rows, pool.map(look, rows), strict=True):
      for note in notes:
        code, reason = findings.split_code(note)
        report.warn(code, set_name(data_set.images, row), '', reason, row=row)
  more = ''
  if len(rows) < total:
    more = (
      f' Only {len(rows)} of {total} images were looked at; python -m'
      ' maskrcnn_jax.check_data looks at all.'
    )
  return [line + more for line in report.warnings()]


def _missing_images(
  index: CocoIndex,
  folder: str | pathlib.Path | RecordImages,
  rows: range,
  name: str,
  report: findings.Report,
) -> list[int]:
  """Checks that the images of a set exist inside its folder.

  Args:
    index: The annotations.
    folder: The folder of the images. Records are not checked.
    rows: The rows of the images in the index.
    name: Name of the set for messages; '' if there is only one.
    report: Receives an error for each missing image.

  Returns:
    The rows of the images that are missing or whose file name leads out of the
    folder, rising.

  Raises:
    InputError: If there is such an image or no folder, and the report stops.
  """
  if isinstance(folder, RecordImages):
    return []
  folder = os.fspath(folder)
  if not os.path.isdir(folder):
    report.error(
      'I01',
      '',
      '',
      f'there is no folder of images {folder}{coco.download_hint(folder)}.',
    )
    return list(rows)
  outside, missing = [], []
  finder = FileFinder(folder)
  for row in rows:
    file_name = index.file_names[row]
    if coco.is_outside(file_name):
      outside.append(row)
      report.error(
        'I15',
        name,
        f'image {index.image_ids[row]!r}',
        f'its file_name {file_name!r} leads out of the folder {folder}; it must'
        f' be relative to it{_found_hint(finder.find(file_name))}.',
      )
    elif not os.path.isfile(os.path.join(folder, file_name)):
      missing.append(row)
  if missing:
    names = [index.file_names[row] for row in missing[:5]]
    shown = ', '.join(names) + (', ...' if len(missing) > 5 else '')
    hint = case_hint(os.path.join(folder, names[0])) or _found_hint(
      finder.find(names[0])
    )
    report.error(
      'I01',
      name,
      '',
      f'{len(missing)} of {len(rows)} images are not in'
      f' {folder}: {shown}{hint}.',
      count=0,
    )
    for row in missing:
      file_name = index.file_names[row]
      found = finder.find(file_name)
      report.error(
        'I01',
        name,
        f'image {index.image_ids[row]!r}',
        f'there is no {file_name}{f", but {found}" if found else ""}.',
        row=row,
      )
  return sorted(outside + missing)


def _found_hint(file: str) -> str:
  """Returns a hint about a file with the base name of a wrong file name.

  Args:
    file: Path of the file relative to the folder of images; '' if there is no
      such file.

  Returns:
    The hint, which can be added to a message; '' if there is no file.
  """
  if not file:
    return ''
  return (
    f' (there is {file}; python -m maskrcnn_jax.check_data --fix=OUT.json'
    ' writes such names)'
  )
