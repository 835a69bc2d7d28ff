"""Axis letters, and the tuples of arrays that modules exchange.

Axis letters: b images, h w rows and columns, c channels, l levels, a anchors
of all levels together, g ground-truth slots, v outline vertices of one image,
p proposals, r RoIs, d detections, k classes with background, m mask side,
s pooled side, *n any leading axes.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

# The host makes NumPy arrays; jitted functions receive JAX arrays.
AnyArray = Array | np.ndarray

# {2: [b h w c], ..., 6: [b h w c]}: one feature map for each level. The stride
# of a level is 2**level pixels.
Pyramid = dict[int, Array]

# {1: Bool [b h w 1], ..., 6: Bool [b h w 1]}: which cells of the feature maps
# of a level belong to the image; False is padding of the canvas. The stride of
# a level is 2**level pixels.
ValidCells = dict[int, Array]


class Outlines(NamedTuple):
  """The outlines of the objects of one image (or, with b, of each image).

  All vertices of all objects are in one buffer, object after object. Vertex i
  starts an edge to vertex i + 1 if `parts[i]` >= 0. The edges of an object are
  divided into parts: each polygon is one part, and the contour of an object
  that was given as RLE is one part as a whole. A point is inside a part if a
  ray from the point crosses an odd number of its edges (the even-odd rule). The
  object is the union of its parts.
  """

  vertices: Float[AnyArray, '*b v 2']  # (x, y) in pixels, as gt_boxes
  # Part that the edge from vertex i to vertex i + 1 belongs to, numbered from 0
  # in each object; -1 if there is no edge.
  parts: Int[AnyArray, '*b v']
  # Object g has the vertices [starts[g], starts[g + 1]); g1 is g + 1.
  starts: Int[AnyArray, '*b g1']


class GroundTruthLimits(NamedTuple):
  """Static sizes that hold the ground truth of each image of a data set."""

  max_objects: int  # number of objects of an image
  max_image_vertices: int  # number of vertices of all objects of an image
  max_object_vertices: int  # number of vertices of an object
  max_parts: int  # number of parts (polygons) of an object: see `Outlines`


class Batch(NamedTuple):
  """The images and the ground truth that the host sends to the device."""

  # RGB; padding at the right and below. An image whose `source_sizes` exceed h
  # or w is there in part: see `ops.resize.find_neighbours`.
  images: UInt8[AnyArray, 'b h w 3']
  source_sizes: Int[AnyArray, 'b 2']  # (height, width) before resizing
  image_sizes: Int[AnyArray, 'b 2']  # (height, width) after resizing
  image_valid: Bool[AnyArray, 'b']  # False if the row is padding
  gt_boxes: Float[AnyArray, 'b g 4']  # pixels of the image before resizing
  gt_classes: Int[AnyArray, 'b g']  # 1..k-1; 0 is padding
  gt_valid: Bool[AnyArray, 'b g']  # False if the slot is padding
  outlines: Outlines  # pixels of the image before resizing
  # The sizes (height, width) that training draws the size after resizing from.
  # `None` if no size is drawn from a list.
  size_choices: Int[AnyArray, 'b k 2'] | None = None


class Inputs(NamedTuple):
  """A batch after mirroring, resizing and normalisation, on the device."""

  images: Float[Array, 'b h w 3']  # normalised, zero outside image_sizes
  image_sizes: Int[Array, 'b 2']  # (height, width) before padding
  gt_boxes: Float[Array, 'b g 4']  # pixels of the resized image
  gt_classes: Int[Array, 'b g']  # 1..k-1; 0 is padding
  gt_valid: Bool[Array, 'b g']  # False if the slot is padding
  outlines: Outlines  # pixels of the resized image


class Proposals(NamedTuple):
  """Boxes in which the RPN suspects an object; the gradient is stopped."""

  boxes: Float[Array, '*b p 4']  # pixels of the resized image, clipped to it
  scores: Float[Array, '*b p']  # objectness, [0, 1], falling
  valid: Bool[Array, '*b p']  # False if the slot is padding


class RpnTargets(NamedTuple):
  """The sampled anchors of each image and their targets; foreground first.

  The axis s counts the slots of the sample.
  """

  indices: Int[Array, '*b s']  # into the anchors of all levels
  foreground: Bool[Array, '*b s']  # whether the anchor should find an object
  delta_targets: Float[Array, '*b s 4']  # 0 where not foreground
  valid: Bool[Array, '*b s']  # False if the slot is padding


class RoiTargets(NamedTuple):
  """The sampled RoIs of each image and their targets; foreground first."""

  rois: Float[Array, '*b r 4']  # pixels of the resized image
  class_targets: Int[Array, '*b r']  # 0 is background
  delta_targets: Float[Array, '*b r 4']  # 0 where not foreground
  objects: Int[Array, '*b r']  # ground-truth slot; 0 where background
  foreground: Bool[Array, '*b r']  # whether the RoI has an object
  valid: Bool[Array, '*b r']  # False if the slot is padding


class Detections(NamedTuple):
  """The final output for each image, best first."""

  boxes: Float[Array, '*b d 4']  # pixels of the resized image, clipped to it
  classes: Int[Array, '*b d']  # 1..k-1; 0 where not valid
  scores: Float[Array, '*b d']  # [0, 1], falling; 0 where not valid
  # Probability that a cell of the box belongs to the object. `None` if the
  # model has no mask head.
  masks: Float[Array, '*b d m m'] | None
  valid: Bool[Array, '*b d']  # False if the slot is padding
