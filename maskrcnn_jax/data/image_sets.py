"""A set of images: where it is, and what of it is trained on."""

import os
import pathlib
from typing import Any

from jaxtyping import Int
import numpy as np

from maskrcnn_jax import errors
from maskrcnn_jax.array_types import Limits
from maskrcnn_jax.data import coco, coco_index, findings, images, records

# Share of the objects that `max_objects` may cost before it is an error.
_MAX_LOST = 0.05

_MIN_VERTICES = 64

# Where images are: a folder, or records that hold them.
Images = str | pathlib.Path | records.RecordImages


# Enough where there is no truth.
NO_TRUTH = Limits(1, _MIN_VERTICES, _MIN_VERTICES, 1)


def read_set(
    annotations: str | pathlib.Path,
    images_dir: str | pathlib.Path,
    found: records.Records | None = None,
    **options: Any,
) -> tuple[coco_index.CocoIndex, Images]:
  """Reads the index of a set and says where its images are.

  Args:
    annotations: COCO JSON, unless `found` is given.
    images_dir: The folder of its images.
    found: Records to read instead.
    **options: Of `coco.read_coco`.
  """
  if found is None:
    return coco.read_coco(annotations, **options), pathlib.Path(images_dir)
  content, in_records = records.read_records(found)
  return coco.index_coco(content, str(found), **options), in_records


def read_content(
    source: str | pathlib.Path | records.Records
) -> dict[str, Any]:
  """Reads what a COCO JSON holds, or what records stand for."""
  if isinstance(source, records.Records):
    return records.read_records(source)[0]
  return coco.read_json(pathlib.Path(source))


def check_images_exist(
    index: coco_index.CocoIndex,
    images_dir: Images,
    *,
    report: findings.Report | None = None,
) -> list[int]:
  """Checks that each image file of the index is there.

  Args:
    index: Has the file names.
    images_dir: The folder that they are relative to; records hold their images
      by construction.
    report: Gets what is wrong. None: the first error is raised.

  Returns:
    The rows of those that are missing.

  Raises:
    InputError: Without a report, if some are missing, or named outside of the
      folder.
  """
  if isinstance(images_dir, records.RecordImages):
    return []
  report = report or findings.Report(stop=True)
  images_dir = os.fspath(images_dir)
  if not os.path.isdir(images_dir):
    report.error(
        'I01', '', '',
        f'there is no folder of images {images_dir}'
        f'{coco.download_hint(images_dir)}.',
    )
    return list(range(len(index.file_names)))
  outside, missing = [], []
  for row, name in enumerate(index.file_names):
    if coco.is_outside(name):
      outside.append(row)
      report.error(
          'I15', '', f'image {index.image_ids[row]!r}',
          f'its file_name {name!r} leads out of the folder {images_dir}; it'
          ' must be relative to it.',
      )
    elif not os.path.isfile(os.path.join(images_dir, name)):
      missing.append(row)
  if missing:
    names = [index.file_names[row] for row in missing[:5]]
    shown = ', '.join(names) + (', ...' if len(missing) > 5 else '')
    hint = images.case_hint(os.path.join(images_dir, names[0]))
    report.error(
        'I01', '', '',
        f'{len(missing)} of {len(index.file_names)} images are not in'
        f' {images_dir}: {shown}{hint}.', count=0,
    )
    for row in missing:
      report.error(
          'I01', '', f'image {index.image_ids[row]!r}',
          f'there is no {index.file_names[row]}.', row=row,
      )
  return sorted(outside + missing)


def filter_images(
    index: coco_index.CocoIndex, *, keep_empty: bool
) -> tuple[Int[np.ndarray, 'n'], list[tuple[str, int]]]:
  """Picks the images to train on.

  Args:
    index: The training data.
    keep_empty: Train on images without objects (or with crowds only) too; all
      of such an image is background.

  Returns:
    Rows of the index, rising, and how many images and objects were left at
    each step, for `format_waterfall`.

  Raises:
    InputError: If there is not a single object to train on.
  """
  per_image = _objects_per_image(index)
  empty = per_image == 0
  rows = np.flatnonzero(~empty | keep_empty)
  lost = {
      reason: count
      for reason, count in index.dropped.items()
      if reason != coco_index.BAD_POLYGON
  }
  num_objects = len(index.classes) + sum(lost.values())
  fate = 'kept as background' if keep_empty else 'left out'
  waterfall = [
      ('images in the file', len(per_image)),
      (f'images without objects, {fate}', int(empty.sum())),
      ('images trained on', len(rows)),
      ('objects in the file', num_objects),
      *index.dropped.items(),
      ('crowd regions, not trained on', int(index.crowd.sum())),
      ('objects trained on', int(per_image.sum())),
  ]
  if not per_image.sum():
    steps = '; '.join(f'{count} {what}' for what, count in waterfall)
    raise errors.InputError(f'A23: nothing to train on: {steps}.')
  return rows, waterfall


def format_waterfall(waterfall: list[tuple[str, int]]) -> str:
  """Lays out what `filter_images` counted, one line a step."""
  return '\n'.join(f'{count:>9,} {what}' for what, count in waterfall)


def count_objects_over(index: coco_index.CocoIndex, max_objects: int) -> int:
  """Counts the objects that go untrained as their image has more than that."""
  return int(np.maximum(_objects_per_image(index) - max_objects, 0).sum())


def most_objects(index: coco_index.CocoIndex) -> int:
  """Counts the objects of the image that has most; crowds are none."""
  return int(_objects_per_image(index).max(initial=0))


def find_limits(index: coco_index.CocoIndex, *, max_objects: int) -> Limits:
  """Finds the static sizes that hold the truth of every image.

  Args:
    index: The training data.
    max_objects: What an image may have; of more, those of the largest area
      are trained on.

  Raises:
    InputError: If more than 5 % of all objects would go untrained.
  """
  per_image = _objects_per_image(index)
  lost = count_objects_over(index, max_objects)
  if lost > _MAX_LOST * per_image.sum():
    raise errors.InputError(
        f'A24: with max_objects={max_objects}, {lost} of {per_image.sum()}'
        ' objects would not be trained on; set it to'
        f' {per_image.max()} to train on all.'
    )
  kept = ~index.crowd
  for row in np.flatnonzero(per_image > max_objects):
    kept[index.object_starts[row] : index.object_starts[row + 1]] = False
    kept[training_objects(index, int(row), max_objects)] = True
  lengths = np.where(kept, np.diff(index.outline_starts), 0)
  total = np.concatenate([[0], np.cumsum(lengths)])
  of_image = np.diff(total[index.object_starts])
  return Limits(
      max_objects=max_objects,
      max_image_vertices=_power_of_two(int(of_image.max(initial=0))),
      max_object_vertices=_power_of_two(int(lengths.max(initial=0))),
      max_parts=int(index.parts.max(initial=0)) + 1,
  )


def training_objects(
    index: coco_index.CocoIndex, row: int, max_objects: int
) -> np.ndarray:
  """Picks the objects of an image to train on, in the order of the file."""
  start, end = index.object_starts[row : row + 2]
  objects = start + np.flatnonzero(~index.crowd[start:end])
  largest = np.argsort(-index.areas[objects], kind='stable')[:max_objects]
  return np.sort(objects[largest])


def _objects_per_image(index: coco_index.CocoIndex) -> np.ndarray:
  """Counts the objects that are no crowd."""
  before = np.concatenate([[0], np.cumsum(~index.crowd)])
  return np.diff(before[index.object_starts])


def _power_of_two(value: int) -> int:
  """Rounds a count of vertices up."""
  return max(1 << max(value - 1, 0).bit_length(), _MIN_VERTICES)
