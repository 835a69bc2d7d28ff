r"""Converts annotations of VIA, LabelMe or mask pictures to one COCO JSON.

  python -m maskrcnn_jax.convert_to_coco via --images=DIR \
      --annotations=VIA.json --out=COCO.json
  python -m maskrcnn_jax.convert_to_coco labelme --images=DIR \
      --annotations=FOLDER_OF_JSON --out=COCO.json
  python -m maskrcnn_jax.convert_to_coco masks --images=DIR \
      --annotations=FOLDER_OF_PNG --out=COCO.json

via: reads polygons, rectangles, circles and ellipses from a project or an
export of VIA 1 or 2 in JSON. The class is an attribute of the region.

labelme: reads polygons, rectangles and circles. Shapes with the same label and
the same group_id are one object.

masks: reads for the image a.jpg either the picture a.png, in which each value
or color except 0 (black) is an object, or a folder a/ of PNGs, in each of which
all pixels except 0 are one object. With --class_folders the pictures are in one
folder for each class.

Images without annotations are kept as background images. Exit status: 0 the
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
  ImageSizes,
  find_images,
)
from maskrcnn_jax.convert_to_coco.coco_json import to_coco
from maskrcnn_jax.convert_to_coco.labelme import read_labelme
from maskrcnn_jax.convert_to_coco.masks import read_masks
from maskrcnn_jax.convert_to_coco.via import read_via
from maskrcnn_jax.data import coco
from maskrcnn_jax.errors import InputError, print_error


def main(argv: list[str] | None = None) -> None:
  """Converts annotations and prints the number of objects of each class.

  If the input is wrong, prints the error and ends the process with status 2.

  Args:
    argv: The command-line arguments. `None` means those of the process.
  """
  arguments = _parse(argv)
  try:
    sizes = find_images(arguments.images)
    annotations = _read(arguments, sizes)
    _write(arguments.out, to_coco(sizes, annotations.objects))
    # Reading the file finds now any fault that a training would refuse.
    index = coco.read_coco(arguments.out)
  except InputError as error:
    print_error(str(error))
    sys.exit(2)
  counts = collections.Counter(index.classes.tolist())
  print(
    f'Wrote {arguments.out}: {len(index.file_names)} images, '
    f'{len(index.classes)} objects'
  )
  for number, category in enumerate(index.categories, start=1):
    print(f'{counts[number]:>9,} {category.name}')
  for reason, count in (*annotations.left_out.items(), *index.dropped.items()):
    print(f'{count:>9,} {reason}, left out')


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
    choices=('via', 'labelme', 'masks'),
    help='format of the annotations',
  )
  parser.add_argument(
    '--images', type=pathlib.Path, required=True, help='folder of the images'
  )
  parser.add_argument(
    '--annotations',
    type=pathlib.Path,
    required=True,
    help='via: the JSON file; labelme: one JSON file or a folder of them; '
    'masks: folder of PNGs',
  )
  parser.add_argument(
    '--out', type=pathlib.Path, required=True, help='COCO JSON to write'
  )
  parser.add_argument(
    '--class_attribute',
    help='via: the region attribute that holds the class; '
    'needed if a region has several attributes',
  )
  parser.add_argument(
    '--class_name',
    default='object',
    help='via, masks: the class of objects whose annotations name no class '
    '(default: %(default)s)',
  )
  parser.add_argument(
    '--class_folders',
    action='store_true',
    help='masks: the folder has one folder of masks for each class',
  )
  return parser.parse_args(
    with_underscores(sys.argv[1:] if argv is None else argv)
  )


def _read(arguments: argparse.Namespace, sizes: ImageSizes) -> Annotations:
  """Reads the annotations in the format that the command line names.

  Args:
    arguments: The parsed arguments of the command line.
    sizes: All images.

  Raises:
    InputError: If the annotations cannot be read, are damaged, or do not fit
      the images.
  """
  match arguments.kind:
    case 'via':
      return read_via(
        arguments.annotations,
        sizes,
        arguments.class_attribute,
        arguments.class_name,
      )
    case 'labelme':
      return read_labelme(arguments.annotations, sizes)
    case 'masks':
      return read_masks(
        arguments.annotations,
        sizes,
        arguments.class_name,
        arguments.class_folders,
      )
  raise AssertionError(arguments.kind)


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
