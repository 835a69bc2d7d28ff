"""The mask head: which pixels of a RoI belong to its object?"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.model import layers


class MaskHead(nn.Module):
  """3x3 convolutions, a doubling of the side, and one mask a class.

  Attributes:
    num_classes: With background.
    num_convs: 3x3 convolutions `mask_fcn1`, `mask_fcn2`, ...
    channels: Of each of them and of the doubling.
    norm: What follows each 3x3 convolution, in place of a bias: None, 'group'
      or 'frozen_batch'.
    norm_eps: Of the frozen batch norm.
    dtype: Of the arithmetic; the output is float32.

  Source:
    Seed: modeling/roi_heads/mask_head/, MaskRCNNFPNFeatureExtractor and
    MaskRCNNC4Predictor.
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
    """Returns mask logits of twice the pooled side, float32."""
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
            f'mask_fcn{i}_norm', norm=self.norm, eps=self.norm_eps,
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
