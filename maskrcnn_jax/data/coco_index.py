"""The index: the annotations of a COCO file as columns of NumPy arrays.

Axis letters here: n images, m objects, v outline vertices of all objects.
"""

from collections.abc import Sequence
import os
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

# Keys of `CocoIndex.dropped`, in order. COCO's own files have such objects and
# polygons. Therefore they are left out and counted, while other faults are
# errors or are only warned of.
NO_AREA = 'objects whose box has no area inside the image'
NO_SEGMENTATION = 'objects without a segmentation'
BAD_POLYGON = 'polygons with fewer than 6 numbers or an odd count'
NO_POLYGON = 'objects with no usable polygon left'
REASONS = (NO_AREA, NO_SEGMENTATION, BAD_POLYGON, NO_POLYGON)

# Types of a JSON number, and of a usable id. Compare them with `type`, because
# a bool is neither but is an instance of int.
NUMBERS = (int, float)
SCALARS = (int, float, str)
Scalar = int | float | str

_BACKGROUND_NAMES = frozenset(('background', 'bg'))


class Category(NamedTuple):
  """A row of the class table. The class number of row i is i + 1."""

  id: int | str
  name: str


class CocoIndex(NamedTuple):
  """The annotations of a COCO file: n images, and m objects sorted by image."""

  categories: tuple[Category, ...]
  image_ids: Sequence[Scalar]  # as in the JSON; never sent to the device
  file_names: Sequence[str]
  heights: Int[np.ndarray, 'n']  # pixels
  widths: Int[np.ndarray, 'n']  # pixels
  object_starts: Int[np.ndarray, ' n1']  # image i: [starts[i], starts[i + 1])
  # (x1, y1, x2, y2) in pixels of the image file, clipped to the image
  boxes: Float[np.ndarray, 'm 4']
  classes: Int[np.ndarray, 'm']  # 1..len(categories)
  crowd: Bool[np.ndarray, 'm']  # crowd regions: no outline, not trained on
  # In square pixels, as in the JSON. A missing area is computed from the mask
  # or, for an object without a mask, from the box.
  areas: Float[np.ndarray, 'm']
  annotation_ids: Sequence[Scalar | None]  # as in the JSON; None if missing
  outline_starts: Int[np.ndarray, ' m1']  # object j: [starts[j], starts[j + 1])
  vertices: Float[np.ndarray, 'v 2']  # as in array_types.Outlines
  parts: Int[np.ndarray, ' v']  # as in array_types.Outlines
  dropped: dict[str, int]  # {reason: number of objects or polygons left out}


def concatenate(indices: Sequence[CocoIndex]) -> CocoIndex:
  """Returns one index with the images and objects of several, in their order.

  Args:
    indices: At least one index. All must have the same class table. Ids of
      images and annotations may occur in several.
  """

  def starts(name: str) -> np.ndarray:
    """Joins a column of starts, each of which counts from 0."""
    columns = [getattr(index, name) for index in indices]
    ends = np.cumsum([0, *(column[-1] for column in columns)])
    parts = [
      column[:-1] + end for column, end in zip(columns, ends, strict=False)
    ]
    return np.concatenate([*parts, ends[-1:]]).astype(columns[0].dtype)

  def elements(name: str) -> list[Any]:
    """Joins a column of Python values."""
    return [item for index in indices for item in getattr(index, name)]

  return CocoIndex(
    categories=indices[0].categories,
    image_ids=elements('image_ids'),
    file_names=elements('file_names'),
    object_starts=starts('object_starts'),
    annotation_ids=elements('annotation_ids'),
    outline_starts=starts('outline_starts'),
    dropped={
      reason: sum(index.dropped[reason] for index in indices)
      for reason in indices[0].dropped
    },
    **{
      name: np.concatenate([getattr(index, name) for index in indices])
      for name in (
        *('heights', 'widths', 'boxes', 'classes', 'crowd', 'areas'),
        *('vertices', 'parts'),
      )
    },
  )


def is_background(category: Category) -> bool:
  """Tells whether a class is named 'background' or 'bg', in any letter case.

  Spaces and underscores around the name do not count.
  """
  return category.name.strip(' _').casefold() in _BACKGROUND_NAMES


def has_names(names: Sequence[str]) -> bool:
  """Tells whether classes have names of their own.

  `convert_weights` calls the classes of a file without names 'class 1',
  'class 2' and so on.

  Args:
    names: Names of the classes, in the order of their class numbers.
  """
  return list(names) != [f'class {i + 1}' for i in range(len(names))]


def plain_id(id_: Any) -> Any:
  """Returns 1 for the id 1.0, because JSON does not tell the two apart.

  Args:
    id_: Any JSON value. Values other than a float without a fraction are
      returned as they are.
  """
  return int(id_) if type(id_) is float and id_.is_integer() else id_


def normal_file_name(name: str) -> str:
  """Returns the normal form of a file name, such as 'a.jpg' for './a.jpg'.

  Two file names with the same normal form name the same image.
  """
  return os.path.normpath(name)
