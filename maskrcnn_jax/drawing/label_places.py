"""Chooses where the labels of detections are drawn in a picture.

Boxes and labels are (x1, y1, x2, y2) in pixels of the picture.
"""

import numpy as np

# The filled rectangle of a label, (x1, y1, x2, y2) in pixels of the picture.
Plate = tuple[int, int, int, int]


def area(box: np.ndarray) -> float:
  """Returns the area of a box (x1, y1, x2, y2) in square pixels, at least 0."""
  return float(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def place_labels(
  labelled: list[int],
  boxes: dict[int, np.ndarray],
  sizes: dict[int, tuple[int, int]],
  picture_size: tuple[int, int],
  *,
  may_drop: bool,
) -> dict[int, Plate]:
  """Chooses the place of each label.

  A place is good if the label covers little of the labels that are already
  placed and little of the objects, above all of small objects. Among equally
  good places, places at the upper left corner of the object come first.

  Args:
    labelled: Indices of the detections with a label. Earlier detections choose
      their place first.
    boxes: Boxes of all detections that are drawn, by index, in pixels of the
      picture.
    sizes: (width, height) of each label, by index, in pixels of the picture.
    picture_size: (width, height) of the picture, in pixels.
    may_drop: Whether to omit a label for which no good place exists.

  Returns:
    Place of each label, by index. Labels larger than the picture are omitted.
  """
  placed: dict[int, Plate] = {}
  everything = np.array([boxes[i] for i in boxes]).reshape(-1, 4)
  areas = np.array([max(1, area(box)) for box in everything])
  for i in labelled:
    width, height = sizes[i]
    if width > picture_size[0] or height > picture_size[1]:
      continue
    taken = np.array(list(placed.values())).reshape(-1, 4)
    others = np.array([j != i for j in boxes])
    rated = []
    places = _places(boxes[i], width, height, picture_size)
    for rank, plate in enumerate(places):
      # hidden: the share of the label that covers other labels. lost: the share
      # of an object that the label covers, summed over all objects. spread: the
      # share of the label that covers objects other than its own.
      hidden = overlap(plate, taken).sum() / (width * height)
      covered = overlap(plate, everything)
      lost = (covered / areas).sum()
      spread = min(covered[others].sum() / (width * height), 2)
      cost = 2 * (hidden > 0) + 10 * hidden + lost + 0.5 * spread + 0.08 * rank
      rated.append((cost, hidden, plate))
    _, hidden, plate = min(rated, key=lambda place: place[0])
    if not may_drop or hidden < 0.1:
      placed[i] = plate
  return placed


def _places(
  box: np.ndarray, width: int, height: int, picture_size: tuple[int, int]
) -> list[Plate]:
  """Lists the places that a label may have, the preferred places first.

  They are at the corners of the box, at its center, beside it, above and below,
  each moved as far as needed to lie inside of the picture.

  Args:
    box: (x1, y1, x2, y2) of the object, in pixels of the picture.
    width: Width of the label, in pixels.
    height: Height of the label, in pixels.
    picture_size: (width, height) of the picture, in pixels.
  """
  x1, y1, x2, y2 = (float(v) for v in box)
  corners = [
    (x1, y1 - height),
    (x1, y1),
    (x2 - width, y1 - height),
    (x1, y2),
    (x2 - width, y1),
    (x2 - width, y2),
    (x1, y2 - height),
    (x2 - width, y2 - height),
    ((x1 + x2 - width) / 2, (y1 + y2 - height) / 2),
    (x2, y1),
    (x1 - width, y1),
  ]
  for step in (2, 3, 4):
    corners += [(x1, y1 - step * height), (x1, y2 + (step - 1) * height)]
  places = []
  for x, y in corners:
    x = min(max(round(x), 0), picture_size[0] - width)
    y = min(max(round(y), 0), picture_size[1] - height)
    places.append((x, y, x + width, y + height))
  return places


def overlap(plate: Plate, boxes: np.ndarray) -> np.ndarray:
  """Returns the area that a label shares with each box, in square pixels."""
  low = np.maximum(boxes[:, :2], plate[:2])
  high = np.minimum(boxes[:, 2:], plate[2:])
  return np.maximum(high - low, 0).prod(axis=1)
