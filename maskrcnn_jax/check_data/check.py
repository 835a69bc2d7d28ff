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
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.average_precision import check_truth


class _Other(NamedTuple):
  """Another split of the same data, which must have other images."""

  path: pathlib.Path  # its COCO JSON
  index: coco_index.CocoIndex


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
  """Checks a data set.

  Args:
    source: The data set.
    config: The recipe to train with. `None`: the default one.
    option: The beginning of the options that give the data set, for messages.
      See `Source.check_is_there`.
    against: COCO JSON of another split of the same data.
    boxes_only: Whether objects without masks are accepted. They always are if
      the recipe's model has no masks.
    fix: The file to write a repaired copy of the annotations to. `None`: none
      is written.
    num_workers: Number of processes that decode. `None`: one a core.
    sheet: The file to write the contact sheet to, a PNG. `None`: none is
      written.

  Returns:
    The report as plain dicts and lists. `is_ok` tells whether there are no
    errors.

  Raises:
    InputError: If a file cannot be written, or records are to be repaired.
  """
  if fix is not None and not isinstance(source, CocoFiles):
    raise InputError(
      f'--fix={fix} repairs a COCO JSON, but {source} is a tfds set; repair'
      ' the JSON that it was made from, and build it anew with python -m'
      ' maskrcnn_jax.build_tfds.'
    )
  config = default_config() if config is None else config
  if config.train.fine_tune:
    config = fine_tuning.adopt_defaults(config)
  boxes_only |= not heads_of(config).masks
  options = {
    'require_masks': not boxes_only,
    'width_offset': geometry_of(config).width_offset,
  }
  report = findings.Report(stop=False, keep=KEEP)
  result = {
    'annotations': str(source),
    'images': source.images if isinstance(source, CocoFiles) else '',
    'is_ok': False,
  }
  try:
    source.check_is_there(option)
    data_set = read_set(source, report=report, **options)
  except InputError as error:
    report.error_of('', '', error)
    return result | findings_of(report)
  index = data_set.coco_index
  # Findings of another file must not count: --against is not read yet.
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
      ' its checkpoint; here they are the defaults, unless given.'
    )
  other = _read_other(against, report, options)
  if other is not None:
    _compare(index, str(source), other, report)
  bad_images = _check_images(
    data_set,
    report,
    num_workers=num_workers,
    pixel_range=pixel_range_of(config),
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
    result['classes_against'] = survey.class_table(other.index)
  result |= findings_of(report)
  if sheet is not None:
    contact_sheet.write_sheet(
      data_set,
      report,
      bad_images,
      ious,
      sheet,
      pixel_range=pixel_range_of(config),
    )
    result['contact_sheet'] = str(sheet)
  if fix is not None:
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
) -> _Other | None:
  """Reads another split; `None` if there is none, or it cannot be read."""
  if against is None:
    return None
  try:
    coco.check_is_there(against, '--against')
    return _Other(against, coco.read_coco(against, report=report, **options))
  except InputError as error:
    report.error_of('', '', error)
    return None


def _compare(
  index: coco_index.CocoIndex,
  name: str,
  other: _Other,
  report: findings.Report,
) -> None:
  """Reports classes that differ between two splits, and images in both.

  Args:
    index: The data set.
    name: Its name in messages.
    other: The other split.
    report: Gets the findings.
  """
  difference = coco.class_table_difference(
    other.index.categories, index.categories, there_name=name
  )
  if difference:
    report.error(
      'A21',
      other.path,
      '',
      f'it has other classes: {"; ".join(difference[:10])}.',
      count=len(difference),
    )
  shared = coco.shared_images(index, other.index)
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
) -> dict[int, str]:
  """Decodes all images and reports their faults.

  Returns:
    {row: why the image cannot be used, code first}.
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
  first_of_digest = {}
  for row, file, facts in zip(
    rows,
    files,
    decoding.look_at_images(
      files, sizes, num_workers=num_workers, pixel_range=pixel_range
    ),
    strict=True,
  ):
    where = f'image {index.image_ids[row]!r}'
    if facts.problem:
      bad[row] = facts.problem
      code, reason = findings.split_code(facts.problem)
      report.error(code, '', where, reason, row=row)
      continue
    for note in facts.notes:
      code, reason = findings.split_code(note)
      report.warn(code, '', where, reason, row=row)
    first = first_of_digest.setdefault(facts.digest, row)
    if first != row and index.file_names[first] != index.file_names[row]:
      report.warn(
        'A20',
        '',
        where,
        f'{file.path} has the same bytes as {index.file_names[first]}.',
        row=row,
      )
  return bad


def _check_objects(
  index: coco_index.CocoIndex,
  name: str | pathlib.Path,
  config: ml_collections.ConfigDict,
  report: findings.Report,
) -> None:
  """Reports what would stop a training as soon as all objects are read.

  Args:
    index: The data set.
    name: Its name in messages.
    config: The recipe.
    report: Gets the findings.
  """
  try:
    image_sets.filter_images(index, keep_empty=config.data.keep_empty)
    image_sets.find_limits(index, max_objects=config.data.max_objects)
  except InputError as error:
    report.error_of(name, '', error)
  over = image_sets.count_objects_over(index, config.data.max_objects)
  if over and 'A24' not in report.error_codes:
    report.warn(
      'A24',
      name,
      '',
      f'{over} objects are beyond the {config.data.max_objects} slots of'
      ' their image (config.data.max_objects) and would not be trained on.',
      count=over,
    )


def _resized_sizes(
  index: coco_index.CocoIndex, config: ml_collections.ConfigDict
) -> Int[np.ndarray, 'n 2']:
  """Returns the (height, width) that a recipe resizes each image to."""
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
  """Says why no AP can be computed on a set that can be trained on.

  A training leaves a few broken objects out and says so. An AP without them
  would be another figure than the AP of the data set.
  """
  # The whole content takes much memory: it is read only if the findings show
  # that an AP may be impossible.
  if report.error_codes or not {'A01', 'A05', 'A06'} & set(report.counts):
    return ''
  content = source.read_content()
  try:
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
  other: _Other | None,
) -> set[str]:
  """Checks the repaired copy as the file itself was checked.

  Args:
    fix: The copy.
    bad_images: The result of `_check_images`.
    index: The file that was repaired.
    config: The recipe.
    options: Options of `coco.read_coco`.
    other: See `_compare`.

  Returns:
    The codes of the errors that the copy has.
  """
  left = findings.Report(stop=False, keep=KEEP)
  copy = coco.read_coco(fix, report=left, **options)
  _check_objects(copy, fix, config, left)
  if other is not None:
    _compare(copy, str(fix), other, left)
  # Images that cannot be used and could not be left out.
  names = set(copy.file_names)
  return {*left.error_codes} | {
    findings.split_code(why)[0]
    for row, why in bad_images.items()
    if index.file_names[row] in names
  }
