"""The conventions of boxes and images in which Mask R-CNN programs differ.

A preset has the conventions of one program: one value for each choice. The rest
of the code receives these values as arguments and never asks which preset they
come from.
"""

from typing import NamedTuple

# One number for each channel of an image.
ByChannel = tuple[float, float, float]


class InputFormat(NamedTuple):
  """The pixel format and the resizing that a preset's weights were trained on.

  This program always passes RGB in [0, 255] to the network. If weights were
  trained on BGR, the conversion of the weights exchanges the input channels of
  their first convolution.
  """

  channel_order: str  # 'RGB' or 'BGR'; the order of mean and std too
  white: float  # the value of a white pixel: 1 or 255
  mean: ByChannel  # subtracted from each channel
  std: ByChannel  # each channel is then divided by it
  # How the sides of a resized image are rounded: 'nearest', 'down' or 'legacy';
  # see `data.canvases.resized_size`.
  resize_rule: str
  # Whether images are resized as PIL does it, or as torchvision does it; see
  # `ops.resize.resize_image`.
  antialias: bool

  def rgb_255(self) -> tuple[ByChannel, ByChannel]:
    """Returns mean and std for images whose pixels are RGB in [0, 255].

    `mean` and `std` of a preset are for its own order of channels and its own
    white. The result has the order red, green, blue, and both are multiplied by
    255 / `white`, so that (pixel - mean) / std gives the numbers that the
    weights were trained on.
    """
    step = {'RGB': 1, 'BGR': -1}[self.channel_order]

    def convert(values: ByChannel) -> ByChannel:
      """Reorders the channels and scales their values from white to 255."""
      # Rounding removes the floating-point error of the product, for example
      # of .406 * 255.
      red, green, blue = (
        round(255 / self.white * x, 9) for x in values[::step]
      )
      return red, green, blue

    return convert(self.mean), convert(self.std)


class Geometry(NamedTuple):
  """How boxes, anchors, RoIs and masks are measured and rounded."""

  name: str  # name of the preset in a recipe
  # A box is x2 - x1 plus this many pixels wide. It is 1 where (x2, y2) is the
  # last pixel inside the box; the largest coordinate in an image is then its
  # width or height minus 1. Otherwise it is 0.
  width_offset: float
  # Factors that encoded offsets (dx, dy, dw, dh) are multiplied by.
  anchor_delta_weights: tuple[float, float, float, float]
  roi_delta_weights: tuple[float, float, float, float]
  # How anchors are rounded: 'none', 'corners' or 'stride'; see
  # `ops.anchors.cell_anchors`.
  anchor_rounding: str
  # Whether the stride of a level is the side of the padded image divided by its
  # number of cells, rounded down, even if that is not a power of two.
  fit_strides: bool
  # Whether training ignores anchors that cross an edge of the image.
  ignore_straddling: bool
  # The RPN treats an image as padded to a multiple of this many pixels. Anchors
  # centred beyond that do not exist, although the static padded size may be
  # larger.
  padding_multiple: int
  # Smallest side of a proposal and of a detection, in pixels. Boxes without an
  # area are always dropped.
  proposal_min_size: float
  detection_min_size: float
  # Boxes are pooled from level
  # floor(4 + log2(sqrt(area) / 224 + level_epsilon) + level_shift).
  level_epsilon: float
  level_shift: float
  # RoIAlign subtracts this number of cells from the coordinates of a RoI. With
  # 0.5, a sample is interpolated between the cells whose centres surround it
  # ("aligned").
  roi_offset: float
  # If a side of a RoI is shorter than this many cells, it is pooled as if it
  # were this long.
  roi_min_side: float
  # Number of bilinear samples along each side of a pooled cell. With 0, it is
  # the length of the pooled cell in cells of the level, rounded up
  # ("adaptive").
  sampling_ratio: int
  # Whether the losses of the RPN are divided by the number of slots of a
  # sample, even if fewer anchors were sampled.
  anchor_loss_over_slots: bool
  # Error, unitless, at which smooth L1 turns from a parabola into a line; 0 is
  # plain L1.
  anchor_smooth_l1_beta: float
  roi_smooth_l1_beta: float
  # How the targets of the mask head are drawn. 'outline': a cell is 1 if its
  # centre is inside the outline. 'bitmap': the pixels of the object are pooled
  # as RoIAlign pools features.
  mask_targets: str
  # If a side of a RoI is shorter than this many pixels, its mask target is
  # drawn as if the side were this long.
  mask_min_side: float
  # How a detected mask is pasted into the image: 'sampled' or 'resized'; see
  # `mask_paste.paste_masks`.
  paste_rule: str
  # A pixel belongs to a detected object if its probability is at least this
  # (under the paste rule 'resized': more than this).
  mask_threshold: float
  input_format: InputFormat


# Source: detectron2 `modeling/{anchor_generator,box_regression,poolers}.py`,
# `modeling/proposal_generator/rpn.py` and `layers/{roi_align,mask_ops}.py`:
# widths without +1, unrounded anchors centred on the cell's corner, aligned
# RoIAlign. The pixel format is that of detectron2 with a backbone from
# torchvision (`tools/convert-torchvision-to-d2.py`).
# Differs: detectron2's own published weights were trained on BGR with std 1; a
# recipe for them overrides mean and std.
MODERN = Geometry(
  name='modern',
  width_offset=0.0,
  anchor_delta_weights=(1.0, 1.0, 1.0, 1.0),
  roi_delta_weights=(10.0, 10.0, 5.0, 5.0),
  anchor_rounding='none',
  fit_strides=False,
  ignore_straddling=False,
  padding_multiple=32,
  proposal_min_size=0.0,
  detection_min_size=0.0,
  level_epsilon=1e-8,
  level_shift=0.0,
  roi_offset=0.5,
  roi_min_side=0.0,
  sampling_ratio=0,
  anchor_loss_over_slots=True,
  anchor_smooth_l1_beta=0.0,
  roi_smooth_l1_beta=0.0,
  mask_targets='outline',
  mask_min_side=0.1,
  paste_rule='sampled',
  mask_threshold=0.5,
  input_format=InputFormat(
    channel_order='RGB',
    white=255.0,
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    resize_rule='nearest',
    antialias=True,
  ),
)

# Source: torchvision 0.28 `models/detection/{anchor_utils,rpn,roi_heads,
# transform}.py`, `ops/poolers.py`.
TORCHVISION = Geometry(
  name='torchvision',
  width_offset=0.0,
  anchor_delta_weights=(1.0, 1.0, 1.0, 1.0),
  roi_delta_weights=(10.0, 10.0, 5.0, 5.0),
  anchor_rounding='corners',
  fit_strides=True,
  ignore_straddling=False,
  padding_multiple=32,
  proposal_min_size=1e-3,
  detection_min_size=1e-2,
  level_epsilon=0.0,
  level_shift=1e-6,
  roi_offset=0.0,
  roi_min_side=1.0,
  sampling_ratio=2,
  anchor_loss_over_slots=False,
  anchor_smooth_l1_beta=1 / 9,
  roi_smooth_l1_beta=1 / 9,
  mask_targets='bitmap',
  mask_min_side=1.0,
  paste_rule='resized',
  mask_threshold=0.5,
  input_format=InputFormat(
    channel_order='RGB',
    white=1.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize_rule='down',
    antialias=False,
  ),
)

# Source: NVIDIA's Mask R-CNN For PyTorch and maskrcnn-benchmark, `structures/
# {bounding_box,boxlist_ops,segmentation_mask}.py`, `modeling/{box_coder,
# poolers}.py`, `modeling/rpn/{anchor_generator,loss}.py`, `modeling/roi_heads/
# mask_head/inference.py`, `data/transforms/`.
LEGACY = Geometry(
  name='legacy',
  width_offset=1.0,
  anchor_delta_weights=(1.0, 1.0, 1.0, 1.0),
  roi_delta_weights=(10.0, 10.0, 5.0, 5.0),
  anchor_rounding='stride',
  fit_strides=False,
  ignore_straddling=True,
  padding_multiple=32,
  proposal_min_size=0.0,
  detection_min_size=0.0,
  level_epsilon=1e-6,
  level_shift=0.0,
  roi_offset=0.0,
  roi_min_side=1.0,
  sampling_ratio=2,
  anchor_loss_over_slots=False,
  anchor_smooth_l1_beta=1 / 9,
  roi_smooth_l1_beta=1.0,
  mask_targets='outline',
  mask_min_side=1.0,
  paste_rule='resized',
  mask_threshold=0.5,
  input_format=InputFormat(
    channel_order='BGR',
    white=255.0,
    mean=(102.9801, 115.9465, 122.7717),
    std=(1.0, 1.0, 1.0),
    resize_rule='legacy',
    antialias=True,
  ),
)

PRESETS = {
  geometry.name: geometry for geometry in (MODERN, TORCHVISION, LEGACY)
}
