"""The report of `check_data` as plain values for JSON, and as text."""

from typing import Any

from maskrcnn_jax.data import findings
from maskrcnn_jax.data.repair import Change
from maskrcnn_jax.errors import command_for, printable

# Largest number of findings of one code that the JSON lists.
KEEP = 1000

# Largest number of findings of one code that are printed.
SHOW = 3


def findings_of(report: findings.Report) -> dict[str, Any]:
  """Returns the findings of a report as plain dicts and lists.

  Returns:
    `is_ok` tells whether there are no errors. `findings` has an entry for each
    code, first the codes with errors.
  """
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
          for f in report.kept
          if f.code == code
        ],
      }
      for code in sorted(report.counts, key=lambda c: (c not in errors, c))
    ],
  }


def format_report(result: dict[str, Any]) -> str:
  """Returns the result of `check_data` as text for people."""
  lines = [result['annotations']]
  if result['images']:
    lines[0] += f', images in {result["images"]}'
  if 'counts' in result:
    lines += _format_figures(result)
  lines.append('')
  for finding in result['findings']:
    lines.append(
      f'{finding["code"]}  {finding["level"]:<7} {finding["count"]:>9,}  '
      f'{finding["meaning"]}'
    )
    for example in finding['examples'][:SHOW]:
      places = [example['id']]
      if example['file'] not in ('', result['annotations']):
        places.insert(0, example['file'])
      where = ''.join(f'{place}: ' for place in places if place)
      lines.append(f'       {where}{example["reason"]}')
    more = len(finding['examples']) - SHOW
    if more > 0:
      lines.append(f'       and {more} more, which are in the JSON')
  if 'fine_tuning' in result:
    lines.append(result['fine_tuning'])
  if 'canvas' in result:
    lines.append(f'With this recipe: {result["canvas"]}')
  if 'evaluation' in result:
    lines.append(
      'You can train on this data set, but not evaluate on it:'
      f' {result["evaluation"]}'
    )
  if 'fix' in result:
    lines += _format_fix(result['fix'])
  codes = [f['code'] for f in result['findings'] if f['level'] == 'error']
  lines.append(f'Errors: {", ".join(codes)}.' if codes else 'No errors.')
  if codes:
    lines.append(f'For more about {codes[0]}: {command_for(codes[0])}')
  return '\n'.join(map(printable, lines))


def _format_figures(result: dict[str, Any]) -> list[str]:
  """Returns the lines of the report about classes, sizes and anchors.

  Args:
    result: The report of `check_data`.
  """
  counts = result['counts']
  lines = [
    f'{counts["images"]:,} images ({counts["images_without_objects"]:,}'
    f' without objects), {counts["objects"]:,} objects,'
    f' {counts["crowd_regions"]:,} crowd regions, {counts["classes"]}'
    ' classes',
    *(f'{n:,} {reason}' for reason, n in counts['left_out'].items()),
  ]
  if result['image_sizes']:
    lines.append(
      'image sizes (height x width): '
      + ', '.join(
        f'{name} {size[0]}x{size[1]}'
        for name, size in result['image_sizes'].items()
      )
    )
  width = max([5, *(len(str(c['name'])) for c in result['classes'])])
  width = min(width, 30)
  lines += ['', f'{"class":<{width}} {"id":>6} {"objects":>9} {"images":>8}']
  for row in result['classes'][:100]:
    lines.append(
      f'{str(row["name"])[:width]:<{width}} {row["id"]!s:>6}'
      f' {row["objects"]:>9,} {row["images"]:>8,}'
    )
  if len(result['classes']) > 100:
    more = len(result['classes']) - 100
    lines.append(f'and {more} more classes, which are in the JSON')
  for title, key in (
    ('images by their number of objects', 'objects_per_image'),
    (
      'objects by their size after resizing (square root of the area, pixels)',
      'object_sizes',
    ),
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
      f' {anchors["share_below_0.5"]:.1%} of the objects have no anchor with an'
      f' IoU of at least 0.5, {anchors["share_below_0.7"]:.1%} have none with'
      ' at least 0.7',
    ]
  return lines


def _bars(histogram: dict[str, int]) -> list[str]:
  """Returns a line for each bin: its name, its count, and a bar of # signs.

  Args:
    histogram: The count of each bin by its name.
  """
  most = max([1, *histogram.values()])
  return [
    f'{name:>14} {count:>9,} {"#" * round(40 * count / most)}'
    for name, count in histogram.items()
  ]


def _format_fix(fix: dict[str, Any]) -> list[str]:
  """Returns the lines of the report about the repaired copy.

  Args:
    fix: The report's entry about the copy: `file`, `changes`, and `left`, the
      codes of the errors that are left.
  """
  changes = [Change(**change) for change in fix['changes']]
  return [
    f'The repaired copy {fix["file"]} has {len(changes)} changes:',
    *(f'  {change}' for change in changes),
    f'Errors left in the copy: {", ".join(fix["left"]) or "none"}.',
  ]
