"""The box conventions as data: one value for every choice that peers differ in.

The rest of the code receives these values as arguments and never asks which
preset they come from.
"""

from typing import NamedTuple


class InputFormat(NamedTuple):
  """What pixels a preset's own weights were trained on, and at what size.

  This program always feeds RGB in [0, 255]; weights that want BGR have the
  input channels of their first convolution exchanged when they are converted.
  """

  channel_order: str  # 'RGB' or 'BGR', of mean and std as well
  white: float  # the value of a white pixel: 1 or 255
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  # How the size to resize to is rounded: see `data.canvases.resized_size`.
  resize_rule: str
  # Whether shrinking averages over all the pixels that a new one covers.
  antialias: bool

  def rgb_255(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns (mean, std) for pixels in RGB and [0, 255]."""
    step = {'RGB': 1, 'BGR': -1}[self.channel_order]
    return tuple(
        # Free of the last digits that the product adds: .406 * 255.
        tuple(round(255 / self.white * x, 9) for x in values[::step])
        for values in (self.mean, self.std)
    )


class Geometry(NamedTuple):
  """How boxes, anchors and RoIs are measured."""

  name: str
  # A box is this much wider than x2 - x1: 1 where (x2, y2) is the last pixel
  # inside. Then also the largest coordinate in an image is its side less 1.
  width_offset: float
  # Weights of (dx, dy, dw, dh) of an anchor and of a RoI.
  anchor_delta_weights: tuple[float, float, float, float]
  roi_delta_weights: tuple[float, float, float, float]
  # What is rounded of an anchor: see `ops.anchors.cell_anchors`.
  anchor_rounding: str
  # Whether strides are the padded image's side over its number of cells,
  # rounded down, even where that is no power of two.
  fit_strides: bool
  # Whether anchors that cross an edge of the image are not learned from.
  ignore_straddling: bool
  # The RPN sees an image as padded to a multiple of this many pixels; anchors
  # centred beyond that do not exist, however large the static canvas is.
  padding_multiple: int
  # Smallest side of a proposal and of a detection, in pixels; without an area
  # none is kept.
  proposal_min_size: float
  detection_min_size: float
  # Boxes are pooled from level
  # floor(4 + log2(sqrt(area) / 224 + level_epsilon) + level_shift).
  level_epsilon: float
  level_shift: float
  # What is subtracted from a RoI's coordinates in cells: 0.5 puts the samples
  # between the cell centres that they lie between ("aligned").
  roi_offset: float
  # A smaller side of a RoI, in cells, is pooled as if it were this long.
  roi_min_side: float
  # Bilinear samples along each side of a pooled cell; 0: as many as the pooled
  # cell is cells of the level long, rounded up ("adaptive").
  sampling_ratio: int
  # Whether the RPN's losses are divided by the number of anchors that a sample
  # has room for, and not by the number that it has.
  anchor_loss_over_slots: bool
  # Where smooth L1 turns from a parabola into a line; 0 is plain L1.
  anchor_smooth_l1_beta: float
  roi_smooth_l1_beta: float
  # What a mask learns from: 'outline': inside or outside at the centres of its
  # cells; 'bitmap': the object's pixels, pooled as features are.
  mask_targets: str
  # A smaller side of a RoI, in pixels, is drawn into as if it were this long.
  mask_min_side: float
  # How a mask gets into the image: see `mask_paste.paste_masks`.
  paste_rule: str
  # A detected mask is foreground where its probability is at least this (more
  # than this, under the paste rule 'resized').
  mask_threshold: float
  input_format: InputFormat


# Source: detectron2 `modeling/{anchor_generator,box_regression,poolers}.py`,
# `modeling/proposal_generator/rpn.py` and `layers/{roi_align,mask_ops}.py`:
# widths without +1, unrounded anchors about the cell's corner, aligned
# RoIAlign. Pixels as detectron2 with a backbone of torchvision's
# (`tools/convert-torchvision-to-d2.py`).
# Differs: detectron2's own published weights want BGR with std 1; a recipe
# overrides mean and std.
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

PRESETS = {shape.name: shape for shape in (MODERN, TORCHVISION, LEGACY)}
