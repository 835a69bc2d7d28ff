"""Layers that the backbone, the pyramid and the heads share."""

import flax.linen as nn
from flax.typing import Initializer
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskrcnn_jax.model.convolutions import (
  convolve,
  pointwise_conv,
  wide_conv,
)

# torch's kaiming_uniform_(a=1). Its bound sqrt(6 / ((1 + a^2) fan_in)) gives a
# variance of 1 / fan_in.
kaiming_uniform = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')

# torch's kaiming_normal_(mode='fan_out', nonlinearity='relu').
kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# Source: GroupNorm (arXiv:1803.08494), section 4; MODEL.GROUP_NORM of NVIDIA's
# Mask R-CNN For PyTorch.
NUM_GROUPS = 32
GROUP_NORM_EPS = 1e-5


# A 3x3 convolution with at least this number of input channels is a
# `wide_conv`. With fewer channels, XLA's own gradients are as fast on the CPU.
WIDE_CHANNELS = 256


class Conv(nn.Module):
  """A convolution with an odd kernel of side k; k // 2 zeros pad each edge.

  The padding is that of torch. On the CPU, XLA's own weight gradients of a 1x1
  convolution and of a wide 3x3 convolution take several times longer than
  matrix products: see `convolutions`.

  Attributes:
    features: Number of output channels.
    kernel_size: Side of the kernel in cells; odd.
    stride: Stride in both directions.
    groups: Number of groups. Output channels of a group are computed from the
      input channels of the same group only.
    dilation: Distance between two neighbouring cells that the kernel reads, in
      cells. With 2, the kernel skips every second cell, and the padding of each
      edge is twice as wide.
    use_bias: Whether a bias is added. A convolution that a norm follows needs
      none.
    kernel_init: Initializer of the kernel, whose axes are (row, column, input
      channel of a group, output channel).
    dtype: Dtype of the arithmetic and of the output. The parameters are
      float32.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  groups: int = 1
  dilation: int = 1
  use_bias: bool = True
  kernel_init: Initializer = kaiming_uniform
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    factor: Float[Array, 'd'] | None = None,
  ) -> Float[Array, 'b h2 w2 c2']:
    """Convolves x; h2 is h / stride and w2 is w / stride, both rounded up.

    Args:
      x: The input.
      factor: Number that each of the d = c2 output channels is multiplied by,
        before the bias is added. The kernel is multiplied instead of the
        output.
    """
    size, stride = self.kernel_size, self.stride
    shape = (size, size, x.shape[-1] // self.groups, self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    if factor is not None:
      kernel = kernel * factor
    kernel = jnp.asarray(kernel, self.dtype)
    x = x.astype(self.dtype)
    if size == 1 and self.groups == 1:
      x = pointwise_conv(x[:, ::stride, ::stride], kernel[0, 0])
    elif (
      stride == self.groups == self.dilation == 1
      and x.shape[-1] >= WIDE_CHANNELS
    ):
      x = wide_conv(x, kernel)
    else:
      x = convolve(
        x,
        kernel,
        stride=stride,
        groups=self.groups,
        dilation=self.dilation,
      )
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(self.dtype)
    return x


class Deconv2x2(nn.Module):
  """A transposed 2x2 convolution with stride 2, which doubles both sides.

  The windows do not overlap, so the convolution is one matrix product:
  y[2i + a, 2j + b] = x[i, j] @ kernel[a, b] + bias.

  Attributes:
    features: Number of output channels.
    dtype: Dtype of the arithmetic and of the output. The parameters are
      float32.

  Source:
    torch.nn.ConvTranspose2d(kernel_size=2, stride=2). The axes of its weight
    are (in, out, a, b). kaiming_normal_(mode='fan_out') treats the first axis
    as the output, so its fan is 4 * in.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 c2']:
    """Returns features with h2 = 2 h rows and w2 = 2 w columns."""
    n, h, w, channels = x.shape
    kernel = self.param(
      'kernel',
      nn.initializers.variance_scaling(2.0, 'fan_in', 'normal'),
      (2, 2, channels, self.features),
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    columns = kernel.astype(self.dtype).transpose(2, 0, 1, 3)
    x = x.astype(self.dtype) @ columns.reshape(channels, 4 * self.features)
    x = x.reshape(n, h, w, 2, 2, self.features).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, self.features) + bias.astype(self.dtype)


class FrozenBatchNorm(nn.Module):
  """Batch norm with fixed statistics and fixed scale and bias.

  The four vectors are in the collection `constants`, which optimizers do not
  change.

  Attributes:
    eps: Number added to the variance. It is 1e-5 for weights that torchvision
      trained, and 0 in NVIDIA's Mask R-CNN For PyTorch and for torchvision's
      COCO_V1 weights.
    dtype: Dtype of the output. The factor and the offset are computed in
      float32.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, layers/batch_norm.py.
  """

  eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  def __call__(
    self, x: Float[Array, '*n c'], valid: Bool[Array, 'b h w 1'] | None = None
  ) -> Float[Array, '*n c']:
    """Returns (x - mean) / sqrt(var + eps) * scale + bias for each channel.

    Args:
      x: Features.
      valid: Not used, because the statistics are fixed. `GroupNorm` has the
        same argument.
    """
    del valid
    factor, offset = self.factor_and_offset(x.shape[-1])
    return x.astype(self.dtype) * factor.astype(self.dtype) + offset.astype(
      self.dtype
    )

  @nn.compact
  def factor_and_offset(
    self, channels: int
  ) -> tuple[Float[Array, 'c'], Float[Array, 'c']]:
    """Returns the numbers that each channel is multiplied by, then added.

    Args:
      channels: Number c of channels.
    """
    shape = (channels,)
    scale = self.variable('constants', 'scale', jnp.ones, shape).value
    bias = self.variable('constants', 'bias', jnp.zeros, shape).value
    mean = self.variable('constants', 'mean', jnp.zeros, shape).value
    var = self.variable('constants', 'var', jnp.ones, shape).value
    factor = scale * lax.rsqrt(var + self.eps)
    return factor, bias - mean * factor


class GroupNorm(nn.Module):
  """Group norm whose statistics leave out padding.

  Mean and variance are computed for each image and for each of 32 groups of
  channels, over the valid cells, in float32.

  Attributes:
    dtype: Dtype of the output. The parameters are float32.

  Source:
    GroupNorm (arXiv:1803.08494). Arithmetic and parameters are those of
    `flax.linen.GroupNorm` with `use_fast_variance=False`, whose argument
    `mask` gives the same result. Differs: that mask must have all channels, and
    flax counts its cells in each channel.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h w 1'] | None = None,
  ) -> Float[Array, 'b h w c']:
    """Returns (x - mean) / sqrt(variance + eps) * scale + bias.

    Args:
      x: Features of a batch; c must be a multiple of 32.
      valid: Cells that the statistics are computed over; `None` takes all. In
        an image without a valid cell, mean and variance are 0.

    Raises:
      ValueError: If c is not a multiple of 32.
    """
    b, h, w, channels = x.shape
    if channels % NUM_GROUPS:
      raise ValueError(
        f'Group norm has {NUM_GROUPS} groups of channels, but the features '
        f'have {channels} channels; choose a multiple of {NUM_GROUPS}.'
      )
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    group_size = channels // NUM_GROUPS
    cells = x.astype(jnp.float32).reshape(b, h * w, channels)
    count: int | Array = h * w * group_size
    if valid is not None:
      inside = valid.reshape(b, h * w)
      count = jnp.maximum(jnp.sum(inside, axis=1, keepdims=True), 1)
      count *= group_size
      weights = inside.astype(jnp.float32)

    def mean_of_groups(
      cells: Float[Array, 'b n c'],
    ) -> Float[Array, 'b groups']:
      """Returns the means of the groups over the valid cells, [b, groups]."""
      if valid is None:
        total = jnp.sum(cells, axis=1)
      else:
        # On the CPU, this product takes less time and memory than a sum of the
        # cells after those of the padding are set to 0.
        total = jnp.einsum(
          'bnc,bn->bc', cells, weights, precision=lax.Precision.HIGHEST
        )
      return total.reshape(b, NUM_GROUPS, group_size).sum(axis=2) / count

    def each_channel(of_groups: Float[Array, 'b groups']) -> Array:
      """Repeats the number of a group for each of its channels."""
      return jnp.repeat(of_groups, group_size, axis=1)[:, None, :]

    mean = each_channel(mean_of_groups(cells))
    # The mean of the squares less the square of the mean would lose digits
    # where the mean is large. The derivative of the variance with respect to
    # the mean is 0, so that it need not be computed.
    deviation = cells - lax.stop_gradient(mean)
    variance = mean_of_groups(jnp.square(deviation))
    factor = each_channel(lax.rsqrt(variance + GROUP_NORM_EPS)) * scale
    y = ((cells - mean) * factor + bias).reshape(x.shape)
    return y.astype(self.dtype)


def make_group_norm(name: str | None, *, dtype: DTypeLike) -> GroupNorm:
  """Makes the group norm that follows a convolution.

  Args:
    name: Name of the module. `None` inside the `setup` of a linen module, which
      names the attribute's module itself.
    dtype: Dtype of the output. The input must have a multiple of 32 channels.
  """
  return GroupNorm(dtype=dtype, name=name)


def make_norm(
  name: str | None, *, norm: str, eps: float, dtype: DTypeLike
) -> nn.Module:
  """Makes the norm that follows a convolution.

  Args:
    name: Name of the module. `None` inside the `setup` of a linen module, which
      names the attribute's module itself.
    norm: Kind of the norm: 'frozen_batch' or 'group'.
    eps: Number that the frozen batch norm adds to the variance.
    dtype: Dtype of the output.

  Raises:
    ValueError: If `norm` is neither 'frozen_batch' nor 'group'.
  """
  match norm:
    case 'frozen_batch':
      return FrozenBatchNorm(eps=eps, dtype=dtype, name=name)
    case 'group':
      return make_group_norm(name, dtype=dtype)
  raise ValueError(f"norm must be 'frozen_batch' or 'group', not {norm!r}.")


def convolve_and_normalize(
  conv: Conv,
  norm: nn.Module,
  x: Float[Array, 'b h w c'],
  valid: Bool[Array, 'b h2 w2 1'] | None = None,
) -> Float[Array, 'b h2 w2 c2']:
  """Applies a convolution without a bias, then the norm that follows it.

  The factor of a frozen batch norm is applied to the kernel, which is smaller
  than the output, and needs no pass over the gradient of the output.

  Args:
    conv: The convolution.
    norm: The norm, as `make_norm` returns it.
    x: Input of the convolution.
    valid: Which cells of the output are not padding; `None` if none is.
  """
  if not isinstance(norm, FrozenBatchNorm):
    return norm(conv(x), valid)
  factor, offset = norm.factor_and_offset(conv.features)
  return conv(x, factor) + offset.astype(norm.dtype)


def zero_padding(
  x: Float[Array, 'b h w c'], valid: Bool[Array, 'b h w 1'] | None
) -> Float[Array, 'b h w c']:
  """Sets the features of padding to 0.

  A convolution pads the edges of its input with zeros. If the padding of a
  larger canvas is zero as well, the valid cells of the output do not depend on
  the size of the canvas. In the same way, no gradient flows back from padding.

  Args:
    x: Features of a batch.
    valid: Which cells belong to the image of their row of the batch; `None` if
      all of them do.
  """
  return x if valid is None else jnp.where(valid, x, 0)


def max_pool_3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Takes the maximum over 3x3 windows with stride 2, padded with -inf."""
  return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def upsample_2x(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Repeats each row and each column twice."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)
