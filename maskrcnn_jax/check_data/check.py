"""The checks of a data set: annotations, images, and a recipe's limits."""

import pathlib
from typing import Any, NamedTuple

from jaxtyping import Int
import ml_collections
import numpy as np

from maskrcnn_jax.check_data import contact_sheet, decoding
from maskrcnn_jax.check_data.figures import best_anchor_ious, figures_of
from maskrcnn_jax.check_data.report import KEEP, findings_of
from maskrcnn_jax.config import (
  canvas_arguments,
  default_config,
  fine_tuning,
  geometry_of,
  heads_of,
  pixel_range_of,
)
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.data import (
  canvases,
  coco,
  coco_index,
  findings,
  image_sets,
  survey,
)
from maskrcnn_jax.data.repair import repair
from maskrcnn_jax.data.source import (
  CocoFiles,
  DataSet,
  Source,
  check_images_exist,
  image_file,
  read_set,
  set_name,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.coco_input import check_truth


class _OtherSplit(NamedTuple):
  """Another split of the same data, which must have other images."""

  path: pathlib.Path  # its COCO JSON
  coco_index: coco_index.CocoIndex


def check_data(
  source: Source,
  *,
  config: ml_collections.ConfigDict | None = None,
  option: str = '--',
  against: pathlib.Path | None = None,
  boxes_only: bool = False,
  fix: pathlib.Path | None = None,
  num_workers: int | None = None,
  sheet: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Checks the annotations and the images of a data set and reports the faults.

  Args:
    source: The data set.
    config: The recipe to train with. `None` means the default recipe.
    option: Prefix of the option names in messages, such as
      '--config.data.eval.'; '--' if --images and --annotations give the data
      set.
    against: COCO JSON of another split of the same data. It must have the same
      classes and other images. `None` if there is no other split.
    boxes_only: Whether objects without masks are accepted. They always are if
      the recipe's model has no masks.
    fix: The file to write a repaired copy of the annotations to. With `None`
      no copy is written.
    num_workers: Number of processes that decode images. `None` means one for
      each core.
    sheet: The PNG file to write the contact sheet to. With `None` no sheet is
      written.

  Returns:
    The report as plain dicts and lists. Its `is_ok` tells whether the data set
    has no errors.

  Raises:
    InputError: If a file cannot be written, if `fix` is given for a data set
      that is not in a COCO JSON, or if keys of a fine-tuning's completed recipe
      contradict each other.
  """
  if fix is not None and not isinstance(source, CocoFiles):
    raise InputError(
      f'--fix={fix} repairs a COCO JSON, but {source} is not one; correct its'
      ' own files. For a tfds set, repair the JSON that it was made from, and'
      ' build the set anew with python -m maskrcnn_jax.build_tfds. Of several'
      ' sets, repair each by itself with --images=DIR'
      ' --annotations=FILE.json.'
    )
  config = default_config() if config is None else config
  if config.train.fine_tune:
    config = fine_tuning.adopt_defaults(config)
  boxes_only |= not heads_of(config).masks
  options: dict[str, Any] = {
    'require_masks': not boxes_only,
    'width_offset': geometry_of(config).width_offset,
  }
  report = findings.Report(stop=False, keep=KEEP)
  result: dict[str, Any] = {
    'annotations': str(source),
    # A tfds set has no folder of images.
    'images': getattr(source, 'images', ''),
    'is_ok': False,
  }
  try:
    source.check_is_there(option)
    data_set = read_set(source, report=report, **options)
  except InputError as error:
    report.error_from_exception('', '', error)
    return result | findings_of(report)
  index = data_set.coco_index
  # This must come before --against is read: an A03 of the other file says
  # nothing about the boxes of this one.
  has_corner_boxes = 'A03' in report.error_codes
  if config.train.fine_tune:
    config, _ = fine_tuning.fit(
      config,
      num_images=len(index.image_ids),
      most_objects=image_sets.most_objects(index),
    )
    check_config(config)
    result['fine_tuning'] = (
      'A fine-tuning takes its image sizes, anchors and numbers of boxes from'
      ' its checkpoint; here they have their default values, unless you gave'
      ' others.'
    )
  other = _read_other(against, report, options)
  if other is not None:
    _compare(index, str(source), other, report)
  bad_images = _check_images(
    data_set,
    report,
    num_workers=num_workers,
    pixel_range=pixel_range_of(config),
    apply_exif=config.data.apply_exif,
  )
  _check_objects(index, str(source), config, report)
  image_sizes = _resized_sizes(index, config)
  try:
    canvases.plan_canvases(
      index.heights, index.widths, **canvas_arguments(config)
    )
  except InputError as error:
    result['canvas'] = str(error)
  problem = _evaluation_problem(source, report, boxes_only)
  if problem:
    result['evaluation'] = problem
  ious = best_anchor_ious(index, image_sizes, config)
  result |= figures_of(index, image_sizes, ious, config)
  if other is not None:
    result['classes_against'] = survey.class_table(other.coco_index)
  result |= findings_of(report)
  if sheet is not None:
    contact_sheet.write_sheet(
      data_set,
      report,
      bad_images,
      ious,
      sheet,
      pixel_range=pixel_range_of(config),
      apply_exif=config.data.apply_exif,
    )
    result['contact_sheet'] = str(sheet)
  if fix is not None:
    assert isinstance(source, CocoFiles)  # It was checked above.
    changes = repair(
      pathlib.Path(source.annotations),
      fix,
      bad_images={index.file_names[r]: why for r, why in bad_images.items()},
      has_corner_boxes=has_corner_boxes,
      **options,
    )
    left = _errors_left(fix, bad_images, index, config, options, other)
    # A copy with fewer images may no longer show that its boxes are corners.
    if has_corner_boxes and all(change.code != 'A03' for change in changes):
      left.add('A03')
    result['fix'] = {
      'file': str(fix),
      'changes': [change._asdict() for change in changes],
      'left': sorted(left),
    }
  return result


def _read_other(
  against: pathlib.Path | None,
  report: findings.Report,
  options: dict[str, Any],
) -> _OtherSplit | None:
  """Reads and checks the annotations of another split of the data set.

  Args:
    against: The COCO JSON of the other split. `None` if there is no other
      split.
    report: Gets the findings.
    options: Options of `coco.read_coco`.

  Returns:
    The other split; `None` if there is none, or if its file cannot be read.
  """
  if against is None:
    return None
  try:
    coco.check_is_there(against, '--against')
    index = coco.read_coco(against, report=report, **options)
  except InputError as error:
    report.error_from_exception('', '', error)
    return None
  return _OtherSplit(against, index)


def _compare(
  index: coco_index.CocoIndex,
  name: str,
  other: _OtherSplit,
  report: findings.Report,
) -> None:
  """Reports classes that differ between two splits, and images in both.

  Args:
    index: The annotations of the data set.
    name: The name of the data set in messages.
    other: The other split.
    report: Gets the findings.
  """
  difference = coco.class_table_difference(
    other.coco_index.categories, index.categories, there_name=name
  )
  if difference:
    report.error(
      'A21',
      other.path,
      '',
      f'it has other classes than {name}:'
      f' {coco.format_difference(difference)}.',
      count=len(difference),
    )
  shared = coco.shared_images(index, other.coco_index)
  if shared:
    shown = ', '.join(shared[:5]) + (', ...' if len(shared) > 5 else '')
    report.error(
      'A20',
      other.path,
      '',
      f'{len(shared)} of its images are in {name} too: {shown}.',
      count=len(shared),
    )


def _check_images(
  data_set: DataSet,
  report: findings.Report,
  *,
  num_workers: int | None,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
) -> dict[int, str]:
  """Decodes all images and reports their faults.

  Args:
    data_set: The data set.
    report: Gets the findings.
    num_workers: Number of processes that decode. `None` means one for each
      core.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      is a fault.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Returns:
    For each image that cannot be used, its row in the index and the reason,
    which begins with a code.
  """
  index = data_set.coco_index
  bad = {}
  for row in check_images_exist(data_set, report=report):
    name = index.file_names[row]
    bad[row] = (
      f'I15: {name!r} leads out of the folder.'
      if coco.is_outside(name)
      else f'I01: there is no {name}.'
    )
  rows = [row for row in range(len(index.file_names)) if row not in bad]
  files = [image_file(data_set.images, r, index.file_names[r]) for r in rows]
  sizes = [(int(index.heights[row]), int(index.widths[row])) for row in rows]
  first_of_digest: dict[bytes, str] = {}  # the path of the first image
  for row, file, facts in zip(
    rows,
    files,
    decoding.look_at_images(
      files,
      sizes,
      num_workers=num_workers,
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    ),
    strict=True,
  ):
    where = f'image {index.image_ids[row]!r}'
    place = set_name(data_set.images, row)
    if facts.problem:
      bad[row] = facts.problem
      code, reason = findings.split_code(facts.problem)
      report.error(code, place, where, reason, row=row)
      continue
    for note in facts.notes:
      code, reason = findings.split_code(note)
      report.warn(code, place, where, reason, row=row)
    first = first_of_digest.setdefault(facts.digest, file.path)
    if first != file.path:
      report.warn(
        'A20',
        place,
        where,
        f'{file.path} has the same bytes as {first}.',
        row=row,
      )
  return bad


def _check_objects(
  index: coco_index.CocoIndex,
  name: str | pathlib.Path,
  config: ml_collections.ConfigDict,
  report: findings.Report,
) -> None:
  """Reports faults of the data set as a whole that would stop a training.

  These are a data set without an object to train on, and images with more
  objects than the recipe has slots for.

  Args:
    index: The annotations of the data set.
    name: The name of the data set in messages.
    config: The recipe to train with.
    report: Gets the findings.
  """
  try:
    image_sets.filter_images(index, keep_empty=config.data.keep_empty)
    image_sets.find_limits(index, max_objects=config.data.max_objects)
  except InputError as error:
    # If objects were left out because of errors, it follows from these that
    # nothing is left.
    if findings.split_code(str(error))[0] != 'A23' or not report.error_codes:
      report.error_from_exception(name, '', error)
  over = image_sets.count_objects_over(index, config.data.max_objects)
  if over and 'A24' not in report.error_codes:
    report.warn(
      'A24',
      name,
      '',
      f'{over} objects are beyond the {config.data.max_objects} slots of'
      ' their image and would not be trained on; set config.data.max_objects'
      ' higher to train on them.',
      count=over,
    )


def _resized_sizes(
  index: coco_index.CocoIndex, config: ml_collections.ConfigDict
) -> Int[np.ndarray, 'n 2']:
  """Returns (height, width) of each image after resizing, in pixels.

  These are the sizes before padding, by the limits of the recipe for the
  shorter and the longer side.

  Args:
    index: The annotations of the data set, which give the size of each image.
    config: The recipe to train with.
  """
  canvas = canvas_arguments(config)
  return np.array(
    [
      canvases.resized_size(
        int(height),
        int(width),
        rule=canvas['resize_rule'],
        short_side=canvas['short_side'],
        long_side=canvas['long_side'],
      )
      for height, width in zip(index.heights, index.widths, strict=True)
    ],
    np.int32,
  ).reshape(-1, 2)


def _evaluation_problem(
  source: Source, report: findings.Report, boxes_only: bool
) -> str:
  """Returns the reason why no AP can be computed on a set without errors.

  A training leaves a few broken objects out with a warning. An evaluation does
  not, because an AP without these objects would not be the AP of the data set.

  Args:
    source: The data set.
    report: All findings about the data set so far.
    boxes_only: Whether only the AP of boxes is wanted.

  Returns:
    The message of the error; '' if an AP can be computed, or if the data set
    has errors and cannot be trained on either.
  """
  # The whole content takes much memory: it is read only if the findings show
  # that an AP may be impossible.
  if report.error_codes or not {'A01', 'A05', 'A06'} & set(report.counts):
    return ''
  try:
    content = source.read_content()
    for kind in ('bbox',) if boxes_only else ('bbox', 'segm'):
      check_truth(content, kind=kind)
  except InputError as error:
    return str(error)
  return ''


def _errors_left(
  fix: pathlib.Path,
  bad_images: dict[int, str],
  index: coco_index.CocoIndex,
  config: ml_collections.ConfigDict,
  options: dict[str, Any],
  other: _OtherSplit | None,
) -> set[str]:
  """Returns the codes of the errors that the repaired copy still has.

  The annotations of the copy are read and checked again. Its images are not
  decoded again: an image of the copy has the error of the original image with
  the same file name.

  Args:
    fix: The repaired copy, a COCO JSON.
    bad_images: The images of the original file that cannot be used: row in
      `index`, and the reason, which begins with a code.
    index: The annotations of the original file, which give the file name of
      each row.
    config: The recipe to train with.
    options: Options of `coco.read_coco`.
    other: Another split, which must have the same classes and other images.
      `None` if there is no other split.
  """
  left = findings.Report(stop=False, keep=KEEP)
  copy = coco.read_coco(fix, report=left, **options)
  _check_objects(copy, fix, config, left)
  if other is not None:
    _compare(copy, str(fix), other, left)
  # The repair could not leave out all images that cannot be used.
  names = set(copy.file_names)
  return {*left.error_codes} | {
    findings.split_code(why)[0]
    for row, why in bad_images.items()
    if index.file_names[row] in names
  }
