r"""Converts annotations of other programs to COCO JSON.

  python -m maskrcnn_jax.convert_to_coco --images=DIR \
      --annotations=FILE_OR_FOLDER --out=COCO.json

The format is recognised by the files. If it is not, give it first:

  via --images=DIR --annotations=VIA.json: polygons, rectangles, circles and
  ellipses of a project or an export of VIA 1 or 2 in JSON. The class is an
  attribute of the region.

  labelme --images=DIR --annotations=FOLDER_OF_JSON: polygons, rectangles,
  circles and masks of LabelMe or X-AnyLabeling. Shapes with the same label and
  the same group_id are one object.

  masks --images=DIR --annotations=FOLDER_OF_PNG: for the image a.jpg either the
  picture a.png, in which each value or color except 0 (black) is an object, or
  a folder a/ of PNGs, in each of which all pixels except 0 are one object. In
  palette pictures, 255 besides other values is void. With --class_folders the
  pictures are in one folder for each class.

  voc --images=DIR --annotations=FOLDER: the folders SegmentationObject and
  SegmentationClass of Pascal VOC, or of CVAT's "Segmentation mask".

  yolo --images=DIR --annotations=FOLDER_OF_TXT: polygons of YOLO, one text file
  for each image. The names of the classes are those of a data.yaml or
  classes.txt beside or above, or of --classes.

  cvat --images=DIR --annotations=ANNOTATIONS.xml: "CVAT for images" or "CVAT
  for video".

  label_studio --images=DIR --annotations=EXPORT.json: JSON or JSON-MIN of Label
  Studio: polygons, brushes, rectangles and ellipses.

A training set and an evaluation set need the same classes with the same ids:
convert the second with --like=FIRST.json, or both with --classes, or all images
at once with --split.

Images without annotations are kept as background images, and the output counts
them. Coordinates are those of the picture as viewers show it, with its EXIF
orientation. A file that cannot be read is left out together with its image, and
named; if more than half cannot be read, nothing is written. Exit status: 0 the
file was written, 2 the input is wrong; a message then names the fault.
"""

import argparse
import collections
import json
import pathlib
import sys
from typing import Any

from maskrcnn_jax.config.command_line import with_underscores
from maskrcnn_jax.convert_to_coco.annotated_images import (
  Annotations,
  Pictures,
  check_share,
  find_images,
)
from maskrcnn_jax.convert_to_coco.class_table import (
  class_list,
  make_categories,
)
from maskrcnn_jax.convert_to_coco.coco_json import to_coco
from maskrcnn_jax.convert_to_coco.cvat import read_cvat
from maskrcnn_jax.convert_to_coco.label_studio import read_label_studio
from maskrcnn_jax.convert_to_coco.labelme import read_labelme
from maskrcnn_jax.convert_to_coco.masks import read_masks
from maskrcnn_jax.convert_to_coco.recognition import (
  FORMATS,
  file_of,
  recognise,
)
from maskrcnn_jax.convert_to_coco.split import split_images
from maskrcnn_jax.convert_to_coco.via import read_via
from maskrcnn_jax.convert_to_coco.voc import read_voc
from maskrcnn_jax.convert_to_coco.yolo import read_yolo
from maskrcnn_jax.data import coco
from maskrcnn_jax.errors import InputError, print_error, printable

# Number of faulty files that are named; the others are only counted.
_MAX_NAMED = 10


def main(argv: list[str] | None = None) -> None:
  """Converts annotations and prints the number of objects of each class.

  If the input is wrong, prints the error and ends the process with status 2.

  Args:
    argv: The command-line arguments. `None` means those of the process.
  """
  arguments = _parse(argv)
  try:
    _convert(arguments)
  except InputError as error:
    print_error(str(error))
    sys.exit(2)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  """Parses the arguments of the command line.

  Args:
    argv: The arguments. `None` means those of the process.
  """
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.convert_to_coco',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'kind',
    nargs='?',
    choices=tuple(FORMATS),
    help='format of the annotations (default: it is recognised)',
  )
  parser.add_argument(
    '--images', type=pathlib.Path, required=True, help='folder of the images'
  )
  parser.add_argument(
    '--annotations',
    type=pathlib.Path,
    required=True,
    help='; '.join(
      f'{kind}: {source}' for kind, (source, _) in FORMATS.items()
    ),
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='COCO JSON to write'
  )
  parser.add_argument(
    '--like',
    type=pathlib.Path,
    help='a COCO JSON, for example of the training set, whose categories are '
    'taken with their ids; a class that it lacks is an error',
  )
  parser.add_argument(
    '--classes',
    help='the classes in the order of their ids 1, 2, ...: NAME,NAME,... or a '
    'text file with one name on each line; any other class is an error. For '
    'yolo and voc these are also the names of the class numbers, if no file '
    'names them',
  )
  parser.add_argument(
    '--split',
    type=_share,
    help='share of the images for evaluation, such as 0.2: writes '
    'OUT_train.json and OUT_val.json, in which each class has about this '
    'share; images with the same content stay together',
  )
  parser.add_argument(
    '--class_attribute',
    help='via: the region attribute that holds the class; '
    'needed if regions have several attributes',
  )
  parser.add_argument(
    '--class_name',
    help='via, masks: the class of objects whose annotations name no class '
    '(default: object, if no object has a class)',
  )
  parser.add_argument(
    '--class_folders',
    action='store_true',
    help='masks: the folder has one folder of masks for each class',
  )
  arguments = parser.parse_args(
    with_underscores(sys.argv[1:] if argv is None else argv)
  )
  if arguments.like is not None and arguments.classes is not None:
    parser.error('--like and --classes exclude each other')
  return arguments


def _share(text: str) -> float:
  """Returns the value of `--split`.

  Raises:
    ArgumentTypeError: If it is no number between 0 and 1.
  """
  try:
    share = float(text)
  except ValueError:
    share = 0.0
  if not 0 < share < 1:
    raise argparse.ArgumentTypeError(
      f'{text} is no share of the images; give a number between 0 and 1, such'
      ' as 0.2'
    )
  return share


def _convert(arguments: argparse.Namespace) -> None:
  """Does the work of `main`.

  Args:
    arguments: The parsed arguments of the command line.

  Raises:
    InputError: If the input is wrong, or a file cannot be read or written.
  """
  source = arguments.annotations
  if arguments.out.resolve() == source.resolve():
    raise InputError('--out is the file of --annotations; give another name.')
  pictures = find_images(arguments.images, source)
  kind = arguments.kind or recognise(source, arguments.images)
  found, known = _read(arguments, kind, pictures)
  check_share(found.faults, len(found.objects), 'files or images')
  if not any(found.objects.values()):
    raise InputError(
      'A23: there is not a single object in the annotations; check that you'
      f' gave the right ones.{_left_out_in_words(found)}'
    )
  classes = None if arguments.classes is None else class_list(arguments.classes)
  objects = {
    name: instances
    for name, instances in found.objects.items()
    if name not in found.set_aside
  }
  table = make_categories(objects, classes, arguments.like, known)
  names = [name for name in pictures.frames if name not in found.set_aside]
  parts = {arguments.out: names}
  if arguments.split is not None:
    train, val = split_images(names, objects, arguments.images, arguments.split)
    stem, suffix = arguments.out.stem, arguments.out.suffix or '.json'
    parts = {
      arguments.out.with_name(f'{stem}_train{suffix}'): train,
      arguments.out.with_name(f'{stem}_val{suffix}'): val,
    }
  if arguments.kind is None:
    print(f'Format: {kind} ({FORMATS[kind][1]})')
  for path, part in parts.items():
    sizes = {name: pictures.frames[name].shown_size for name in part}
    _write(path, to_coco(sizes, objects, table))
    _report(path)
    unlabelled = sum(name not in objects for name in part)
    empty = sum(name in objects and not objects[name] for name in part)
    _count(unlabelled, 'images without annotations, kept as background')
    _count(empty, 'images annotated as empty, kept as background')
  _report_faults(pictures, found)


def _read(
  arguments: argparse.Namespace, kind: str, pictures: Pictures
) -> tuple[Annotations, list[str]]:
  """Reads the annotations.

  Args:
    arguments: The parsed arguments of the command line.
    kind: The format.
    pictures: All images.

  Returns:
    The objects, and the classes that the annotations list; no classes if they
    list none.

  Raises:
    InputError: If the annotations cannot be read, are damaged, or do not fit
      the images.
  """
  path = file_of(arguments.annotations, kind)
  classes = None if arguments.classes is None else class_list(arguments.classes)
  match kind:
    case 'via':
      return read_via(
        path, pictures, arguments.class_attribute, arguments.class_name
      ), []
    case 'labelme':
      return read_labelme(path, pictures), []
    case 'masks':
      return read_masks(
        path, pictures, arguments.class_name, arguments.class_folders
      ), []
    case 'voc':
      return read_voc(path, pictures, classes)
    case 'yolo':
      return read_yolo(path, arguments.images, pictures, classes)
    case 'cvat':
      return read_cvat(path, pictures)
    case 'label_studio':
      return read_label_studio(path, pictures), []
  raise AssertionError(kind)


def _report(path: pathlib.Path) -> None:
  """Prints the number of objects of each class of a file that was written.

  Reading the file finds now any fault that a training would refuse.

  Args:
    path: The file.

  Raises:
    InputError: If a training would refuse the file.
  """
  index = coco.read_coco(path)
  counts = collections.Counter(index.classes.tolist())
  names = collections.Counter(c.name.casefold() for c in index.categories)
  similar = [c.name for c in index.categories if names[c.name.casefold()] > 1]
  print(
    printable(
      f'Wrote {path}: {len(index.file_names)} images, '
      f'{len(index.classes)} objects'
    )
  )
  for number, category in enumerate(index.categories, start=1):
    print(f'{counts[number]:>9,} {printable(category.name)}')
  if similar:
    print(printable(f'Names that differ in case only: {", ".join(similar)}'))
  for reason, count in index.dropped.items():
    _count(count, f'{reason}, left out')


def _report_faults(pictures: Pictures, found: Annotations) -> None:
  """Prints everything that was left out, and what else the user should know.

  Args:
    pictures: All images.
    found: The annotations.
  """
  for reason, count in found.left_out.items():
    _count(count, f'{reason}, left out')
  for note, count in found.notes.items():
    _count(count, note)
  faults = [*pictures.unreadable.values(), *found.faults.values()]
  if not faults:
    return
  _count(len(pictures.unreadable), 'images cannot be read, left out')
  _count(
    len(found.faults),
    'files or entries of annotations cannot be used, left out with their'
    ' images',
  )
  for message in faults[:_MAX_NAMED]:
    print(f'  {printable(message)}')
  if len(faults) > _MAX_NAMED:
    print(f'  and {len(faults) - _MAX_NAMED} more')


def _count(count: int, text: str) -> None:
  """Prints a line with a number of things, unless it is 0.

  Args:
    count: The number.
    text: The things in words.
  """
  if count:
    print(f'{count:>9,} {printable(text)}')


def _left_out_in_words(found: Annotations) -> str:
  """Returns a sentence about the shapes that were left out, or ''."""
  if not found.left_out:
    return ''
  reasons = ', '.join(f'{n} {text}' for text, n in found.left_out.items())
  return f' These were left out: {reasons}.'


def _write(path: pathlib.Path, content: Any) -> None:
  """Writes a value as JSON, and makes the folder of the file if needed.

  An existing file is replaced.

  Args:
    path: The file.
    content: The value, of types that JSON can store.

  Raises:
    InputError: If the folder cannot be made or the file cannot be written.
  """
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')
  except OSError as error:
    raise InputError(f'Cannot write {path}: {error.strerror}.') from error
