"""Counts the FLOPs of an instruction, and the passes of a sort."""

import math
import re

from maskrcnn_jax.plan.hlo import Array, Computation, Instruction

# Exchanges between devices.
COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'reduce-scatter',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
)
# Opcodes that launch no kernel: they rename arrays, or wait.
FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'opt-barrier',
  'partition-id',
  'replica-id',
  'all-reduce-done',
  'all-gather-done',
  'collective-permute-done',
  'async-done',
  'async-update',
  'copy-done',
  'send-done',
  'recv-done',
}
# Opcodes without arithmetic.
MOVES = FREE | {
  'broadcast',
  'concatenate',
  'convert',
  'copy',
  'copy-start',
  'dynamic-slice',
  'dynamic-update-slice',
  'gather',
  'iota',
  'pad',
  'reshape',
  'reverse',
  'slice',
  'transpose',
}
# Functions of cuDNN: the positions, in (operand 0, operand 1, result), of the
# image, the kernel and the output of the forward convolution.
CUDNN = {
  '__cudnn$convForward': (0, 1, 2),
  '__cudnn$convBiasActivationForward': (0, 1, 2),
  '__cudnn$convForwardGraph': (0, 1, 2),
  '__cudnn$convBackwardInput': (2, 1, 0),
  '__cudnn$convBackwardFilter': (0, 2, 1),
}
# XLA sorts pieces of this number of elements without going through memory.
# Source: XLA, EmitSort of the GPU backend and `llvm_ir/sort_util.cc`.
_SORT_TILE = 2048


def operands_of(
  computation: Computation, instruction: Instruction
) -> list[Array]:
  """Returns the arrays that an instruction reads."""
  return [
    array
    for name in instruction.operands
    if name in computation.instructions
    for array in computation.instructions[name].arrays
  ]


def flops_of(
  computation: Computation, instruction: Instruction
) -> dict[str, int]:
  """Counts the FLOPs of an instruction, by the key of `Peaks.flops`."""
  opcode = instruction.opcode
  operands = operands_of(computation, instruction)
  result = instruction.arrays[0] if instruction.arrays else Array('token', ())
  if opcode == 'dot':
    contracted = instruction.numbers('lhs_contracting_dims')
    length = math.prod(operands[0].sides[i] for i in contracted)
    key = number_format(operands[0].dtype, instruction.attributes)
    return {key: 2 * result.size * length}
  if opcode == 'convolution':
    key = number_format(operands[0].dtype, instruction.attributes)
    return {key: _convolution_flops(instruction, operands, result)}
  if instruction.target in CUDNN:
    arrays = [*operands[:2], result]
    _, kernel, output = (arrays[i] for i in CUDNN[instruction.target])
    labels = re.search(r'dim_labels=\w+_(\w+)->', instruction.attributes)
    channels = kernel.sides[labels[1].index('o')] if labels else 1
    key = number_format(operands[0].dtype, instruction.attributes)
    return {key: 2 * output.size * kernel.size // channels}
  if instruction.target.startswith('__cublas$'):
    found = re.search(
      r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes
    )
    contracted = tuple(
      int(n) for n in re.findall(r'\d+', found[1] if found else '')
    )
    length = math.prod(operands[0].sides[i] for i in contracted)
    key = number_format(operands[0].dtype, instruction.attributes)
    return {key: 2 * result.size * length}
  if opcode in MOVES or opcode in ('custom-call', 'fusion'):
    return {}
  if opcode.removesuffix('-start') in COLLECTIVES:
    return {}
  if opcode == 'reduce':
    return {'vector': sum(a.size for a in operands[: len(operands) // 2])}
  if opcode == 'reduce-window':
    sides = re.search(r'window=\{size=([\dx]+)', instruction.attributes)
    window = math.prod(map(int, sides[1].split('x'))) if sides else 1
    return {'vector': result.size * window}
  if opcode == 'scatter':
    return {'vector': operands[2].size}
  if opcode == 'sort':
    return {'vector': result.size * _sort_stages(instruction)}
  return {'vector': result.size}


def _convolution_flops(
  instruction: Instruction, operands: list[Array], result: Array
) -> int:
  """Counts the FLOPs of a convolution that is no call of cuDNN.

  Products with padding, and with the zeros between dilated elements, are left
  out.

  Args:
    instruction: The convolution.
    operands: Image and kernel.
    result: The output.
  """
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
  assert labels is not None  # Every convolution has them.
  image, kernel = operands[:2]
  count = 2 * kernel.sides[labels[2].index('i')]
  for number, name in enumerate(sorted(set(labels[1]) - {'b', 'f'})):
    taps = _valid_taps(
      image.sides[labels[1].index(name)],
      result.sides[labels[3].index(name)],
      kernel.sides[labels[2].index(name)],
      {
        key: _window(instruction.attributes, key, number, default)
        for key, default in (
          ('stride', '1'),
          ('pad', '0_0'),
          ('lhs_dilate', '1'),
          ('rhs_dilate', '1'),
        )
      },
    )
    count *= taps
  for letter in 'bf':
    count *= result.sides[labels[3].index(letter)]
  return count


def _window(attributes: str, key: str, number: int, default: str) -> str:
  """Returns the value of a window's attribute for one side of the image.

  Args:
    attributes: The attributes of a convolution.
    key: Such as 'stride'.
    number: Number of the side, from 0.
    default: The value if the window does not have the attribute.
  """
  found = re.search(rf'window=\{{[^}}]*\b{key}=([\d_x\-]+)', attributes)
  return found[1].split('x')[number] if found else default


def _valid_taps(
  image: int, output: int, kernel: int, window: dict[str, str]
) -> int:
  """Counts the pairs of an output and a kernel element that meet the image.

  Args:
    image: Length of the image along one side.
    output: Length of the output.
    kernel: Length of the kernel.
    window: 'stride', 'pad', 'lhs_dilate' and 'rhs_dilate' as XLA writes them.
  """
  stride, holes, gaps = (
    int(window[key]) for key in ('stride', 'lhs_dilate', 'rhs_dilate')
  )
  padding = int(window['pad'].split('_')[0])
  count = 0
  for place in range(output):
    for tap in range(kernel):
      index = place * stride + tap * gaps - padding
      count += 0 <= index <= (image - 1) * holes and index % holes == 0
  return count


def number_format(dtype: str, attributes: str) -> str:
  """Returns the key of `Peaks.flops` for a product or a convolution.

  Args:
    dtype: XLA's name of the type of its operands.
    attributes: Its attributes.

  Source:
    XLA `service/gpu/matmul_utils.cc`: products in float32 use TF32 unless their
    precision is 'highest'.
  """
  if dtype in ('bf16', 'f16', 'f64'):
    return dtype
  if dtype == 'f32':
    found = re.search(
      r'operand_precision"?[=:][\[{]([^\]}]*)', attributes, re.IGNORECASE
    )
    if found and 'highest' in found[1].lower():
      return 'f32'
    return 'tf32'
  return 'vector'


def sort_length(instruction: Instruction) -> int:
  """Returns the number of elements that a `sort` sorts in one row."""
  (side,) = instruction.numbers('dimensions') or (-1,)
  return instruction.arrays[0].sides[side]


def _sort_stages(instruction: Instruction) -> int:
  """Returns the number of stages of a bitonic sort, each with n comparisons."""
  stages = max(math.ceil(math.log2(max(sort_length(instruction), 1))), 1)
  return stages * (stages + 1) // 2


def sort_passes(instruction: Instruction) -> int:
  """Returns how often a sort goes through the memory; 1 for other opcodes.

  Each pass is a kernel. Stage s of a bitonic sort compares elements that are
  2**s, 2**(s - 1), ... and 1 apart. One kernel does all comparisons inside of
  tiles of 2,048 elements; each larger distance is a kernel of its own.
  """
  if instruction.opcode != 'sort':
    return 1
  stages = math.ceil(math.log2(max(sort_length(instruction), 1)))
  beyond = max(stages - int(math.log2(_SORT_TILE)), 0)
  return beyond * (beyond + 1) // 2 + beyond + 1
