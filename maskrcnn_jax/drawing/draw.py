"""Draws detections over an image: filled outlines, boxes and labels."""

import collections
import math
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn_jax.drawing.fonts import choose_font, open_font, warn_of_missing
from maskrcnn_jax.drawing.label_places import Plate, area, overlap, place_labels
from maskrcnn_jax.drawing.masks import HALO, HALO_OPACITY, Color, draw_masks

# In pixels. A picture whose longer side is shorter is enlarged, so that labels
# are legible and do not cover it.
LEGIBLE_SIDE = 400
MIN_FONT_SIZE = 12  # height of the font, in pixels

# With at least this number of objects, labels that would cover their object are
# omitted.
CROWD = 15


def draw_detections(
  image: UInt8[np.ndarray, 'h w 3'],
  boxes: Float[np.ndarray, 'd 4'],
  class_names: list[str],
  scores: Float[np.ndarray, 'd'] | None,
  masks: list[dict[str, Any]] | None,
  *,
  min_score: float = 0.5,
  line_width: int | None = None,
  font_file: str = '',
) -> Image.Image:
  """Draws detections over the image.

  The color of a detection depends only on its index in `boxes`. Labels
  stay inside the picture and do not overlap each other if there is room. In a
  crowd of small objects, labels that would hide the objects are omitted, and a
  caption in a corner counts the objects instead.

  Args:
    image: The image, RGB.
    boxes: (x1, y1, x2, y2) of each detection, in pixels of the image. They may
      reach out of the image.
    class_names: Name of the class of each detection.
    scores: Probabilities of the detections. `None` if the boxes are ground
      truth, whose labels show the class name without a score.
    masks: Mask of each detection as COCO RLE, with the size of the image.
      `None` draws boxes only.
    min_score: Detections with a lower score are not drawn; [0, 1]. Ground truth
      is always drawn.
    line_width: Width of lines, in pixels of the picture. By default it grows
      with the size of the picture.
    font_file: The font of labels; '' chooses one that has their characters, see
      `choose_font`.

  Returns:
    If there is nothing to draw, the image, unchanged and not enlarged.
    Otherwise a picture of its size; if its longer side is below 400 pixels, the
    picture is enlarged by a whole factor. Detections whose box is not finite
    are not drawn.

  Raises:
    ValueError: If the numbers of boxes, names, scores and masks differ, or if a
      mask has another size than the image.
    InputError: If the font cannot be read.
  """
  count = len(boxes)
  is_truth = scores is None
  scores = np.ones(count) if scores is None else scores
  lengths = {count, len(class_names), len(scores)}
  if masks is not None:
    lengths.add(len(masks))
  if len(lengths) > 1:
    raise ValueError(
      f'There are {count} boxes, {len(class_names)} class names, '
      f'{len(scores)} scores and {len(masks or ())} masks; these numbers '
      'must be equal.'
    )
  height, width = image.shape[:2]
  chosen = [
    i
    for i in range(count)
    if scores[i] >= min_score and np.isfinite(boxes[i]).all()
  ]
  if not chosen or not height or not width:
    return Image.fromarray(image)

  factor = max(1, min(16, math.ceil(LEGIBLE_SIDE / max(height, width))))
  picture = Image.fromarray(image)
  if factor > 1:
    size = (width * factor, height * factor)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
  side = math.sqrt(picture.width * picture.height)
  if line_width is None:
    line_width = max(2, round(side / 320))
  font_size = max(MIN_FONT_SIZE, round(side / 42))

  limits = np.array([width, height] * 2)
  shown = {i: np.clip(boxes[i], 0, limits) * factor for i in chosen}
  colors = {i: instance_color(i) for i in chosen}
  warn_of_missing((class_names[i] for i in chosen), font_file)
  names, fonts = {}, {}
  for i in chosen:
    names[i], path = choose_font(class_names[i], font_file)
    fonts[i] = open_font(path, font_size)
  texts = {
    i: names[i] if is_truth else f'{names[i]} {scores[i]:.2f}' for i in chosen
  }
  plates = {i: _plate_size(texts[i], fonts[i]) for i in chosen}
  crowded = len(chosen) >= CROWD
  tiny = {i for i in chosen if crowded and _hides(plates[i], shown[i])}
  if len(set(names.values())) == 1 and 2 * len(tiny) >= len(chosen):
    # The caption already names the only class, so the few remaining labels are
    # omitted too.
    tiny = set(chosen)

  # Large objects are drawn first, so that small objects on top of them stay
  # visible.
  order = sorted(chosen, key=lambda i: (-area(shown[i]), i))
  thin = max(1, line_width // 2)
  widths = {i: thin if i in tiny else line_width for i in chosen}
  if masks is not None:
    rles = {i: masks[i] for i in order}
    draw_masks(picture, rles, colors, widths, factor=factor)
  pen = ImageDraw.Draw(picture, 'RGBA')
  for i in order:
    # A box around a tiny mask would hide it.
    if masks is None or i not in tiny:
      _draw_box(pen, shown[i], colors[i], widths[i])

  labelled = sorted(set(chosen) - tiny, key=lambda i: (-scores[i], i))
  placed = place_labels(labelled, shown, plates, picture.size, may_drop=crowded)
  for i, plate in placed.items():
    _draw_leader(pen, plate, shown[i], colors[i], line_width)
  for i, plate in placed.items():
    _draw_plate(pen, plate, texts[i], colors[i], fonts[i])
  if crowded and len(placed) < len(chosen):
    counts = collections.Counter(class_names[i] for i in chosen)
    _draw_caption(
      pen, counts, list(placed.values()), picture.size, font_file, font_size
    )
  return picture


def instance_color(index: int) -> Color:
  """Picks a color that differs clearly from those of neighbouring indices.

  From index to index, the hue moves by the golden angle in OKLCH, a color
  space in which equal steps look equal, and the lightness changes.

  Args:
    index: Position of a detection, from 0.

  Source:
    Björn Ottosson, "A perceptual color space for image processing" (2020).
  """
  lightness = (0.74, 0.82, 0.66)[index % 3]
  hue = math.radians(25 + index * 180 * (3 - math.sqrt(5)))
  # Find the largest chroma that sRGB can show at this hue.
  for chroma in np.arange(0.2, 0, -0.01):
    rgb = _oklch_to_linear_rgb(lightness, chroma, hue)
    if 0 <= rgb.min() and rgb.max() <= 1:
      break
  encoded = np.where(
    rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb.clip(0) ** (1 / 2.4) - 0.055
  )
  red, green, blue = np.round(255 * encoded).clip(0, 255).astype(int).tolist()
  return red, green, blue


def _oklch_to_linear_rgb(
  lightness: float, chroma: float, hue: float
) -> Float[np.ndarray, '3']:
  """Converts a color from OKLCH to linear RGB.

  Args:
    lightness: 0 (black) to 1 (white).
    chroma: Distance from gray; 0 is gray.
    hue: Angle in radians.

  Returns:
    (red, green, blue) before the gamma curve of sRGB. A value outside of [0, 1]
    means that sRGB cannot show the color.
  """
  a, b = chroma * math.cos(hue), chroma * math.sin(hue)
  cones = np.array(
    [
      lightness + 0.3963377774 * a + 0.2158037573 * b,
      lightness - 0.1055613458 * a - 0.0638541728 * b,
      lightness - 0.0894841775 * a - 1.2914855480 * b,
    ]
  )
  to_rgb = np.array(
    [
      [4.0767416621, -3.3077115913, 0.2309699292],
      [-1.2684380046, 2.6097574011, -0.3413193965],
      [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
  )
  return to_rgb @ cones**3


def _hides(plate_size: tuple[int, int], box: np.ndarray) -> bool:
  """Tells whether a label of this size covers more than half of a box.

  Args:
    plate_size: (width, height) of the label, in pixels.
    box: (x1, y1, x2, y2) in pixels.
  """
  return 2 * plate_size[0] * plate_size[1] > area(box)


def _draw_box(
  pen: ImageDraw.ImageDraw, box: np.ndarray, color: Color, width: int
) -> None:
  """Draws the frame of a box with a thin dark halo; empty boxes are skipped.

  Args:
    pen: Draws on the picture.
    box: (x1, y1, x2, y2) in pixels of the picture.
    color: Color of the frame.
    width: Width of the line in pixels. The line is inside the box.
  """
  x1, y1, x2, y2 = (round(float(v)) for v in box)
  if x2 <= x1 or y2 <= y1:
    return
  # x2 and y2 are edges; the last pixel inside the box is the one before them.
  x2, y2 = x2 - 1, y2 - 1
  halo = (*HALO, round(255 * HALO_OPACITY))
  pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=halo)
  pen.rectangle((x1, y1, x2, y2), outline=color, width=width)


def _plate_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
  """Returns (width, height) of a label with its background, in pixels."""
  ascent, descent = font.getmetrics()
  return math.ceil(font.getlength(text)) + 2 * _pad(font), ascent + descent


def _pad(font: ImageFont.FreeTypeFont) -> int:
  """Returns the free space to the left and right of a label, in pixels."""
  return max(2, round(font.size / 4))


def _draw_leader(
  pen: ImageDraw.ImageDraw,
  plate: Plate,
  box: np.ndarray,
  color: Color,
  width: int,
) -> None:
  """Draws a line between a label and its box if they do not touch.

  Args:
    pen: Draws on the picture.
    plate: Rectangle of the label.
    box: (x1, y1, x2, y2) of the object, in pixels of the picture.
    color: Color of the line.
    width: Width of the line in pixels.
  """
  ends = []
  for axis in (0, 1):
    low, high = max(plate[axis], box[axis]), min(plate[axis + 2], box[axis + 2])
    if low <= high:
      ends.append(((low + high) / 2,) * 2)
    elif plate[axis] > box[axis + 2]:
      ends.append((plate[axis], box[axis + 2]))
    else:
      ends.append((plate[axis + 2], box[axis]))
  (x1, x2), (y1, y2) = ends
  if max(abs(x2 - x1), abs(y2 - y1)) > 2:
    halo = (*HALO, round(255 * HALO_OPACITY))
    pen.line((x1, y1, x2, y2), fill=halo, width=width + 2)
    pen.line((x1, y1, x2, y2), fill=color, width=width)


def _draw_plate(
  pen: ImageDraw.ImageDraw,
  plate: Plate,
  text: str,
  color: Color,
  font: ImageFont.FreeTypeFont,
) -> None:
  """Draws a label: its text in black or white on a rectangle of the color.

  Args:
    pen: Draws on the picture.
    plate: Rectangle of the label.
    text: The text. It is black on a light color and white on a dark one.
    color: Color of the rectangle.
    font: Font of the text.
  """
  x1, y1, x2, y2 = plate
  # The usual weights of red, green and blue in the perceived brightness.
  light = np.dot(color, (0.299, 0.587, 0.114)) > 110
  ink = (0, 0, 0) if light else (255, 255, 255)
  pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=color, outline=(*ink, 140))
  pen.text((x1 + _pad(font), y1), text, fill=ink, font=font)


def _draw_caption(
  pen: ImageDraw.ImageDraw,
  counts: collections.Counter[str],
  taken: list[Plate],
  picture_size: tuple[int, int],
  font_file: str,
  font_size: int,
) -> None:
  """Writes the number of objects of each class into the emptiest corner.

  If not all classes fit into the picture, only the most frequent are named.

  Args:
    pen: Draws on the picture.
    counts: {name of a class: number of objects}.
    taken: The labels that are already drawn.
    picture_size: (width, height) of the picture, in pixels.
    font_file: As for `draw_detections`.
    font_size: Height of the font, in pixels.
  """
  common = counts.most_common()
  while common:
    rest = len(counts) - len(common)
    text = ', '.join(f'{name}: {count}' for name, count in common)
    text += f', {rest} more' if rest else ''
    text, path = choose_font(text, font_file)
    font = open_font(path, font_size)
    width, height = _plate_size(text, font)
    if width <= picture_size[0] and height <= picture_size[1]:
      break
    common.pop()
  else:
    return
  right, bottom = picture_size[0] - width, picture_size[1] - height
  corners = [(0, bottom), (right, bottom), (0, 0), (right, 0)]
  plates = [(x, y, x + width, y + height) for x, y in corners]
  boxes = np.array(taken).reshape(-1, 4)
  plate = min(plates, key=lambda p: overlap(p, boxes).sum())
  _draw_plate(pen, plate, text, (20, 20, 20), font)
