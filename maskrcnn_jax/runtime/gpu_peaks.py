"""The highest speeds of GPUs, bytes and FLOPs a second, and their memory."""

from typing import NamedTuple


class Peaks(NamedTuple):
  """The highest speeds of a GPU."""

  bandwidth: float  # bytes a second that its memory reads and writes
  # FLOPs a second without sparsity, by number format: 'bf16', 'f16' and 'tf32'
  # of the tensor cores, 'f32' (full precision) and 'f64' of products, and
  # 'vector' of all other arithmetic.
  flops: dict[str, float]


class Gpu(NamedTuple):
  """A kind of GPU."""

  title: str
  memory: float  # bytes by the data sheet
  data_sheet: Peaks
  # Speeds that programs have reached; `None` if nobody measured them here.
  # Formats that were not measured have the speeds of the data sheet.
  measured: Peaks | None
  # JAX's names of devices of this kind, as in `jax.Device.device_kind`.
  device_kinds: tuple[str, ...]


def _peaks(bandwidth: float, **teraflops: float) -> Peaks:
  """Returns the peaks of a GPU.

  Args:
    bandwidth: In 10^12 bytes a second.
    **teraflops: 10^12 FLOPs a second by number format. 'f16' is as fast as
      'bf16', and 'vector' as 'f32'.
  """
  teraflops |= {'f16': teraflops['bf16'], 'vector': teraflops['f32']}
  return Peaks(
    bandwidth * 1e12, {key: rate * 1e12 for key, rate in teraflops.items()}
  )


# Source: NVIDIA A100 Tensor Core GPU data sheet (June 2021), SXM; NVIDIA H100
# Tensor Core GPU data sheet (SXM) and NVIDIA H200 Tensor Core GPU data sheet
# (SXM), which give the rates of the tensor cores with sparsity; without it they
# are half as high. In full precision, float32 does not run on tensor cores.
_A100 = dict(bf16=312.0, tf32=156.0, f32=19.5, f64=19.5)
_H100 = dict(bf16=989.4, tf32=494.7, f32=66.9, f64=66.9)
# Measured with products of large matrices in bf16 and with copies, on such GPUs
# in November 2026.
_H100_MEASURED = _H100 | dict(bf16=790.0)

GPUS = {
  'h200': Gpu(
    'H200 SXM',
    141e9,
    _peaks(4.8, **_H100),
    _peaks(4.3, **_H100_MEASURED),
    ('NVIDIA H200',),
  ),
  'h100': Gpu(
    'H100 SXM',
    80e9,
    _peaks(3.35, **_H100),
    _peaks(3.0, **_H100_MEASURED),
    ('NVIDIA H100 80GB HBM3',),
  ),
  'a100_80': Gpu(
    'A100 SXM 80 GB',
    80e9,
    _peaks(2.039, **_A100),
    None,
    ('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'),
  ),
  'a100_40': Gpu(
    'A100 SXM 40 GB',
    40e9,
    _peaks(1.555, **_A100),
    None,
    ('NVIDIA A100-SXM4-40GB', 'NVIDIA A100-PCIE-40GB'),
  ),
}


def peak_flops(device_kind: str, precision: str) -> float | None:
  """Returns the highest speed of products of matrices by the data sheet.

  Products in tf32, bf16 and fp16 run on the tensor cores, products in fp32 do
  not.

  Args:
    device_kind: JAX's name of the device, such as 'NVIDIA H200'.
    precision: 'fp32', 'tf32', 'bf16' or 'fp16'.

  Returns:
    The speed in FLOPs a second, without sparsity; `None` if the device or the
    precision is not in `GPUS`.
  """
  key = {'fp32': 'f32', 'fp16': 'f16'}.get(precision, precision)
  for gpu in GPUS.values():
    if device_kind in gpu.device_kinds:
      return gpu.data_sheet.flops.get(key)
  return None
