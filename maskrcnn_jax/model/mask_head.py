"""The mask head: predicts which pixels of a RoI belong to its object."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.model import layers


class MaskHead(nn.Module):
  """3x3 convolutions, a 2x upsampling, and one mask for each class.

  Attributes:
    num_classes: Number of classes, background included.
    num_convs: Number of 3x3 convolutions `mask_fcn1`, `mask_fcn2`, ...
    channels: Number of output channels of each convolution and of the
      upsampling.
    norm: Norm that replaces the bias of each 3x3 convolution: 'group' or
      'frozen_batch'. `None` keeps the bias.
    norm_eps: Number that the frozen batch norm adds to the variance.
    dtype: Dtype of the arithmetic. The output is float32.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, modeling/roi_heads/mask_head/:
    MaskRCNNFPNFeatureExtractor and MaskRCNNC4Predictor.
  """

  num_classes: int
  num_convs: int = 4
  channels: int = 256
  norm: str | None = None
  norm_eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, pooled: Float[Array, 'b r s s c']
  ) -> Float[Array, 'b r m m k']:
    """Returns float32 mask logits; their side m is twice the pooled side s.

    A ReLU follows each 3x3 convolution and the upsampling.

    Args:
      pooled: Pooled features of the r RoIs of each of the b images, with s
        cells along each side.

    Returns:
      For each RoI, one mask of m x m cells for each of the k classes.
    """
    batch_size, num_rois, side, _, channels = pooled.shape
    x = pooled.reshape(batch_size * num_rois, side, side, channels)
    for i in range(1, self.num_convs + 1):
      x = layers.Conv(
        self.channels,
        3,
        use_bias=self.norm is None,
        kernel_init=layers.kaiming_normal,
        dtype=self.dtype,
        name=f'mask_fcn{i}',
      )(x)
      if self.norm is not None:
        x = layers.make_norm(
          f'mask_fcn{i}_norm',
          norm=self.norm,
          eps=self.norm_eps,
          dtype=self.dtype,
        )(x)
      x = nn.relu(x)
    x = nn.relu(
      layers.Deconv2x2(self.channels, dtype=self.dtype, name='conv5_mask')(x)
    )
    mask_logits = layers.Conv(
      self.num_classes,
      kernel_init=layers.kaiming_normal,
      dtype=self.dtype,
      name='mask_fcn_logits',
    )(x)
    return mask_logits.reshape(
      batch_size, num_rois, 2 * side, 2 * side, self.num_classes
    ).astype(jnp.float32)
