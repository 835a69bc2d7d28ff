"""The mask head: predicts which pixels of a RoI belong to its object."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maskrcnn_jax.model import layers


class MaskLogits(layers.Conv):
  """A 1x1 convolution that computes the masks of all classes, or of one class.

  The attributes are those of `layers.Conv`.
  """

  def __call__(
    self,
    x: Float[Array, 'n h w c'],
    classes: Int[Array, 'n'] | None = None,
  ) -> Float[Array, 'n h w k']:
    """Returns one channel for each class, or one for the class of each row.

    Args:
      x: Features of n RoIs.
      classes: Class of each RoI, the output channel that is computed for it;
        k is then 1. `None` computes all channels.
    """
    if classes is None:
      return super().__call__(x)
    return self._compute_one_channel(x, classes)

  @nn.compact
  def _compute_one_channel(
    self, x: Float[Array, 'n h w c'], classes: Int[Array, 'n']
  ) -> Float[Array, 'n h w 1']:
    """Returns the output channel `classes` of each of the n rows."""
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)[0, 0]
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    # As products, so that the gradients are products too, and nothing is added
    # atomically.
    is_class = nn.one_hot(classes, self.features)
    weights, offsets = (
      jnp.einsum(axes, is_class, x, precision=jax.lax.Precision.HIGHEST)
      for axes, x in (('nk,ck->nc', kernel), ('nk,k->n', bias))
    )
    # Products of `dtype`, summed in float32.
    x, weights = (
      a.astype(self.dtype).astype(jnp.float32) for a in (x, weights)
    )
    sums = jnp.sum(x * weights[:, None, None], axis=-1)
    return (sums + offsets[:, None, None])[..., None].astype(self.dtype)


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
    self,
    pooled: Float[Array, 'b r s s c'],
    classes: Int[Array, 'b r'] | None = None,
  ) -> Float[Array, 'b r m m k']:
    """Returns float32 mask logits; their side m is twice the pooled side s.

    A ReLU follows each 3x3 convolution and the upsampling.

    Args:
      pooled: Pooled features of the r RoIs of each of the b images, with s
        cells along each side.
      classes: Class of each RoI, whose mask alone is computed. `None` computes
        the masks of all classes.

    Returns:
      For each RoI, one mask of m x m cells for each of the k classes, or k = 1
      mask for the class that `classes` has.
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
    mask_logits = MaskLogits(
      self.num_classes,
      kernel_init=layers.kaiming_normal,
      dtype=self.dtype,
      name='mask_fcn_logits',
    )(x, None if classes is None else classes.reshape(-1))
    return mask_logits.reshape(
      batch_size, num_rois, 2 * side, 2 * side, mask_logits.shape[-1]
    ).astype(jnp.float32)
