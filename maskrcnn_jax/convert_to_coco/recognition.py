"""Recognises the format of annotations by the files that hold it."""

import itertools
import pathlib
from typing import Any

from maskrcnn_jax.convert_to_coco.annotated_images import (
  read_json,
)
from maskrcnn_jax.convert_to_coco.cvat import parse_xml
from maskrcnn_jax.convert_to_coco.label_studio import is_label_studio
from maskrcnn_jax.convert_to_coco.mask_pictures import find_pictures
from maskrcnn_jax.convert_to_coco.via import is_via
from maskrcnn_jax.convert_to_coco.voc import CLASSES, OBJECTS
from maskrcnn_jax.convert_to_coco.yolo import NO_LABELS, is_label_file
from maskrcnn_jax.errors import InputError

# {name on the command line: (annotations to give, program or layout)}
FORMATS = {
  'via': ('VIA.json', 'VGG Image Annotator, version 1 or 2'),
  'labelme': ('FOLDER_OF_JSON', 'LabelMe, X-AnyLabeling'),
  'masks': ('FOLDER_OF_PNG', 'mask pictures'),
  'voc': ('FOLDER', 'masks in the layout of Pascal VOC'),
  'yolo': ('FOLDER_OF_TXT', 'YOLO segmentation'),
  'cvat': ('ANNOTATIONS.xml', 'CVAT for images or for video'),
  'label_studio': ('EXPORT.json', 'Label Studio, JSON or JSON-MIN'),
}

# Number of files of a folder that are looked at.
_MAX_FILES = 20


def recognise(path: pathlib.Path, images: pathlib.Path) -> str:
  """Finds the format of annotations.

  Args:
    path: The file or folder of the annotations.
    images: The folder of the images. Its images are no masks, if the
      annotations are in the same folder.

  Returns:
    A key of `FORMATS`.

  Raises:
    InputError: If there are no annotations, or none or several of the formats
      fit.
  """
  if path.is_dir():
    found = _of_folder(path, images)
  else:
    found = {_of_file(path)} - {None}
  if len(found) == 1:
    return found.pop()
  if found:
    raise InputError(
      f'A25: {path} has annotations of several formats; give one of'
      f' {", ".join(sorted(found))} before --images.'
    )
  raise InputError(
    f'A25: the format of {path} is not known; give one of'
    f' {", ".join(FORMATS)} before --images, or see --help.'
  )


def file_of(path: pathlib.Path, kind: str) -> pathlib.Path:
  """Returns the only JSON file of a folder, for formats of a single file.

  Args:
    path: The file or folder of the annotations.
    kind: The format, a key of `FORMATS`.
  """
  if kind in ('via', 'label_studio') and path.is_dir():
    files = sorted(path.glob('*.json'))
    if len(files) == 1:
      return files[0]
    raise InputError(
      f'A25: there are {len(files)} JSON files in {path}; give one of them.'
    )
  if kind == 'voc' and path.name in (OBJECTS, CLASSES):
    return path.parent
  return path


def _of_file(path: pathlib.Path) -> Any:
  """Returns the format of one file; `None` if it is not known.

  Raises:
    InputError: If the file cannot be read, or is of a known format that cannot
      be converted.
  """
  match path.suffix.lower():
    case '.xml':
      return 'cvat'
    case '.yaml' | '.yml':
      return 'yolo'
    case '.zip':
      raise InputError(f'A25: {path} is an archive; unpack it first.')
  return _of_json(read_json(path), path)


def _of_json(content: Any, path: pathlib.Path) -> str | None:
  """Returns the format of a JSON document; `None` if it is not known.

  Args:
    content: The document.
    path: The file, for messages.

  Raises:
    InputError: If the document is COCO already.
  """
  if isinstance(content, dict):
    if 'shapes' in content:
      return 'labelme'
    if '_via_img_metadata' in content or is_via(content):
      return 'via'
    if {'images', 'annotations'} <= content.keys():
      raise InputError(
        f'A25: {path} is COCO already; give it to the training or to'
        ' check_data.'
      )
  return 'label_studio' if is_label_studio(content) else None


def _of_folder(folder: pathlib.Path, images: pathlib.Path) -> set[str]:
  """Returns the formats of the files in a folder.

  Args:
    folder: The folder.
    images: The folder of the images.

  Raises:
    InputError: If no format fits and a file is damaged.
  """
  if folder.name in (OBJECTS, CLASSES) or (folder / OBJECTS).is_dir():
    return {'voc'}
  found = set()
  faults = []
  for path in itertools.islice(sorted(folder.rglob('*.json')), _MAX_FILES):
    try:
      kind = _of_json(read_json(path), path)
    except InputError as error:  # It may be one damaged file of many.
      faults.append(error)
      continue
    if kind is not None:
      found.add(kind)
  for path in itertools.islice(sorted(folder.rglob('*.txt')), _MAX_FILES):
    if path.name.lower() not in NO_LABELS and is_label_file(path):
      found.add('yolo')
      break
  for path in itertools.islice(sorted(folder.glob('*.xml')), _MAX_FILES):
    try:
      root = parse_xml(path)
    except InputError as error:  # It may be one damaged file of many.
      faults.append(error)
      continue
    if root.tag == 'annotations':
      found.add('cvat')
  if found:
    return found
  if folder.resolve() != images.resolve() and find_pictures(folder):
    return {'masks'}
  if faults:
    raise faults[0]
  return set()
