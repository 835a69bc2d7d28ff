"""Makes COCO instances JSON from objects that any reader has read."""

from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_jax.convert_to_coco.drawn import Drawn, filled, from_mask

# A polygon with more vertices is written as a mask, because the training
# refuses outlines of more than 32,768 vertices (A27), and repeats some.
_MAX_VERTICES = 30_000


class Instance(NamedTuple):
  """An object as COCO stores it."""

  name: str  # name of its class
  outline: dict[str, Any]  # COCO's `bbox`, `area` and `segmentation`


def make_instance(drawn: Drawn, size: tuple[int, int]) -> Instance | None:
  """Makes COCO's fields of an object; `None` if it has no pixel in its image.

  Polygons stay polygons, and a mask becomes a compressed RLE. The area is the
  number of pixels that the filled outline has inside of the image. The box is
  clipped to the image.

  Args:
    drawn: The object in pixels of its image, with either polygons or a mask.
    size: (height, width) of the image in pixels.

  Raises:
    InputError: If a coordinate is too large.
  """
  if drawn.rle is not None:
    area = float(mask_api.area(drawn.rle))
    if not area:
      return None
    outline = {
      'bbox': mask_api.toBbox(drawn.rle).tolist(),
      'area': area,
      'segmentation': {**drawn.rle, 'counts': drawn.rle['counts'].decode()},
    }
    return Instance(drawn.name, outline)
  if not drawn.polygons:
    return None
  part, (top, left) = filled(drawn.polygons, size)
  area = float(part.sum())
  if not area:
    return None
  if sum(map(len, drawn.polygons)) // 2 > _MAX_VERTICES:
    mask = np.zeros(size, bool)
    mask[top : top + part.shape[0], left : left + part.shape[1]] = part
    return make_instance(from_mask(drawn.name, mask), size)
  corners = np.concatenate(drawn.polygons).reshape(-1, 2)
  low, high = (
    np.clip(ends, 0, size[::-1])
    for ends in (corners.min(axis=0), corners.max(axis=0))
  )
  outline = {
    'bbox': [*low.tolist(), *(high - low).tolist()],
    'area': area,
    'segmentation': drawn.polygons,
  }
  return Instance(drawn.name, outline)


def to_coco(
  sizes: dict[str, tuple[int, int]],
  objects: dict[str, list[Instance]],
  categories: list[dict[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
  """Makes the content of a COCO JSON.

  Args:
    sizes: (height, width) in pixels of each image, by its file name. An image
      without objects becomes a background image.
    objects: The objects of an image, by its file name.
    categories: COCO's `categories`. They have the class of each object.

  Returns:
    Images, annotations and categories.
  """
  category_ids = {entry['name']: entry['id'] for entry in categories}
  content: dict[str, list[dict[str, Any]]] = {
    'images': [],
    'annotations': [],
    'categories': categories,
  }
  for image_id, (name, (height, width)) in enumerate(sizes.items(), start=1):
    content['images'].append(
      {'id': image_id, 'file_name': name, 'height': height, 'width': width}
    )
    for instance in objects.get(name, ()):
      content['annotations'].append(
        {
          'id': len(content['annotations']) + 1,
          'image_id': image_id,
          'category_id': category_ids[instance.name],
          'iscrowd': 0,
          **instance.outline,
        }
      )
  return content
