"""The box conventions as data: one value for every choice that peers differ in.

The rest of the code receives these values as arguments and never asks which
preset they come from.
"""

from typing import NamedTuple


class Geometry(NamedTuple):
  """How boxes, anchors and RoIs are measured."""

  name: str
  # Weights of (dx, dy, dw, dh) of an anchor and of a RoI.
  anchor_delta_weights: tuple[float, float, float, float]
  roi_delta_weights: tuple[float, float, float, float]
  # The RPN sees an image as padded to a multiple of this many pixels; anchors
  # centred beyond that do not exist, however large the static canvas is.
  padding_multiple: int
  # Boxes are pooled from level floor(4 + log2(sqrt(area) / 224 + epsilon)).
  level_epsilon: float
  # What is subtracted from a RoI's coordinates in cells: 0.5 puts the samples
  # between the cell centres that they lie between ("aligned").
  roi_offset: float
  # Bilinear samples along each side of a pooled cell.
  sampling_ratio: int
  # Where smooth L1 turns from a parabola into a line; 0 is plain L1.
  anchor_smooth_l1_beta: float
  roi_smooth_l1_beta: float
  # A detected mask is foreground where its probability is at least this.
  mask_threshold: float


# Source: detectron2 `modeling/{anchor_generator,box_regression,poolers}.py` and
# `layers/{roi_align,mask_ops}.py`: widths without +1, unrounded anchors about
# the cell's corner, aligned RoIAlign.
# Differs: two samples a side where detectron2 takes as many as the cell is
# wide; its own comparison with Detectron takes two as well.
MODERN = Geometry(
    name='modern',
    anchor_delta_weights=(1.0, 1.0, 1.0, 1.0),
    roi_delta_weights=(10.0, 10.0, 5.0, 5.0),
    padding_multiple=32,
    level_epsilon=1e-8,
    roi_offset=0.5,
    sampling_ratio=2,
    anchor_smooth_l1_beta=0.0,
    roi_smooth_l1_beta=0.0,
    mask_threshold=0.5,
)

PRESETS = {'modern': MODERN}
