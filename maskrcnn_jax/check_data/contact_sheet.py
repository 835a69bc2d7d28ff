"""A contact sheet: small pictures of images with their ground truth."""

from collections.abc import Collection
import pathlib
from typing import NamedTuple

from jaxtyping import Float
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_api

from maskrcnn_jax.data import findings, images, outlines, survey
from maskrcnn_jax.data.source import DataSet, image_file
from maskrcnn_jax.drawing import draw
from maskrcnn_jax.drawing.fonts import choose_font, open_font
from maskrcnn_jax.errors import InputError

# Largest number of pictures of each group.
NUM_EXAMPLES = 12

# Codes of findings that a picture can show, the worst first.
_DRAWN_CODES = ('A11', 'A02', 'A01', 'A10', 'A05', 'A06', 'A20', 'I13', 'I07')

# If the IoU of an object with its best anchor is lower than this, a picture may
# show it.
_POOR_IOU = 0.5

# Lengths in pixels: the longer side of a picture, the height of a caption or a
# title, and the space around a picture.
_SIDE = draw.LEGIBLE_SIDE
_STRIP = 44
_MARGIN = 8

_COLUMNS = 4  # pictures side by side
_PAPER = (246, 246, 244)
_INK = (20, 20, 20)
_FRAME = (255, 225, 0)


class Example(NamedTuple):
  """A picture of the sheet."""

  row: int  # row of the image in the index
  caption: str
  # Number, in the index, of the object that gets an additional frame; -1 means
  # that no object does.
  framed: int = -1


def write_sheet(
  data_set: DataSet,
  report: findings.Report,
  bad_images: Collection[int],
  ious: Float[np.ndarray, 'm'],
  path: pathlib.Path,
  *,
  pixel_range: tuple[float, float] | None,
  apply_exif: bool,
) -> None:
  """Writes a sheet of random images and of images with faults.

  Args:
    data_set: The data set.
    report: The findings about the data set.
    bad_images: Rows of images that cannot be decoded.
    ious: The IoU of each object with its best anchor.
    path: The PNG file to write.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      cannot be drawn.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.

  Raises:
    InputError: If the file cannot be written.
  """
  good = [
    row
    for row in range(len(data_set.coco_index.image_ids))
    if row not in bad_images
  ]
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(
      data_set,
      {
        'Random images': _random_examples(data_set, good),
        'Worst examples': _worst_examples(data_set, report, good, ious),
      },
      pixel_range=pixel_range,
      apply_exif=apply_exif,
    ).save(path)
  except OSError as error:
    raise InputError(
      f'Cannot write {path}: {error.strerror or error}.'
    ) from error


def _random_examples(data_set: DataSet, good: list[int]) -> list[Example]:
  """Picks images at random; the same data set always gives the same ones.

  Args:
    data_set: The data set.
    good: Rows of the images that can be decoded.
  """
  index = data_set.coco_index
  rng = np.random.default_rng(0)
  return [
    Example(row, f'{index.file_names[row]}: {count} objects')
    for row in sorted(rng.permutation(good)[:NUM_EXAMPLES].tolist())
    for count in [np.diff(index.object_starts[row : row + 2])[0]]
  ]


def _worst_examples(
  data_set: DataSet,
  report: findings.Report,
  good: list[int],
  ious: Float[np.ndarray, 'm'],
) -> list[Example]:
  """Picks images with findings, then objects that no anchor covers well.

  Args:
    data_set: The data set.
    report: The findings about the data set.
    good: Rows of the images that can be decoded.
    ious: The IoU of each object with its best anchor.

  Returns:
    At most `NUM_EXAMPLES` examples of different images, the worst finding
    first.
  """
  index = data_set.coco_index
  drawable = set(good)
  worst: dict[int, Example] = {}  # by the row of the image
  for finding in sorted(
    (f for f in report.kept if f.code in _DRAWN_CODES),
    key=lambda f: _DRAWN_CODES.index(f.code),
  ):
    if finding.row in drawable:
      objects = [
        j
        for j in range(*index.object_starts[finding.row : finding.row + 2])
        if finding.where == f'annotation {index.annotation_ids[j]!r}'
      ]
      worst.setdefault(
        finding.row,
        Example(
          finding.row,
          f'{finding.code} {finding.where}: {finding.reason}',
          objects[0] if objects else -1,
        ),
      )
  rows = survey.object_rows(index)
  for j in np.argsort(ious, kind='stable')[: 20 * NUM_EXAMPLES].tolist():
    if ious[j] < _POOR_IOU and not index.crowd[j] and rows[j] in drawable:
      worst.setdefault(
        int(rows[j]),
        Example(
          int(rows[j]),
          f'{index.file_names[rows[j]]}: best anchor IoU {ious[j]:.2f}, a'
          f' {index.categories[index.classes[j] - 1].name}',
          j,
        ),
      )
  return list(worst.values())[:NUM_EXAMPLES]


def draw_sheet(
  data_set: DataSet,
  groups: dict[str, list[Example]],
  *,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> Image.Image:
  """Draws groups of examples, each group under its title.

  Args:
    data_set: The data set.
    groups: The examples of each group by its title. It must be possible to
      decode all of their images.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      cannot be drawn.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.
  """
  title_font = ImageFont.load_default(20)
  cell_width = _SIDE + _MARGIN
  # A row is only as high as its highest picture. The sheet is therefore cut at
  # the end to the height that was used.
  num_rows = sum(-(-len(group) // _COLUMNS) for group in groups.values())
  sheet = Image.new(
    'RGB',
    (
      _COLUMNS * cell_width + _MARGIN,
      num_rows * (_SIDE + _STRIP + _MARGIN) + len(groups) * _STRIP + _MARGIN,
    ),
    _PAPER,
  )
  pen = ImageDraw.Draw(sheet)
  y = _MARGIN
  for title, group in groups.items():
    if not group:
      continue
    pen.text((_MARGIN, y + 8), title, fill=_INK, font=title_font)
    y += _STRIP
    for first in range(0, len(group), _COLUMNS):
      highest = 0
      for i, example in enumerate(group[first : first + _COLUMNS]):
        x = _MARGIN + i * cell_width
        picture = draw_truth(
          data_set,
          example.row,
          side=_SIDE,
          framed=example.framed,
          pixel_range=pixel_range,
          apply_exif=apply_exif,
        )
        sheet.paste(picture, (x, y))
        text, font_file = choose_font(example.caption)
        font = open_font(font_file, 14)
        text = _wrap(text, font, _SIDE)
        pen.text((x, y + picture.height + 2), text, fill=_INK, font=font)
        highest = max(highest, picture.height)
      y += highest + _STRIP + _MARGIN
  return sheet.crop((0, 0, sheet.width, max(y, 1)))


def draw_truth(
  data_set: DataSet,
  row: int,
  *,
  side: int,
  framed: int = -1,
  pixel_range: tuple[float, float] | None = None,
  apply_exif: bool = True,
) -> Image.Image:
  """Draws an image with the boxes, masks and names of its objects.

  Crowd regions are drawn too, and their names are followed by '(crowd)'.

  Args:
    data_set: The data set.
    row: Row of the image in the index.
    side: Length of the picture's longer side, in pixels.
    framed: Number of the object that gets a second, yellow frame. It counts
      the objects of the whole index from 0, not those of the image; -1 means
      that no object does.
    pixel_range: (black, white) for images of more than 8 bits a channel: the
      pixel values that are mapped to 0 and to 255. With `None`, such an image
      cannot be drawn.
    apply_exif: Whether the EXIF orientation is applied if the image has the
      size in the annotations with it and without it.
  """
  index = data_set.coco_index
  file = image_file(data_set.images, row, index.file_names[row])
  size = int(index.heights[row]), int(index.widths[row])
  pixels = images.decode_image(
    file.path,
    expected_size=size,
    content=file.content(),
    pixel_range=pixel_range,
    apply_exif=apply_exif,
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
      (index.vertices[part] * factors).astype(np.float32),
      index.parts[part],
      height,
      width,
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
    names,
    None,
    masks,
    line_width=2,
  )
  if framed >= 0:
    pen = ImageDraw.Draw(drawn)
    box = index.boxes[framed] * np.tile(factors, 2)
    for distance, colour in ((7, _INK), (5, _FRAME), (3, _INK)):
      around = box + np.array([-1, -1, 1, 1]) * distance
      pen.rectangle(around.tolist(), outline=colour, width=2)
  return drawn


def _wrap(
  text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> str:
  """Breaks a caption into at most two lines and cuts off the rest.

  Args:
    text: The caption.
    font: The font that it is drawn with.
    width: Width of the picture in pixels.
  """
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
