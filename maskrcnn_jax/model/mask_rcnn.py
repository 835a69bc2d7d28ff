"""Mask R-CNN: everything with parameters, in the order it is used."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from maskrcnn_jax.array_types import Pyramid
from maskrcnn_jax.model.box_head import BoxHead, BoxOutput
from maskrcnn_jax.model.fpn import Fpn
from maskrcnn_jax.model.mask_head import MaskHead
from maskrcnn_jax.model.resnet import ResNet
from maskrcnn_jax.model.rpn_head import RpnHead, RpnOutput


class MaskRCNN(nn.Module):
  """The network of Mask R-CNN, as four functions of its parameters.

  It has no train mode and computes no loss: proposals, RoIs and pooling lie
  between its methods and have no parameters. Call a method with
  `model.apply(variables, x, method='extract')`. `variables` holds `params`
  and, under frozen batch norm, `constants`.

  Attributes:
    num_classes: With background.
    depth: Of the ResNet: 18, 34, 50 or 101.
    norm: 'frozen_batch': in the backbone, none elsewhere. 'group': also in
      the pyramid and in the convolutions of the box and mask heads.
    norm_eps: Of the frozen batch norm.
    stride_in_1x1: Where a bottleneck strides.
    width: Channels of the stem; 32 makes a small backbone.
    fpn_channels: Of each level of the pyramid.
    anchors_per_cell: Anchors at each cell of each level.
    box_convs: 3x3 convolutions of the box head; 4 with group norm.
    box_fcs: Fully connected layers of the box head; 1 with group norm.
    box_features: Width of them.
    mask_convs: 3x3 convolutions of the mask head.
    mask_channels: Of them.
    dtype: Of convolutions and matrix products; parameters and the outputs of
      the heads are float32.
  """

  num_classes: int
  depth: int = 50
  norm: str = 'frozen_batch'
  norm_eps: float = 1e-5
  stride_in_1x1: bool = False
  width: int = 64
  fpn_channels: int = 256
  anchors_per_cell: int = 3
  box_convs: int = 0
  box_fcs: int = 2
  box_features: int = 1024
  mask_convs: int = 4
  mask_channels: int = 256
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    use_group_norm = self.norm == 'group'
    self.backbone = ResNet(
        depth=self.depth,
        width=self.width,
        norm=self.norm,
        norm_eps=self.norm_eps,
        stride_in_1x1=self.stride_in_1x1,
        dtype=self.dtype,
    )
    self.fpn = Fpn(
        channels=self.fpn_channels,
        use_group_norm=use_group_norm,
        dtype=self.dtype,
    )
    self.rpn = RpnHead(anchors_per_cell=self.anchors_per_cell, dtype=self.dtype)
    self.box_head = BoxHead(
        num_classes=self.num_classes,
        num_convs=self.box_convs,
        num_fcs=self.box_fcs,
        features=self.box_features,
        use_group_norm=use_group_norm,
        dtype=self.dtype,
    )
    self.mask_head = MaskHead(
        num_classes=self.num_classes,
        num_convs=self.mask_convs,
        channels=self.mask_channels,
        use_group_norm=use_group_norm,
        dtype=self.dtype,
    )

  def extract(self, images: Float[Array, 'b h w 3']) -> Pyramid:
    """Turns normalised images, padded to multiples of 32, into levels 2..6."""
    return self.fpn(self.backbone(images))

  def propose(self, pyramid: Pyramid) -> RpnOutput:
    """Rates and shifts every anchor; finest level, top left cell first."""
    return self.rpn(pyramid)

  def classify(self, pooled: Float[Array, 'b r s s c']) -> BoxOutput:
    """Rates every class for each RoI, and shifts the RoI for each class."""
    return self.box_head(pooled)

  def segment(
      self, pooled: Float[Array, 'b r s s c']
  ) -> Float[Array, 'b r m m k']:
    """Draws a mask of each class in each RoI, as logits; m = 2 s."""
    return self.mask_head(pooled)

  def __call__(
      self,
      images: Float[Array, 'b h w 3'],
      *,
      box_side: int = 7,
      mask_side: int = 14,
  ) -> tuple[Pyramid, RpnOutput, BoxOutput, Float[Array, 'b r m m k']]:
    """Runs every part once, with one RoI of zeros an image: for `init`.

    Args:
      images: Their size does not matter: 64x64 does.
      box_side: Pooled side that the box head will get; shapes `fc6`.
      mask_side: Pooled side that the mask head will get.
    """
    pyramid = self.extract(images)
    rpn = self.propose(pyramid)

    def pool(side):
      return jnp.zeros((images.shape[0], 1, side, side, self.fpn_channels))

    return (
        pyramid,
        rpn,
        self.classify(pool(box_side)),
        self.segment(pool(mask_side)),
    )


def frozen_prefixes(freeze_at: int) -> tuple[tuple[str, ...], ...]:
  """Names the parts of the backbone that are not trained.

  Args:
    freeze_at: How many, from the image on: 0 none, 1 the stem, 2 also
      `layer1`, ..., 5 the whole backbone.

  Returns:
    Prefixes of paths into `params`: (('backbone', 'conv1'), ...).

  Raises:
    ValueError: `freeze_at` is not in 0..5.

  Source:
    Seed: MODEL.BACKBONE.FREEZE_CONV_BODY_AT.
  """
  if freeze_at not in range(6):
    raise ValueError(f'freeze_at must be 0, 1, ..., 5, not {freeze_at}.')
  if freeze_at == 0:
    return ()
  stem = (('backbone', 'conv1'), ('backbone', 'bn1'))
  return stem + tuple(('backbone', f'layer{i}') for i in range(1, freeze_at))
