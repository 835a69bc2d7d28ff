"""Objects as an annotation program drew them, before they become COCO's.

Axis letters here: h w rows and columns of the annotated picture.
"""

from typing import Any, NamedTuple

from jaxtyping import Bool
import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

from maskrcnn_jax.data.outlines import fill_outline, polygons_to_outline


class Drawn(NamedTuple):
  """An object in pixels of the picture that was annotated.

  It has either polygons or a mask.
  """

  name: str  # name of its class
  polygons: list[list[float]]  # flat lists x, y, x, y, ...
  rle: dict[str, Any] | None = None  # the mask as pycocotools encodes it


def from_mask(name: str, mask: Bool[np.ndarray, 'h w']) -> Drawn:
  """Makes an object of a mask, which takes little memory.

  Args:
    name: The class.
    mask: The mask, at the size of the annotated picture.
  """
  return Drawn(
    name, [], mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
  )


def filled(
  polygons: list[list[float]], size: tuple[int, int]
) -> tuple[Bool[np.ndarray, 'h w'], tuple[int, int]]:
  """Fills polygons, in the smallest part of the picture that holds them.

  Args:
    polygons: Flat lists x, y, x, y, ... in pixels of the picture.
    size: (height, width) of the picture in pixels.

  Returns:
    The part of the mask, and its (top, left) corner in the picture. Pixels
    outside of the picture are not filled. The part is empty (height or width 0)
    if the polygons are completely outside.
  """
  vertices, parts = polygons_to_outline(polygons)
  low = np.floor(vertices.min(axis=0)).astype(int)
  high = np.ceil(vertices.max(axis=0)).astype(int)
  (left, top), (right, bottom) = (
    np.clip(ends, 0, size[::-1]).tolist() for ends in (low, high)
  )
  part = fill_outline(
    vertices - np.array([left, top], np.float32),
    parts,
    bottom - top,
    right - left,
  )
  return part, (top, left)


def merged(drawn: list[Drawn], size: tuple[int, int]) -> Drawn:
  """Makes one object of the parts of an object.

  Args:
    drawn: At least one part. The class is that of the first.
    size: (height, width) in pixels of the annotated picture.
  """
  polygons = [polygon for part in drawn for polygon in part.polygons]
  rles = [part.rle for part in drawn if part.rle is not None]
  name = drawn[0].name
  if not rles:
    return Drawn(name, polygons)
  rle = mask_api.merge(rles) if len(rles) > 1 else rles[0]
  if not polygons:
    return Drawn(name, [], rle)
  mask = mask_api.decode(rle) > 0
  part, (top, left) = filled(polygons, size)
  height, width = part.shape
  mask[top : top + height, left : left + width] |= part
  return from_mask(name, mask)


def turn_object(
  drawn: Drawn, turn: Image.Transpose, size: tuple[int, int]
) -> Drawn:
  """Turns an object together with its picture.

  Args:
    drawn: The object, in pixels of the picture as it is stored.
    turn: The transposition that makes the stored picture upright.
    size: (height, width) in pixels of the stored picture.
  """
  height, width = size
  polygons = []
  for polygon in drawn.polygons:
    x, y = np.reshape(polygon, (-1, 2)).T
    match turn:
      case Image.Transpose.FLIP_LEFT_RIGHT:
        x, y = width - x, y
      case Image.Transpose.ROTATE_180:
        x, y = width - x, height - y
      case Image.Transpose.FLIP_TOP_BOTTOM:
        x, y = x, height - y
      case Image.Transpose.TRANSPOSE:
        x, y = y, x
      case Image.Transpose.ROTATE_270:
        x, y = height - y, x
      case Image.Transpose.TRANSVERSE:
        x, y = height - y, width - x
      case Image.Transpose.ROTATE_90:
        x, y = y, width - x
    polygons.append(np.stack([x, y], axis=1).ravel().tolist())
  if drawn.rle is None:
    return Drawn(drawn.name, polygons)
  mask = Image.fromarray(mask_api.decode(drawn.rle)).transpose(turn)
  return from_mask(drawn.name, np.asarray(mask) > 0)
