"""Writes the figures of a compiled step as lines of text and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_jax.plan.costs import Cost
from maskrcnn_jax.runtime.gpu_peaks import Peaks

# Letters of the shapes of an operation that a line shows.
_SHAPES_SHOWN = 120
# Names of the number formats of FLOPs, as tables show them.
FORMATS = {
  'bf16': 'bf16',
  'f16': 'fp16',
  'tf32': 'tf32',
  'f32': 'float32, highest precision',
  'f64': 'float64',
  'vector': 'outside of products',
}


def exchange_lines(figures: Mapping[str, Any]) -> list[str]:
  """Returns lines about the data that devices exchange.

  Args:
    figures: The figures of `summary.summarize`, with `trainable_parameters` and
      `trainable_bytes`.
  """
  reduced = figures['collectives'].get('all-reduce', [])
  # Beside gradients, a step reduces only a few numbers, such as losses.
  large = [size for size in reduced if size >= 1024]
  lines = [
    f'all-reduces: {len(reduced)}, of {sum(reduced):,} bytes, of which '
    f'{len(large)} large ones have {sum(large):,}',
    f'trainable parameters: {figures["trainable_parameters"]:,}, of '
    f'{figures["trainable_bytes"]:,} bytes',
  ]
  for name, sizes in figures['collectives'].items():
    if name != 'all-reduce':
      lines.append(f'{name}: {len(sizes)}, of {sum(sizes):,} bytes')
  for key, title in (
    ('in_loops', 'collectives in loops or branches'),
    ('transfers', 'transfers from and to the host'),
    ('callbacks', 'callbacks of the host'),
  ):
    lines.append(f'{title}: {figures[key] or "none"}')
  return lines


def count_lines(figures: Mapping[str, Any]) -> list[str]:
  """Returns lines about kernels, loops, sorts and scatters.

  Args:
    figures: The figures of `summary.summarize`.
  """
  fixed = [count for count in figures['loops'] if count is not None]
  lines = [
    f'kernels launched: {figures["launches"]:,}, with one iteration of each '
    'loop whose number of iterations depends on data',
    f'while loops: {len(figures["loops"])}, of which '
    f'{figures["data_dependent_loops"]} have a number of iterations that '
    f'depends on data; iterations of the others: '
    f'{", ".join(map(str, fixed)) or "none"}',
    f'sorts: {len(figures["sorts"])}',
  ]
  lines += [
    f'  {sort["rows"]} x {sort["length"]:,}{_times(sort)}: {sort["source"]}'
    for sort in figures['sorts']
  ]
  lines.append(f'scatters: {len(figures["scatters"])}')
  lines += [
    f'  {scatter["values"]:,} values into {scatter["into"]}{_times(scatter)}: '
    f'{scatter["source"]}'
    for scatter in figures['scatters']
  ]
  lines.append(
    'FLOPs: '
    + (
      ', '.join(
        f'{count / 1e9:,.1f} G {FORMATS[key]}'
        for key, count in figures['flops'].items()
      )
      or 'none'
    )
  )
  lines.append(f'bytes read and written: {figures["bytes"] / 1e9:,.2f} GB')
  lines += [
    f'  {kind}: {counts["kernels"]:,} kernels, {counts["bytes"] / 1e9:,.2f} '
    f'GB, {counts["flops"] / 1e9:,.1f} GFLOP'
    for kind, counts in sorted(
      figures['kinds'].items(), key=lambda item: -item[1]['bytes']
    )
  ]
  if 'custom kernel' in figures['kinds']:
    lines.append(
      'Of a custom kernel, such as those in Pallas, only the arguments and '
      'results are counted: its FLOPs and loops are not known.'
    )
  return lines


def _times(counted: Mapping[str, Any]) -> str:
  """Returns the number of runs of a sort or scatter, unless it is 1."""
  return f', {counted["times"]} times' if counted['times'] != 1 else ''


def cost_lines(costs: Sequence[Cost], peaks: Peaks) -> list[str]:
  """Returns a line for each of some operations.

  Args:
    costs: The operations.
    peaks: Speeds of the GPU whose times are shown.
  """
  lines = []
  for cost in costs:
    runs = f' in {cost.times} runs' if cost.times != 1 else ''
    shapes = cost.shapes
    if len(shapes) > _SHAPES_SHOWN:
      shapes = shapes[: _SHAPES_SHOWN - 3] + '...'
    lines.append(
      f'{1e3 * cost.seconds(peaks):8.3f} ms {cost.all_bytes / 1e6:9,.1f} MB '
      f'{cost.all_flops / 1e9:8,.1f} GFLOP{runs}  {cost.kind} {cost.name}: '
      f'{cost.source or "made by the compiler"}; {shapes}'
    )
  return lines


def rows_of(figures: Mapping[str, Any]) -> dict[str, int | float]:
  """Returns {property of a compiled step: its number}, for a table.

  Args:
    figures: The figures of `summary.summarize`, with `device_mib`.
  """
  sorts, scatters = figures['sorts'], figures['scatters']
  rows: dict[str, int | float] = {
    'kernels launched': figures['launches'],
    'while loops': len(figures['loops']),
    'of these, number of iterations depends on data': figures[
      'data_dependent_loops'
    ],
    'sorts': sum(sort['times'] for sort in sorts),
    'elements of the longest sort': max(
      (sort['length'] for sort in sorts), default=0
    ),
    'elements sorted, million': sum(
      sort['length'] * sort['rows'] * sort['times'] for sort in sorts
    )
    / 1e6,
    'scatters': sum(scatter['times'] for scatter in scatters),
    'values scattered, million': sum(
      scatter['values'] * scatter['times'] for scatter in scatters
    )
    / 1e6,
  }
  for key, title in FORMATS.items():
    if key in figures['flops']:
      rows[f'GFLOP, {title}'] = figures['flops'][key] / 1e9
  rows['GB read and written'] = figures['bytes'] / 1e9
  for kind, counts in sorted(figures['kinds'].items()):
    rows[f'GB, {kind}'] = counts['bytes'] / 1e9
  rows['bytes exchanged between devices'] = sum(
    sum(sizes) for sizes in figures['collectives'].values()
  )
  rows['memory of a device, MiB'] = figures['device_mib']
  for name, milliseconds in figures['roofline_ms'].items():
    rows[f'roofline {name}, ms'] = milliseconds
  return rows


def comparison_table(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> list[str]:
  """Returns the lines of a Markdown table that compares two compiled steps.

  Args:
    before: The figures of `inspect_step.py --json`.
    after: The same of another version of the step.
  """
  columns = [rows_of(before), rows_of(after)]
  names = list(dict.fromkeys([*columns[0], *columns[1]]))
  return [
    '| property of the compiled step | before | after |',
    '|---|---|---|',
    *(
      f'| {name} | {_number(columns[0].get(name, 0))} | '
      f'{_number(columns[1].get(name, 0))} |'
      for name in names
    ),
  ]


def _number(value: int | float) -> str:
  """Returns a number for a table, with three digits if it is small."""
  if float(value).is_integer():
    return f'{int(value):,}'
  return f'{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2}f}'
