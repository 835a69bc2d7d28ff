"""The head of the RPN: predicts objectness and deltas of each anchor."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.array_types import Pyramid, ValidCells
from maskrcnn_jax.model import layers


class RpnOutput(NamedTuple):
  """Predictions for each anchor.

  Anchors are ordered by level, finest first, then by row, by column and by
  their number at the cell.
  """

  objectness_logits: Float[Array, 'b a']  # float32
  anchor_deltas: Float[Array, 'b a 4']  # float32


class RpnHead(nn.Module):
  """3x3 convolutions, then two 1x1 convolutions; all levels share the weights.

  Attributes:
    anchors_per_cell: Number of anchors at each cell of each level.
    num_convs: Number of 3x3 convolutions `conv`, `conv2`, ...
    dtype: Dtype of the arithmetic. The outputs are float32.

  Source:
    NVIDIA's Mask R-CNN For PyTorch, modeling/rpn/rpn.py, SingleConvRPNHead.
    Version 2 of torchvision's detectors has two 3x3 convolutions.
  """

  anchors_per_cell: int = 3
  num_convs: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, pyramid: Pyramid, valid: ValidCells | None = None
  ) -> RpnOutput:
    """Predicts objectness and deltas of all anchors of all levels.

    A ReLU follows each 3x3 convolution.

    Args:
      pyramid: Feature maps by level, all with the same number of channels, and
        0 in the padding.
      valid: Which cells of each level are not padding; `None` if none is.

    Returns:
      The logits [b, a] and the deltas [b, a, 4] of the anchors of all levels,
      concatenated along the axis of the anchors, finest level first.
    """
    finest = pyramid[min(pyramid)]
    batch_size, channels = finest.shape[0], finest.shape[-1]

    def conv(name: str, features: int, kernel_size: int) -> layers.Conv:
      """Makes a convolution with a normal initial kernel, deviation 0.01."""
      return layers.Conv(
        features,
        kernel_size,
        kernel_init=nn.initializers.normal(0.01),
        dtype=self.dtype,
        name=name,
      )

    cells = dict.fromkeys(pyramid) if valid is None else valid
    names = ['conv', *(f'conv{i}' for i in range(2, self.num_convs + 1))]
    shared = [conv(name, channels, 3) for name in names]
    cls_logits = conv('cls_logits', self.anchors_per_cell, 1)
    bbox_pred = conv('bbox_pred', 4 * self.anchors_per_cell, 1)

    objectness_logits, anchor_deltas = [], []
    for level in sorted(pyramid):
      x = pyramid[level]
      for i, layer in enumerate(shared):
        if i > 0:
          x = layers.zero_padding(x, cells[level])
        x = nn.relu(layer(x))
      objectness_logits.append(cls_logits(x).reshape(batch_size, -1))
      anchor_deltas.append(bbox_pred(x).reshape(batch_size, -1, 4))
    return RpnOutput(
      jnp.concatenate(objectness_logits, axis=1).astype(jnp.float32),
      jnp.concatenate(anchor_deltas, axis=1).astype(jnp.float32),
    )
