"""ResNet and ResNeXt without the classifier."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from maskrcnn_jax.array_types import Pyramid, ValidCells
from maskrcnn_jax.model import layers

# Depth -> (whether blocks are bottlenecks, number of blocks of each stage).
# ResNet (arXiv:1512.03385), table 1.
DEPTHS = {
  18: (False, (2, 2, 2, 2)),
  34: (False, (3, 4, 6, 3)),
  50: (True, (3, 4, 6, 3)),
  101: (True, (3, 4, 23, 3)),
}


class Block(nn.Module):
  """A residual block: two 3x3 convolutions, or a bottleneck 1x1, 3x3, 1x1.

  Attributes:
    channels: Number of output channels of a plain block; a bottleneck has
      4 * channels output channels.
    bottleneck: Whether the block is a bottleneck.
    groups: Number of groups of the 3x3 convolution of a bottleneck.
    group_width: Number of channels of each group where `channels` is 64; it
      grows in proportion to `channels`.
    stride: Stride of the whole block.
    dilation: Dilation of the 3x3 convolution of a bottleneck.
    stride_in_1x1: Whether the first 1x1 convolution of a bottleneck has the
      stride. If not, the 3x3 convolution has it.
    norm: Norm after each convolution, 'frozen_batch' or 'group'.
    norm_eps: Number that the frozen batch norm adds to the variance.
    dtype: Dtype of the arithmetic.

  Source:
    torchvision: models/resnet.py. The parts have the same names, except for
    `downsample_conv` and `downsample_bn`, which are `downsample.0` and `.1`
    there. Initial values: NVIDIA's Mask R-CNN For PyTorch,
    modeling/backbone/resnet.py, where every scale starts at 1, the last scale
    of the block included. Groups: ResNeXt (arXiv:1611.05431), table 1.
  """

  channels: int
  bottleneck: bool
  groups: int
  group_width: int
  stride: int
  dilation: int
  stride_in_1x1: bool
  norm: str
  norm_eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    valid_before: Bool[Array, 'b h w 1'] | None = None,
    valid: Bool[Array, 'b h2 w2 1'] | None = None,
  ) -> Float[Array, 'b h2 w2 c2']:
    """Returns h2 = h / stride rows and w2 = w / stride columns, rounded up.

    Args:
      x: Features. Their padding is not read, unless by a 1x1 convolution.
      valid_before: Which cells of x are not padding; `None` if none is.
      valid: Which cells of the result are not padding. The features of padding
        are not zero and have no meaning.
    """

    def conv(
      x: Array,
      names: tuple[str, str],
      features: int,
      kernel_size: int,
      stride: int,
      valid: Array | None,
      groups: int = 1,
      dilation: int = 1,
    ) -> Array:
      """Applies a convolution, then its norm.

      Args:
        x: Input, `[b, h, w, c]`.
        names: Names of the modules: (convolution, norm).
        features: Number of output channels.
        kernel_size: Side of the kernel in cells.
        stride: Stride in both directions.
        valid: Which cells of the output are not padding.
        groups: Number of groups of channels.
        dilation: Distance between cells that the kernel reads.
      """
      conv_name, norm_name = names
      conv = layers.Conv(
        features,
        kernel_size,
        stride,
        groups,
        dilation,
        use_bias=False,
        dtype=self.dtype,
        name=conv_name,
      )
      norm = layers.make_norm(
        norm_name, norm=self.norm, eps=self.norm_eps, dtype=self.dtype
      )
      return layers.convolve_and_normalize(conv, norm, x, valid)

    if self.bottleneck:
      features = 4 * self.channels
      inner = self.groups * (self.channels * self.group_width // 64)
      strides = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
      between = valid if self.stride_in_1x1 else valid_before
      y = nn.relu(conv(x, ('conv1', 'bn1'), inner, 1, strides[0], between))
      y = layers.zero_padding(y, between)
      y = conv(
        y,
        ('conv2', 'bn2'),
        inner,
        3,
        strides[1],
        valid,
        self.groups,
        self.dilation,
      )
      y = conv(nn.relu(y), ('conv3', 'bn3'), features, 1, 1, valid)
    else:
      features = self.channels
      x = layers.zero_padding(x, valid_before)
      y = nn.relu(conv(x, ('conv1', 'bn1'), features, 3, self.stride, valid))
      y = layers.zero_padding(y, valid)
      y = conv(y, ('conv2', 'bn2'), features, 3, 1, valid)
    if self.stride != 1 or x.shape[-1] != features:
      names = ('downsample_conv', 'downsample_bn')
      x = conv(x, names, features, 1, self.stride, valid)
    return nn.relu(x + y)


class Stage(nn.Module):
  """A sequence of residual blocks '0', '1', ...; the first has the stride.

  The attributes without a description are the same as those of `Block`.

  Attributes:
    num_blocks: Number of blocks.
    stride: Stride of the first block; the other blocks have stride 1.
  """

  num_blocks: int
  channels: int
  bottleneck: bool
  groups: int
  group_width: int
  stride: int
  dilation: int
  stride_in_1x1: bool
  norm: str
  norm_eps: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    valid_before: Bool[Array, 'b h w 1'] | None = None,
    valid: Bool[Array, 'b h2 w2 1'] | None = None,
  ) -> Float[Array, 'b h2 w2 c2']:
    """Applies the blocks; the arguments are those of `Block`."""
    for i in range(self.num_blocks):
      x = Block(
        channels=self.channels,
        bottleneck=self.bottleneck,
        groups=self.groups,
        group_width=self.group_width,
        stride=self.stride if i == 0 else 1,
        dilation=self.dilation,
        stride_in_1x1=self.stride_in_1x1,
        norm=self.norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
        name=str(i),
      )(x, valid_before if i == 0 else valid, valid)
    return x


class ResNet(nn.Module):
  """Features at strides 4, 8, 16 and 32; keeps the contract of `backbone.py`.

  Attributes:
    depth: Number of layers: 18, 34, 50 or 101.
    num_stages: Number of stages that `__call__` applies: 4, or 3 if
      `last_stage` applies the fourth stage to the RoIs.
    width: Number of channels of the stem, and of the 3x3 convolutions of the
      first stage if `groups` and `group_width` have their defaults.
    groups: Number of groups of the 3x3 convolution of each bottleneck; 32 in
      ResNeXt 32x8d.
    group_width: Number of channels of each group in the first stage if `width`
      is 64; 8 in ResNeXt 32x8d.
    norm: Norm after each convolution, 'frozen_batch' or 'group'. 'group' needs
      a `width` that is a multiple of 32.
    norm_eps: Number that the frozen batch norm adds to the variance.
    stride_in_1x1: Whether the first 1x1 convolution of a bottleneck has the
      stride, as in weights from MSRA (Caffe2). If not, the 3x3 convolution has
      it, as in torchvision.
    dtype: Dtype of the arithmetic.
  """

  depth: int = 50
  num_stages: int = 4
  width: int = 64
  groups: int = 1
  group_width: int = 64
  norm: str = 'frozen_batch'
  norm_eps: float = 1e-5
  stride_in_1x1: bool = False
  dilate_last: bool = False
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the stem, and the four stages `layer1` to `layer4`.

    Raises:
      ValueError: If `depth` is not in `DEPTHS`, or if the last stage is dilated
        and the depth has no bottlenecks.
    """
    if self.depth not in DEPTHS:
      raise ValueError(
        f'depth must be one of {sorted(DEPTHS)}, not {self.depth}.'
      )
    bottleneck, num_blocks = DEPTHS[self.depth]
    if self.dilate_last and not bottleneck:
      raise ValueError(
        f'A ResNet of depth {self.depth} cannot have a dilated last stage, '
        'because it has no bottlenecks.'
      )
    self.conv1 = layers.Conv(self.width, 7, 2, use_bias=False, dtype=self.dtype)
    self.bn1 = layers.make_norm(
      None, norm=self.norm, eps=self.norm_eps, dtype=self.dtype
    )
    self.layer1, self.layer2, self.layer3, self.layer4 = (
      Stage(
        num_blocks=blocks,
        channels=self.width * 2**i,
        bottleneck=bottleneck,
        groups=self.groups,
        group_width=self.group_width,
        stride=1 if i == 0 or (i == 3 and self.dilate_last) else 2,
        dilation=2 if i == 3 and self.dilate_last else 1,
        stride_in_1x1=self.stride_in_1x1,
        norm=self.norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
      )
      for i, blocks in enumerate(num_blocks)
    )

  def __call__(
    self, images: Float[Array, 'b h w 3'], valid: ValidCells | None = None
  ) -> Pyramid:
    """Returns {2: features of stage 1, ..., 5: features of stage 4}.

    With `dilate_last`, the features of stage 4 take the place of those of
    stage 3, {2: ..., 3: ..., 4: features of stage 4}, because they have the
    same stride.

    Args:
      images: Normalised images, padded with zeros to multiples of 32.
      valid: Which cells of levels 1 to 5 are not padding; `None` if none is.
    """
    cells = dict.fromkeys(range(1, 6)) if valid is None else valid
    x = nn.relu(
      layers.convolve_and_normalize(self.conv1, self.bn1, images, cells[1])
    )
    # The pooling pads with -inf. Zeros give the same maxima, because no feature
    # is less than 0.
    x = layers.max_pool_3x3(layers.zero_padding(x, cells[1]))
    stages = (self.layer1, self.layer2, self.layer3, self.layer4)
    features = {}
    before = 2
    for stage, level in zip(
      stages[: self.num_stages],
      (2, 3, 4, 4 if self.dilate_last else 5),
      strict=False,
    ):
      x = stage(x, cells[before], cells[level])
      features[level] = x
      before = level
    return features

  def last_stage(
    self, pooled: Float[Array, 'n s s c']
  ) -> Float[Array, 'n s2 s2 c2']:
    """Applies the fourth stage to the pooled features of RoIs.

    Args:
      pooled: Features of level 4 (stride 16), with s cells along each side.

    Returns:
      Features with s2 = (s + 1) // 2 cells along each side.
    """
    return self.layer4(pooled)
