"""The largest speed of products of matrices, by device and precision."""

# {JAX's name of the device: {precision of a recipe: FLOPs per second}}. The
# figures are for dense matrices. Products in tf32, bf16 and fp16 run on the
# tensor cores, products in fp32 do not.
# Source: NVIDIA A100 Tensor Core GPU data sheet, June 2021; NVIDIA H100 Tensor
# Core GPU data sheet, 2024, column H100 SXM; NVIDIA H200 Tensor Core GPU data
# sheet, 2024, column H200 SXM. The data sheets of the H100 and the H200 give
# the speed with sparsity, which is twice the speed of dense matrices.
_A100 = {'fp32': 19.5e12, 'tf32': 156e12, 'bf16': 312e12, 'fp16': 312e12}
_H100 = {'fp32': 67e12, 'tf32': 494.7e12, 'bf16': 989.4e12, 'fp16': 989.4e12}
PEAKS = {
  'NVIDIA A100-SXM4-40GB': _A100,
  'NVIDIA A100-SXM4-80GB': _A100,
  'NVIDIA A100-PCIE-40GB': _A100,
  'NVIDIA A100 80GB PCIe': _A100,
  'NVIDIA H100 80GB HBM3': _H100,
  'NVIDIA H200': _H100,
}


def peak_flops(device_kind: str, precision: str) -> float | None:
  """Returns the largest speed of a device, in FLOPs per second.

  Args:
    device_kind: JAX's name of the device, such as 'NVIDIA H200'.
    precision: 'fp32', 'tf32', 'bf16' or 'fp16'.

  Returns:
    The speed of products of dense matrices; `None` if the device is not in the
    table.
  """
  return PEAKS.get(device_kind, {}).get(precision)
