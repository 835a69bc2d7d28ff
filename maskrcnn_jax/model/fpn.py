"""The feature pyramid network (FPN)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from maskrcnn_jax.array_types import Pyramid, ValidCells
from maskrcnn_jax.model import layers


class Fpn(nn.Module):
  """Adds the features of coarse levels to those of fine levels.

  A 1x1 convolution gives each level `channels` channels. Then, from the second
  coarsest level to the finest, the next coarser level, with all that was added
  to it, is enlarged by a factor of 2 (each cell is repeated) and added to the
  level. A 3x3 convolution of each sum gives a level of the result. The result
  also has one more, coarser level: for levels 2 to 5, level 6 has every other
  row and column of level 5 of the result.

  Attributes:
    channels: Number of channels of each level of the result.
    norm: Norm that replaces the bias of each convolution: 'group' or
      'frozen_batch'. `None` keeps the bias.
    norm_eps: Number that the frozen batch norm adds to the variance.
    dtype: Dtype of the arithmetic.

  Source:
    FPN (arXiv:1612.03144); NVIDIA's Mask R-CNN For PyTorch,
    modeling/backbone/fpn.py. Its `fpn_inner1` is `inner2` here, its
    `fpn_inner2` is `inner3`, and so on.
  """

  channels: int = 256
  norm: str | None = None
  norm_eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, features: Pyramid, valid: ValidCells | None = None
  ) -> Pyramid:
    """Turns the levels of a backbone, usually 2 to 5, into levels 2 to 6.

    Args:
      features: Feature maps by level. The levels are consecutive numbers, and
        each has exactly half the rows and columns of the next finer level.
      valid: Which cells of each level are not padding; `None` if the images
        have no padding.

    Returns:
      Feature maps by level, finest first, each with `channels` channels. They
      are 0 in the padding.

    Raises:
      ValueError: If a level does not have half the rows and columns.
    """
    cells = dict.fromkeys(features) if valid is None else valid

    def conv(x: Array, name: str, kernel_size: int, level: int) -> Array:
      """Applies a convolution and, if there is one, its norm.

      Args:
        x: Features, `[b, h, w, c]`.
        name: Name of the module of the convolution.
        kernel_size: Side of the kernel in cells.
        level: Level of the features, which tells the padding.
      """
      x = layers.Conv(
        self.channels,
        kernel_size,
        use_bias=self.norm is None,
        dtype=self.dtype,
        name=name,
      )(x)
      if self.norm is not None:
        x = layers.make_norm(
          f'{name}_norm', norm=self.norm, eps=self.norm_eps, dtype=self.dtype
        )(x, cells[level])
      return x

    def smooth(inner: Array, level: int) -> Array:
      """Applies the 3x3 convolution of a level; the padding becomes 0."""
      x = conv(inner, f'layer{level}', 3, level)
      return layers.zero_padding(x, cells[level])

    finest, coarsest = min(features), max(features)
    inner = conv(features[coarsest], f'inner{coarsest}', 1, coarsest)
    inner = layers.zero_padding(inner, cells[coarsest])
    pyramid = {coarsest: smooth(inner, coarsest)}
    for level in range(coarsest - 1, finest - 1, -1):
      lateral = conv(features[level], f'inner{level}', 1, level)
      size, half = lateral.shape[1:3], inner.shape[1:3]
      if size != (2 * half[0], 2 * half[1]):
        raise ValueError(
          f'Level {level} ({size[0]}x{size[1]}) must have twice the rows and '
          f'columns of level {level + 1} ({half[0]}x{half[1]}); pad the '
          f'images to a multiple of {2**coarsest}.'
        )
      inner = lateral + layers.upsample_2x(inner)
      inner = layers.zero_padding(inner, cells[level])
      pyramid[level] = smooth(inner, level)
    pyramid[coarsest + 1] = pyramid[coarsest][:, ::2, ::2]
    return dict(sorted(pyramid.items()))
