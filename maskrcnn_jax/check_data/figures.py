"""Counts and sizes of a data set, and how well the anchors fit its objects.

Axis letters here: n images, m objects.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
import ml_collections
import numpy as np

from maskrcnn_jax.config import anchor_arguments, geometry_of
from maskrcnn_jax.data import survey
from maskrcnn_jax.data.coco_index import CocoIndex
from maskrcnn_jax.ops.anchors import cell_anchors


def figures_of(
  index: CocoIndex,
  image_sizes: Int[np.ndarray, 'n 2'],
  ious: Float[np.ndarray, 'm'],
  config: ml_collections.ConfigDict,
) -> dict[str, Any]:
  """Counts images, objects and classes, and measures how well anchors fit.

  Args:
    index: The annotations of the data set.
    image_sizes: (height, width) of each image in pixels after resizing.
    ious: The IoU of each object with the anchor that covers it best.
    config: The recipe to train with.

  Returns:
    The figures as plain dicts and lists, a part of the report of `check_data`.
    Crowd regions are counted apart from the objects.
  """
  rows = survey.object_rows(index)
  trained = ~index.crowd
  per_image = np.bincount(rows[trained], minlength=len(image_sizes))
  sizes = np.stack([index.heights, index.widths], 1)
  scale = np.sqrt((image_sizes / sizes).prod(1))
  resized = np.sqrt(index.areas[trained]) * scale[rows[trained]]
  anchors = anchor_arguments(config)
  return {
    'counts': {
      'images': len(index.image_ids),
      'images_without_objects': int(np.sum(per_image == 0)),
      'objects': int(trained.sum()),
      'crowd_regions': int(index.crowd.sum()),
      'classes': len(index.categories),
      'left_out': index.dropped,
    },
    'classes': survey.class_table(index),
    'image_sizes': _spread(index.heights, index.widths),
    'objects_per_image': survey.histogram(per_image, survey.COUNT_BINS),
    'most_objects_in_an_image': int(per_image.max(initial=0)),
    'object_sizes': survey.histogram(resized, survey.SIZE_BINS),
    'anchors': {
      'sizes': [list(s) for s in anchors['sizes'].values()],
      'ratios': list(anchors['ratios']),
      'share_below_0.5': _share(ious[trained] < 0.5),
      'share_below_0.7': _share(ious[trained] < 0.7),
    },
  }


def best_anchor_ious(
  index: CocoIndex,
  image_sizes: Int[np.ndarray, 'n 2'],
  config: ml_collections.ConfigDict,
) -> Float[np.ndarray, 'm']:
  """Returns the IoU of each object with the anchor that covers it best.

  Args:
    index: The annotations of the data set.
    image_sizes: (height, width) of each image in pixels after resizing.
    config: The recipe, which defines the anchors.
  """
  geometry = geometry_of(config)
  anchors = anchor_arguments(config)
  return survey.best_anchor_iou(
    survey.resized_boxes(index, image_sizes),
    image_sizes[survey.object_rows(index)],
    {
      level: cell_anchors(
        level_sizes,
        anchors['ratios'],
        rounding=anchors['rounding'],
        stride=2**level,
      )
      for level, level_sizes in anchors['sizes'].items()
    },
    padding_multiple=geometry.padding_multiple,
    inside_only=geometry.ignore_straddling,
    width_offset=geometry.width_offset,
  )


def _spread(
  heights: Int[np.ndarray, 'n'], widths: Int[np.ndarray, 'n']
) -> dict[str, list[int]]:
  """Returns the [height, width] of the images of least, median, greatest area.

  Args:
    heights: Height of each image in pixels.
    widths: Width of each image in pixels.

  Returns:
    The sizes by the keys 'least', 'median' and 'greatest'; empty without
    images.
  """
  if not len(heights):
    return {}
  order = np.argsort(heights.astype(np.int64) * widths, kind='stable')
  return {
    name: [int(heights[i]), int(widths[i])]
    for name, i in (
      ('least', order[0]),
      ('median', order[len(order) // 2]),
      ('greatest', order[-1]),
    )
  }


def _share(chosen: Bool[np.ndarray, 'm']) -> float | None:
  """Returns the share of the objects that are chosen, in [0, 1].

  It is rounded to four digits. `None` means that there are no objects.
  """
  return round(float(chosen.mean()), 4) if len(chosen) else None
