"""Shapes that people draw, as polygons: flat lists x, y, x, y, ... in pixels.

Each function raises ValueError if the shape is damaged; the readers say where.
"""

from collections.abc import Iterable
import math

import numpy as np

# Number of corners that stand for a circle or an ellipse. The polygon's edge is
# less than 0.02 pixels inside a circle with a radius of 10 pixels.
_CORNERS = 64


def from_points(points: Iterable) -> list[float]:
  """Flattens (x, y) pairs, of which there must be at least three."""
  flat = [float(value) for x, y in points for value in (x, y)]
  if len(flat) < 6:
    raise ValueError(f'a polygon of {len(flat) // 2} points')
  if not all(map(math.isfinite, flat)):
    raise ValueError('a coordinate is not finite')
  return flat


def from_rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
  """Returns the four corners of a rectangle."""
  return from_points([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def from_ellipse(
  x: float, y: float, radius_x: float, radius_y: float, theta: float = 0
) -> list[float]:
  """Returns a polygon with 64 corners on an ellipse.

  Args:
    x: Horizontal position of the center.
    y: Vertical position of the center.
    radius_x: Half of the axis that is horizontal before the rotation.
    radius_y: Half of the axis that is vertical before the rotation.
    theta: Rotation about the center in radians, from the x towards the y axis.
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


def polygon_area(polygon: list[float]) -> float:
  """Returns the area of a polygon in pixels, by the shoelace formula."""
  x, y = np.reshape(polygon, (-1, 2)).T
  return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
