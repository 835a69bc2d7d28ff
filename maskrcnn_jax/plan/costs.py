"""Lists the operations of a compiled program with their bytes and FLOPs.

The figures are of one device. They come from the program alone, without running
it: each array that an operation reads or writes is counted once, as if nothing
stayed in a cache, and a multiplication with its addition counts as two FLOPs.
"""

from collections.abc import Iterator
import re
from typing import NamedTuple

from maskrcnn_jax.plan.flops import (
  COLLECTIVES,
  CUDNN,
  FREE,
  MOVES,
  flops_of,
  operands_of,
  sort_passes,
)
from maskrcnn_jax.plan.hlo import Array, Computation, Instruction, Program
from maskrcnn_jax.runtime.gpu_peaks import Peaks


class Cost(NamedTuple):
  """The costs of one operation of a program, which is one kernel or a few."""

  kind: str  # 'convolution', 'matmul', 'scatter', 'sort', a collective, ...
  name: str  # its name in the program
  shapes: str  # results and operands
  source: str  # path of the JAX operation, such as 'jit(step)/rpn/conv'
  bytes: int  # read and written in one run
  flops: dict[str, int]  # of one run, by the key of `Peaks.flops`
  launches: int  # number of kernels of one run
  times: int  # number of runs; iterations that depend on data count as one

  @property
  def all_bytes(self) -> int:
    """Number of bytes of all runs."""
    return self.bytes * self.times

  @property
  def all_flops(self) -> int:
    """Number of FLOPs of all runs, in all number formats."""
    return sum(self.flops.values()) * self.times

  def seconds(self, peaks: Peaks) -> float:
    """Returns the shortest possible time of all runs on a GPU.

    It is the time to move the bytes or the time of the arithmetic, whichever is
    longer. The time of launching kernels is not in it.

    Args:
      peaks: What the GPU can do at most.
    """
    compute = sum(count / peaks.flops[key] for key, count in self.flops.items())
    return max(self.bytes / peaks.bandwidth, compute) * self.times


def list_costs(program: Program) -> list[Cost]:
  """Lists all operations that run on the device, in their order.

  Operations in loops are listed once, with their number of runs.

  Args:
    program: The program of one device.
  """
  return list(_walk(program, program.computations[program.entry], 1))


def _walk(
  program: Program, computation: Computation, times: int
) -> Iterator[Cost]:
  """Yields the costs of a computation and of those that it runs.

  Args:
    program: The program.
    computation: The part of it that runs.
    times: How often it runs.
  """
  for instruction in computation.instructions.values():
    opcode = instruction.opcode
    if opcode == 'while':
      count = instruction.trip_count
      count = 1 if count is None else count
      for attribute, runs in (('condition', count + 1), ('body', count)):
        part = program.computations[instruction.called(attribute)]
        yield from _walk(program, part, times * runs)
    elif opcode == 'conditional':
      # Which branch runs depends on data, so that all of them are counted.
      for name in _branches(instruction):
        yield from _walk(program, program.computations[name], times)
    elif opcode in ('call', 'async-start'):
      name = instruction.called('to_apply') or instruction.called('calls')
      yield from _walk(program, program.computations[name], times)
    elif opcode not in FREE:
      yield _cost(program, computation, instruction, times)


def _branches(instruction: Instruction) -> list[str]:
  """Returns the names of the computations that a conditional chooses from."""
  found = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
  if found:
    return [name.strip().lstrip('%') for name in found[1].split(',')]
  return [
    instruction.called(f'{branch}_computation') for branch in ('true', 'false')
  ]


def _cost(
  program: Program,
  computation: Computation,
  instruction: Instruction,
  times: int,
) -> Cost:
  """Returns the costs of an instruction that launches kernels."""
  inner = [(computation, instruction)]
  if instruction.opcode == 'fusion':
    fused = program.computations[instruction.called('calls')]
    inner = [(fused, part) for part in fused.instructions.values()]
  flops: dict[str, int] = {}
  for place, part in inner:
    for key, count in flops_of(place, part).items():
      flops[key] = flops.get(key, 0) + count
  passes = max((sort_passes(part) for _, part in inner), default=1)
  operands = operands_of(computation, instruction)
  moved = _bytes(program, computation, instruction) * passes
  results, arguments = (
    ', '.join(str(array) for array in arrays if array.size)
    for arrays in (instruction.arrays, operands)
  )
  shapes = f'{results} <- {arguments}'
  return Cost(
    kind_of(instruction, [part for _, part in inner]),
    instruction.name,
    shapes,
    instruction.source,
    moved,
    {key: count for key, count in flops.items() if count},
    passes,
    times,
  )


def kind_of(instruction: Instruction, inner: list[Instruction]) -> str:
  """Returns a word for what an instruction does.

  Args:
    instruction: The instruction.
    inner: The instructions of a fusion; otherwise the instruction itself.
  """
  opcodes = {part.opcode for part in inner}
  opcode = instruction.opcode.removesuffix('-start')
  if opcode in COLLECTIVES:
    return opcode
  if 'convolution' in opcodes or instruction.target in CUDNN:
    return 'convolution'
  if 'dot' in opcodes or instruction.target.startswith('__cublas$'):
    return 'matmul'
  for kind in ('sort', 'scatter'):
    if kind in opcodes:
      return kind
  if opcode == 'custom-call':
    return 'sort' if 'Sort' in instruction.target else 'custom kernel'
  if 'reduce' in opcodes or 'reduce-window' in opcodes:
    return 'reduction'
  return 'copy' if opcodes <= MOVES else 'elementwise'


def _bytes(
  program: Program, computation: Computation, instruction: Instruction
) -> int:
  """Counts the bytes that an instruction reads and writes in one pass.

  An operand of which only slices or gathered rows are used counts with these
  alone. A result that is an operand updated in place counts with the updated
  part, which is read and written.
  """
  if instruction.opcode != 'fusion':
    operands = [array.bytes for array in operands_of(computation, instruction)]
    return _moved_by(instruction, operands)
  fused = program.computations[instruction.called('calls')]
  needed = _elements_needed(fused)
  moved = 0.0
  for part in fused.instructions.values():
    if part.opcode == 'parameter' and part.arrays:
      array = part.arrays[0]
      moved += part.bytes * min(needed[part.name] / max(array.size, 1), 1)
  for root in _roots(fused):
    update = _update_of(fused, root)
    moved += root.bytes if update is None else 2 * update.bytes
  return round(moved)


def _moved_by(instruction: Instruction, operands: list[int]) -> int:
  """Counts the bytes of an instruction outside of a fusion.

  Args:
    instruction: The instruction.
    operands: Bytes of each array that it is given.
  """
  match instruction.opcode:
    case 'slice' | 'dynamic-slice' | 'gather':
      return 2 * instruction.bytes + sum(operands[1:])
    case 'dynamic-update-slice':
      return 2 * operands[1]
    case 'scatter':
      return operands[1] + 3 * operands[2]
    case 'iota' | 'broadcast':
      return instruction.bytes + sum(operands)
    case 'all-reduce-start' | 'all-gather-start' | 'collective-permute-start':
      return instruction.bytes  # It lists both operands and results.
  if instruction.target.startswith(('__cudnn$', '__cublas$')):
    # The second result is memory that the library may use for itself.
    return instruction.arrays[0].bytes + sum(operands)
  return instruction.bytes + sum(operands)


def _elements_needed(fused: Computation) -> dict[str, float]:
  """Returns how many elements of each instruction of a fusion are used.

  An instruction whose result is used several times counts several times.

  Args:
    fused: The fusion, whose results are all used.
  """
  needed = dict.fromkeys(fused.instructions, 0.0)
  in_place = set()
  for root in _roots(fused):
    needed[root.name] += root.arrays[0].size
    if _update_of(fused, root) is not None:
      in_place.add(_without_bitcasts(fused, root).name)
  for part in reversed(fused.instructions.values()):
    if part.name == fused.root and part.opcode == 'tuple':
      continue  # `_roots` has counted its operands.
    used = min(needed[part.name], part.arrays[0].size)
    for position, name in enumerate(part.operands):
      if name not in needed:
        continue
      if part.opcode in ('slice', 'dynamic-slice', 'gather') and not position:
        needed[name] += used
      elif not position and part.name in in_place:
        continue  # The part that is updated counts with the results.
      else:
        size = fused.instructions[name].arrays[0].size
        needed[name] += size * used / max(part.arrays[0].size, 1)
  return needed


def _roots(fused: Computation) -> list[Instruction]:
  """Returns the instructions that compute the results of a fusion."""
  root = fused.instructions[fused.root]
  if root.opcode != 'tuple':
    return [root]
  return [fused.instructions[name] for name in root.operands]


def _update_of(fused: Computation, root: Instruction) -> Array | None:
  """Returns the part of an array that a fusion updates in place.

  Args:
    fused: The fusion.
    root: An instruction that computes one of its results.

  Returns:
    The array of the new values. `None` if the fusion writes the whole result.
  """
  root = _without_bitcasts(fused, root)
  position = {'dynamic-update-slice': 1, 'scatter': 2}.get(root.opcode)
  if position is None:
    return None
  target = _without_bitcasts(fused, fused.instructions[root.operands[0]])
  if target.opcode != 'parameter':
    return None
  return fused.instructions[root.operands[position]].arrays[0]


def _without_bitcasts(fused: Computation, part: Instruction) -> Instruction:
  """Returns the instruction that computes an array, of which `part` is a view.

  Args:
    fused: The fusion.
    part: An instruction of it.
  """
  while part.opcode == 'bitcast':
    part = fused.instructions[part.operands[0]]
  return part
