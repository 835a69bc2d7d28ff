"""A sheet of small pictures with their truth drawn as training sees it."""

import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

from maskrcnn_jax import draw
from maskrcnn_jax.data import coco_index, images, outlines

# Pixels of a picture's longer side, and of the strip with its caption.
_SIDE = draw.LEGIBLE_SIDE
_STRIP = 44
_MARGIN = 8
_COLUMNS = 4
_PAPER = (246, 246, 244)
_INK = (20, 20, 20)
_FRAME = (255, 225, 0)


class Example(NamedTuple):
  """A picture of the sheet."""

  row: int  # of the index
  caption: str
  object: int = -1  # of the index: what the caption speaks of, to be framed


def draw_sheet(
    index: coco_index.CocoIndex,
    images_dir: pathlib.Path,
    groups: dict[str, list[Example]],
    *,
    pixel_range: tuple[float, float] | None = None,
) -> Image.Image:
  """Draws groups of examples, each under its title.

  Args:
    index: Images and objects.
    images_dir: The folder that file names are relative to.
    groups: {title: examples}; all of them can be decoded.
    pixel_range: See `images.decode_image`.
  """
  font = ImageFont.load_default(14)
  title_font = ImageFont.load_default(20)
  cell_width = _SIDE + _MARGIN
  # Cut to what was used in the end: rows are as high as their pictures.
  num_rows = sum(-(-len(found) // _COLUMNS) for found in groups.values())
  sheet = Image.new(
      'RGB',
      (
          _COLUMNS * cell_width + _MARGIN,
          num_rows * (_SIDE + _STRIP + _MARGIN) + len(groups) * _STRIP
          + _MARGIN,
      ),
      _PAPER,
  )
  pen = ImageDraw.Draw(sheet)
  y = _MARGIN
  for title, found in groups.items():
    if not found:
      continue
    pen.text((_MARGIN, y + 8), title, fill=_INK, font=title_font)
    y += _STRIP
    for first in range(0, len(found), _COLUMNS):
      highest = 0
      for i, example in enumerate(found[first : first + _COLUMNS]):
        x = _MARGIN + i * cell_width
        picture = draw_truth(
            index, images_dir, example.row, side=_SIDE, framed=example.object,
            pixel_range=pixel_range,
        )
        sheet.paste(picture, (x, y))
        text = _wrap(draw.printable(example.caption), font, _SIDE)
        pen.text((x, y + picture.height + 2), text, fill=_INK, font=font)
        highest = max(highest, picture.height)
      y += highest + _STRIP + _MARGIN
  return sheet.crop((0, 0, sheet.width, max(y, 1)))


def draw_truth(
    index: coco_index.CocoIndex,
    images_dir: pathlib.Path,
    row: int,
    *,
    side: int,
    framed: int = -1,
    pixel_range: tuple[float, float] | None = None,
) -> Image.Image:
  """Draws an image, no larger than `side`, with its objects and crowds.

  Args:
    index: Images and objects.
    images_dir: The folder that file names are relative to.
    row: Of the index.
    side: Pixels of the longer side.
    framed: Object of the index to draw a second frame around; -1: none.
    pixel_range: See `images.decode_image`.
  """
  size = int(index.heights[row]), int(index.widths[row])
  pixels = images.decode_image(
      images_dir / index.file_names[row], expected_size=size,
      pixel_range=pixel_range,
  )
  scale = side / max(size)
  height, width = (max(1, round(x * scale)) for x in size)
  picture = Image.fromarray(pixels).resize((width, height))
  factors = np.array([width / size[1], height / size[0]])
  objects = range(*index.object_starts[row : row + 2].tolist())
  masks = []
  for j in objects:
    part = slice(*index.outline_starts[j : j + 2].tolist())
    mask = outlines.fill_outline(
        (index.vertices[part] * factors).astype(np.float32), index.parts[part],
        height, width,
    )
    masks.append(mask_api.encode(np.asfortranarray(mask, np.uint8)))
  names = [
      index.categories[index.classes[j] - 1].name
      + (' (crowd)' if index.crowd[j] else '')
      for j in objects
  ]
  drawn = draw.draw_detections(
      np.asarray(picture),
      index.boxes[objects.start : objects.stop] * np.tile(factors, 2),
      names, None, masks, line_width=2,
  )
  if framed >= 0:
    pen = ImageDraw.Draw(drawn)
    box = index.boxes[framed] * np.tile(factors, 2)
    for distance, colour in ((7, _INK), (5, _FRAME), (3, _INK)):
      around = box + np.array([-1, -1, 1, 1]) * distance
      pen.rectangle(around.tolist(), outline=colour, width=2)
  return drawn


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
  """Breaks a caption into two lines at most."""
  lines = ['']
  for word in text.split(' '):
    longer = f'{lines[-1]} {word}'.strip()
    if font.getlength(longer) <= width or not lines[-1]:
      lines[-1] = longer
    elif len(lines) == 2:
      lines[-1] += ' ...'
      break
    else:
      lines.append(word)
  return '\n'.join(line[: width // 6] for line in lines)
