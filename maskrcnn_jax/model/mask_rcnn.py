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
    output: 'masks'; 'boxes': without the mask head, which is Faster R-CNN;
      'proposals': without the box head too.
    body: 'fpn': all four stages of the ResNet, below a pyramid. 'c4': three,
      and RoIs are pooled from the last; the fourth is the first part of the
      box head and of the mask head.
    depth: Of the ResNet: 18, 34, 50 or 101.
    groups: See `ResNet`.
    group_width: See `ResNet`.
    norm: 'frozen_batch': in the backbone, none elsewhere. 'group': also in
      the pyramid and in the convolutions of the box and mask heads.
      'frozen_batch_all': frozen batch norm in these too.
    norm_eps: Of the frozen batch norm.
    stride_in_1x1: Where a bottleneck strides.
    width: Channels of the stem; 32 makes a small backbone.
    fpn_channels: Of each level of the pyramid.
    anchors_per_cell: Anchors at each cell of each level.
    rpn_convs: 3x3 convolutions of the RPN head.
    box_convs: 3x3 convolutions of the box head; 4 with group norm.
    box_fcs: Fully connected layers of the box head; 1 with group norm.
    box_features: Width of them.
    mask_convs: 3x3 convolutions of the mask head.
    mask_channels: Of them and of the doubling after them.
    dtype: Of convolutions and matrix products; parameters and the outputs of
      the heads are float32.

  Source:
    Mask R-CNN (arXiv:1703.06870), figure 4: 'c4' on the left, 'fpn' on the
    right.
  """

  num_classes: int
  output: str = 'masks'
  body: str = 'fpn'
  depth: int = 50
  groups: int = 1
  group_width: int = 64
  norm: str = 'frozen_batch'
  norm_eps: float = 1e-5
  stride_in_1x1: bool = False
  width: int = 64
  fpn_channels: int = 256
  anchors_per_cell: int = 3
  rpn_convs: int = 1
  box_convs: int = 0
  box_fcs: int = 2
  box_features: int = 1024
  mask_convs: int = 4
  mask_channels: int = 256
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    norms = {
        'frozen_batch': ('frozen_batch', None),
        'frozen_batch_all': ('frozen_batch', 'frozen_batch'),
        'group': ('group', 'group'),
    }
    body_norm, head_norm = norms[self.norm]
    sizes = dict(
        depth=self.depth,
        width=self.width,
        groups=self.groups,
        group_width=self.group_width,
        norm=body_norm,
        norm_eps=self.norm_eps,
        stride_in_1x1=self.stride_in_1x1,
        dtype=self.dtype,
    )
    head_arguments = dict(
        norm=head_norm, norm_eps=self.norm_eps, dtype=self.dtype
    )
    if self.body == 'fpn':
      self.backbone = ResNet(**sizes)
      self.fpn = Fpn(channels=self.fpn_channels, **head_arguments)
    else:
      self.backbone = ResNet(num_stages=3, **sizes)
    self.rpn = RpnHead(
        anchors_per_cell=self.anchors_per_cell,
        num_convs=self.rpn_convs,
        dtype=self.dtype,
    )
    if self.output != 'proposals':
      self.box_head = BoxHead(
          num_classes=self.num_classes,
          num_convs=self.box_convs,
          num_fcs=self.box_fcs,
          features=self.box_features,
          **head_arguments,
      )
    if self.output == 'masks':
      self.mask_head = MaskHead(
          num_classes=self.num_classes,
          num_convs=self.mask_convs,
          channels=self.mask_channels,
          **head_arguments,
      )

  def extract(self, images: Float[Array, 'b h w 3']) -> Pyramid:
    """Turns normalised images into levels 2..6, or into level 4 alone.

    Args:
      images: Padded to multiples of 32.
    """
    features = self.backbone(images)
    return self.fpn(features) if self.body == 'fpn' else {4: features[4]}

  def propose(self, pyramid: Pyramid) -> RpnOutput:
    """Rates and shifts every anchor; finest level, top left cell first."""
    return self.rpn(pyramid)

  def classify(self, pooled: Float[Array, 'b r s s c']) -> BoxOutput:
    """Rates every class for each RoI, and shifts the RoI for each class."""
    return self.box_head(self._look_closer(pooled))

  def segment(
      self, pooled: Float[Array, 'b r s s c']
  ) -> Float[Array, 'b r m m k']:
    """Draws a mask of each class in each RoI, as logits.

    m = 2 s; s where a stage of the ResNet halves the side before.
    """
    return self.mask_head(self._look_closer(pooled))

  def _look_closer(self, pooled):
    """Applies the part of the ResNet that lies behind the pooling, if any."""
    if self.body == 'fpn':
      return pooled
    b, r, s, _, c = pooled.shape
    x = self.backbone.last_stage(pooled.reshape(b * r, s, s, c))
    return x.reshape(b, r, *x.shape[1:])

  def __call__(
      self,
      images: Float[Array, 'b h w 3'],
      *,
      box_side: int = 7,
      mask_side: int = 14,
  ) -> tuple[
      Pyramid, RpnOutput, BoxOutput | None, Float[Array, 'b r m m k'] | None
  ]:
    """Runs every part once, with one RoI of zeros an image: for `init`.

    Args:
      images: Their size does not matter: 64x64 does.
      box_side: Pooled side that the box head will get; shapes `fc6`.
      mask_side: Pooled side that the mask head will get.
    """
    pyramid = self.extract(images)
    rpn = self.propose(pyramid)
    channels = pyramid[4].shape[-1]

    def pool(side):
      return jnp.zeros((images.shape[0], 1, side, side, channels))

    return (
        pyramid,
        rpn,
        None if self.output == 'proposals' else self.classify(pool(box_side)),
        self.segment(pool(mask_side)) if self.output == 'masks' else None,
    )
