"""Convolutions and norms that the backbone, the pyramid and the heads share."""

import flax.linen as nn
from flax.typing import Initializer
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# torch's kaiming_uniform_(a=1): bound sqrt(6 / ((1 + a^2) fan_in)), which is a
# variance of 1 / fan_in.
kaiming_uniform = nn.initializers.variance_scaling(1.0, 'fan_in', 'uniform')

# torch's kaiming_normal_(mode='fan_out', nonlinearity='relu').
kaiming_normal = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# GroupNorm, section 4; the seed's MODEL.GROUP_NORM.
NUM_GROUPS = 32
GROUP_NORM_EPS = 1e-5


class Conv(nn.Module):
  """A convolution with an odd kernel, padded as torch pads: k // 2 a side.

  A 1x1 kernel becomes a matrix product: on the CPU, XLA's weight gradient of a
  1x1 convolution costs several times more than that of the product.

  Attributes:
    features: Channels out.
    kernel_size: Side of the kernel, odd.
    stride: In both directions.
    groups: Channels are split into so many parts, each convolved apart.
    use_bias: False where a norm follows.
    kernel_init: Of the kernel, laid out (row, column, in of a group, out).
    dtype: Of the arithmetic and the output; the parameters are float32.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  groups: int = 1
  use_bias: bool = True
  kernel_init: Initializer = kaiming_uniform
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    size, stride = self.kernel_size, self.stride
    kernel = self.param(
        'kernel',
        self.kernel_init,
        (size, size, x.shape[-1] // self.groups, self.features),
    ).astype(self.dtype)
    x = x.astype(self.dtype)
    if size == 1 and self.groups == 1:
      x = x[:, ::stride, ::stride] @ kernel[0, 0]
    else:
      x = lax.conv_general_dilated(
          x,
          kernel,
          window_strides=(stride, stride),
          padding=[(size // 2, size // 2)] * 2,
          dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
          feature_group_count=self.groups,
      )
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(self.dtype)
    return x


class Deconv2x2(nn.Module):
  """A transposed convolution, 2x2 with stride 2: doubles rows and columns.

  The windows do not overlap, so it is one matrix product:
  y[2i + a, 2j + b] = x[i, j] @ kernel[a, b] + bias.

  Attributes:
    features: Channels out.
    dtype: Of the arithmetic and the output; the parameters are float32.

  Source:
    torch.nn.ConvTranspose2d(kernel_size=2, stride=2), whose weight is laid out
    (in, out, a, b). kaiming_normal_(mode='fan_out') takes its first axis for
    the output, so its fan is 4 * in.
  """

  features: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'n h w c']) -> Float[Array, 'n h2 w2 c2']:
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

  The four vectors lie in the collection `constants`, which no optimizer sees.

  Attributes:
    eps: Added to the variance. 1e-5 where torchvision trained; 0 in the seed
      and for torchvision's COCO_V1 weights.
    dtype: Of the output; the factor and the offset are computed in float32.

  Source:
    Seed: layers/batch_norm.py.
  """

  eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*n c']) -> Float[Array, '*n c']:
    shape = (x.shape[-1],)
    scale = self.variable('constants', 'scale', jnp.ones, shape).value
    bias = self.variable('constants', 'bias', jnp.zeros, shape).value
    mean = self.variable('constants', 'mean', jnp.zeros, shape).value
    var = self.variable('constants', 'var', jnp.ones, shape).value
    factor = scale * lax.rsqrt(var + self.eps)
    offset = bias - mean * factor
    return x.astype(self.dtype) * factor.astype(self.dtype) + offset.astype(
        self.dtype
    )


def make_group_norm(name: str | None, *, dtype: DTypeLike) -> nn.GroupNorm:
  """Makes the group norm that follows a convolution; channels: 32, 64, ..."""
  return nn.GroupNorm(
      num_groups=NUM_GROUPS, epsilon=GROUP_NORM_EPS, dtype=dtype, name=name
  )


def make_norm(
    name: str | None, *, norm: str, eps: float, dtype: DTypeLike
) -> nn.Module:
  """Makes the norm that follows a convolution.

  Args:
    name: Of the module made; None in a `setup`, which names it.
    norm: 'frozen_batch' or 'group'.
    eps: Of the frozen batch norm.
    dtype: Of the output.

  Raises:
    ValueError: `norm` is neither.
  """
  match norm:
    case 'frozen_batch':
      return FrozenBatchNorm(eps=eps, dtype=dtype, name=name)
    case 'group':
      return make_group_norm(name, dtype=dtype)
  raise ValueError(f"norm must be 'frozen_batch' or 'group', not {norm!r}.")


def max_pool_3x3(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Takes the maximum over 3x3 windows, stride 2; outside counts as -inf."""
  return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def upsample_2x(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Repeats each row and each column twice."""
  b, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
  return x.reshape(b, 2 * h, 2 * w, c)
