"""Formats the figures of a benchmark for people."""

from typing import Any


def format_figures(figures: dict[str, Any]) -> str:
  """Formats the figures of `step_speed.benchmark_step` as a few lines.

  Args:
    figures: The figures.
  """
  size = figures['image_size']
  shown = 'x'.join(map(str, size)) if size else figures['images']
  lines = [
    f'{figures["mode"]} {shown}, batch {figures["batch_size"]}, '
    f'{figures["precision"]}, {figures["device"]}: '
    f'{figures["median_s"]:.4g} s a step, {figures["images_per_s"]:.2f} '
    'images/s (median)',
    f'  {figures["num_steps"]} steps: least {figures["least_s"]:.4g} s, '
    f'p90 {figures["p90_s"]:.4g} s, p99 {figures["p99_s"]:.4g} s, '
    f'most {figures["most_s"]:.4g} s; compiled in {figures["compile_s"]:.0f} s',
    f'  {_arithmetic(figures)}{_memory(figures)}',
    f'  {figures["kernels"]}',
  ]
  if 'share_waited' in figures:
    lines.append(
      f'  {figures["share_waited"]:.1%} of the time was spent waiting for '
      'batches'
    )
  if figures.get('skipped'):
    lines.append(
      f'  {figures["skipped"]:.0f} steps overflowed and changed no weights; '
      f'the loss scale is {figures["loss_scale"]:g}'
    )
  if 'detections' in figures:
    pasted = ', with masks pasted' if figures['pastes'] else ''
    lines.append(
      f'  {figures["detections"]:.0f} detections in the last batch{pasted}'
    )
  lines += [
    f'{cost["share"]:6.1%} {cost["ms"]:9.2f} ms {cost["operation"]}: '
    f'{cost["source"]}'
    for cost in figures['costs']
  ]
  return '\n'.join(lines)


def _arithmetic(figures: dict[str, Any]) -> str:
  """Returns a text with the FLOPs of a step on a device, and their speed.

  It ends with a semicolon, and is empty if the FLOPs are not known.
  """
  if not figures['flops']:
    return ''
  text = (
    f'{figures["flops"] / 1e9:.1f} GFLOP a step on a device, '
    f'{figures["flops_per_s"] / 1e12:.4g} TFLOP/s'
  )
  if figures['utilization']:
    text += f', {figures["utilization"]:.1%} of the peak'
  return f'{text}; '


def _memory(figures: dict[str, Any]) -> str:
  """Returns a text with the memory of the program and of the process."""
  text = f'peak memory {figures["peak_memory_mib"]:.0f} MiB'
  if figures['program_mib']:
    text = f'the program needs {figures["program_mib"]:.0f} MiB, ' + text
  return text


def format_peer(figures: dict[str, Any]) -> str:
  """Formats the comparison with torchvision as a table.

  Args:
    figures: The figures of `comparison.compare`.
  """
  peer = figures['peer']
  conditions = 'equal weights; both resize the images in the step'
  result = 'loss'
  if figures['mode'] == 'inference':
    result = 'detections'
    pastes = 'both paste' if figures['pastes'] else 'neither pastes'
    conditions += f'; {pastes} the masks into the images'
  lines = [
    f'beside torchvision {peer["torchvision"]} (torch {peer["torch"]}, '
    f'{peer["threads"]} CPU threads), single steps in turn; {conditions}',
    f'{"torchvision, setting":44}  ours, s  theirs, s  ratio (95 %)          '
    f'steps  {result} ours, theirs  peak MiB ours, theirs',
  ]
  for row in peer['settings']:
    if 'failed' in row:
      lines.append(f'{row["setting"]:44}  failed: {row["failed"]}')
      continue
    form = '.0f' if result == 'detections' else '.4g'
    shown = ', '.join(
      format(row[f'{who}_{result}'], form) for who in ('ours', 'theirs')
    )
    lines.append(
      f'{row["setting"]:44} {row["ours_s"]:8.4g}  {row["theirs_s"]:9.4g}  '
      f'{row["ratio"]:.3f} ({row["low"]:.3f} to {row["high"]:.3f})'
      f'{row["num_steps"]:7}  {shown:>{len(result) + 13}}  '
      f'{row["ours_mib"]:.0f}, {row["theirs_mib"]:.0f}'
    )
  return '\n'.join(lines)
