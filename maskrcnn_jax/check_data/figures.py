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
  """Describes a data set as training with a recipe sees it.

  Args:
    index: The data set.
    image_sizes: (height, width) of each image after resizing.
    ious: The result of `best_anchor_ious`.
    config: The recipe.

  Returns:
    The part of the report that `report.format_report` shows as classes, sizes
    and anchors.
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
    index: The data set.
    image_sizes: (height, width) of each image after resizing.
    config: The recipe, which has the anchors.
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
  """Returns [height, width] of the smallest, median and largest image."""
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


def _share(which: Bool[np.ndarray, 'm']) -> float | None:
  """Returns the share of objects to four digits; `None` of no objects."""
  return round(float(which.mean()), 4) if len(which) else None
