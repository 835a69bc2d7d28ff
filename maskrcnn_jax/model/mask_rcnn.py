"""The whole network of Mask R-CNN: backbone, pyramid and heads."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from maskrcnn_jax.array_types import Pyramid, ValidCells
from maskrcnn_jax.model import layers
from maskrcnn_jax.model.backbone import BackboneOptions, make_backbone
from maskrcnn_jax.model.box_head import BoxHead, BoxOutput
from maskrcnn_jax.model.fpn import Fpn
from maskrcnn_jax.model.mask_head import MaskHead
from maskrcnn_jax.model.rpn_head import RpnHead, RpnOutput


class MaskRCNN(nn.Module):
  """The network of Mask R-CNN, in four methods: all that has parameters.

  `extract`, `propose`, `classify` and `segment` are called in this order.
  Proposals, RoIs and pooling are computed between them, outside the network,
  because they have no parameters. The network has no train mode and computes no
  loss. Call a method with
  `network.apply(variables, x, method='extract')`. `variables` holds `params`
  and, under frozen batch norm, `constants`.

  Attributes:
    num_classes: Number of classes, background included.
    has_box_head: Whether there is a box head. Without it, the network is a
      region proposal network.
    has_mask_head: Whether there is a mask head. Without it, the network is
      Faster R-CNN.
    backbone_name: Name of the backbone: see `make_backbone`.
    body: 'fpn' uses all four stages of the backbone, with a pyramid on top.
      'c4' uses three stages and pools RoIs from the last of them; the fourth
      stage is the first part of the box head and of the mask head. 'c5' pools
      RoIs from the fourth stage, which has stride 32. 'dc5' is 'c5' with a
      dilated fourth stage, which has stride 16.
    depth: Number of layers of the ResNet: 18, 34, 50 or 101.
    groups: Number of groups of the 3x3 convolution of a bottleneck of the
      ResNet.
    group_width: Number of channels of each group in the first stage if `width`
      is 64.
    norm: 'frozen_batch' is frozen batch norm in the backbone and no norm
      elsewhere. 'group' is group norm in the backbone, in the pyramid and in
      the convolutions of the box and mask heads. 'frozen_batch_all' is frozen
      batch norm in all of these.
    norm_eps: Number that the frozen batch norm adds to the variance.
    stride_in_1x1: Whether the first 1x1 convolution of a bottleneck has the
      stride. If not, the 3x3 convolution has it.
    width: Number of channels of the ResNet's stem; 32 makes a small backbone.
    fpn_channels: Number of channels of each level of the pyramid.
    anchors_per_cell: Number of anchors at each cell of each level.
    rpn_convs: Number of 3x3 convolutions of the RPN head.
    box_convs: Number of 3x3 convolutions of the box head; 4 with group norm.
    box_fcs: Number of fully connected layers of the box head; 1 with group
      norm.
    box_features: Number of outputs of each fully connected layer.
    mask_convs: Number of 3x3 convolutions of the mask head.
    mask_channels: Number of channels of these convolutions, and of the
      transposed convolution that follows them.
    dtype: Dtype that convolutions and matrix products are computed in.
      Parameters and the outputs of the heads are float32.

  Source:
    Mask R-CNN (arXiv:1703.06870), figure 4: 'c4' on the left, 'fpn' on the
    right.
  """

  num_classes: int
  has_box_head: bool = True
  has_mask_head: bool = True
  backbone_name: str = 'resnet'
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
    """Makes the backbone, the pyramid if there is one, and the heads."""
    # {norm: (norm of the backbone, norm of the pyramid and the heads)}.
    norms = {
      'frozen_batch': ('frozen_batch', None),
      'frozen_batch_all': ('frozen_batch', 'frozen_batch'),
      'group': ('group', 'group'),
    }
    body_norm, head_norm = norms[self.norm]

    has_pyramid = self.body == 'fpn'
    self.backbone = make_backbone(
      self.backbone_name,
      BackboneOptions(
        depth=self.depth,
        width=self.width,
        groups=self.groups,
        group_width=self.group_width,
        norm=body_norm,
        norm_eps=self.norm_eps,
        stride_in_1x1=self.stride_in_1x1,
        dilate_last=self.body == 'dc5',
        num_stages=3 if self.body == 'c4' else 4,
        dtype=self.dtype,
      ),
    )
    if has_pyramid:
      self.fpn = Fpn(
        channels=self.fpn_channels,
        norm=head_norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
      )
    self.rpn = RpnHead(
      anchors_per_cell=self.anchors_per_cell,
      num_convs=self.rpn_convs,
      dtype=self.dtype,
    )
    if self.has_box_head:
      self.box_head = BoxHead(
        num_classes=self.num_classes,
        num_convs=self.box_convs,
        num_fcs=self.box_fcs,
        features=self.box_features,
        norm=head_norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
      )
    if self.has_mask_head:
      self.mask_head = MaskHead(
        num_classes=self.num_classes,
        num_convs=self.mask_convs,
        channels=self.mask_channels,
        norm=head_norm,
        norm_eps=self.norm_eps,
        dtype=self.dtype,
      )

  def extract(
    self, images: Float[Array, 'b h w 3'], valid: ValidCells | None = None
  ) -> Pyramid:
    """Returns the feature maps that RPN and heads use.

    With a pyramid they have levels 2 to 6. Without one they have a single
    level: 4 with the body 'c4' or 'dc5', 5 with 'c5'. The features of the
    padding are 0.

    Args:
      images: Normalised images, padded with zeros to multiples of 32 pixels.
      valid: Which cells of levels 1 to 5 are not padding; `None` if none is.
    """
    features = self.backbone(images, valid)
    if self.body == 'fpn':
      return self.fpn(features, valid)
    level, last = max(features.items())
    return {
      level: last if valid is None else layers.zero_padding(last, valid[level])
    }

  def propose(
    self, pyramid: Pyramid, valid: ValidCells | None = None
  ) -> RpnOutput:
    """Returns the objectness logits and the deltas of all anchors.

    Anchors are ordered by level, finest first, then by row, by column and by
    their number at the cell.

    Args:
      pyramid: The result of `extract`.
      valid: Which cells of each of its levels are not padding; `None` if none
        is.
    """
    return self.rpn(pyramid, valid)

  def classify(self, pooled: Float[Array, 'b r s s c']) -> BoxOutput:
    """Returns the class logits of each RoI, and its deltas for each class.

    Both have all `num_classes` classes; class 0 is background. In a model with
    the body 'c4', the fourth stage of the backbone is applied first.

    Args:
      pooled: Pooled features of the RoIs of each image.
    """
    return self.box_head(self._apply_last_stage(pooled))

  def segment(
    self,
    pooled: Float[Array, 'b r s s c'],
    classes: Int[Array, 'b r'] | None = None,
  ) -> Float[Array, 'b r m m k']:
    """Returns the mask logits of each class, or of one class, for each RoI.

    The side m is 2 s. With the body 'c4' it is s, because the last stage of the
    backbone halves the side first.

    Args:
      pooled: Pooled features of the RoIs.
      classes: Class of each RoI, whose mask alone is computed; k is then 1.
        `None` computes the masks of all k classes.
    """
    return self.mask_head(self._apply_last_stage(pooled), classes)

  def _apply_last_stage(
    self, pooled: Float[Array, 'b r s s c']
  ) -> Float[Array, 'b r s2 s2 c2']:
    """Applies the fourth stage of the backbone if the body is 'c4'.

    With any other body, the backbone has applied the fourth stage to the whole
    image, and the pooled features are returned unchanged.
    """
    if self.body != 'c4':
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
    """Runs every part of the network once, so that `init` makes all parameters.

    The heads get one RoI of zeros for each image.

    Args:
      images: Images of any size; 64x64 pixels are enough.
      box_side: Number of cells along each side of the box head's input. It
        decides the shape of `fc6`.
      mask_side: Number of cells along each side of the mask head's input.

    Returns:
      The results of `extract`, `propose`, `classify` and `segment`; `None` for
      a head that the network does not have.
    """
    pyramid = self.extract(images)
    rpn = self.propose(pyramid)
    # All levels have the same number of channels.
    channels = pyramid[max(pyramid)].shape[-1]

    def zeros(side: int) -> Array:
      """Returns pooled features of one RoI for each image, all zero."""
      return jnp.zeros((images.shape[0], 1, side, side, channels))

    return (
      pyramid,
      rpn,
      self.classify(zeros(box_side)) if self.has_box_head else None,
      self.segment(zeros(mask_side)) if self.has_mask_head else None,
    )
