"""Finds out what is wrong with a data set before a training does.

  python -m maskrcnn_jax.check_data --images=DIR --annotations=FILE.json
      [--against=VAL.json] [--config=configs/r50_fpn.py] [--fix=OUT.json]

Decodes every image, reads every annotation, and prints what is wrong, each
under a code that keeps its meaning; what classes and sizes there are; and how
well the anchors of the recipe cover the objects. A contact sheet shows pictures
with their masks. Training runs the same checks, but for the decoding, and stops
at the first error.

Exit status: 0 no errors, 1 failed while running, 2 errors or wrong input.
"""

# Workers import this module anew, so that all that is slow is imported late.
import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import sys

from maskrcnn_jax.errors import InputError

# Findings of a code that are kept for the JSON, and that are printed.
KEEP, SHOW = 1000, 3

# Pictures of each group on the contact sheet.
NUM_EXAMPLES = 12

# With fewer images, starting processes takes longer than decoding.
MIN_PARALLEL = 24

# Worst first, for the contact sheet.
_DRAWN_CODES = ('A11', 'A02', 'A01', 'A10', 'A05', 'A06', 'A20', 'I13', 'I07')


def check_data(
    images_dir: pathlib.Path,
    annotations: pathlib.Path,
    *,
    config=None,
    against: pathlib.Path | None = None,
    boxes_only: bool = False,
    fix: pathlib.Path | None = None,
    num_workers: int | None = None,
    sheet: pathlib.Path | None = None,
) -> dict:
  """Checks a data set.

  Args:
    images_dir: The folder that file names are relative to.
    annotations: COCO JSON.
    config: A recipe; None for the default one.
    against: COCO JSON of another split of the same data.
    boxes_only: Accept objects without masks, as for a recipe whose model has
      none.
    fix: Where to write a repaired copy of the annotations; None: nowhere.
    num_workers: Processes that decode; None: as many as cores.
    sheet: Where to write the contact sheet, a PNG; None: nowhere.

  Returns:
    The report as plain dicts and lists. `is_ok` tells whether there are no
    errors.
  """
  import numpy as np

  from maskrcnn_jax.config import (
    default_config,
    fine_tuning,
    geometry_of,
    pixel_range_of,
  )
  from maskrcnn_jax.config.check import check_config
  from maskrcnn_jax.data import coco, findings, image_sets, survey

  config = default_config() if config is None else config
  if config.train.fine_tune:
    config = fine_tuning.adopt_defaults(config)
  boxes_only |= config.model.output != 'masks'
  offset = geometry_of(config).width_offset
  report = findings.Report(stop=False, keep=KEEP)
  result = {
      'annotations': str(annotations), 'images': str(images_dir), 'is_ok': False
  }
  options = dict(require_masks=not boxes_only, width_offset=offset)
  try:
    coco.check_is_there(annotations, '--annotations')
    index = coco.read_coco(annotations, report=report, **options)
  except InputError as error:
    report.error_of('', '', error)
    return result | _findings(report)
  # Before another file has a say.
  has_corner_boxes = 'A03' in report.error_codes
  if config.train.fine_tune:
    config, _ = fine_tuning.fit(
        config, num_images=len(index.image_ids),
        most_objects=image_sets.most_objects(index),
    )
    check_config(config)
    result['fine_tuning'] = (
        'A fine-tuning takes its image sizes, anchors and numbers of boxes from'
        ' its checkpoint; here they are the defaults, unless given.'
    )

  other = None
  if against is not None:
    other = _read_other(against, report, options)
    _compare(index, annotations, other, against, report)
  pixel_range = pixel_range_of(config)
  bad_images = _look_at_images(
      index, images_dir, report, num_workers, pixel_range
  )

  # Only now: it imports JAX, and the workers are done.
  from maskrcnn_jax.data import canvases
  from maskrcnn_jax.detector import canvas_arguments

  _check_objects(index, annotations, config, report)
  canvas = canvas_arguments(config)
  sizes = np.array(
      [
          canvases.resized_size(
              int(height), int(width), rule=canvas['resize_rule'],
              short_side=canvas['short_side'], long_side=canvas['long_side'],
          )
          for height, width in zip(index.heights, index.widths, strict=True)
      ], np.int32,
  ).reshape(-1, 2)
  try:
    canvases.plan_canvases(index.heights, index.widths, **canvas)
  except InputError as error:
    result['canvas'] = str(error)
  problem = _evaluation_problem(annotations, report, boxes_only)
  if problem:
    result['evaluation'] = problem
  figures, ious = _figures(index, sizes, config)
  if other is not None:
    figures['classes_against'] = survey.class_table(other)
  result |= figures | _findings(report)
  if sheet is not None:
    _write_sheet(
        index, images_dir, report, bad_images, ious, sheet, pixel_range
    )
    result['contact_sheet'] = str(sheet)
  if fix is not None:
    changes = _repair(
        annotations, fix, bad_images, index, has_corner_boxes, options
    )
    result['fix'] = {
        'file': str(fix),
        'changes': [change._asdict() for change in changes],
        'left': _errors_left(
            fix, bad_images, index, config, options, against, other,
            has_corner_boxes and all(c.code != 'A03' for c in changes),
        ),
    }
  return result


def _check_objects(index, annotations, config, report):
  """Reports what training would stop at once all objects are read."""
  from maskrcnn_jax.data import image_sets

  try:
    image_sets.filter_images(index, keep_empty=config.data.keep_empty)
    image_sets.find_limits(index, max_objects=config.data.max_objects)
  except InputError as error:
    report.error_of(annotations, '', error)
  over = image_sets.count_objects_over(index, config.data.max_objects)
  if over and 'A24' not in report.error_codes:
    report.warn(
        'A24', annotations, '',
        f'{over} objects are beyond the {config.data.max_objects} slots of'
        ' their image (config.data.max_objects) and would not be trained on.',
        count=over,
    )


def _read_other(against, report, options):
  """Returns the index of another split, None if it has none."""
  from maskrcnn_jax.data import coco

  try:
    coco.check_is_there(against, '--against')
    return coco.read_coco(against, report=report, **options)
  except InputError as error:
    report.error_of('', '', error)
    return None


def _compare(index, annotations, other, against, report):
  """Reports what two splits must not have in common, or must."""
  from maskrcnn_jax.data import coco

  if other is None:
    return
  difference = coco.class_table_difference(
      other.categories, index.categories, there_name=str(annotations)
  )
  if difference:
    report.error(
        'A21', against, '',
        f'it has other classes: {"; ".join(difference[:10])}.',
        count=len(difference),
    )
  shared = coco.shared_images(index, other)
  if shared:
    shown = ', '.join(shared[:5]) + (', ...' if len(shared) > 5 else '')
    report.error(
        'A20', against, '',
        f'{len(shared)} of its images are in {annotations} too: {shown}.',
        count=len(shared),
    )


def _look_at_images(index, images_dir, report, num_workers, pixel_range):
  """Decodes all images; returns {row: why it cannot be used, code first}."""
  from maskrcnn_jax.data import coco, findings, image_sets

  bad = {}
  for row in image_sets.check_images_exist(index, images_dir, report=report):
    name = index.file_names[row]
    bad[row] = (
        f'I15: {name!r} leads out of the folder.' if coco.is_outside(name)
        else f'I01: there is no {name}.'
    )
  rows = [row for row in range(len(index.file_names)) if row not in bad]
  paths = [os.path.join(images_dir, index.file_names[row]) for row in rows]
  sizes = [(int(index.heights[row]), int(index.widths[row])) for row in rows]
  digests = {}
  for row, path, facts in zip(
      rows, paths, _decode_all(paths, sizes, num_workers, pixel_range),
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
    first = digests.setdefault(facts.digest, row)
    if first != row and index.file_names[first] != index.file_names[row]:
      report.warn(
          'A20', '', where,
          f'{path} has the same bytes as {index.file_names[first]}.', row=row,
      )
  return bad


def _evaluation_problem(annotations, report, boxes_only):
  """Says why no AP can be computed with a set that can be trained on.

  Training leaves out a few objects, and says so; an AP must not.
  """
  from maskrcnn_jax.data import coco
  from maskrcnn_jax.evaluation.average_precision import check_truth

  # The whole file in memory is much: not without a reason.
  if report.error_codes or not {'A01', 'A05', 'A06'} & set(report.counts):
    return ''
  content = coco.read_json(annotations)
  try:
    for kind in ('bbox',) if boxes_only else ('bbox', 'segm'):
      check_truth(content, kind=kind)
  except InputError as error:
    return str(error)
  return ''


def _decode_all(paths, sizes, num_workers, pixel_range):
  """Yields the facts of each image, in order, under a progress bar."""
  import tqdm

  from maskrcnn_jax.data import images

  look = functools.partial(images.look_at_image, pixel_range=pixel_range)
  num_workers = os.cpu_count() if num_workers is None else num_workers
  bar = functools.partial(
      tqdm.tqdm, total=len(paths), desc='Decoding', unit='image',
      mininterval=0.1 if sys.stderr.isatty() else 30,
  )
  if num_workers < 2 or len(paths) < MIN_PARALLEL:
    yield from bar(map(look, paths, sizes))
    return
  with concurrent.futures.ProcessPoolExecutor(
      min(num_workers, len(paths)),
      # A fork of a process with threads may hang.
      mp_context=multiprocessing.get_context('spawn'),
  ) as pool:
    try:
      yield from bar(
          pool.map(look, paths, sizes, chunksize=8)
      )
    except concurrent.futures.process.BrokenProcessPool as error:
      raise InputError(
          'A process that decodes images was killed; if that was for want of'
          ' memory, give --workers=1.'
      ) from error


def _figures(index, sizes, config):
  """Returns what there is in a set, and each object's best anchor IoU."""
  import numpy as np

  from maskrcnn_jax.config import geometry_of
  from maskrcnn_jax.data import survey
  from maskrcnn_jax.detector import anchor_arguments
  from maskrcnn_jax.ops.anchors import cell_anchors

  rows = survey.object_rows(index)
  trained = ~index.crowd
  per_image = np.bincount(rows[trained], minlength=len(sizes))
  boxes = survey.resized_boxes(index, sizes)
  shape = geometry_of(config)
  anchors = anchor_arguments(config)
  ious = survey.best_anchor_iou(
      boxes, sizes[rows],
      {
          level: cell_anchors(
              level_sizes, anchors['ratios'], rounding=anchors['rounding'],
              stride=2**level,
          )
          for level, level_sizes in anchors['sizes'].items()
      },
      padding_multiple=shape.padding_multiple,
      inside_only=shape.ignore_straddling, width_offset=shape.width_offset,
  )
  scale = np.sqrt((sizes / np.stack([index.heights, index.widths], 1)).prod(1))
  resized = np.sqrt(index.areas[trained]) * scale[rows[trained]]
  covered = ious[trained]
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
          'share_below_0.5': _share(covered < 0.5),
          'share_below_0.7': _share(covered < 0.7),
      },
  }, ious


def _spread(heights, widths):
  """The least, middle and greatest (height, width), by their pixels."""
  import numpy as np

  if not len(heights):
    return {}
  order = np.argsort(heights.astype(np.int64) * widths, kind='stable')
  return {
      name: [int(heights[i]), int(widths[i])]
      for name, i in (
          ('least', order[0]), ('median', order[len(order) // 2]),
          ('greatest', order[-1]),
      )
  }


def _share(which):
  """A share of objects, to four digits; None of none."""
  return round(float(which.mean()), 4) if len(which) else None


def _findings(report):
  """The findings as plain dicts, errors first."""
  from maskrcnn_jax.data import findings

  errors = report.error_codes
  return {
      'is_ok': not errors,
      'findings': [
          {
              'code': code,
              'level': 'error' if code in errors else 'warning',
              'meaning': findings.MEANINGS[code],
              'count': report.counts[code],
              'examples': [
                  {'file': f.file, 'id': f.where, 'reason': f.reason}
                  for f in report.kept if f.code == code
              ],
          }
          for code in sorted(report.counts, key=lambda c: (c not in errors, c))
      ],
  }


def _write_sheet(
    index, images_dir, report, bad_images, ious, path, pixel_range
):
  """Draws the contact sheet: random pictures, and the worst."""
  import numpy as np

  from maskrcnn_jax.check_data.contact_sheet import Example, draw_sheet
  from maskrcnn_jax.data import survey

  good = [r for r in range(len(index.image_ids)) if r not in bad_images]
  rng = np.random.default_rng(0)
  chosen = sorted(rng.permutation(good)[:NUM_EXAMPLES].tolist())
  random_ = [
      Example(row, f'{index.file_names[row]}: {objects} objects')
      for row in chosen
      for objects in [np.diff(index.object_starts[row : row + 2])[0]]
  ]
  drawable, worst = set(good), {}
  for found in sorted(
      (f for f in report.kept if f.code in _DRAWN_CODES),
      key=lambda f: _DRAWN_CODES.index(f.code),
  ):
    if found.row in drawable:
      named = [
          j for j in range(*index.object_starts[found.row : found.row + 2])
          if found.where == f'annotation {index.annotation_ids[j]!r}'
      ]
      worst.setdefault(found.row, Example(
          found.row, f'{found.code} {found.where}: {found.reason}',
          named[0] if named else -1,
      ))
  rows = survey.object_rows(index)
  for j in np.argsort(ious, kind='stable')[: 20 * NUM_EXAMPLES].tolist():
    if ious[j] < 0.5 and not index.crowd[j] and rows[j] in drawable:
      worst.setdefault(int(rows[j]), Example(
          int(rows[j]),
          f'{index.file_names[rows[j]]}: best anchor IoU {ious[j]:.2f}, a'
          f' {index.categories[index.classes[j] - 1].name}', j,
      ))
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(
        index, images_dir,
        {
            'Random images': random_,
            'Worst examples': list(worst.values())[:NUM_EXAMPLES],
        },
        pixel_range=pixel_range,
    ).save(path)
  except OSError as error:
    raise InputError(
        f'Cannot write {path}: {error.strerror or error}.'
    ) from error


def _repair(annotations, fix, bad_images, index, has_corner_boxes, options):
  """Writes the repaired copy and returns what it has otherwise."""
  from maskrcnn_jax.data.repair import repair

  return repair(
      annotations, fix,
      bad_images={index.file_names[r]: why for r, why in bad_images.items()},
      has_corner_boxes=has_corner_boxes, **options,
  )


def _errors_left(
    fix, bad_images, index, config, options, against, other, keeps_corners
):
  """Checks the repaired copy as the file was; returns the codes of errors."""
  from maskrcnn_jax.data import coco, findings

  left = findings.Report(stop=False, keep=KEEP)
  copy = coco.read_coco(fix, report=left, **options)
  _check_objects(copy, fix, config, left)
  _compare(copy, fix, other, against, left)
  # What of the files of images is wrong, and could not be left out.
  names = set(copy.file_names)
  codes = {
      findings.split_code(why)[0] for row, why in bad_images.items()
      if index.file_names[row] in names
  }
  # Of fewer images they may not stick out any more.
  if keeps_corners:
    codes.add('A03')
  return sorted({*left.error_codes, *codes})


def format_report(result: dict) -> str:
  """Lays a report out for people."""
  lines = [f'{result["annotations"]}, images in {result["images"]}']
  if 'counts' in result:
    lines += _format_figures(result)
  lines.append('')
  for found in result['findings']:
    lines.append(
        f'{found["code"]}  {found["level"]:<7} {found["count"]:>9,}  '
        f'{found["meaning"]}'
    )
    for example in found['examples'][:SHOW]:
      places = [example['id']]
      if example['file'] not in ('', result['annotations']):
        places.insert(0, example['file'])
      where = ''.join(f'{place}: ' for place in places if place)
      lines.append(f'       {where}{example["reason"]}')
    more = len(found['examples']) - SHOW
    if more > 0:
      lines.append(f'       and {more} more lines in the JSON')
  if 'fine_tuning' in result:
    lines.append(result['fine_tuning'])
  if 'canvas' in result:
    lines.append(f'With this recipe: {result["canvas"]}')
  if 'evaluation' in result:
    lines.append(
        f'Fit to train on, but not to evaluate with: {result["evaluation"]}'
    )
  if 'fix' in result:
    lines += _format_fix(result['fix'])
  codes = [f['code'] for f in result['findings'] if f['level'] == 'error']
  lines.append(f'Errors: {", ".join(codes)}.' if codes else 'No errors.')
  return '\n'.join(lines)


def _format_figures(result):
  """The lines on classes and sizes."""
  counts = result['counts']
  lines = [
      f'{counts["images"]:,} images ({counts["images_without_objects"]:,}'
      f' without objects), {counts["objects"]:,} objects,'
      f' {counts["crowd_regions"]:,} crowd regions, {counts["classes"]}'
      ' classes',
      *(f'{n:,} {reason}' for reason, n in counts['left_out'].items()),
  ]
  if result['image_sizes']:
    lines.append('image sizes (height x width): ' + ', '.join(
        f'{name} {size[0]}x{size[1]}'
        for name, size in result['image_sizes'].items()
    ))
  width = max([5, *(len(str(c['name'])) for c in result['classes'])])
  width = min(width, 30)
  lines += ['', f'{"class":<{width}} {"id":>6} {"objects":>9} {"images":>8}']
  for row in result['classes'][:100]:
    lines.append(
        f'{str(row["name"])[:width]:<{width}} {row["id"]!s:>6}'
        f' {row["objects"]:>9,} {row["images"]:>8,}'
    )
  if len(result['classes']) > 100:
    lines.append(f'and {len(result["classes"]) - 100} more in the JSON')
  for title, key in (
      ('objects in an image', 'objects_per_image'),
      ('object size after resizing, pixels', 'object_sizes'),
  ):
    lines += ['', title, *_bars(result[key])]
  lines.append(
      f'most objects in an image: {result["most_objects_in_an_image"]}'
  )
  anchors = result['anchors']
  if anchors['share_below_0.5'] is not None:
    lines += [
        '',
        f'anchors of {anchors["sizes"]} pixels, ratios {anchors["ratios"]}:'
        f' the best overlaps less than 0.5 (IoU) with'
        f' {anchors["share_below_0.5"]:.1%} of the objects, less than 0.7 with'
        f' {anchors["share_below_0.7"]:.1%}',
    ]
  return lines


def _bars(histogram):
  """A line for each bin."""
  most = max([1, *histogram.values()])
  return [
      f'{name:>14} {count:>9,} {"#" * round(40 * count / most)}'
      for name, count in histogram.items()
  ]


def _format_fix(fix):
  """The lines on the repaired copy."""
  from maskrcnn_jax.data.repair import Change

  changes = [Change(**change) for change in fix['changes']]
  return [
      f'{fix["file"]} has {len(changes)} changes:',
      *(f'  {change}' for change in changes),
      f'Errors left in it: {", ".join(fix["left"]) or "none"}.',
  ]


def _arguments(argv: list[str] | None):
  """Parses the command line."""
  parser = argparse.ArgumentParser(
      prog='python -m maskrcnn_jax.check_data', description=__doc__,
      formatter_class=argparse.RawTextHelpFormatter,
      allow_abbrev=False,
  )
  parser.add_argument('--images', required=True, help='folder of the images')
  parser.add_argument('--annotations', required=True, help='COCO JSON')
  parser.add_argument(
      '--against', help='COCO JSON of another split: its classes must be the\n'
      'same, and its images others',
  )
  parser.add_argument(
      '--config', help='the recipe to train with; its keys can be overridden,\n'
      '--config.data.short_side=640',
  )
  parser.add_argument(
      '--boxes_only', action='store_true',
      help='accept objects without masks, as a recipe with\n'
      '--config.model.output=boxes does',
  )
  parser.add_argument('--fix', help='file to write a repaired copy to')
  parser.add_argument(
      '--out', default='check_data',
      help='folder for report.json and contact_sheet.png\n'
      '(default: %(default)s)',
  )
  parser.add_argument('--json', help='file for the report instead')
  parser.add_argument(
      '--workers', type=int, help='processes that decode (default: cores)'
  )
  return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
  """Prints and writes the report; returns the exit status."""
  from maskrcnn_jax.config.recipe import read_recipe

  arguments, overrides = _arguments(argv)
  # File names may hold what the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  out = pathlib.Path(arguments.out)
  report = pathlib.Path(arguments.json or out / 'report.json')
  try:
    result = check_data(
        pathlib.Path(arguments.images), pathlib.Path(arguments.annotations),
        config=read_recipe(arguments.config, overrides),
        against=pathlib.Path(arguments.against) if arguments.against else None,
        boxes_only=arguments.boxes_only,
        fix=pathlib.Path(arguments.fix) if arguments.fix else None,
        num_workers=arguments.workers, sheet=out / 'contact_sheet.png',
    )
    print(format_report(result))
    try:
      report.parent.mkdir(parents=True, exist_ok=True)
      report.write_text(json.dumps(result, indent=1), encoding='utf-8')
    except OSError as error:
      raise InputError(
          f'Cannot write {report}: {error.strerror or error}.'
      ) from error
  except InputError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'The report is in {report}'
        + (f', pictures are in {result["contact_sheet"]}.'
           if 'contact_sheet' in result else '.'))
  if 'fix' in result:
    return 2 if result['fix']['left'] else 0
  return 0 if result['is_ok'] else 2


if __name__ == '__main__':
  sys.exit(main())
