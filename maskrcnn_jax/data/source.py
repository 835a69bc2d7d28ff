"""Data sets: where one comes from, and reading it.

A `Source` says where the annotations and the images of a data set are, and
reads them. `CocoFiles` is a JSON file in COCO's format and a folder of images.
`Records` is a set that `build_tfds` wrote for tensorflow-datasets, which holds
the images too. The rest of the program works with any `Source`.

To add another kind of annotations, write a class with the methods of `Source`
in a file of its own beside this one, and add one line to `source_of_files`.
CONTRIBUTING.md has an example.
"""

import os
import pathlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

from maskrcnn_jax import errors
from maskrcnn_jax.data import coco, findings
from maskrcnn_jax.data.coco_index import CocoIndex
from maskrcnn_jax.data.columns import StoredIndex
from maskrcnn_jax.data.images import case_hint
from maskrcnn_jax.data.records import RecordImage, RecordImages

# Where the images of a data set are: in a folder, or in records.
Images = str | pathlib.Path | RecordImages


@runtime_checkable
class Source(Protocol):
  """A data set that has not been read yet; `str` names it in messages."""

  def check_is_there(self, option: str) -> None:
    """Checks that the annotations exist, without reading them.

    Args:
      option: The beginning of the options that give the data set, for the
        message: '--config.data.eval.', or '--' for --images and --annotations.

    Raises:
      InputError: If the annotations do not exist, or if the folder of images
        was not given.
    """

  def read(self, **options: Any) -> tuple[CocoIndex, Images]:
    """Reads and checks all annotations; also returns where the images are.

    Args:
      **options: Options of `coco.read_coco` and `coco.index_coco`.
    """
    ...

  def read_content(self) -> dict[str, Any]:
    """Returns the annotations as a COCO JSON: lists, dicts and numbers."""
    ...


class CocoFiles(NamedTuple):
  """A data set in COCO's format."""

  images: str  # the folder that file names are relative to
  annotations: str  # the JSON file

  def __str__(self) -> str:
    """Names the data set in messages."""
    return self.annotations

  def check_is_there(self, option: str) -> None:
    """Implements `Source.check_is_there`."""
    if not self.images:
      raise errors.InputError(
        f'I01: {option}images=DIR is missing: the folder of the images of'
        f' {self.annotations}.'
      )
    coco.check_is_there(self.annotations, f'{option}annotations')

  def read(self, **options: Any) -> tuple[CocoIndex, pathlib.Path]:
    """Implements `Source.read`."""
    index = coco.read_coco(self.annotations, **options)
    return index, pathlib.Path(self.images)

  def read_content(self) -> dict[str, Any]:
    """Implements `Source.read_content`."""
    return coco.read_json(pathlib.Path(self.annotations))


def source_of_files(images: str, annotations: str) -> Source:
  """Returns the data set of a folder of images and their annotations.

  The recipe and --annotations name a data set by these two. The name of the
  annotations decides how they are read. All are COCO JSON today; another kind
  of annotations is another line here.

  Args:
    images: The folder of the images.
    annotations: The file of the annotations.
  """
  return CocoFiles(images, annotations)


class DataSet(NamedTuple):
  """A data set that was read: its annotations, and where its images are."""

  coco_index: CocoIndex
  images: Images


class StoredDataSet(NamedTuple):
  """A data set as the workers of the loader get it: annotations in files."""

  coco_index: StoredIndex
  images: Images


class ImageFile(NamedTuple):
  """One encoded image, in the form that `images.decode_image` takes."""

  path: str  # of the file; of an image in a record, its file_name
  record: RecordImage | None = None  # the record that holds it, if one does

  def content(self) -> bytes | None:
    """Reads the bytes from the record. `None`: they are in the file `path`."""
    return None if self.record is None else self.record.read()


def options_of(part: str) -> str:
  """Returns the options that name a data set of a recipe, for messages.

  Args:
    part: 'train' or 'eval', of `config.data`.
  """
  key = f'--config.data.{part}'
  return (
    f'{key}.images=DIR and {key}.annotations=FILE.json, or'
    f' {key}.tfds=NAME and --config.data.tfds_dir=DIR'
  )


def choose_source(
  images: str | None, annotations: str | None, of_recipe: Source | None
) -> tuple[Source, str]:
  """Returns the data set of --images and --annotations, else the recipe's.

  Args:
    images: The value of --images. `None` or '': not given.
    annotations: The value of --annotations. `None` or '': not given.
    of_recipe: The training set of the recipe, `None` if it names none.

  Returns:
    The data set, and the `option` of its `check_is_there`.

  Raises:
    InputError: If there is no data set, or only one of the two is given.
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
    **options: Options of `coco.read_coco`.
  """
  return DataSet(*source.read(**options))


def image_file(images: Images, row: int, file_name: str) -> ImageFile:
  """Returns the encoded image of a row of the index.

  Args:
    images: Where the images of the data set are.
    row: The image's row of the index.
    file_name: The image's name in the index.
  """
  if isinstance(images, RecordImages):
    return ImageFile(file_name, images.image(row))
  return ImageFile(os.path.join(images, file_name))


def check_images_exist(
  data_set: DataSet, *, report: findings.Report | None = None
) -> list[int]:
  """Checks that the file of each image exists.

  Images in records exist: `build_tfds` writes a record only with its image.

  Args:
    data_set: Its index has the file names.
    report: Gets each image that is missing. `None`: the first one is raised.

  Returns:
    The rows of the images that are missing, or whose name leads out of the
    folder, in rising order.

  Raises:
    InputError: If there is such an image, and no report.
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
