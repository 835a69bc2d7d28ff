"""The report of `check_data` as plain values for JSON, and as text."""

from typing import Any

from maskrcnn_jax.data import findings
from maskrcnn_jax.data.repair.write_copy import Change
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
  if 'fix_preview' in result:
    lines.append(_format_preview(result['fix_preview']))
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
    fix: The report's entry about the copy, as `fixing.fix` returns it.
  """
  changes = [Change(**change) for change in fix['changes']]
  kept = _format_kept(fix['kept'])
  if not fix['file']:
    return [
      f'No repaired copy was written, because it would keep {kept}. These are'
      ' the changes that it would have:',
      *(f'  {change}' for change in changes),
      'Correct the data set by hand, or at its source.',
    ]
  return [
    f'The repaired copy {fix["file"]} keeps {kept}, and has'
    f' {_format_count(len(changes))}:',
    *(f'  {change}' for change in changes),
    f'Errors left in the copy: {", ".join(fix["left"]) or "none"}.',
  ]


def _format_preview(preview: dict[str, Any]) -> str:
  """Returns the line of the report that says how much `--fix` would keep.

  Args:
    preview: The report's entry: `num_changes` and `kept`.
  """
  kept = _format_kept(preview['kept'])
  if any(total and not left for left, total in preview['kept'].values()):
    return (
      f'--fix=OUT.json is no remedy: a copy would keep {kept}. Correct the'
      ' data set by hand, or at its source.'
    )
  if not preview['num_changes']:
    return '--fix=OUT.json cannot repair anything here.'
  return (
    '--fix=OUT.json would write a copy with'
    f' {_format_count(preview["num_changes"])}, which keeps {kept}.'
  )


def _format_count(num_changes: int) -> str:
  """Returns text such as '1 change' or '2 changes'."""
  return f'{num_changes:,} change{"" if num_changes == 1 else "s"}'


def _format_kept(kept: dict[str, tuple[int, int]]) -> str:
  """Returns text such as '5 of 6 images and 17 of 18 annotations'.

  Args:
    kept: {name of a list: (number of elements left, number before)}.
  """
  return ' and '.join(
    f'{left:,} of {total:,} {name}' for name, (left, total) in kept.items()
  )
