"""Draws a small data set of shapes for instance segmentation.

Ellipses, rectangles and triangles lie on a textured background. The data set
consists of JPEG files and COCO JSON. With it a model learns masks within
minutes, and nothing has to be downloaded.

  python -m maskrcnn_jax.data.shapes OUT
"""

import argparse
from collections.abc import Sequence
import colorsys
import json
import math
import pathlib
import shutil
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as mask_api
import tqdm

from maskrcnn_jax.data.outlines import polygon_area

# The ids are not 1, 2, 3, so that no program can rely on consecutive ids, which
# COCO does not have either.
CATEGORIES: tuple[dict[str, Any], ...] = (
  {'id': 3, 'name': 'ellipse', 'supercategory': 'shape'},
  {'id': 7, 'name': 'rectangle', 'supercategory': 'shape'},
  {'id': 12, 'name': 'triangle', 'supercategory': 'shape'},
)

MAX_OBJECTS = 6  # largest number of objects in an image
EMPTY_EVERY = 20  # every 20th image has no objects
MIN_VISIBLE = 0.3  # share of each object's area that must be visible
NUM_SAMPLES = 12  # number of evaluation images that are copied to samples/
SUPERSAMPLING = 4  # shapes are drawn 4 times larger, then averaged
JPEG_QUALITY = 92  # as Pillow counts it, 0 to 95


class Shape(NamedTuple):
  """A drawn object."""

  category_id: int
  # Corners (x, y) of a polygon, in pixels. An ellipse is a polygon too.
  corners: Float[np.ndarray, 'n 2']
  coverage: Float[np.ndarray, 'h w']  # share of each pixel inside the polygon
  colour: Float[np.ndarray, '3']  # RGB in [0, 1]


def _smooth_noise(
  rng: np.random.Generator, height: int, width: int, cells: int
) -> Float[np.ndarray, 'h w']:
  """Returns smooth random noise in [0, 1].

  Args:
    rng: Source of random numbers.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    cells: Number of random values along the longer side. They are interpolated.
  """
  rows = max(2, round(cells * height / max(height, width)))
  columns = max(2, round(cells * width / max(height, width)))
  grid = Image.fromarray(rng.random((rows, columns), np.float32))
  noise = grid.resize((width, height), Image.Resampling.BICUBIC)
  return np.clip(np.asarray(noise), 0, 1)


def _ramp(height: int, width: int, angle: float) -> Float[np.ndarray, 'h w']:
  """Returns a linear gradient from 0 to 1 over an image.

  Args:
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    angle: Direction in which the values rise, in radians; 0 is to the right.
  """
  y, x = np.mgrid[:height, :width].astype(np.float32)
  distance = x * math.cos(angle) + y * math.sin(angle)
  return (distance - distance.min()) / np.ptp(distance)


def _background(
  rng: np.random.Generator, height: int, width: int
) -> Float[np.ndarray, 'h w 3']:
  """Draws a background: two muted colours in a random soft pattern.

  The pattern is noise, stripes or a gradient.

  Returns:
    RGB in [0, 1].
  """
  hue, value = rng.random(), rng.uniform(0.35, 0.8)
  first = colorsys.hsv_to_rgb(hue, rng.uniform(0.05, 0.35), value)
  second = colorsys.hsv_to_rgb(
    (hue + rng.uniform(-0.12, 0.12)) % 1,
    rng.uniform(0.05, 0.35),
    value + rng.choice([-1, 1]) * rng.uniform(0.12, 0.2),
  )
  ramp = _ramp(height, width, rng.uniform(0, math.tau))
  blobs = _smooth_noise(rng, height, width, int(rng.integers(4, 9)))
  match rng.integers(3):
    case 0:
      fine = _smooth_noise(rng, height, width, 24)
      blend = 0.7 * blobs + 0.3 * fine
    case 1:
      waves = rng.integers(5, 13) * ramp + 0.8 * blobs
      blend = 0.5 + 0.5 * np.sin(math.tau * waves)
    case _:
      blend = 0.8 * ramp + 0.2 * blobs
  grain = rng.normal(0, 0.015, (height, width, 1))
  blend = blend[..., None]
  return np.clip(
    (1 - blend) * np.array(first) + blend * np.array(second) + grain, 0, 1
  )


def _draw_corners(
  rng: np.random.Generator, name: str, radius: float
) -> Float[np.ndarray, 'n 2']:
  """Returns the corners of a shape with random proportions and direction.

  Args:
    rng: Source of random numbers.
    name: 'ellipse', 'rectangle' or 'triangle'.
    radius: Approximate distance of the corners from the centre, in pixels.

  Returns:
    (x, y) of each corner, relative to the centre of the shape.
  """
  match name:
    case 'ellipse':
      angles = np.arange(48) * math.tau / 48
      corners = np.stack([np.cos(angles), np.sin(angles)], axis=1)
      corners[:, 1] *= rng.uniform(0.5, 1)
    case 'rectangle':
      half = np.array([0.9, 0.9 * rng.uniform(0.4, 1)])
      corners = half * [[-1, -1], [1, -1], [1, 1], [-1, 1]]
    case 'triangle':
      angles = np.arange(3) * math.tau / 3 + rng.uniform(-0.3, 0.3, 3)
      corners = 1.15 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  turn = rng.uniform(0, math.tau)
  cos, sin = math.cos(turn), math.sin(turn)
  return radius * corners @ np.array([[cos, sin], [-sin, cos]])


def _coverage(
  corners: Float[np.ndarray, 'n 2'], height: int, width: int
) -> Float[np.ndarray, 'h w']:
  """Returns the share of each pixel that lies inside a polygon, in [0, 1].

  Args:
    corners: Corners (x, y) of the polygon, in pixels.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
  """
  fine = Image.new('L', (width * SUPERSAMPLING, height * SUPERSAMPLING))
  # The origin of ImageDraw is the centre of the first pixel, not its corner.
  points = corners * SUPERSAMPLING - 0.5
  ImageDraw.Draw(fine).polygon([tuple(point) for point in points], fill=255)
  return np.asarray(fine.reduce(SUPERSAMPLING), np.float32) / 255


def _pick_colour(
  rng: np.random.Generator, others: list[Float[np.ndarray, '3']]
) -> Float[np.ndarray, '3']:
  """Draws five bright colours; returns the one that differs most from others.

  Args:
    rng: Source of random numbers.
    others: Colours that the result should differ from, RGB in [0, 1].
  """
  colours = [
    np.array(
      colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(0.4, 0.85), rng.uniform(0.5, 0.95)
      )
    )
    for _ in range(5)
  ]
  return max(
    colours, key=lambda c: min(np.linalg.norm(c - other) for other in others)
  )


def _visible_masks(shapes: list[Shape]) -> list[Bool[np.ndarray, 'h w']]:
  """Returns for each shape the mask of the pixels that no later shape covers.

  A pixel belongs to a shape if the shape covers at least half of it.

  Args:
    shapes: At least one shape, in the order in which they are painted.
  """
  masks = [shape.coverage >= 0.5 for shape in shapes]
  hidden = np.zeros_like(masks[0])
  visible = []
  for mask in reversed(masks):
    visible.append(mask & ~hidden)
    hidden = hidden | mask
  return visible[::-1]


def _place_shapes(
  rng: np.random.Generator, background: Float[np.ndarray, 'h w 3'], count: int
) -> list[Shape]:
  """Makes up to `count` random shapes that all stay visible.

  A shape that would hide another, or that would lie mostly outside the image,
  is placed elsewhere. After 20 attempts it is left out.

  Args:
    rng: Source of random numbers.
    background: Gives the image size, and a colour that the shapes avoid.
    count: Number of shapes to try to place.

  Returns:
    The shapes in the order in which they are painted.
  """
  height, width = background.shape[:2]
  colours = [background.mean(axis=(0, 1))]
  shapes: list[Shape] = []
  for _ in range(count):
    category = CATEGORIES[rng.integers(len(CATEGORIES))]
    # Uniform in the logarithm: small shapes are as common as large ones.
    low, high = math.log(0.09), math.log(0.3)
    radius = min(height, width) * math.exp(rng.uniform(low, high))
    around_zero = _draw_corners(rng, category['name'], radius)
    colour = _pick_colour(rng, colours)
    for _ in range(20):
      centre = rng.uniform(0.6 * radius, np.array([width, height]) - radius / 2)
      corners = around_zero + centre
      candidate = [
        *shapes,
        Shape(
          category['id'], corners, _coverage(corners, height, width), colour
        ),
      ]
      if all(
        mask.sum() > MIN_VISIBLE * polygon_area(shape.corners)
        for shape, mask in zip(
          candidate, _visible_masks(candidate), strict=True
        )
      ):
        shapes = candidate
        colours.append(colour)
        break
  return shapes


def _blur(
  array: Float[np.ndarray, 'h w'], radius: float
) -> Float[np.ndarray, 'h w']:
  """Blurs an array of values in [0, 1] with a Gaussian.

  Args:
    array: The values. They are rounded to multiples of 1/255.
    radius: Standard deviation of the Gaussian, in pixels.
  """
  picture = Image.fromarray(np.round(array * 255).astype(np.uint8))
  picture = picture.filter(ImageFilter.GaussianBlur(radius))
  return np.asarray(picture, np.float32) / 255


def _paint(
  rng: np.random.Generator,
  background: Float[np.ndarray, 'h w 3'],
  shapes: list[Shape],
) -> UInt8[np.ndarray, 'h w 3']:
  """Paints shapes over a background, with shadows and light from one side.

  Args:
    rng: Source of random numbers.
    background: RGB in [0, 1].
    shapes: The shapes; later ones cover earlier ones.
  """
  picture = background.copy()
  height, width = background.shape[:2]
  light = rng.uniform(0, math.tau)
  reach = min(height, width) / 50
  away = -reach * np.array([math.cos(light), math.sin(light)])
  y, x = np.mgrid[:height, :width].astype(np.float32)
  for shape in shapes:
    shadow = _blur(_coverage(shape.corners + away, height, width), reach)
    picture *= 1 - 0.4 * shadow[..., None]

    centre = shape.corners.mean(axis=0)
    radius = np.abs(shape.corners - centre).max()
    toward_light = (
      (x - centre[0]) * math.cos(light) + (y - centre[1]) * math.sin(light)
    ) / radius
    texture = _smooth_noise(rng, height, width, 32) - 0.5
    # The rim is a little darker, because blurring lowers the coverage there.
    inner = _blur(shape.coverage, reach / 2)
    brightness = 0.82 + 0.16 * toward_light + 0.16 * texture + 0.2 * inner
    brightness += rng.normal(0, 0.012, (height, width))
    painted = np.clip(shape.colour * brightness[..., None], 0, 1)
    alpha = shape.coverage[..., None]
    picture = (1 - alpha) * picture + alpha * painted
  return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _annotate(shape: Shape, visible: Bool[np.ndarray, 'h w']) -> dict[str, Any]:
  """Returns the COCO annotation of the visible part of a shape.

  The segmentation is a polygon if the whole shape is visible, and a compressed
  RLE otherwise.

  Args:
    shape: The shape.
    visible: Mask of its visible pixels.

  Returns:
    An annotation without `id` and `image_id`.
  """
  height, width = visible.shape
  segmentation: list[list[float]] | dict[str, Any]
  inside = np.all((shape.corners >= 0) & (shape.corners <= [width, height]))
  if inside and np.array_equal(visible, shape.coverage >= 0.5):
    corners = np.round(shape.corners, 2)
    segmentation = [corners.ravel().tolist()]
    rle = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    low, high = corners.min(axis=0), corners.max(axis=0)
    box = np.round([*low, *(high - low)], 2).tolist()
  else:
    rle = mask_api.encode(np.asfortranarray(visible, np.uint8))
    segmentation = {
      'size': [height, width],
      'counts': rle['counts'].decode('ascii'),
    }
    box = mask_api.toBbox(rle).tolist()
  return {
    'category_id': shape.category_id,
    'segmentation': segmentation,
    'bbox': box,
    'area': int(mask_api.area(rle)),
    'iscrowd': 0,
  }


def draw_image(
  rng: np.random.Generator, height: int, width: int, *, num_objects: int
) -> tuple[UInt8[np.ndarray, 'h w 3'], list[dict[str, Any]]]:
  """Draws one image and makes its annotations.

  Args:
    rng: Source of random numbers. The image is a pure function of its state.
    height: Height of the image in pixels.
    width: Width of the image in pixels.
    num_objects: Number of objects to place. There are fewer if they do not fit.

  Returns:
    The RGB image, and its COCO annotations, which only lack `id` and
    `image_id`.
  """
  background = _background(rng, height, width)
  shapes = _place_shapes(rng, background, num_objects)
  picture = _paint(rng, background, shapes)
  masks = _visible_masks(shapes) if shapes else []
  pairs = zip(shapes, masks, strict=True)
  return picture, [_annotate(shape, mask) for shape, mask in pairs]


def write_shapes(
  directory: str | pathlib.Path,
  *,
  num_train: int,
  num_val: int,
  image_size: int,
  seed: int,
) -> None:
  """Draws the data set and writes it into a folder.

  The folder gets images/, instances_train.json, instances_val.json and
  samples/.

  Args:
    directory: The folder. It is created if it is missing; files of the same
      name are replaced.
    num_train: Number of training images.
    num_val: Number of evaluation images. The first 12 are copied to samples/.
    image_size: Shorter side of each image in pixels. The longer side is at most
      5/4 of it.
    seed: The same seed gives the same data set. At least 0.

  Raises:
    ValueError: If the images would be smaller than 32 pixels.
  """
  if image_size < 32:
    raise ValueError(
      f'image_size ({image_size}) must be at least 32, because the shapes of '
      'smaller objects cannot be recognised.'
    )
  directory = pathlib.Path(directory)
  for name in ('images', 'samples'):
    (directory / name).mkdir(parents=True, exist_ok=True)
  longer = image_size * 5 // 4
  sizes = ((image_size, longer), (longer, image_size), (image_size, image_size))

  image_id = annotation_id = 0
  for split, (name, count) in enumerate(
    (('train', num_train), ('val', num_val))
  ):
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in tqdm.trange(count, desc=f'Drawing {name}', unit='image'):
      rng = np.random.default_rng([seed, split, index])
      height, width = sizes[rng.integers(len(sizes))]
      empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
      num_objects = 0 if empty else int(rng.integers(1, MAX_OBJECTS + 1))
      picture, objects = draw_image(rng, height, width, num_objects=num_objects)
      file_name = f'{name}_{index:05d}.jpg'
      path = directory / 'images' / file_name
      Image.fromarray(picture).save(path, quality=JPEG_QUALITY, subsampling=0)
      if name == 'val' and index < NUM_SAMPLES:
        shutil.copyfile(path, directory / 'samples' / file_name)

      image_id += 1
      images.append(
        {
          'id': image_id,
          'file_name': file_name,
          'width': width,
          'height': height,
          'license': 1,
        }
      )
      for annotation in objects:
        annotation_id += 1
        annotations.append(
          {'id': annotation_id, 'image_id': image_id, **annotation}
        )

    record = {
      'info': {
        'description': f'Drawn shapes, {name}, seed {seed}',
        'version': '1.0',
        'contributor': 'maskrcnn_jax.data.shapes',
      },
      'licenses': [
        {
          'id': 1,
          'name': 'CC0 1.0',
          'url': 'https://creativecommons.org/publicdomain/zero/1.0/',
        }
      ],
      'images': images,
      'annotations': annotations,
      'categories': list(CATEGORIES),
    }
    (directory / f'instances_{name}.json').write_text(json.dumps(record))


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and writes the data set.

  Args:
    argv: The arguments. `None` takes those of the process.
  """
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.data.shapes',
    description=__doc__.split('\n\n  ')[0],
    formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  parser.add_argument('directory', metavar='OUT', help='folder to write to')
  parser.add_argument(
    '--train', type=int, default=400, help='number of training images'
  )
  parser.add_argument(
    '--val', type=int, default=60, help='number of evaluation images'
  )
  parser.add_argument(
    '--size', type=int, default=128, help='shorter side of an image, in pixels'
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='another number draws other images'
  )
  args = parser.parse_args(argv)
  for name, least in (('train', 1), ('val', 1), ('size', 32), ('seed', 0)):
    if getattr(args, name) < least:
      parser.error(f'--{name} must be at least {least}.')

  write_shapes(
    args.directory,
    num_train=args.train,
    num_val=args.val,
    image_size=args.size,
    seed=args.seed,
  )
  out = pathlib.Path(args.directory)
  print(
    f'Wrote {args.train} + {args.val} images to {out / "images"} and their '
    f'annotations to {out}/instances_(train|val).json.\n'
    'To train on them:\n'
    '  python -m maskrcnn_jax.main --config=shapes --workdir=DIR'
    + ''.join(
      f' \\\n    --config.data.{split}.images={out / "images"}'
      f' \\\n    --config.data.{split}.annotations={out}/instances_{name}.json'
      for split, name in (('train', 'train'), ('eval', 'val'))
    )
  )


if __name__ == '__main__':
  main()
