"""Data sets with one fault each, made by code.

Each entry of `CASES` has a function that puts the fault into a clean set.
"""

import gzip
import json
import math
import os
import pathlib
import struct
from typing import Any, NamedTuple
import zlib

import numpy as np
from PIL import Image
from pycocotools import mask as mask_api

HEIGHT, WIDTH = 64, 80


class Set:
  """A COCO set: the image files, and the content of its JSON until `write`."""

  def __init__(self, folder: pathlib.Path, *, num_images=6, num_objects=3):
    """Draws a clean set of images with rectangles.

    Args:
      folder: The folder of the set. The images are written to images/ in it.
      num_images: Number of images.
      num_objects: Number of rectangles in each image.
    """
    self.folder = folder
    self.images_dir = folder / 'images'
    self.images_dir.mkdir(parents=True)
    self.annotations = folder / 'instances.json'
    self.content: Any = {
      'info': {'year': 2026},
      'images': [],
      'annotations': [],
      'categories': [{'id': 1, 'name': 'rect'}, {'id': 2, 'name': 'other'}],
    }
    self.raw: bytes | None = None  # written instead of `content`
    rng = np.random.default_rng(0)
    for i in range(num_images):
      pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3), np.uint8)
      for j in range(num_objects):
        x, y = 6 + 24 * (j % 3), 8 + 4 * (j // 3)
        w, h = 18, 14 + 10 * (i % 3)
        pixels[y : y + h, x : x + w] = 60 + 20 * (j % 9)
        self.content['annotations'].append(
          {
            'id': len(self.content['annotations']) + 1,
            'image_id': i + 1,
            'category_id': 1 + j % 2,
            'bbox': [x, y, w, h],
            'area': w * h,
            'iscrowd': 0,
            'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
          }
        )
      self.content['images'].append(
        {
          'id': i + 1,
          'file_name': f'{i}.png',
          'height': HEIGHT,
          'width': WIDTH,
        }
      )
      Image.fromarray(pixels).save(self.images_dir / f'{i}.png')

  @property
  def images(self):
    """The `images` of the JSON."""
    return self.content['images']

  @property
  def objects(self):
    """The `annotations` of the JSON."""
    return self.content['annotations']

  @property
  def first(self):
    """The first annotation."""
    return self.objects[0]

  def file(self, row=0) -> pathlib.Path:
    """Returns the path of an image."""
    return self.images_dir / self.images[row]['file_name']

  def rename(self, name: str, row=0) -> pathlib.Path:
    """Gives an image another file name in the JSON; the file is not moved."""
    self.images[row]['file_name'] = name
    return self.images_dir / name

  def write(self) -> None:
    """Writes instances.json."""
    if self.raw is None:
      self.annotations.write_text(json.dumps(self.content))
    else:
      self.annotations.write_bytes(self.raw)


class Case(NamedTuple):
  """A data set with one fault, or one that is unusual but accepted."""

  name: str
  code: str  # the code of the only finding; '' if there must be none
  is_error: bool  # False if the finding is a warning
  spoil: Any  # function that puts the fault into a Set
  is_fixable: bool = False  # whether the copy of --fix has no error
  options: tuple[str, ...] = ()  # further options of check_data
  size: dict = {}  # noqa: RUF012  arguments of Set
  # When a training finds the fault: at its 'start', at the 'load' of the image,
  # or 'never'.
  found_at: str = 'start'


def mask(rows=slice(8, 22), columns=slice(6, 24)):
  """Returns the mask of a rectangle as an array of 0 and 1."""
  pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
  pixels[rows, columns] = 1
  return pixels


def compressed(pixels):
  """Returns the compressed RLE of a mask."""
  rle = mask_api.encode(np.asfortranarray(pixels))
  return {'size': rle['size'], 'counts': rle['counts'].decode()}


def uncompressed(pixels):
  """Returns the uncompressed RLE of a mask, whose counts are a list."""
  flat = np.append(0, pixels.T.reshape(-1))
  ends = np.flatnonzero(np.diff(flat, append=2))
  return {
    'size': list(pixels.shape),
    'counts': np.diff(ends, prepend=0).tolist(),
  }


def set_first(**values):
  """Sets keys of the first annotation; the value ... removes a key."""

  def spoil(data):
    for key, value in values.items():
      if value is ...:
        del data.first[key]
      else:
        data.first[key] = value

  return spoil


def set_all(**values):
  """Sets keys of all annotations; the value ... removes a key."""

  def spoil(data):
    for entry in data.objects:
      for key, value in values.items():
        if value is ...:
          del entry[key]
        else:
          entry[key] = value

  return spoil


def set_image(**values):
  """Sets keys of the first image."""
  return lambda data: data.images[0].update(values)


def raw(text):
  """Writes bytes, or another value as JSON, instead of the COCO JSON."""

  def spoil(data):
    data.raw = text if isinstance(text, bytes) else json.dumps(text).encode()

  return spoil


def of_json(change):
  """Changes the bytes of the JSON with a function."""

  def spoil(data):
    data.raw = change(json.dumps(data.content).encode())

  return spoil


def save(image, name='0.png', **options):
  """Replaces the first image.

  Args:
    image: An array, a Pillow image, or a function that returns one of them.
    name: The file name of the new image.
    **options: Options of Pillow's `save`.
  """

  def spoil(data):
    picture = image() if callable(image) else image
    if not isinstance(picture, Image.Image):
      picture = Image.fromarray(picture)
    picture.save(data.rename(name), **options)

  return spoil


def write(content, name='0.png'):
  """Replaces the file of the first image by some bytes."""
  return lambda data: data.rename(name).write_bytes(content)


def as_corners(data):
  # The boxes are right of the middle. Taken for (x, y, width, height), their
  # corners reach over the edge of the image.
  for i, entry in enumerate(data.objects):
    y = 38 + i % 3
    entry['bbox'] = [50, y, 70, 60]
    entry['segmentation'] = [[50, y, 70, y, 70, 60, 50, 60]]


def points_in_all(data):
  """Adds a polygon of two points to each mask."""
  for entry in data.objects:
    entry['segmentation'].append([1, 2, 3, 4])


def as_fractions(data):
  """Divides all coordinates by the size of the image."""
  for entry in data.objects:
    x, y, w, h = entry['bbox']
    entry['bbox'] = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]
    masks_as_fractions_of(entry)


def masks_as_fractions_of(entry):
  """Divides the coordinates of a polygon by the size of the image."""
  (polygon,) = entry['segmentation']
  entry['segmentation'] = [
    [n / (HEIGHT if i % 2 else WIDTH) for i, n in enumerate(polygon)]
  ]


def masks_as_fractions(data):
  """Divides the coordinates of all masks by the size of the image."""
  for entry in data.objects:
    masks_as_fractions_of(entry)


def tiny_object(data):
  """Makes one of many boxes lie in the first pixel of its image."""
  data.first.update(
    bbox=[0.2, 0.1, 0.7, 0.8],
    segmentation=[[0.2, 0.1, 0.9, 0.1, 0.9, 0.9, 0.2, 0.9]],
    area=0.56,
  )


def half_crowd(data):
  """Makes every second annotation a crowd region."""
  for entry in data.objects[::2]:
    entry['iscrowd'] = 1


def twice(data):
  """Adds some annotations once more, under other ids."""
  data.objects.extend(
    entry | {'id': 1000 + i} for i, entry in enumerate(data.objects[:4])
  )


def roboflow_root(data):
  """Adds a category that groups the others and has the name of one."""
  for category in data.content['categories']:
    category['supercategory'] = 'rect'
  data.content['categories'].insert(
    0, {'id': 0, 'name': 'rect', 'supercategory': 'none'}
  )


def bow_ties(data):
  """Crosses the outlines, so that their areas by the shoelace formula are 0."""
  for entry in data.objects:
    x, y, w, h = entry['bbox']
    entry['segmentation'] = [[x, y, x + w, y + h, x + w, y, x, y + h]]
    entry['area'] = w * h / 2


def beyond_the_image(data):
  """Makes masks reach far beyond the image, with the areas inside of it."""
  for entry in data.objects:
    x, y, w, h = entry['bbox']
    entry['bbox'] = [0, y, x + w, h]
    entry['segmentation'] = [[-90, y, x + w, y, x + w, y + h, -90, y + h]]
    entry['area'] = (x + w) * h


def lines(data):
  """Makes the masks lines, which cover no pixel, although their boxes do."""
  for entry in data.objects:
    x, y, w, h = entry['bbox']
    entry['segmentation'] = [[x, y, x + w, y + h, x, y]]


def annotations_by_id(data):
  """Writes the annotations as an object whose names are the ids."""
  data.content['annotations'] = {str(a['id']): a for a in data.objects}


def as_lvis(data):
  """Gives the images an address instead of a file name."""
  for image in data.images:
    name = image.pop('file_name')
    image['coco_url'] = f'http://images.cocodataset.org/val2017/{name}'


def all_apart(data):
  for entry in data.objects:
    entry['bbox'] = [2, 60, 3, 3]


def swap_masks(data):
  data.first['segmentation'] = [[60, 50, 70, 50, 70, 60, 60, 60]]
  data.first['area'] = 100


def crowd_image(data):
  for entry in data.objects:
    entry['iscrowd'] = int(entry['image_id'] == 1)
    if entry['iscrowd']:
      entry['segmentation'] = uncompressed(mask())


def crowds_only(data):
  for entry in data.objects:
    entry['iscrowd'] = 1
    entry['segmentation'] = uncompressed(mask())


def sparse_ids(data):
  data.content['categories'] = [
    {'id': 90, 'name': 'rect'},
    {'id': 0, 'name': 'other'},
  ]
  for entry in data.objects:
    entry['category_id'] = {1: 90, 2: 0}[entry['category_id']]


def rename_ids(new):
  """Replaces the id of each image by `new(id)`."""

  def spoil(data):
    for entry in data.images:
      entry['id'] = new(entry['id'])
    for entry in data.objects:
      entry['image_id'] = new(entry['image_id'])

  return spoil


def add_category(**values):
  return lambda data: data.content['categories'].append(values)


def background(data):
  add_category(id=0, name='background')(data)
  data.first['category_id'] = 0


def file_twice(data):
  data.images[1]['file_name'] = data.images[0]['file_name']


def against_with_shared_image(data):
  other = json.loads(json.dumps(data.content))
  other['images'] = other['images'][:1]
  other['annotations'] = other['annotations'][:3]
  (data.folder / 'other.json').write_text(json.dumps(other))


def against_with_other_classes(data):
  other = json.loads(json.dumps(data.content))
  other['categories'][0]['name'] = 'Rect'
  for entry in other['images']:
    entry['file_name'] = f'val_{entry["file_name"]}'
  (data.folder / 'other.json').write_text(json.dumps(other))


def panoptic(data):
  for entry in data.objects:
    entry['segments_info'] = []


def in_a_sub_folder(data):
  path = data.rename('a b/Ünïcode 1.png')
  path.parent.mkdir()
  os.rename(data.images_dir / '0.png', path)


def linked(data):
  path = data.rename('link.png')
  path.symlink_to(data.images_dir / '0.png')


def link_loop(data):
  for a, b in (('a.png', 'b.png'), ('b.png', 'a.png')):
    (data.images_dir / a).symlink_to(data.images_dir / b)
  data.rename('a.png')


def other_case(data):
  os.rename(data.images_dir / '0.png', data.images_dir / '0.PNG')


def cut(count):
  """Cuts bytes off the end of the first image, a JPEG."""

  def spoil(data):
    path = data.rename('0.jpg')
    with Image.open(data.images_dir / '0.png') as image:
      image.save(path)
    path.write_bytes(path.read_bytes()[:-count])

  return spoil


def rotated(turn_json):
  """Stores the first image turned, with an EXIF orientation, like a phone.

  Args:
    turn_json: Whether the annotations belong to the pixels as stored, instead
      of the image as a viewer shows it.
  """

  def spoil(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(data.images_dir / '0.png') as image:
      stored = image.transpose(Image.Transpose.ROTATE_90)
    stored.save(data.file(), exif=exif)
    if turn_json:
      data.images[0].update(height=WIDTH, width=HEIGHT)
      x, y, w, h = data.first['bbox']
      for entry in data.objects[:3]:
        y += 4
        entry['bbox'] = [x, y, w, h]
        entry['segmentation'] = [[x, y, x + w, y, x + w, y + h, x, y + h]]

  return spoil


def square_with_exif(data):
  """Stores the first image, made square, with an EXIF orientation."""
  exif = Image.Exif()
  exif[0x0112] = 6
  with Image.open(data.images_dir / '0.png') as image:
    image.crop((0, 0, HEIGHT, HEIGHT)).save(data.file(), exif=exif)
  data.images[0].update(width=HEIGHT)
  # The third object is in the part that is cut off.
  del data.objects[2]


def mirrored(data):
  """Stores the first image mirrored, with an EXIF orientation that says so."""
  exif = Image.Exif()
  exif[0x0112] = 2
  with Image.open(data.images_dir / '0.png') as image:
    stored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  stored.save(data.file(), exif=exif)


def gray():
  """Returns a gray image with a ramp of values."""
  ramp = np.arange(HEIGHT * WIDTH) % 256
  return Image.fromarray(ramp.reshape(HEIGHT, WIDTH).astype(np.uint8))


def png(chunks):
  """Returns the bytes of a PNG of (name, content) of its chunks."""
  return b'\x89PNG\r\n\x1a\n' + b''.join(
    struct.pack('>I', len(content))
    + name
    + content
    + struct.pack('>I', zlib.crc32(name + content))
    for name, content in chunks.items()
  )


def wide_png():
  """Returns the bytes of a PNG in colour with 16 bits a channel."""
  rows = b'\0' + struct.pack('>3H', 900, 9_000, 60_000) * WIDTH
  chunks = {
    b'IHDR': struct.pack('>II5B', WIDTH, HEIGHT, 16, 2, 0, 0, 0),
    b'IDAT': zlib.compress(rows * HEIGHT),
    b'IEND': b'',
  }
  return png(chunks)


def infrared():
  """Returns the bytes of a TIFF file with RGB and a fourth channel."""
  entries = [
    (256, 3, 1, WIDTH),
    (257, 3, 1, HEIGHT),
    (258, 3, 4, 150),
    (259, 3, 1, 1),
    (262, 3, 1, 2),
    (273, 4, 1, 200),
    (277, 3, 1, 4),
    (278, 3, 1, HEIGHT),
    (279, 4, 1, HEIGHT * WIDTH * 4),
    (338, 3, 1, 0),
  ]
  head = b'II*\0' + struct.pack('<IH', 8, len(entries))
  head += b''.join(struct.pack('<HHII', *entry) for entry in entries)
  head = head.ljust(150, b'\0') + struct.pack('<4H', 8, 8, 8, 8)
  return head.ljust(200, b'\0') + bytes(HEIGHT * WIDTH * 4)


def five_channels():
  """Returns the bytes of a TIFF file with 5 channels."""
  entries = [
    (256, 3, 1, WIDTH),
    (257, 3, 1, HEIGHT),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, 200),
    (277, 3, 1, 5),
    (278, 3, 1, HEIGHT),
    (279, 4, 1, HEIGHT * WIDTH * 5),
  ]
  head = b'II*\0' + struct.pack('<IH', 8, len(entries))
  head += b''.join(struct.pack('<HHII', *entry) for entry in entries)
  return head.ljust(200, b'\0') + bytes(HEIGHT * WIDTH * 5)


def inverted_cmyk(data):
  """Replaces the first image by a CMYK JPEG as Adobe's programs write it.

  Such a file stores inverted values, so that 0 is full ink.
  """
  path = data.rename('0.jpg')
  gray().convert('RGB').convert('CMYK').save(path)
  content = path.read_bytes()
  marker = b'\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00'
  if b'Adobe' not in content:
    path.write_bytes(content[:2] + marker + content[2:])


def huge_png():
  """Returns a PNG whose header says 50,000 x 50,000 pixels."""
  chunks = {
    b'IHDR': struct.pack('>II5B', 50_000, 50_000, 8, 2, 0, 0, 0),
    b'IDAT': zlib.compress(bytes(10**7)),
    b'IEND': b'',
  }
  return png(chunks)


def image_of(height, width):
  """Gives the first image another size and one object that fills it."""

  def spoil(data):
    Image.fromarray(np.full((height, width, 3), 99, np.uint8)).save(data.file())
    data.images[0].update(height=height, width=width)
    data.content['annotations'] = data.objects[2:]
    data.first.update(
      bbox=[0, 0, width, height],
      area=width * height,
      segmentation=[[0, 0, width, 0, width, height, 0, height]],
    )

  return spoil


def animated(data):
  frames = [gray(), gray().rotate(180)]
  frames[0].save(data.rename('0.gif'), save_all=True, append_images=frames[1:])


def many_vertices(data, count=40_000):
  angles = np.linspace(0, 6.28, count)
  circle = np.stack([15 + 9 * np.cos(angles), 15 + 7 * np.sin(angles)], 1)
  data.first['segmentation'] = [circle.ravel().round(4).tolist()]


def deeply_nested(data):
  data.raw = b'{"images": ' + b'[' * 10**6


MANY = {'num_images': 24, 'num_objects': 9}
SQUARE = [6, 8, 24, 8, 24, 22, 6, 22]
VIA = {'a.png123': {'filename': 'a.png', 'size': 123, 'regions': []}}
LABELME = {'shapes': [], 'imagePath': 'a.png', 'imageData': None}
AGAINST = ('--against=other.json',)
NAN = math.nan

CASES = [
  Case('clean', '', False, lambda data: None),
  Case('box_width_0', 'A01', True, set_first(bbox=[6, 8, 0, 9]), True),
  Case('box_height_-3', 'A01', True, set_first(bbox=[6, 8, 9, -3]), True),
  Case(
    'box_width_0_of_many', 'A01', False, set_first(bbox=[6, 8, 0, 9]), size=MANY
  ),
  Case('box_outside', 'A02', True, set_first(bbox=[90, 8, 9, 9]), True),
  Case(
    'box_partly_outside',
    'A02',
    False,
    set_first(
      bbox=[6, 8, 18, 60],
      area=18 * 56,
      segmentation=[[6, 8, 24, 8, 24, 64, 6, 64]],
    ),
    True,
  ),
  Case('boxes_as_corners', 'A03', True, as_corners, True),
  Case('coordinates_as_fractions', 'A28', True, as_fractions),
  Case('masks_as_fractions', 'A28', True, masks_as_fractions),
  Case('box_in_the_first_pixel', 'A28', False, tiny_object, size=MANY),
  Case('half_crowd', 'A29', False, half_crowd),
  Case('annotations_twice', 'A30', False, twice),
  Case('category_groups_others', 'A15', False, roboflow_root),
  Case('bow_ties', '', False, bow_ties),
  Case('masks_beyond_the_image', '', False, beyond_the_image),
  Case('masks_are_lines', 'A10', False, lines),
  Case('annotations_by_id', '', False, annotations_by_id),
  Case('lvis', '', False, as_lvis),
  Case('box_nan', 'A04', True, set_first(bbox=[6, 8, NAN, 9]), True),
  Case('box_inf', 'A04', True, set_first(bbox=[6, 8, math.inf, 9]), True),
  Case('box_text', 'A04', True, set_first(bbox=['6', 8, 9, 9]), True),
  Case('box_of_3', 'A04', True, set_first(bbox=[6, 8, 9]), True),
  Case('area_inf', 'A04', True, set_first(area=math.inf), True),
  Case('area_negative', 'A04', True, set_first(area=-9), True),
  Case('area_text', 'A04', True, set_first(area='252'), True),
  Case('area_of_400_digits', 'A04', True, set_first(area=10**400), True),
  Case(
    'polygon_nan',
    'A04',
    True,
    set_first(segmentation=[[6, 8, NAN, 8, 24, 22]]),
    True,
  ),
  Case(
    'polygon_text',
    'A04',
    True,
    set_first(segmentation=[[6, 8, '24', 8, 24, 22]]),
    True,
  ),
  Case(
    'polygon_far_away',
    'A04',
    True,
    set_first(segmentation=[[6, 8, 1e300, 8, 24, 22]]),
    True,
  ),
  Case(
    'polygon_of_4',
    'A05',
    False,
    set_first(segmentation=[SQUARE, [1, 2, 3, 4]]),
    True,
  ),
  Case(
    'polygons_of_4',
    'A05',
    False,
    points_in_all,
    True,
  ),
  Case(
    'polygon_odd', 'A05', True, set_first(segmentation=[[*SQUARE, 9]]), True
  ),
  Case(
    'polygon_of_4_of_many',
    'A05',
    False,
    set_first(segmentation=[SQUARE, [1, 2, 3, 4]]),
    True,
    size=MANY,
  ),
  Case('mask_empty', 'A06', True, set_first(segmentation=[]), True),
  Case('mask_missing', 'A06', True, set_first(segmentation=...), True),
  Case('mask_of_nothing', 'A06', True, set_first(segmentation=[[]]), True),
  Case(
    'boxes_only',
    '',
    False,
    set_all(segmentation=...),
    options=('--boxes_only',),
    found_at='never',
  ),
  Case('polygon_flat', 'A07', True, set_first(segmentation=SQUARE), True),
  Case(
    'polygon_flat_of_4', 'A07', True, set_first(segmentation=[1, 2, 3, 4]), True
  ),
  Case('mask_text', 'A07', True, set_first(segmentation='mask.png'), True),
  Case('rle_compressed', '', False, set_first(segmentation=compressed(mask()))),
  Case(
    'rle_uncompressed', '', False, set_first(segmentation=uncompressed(mask()))
  ),
  Case(
    'rle_of_other_size',
    'A09',
    True,
    set_first(segmentation=compressed(mask()[:-1])),
    True,
  ),
  Case(
    'rle_too_short',
    'A09',
    True,
    set_first(segmentation={'size': [HEIGHT, WIDTH], 'counts': [9, 9]}),
    True,
  ),
  Case(
    'rle_garbage',
    'A09',
    True,
    set_first(segmentation={'size': [HEIGHT, WIDTH], 'counts': '~~'}),
    True,
  ),
  Case(
    'mask_without_pixels',
    'A10',
    False,
    set_first(segmentation=compressed(0 * mask())),
  ),
  Case('box_apart_from_mask', 'A11', False, swap_masks),
  Case('boxes_apart_from_masks', 'A11', True, all_apart),
  Case('iscrowd_missing', 'A12', False, set_all(iscrowd=...), True),
  Case('iscrowd_2', 'A12', True, set_first(iscrowd=2), True),
  Case('crowd_polygon', '', False, set_first(iscrowd=1)),
  Case('crowd_only_image', '', False, crowd_image),
  Case('category_ids_sparse', '', False, sparse_ids),
  Case('category_id_float', 'A13', True, add_category(id=1.5, name='x')),
  Case('category_unnamed', 'A13', True, add_category(id=3)),
  Case('unknown_image', 'A14', True, set_first(image_id=99), True),
  Case('unknown_category', 'A14', True, set_first(category_id=99), True),
  Case('category_id_as_text', 'A14', True, set_first(category_id='1'), True),
  Case('category_id_list', 'A14', True, set_first(category_id=[1]), True),
  Case('category_id_object', 'A14', True, set_first(category_id={}), True),
  Case('category_id_twice', 'A15', True, add_category(id=1, name='x')),
  Case('category_name_twice', 'A15', True, add_category(id=3, name='rect')),
  Case(
    'background_unused',
    'A16',
    False,
    add_category(id=0, name='__background__'),
    True,
  ),
  Case('background_used', 'A16', True, background, True),
  Case('image_id_twice', 'A17', True, set_image(id=2)),
  Case('annotation_id_twice', 'A18', False, set_first(id=2), True),
  Case('annotation_id_0', 'A18', False, set_first(id=0), True),
  Case('annotation_ids_missing', 'A18', False, set_all(id=...), True),
  Case('image_ids_text', '', False, rename_ids('a/{}'.format)),
  Case('image_ids_huge', '', False, rename_ids(lambda i: 2**60 + i)),
  Case('image_id_missing', 'A19', True, set_image(id=None)),
  Case('file_twice', 'A20', False, file_twice),
  Case(
    'image_in_both_splits',
    'A20',
    True,
    against_with_shared_image,
    options=AGAINST,
    found_at='never',
  ),
  Case(
    'other_classes',
    'A21',
    True,
    against_with_other_classes,
    options=AGAINST,
    found_at='never',
  ),
  Case('class_without_objects', 'A22', False, add_category(id=3, name='x')),
  Case('crowds_only', 'A23', True, crowds_only),
  Case(
    'no_categories',
    'A23',
    True,
    lambda data: data.content.update(categories=[]),
  ),
  Case(
    'few_beyond_slots',
    'A24',
    False,
    lambda data: None,
    size=MANY | {'num_objects': 40},
    options=('--config.data.max_objects=39',),
    found_at='never',
  ),
  Case(
    'many_beyond_slots',
    'A24',
    True,
    lambda data: None,
    options=('--config.data.max_objects=2',),
    found_at='never',
  ),
  Case('via', 'A25', True, raw(VIA)),
  Case('labelme', 'A25', True, raw(LABELME)),
  Case('voc', 'A25', True, raw(b'<annotation><folder/></annotation>')),
  Case('results', 'A25', True, raw([{'image_id': 1, 'score': 1.0}])),
  Case('panoptic', 'A25', True, panoptic),
  Case('gzip', 'A25', True, of_json(gzip.compress)),
  Case('byte_order_mark', '', False, of_json(b'\xef\xbb\xbf'.__add__)),
  Case(
    'utf_16', 'A25', True, of_json(lambda text: text.decode().encode('utf-16'))
  ),
  Case(
    'name_twice',
    'A25',
    True,
    of_json(lambda text: text[:-1] + b', "annotations": []}'),
  ),
  Case('cut_off', 'A25', True, of_json(lambda text: text[:-100])),
  Case('empty_file', 'A25', True, raw(b'')),
  Case('deep', 'A25', True, deeply_nested),
  Case('area_missing', 'A26', False, set_first(area=...), True),
  Case('area_0', 'A26', False, set_first(area=0), True),
  Case('area_wrong', 'A26', False, set_first(area=5000), True),
  Case('many_vertices', 'A27', True, many_vertices, True),
  Case('image_missing', 'I01', True, lambda data: data.file().unlink(), True),
  Case('image_in_other_case', 'I01', True, other_case, True),
  Case('image_unnamed', 'I01', True, set_image(file_name=''), True),
  Case('image_link_loop', 'I01', True, link_loop, True),
  Case('image_nul', 'I01', True, set_image(file_name='a\0.png'), True),
  Case('image_surrogate', 'I01', True, set_image(file_name='\udcff.png'), True),
  Case('image_cut_2_bytes', 'I02', True, cut(2), True, found_at='load'),
  Case('image_cut_half', 'I02', True, cut(500), True, found_at='load'),
  Case('image_empty', 'I03', True, write(b''), True, found_at='load'),
  Case(
    'image_html',
    'I03',
    True,
    write(b'<!DOCTYPE html><html>404</html>'),
    True,
    found_at='load',
  ),
  Case(
    'image_postscript',
    'I03',
    True,
    write(
      b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 64\n'
      b'%%EndComments\nshowpage\n'
    ),
    True,
    found_at='load',
  ),
  Case('jpeg_called_png', '', False, save(gray, format='JPEG')),
  Case('turned_by_exif', '', False, rotated(False)),
  Case('square_with_exif', 'I04', False, square_with_exif),
  Case('mirrored_by_exif', 'I04', False, mirrored),
  Case('turned_as_stored', '', False, rotated(True)),
  Case(
    'size_wrong', 'I05', True, set_image(height=HEIGHT + 9), found_at='load'
  ),
  Case('size_0', 'I05', True, set_image(height=0)),
  *(
    Case(
      f'mode_{mode}', '', False, save(lambda mode=mode: gray().convert(mode))
    )
    for mode in ('1', 'L', 'LA', 'P')
  ),
  Case(
    'transparent',
    'I07',
    False,
    save(np.full((HEIGHT, WIDTH, 4), 100, np.uint8)),
  ),
  Case(
    'cmyk',
    '',
    False,
    save(lambda: gray().convert('RGB').convert('CMYK'), '0.jpg'),
  ),
  Case('cmyk_inverted', '', False, inverted_cmyk),
  Case(
    'image_16_bit',
    'I09',
    True,
    save(np.full((HEIGHT, WIDTH), 40_000, np.uint16)),
    True,
    found_at='load',
  ),
  Case(
    'image_16_bit_colour', 'I09', True, write(wide_png()), True, found_at='load'
  ),
  Case(
    'image_float',
    'I10',
    True,
    save(np.full((HEIGHT, WIDTH), 0.5, np.float32), '0.tif'),
    True,
    found_at='load',
  ),
  Case(
    'image_lab',
    'I11',
    True,
    save(Image.new('LAB', (WIDTH, HEIGHT)), '0.tif'),
    True,
    found_at='load',
  ),
  Case('image_infrared', 'I11', False, write(infrared(), '0.tif')),
  Case(
    'image_5_channels',
    'I11',
    True,
    write(five_channels(), '0.tif'),
    True,
    found_at='load',
  ),
  Case('image_bomb', 'I12', True, write(huge_png()), True, found_at='load'),
  Case(
    'image_huge_in_json',
    'I12',
    True,
    set_image(height=2**20, width=2**20),
    True,
  ),
  Case('image_1x1', 'I13', False, image_of(1, 1)),
  Case('image_1x5000', 'I13', False, image_of(1, 5000)),
  Case('animated', 'I14', False, animated),
  Case('image_above', 'I15', True, set_image(file_name='../0.png'), True),
  Case(
    'image_above_hidden',
    'I15',
    True,
    set_image(file_name='a/../../images/0.png'),
    True,
  ),
  Case('image_absolute', 'I15', True, set_image(file_name='/etc/passwd'), True),
  Case('image_in_a_sub_folder', '', False, in_a_sub_folder),
  Case('image_linked', '', False, linked),
]
