"""What a data set looks like: its classes, its sizes, and how anchors fit.

Axis letters here: n images, m objects.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from maskrcnn_jax.data import coco_index

# Bins of the histograms: from this to before the next.  Objects by the square
# root of their area after resizing, in pixels; images by their objects.
SIZE_BINS = (0, 8, 16, 32, 64, 128, 256, 512)
COUNT_BINS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def object_rows(index: coco_index.CocoIndex) -> Int[np.ndarray, 'm']:
  """Returns the image of each object."""
  return np.repeat(np.arange(len(index.heights)), np.diff(index.object_starts))


def class_table(index: coco_index.CocoIndex) -> list[dict]:
  """Counts objects, crowd regions and images of each class."""
  rows = object_rows(index)
  table = []
  for number, category in enumerate(index.categories, start=1):
    here = index.classes == number
    table.append(
      {
        'id': category.id,
        'name': category.name,
        'objects': int(np.sum(here & ~index.crowd)),
        'crowd': int(np.sum(here & index.crowd)),
        'images': len(np.unique(rows[here])),
      }
    )
  return table


def histogram(values: np.ndarray, bins: Sequence[int]) -> dict[str, int]:
  """Counts values from each bin to before the next; the last has no end."""
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
  """Returns the boxes of all objects in pixels of the resized images."""
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
  """Finds how well the best anchor covers each box.

  Of the anchors of one shape the best is the one whose centre is nearest, in
  each direction by itself; so there is one candidate a shape, not one a cell.

  Args:
    boxes: In pixels of the resized images.
    image_sizes: (height, width) of each box's image after resizing.
    anchors: {level: anchors of the cell at the origin}.
    padding_multiple: Anchors centred beyond the image's next multiple of this
      do not exist.
    inside_only: Whether anchors that cross an edge of the image do not count.
    width_offset: What a box is wider than x2 - x1.

  Returns:
    IoU of each box.
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
        last = np.ceil((padded[:, axis] - 0.5 - center) / stride) - 1
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
