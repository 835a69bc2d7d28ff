"""Draws masks over a picture, in pieces, so that large ones need little memory.

Axis letters here: n pixels.
"""

from collections.abc import Iterator, Mapping
import statistics
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image, ImageFilter
from pycocotools import mask as mask_api

FILL_OPACITY = 0.4  # of the color inside of a mask; [0, 1]
HALO = (0, 0, 0)  # color of the thin border around lines, RGB
HALO_OPACITY = 0.55  # [0, 1]

Color = tuple[int, int, int]  # RGB, 0 to 255
# A mask, cut to its bounding box: left and top edge of the box in pixels of the
# picture, and the mask inside of the box, 0 or 255.
Window = tuple[int, int, UInt8[np.ndarray, 'h w']]

# Pixels. The picture is changed in pieces of at most this height and width.
_PIECE = 512
# Pixels. If all windows together have fewer, they are decoded only once.
_KEPT_PIXELS = 64_000_000


def draw_masks(
  picture: Image.Image,
  rles: Mapping[int, dict[str, Any]],
  colors: Mapping[int, Color],
  widths: Mapping[int, int],
  *,
  factor: int,
) -> None:
  """Fills masks, then draws their outlines over all fills.

  Args:
    picture: The picture to draw on.
    rles: {index of a detection: its mask as COCO RLE}. Later masks cover
      earlier masks.
    colors: {index: color of the mask}.
    widths: {index: width of the outline in pixels of the picture}.
    factor: Size of the picture divided by the size of the image that the masks
      belong to.

  Raises:
    ValueError: If a mask has another size than the image.
  """
  size = picture.height // factor, picture.width // factor
  areas = {}
  for i, rle in rles.items():
    if tuple(rle['size']) != size:
      raise ValueError(
        f'A mask has the size {rle["size"]} (height, width), but its image has '
        f'the size {list(size)}; they must agree.'
      )
    _, _, width, height = mask_api.toBbox(rle)
    if width and height:
      areas[i] = width * height * factor**2
  windows: Mapping[int, Window] = _Windows({i: rles[i] for i in areas}, factor)
  if sum(areas.values()) < _KEPT_PIXELS:
    windows = {i: windows[i] for i in areas}
  _fill(picture, windows, colors)
  for i in windows:
    _draw_outline(picture, windows[i], colors[i], widths[i])


class _Windows(Mapping[int, Window]):
  """The windows of masks, which are decoded whenever they are used."""

  def __init__(self, rles: Mapping[int, dict[str, Any]], factor: int):
    """Keeps the arguments of `_mask_window`."""
    self._rles = rles
    self._factor = factor

  def __getitem__(self, i: int) -> Window:
    """Returns the window of a detection."""
    return _mask_window(self._rles[i], self._factor)

  def __iter__(self) -> Iterator[int]:
    """Yields the indices of the detections."""
    return iter(self._rles)

  def __len__(self) -> int:
    """Returns the number of masks."""
    return len(self._rles)


def _mask_window(rle: dict[str, Any], factor: int) -> Window:
  """Cuts the bounding box of an object out of its mask and enlarges it.

  Args:
    rle: Mask of the object, COCO RLE. It is not empty.
    factor: Size of the picture divided by the size of the image.

  Returns:
    The left and the top edge of the bounding box in the picture, and the mask
    inside the box.
  """
  left, top, width, height = (int(v) for v in mask_api.toBbox(rle))
  mask = mask_api.decode(rle)[top : top + height, left : left + width]
  mask = np.ascontiguousarray(mask)
  mask *= np.uint8(255)
  if factor > 1:
    mask = mask.repeat(factor, axis=0).repeat(factor, axis=1)
  return left * factor, top * factor, mask


def _fill(
  picture: Image.Image,
  windows: Mapping[int, Window],
  colors: Mapping[int, Color],
) -> None:
  """Mixes the colors of masks into the pixels inside; changes the picture.

  Each color is mixed with the picture, not with other fills. Where fills
  overlap, only the topmost shows.

  Args:
    picture: The picture to draw on.
    windows: {index: mask}. Later masks cover earlier masks.
    colors: {index: color of the mask}.
  """
  # For each pixel, the place of its topmost mask in the order, from 1; or 0.
  kind = np.uint8 if len(windows) < 256 else np.uint16
  topmost = np.zeros((picture.height, picture.width), kind)
  for place, i in enumerate(windows, start=1):
    left, top, mask = windows[i]
    height, width = mask.shape
    part = topmost[top : top + height, left : left + width]
    np.copyto(part, kind(place), where=mask > 0)
  table = np.array([HALO, *(colors[i] for i in windows)], np.float32)
  for box in _pieces((0, 0, picture.width, picture.height)):
    left, top, right, bottom = box
    places = topmost[top:bottom, left:right]
    inside = places > 0
    if inside.any():
      pixels = np.array(picture.crop(box))
      color = table[places[inside]]
      pixels[inside] = _mix(pixels[inside], color, np.float32(FILL_OPACITY))
      picture.paste(Image.fromarray(pixels), (left, top))


def _draw_outline(
  picture: Image.Image, window: Window, color: Color, width: int
) -> None:
  """Draws the outline of a mask with its halo; changes the picture.

  Args:
    picture: The picture to draw on.
    window: The mask.
    color: Color of the outline.
    width: Width of the outline, in pixels.
  """
  left, top, mask = window
  height, mask_width = mask.shape
  # The margin makes room for the halo and for the blur of the edge.
  margin = 2 * width + 3
  # Three box blurs, each a little wider than `width`, make a pixel depend on
  # those at this distance.
  reach = 3 * width + 4
  grown = (-margin, -margin, mask_width + margin, height + margin)
  for x1, y1, x2, y2 in _pieces(grown):
    # The part of the mask around the piece, in pixels of the window.
    a1, b1 = max(x1 - reach, grown[0]), max(y1 - reach, grown[1])
    a2, b2 = min(x2 + reach, grown[2]), min(y2 + reach, grown[3])
    inner = mask[max(b1, 0) : max(b2, 0), max(a1, 0) : max(a2, 0)]
    # Without an edge of the mask, there is no outline.
    if not inner.any() or (inner.shape == (b2 - b1, a2 - a1) and inner.all()):
      continue
    around = np.zeros((b2 - b1, a2 - a1), np.uint8)
    y, x = max(-b1, 0), max(-a1, 0)
    around[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    line, halo = _outline(Image.fromarray(around), width)
    # The part of the piece inside the picture, in pixels of the picture.
    p1, q1 = max(left + x1, 0), max(top + y1, 0)
    p2, q2 = min(left + x2, picture.width), min(top + y2, picture.height)
    if p1 >= p2 or q1 >= q2:
      continue
    cut = np.s_[
      q1 - top - b1 : q2 - top - b1, p1 - left - a1 : p2 - left - a1, None
    ]
    pixels = np.asarray(picture.crop((p1, q1, p2, q2)))
    pixels = _mix(pixels, np.array(HALO, np.float32), halo[cut])
    pixels = _mix(pixels, np.array(color, np.float32), line[cut])
    picture.paste(Image.fromarray(pixels), (p1, q1))


def _pieces(
  box: tuple[int, int, int, int],
) -> Iterator[tuple[int, int, int, int]]:
  """Cuts a rectangle (left, top, right, bottom) into pieces of equal size."""
  left, top, right, bottom = box
  for y in range(top, bottom, _PIECE):
    for x in range(left, right, _PIECE):
      yield x, y, min(x + _PIECE, right), min(y + _PIECE, bottom)


# Index: value of a blurred mask, 0..255. Element: distance from a straight edge
# at which the blurred mask has this value, in standard deviations of the blur;
# positive inside the mask.
_EDGE_DISTANCE = np.array(
  [-3.0]
  + [statistics.NormalDist().inv_cdf(v / 255) for v in range(1, 255)]
  + [3.0],
  np.float32,
)


def _outline(
  mask: Image.Image, width: int
) -> tuple[Float[np.ndarray, 'h w'], Float[np.ndarray, 'h w']]:
  """Computes where the outline of a mask is drawn, with smooth edges.

  Args:
    mask: The mask, 0 or 255, with a margin around the object.
    width: Width of the line, in pixels.

  Returns:
    The opacity, [0, 1], of each pixel of a line along the inside of the edge;
    and the opacity of a halo along the outside.
  """
  soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(0.6)))
  soft = soft / np.float32(255)
  blurred = np.asarray(mask.filter(ImageFilter.GaussianBlur(width)))
  distance = width * _EDGE_DISTANCE[blurred]
  line = soft * np.clip(width + 0.5 - distance, 0, 1)
  halo = (1 - soft) * np.clip(1.5 + distance, 0, 1) * HALO_OPACITY
  return line, halo


def _mix(
  pixels: UInt8[np.ndarray, '*n 3'],
  color: Float[np.ndarray, '*#n 3'],
  opacity: Float[np.ndarray, '*#m'] | np.float32,
) -> UInt8[np.ndarray, '*n 3']:
  """Mixes colors into pixels; an opacity of 1 replaces the pixel.

  Args:
    pixels: RGB, 0 to 255.
    color: The color to mix in, one for all pixels or one for each.
    opacity: In [0, 1], with an axis for the channels, or one for all pixels.
  """
  mixed = pixels + (color - pixels) * opacity
  return np.round(mixed).astype(np.uint8)
