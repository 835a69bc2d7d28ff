"""ConvNeXt without the classifier."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskrcnn_jax.array_types import Pyramid, ValidCells
from maskrcnn_jax.model import layers

# Initial value of the factors that a block multiplies its channels by before it
# adds them to its input (layer scale). At first, a block hardly changes its
# input. ConvNeXt (arXiv:2201.03545), appendix A.
INITIAL_LAYER_SCALE = 1e-6

# Number that every layer norm adds to the variance, as in the reference,
# facebookresearch/ConvNeXt models/convnext.py.
LAYER_NORM_EPS = 1e-6

# The reference draws kernels by trunc_normal_(std=0.02), which truncates at -2
# and 2. These are 100 standard deviations, so no number is ever truncated.
kernel_init = nn.initializers.normal(0.02)


class PatchConv(nn.Module):
  """A convolution whose stride is the side of its kernel.

  The patches do not overlap, so the convolution is one matrix product, whose
  gradients are fast on the CPU as well. Rows and columns that do not fill a
  whole patch at the lower and right edge are dropped, as torch does.

  Attributes:
    features: Number of output channels.
    side: Side of the kernel, and the stride.
    dtype: Dtype of the arithmetic and the output; parameters are float32.
  """

  features: int
  side: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c2']:
    """Returns h2 = h // side rows and w2 = w // side columns of c2 features."""
    side, channels = self.side, x.shape[-1]
    kernel = self.param(
      'kernel', kernel_init, (side, side, channels, self.features)
    )
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    b, h, w = x.shape[0], x.shape[1] // side, x.shape[2] // side
    x = x[:, : h * side, : w * side].astype(self.dtype)
    patches = x.reshape(b, h, side, w, side, channels).swapaxes(2, 3)
    patches = patches.reshape(b, h, w, side * side * channels)
    rows = kernel.astype(self.dtype).reshape(-1, self.features)
    return patches @ rows + bias.astype(self.dtype)


class Block(nn.Module):
  """A residual block: a depthwise 7x7 convolution and two 1x1 convolutions.

  Attributes:
    dtype: Dtype of the arithmetic.

  Source:
    ConvNeXt (arXiv:2201.03545), figure 4; names of the parts as in the
    reference, facebookresearch/ConvNeXt models/convnext.py.
    Differs: the reference drops whole blocks at random in training (stochastic
    depth). Here the network has no train mode and draws no random numbers, so
    that training and inference share one forward pass. Long trainings may
    therefore overfit more.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h w 1'] | None = None,
  ) -> Float[Array, 'b h w c']:
    """Returns features of the same shape, in the dtype of the arithmetic.

    Args:
      x: Features.
      valid: Which cells are not padding; `None` if none is.
    """
    channels = x.shape[-1]
    x = layers.zero_padding(x, valid)

    def conv(
      name: str, features: int, kernel_size: int = 1, groups: int = 1
    ) -> layers.Conv:
      """Makes a convolution with the initial values of ConvNeXt."""
      return layers.Conv(
        features,
        kernel_size,
        groups=groups,
        kernel_init=kernel_init,
        dtype=self.dtype,
        name=name,
      )

    y = conv('dwconv', channels, 7, groups=channels)(x)
    y = _layer_norm('norm', self.dtype)(y)
    y = nn.gelu(conv('pwconv1', 4 * channels)(y), approximate=False)
    y = conv('pwconv2', channels)(y)
    gamma = self.param(
      'gamma', nn.initializers.constant(INITIAL_LAYER_SCALE), (channels,)
    )
    # In float32, because float16 rounds numbers near 1e-6 by up to 3 %.
    return (x + gamma * y.astype(jnp.float32)).astype(self.dtype)


class Stage(nn.Module):
  """A sequence of blocks '0', '1', ..., which may halve the features first.

  Attributes:
    num_blocks: Number of blocks.
    channels: Number of channels of every block.
    downsample: Whether a layer norm and a 2x2 convolution of stride 2 come
      before the blocks. If not, the input must have `channels` channels.
    dtype: Dtype of the arithmetic.
  """

  num_blocks: int
  channels: int
  downsample: bool
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    valid: Bool[Array, 'b h2 w2 1'] | None = None,
  ) -> tuple[Float[Array, 'b h2 w2 c2'], Float[Array, 'b h2 w2 c2']]:
    """Returns the features for the next stage, and the same after a layer norm.

    The detector uses the second.

    Args:
      x: Features.
      valid: Which cells of the result are not padding; `None` if none is.
    """
    if self.downsample:
      x = _layer_norm('downsample_norm', self.dtype)(x)
      x = PatchConv(self.channels, 2, dtype=self.dtype, name='downsample_conv')(
        x
      )
    for i in range(self.num_blocks):
      x = Block(dtype=self.dtype, name=str(i))(x, valid)
    return x, _layer_norm('out_norm', self.dtype)(x)


class Stem(nn.Module):
  """A 4x4 convolution of stride 4, then a layer norm.

  Attributes:
    channels: Number of output channels.
    dtype: Dtype of the arithmetic.
  """

  channels: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, images: Float[Array, 'b h w 3']
  ) -> Float[Array, 'b h2 w2 c']:
    """Returns features with h2 = h // 4 rows and w2 = w // 4 columns."""
    x = PatchConv(self.channels, 4, dtype=self.dtype, name='conv')(images)
    return _layer_norm('norm', self.dtype)(x)


class ConvNeXt(nn.Module):
  """Features at strides 4, 8, 16 and 32; keeps the contract of `backbone.py`.

  The default depths and widths are those of ConvNeXt-T.

  A recipe chooses it by the name of the backbone, 'convnext_tiny'. `body`,
  `freeze_at` and `precision` then work as they do with a ResNet. `norm` and
  `norm_eps` concern the pyramid and the heads only. `depth`, `width`, `groups`,
  `group_width` and `stride_in_1x1` describe a ResNet and must keep their
  defaults.

  Attributes:
    depths: Number of blocks of each of the four stages.
    widths: Number of channels of each of the four stages.
    num_stages: Number of stages that `__call__` applies: 4, or 3 if
      `last_stage` applies the fourth stage to the RoIs.
    dtype: Dtype of the arithmetic.

  Source:
    ConvNeXt (arXiv:2201.03545), section 3 and appendix A. Layer norms of the
    outputs: `norm0` to `norm3` of the reference's detector,
    object_detection/mmdet/models/backbones/convnext.py.
    Differs: the layer norm of an output belongs to its stage, as `out_norm`.
    It is frozen with the stage, while the reference trains it even then.
    Freezing it loses nothing, because the 1x1 convolution at the start of the
    pyramid can learn any scale and shift.
    Differs: a C4 model, which the reference does not have, pools RoIs from the
    output of the third stage after its layer norm. The fourth stage begins
    with a layer norm itself, so it gets the same input as in a classifier as
    long as `out_norm` has its initial values.
  """

  depths: tuple[int, int, int, int] = (3, 3, 9, 3)
  widths: tuple[int, int, int, int] = (96, 192, 384, 768)
  num_stages: int = 4
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the stem `stem` and the four stages `layer1` to `layer4`."""
    self.stem = Stem(self.widths[0], dtype=self.dtype)
    self.layer1, self.layer2, self.layer3, self.layer4 = (
      Stage(
        num_blocks=num_blocks,
        channels=channels,
        downsample=i > 0,
        dtype=self.dtype,
      )
      for i, (num_blocks, channels) in enumerate(
        zip(self.depths, self.widths, strict=True)
      )
    )

  def __call__(
    self, images: Float[Array, 'b h w 3'], valid: ValidCells | None = None
  ) -> Pyramid:
    """Returns {2: features of stage 1, ..., 5: features of stage 4}.

    Args:
      images: Normalised images, padded with zeros to multiples of 32.
      valid: Which cells of levels 2 to 5 are not padding; `None` if none is.
    """
    cells = dict.fromkeys(range(2, 6)) if valid is None else valid
    x = self.stem(images)
    stages = (self.layer1, self.layer2, self.layer3, self.layer4)
    features = {}
    for level, stage in enumerate(stages[: self.num_stages], start=2):
      x, features[level] = stage(x, cells[level])
    return features

  def last_stage(
    self, pooled: Float[Array, 'n s s c']
  ) -> Float[Array, 'n s2 s2 c2']:
    """Applies the fourth stage to the pooled features of RoIs.

    Args:
      pooled: Features of level 4 (stride 16), with s cells along each side.

    Returns:
      Features with s2 = s // 2 cells along each side.
    """
    _, features = self.layer4(pooled)
    return features


def _layer_norm(name: str, dtype: DTypeLike) -> nn.LayerNorm:
  """Makes a layer norm over the channels.

  Args:
    name: Name of the module.
    dtype: Dtype of the output; mean and variance are computed in float32.
  """
  # The fast variance, mean(x^2) - mean(x)^2, loses its digits where the mean
  # is large beside the deviation.
  return nn.LayerNorm(
    epsilon=LAYER_NORM_EPS, use_fast_variance=False, dtype=dtype, name=name
  )
