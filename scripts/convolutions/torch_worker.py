"""Runs single convolutions and matrix products in PyTorch, on request.

`convolution_speed.py` starts this program in an environment with torch. The
first argument is a list of cases in JSON, as `convolution_speed.Case` has
them. Each line of the standard input is `LAYOUT WORK NUMBER`: the memory layout
('default' or 'channels_last'), the work ('forward', 'input' or 'weight'
gradient) and the number of a case. The program does this work once and writes
the seconds that it took on a clock and the seconds of all cores together.
"""

import json
import sys
import time
from typing import Any

import torch
from torch.nn import functional


def make_arrays(
  case: dict[str, Any], layout: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
  """Returns a random input, kernel and gradient of the output of a case.

  Args:
    case: A case of `convolution_speed.py`.
    layout: 'default' or 'channels_last'. Matrix products have one layout only.
  """
  images, height, width = case['images'], case['height'], case['width']
  inputs, outputs, side = case['inputs'], case['outputs'], case['side']
  generator = torch.Generator().manual_seed(0)

  def random(*shape: int) -> torch.Tensor:
    """Returns normal random numbers in the layout."""
    x = torch.randn(shape, generator=generator)
    if layout == 'channels_last' and len(shape) == 4:
      return x.to(memory_format=torch.channels_last)
    return x

  if not side:
    rows = images * height * width
    return random(rows, inputs), random(outputs, inputs), random(rows, outputs)
  return (
    random(images, inputs, height, width),
    random(outputs, inputs, side, side),
    random(images, outputs, height, width),
  )


def compute(
  work: str, x: torch.Tensor, kernel: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
  """Computes a convolution, or a product of matrices, or one of its gradients.

  Args:
    work: 'forward', 'input' or 'weight'.
    x: Input, `[b, c, h, w]`, or `[rows, c]`.
    kernel: Kernel, `[c2, c, s, s]`, or matrix, `[c2, c]`.
    gradient: Gradient for the output.
  """
  if x.ndim == 2:
    match work:
      case 'forward':
        return functional.linear(x, kernel)
      case 'input':
        return gradient @ kernel
    return gradient.T @ x
  margin = kernel.shape[2] // 2
  if work == 'forward':
    return functional.conv2d(x, kernel, padding=margin)
  of_input = work == 'input'
  return torch.ops.aten.convolution_backward(
    gradient,
    x,
    kernel,
    None,
    [1, 1],
    [margin, margin],
    [1, 1],
    False,
    [0, 0],
    1,
    [of_input, not of_input, False],
  )[0 if of_input else 1]


def main() -> None:
  """Does the work of each line of the standard input."""
  cases = json.loads(sys.argv[1])
  torch.set_grad_enabled(False)
  held = ''
  arrays: dict[str, tuple[torch.Tensor, ...]] = {}
  print(torch.__version__, flush=True)
  for line in sys.stdin:
    layout, work, number = line.split()
    if number != held:
      # One case is kept in memory, because the largest take a gigabyte.
      held = number
      arrays = {
        name: make_arrays(cases[int(number)], name)
        for name in ('default', 'channels_last')
      }
      for made in arrays.values():
        for each in ('forward', 'input', 'weight'):
          compute(each, *made)
    started, cpu = time.perf_counter(), time.process_time()
    compute(work, *arrays[layout])
    print(time.perf_counter() - started, time.process_time() - cpu, flush=True)


if __name__ == '__main__':
  main()
