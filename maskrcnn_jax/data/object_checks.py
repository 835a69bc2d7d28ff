"""Checks all objects of a COCO file together: masks, boxes, areas, classes.

Axis letters here: m objects.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax.data import findings
from maskrcnn_jax.data.coco_index import CocoIndex, is_background

# A box and its mask disagree if their IoU is below this.
MIN_BOX_IOU = 0.5

# Share of the objects that may have a box that disagrees with the mask. More
# are an error.
_MAX_DISAGREE = 0.2

# Returns the name of an object in messages, given its number in the index.
NameObject = Callable[[int], str]


def box_mask_iou(
  index: CocoIndex,
  rows: Int[np.ndarray, 'm'],
  bounds: Float[np.ndarray, 'm 4'],
  width_offset: float,
) -> Float[np.ndarray, 'm']:
  """Computes the IoU of each box of the file and the box around its mask.

  Programs differ in whether the box around a mask includes the last pixel. Both
  conventions are tried, and the larger IoU is returned.

  Args:
    index: The objects and their boxes.
    rows: Row in the index of the image of each object.
    bounds: Boxes (x1, y1, x2, y2) around the outlines, in pixels of the image,
      not clipped. NaN for objects without an outline.
    width_offset: Number added to x2 - x1 to get the width of a box, and to
      y2 - y1 to get its height, in pixels: 0 or 1.

  Returns:
    IoU in [0, 1]; 1 for objects without an outline.
  """
  far = np.stack([index.widths[rows], index.heights[rows]], axis=1)
  boxes = index.boxes.astype(np.float64)
  boxes[:, 2:] += width_offset
  best = np.zeros(len(boxes))
  for last_pixel in (0.0, 1.0):
    low = np.clip(bounds[:, :2], 0, far)
    high = np.clip(bounds[:, 2:] + last_pixel, 0, far)
    shared = np.clip(
      np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None
    ).prod(axis=1)
    both = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    both += (high - low).prod(axis=1)
    best = np.maximum(best, shared / np.maximum(both - shared, 1e-9))
  return np.where(np.isnan(bounds[:, 0]), 1, best)


def areas_disagree(
  areas: Float[np.ndarray, 'm'], mask_areas: Float[np.ndarray, 'm']
) -> Bool[np.ndarray, 'm']:
  """Tells for each object whether its area differs much from that of its mask.

  Two areas differ much if one is more than twice the other, and if they differ
  by more than 16 pixels. A smaller difference can come from rounding.

  Args:
    areas: Areas in the file, in square pixels. The result is False where the
      area is NaN, which means that the file has none.
    mask_areas: Areas of the masks, in square pixels.
  """
  ratio = np.maximum(areas, 1e-9) / np.maximum(mask_areas, 1e-9)
  return ((ratio > 2) | (ratio < 0.5)) & (np.abs(areas - mask_areas) > 16)


def check_masks(
  has_mask: Bool[np.ndarray, 'm'],
  mask_areas: Float[np.ndarray, 'm'],
  rows: Int[np.ndarray, 'm'],
  report: findings.Report,
  file: str,
  name_object: NameObject,
) -> None:
  """Warns of each mask whose area is zero.

  Args:
    has_mask: Whether the object has a mask to be trained on.
    mask_areas: Areas of the masks, in square pixels. The area of polygons is
      geometric: a mask that is too thin to contain the centre of a pixel still
      has an area.
    rows: Row in the index of the image of each object.
    report: Receives the warnings.
    file: Name of the COCO file, for messages.
    name_object: Returns the name of an object, for messages.
  """
  for j in np.flatnonzero(has_mask & (mask_areas == 0)).tolist():
    report.warn(
      'A10',
      file,
      name_object(j),
      'its mask contains no pixel; only its box is trained on.',
      row=int(rows[j]),
    )


def check_boxes(
  overlaps: Float[np.ndarray, 'm'],
  has_mask: Bool[np.ndarray, 'm'],
  rows: Int[np.ndarray, 'm'],
  report: findings.Report,
  file: str,
  name_object: NameObject,
) -> None:
  """Warns of each box that disagrees with its mask, the worst first.

  A box and a mask disagree if the IoU of the box and the box around the mask is
  below 0.5. If more than a fifth of the objects with masks have such a box, an
  error is reported as well.

  Args:
    overlaps: The result of `box_mask_iou`.
    has_mask: Whether the object has a mask to be trained on.
    rows: Row in the index of the image of each object.
    report: Receives the warnings and the error.
    file: Name of the COCO file, for messages.
    name_object: Returns the name of an object, for messages.
  """
  apart = np.flatnonzero(has_mask & (overlaps < MIN_BOX_IOU))
  apart = apart[np.argsort(overlaps[apart], kind='stable')]
  for j in apart.tolist():
    report.warn(
      'A11',
      file,
      name_object(j),
      'its box and the box around its mask overlap by only'
      f' {overlaps[j]:.2f} (IoU).',
      row=int(rows[j]),
    )
  if len(apart) > _MAX_DISAGREE * max(has_mask.sum(), 1):
    report.error(
      'A11',
      file,
      '',
      f'{len(apart)} of {has_mask.sum()} boxes disagree with their masks, so'
      ' either the boxes or the masks are wrong; look at the contact sheet of'
      ' python -m maskrcnn_jax.check_data.',
      count=0,
    )


def check_areas(
  is_wrong: Bool[np.ndarray, 'm'],
  report: findings.Report,
  file: str,
  name_object: NameObject,
) -> None:
  """Gives one warning for all areas that differ much from those of the masks.

  Args:
    is_wrong: The result of `areas_disagree`; False for objects without masks.
    report: Receives the warning.
    file: Name of the COCO file, for messages.
    name_object: Returns the name of an object, for messages.
  """
  wrong = np.flatnonzero(is_wrong).tolist()
  if wrong:
    report.warn(
      'A26',
      file,
      '',
      f'{len(wrong)} areas are less than half or more than twice the area of'
      f' their masks (first: {name_object(wrong[0])}); the AP of small, medium'
      ' and large objects depends on the areas.',
      count=len(wrong),
    )


def check_classes(index: CocoIndex, report: findings.Report, file: str) -> None:
  """Reports classes without objects, and classes named background.

  A class named background is an error if it has objects, otherwise a warning.
  Crowd regions do not count as objects.

  Args:
    index: The class table and all objects.
    report: Receives the errors and warnings.
    file: Name of the COCO file, for messages.
  """
  counts = np.bincount(
    index.classes[~index.crowd], minlength=len(index.categories) + 1
  )[1:].tolist()
  for category, count in zip(index.categories, counts, strict=True):
    if is_background(category):
      add = report.error if count else report.warn
      add(
        'A16',
        file,
        f'category {category.id!r}',
        f'its name is {category.name!r} and it has {count} objects; leave it'
        ' out, because every pixel without an object is background already.',
      )
  empty = [
    category.name
    for category, count in zip(index.categories, counts, strict=True)
    if not count and not is_background(category)
  ]
  if empty and len(index.classes):
    shown = ', '.join(empty[:10]) + (', ...' if len(empty) > 10 else '')
    report.warn(
      'A22',
      file,
      '',
      f'{len(empty)} of {len(index.categories)} classes have no objects:'
      f' {shown}.',
      count=len(empty),
    )
