"""Turns drawn shapes into polygons: flat lists x, y, x, y, ... in pixels.

Each function raises a ValueError if the shape is damaged. The readers catch it
and name the file and the shape.
"""

from collections.abc import Iterable
import math
from typing import Any

import numpy as np

# Number of corners of the polygon that replaces a circle or an ellipse. At a
# radius of 10 pixels its edges are less than 0.02 pixels inside the circle.
_CORNERS = 64


def from_points(points: Iterable[Any]) -> list[float]:
  """Turns the corners of a polygon into a flat list x, y, x, y, ...

  Args:
    points: At least three pairs (x, y) of finite numbers, in pixels. They come
      from a file and are checked.

  Raises:
    TypeError: If an item of a pair is no number.
    ValueError: If there are too few points, an item is no pair, or a number is
      not finite.
  """
  flat = [float(value) for x, y in points for value in (x, y)]
  if len(flat) < 6:
    raise ValueError(f'a polygon of {len(flat) // 2} points')
  if not all(map(math.isfinite, flat)):
    raise ValueError('a coordinate is not finite')
  return flat


def from_rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
  """Returns a rectangle as a polygon.

  Args:
    x1: Left edge in pixels.
    y1: Upper edge in pixels.
    x2: Right edge in pixels.
    y2: Lower edge in pixels.

  Raises:
    ValueError: If a number is not finite.
  """
  return from_points([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


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
    ValueError: If a corner is not finite. The radii are not checked otherwise.
  """
  angles = np.arange(_CORNERS) * (2 * np.pi / _CORNERS)
  a, b = radius_x * np.cos(angles), radius_y * np.sin(angles)
  return from_points(
    zip(
      x + a * np.cos(theta) - b * np.sin(theta),
      y + a * np.sin(theta) + b * np.cos(theta),
      strict=True,
    )
  )
