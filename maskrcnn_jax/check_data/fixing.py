"""Applies the repairs of `--fix`, or finds out how much it would keep."""

from collections.abc import Callable
import os
import pathlib
from typing import Any

import ml_collections

from maskrcnn_jax.check_data import decoding
from maskrcnn_jax.config import pixel_range_of
from maskrcnn_jax.data import findings
from maskrcnn_jax.data.repair import image_repairs
from maskrcnn_jax.data.repair.write_copy import repair
from maskrcnn_jax.data.source import CocoFiles, ImageFile

# Reads a copy, and returns the codes of its errors and its file names.
FindErrors = Callable[[pathlib.Path], tuple[list[str], list[str]]]


def fix(
  source: CocoFiles,
  destination: pathlib.Path | None,
  bad_images: dict[str, str],
  *,
  error_codes: list[str],
  has_corner_boxes: bool,
  has_fractions: bool,
  config: ml_collections.ConfigDict,
  read_options: dict[str, Any],
  num_workers: int | None,
  find_errors: FindErrors,
) -> dict[str, Any]:
  """Writes the repaired copy of a data set's annotations, and describes it.

  Args:
    source: The data set.
    destination: The file to write. With `None` no file is written: the entry
      only tells how a copy would differ. Images are not decoded for it.
    bad_images: {file_name: reason} of the images that cannot be used. A reason
      begins with a code.
    error_codes: Codes of the errors of the data set.
    has_corner_boxes: Whether its boxes look like (x1, y1, x2, y2).
    has_fractions: Whether its coordinates look like fractions of the image
      size.
    config: The recipe to train with.
    read_options: Options of `coco.read_coco`.
    num_workers: Number of processes that decode images. `None` means one for
      each core.
    find_errors: Function that finds the errors of the copy.

  Returns:
    The report's entry: `file`, '' if no file was written, because no image or
    no annotation would be left or because none was asked for; `changes`;
    `kept`, as in `repair.Outcome`; and `left`, the codes of the errors that are
    left.

  Raises:
    InputError: If the copy exists already or cannot be written.
  """
  folder = pathlib.Path(source.images)
  annotations = pathlib.Path(source.annotations)
  repairs = image_repairs.repair_images(
    annotations,
    folder,
    wrong_sizes={
      name
      for name, why in bad_images.items()
      if findings.split_code(why)[0] == 'I05'
    },
  )
  bad_images = dict(bad_images)
  # The check could not decode images without the right name or size.
  entries = [repaired.entry for repaired in repairs.values()]
  for entry in entries:
    bad_images.pop(str(entry.get('file_name')), None)
  if destination is not None:
    bad_images |= _bad_images(entries, folder, config, num_workers)
  outcome = repair(
    annotations,
    destination,
    image_repairs=repairs,
    bad_images=bad_images,
    has_corner_boxes=has_corner_boxes,
    has_fractions=has_fractions,
    **read_options,
  )
  result: dict[str, Any] = {
    'file': '',
    'kept': outcome.kept,
    'changes': [change._asdict() for change in outcome.changes],
    'left': error_codes,
  }
  if destination is not None and not outcome.is_empty:
    left, names = find_errors(destination)
    # The repair could not leave out all images that cannot be used.
    errors = {*left} | {
      findings.split_code(bad_images[name])[0]
      for name in names
      if name in bad_images
    }
    # A copy with fewer images may no longer show that its boxes are corners.
    if has_corner_boxes and all(c.code != 'A03' for c in outcome.changes):
      errors.add('A03')
    result |= {'file': str(destination), 'left': sorted(errors)}
  return result


def _bad_images(
  entries: list[dict[str, Any]],
  folder: pathlib.Path,
  config: ml_collections.ConfigDict,
  num_workers: int | None,
) -> dict[str, str]:
  """Decodes the images of repaired entries.

  Args:
    entries: Entries of the list of images.
    folder: The folder of the images.
    config: The recipe to train with.
    num_workers: Number of processes that decode images.

  Returns:
    {file_name: reason} of the images that cannot be used. A reason begins with
    a code.
  """
  entries = [
    entry
    for entry in entries
    if isinstance(entry.get('file_name'), str)
    and all(
      type(entry.get(side)) in (int, float) for side in ('height', 'width')
    )
  ]
  facts = decoding.look_at_images(
    [ImageFile(os.path.join(folder, e['file_name'])) for e in entries],
    [(e['height'], e['width']) for e in entries],
    num_workers=num_workers,
    pixel_range=pixel_range_of(config),
    apply_exif=config.data.apply_exif,
  )
  return {
    entry['file_name']: fact.problem
    for entry, fact in zip(entries, facts, strict=True)
    if fact.problem
  }
