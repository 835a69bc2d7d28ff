"""Statistics of a data set: classes, sizes, and how well anchors fit the boxes.

Axis letters here: n images, m objects.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from maskrcnn_jax.data import coco_index

# Lower limits of the bins of the histograms. A bin ends before the next one.
# SIZE_BINS are for the square root of an object's area after resizing, in
# pixels; COUNT_BINS are for the number of objects of an image.
SIZE_BINS = (0, 8, 16, 32, 64, 128, 256, 512)
COUNT_BINS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def object_rows(index: coco_index.CocoIndex) -> Int[np.ndarray, 'm']:
  """Returns for each object the row of its image in the index."""
  return np.repeat(np.arange(len(index.heights)), np.diff(index.object_starts))


def class_table(index: coco_index.CocoIndex) -> list[dict[str, Any]]:
  """Counts the objects, crowd regions and images of each class.

  Returns:
    A dict for each class. 'id' and 'name' are those of the category; 'objects'
    is the number of objects, 'crowd' that of crowd regions, and 'images' that
    of images with an object or a crowd region of the class.
  """
  num_images = max(len(index.heights), 1)
  pairs = index.classes.astype(np.int64) * num_images + object_rows(index)
  objects, crowd, images = (
    np.bincount(classes, minlength=len(index.categories) + 1).tolist()[1:]
    for classes in (
      index.classes[~index.crowd],
      index.classes[index.crowd],
      np.unique(pairs) // num_images,
    )
  )
  return [
    {
      'id': category.id,
      'name': category.name,
      'objects': objects[i],
      'crowd': crowd[i],
      'images': images[i],
    }
    for i, category in enumerate(index.categories)
  ]


def histogram(values: np.ndarray, bins: Sequence[int]) -> dict[str, int]:
  """Counts the values in each bin.

  Args:
    values: Integers or floats, none of them below the first bin.
    bins: Rising lower limits. A bin ends before the next; the last has no end.

  Returns:
    {name of the bin: number of values}, such as {'0': 3, '1 to 9': 2, '10 and
    more': 5}. For floats, the name of a bin contains its limit: '1 to 10'.
  """
  values = np.asarray(values)
  place = np.searchsorted(bins, values, side='right') - 1
  counts = np.bincount(place, minlength=len(bins)).tolist()
  last = 0 if values.dtype.kind == 'f' else 1
  names = [
    f'{low} to {high - last}' if high - last > low else f'{low}'
    for low, high in zip(bins, bins[1:], strict=False)
  ]
  return dict(zip([*names, f'{bins[-1]} and more'], counts, strict=True))


def resized_boxes(
  index: coco_index.CocoIndex, image_sizes: Int[np.ndarray, 'n 2']
) -> Float[np.ndarray, 'm 4']:
  """Returns the boxes of all objects in pixels of the resized images.

  Args:
    index: The objects and the sizes of their images.
    image_sizes: (height, width) of each image after resizing.
  """
  rows = object_rows(index)
  sizes = np.stack([index.heights, index.widths], axis=1)
  scale = (image_sizes / sizes)[rows]
  return index.boxes * scale[:, [1, 0, 1, 0]]


def best_anchor_iou(
  boxes: Float[np.ndarray, 'm 4'],
  image_sizes: Int[np.ndarray, 'm 2'],
  anchors: dict[int, Float[np.ndarray, 'anchors_per_cell 4']],
  *,
  padding_multiple: int = 32,
  inside_only: bool = False,
  width_offset: float = 0.0,
) -> Float[np.ndarray, 'm']:
  """Computes the IoU of each box and the anchor that fits it best.

  Only one anchor of each shape is compared: the one whose centre is nearest to
  the centre of the box in x and in y. No other anchor of this shape can have a
  larger IoU.

  Args:
    boxes: (x1, y1, x2, y2) in pixels of the resized images.
    image_sizes: (height, width) after resizing of the image of each box.
    anchors: {pyramid level: anchors of the cell at the origin}.
    padding_multiple: The size of an image is rounded up to a multiple of this;
      anchors exist if their centre is inside.
    inside_only: Whether to ignore anchors that cross an edge of the image.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0, or 1 if (x2, y2) is the last
      pixel inside of the box.

  Returns:
    IoU in [0, 1]; 0 if the image has no anchor.
  """
  boxes = np.asarray(boxes, np.float64)
  best = np.zeros(len(boxes))
  sides = boxes[:, 2:] - boxes[:, :2] + width_offset
  ends = image_sizes[:, ::-1]
  padded = -(-ends // padding_multiple) * padding_multiple
  for level, shapes in anchors.items():
    stride = 2**level
    for anchor in np.asarray(shapes, np.float64):
      shared = np.ones(len(boxes))
      exists = np.ones(len(boxes), bool)
      for axis in (0, 1):
        low, high = anchor[axis], anchor[axis + 2]
        center = (low + high) / 2
        first = np.zeros(len(boxes))
        last = np.ceil((padded[:, axis] - 0.25 - center) / stride) - 1
        if inside_only:
          first = np.maximum(first, np.ceil(-low / stride))
          last = np.minimum(last, np.ceil((ends[:, axis] - high) / stride) - 1)
        middle = (boxes[:, axis] + boxes[:, axis + 2]) / 2
        cell = np.clip(
          np.round((middle - center) / stride), first, np.maximum(last, first)
        )
        exists &= last >= first
        start = np.maximum(boxes[:, axis], low + cell * stride)
        end = np.minimum(boxes[:, axis + 2], high + cell * stride)
        shared *= np.maximum(end - start + width_offset, 0)
      area = np.prod(anchor[2:] - anchor[:2] + width_offset)
      iou = shared / np.maximum(sides.prod(axis=1) + area - shared, 1e-9)
      best = np.maximum(best, np.where(exists, iou, 0))
  return best
