"""Reads the text of a compiled program, in XLA's language HLO.

`jax.stages.Compiled.as_text` gives this text, and it is the only description of
a compiled program that JAX makes public. The objects of `jaxlib._hlo` are
private, and have neither the layers of the network nor the costs of an
instruction.
"""

import math
import re
from typing import NamedTuple

# Bytes of an element, by XLA's name of its type.
BYTES = {
  'pred': 1,
  's4': 1,
  'u4': 1,
  's8': 1,
  'u8': 1,
  'f8e4m3fn': 1,
  'f8e5m2': 1,
  'bf16': 2,
  'f16': 2,
  's16': 2,
  'u16': 2,
  'f32': 4,
  's32': 4,
  'u32': 4,
  'f64': 8,
  's64': 8,
  'u64': 8,
  'c64': 8,
  'c128': 16,
}

_ARRAY = re.compile(r'\b([a-z][a-z0-9]*)\[([\d,]*)\]')
_INSTRUCTION = re.compile(
  r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\('
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')


class Array(NamedTuple):
  """The type and the shape of an array."""

  dtype: str  # XLA's name, such as 'bf16' or 'pred'
  sides: tuple[int, ...]

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.sides)

  @property
  def bytes(self) -> int:
    """Number of bytes; 0 for a type without data, such as a token."""
    return BYTES.get(self.dtype, 0) * self.size

  def __str__(self) -> str:
    """Returns the array as XLA writes it, such as 'bf16[8,200,336,64]'."""
    return f'{self.dtype}[{",".join(map(str, self.sides))}]'


class Instruction(NamedTuple):
  """An operation of a program."""

  name: str
  opcode: str  # such as 'fusion' or 'custom-call'
  arrays: tuple[Array, ...]  # the result; several if it is a tuple
  operands: tuple[str, ...]  # names of instructions of the same computation
  attributes: str  # the text that follows the operands
  is_in_host_memory: bool  # whether an array of the result is there

  @property
  def bytes(self) -> int:
    """Number of bytes of the result."""
    return sum(array.bytes for array in self.arrays)

  @property
  def source(self) -> str:
    """Path of the JAX operation that it comes from; '' if it is not known."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def target(self) -> str:
    """Name of the function that a custom call calls; '' for other opcodes."""
    found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def trip_count(self) -> int | None:
    """Number of iterations of a loop; `None` if it depends on data."""
    found = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', self.attributes)
    return int(found[1]) if found else None

  def called(self, attribute: str) -> str:
    """Returns the name of a computation that it calls; '' if there is none.

    Args:
      attribute: Such as 'calls', 'to_apply', 'body' or 'condition'.
    """
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return found[1] if found else ''

  def numbers(self, attribute: str) -> tuple[int, ...]:
    """Returns a list of numbers, such as that of 'lhs_contracting_dims'.

    Args:
      attribute: Its name. If it is missing, the result is ().
    """
    found = re.search(rf'\b{attribute}=\{{([\d,]*)\}}', self.attributes)
    return tuple(int(n) for n in found[1].split(',') if n) if found else ()


class Computation(NamedTuple):
  """A function of a program: its instructions by name, in their order."""

  instructions: dict[str, Instruction]
  root: str  # name of the instruction whose result is that of the function


class Program(NamedTuple):
  """A compiled program."""

  computations: dict[str, Computation]
  entry: str  # name of the computation that runs

  def all_instructions(self) -> list[tuple[str, Instruction]]:
    """Returns all (name of the computation, instruction) pairs."""
    return [
      (name, instruction)
      for name, computation in self.computations.items()
      for instruction in computation.instructions.values()
    ]


def arrays_of(text: str) -> tuple[Array, ...]:
  """Reads the arrays of a type, such as '(f32[8]{0}, /*index=1*/u8[])'."""
  return tuple(
    Array(dtype, tuple(int(n) for n in sides.split(',') if n))
    for dtype, sides in _ARRAY.findall(text)
  )


def read_program(text: str) -> Program:
  """Reads a program.

  Args:
    text: The program, as `jax.stages.Compiled.as_text` returns it.

  Raises:
    ValueError: If the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  entry = ''
  instructions: dict[str, Instruction] | None = None
  name = root = ''
  for line in text.splitlines():
    if line.startswith('}') and instructions is not None:
      computations[name] = Computation(instructions, root)
      instructions = None
    elif line and not line[0].isspace():
      found = _COMPUTATION.match(line)
      if found:
        name, instructions, root = found[2], {}, ''
        entry = name if found[1] else entry
    elif instructions is not None:
      found = _INSTRUCTION.match(line)
      if found:
        instruction = _read_instruction(line, found)
        instructions[instruction.name] = instruction
        root = instruction.name if found[1] else root
  if not entry:
    raise ValueError('The text is no HLO program: it has no ENTRY.')
  return Program(computations, entry)


def _read_instruction(line: str, found: re.Match[str]) -> Instruction:
  """Reads an instruction.

  Args:
    line: The line of the program.
    found: The match of `_INSTRUCTION`, which ends behind the bracket that
      opens the operands.
  """
  depth, end = 1, found.end()
  while end < len(line) and depth:
    depth += {'(': 1, ')': -1}.get(line[end], 0)
    end += 1
  inside = line[found.end() : end - 1]
  opcode = found[4]
  operands: tuple[str, ...] = ()
  if opcode not in ('constant', 'parameter'):
    operands = tuple(re.findall(r'%([\w.\-]+)', inside))
    if not operands and inside:  # Some versions write no %.
      operands = tuple(
        part.split()[-1] for part in _split(inside) if part.strip()
      )
  attributes = line[end:]
  if opcode == 'parameter':  # The number of the parameter.
    attributes = f'{inside} {attributes}'
  return Instruction(
    found[2],
    opcode,
    arrays_of(found[3]),
    operands,
    attributes,
    'S(5)' in found[3],  # XLA's mark of the memory of the host
  )


def _split(text: str) -> list[str]:
  """Splits a text at the commas that are in no bracket."""
  parts, depth = [''], 0
  for character in text:
    depth += {'(': 1, '[': 1, '{': 1, ')': -1, ']': -1, '}': -1}.get(
      character, 0
    )
    if character == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += character
  return parts
