"""Axis letters, and the tuples of arrays that cross from file to file.

Axis letters: b images, h w rows and columns, c channels, l levels, a anchors
of all levels together, g ground-truth slots, v outline vertices of one image,
p proposals, r RoIs, d detections, k classes with background, m mask side,
s pooled side, *n any leading axes.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

# What the host makes is NumPy; what a jitted function sees is a JAX array.
AnyArray = Array | np.ndarray

# {2: [b h w c], ..., 6: [b h w c]}: one feature map a level, stride 2**level.
Pyramid = dict[int, Array]


class Outlines(NamedTuple):
  """The outlines of the objects of one image (or, with b, of each image).

  All vertices of all objects lie in one buffer, object after object.  Vertex i
  starts an edge to vertex i + 1 when `parts[i]` >= 0; a part is one polygon of
  an object (or, for an object given as RLE, its whole contour).  Inside a part
  the even-odd rule holds; the object is the union of its parts.
  """

  vertices: Float[AnyArray, '*b v 2']  # (x, y) in pixels, frame of gt_boxes
  parts: Int[AnyArray, '*b v']  # part the edge belongs to, -1: no edge
  starts: Int[AnyArray, '*b g1']  # object g owns [starts[g], starts[g + 1])


class GroundTruthLimits(NamedTuple):
  """Static sizes that hold the ground truth of each image of a data set."""

  max_objects: int  # of one image
  max_image_vertices: int  # of the outlines of one image's objects together
  max_object_vertices: int  # of the outline of one object
  max_parts: int  # polygons of one object


class Batch(NamedTuple):
  """What the host sends to the device for one step."""

  images: UInt8[AnyArray, 'b h w 3']  # RGB, top left corner of a canvas
  source_sizes: Int[AnyArray, 'b 2']  # (height, width) of the decoded image
  image_sizes: Int[AnyArray, 'b 2']  # (height, width) to resize it to
  image_valid: Bool[AnyArray, 'b']  # False: the row only fills the batch
  gt_boxes: Float[AnyArray, 'b g 4']  # pixels of the decoded image
  gt_classes: Int[AnyArray, 'b g']  # 1..k-1; 0 is padding
  gt_valid: Bool[AnyArray, 'b g']
  outlines: Outlines  # pixels of the decoded image


class Inputs(NamedTuple):
  """A batch after flip, resize and normalisation, on the device."""

  images: Float[Array, 'b h w 3']  # normalised, zero outside image_sizes
  image_sizes: Int[Array, 'b 2']  # (height, width) before padding
  gt_boxes: Float[Array, 'b g 4']  # pixels of the resized image
  gt_classes: Int[Array, 'b g']
  gt_valid: Bool[Array, 'b g']
  outlines: Outlines  # pixels of the resized image


class Proposals(NamedTuple):
  """Boxes that the RPN believes hold an object; gradient stopped."""

  boxes: Float[Array, '*b p 4']  # pixels of the resized image, clipped to it
  scores: Float[Array, '*b p']  # objectness, [0, 1], falling
  valid: Bool[Array, '*b p']


class RpnTargets(NamedTuple):
  """The anchors of each image to learn from; foreground first."""

  indices: Int[Array, '*b s']  # into the anchors of all levels
  foreground: Bool[Array, '*b s']
  delta_targets: Float[Array, '*b s 4']  # 0 where not foreground
  valid: Bool[Array, '*b s']


class RoiTargets(NamedTuple):
  """The RoIs of each image to learn from; foreground first."""

  rois: Float[Array, '*b r 4']  # pixels of the resized image
  class_targets: Int[Array, '*b r']  # 0 is background
  delta_targets: Float[Array, '*b r 4']  # 0 where not foreground
  objects: Int[Array, '*b r']  # truth of each RoI; 0 where background
  foreground: Bool[Array, '*b r']
  valid: Bool[Array, '*b r']


class Detections(NamedTuple):
  """The final output for each image, best first."""

  boxes: Float[Array, '*b d 4']  # pixels of the resized image, clipped to it
  classes: Int[Array, '*b d']  # 1..k-1; 0 where not valid
  scores: Float[Array, '*b d']  # [0, 1], falling; 0 where not valid
  # Probability inside the box, of its class; None of a model without masks.
  masks: Float[Array, '*b d m m'] | None
  valid: Bool[Array, '*b d']
