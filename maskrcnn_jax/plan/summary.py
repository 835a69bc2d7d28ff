"""Sums up a compiled program: loops, sorts, scatters, exchanges, roofline."""

import collections
from collections.abc import Iterable, Sequence
import math
from typing import Any

from maskrcnn_jax.plan.costs import Cost, list_costs
from maskrcnn_jax.plan.flops import COLLECTIVES, operands_of, sort_length
from maskrcnn_jax.plan.hlo import Program
from maskrcnn_jax.runtime.gpu_peaks import Peaks

_TRANSFERS = ('infeed', 'outfeed', 'send', 'recv')


def summarize(
  program: Program, peaks: dict[str, Peaks]
) -> tuple[dict[str, Any], list[Cost]]:
  """Counts the parts of a program that decide its speed.

  Args:
    program: The program of one device.
    peaks: {name: the highest speeds of a GPU}.

  Returns:
    The figures of the program, which JSON can store, and the costs of its
    operations. The figures are:

    launches: Number of kernels. Loops whose number of iterations depends on
      data count with one iteration, here and below.
    bytes: Bytes that kernels read and write.
    flops: {number format: FLOPs}; see `Peaks.flops`.
    kinds: {kind of operation: number, bytes and FLOPs}.
    loops: The number of iterations of each loop; `None` if it depends on data.
    data_dependent_loops: Number of these.
    sorts: For each sort the length of a row, the number of rows and of runs.
    scatters: For each scatter the array that it writes to, the values that it
      writes, and the number of runs.
    collectives: {operation: [bytes of each]}, exchanges between devices.
    in_loops: {operation: number} of those in loops or branches.
    transfers: {operation: number}, transfers from and to the host.
    callbacks: {name: number}, calls of Python on the host.
    custom_calls: {name: number}, calls of functions outside of XLA.
    roofline_ms: {name of `peaks`: the shortest possible time in ms}.
  """
  costs = list_costs(program)
  flops: collections.Counter[str] = collections.Counter()
  kinds: dict[str, collections.Counter[str]] = {}
  for cost in costs:
    for key, count in cost.flops.items():
      flops[key] += count * cost.times
    kinds.setdefault(cost.kind, collections.Counter()).update(
      kernels=cost.launches * cost.times,
      bytes=cost.all_bytes,
      flops=cost.all_flops,
    )
  runs = {cost.name: cost.times for cost in costs}
  loops = [
    part.trip_count
    for _, part in program.all_instructions()
    if part.opcode == 'while'
  ]
  figures = {
    'launches': sum(cost.launches * cost.times for cost in costs),
    'bytes': sum(cost.all_bytes for cost in costs),
    'flops': dict(flops),
    'kinds': {kind: dict(counts) for kind, counts in kinds.items()},
    'loops': loops,
    'data_dependent_loops': loops.count(None),
    'sorts': _sorts(program, runs),
    'scatters': _scatters(program, runs),
  }
  figures |= exchanges(program)
  figures['roofline_ms'] = {
    name: 1e3 * roofline_seconds(costs, speeds)
    for name, speeds in peaks.items()
  }
  return figures, costs


def roofline_seconds(costs: Iterable[Cost], peaks: Peaks) -> float:
  """Returns the shortest possible time of operations that follow each other.

  Each takes the time that it needs to move its bytes, or that of its
  arithmetic, whichever is longer. Exchanges between devices are left out,
  because they run beside the other operations.

  Args:
    costs: The operations.
    peaks: What the GPU can do at most.
  """
  return math.fsum(
    cost.seconds(peaks) for cost in costs if cost.kind not in COLLECTIVES
  )


def exchanges(program: Program) -> dict[str, Any]:
  """Counts the exchanges of data between devices, and with the host.

  Args:
    program: The program of one device.

  Returns:
    `collectives`, `in_loops`, `transfers`, `callbacks` and `custom_calls`, as
    `summarize` explains them.
  """
  exchanged: dict[str, list[int]] = {}
  in_loops: collections.Counter[str] = collections.Counter()
  transfers: collections.Counter[str] = collections.Counter()
  targets: collections.Counter[str] = collections.Counter()
  for place, part in program.all_instructions():
    name = part.opcode.removesuffix('-start')
    if name in COLLECTIVES:
      size = part.bytes
      if part.opcode != name:
        # The result of a `-start` may list both its operands and its results.
        given = sum(
          array.bytes
          for array in operands_of(program.computations[place], part)
        )
        size = (
          max(size - given, given) if name == 'all-reduce' else size - given
        )
      exchanged.setdefault(name, []).append(size)
      if place != program.entry:
        in_loops[name] += 1
    elif name.removesuffix('-done') in _TRANSFERS:
      transfers[name] += 1
    elif part.is_in_host_memory:
      transfers[f'{name} in host memory'] += 1
    if part.target:
      targets[part.target] += 1
  return {
    'collectives': exchanged,
    'in_loops': dict(in_loops),
    'transfers': dict(transfers),
    'callbacks': {
      name: count
      for name, count in targets.items()
      if 'callback' in name.lower()
    },
    'custom_calls': dict(targets),
  }


def _owners(program: Program) -> dict[str, str]:
  """Returns {name of a fused computation: name of its fusion}."""
  return {
    part.called('calls'): part.name
    for _, part in program.all_instructions()
    if part.opcode == 'fusion'
  }


def _sorts(program: Program, runs: dict[str, int]) -> list[dict[str, Any]]:
  """Lists the sorts of a program, the longest first.

  Args:
    program: The program.
    runs: {name of a kernel: number of runs}.
  """
  owners = _owners(program)
  found = []
  for place, part in program.all_instructions():
    is_call = 'Sort' in part.target or 'TopK' in part.target
    if part.opcode != 'sort' and not is_call:
      continue
    array = operands_of(program.computations[place], part)[0]
    length = array.sides[-1] if is_call else sort_length(part)
    found.append(
      {
        'length': length,
        'rows': array.size // max(length, 1),
        'times': runs.get(owners.get(place, part.name), 1),
        'source': part.source,
      }
    )
  return sorted(found, key=lambda sort: -sort['length'])


def _scatters(program: Program, runs: dict[str, int]) -> list[dict[str, Any]]:
  """Lists the scatters of a program, those with the most values first.

  Args:
    program: The program.
    runs: {name of a kernel: number of runs}.
  """
  owners = _owners(program)
  found = []
  for place, part in program.all_instructions():
    if part.opcode != 'scatter':
      continue
    instructions = program.computations[place].instructions
    values = instructions[part.operands[2]].arrays[0]
    found.append(
      {
        'into': str(part.arrays[0]),
        'values': values.size,
        'times': runs.get(owners.get(place, part.name), 1),
        'source': part.source,
      }
    )
  return sorted(found, key=lambda x: -x['values'] * x['times'])


def costliest(
  costs: Sequence[Cost], peaks: Peaks, count: int
) -> dict[str, list[Cost]]:
  """Returns the operations that cost most.

  Args:
    costs: The operations of a program.
    peaks: What the GPU can do at most.
    count: Number of operations of each list.

  Returns:
    {'time' | 'bytes' | 'FLOPs': the operations, the costliest first}.
  """
  return {
    title: sorted(costs, key=key, reverse=True)[:count]
    for title, key in (
      ('time', lambda cost: cost.seconds(peaks)),
      ('bytes', lambda cost: cost.all_bytes),
      ('FLOPs', lambda cost: cost.all_flops),
    )
  }
