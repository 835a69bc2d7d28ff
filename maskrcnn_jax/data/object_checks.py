"""Checks all objects of a COCO file together: masks, boxes, areas, classes.

Axis letters here: m objects.
"""

from collections.abc import Callable
import hashlib
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from maskrcnn_jax.data import findings
from maskrcnn_jax.data.coco_index import CocoIndex, is_background

# A box and its mask disagree if their IoU is below this.
MIN_BOX_IOU = 0.5

# Share of the objects that may have a box that disagrees with the mask. More
# are an error.
_MAX_DISAGREE = 0.2

# Weights of the columns whose sum is a key by which repeated objects are found.
_WEIGHTS = np.random.default_rng(0).random(8).tolist()

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
  is_empty: Bool[np.ndarray, 'm'],
  rows: Int[np.ndarray, 'm'],
  report: findings.Report,
  file: str,
  name_object: NameObject,
) -> None:
  """Warns of each mask without a pixel.

  Args:
    is_empty: Whether the object has a mask that covers no pixel of the image.
    rows: Row in the index of the image of each object.
    report: Receives the warnings.
    file: Name of the COCO file, for messages.
    name_object: Returns the name of an object, for messages.
  """
  for j in np.flatnonzero(is_empty).tolist():
    report.warn(
      'A10',
      file,
      name_object(j),
      'its mask contains no pixel of the image; only its box is trained on.',
      row=int(rows[j]),
    )


def check_fractions(
  bounds: Float[np.ndarray, 'm 4'], report: findings.Report, file: str
) -> Bool[np.ndarray, 'm']:
  """Reports masks that look like fractions of the size of the image.

  Args:
    bounds: Boxes (x1, y1, x2, y2) around the outlines, in pixels. NaN for
      objects without an outline.
    report: Receives the error, unless the boxes have given it already.
    file: Name of the COCO file, for messages.

  Returns:
    Whether an object has such a mask; all False if they are too few to be an
    error.
  """
  # Comparisons with NaN are False. A mask whose corners are whole numbers is
  # the first pixel of the image.
  in_unit = ((bounds >= 0) & (bounds <= 1)).all(axis=1)
  in_unit &= (bounds != np.floor(bounds)).any(axis=1)
  count = int(in_unit.sum())
  if not findings.are_many(count, len(bounds)):
    return np.zeros(len(bounds), bool)
  if 'A28' not in report.error_codes:
    report.error(
      'A28',
      file,
      '',
      f'{count} of {len(bounds)} masks lie within 0..1 in x and in y, so they'
      ' look like fractions of the size of the image; COCO has pixels: multiply'
      ' x by the width of the image and y by its height.',
      count=count,
    )
  return in_unit


def check_repeats(
  index: CocoIndex,
  rows: Int[np.ndarray, 'm'],
  report: findings.Report,
  file: str,
  name_object: NameObject,
) -> None:
  """Warns of objects that occur more than once.

  Such objects have the same image, class, box and outline. If they have no
  outline, they also have the same area. Crowd regions do not count.

  Args:
    index: The objects.
    rows: Row in the index of the image of each object.
    report: Receives the warnings.
    file: Name of the COCO file, for messages.
    name_object: Returns the name of an object, for messages.
  """
  if not len(rows):
    return
  lengths = np.diff(index.outline_starts)
  columns = [*index.boxes.T, index.classes, lengths, index.crowd, rows]
  # Repeated objects have the same key, and few others do.
  key = sum(c * w for c, w in zip(columns, _WEIGHTS, strict=True))
  order = np.argsort(key, kind='stable')
  is_like_last = np.diff(key[order]) == 0
  is_alike = np.append(is_like_last, False) | np.append(False, is_like_last)
  groups: dict[bytes, list[int]] = {}
  for j in order[is_alike & ~index.crowd[order]].tolist():
    outline = slice(*index.outline_starts[j : j + 2].tolist())
    digest = hashlib.blake2b(index.vertices[outline].tobytes())
    digest.update(index.parts[outline].tobytes())
    if not lengths[j]:
      digest.update(index.areas[j].tobytes())
    for column in columns:
      digest.update(column[j].tobytes())
    groups.setdefault(digest.digest(), []).append(j)
  repeated = [group for group in groups.values() if len(group) > 1]
  if repeated:
    count = sum(len(group) - 1 for group in repeated)
    first = min(repeated)
    report.warn(
      'A30',
      file,
      '',
      f'{count} annotations repeat another one of the same image, with the same'
      f' class, box and mask; first: {name_object(first[0])} occurs'
      f' {len(first)} times. Each is trained on as an object of its own.',
      count=count,
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


def check_classes(
  index: CocoIndex,
  used_ids: set[Any],
  report: findings.Report,
  file: str,
) -> None:
  """Reports classes without objects, and classes named background.

  A class named background is an error if it has objects, otherwise a warning.
  Crowd regions do not count as objects. A class whose objects may have been
  left out because of an error is not reported.

  Args:
    index: The class table and all objects.
    used_ids: The category ids of all annotations of the file.
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
    if not count
    and not is_background(category)
    and not (report.error_codes and category.id in used_ids)
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
