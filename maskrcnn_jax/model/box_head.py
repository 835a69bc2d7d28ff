"""The box head: predicts the class and the exact box of each RoI."""

from typing import NamedTuple

import flax.linen as nn
from flax.typing import Initializer
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.model import layers


class BoxOutput(NamedTuple):
  """The class and the boxes that the box head predicts for each RoI."""

  class_logits: Float[Array, 'b r k']  # column 0 is background; float32
  box_deltas: Float[Array, 'b r k 4']  # one box for each class; float32


class BoxHead(nn.Module):
  """Convolutions (if any), then fully connected layers, then two predictors.

  If there is no fully connected layer, the input of the predictors is the mean
  of all cells of the RoI.

  Attributes:
    num_classes: Number of classes, background included.
    num_convs: Number of 3x3 convolutions `conv1`, `conv2`, ... before `fc6`.
      They keep the number of channels.
    num_fcs: Number of fully connected layers `fc6`, `fc7`, ...
    features: Number of outputs of each fully connected layer.
    norm: Norm that replaces the bias of each 3x3 convolution: 'group' or
      'frozen_batch'. `None` keeps the bias.
    norm_eps: Number that the frozen batch norm adds to the variance.
    dtype: Dtype of the arithmetic. The outputs are float32.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, modeling/roi_heads/box_head/:
    FPN2MLPFeatureExtractor (0 convolutions, 2 fully connected layers),
    FPNXconv1fcFeatureExtractor (4 and 1) and, after a stage of the ResNet,
    ResNet50Conv5ROIFeatureExtractor (0 and 0); roi_box_predictors.py.
    Differs: the input of `fc6` is the RoI flattened as (row, column, channel),
    which is the order of the features in memory. NVIDIA's program has the
    channel first.
  """

  num_classes: int
  num_convs: int = 0
  num_fcs: int = 2
  features: int = 1024
  norm: str | None = None
  norm_eps: float = 1e-5
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, pooled: Float[Array, 'b r s s c']) -> BoxOutput:
    """Predicts class logits and box deltas of each RoI, both in float32.

    A ReLU follows each convolution and each fully connected layer, but not the
    two predictors `cls_score` and `bbox_pred`.

    Args:
      pooled: Pooled features of the r RoIs of each of the b images, with s
        cells along each side.

    Returns:
      Logits of the k classes, background first; and for each class (dx, dy, dw,
      dh), the encoded offsets of the box from the RoI.
    """
    batch_size, num_rois, side, _, channels = pooled.shape
    x = pooled.reshape(batch_size * num_rois, side, side, channels)
    for i in range(1, self.num_convs + 1):
      x = layers.Conv(
        channels,
        3,
        use_bias=self.norm is None,
        kernel_init=nn.initializers.normal(0.01),
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      if self.norm is not None:
        x = layers.make_norm(
          f'conv{i}_norm',
          norm=self.norm,
          eps=self.norm_eps,
          dtype=self.dtype,
        )(x)
      x = nn.relu(x)
    if self.num_fcs == 0:
      x = x.mean(axis=(1, 2)).reshape(batch_size, num_rois, channels)
    else:
      x = x.reshape(batch_size, num_rois, side * side * channels)

    def dense(name: str, features: int, kernel_init: Initializer) -> nn.Dense:
      """Makes a fully connected layer with `features` outputs and a bias."""
      return nn.Dense(
        features, kernel_init=kernel_init, dtype=self.dtype, name=name
      )

    for i in range(6, 6 + self.num_fcs):
      x = nn.relu(dense(f'fc{i}', self.features, layers.kaiming_uniform)(x))
    k = self.num_classes
    class_logits = dense('cls_score', k, nn.initializers.normal(0.01))(x)
    box_deltas = dense('bbox_pred', 4 * k, nn.initializers.normal(0.001))(x)
    return BoxOutput(
      class_logits.astype(jnp.float32),
      box_deltas.reshape(batch_size, num_rois, k, 4).astype(jnp.float32),
    )
