"""Makes a COCO instances JSON from objects that any reader has read."""

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from maskrcnn_jax.convert_to_coco.annotated_images import ImageSizes, Object
from maskrcnn_jax.data.outlines import polygons_to_coco
from maskrcnn_jax.errors import InputError


def to_coco(
  sizes: ImageSizes, objects: dict[str, list[Object]]
) -> dict[str, list[dict[str, Any]]]:
  """Makes the content of a COCO JSON.

  Args:
    sizes: All images. An image without objects becomes a background image.
    objects: The objects of an image, by its file name.

  Returns:
    Images, annotations and categories. Category ids start at 1, in the order
    of the sorted class names.

  Raises:
    InputError: If there is no object at all.
  """
  names = sorted({o.name for found in objects.values() for o in found})
  if not names:
    raise InputError(
      'A23: there is not a single object in the annotations; check that you'
      ' gave the right ones.'
    )
  category_ids = {name: i for i, name in enumerate(names, start=1)}
  content: dict[str, list[dict[str, Any]]] = {
    'images': [],
    'annotations': [],
    'categories': [{'id': i, 'name': n} for n, i in category_ids.items()],
  }
  for image_id, (name, (height, width)) in enumerate(sizes.items(), start=1):
    content['images'].append(
      {'id': image_id, 'file_name': name, 'height': height, 'width': width}
    )
    for object_ in objects.get(name, ()):
      content['annotations'].append(
        {
          'id': len(content['annotations']) + 1,
          'image_id': image_id,
          'category_id': category_ids[object_.name],
          'iscrowd': 0,
          **_outline_of(object_),
        }
      )
  return content


def _outline_of(object_: Object) -> dict[str, Any]:
  """Returns the `bbox`, `area` and `segmentation` of an object for COCO.

  Polygons stay polygons, and a mask becomes a compressed RLE.
  """
  if object_.mask is None:
    return polygons_to_coco(object_.polygons)
  rle = mask_api.encode(np.asfortranarray(object_.mask.astype(np.uint8)))
  return {
    'bbox': mask_api.toBbox(rle).tolist(),
    'area': float(object_.mask.sum()),
    'segmentation': {**rle, 'counts': rle['counts'].decode()},
  }
