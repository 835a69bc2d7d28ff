"""Turns drawn shapes into polygons: flat lists x, y, x, y, ... in pixels.

Each function raises a ValueError or a TypeError if the shape is damaged. The
readers catch them and name the file and the shape.
"""

from collections.abc import Iterable
import math
from typing import Any

import numpy as np

# Number of corners of the polygon that replaces a circle or an ellipse. At a
# radius of 10 pixels its edges are less than 0.02 pixels inside the circle.
_CORNERS = 64

# The note of all readers about shapes that are no outlines.
RECTANGLES = 'rectangles, written as masks that fill them'


def number(value: Any) -> float:
  """Returns a number of a file as a float.

  Raises:
    ValueError: If the value is no number, or it is not finite or too large for
      a float. A text of digits is a number.
  """
  if isinstance(value, bool) or not isinstance(value, int | float | str):
    raise ValueError(
      f'a value is of the type {type(value).__name__}, no number'
    )
  try:
    result = float(value)
  except (OverflowError, ValueError) as error:
    text = str(value)[:40] if isinstance(value, str) else 'a number'
    raise ValueError(f'{text!r} is no number or too large') from error
  if not math.isfinite(result):
    raise ValueError('a coordinate is not finite')
  return result


def pairs(points: Any, count: int | None = None) -> list[tuple[float, float]]:
  """Returns the points of a file as pairs of floats.

  Args:
    points: Any value; only pairs (x, y) of finite numbers are correct.
    count: The number of points that there must be. `None` means any number.

  Raises:
    ValueError: If the value is something else.
  """
  if isinstance(points, str | dict) or not isinstance(points, Iterable):
    raise ValueError('its points are no list')
  found = []
  for point in points:
    if not isinstance(point, list | tuple) or len(point) != 2:
      raise ValueError('one of its points is no pair of numbers')
    found.append((number(point[0]), number(point[1])))
  if count not in (None, len(found)):
    raise ValueError(f'it has {len(found)} points instead of {count}')
  return found


def from_points(points: Iterable[Any]) -> list[float]:
  """Turns the corners of a polygon into a flat list x, y, x, y, ...

  Args:
    points: Pairs (x, y) of finite numbers, in pixels. They come from a file and
      are checked.

  Returns:
    The polygon. It is empty if there are fewer than three points.

  Raises:
    ValueError: If an item is no pair of finite numbers.
  """
  flat = [value for pair in pairs(points) for value in pair]
  return flat if len(flat) >= 6 else []


def from_rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
  """Returns a rectangle as a polygon.

  Args:
    x1: Left edge in pixels.
    y1: Upper edge in pixels.
    x2: Right edge in pixels.
    y2: Lower edge in pixels.
  """
  return from_points([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def rotated(
  polygon: list[float],
  degrees: float,
  center: tuple[float, float] | None = None,
) -> list[float]:
  """Rotates a polygon clockwise, as the y axis points down.

  Args:
    polygon: A flat list x, y, x, y, ... in pixels.
    degrees: The angle. 0 changes nothing.
    center: The point (x, y) to rotate about. `None` means the mean of the
      corners.
  """
  if not degrees:
    return polygon
  points = np.reshape(polygon, (-1, 2))
  middle = points.mean(axis=0) if center is None else np.array(center)
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  turned = (points - middle) @ [[cos, sin], [-sin, cos]] + middle
  return turned.ravel().tolist()


def from_corners(points: Any) -> list[float]:
  """Returns a rectangle that is given by 2 opposite or by all 4 corners.

  Args:
    points: Pairs (x, y) of finite numbers, in pixels. The 4 corners may be
      those of a rotated rectangle, and in any order if the sides are parallel
      to those of the picture.

  Returns:
    The polygon. It is empty if there is only one point.

  Raises:
    ValueError: If an item is no pair of finite numbers, or the number of points
      is another.
  """
  corners = pairs(points)
  if len(corners) == 1:
    return []
  if len(corners) not in (2, 4):
    raise ValueError(f'a rectangle of {len(corners)} points')
  (x1, x2), (y1, y2) = ((min(v), max(v)) for v in zip(*corners, strict=True))
  upright = {(x1, y1), (x2, y1), (x2, y2), (x1, y2)}
  if len(corners) == 4 and set(corners) != upright:
    return from_points(corners)
  return from_rectangle(x1, y1, x2, y2)


def from_ellipse(
  x: float, y: float, radius_x: float, radius_y: float, theta: float = 0
) -> list[float]:
  """Returns a polygon with 64 corners on an ellipse.

  Args:
    x: Horizontal position of the center in pixels.
    y: Vertical position of the center in pixels.
    radius_x: Half the length in pixels of the axis that is horizontal before
      the rotation.
    radius_y: Half the length in pixels of the axis that is vertical before the
      rotation.
    theta: Rotation about the center in radians, from the x axis towards the y
      axis.

  Raises:
    ValueError: If a corner is not finite.
  """
  angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
  # A corner that is not finite is an error below.
  with np.errstate(over='ignore', invalid='ignore'):
    a, b = radius_x * np.cos(angles), radius_y * np.sin(angles)
    corners = np.stack(
      [
        x + a * np.cos(theta) - b * np.sin(theta),
        y + a * np.sin(theta) + b * np.cos(theta),
      ],
      axis=1,
    )
  return from_points(corners.tolist())
