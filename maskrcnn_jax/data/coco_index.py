"""COCO's JSON as columns of NumPy arrays: what the index holds.

Axis letters here: n images, m objects, v outline vertices of all objects.
"""

from collections.abc import Sequence
import os
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

# Keys of `CocoIndex.dropped`, in order.  COCO's own files have such cases, so
# they are counted and left out, where anything stranger is an error.
NO_AREA = 'objects whose box has no area inside the image'
NO_SEGMENTATION = 'objects without a segmentation'
BAD_POLYGON = 'polygons with fewer than 6 numbers or an odd count'
NO_POLYGON = 'objects with no usable polygon left'
REASONS = (NO_AREA, NO_SEGMENTATION, BAD_POLYGON, NO_POLYGON)

# Of JSON: what a figure is, and what an id may be. A bool is neither, though
# isinstance says so.
NUMBERS = (int, float)
SCALARS = (int, float, str)

_BACKGROUND_NAMES = frozenset(('background', 'bg'))


class Category(NamedTuple):
  """A row of the class table; its class number is its position + 1."""

  id: int | str
  name: str


class CocoIndex(NamedTuple):
  """A COCO file in columns: n images, and m objects sorted by their image."""

  categories: tuple[Category, ...]
  image_ids: Sequence  # as in the JSON, any scalar; never on the device
  file_names: Sequence  # of str
  heights: Int[np.ndarray, 'n']
  widths: Int[np.ndarray, 'n']
  object_starts: Int[np.ndarray, ' n1']  # image i: [starts[i], starts[i + 1])
  boxes: Float[np.ndarray, 'm 4']  # pixels of the file, clipped to the image
  classes: Int[np.ndarray, 'm']  # 1..len(categories)
  crowd: Bool[np.ndarray, 'm']  # never trained on; without an outline
  areas: Float[np.ndarray, 'm']  # of the masks, in pixels
  annotation_ids: Sequence  # as in the JSON; None where there is none
  outline_starts: Int[np.ndarray, ' m1']  # object j: [starts[j], starts[j + 1])
  vertices: Float[np.ndarray, 'v 2']  # as in array_types.Outlines
  parts: Int[np.ndarray, ' v']
  dropped: dict[str, int]  # reason -> count, of what was left out


def is_background(category: Category) -> bool:
  """Tells whether a class is called background."""
  return category.name.strip(' _').casefold() in _BACKGROUND_NAMES


def same_image(name: str) -> str:
  """Returns the file name that all spellings of it share."""
  return os.path.normpath(name)
