"""Where a data set comes from, and functions to read it.

A data set is either COCO files or records. COCO files are a JSON file of
annotations and a folder of images. Records are written by `build_tfds` for
tensorflow-datasets and hold the images too. The rest of the program takes a
`Source` and need not know which of the two it is.
"""

import os
import pathlib
from typing import Any, NamedTuple

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, findings
from maskrcnn_jax.data.coco_index import CocoIndex
from maskrcnn_jax.data.columns import StoredIndex
from maskrcnn_jax.data.images import case_hint
from maskrcnn_jax.data.records import (
  RecordImage,
  RecordImages,
  Records,
  find_records,
  read_records,
)


class CocoFiles(NamedTuple):
  """A data set in COCO's format."""

  images: str  # the folder that file names are relative to
  annotations: str  # the JSON file

  def __str__(self) -> str:
    """Returns the name of the data set for messages."""
    return self.annotations


Source = CocoFiles | Records

# The images of a data set: the folder that they are in, or the records.
Images = str | pathlib.Path | RecordImages


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
    The data set, and the beginning of the options that give it, for messages:
    '--' or '--config.data.train.'.

  Raises:
    InputError: If there is no data set, or if only one of the two options is
      given.
  """
  if images and annotations:
    return CocoFiles(images, annotations), '--'
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


def check_is_there(source: Source, option: str) -> None:
  """Checks that the annotations of a data set exist.

  Args:
    source: The data set.
    option: The beginning of the options that give it, for messages:
      '--config.data.eval.', or '--' for --images and --annotations.

  Raises:
    InputError: If they do not exist, or if the folder of images was not given.
  """
  if isinstance(source, Records):
    find_records(source)
    return
  if not source.images:
    raise errors.InputError(
      f'I01: {option}images=DIR is missing: the folder of the images of'
      f' {source.annotations}.'
    )
  coco.check_is_there(source.annotations, f'{option}annotations')


def read_set(source: Source, **options: Any) -> DataSet:
  """Reads and checks all annotations of a data set.

  Args:
    source: The data set.
    **options: Keyword arguments of `coco.read_coco`, such as `require_masks`.

  Raises:
    InputError: If the annotations cannot be read, or are wrong and no report is
      given.
  """
  if isinstance(source, Records):
    content, in_records = read_records(source)
    return DataSet(coco.index_coco(content, str(source), **options), in_records)
  return DataSet(
    coco.read_coco(source.annotations, **options),
    pathlib.Path(source.images),
  )


def read_content(source: Source) -> dict[str, Any]:
  """Returns the annotations of a data set as a COCO document, not checked.

  For records, it is the document that the records were made from.
  """
  if isinstance(source, Records):
    return read_records(source)[0]
  return coco.read_json(pathlib.Path(source.annotations))


def image_file(images: Images, row: int, file_name: str) -> ImageFile:
  """Returns the encoded image of a row of the index.

  Args:
    images: The images of the data set.
    row: Row of the image in the index.
    file_name: File name of the image in the index.
  """
  if isinstance(images, RecordImages):
    return ImageFile(file_name, images.image(row))
  return ImageFile(os.path.join(images, file_name))


def check_images_exist(
  data_set: DataSet, *, report: findings.Report | None = None
) -> list[int]:
  """Checks that the file of each image exists.

  Images in records are not checked: `build_tfds` writes no record without its
  image.

  Args:
    data_set: The data set.
    report: Receives an error for each missing image. If it is `None`, the first
      error is raised.

  Returns:
    The rows of the images that are missing or whose file name leads out of the
    folder, rising.

  Raises:
    InputError: If there is such an image and no report.
  """
  index, folder = data_set
  if isinstance(folder, RecordImages):
    return []
  report = report or findings.Report(stop=True)
  folder = os.fspath(folder)
  if not os.path.isdir(folder):
    report.error(
      'I01',
      '',
      '',
      f'there is no folder of images {folder}{coco.download_hint(folder)}.',
    )
    return list(range(len(index.file_names)))
  outside, missing = [], []
  for row, name in enumerate(index.file_names):
    if coco.is_outside(name):
      outside.append(row)
      report.error(
        'I15',
        '',
        f'image {index.image_ids[row]!r}',
        f'its file_name {name!r} leads out of the folder {folder}; it must be'
        ' relative to it.',
      )
    elif not os.path.isfile(os.path.join(folder, name)):
      missing.append(row)
  if missing:
    names = [index.file_names[row] for row in missing[:5]]
    shown = ', '.join(names) + (', ...' if len(missing) > 5 else '')
    hint = case_hint(os.path.join(folder, names[0]))
    report.error(
      'I01',
      '',
      '',
      f'{len(missing)} of {len(index.file_names)} images are not in'
      f' {folder}: {shown}{hint}.',
      count=0,
    )
    for row in missing:
      report.error(
        'I01',
        '',
        f'image {index.image_ids[row]!r}',
        f'there is no {index.file_names[row]}.',
        row=row,
      )
  return sorted(outside + missing)
