"""Writes annotations of VIA, LabelMe or mask pictures as one COCO JSON.

  python scripts/convert_to_coco.py via --images=DIR --annotations=VIA.json \
      --out=COCO.json
  python scripts/convert_to_coco.py labelme --images=DIR \
      --annotations=FOLDER_OF_JSON --out=COCO.json
  python scripts/convert_to_coco.py masks --images=DIR \
      --annotations=FOLDER_OF_PNG --out=COCO.json

via: polygons, rectangles, circles and ellipses of a VIA 1 or 2 project or
export in JSON; the class is a region attribute. labelme: polygons, rectangles
and circles; shapes of one label and group_id are one object. masks: for the
image a.jpg either a.png, in which each value or colour but 0 (black) is an
object, or a folder a/ of PNGs, in each of which all but 0 is one object. With
--class_folders these are in one folder a class.

Images without annotations are kept: they are background. Exit status: 0 done,
2 wrong input, which is named.
"""

import argparse
import collections
from collections.abc import Iterable
import json
import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_jax.data import coco, images
from maskrcnn_jax.errors import InputError

# Corners of what was drawn round: less than a tenth of a pixel of its area is
# lost at a radius of 10.
_CORNERS = 64


class Object(NamedTuple):
  """An annotated object, in pixels of the image as it is shown."""

  name: str  # of its class
  polygons: list[list[float]]  # flat; empty if it has a mask
  mask: np.ndarray | None = None  # [h, w] bool


def main(argv: list[str] | None = None) -> None:
  """Converts as the command line says."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('kind', choices=('via', 'labelme', 'masks'))
  parser.add_argument(
      '--images', type=pathlib.Path, required=True, help='folder of the images'
  )
  parser.add_argument(
      '--annotations', type=pathlib.Path, required=True,
      help='via: JSON file; labelme: folder of JSON files (or one); masks: '
      'folder of PNGs',
  )
  parser.add_argument(
      '--out', type=pathlib.Path, required=True, help='COCO JSON to write'
  )
  parser.add_argument(
      '--class_attribute', help='via: the region attribute that is the class; '
      'needed if regions have several',
  )
  parser.add_argument(
      '--class_name', default='object',
      help='via, masks: the class where nothing else says it',
  )
  parser.add_argument(
      '--class_folders', action='store_true',
      help='masks: the folder has one folder of masks for each class',
  )
  arguments = parser.parse_args(argv)
  try:
    files = find_images(arguments.images)
    match arguments.kind:
      case 'via':
        objects, left_out = read_via(
            arguments.annotations, files, arguments.class_attribute,
            arguments.class_name,
        )
      case 'labelme':
        objects, left_out = read_labelme(arguments.annotations, files)
      case 'masks':
        objects, left_out = read_masks(
            arguments.annotations, files, arguments.class_name,
            arguments.class_folders,
        )
    content = to_coco(files, objects)
    try:
      arguments.out.parent.mkdir(parents=True, exist_ok=True)
      arguments.out.write_text(json.dumps(content), encoding='utf-8')
    except OSError as error:
      raise InputError(
          f'Cannot write {arguments.out}: {error.strerror}.'
      ) from error
    # Whatever training would refuse is found now.
    index = coco.read_coco(arguments.out)
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  names = collections.Counter(index.classes.tolist())
  print(
      f'Wrote {arguments.out}: {len(index.file_names)} images, '
      f'{len(index.classes)} objects'
  )
  for number, category in enumerate(index.categories, start=1):
    print(f'{names[number]:>9,} {category.name}')
  for reason, count in (*left_out.items(), *index.dropped.items()):
    print(f'{count:>9,} {reason}, left out')


def find_images(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Returns {file name below the folder: (height, width)}, sorted."""
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of images {folder}.')
  return {
      path.relative_to(folder).as_posix(): images.image_size(path)
      for path in images.list_images(folder)
  }


def read_via(
    path: pathlib.Path, files: dict, attribute: str | None, class_name: str
) -> tuple[dict[str, list[Object]], dict[str, int]]:
  """Reads a VIA project or JSON export.

  Args:
    path: The file.
    files: Of `find_images`.
    attribute: The region attribute that is the class; None: the only one.
    class_name: The class of regions without attributes.

  Returns:
    The objects of each image, and what was left out: {reason: count}.
  """
  content = read_json(path)
  content = content.get('_via_img_metadata', content)
  if not content or not all(
      isinstance(entry, dict) and 'filename' in entry and 'regions' in entry
      for entry in content.values()
  ):
    raise InputError(
        f'A25: {path} is no VIA export; in VIA choose Annotation, Export '
        'Annotations (as json).'
    )
  objects, left_out = {}, collections.Counter()
  for entry in content.values():
    name = _find_file(entry['filename'], files, path)
    regions = entry['regions']
    if isinstance(regions, dict):  # VIA 1
      regions = list(regions.values())
    for region in regions:
      where = f'{path}: a region of {name}'
      try:
        shape = region['shape_attributes']
        polygon = _via_polygon(shape)
        class_ = _via_class(
            region.get('region_attributes') or {}, attribute, class_name,
            where,
        )
      except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f'A25: {where} is damaged: {error!r}.') from error
      if polygon is None:
        left_out[f'regions of the kind {shape["name"]}'] += 1
        continue
      objects.setdefault(name, []).append(Object(class_, [polygon]))
  return objects, left_out


def _via_polygon(shape: dict) -> list[float] | None:
  """The corners of a region; None for lines and points."""
  match shape['name']:
    case 'polygon':
      return _flat(
          zip(shape['all_points_x'], shape['all_points_y'], strict=True)
      )
    case 'rect':
      x, y = shape['x'], shape['y']
      return _rectangle(x, y, x + shape['width'], y + shape['height'])
    case 'circle':
      return _ellipse(shape['cx'], shape['cy'], shape['r'], shape['r'])
    case 'ellipse':
      return _ellipse(
          shape['cx'], shape['cy'], shape['rx'], shape['ry'],
          shape.get('theta', 0),
      )
  return None


def _via_class(
    attributes: dict, attribute: str | None, class_name: str, where: str
) -> str:
  """The class of a region."""
  if attribute is None:
    if not attributes:
      return class_name
    if len(attributes) > 1:
      raise InputError(
          f'{where} has the attributes {", ".join(attributes)}; give '
          '--class_attribute=NAME.'
      )
    attribute = next(iter(attributes))
  value = attributes.get(attribute)
  if isinstance(value, dict):  # checkboxes
    value = next((key for key, on in value.items() if on), None)
  if not isinstance(value, str) or not value.strip():
    raise InputError(
        f'{where} has no class: its attribute {attribute!r} is {value!r}.'
    )
  return value.strip()


def read_labelme(
    path: pathlib.Path, files: dict
) -> tuple[dict[str, list[Object]], dict[str, int]]:
  """Reads LabelMe files; see `read_via`.

  Args:
    path: A folder of them, searched with its sub-folders, or one.
    files: Of `find_images`.
  """
  paths = sorted(path.rglob('*.json')) if path.is_dir() else [path]
  if not paths:
    raise InputError(f'I01: there are no *.json in {path}.')
  objects, left_out = {}, collections.Counter()
  for file in paths:
    content = read_json(file)
    if not isinstance(content.get('shapes'), list) or not isinstance(
        content.get('imagePath'), str
    ):
      raise InputError(
          f'A25: {file} is no LabelMe file: no shapes or imagePath in it.'
      )
    name = _find_file(content['imagePath'], files, file)
    if name in objects:
      raise InputError(f'A20: {file} is the second file for {name}.')
    size = content.get('imageHeight'), content.get('imageWidth')
    if None not in size and size != files[name]:
      raise InputError(
          f'I05: {file} is for {size[0]}x{size[1]} pixels (height x width), '
          f'but {name} has {files[name][0]}x{files[name][1]}.'
      )
    groups = {}
    for position, shape in enumerate(content['shapes']):
      try:
        label, group = shape['label'], shape.get('group_id')
        kind = shape.get('shape_type') or 'polygon'
        polygon = _labelme_polygon(kind, shape['points'])
      except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'A25: {file}: shape {position} is damaged: {error!r}.'
        ) from error
      if not isinstance(label, str) or not label.strip():
        raise InputError(f'{file}: shape {position} has no label.')
      if polygon is None:
        left_out[f'shapes of the kind {kind}'] += 1
        continue
      # A shape without a group is an object of its own.
      key = (label, group) if group is not None else position
      found = groups.setdefault(key, Object(label.strip(), []))
      found.polygons.append(polygon)
    objects[name] = list(groups.values())
  return objects, left_out


def _labelme_polygon(kind: str, points: list) -> list[float] | None:
  """The corners of a shape; None for lines and points."""
  match kind:
    case 'polygon':
      return _flat(points)
    case 'rectangle':
      (x1, y1), (x2, y2) = points
      return _rectangle(min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
    case 'circle':
      (x, y), (edge_x, edge_y) = points
      radius = math.hypot(edge_x - x, edge_y - y)
      return _ellipse(x, y, radius, radius)
  return None


def read_masks(
    folder: pathlib.Path, files: dict, class_name: str, class_folders: bool
) -> tuple[dict[str, list[Object]], dict[str, int]]:
  """Reads mask pictures; see `read_via`.

  Args:
    folder: Of the masks.
    files: Of `find_images`.
    class_name: The class of all objects.
    class_folders: Whether the folder has a folder of masks for each class.
  """
  if not folder.is_dir():
    raise InputError(f'I01: there is no folder of masks {folder}.')
  places = {class_name: folder}
  if class_folders:
    places = {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
  objects, used, left_out = {}, set(), collections.Counter()
  for name, size in files.items():
    stem = pathlib.PurePath(name).with_suffix('')
    for class_, place in places.items():
      whole = place / stem.parent / f'{stem.name}.png'
      single = sorted((place / stem).glob('*.png'))
      if whole.is_file() and single:
        raise InputError(f'A20: both {whole} and {place / stem}/ are there.')
      found = []
      for path in [whole] if whole.is_file() else single:
        used.add(path)
        values = _read_mask(path, size)
        if single:
          masks = [values > 0]
        else:
          numbers = np.unique(values)
          masks = [values == number for number in numbers[numbers > 0]]
        found += [Object(class_, [], mask) for mask in masks if mask.any()]
        left_out['masks without a pixel'] += sum(
            not mask.any() for mask in masks
        )
      objects.setdefault(name, []).extend(found)
  unused = sorted(set(folder.rglob('*.png')) - used)
  if unused:
    hint = '' if class_folders else ' (--class_folders?)'
    raise InputError(
        f'I01: {len(unused)} masks are of no image, such as {unused[0]}{hint}.'
    )
  if not used:
    raise InputError(f'I01: there are no *.png in {folder}.')
  return objects, {reason: n for reason, n in left_out.items() if n}


def _read_mask(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
  """Reads a PNG as one number a pixel, 0 for black or transparent."""
  try:
    with Image.open(path) as image:
      # The numbers of a palette are what counts, not its colours.
      values = np.array(image)
  except (OSError, ValueError, SyntaxError) as error:
    raise InputError(f'I02: {path} is no mask: {error}.') from error
  if values.shape[:2] != size:
    raise InputError(
        f'A09: {path} has {values.shape[0]}x{values.shape[1]} pixels (height x'
        f' width), but its image {size[0]}x{size[1]}.'
    )
  values = values.astype(np.int64)
  if values.ndim == 3:
    if values.shape[2] in (2, 4):
      values = values[..., :-1] * (values[..., -1:] > 0)
    values = values @ 256 ** np.arange(values.shape[2])
  return values


def to_coco(
    files: dict[str, tuple[int, int]], objects: dict[str, list[Object]]
) -> dict:
  """Makes the content of a COCO JSON.

  Args:
    files: Of `find_images`.
    objects: Of each image that has some.
  """
  names = sorted({o.name for found in objects.values() for o in found})
  if not names:
    raise InputError('A23: there is not a single object in the annotations.')
  category_ids = {name: i for i, name in enumerate(names, start=1)}
  content = {
      'images': [], 'annotations': [],
      'categories': [{'id': i, 'name': n} for n, i in category_ids.items()],
  }
  for image_id, (name, (height, width)) in enumerate(files.items(), start=1):
    content['images'].append({
        'id': image_id, 'file_name': name, 'height': height, 'width': width
    })
    for object_ in objects.get(name, ()):
      if object_.mask is None:
        segmentation = object_.polygons
        points = np.concatenate(segmentation).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        area = sum(map(_area, segmentation))
      else:
        segmentation = mask_api.encode(
            np.asfortranarray(object_.mask.astype(np.uint8))
        )
        box = mask_api.toBbox(segmentation).tolist()
        area = float(object_.mask.sum())
        segmentation['counts'] = segmentation['counts'].decode()
      content['annotations'].append({
          'id': len(content['annotations']) + 1, 'image_id': image_id,
          'category_id': category_ids[object_.name], 'iscrowd': 0,
          'bbox': box, 'area': area, 'segmentation': segmentation,
      })
  return content


def read_json(path: pathlib.Path) -> dict:
  """Loads a JSON object."""
  try:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
  except OSError as error:
    raise InputError(f'Cannot read {path}: {error.strerror}.') from error
  except (ValueError, RecursionError) as error:
    raise InputError(f'A25: {path} is not JSON: {error}.') from error
  if not isinstance(content, dict):
    raise InputError(f'A25: {path} holds no object.')
  return content


def _find_file(name: str, files: dict, source: pathlib.Path) -> str:
  """Finds the image that an annotation names, with or without its folders."""
  name = name.replace('\\', '/')
  if name in files:
    return name
  base = name.rsplit('/', 1)[-1]
  found = [file for file in files if file.rsplit('/', 1)[-1] == base]
  if len(found) != 1:
    raise InputError(
        f'I01: {source} is about {name}, of which there are {len(found)} among'
        ' the images.'
    )
  return found[0]


def _flat(points: Iterable) -> list[float]:
  """Turns (x, y) pairs into a flat list of at least three."""
  flat = [float(value) for x, y in points for value in (x, y)]
  if len(flat) < 6:
    raise ValueError(f'a polygon of {len(flat) // 2} points')
  if not all(map(math.isfinite, flat)):
    raise ValueError('a coordinate is not finite')
  return flat


def _rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
  """The corners of a rectangle."""
  return _flat([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _ellipse(
    x: float, y: float, radius_x: float, radius_y: float, theta: float = 0
) -> list[float]:
  """The corners of what stands for an ellipse, turned by theta."""
  angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
  a, b = radius_x * np.cos(angles), radius_y * np.sin(angles)
  return _flat(zip(
      x + a * np.cos(theta) - b * np.sin(theta),
      y + a * np.sin(theta) + b * np.cos(theta), strict=True,
  ))


def _area(polygon: list[float]) -> float:
  """The area of a polygon, by the shoelace formula."""
  x, y = np.reshape(polygon, (-1, 2)).T
  return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


if __name__ == '__main__':
  main()
