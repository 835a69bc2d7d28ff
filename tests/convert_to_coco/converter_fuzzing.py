"""Damages annotations of every format and converts them, for a test.

  python tests/convert_to_coco/converter_fuzzing.py FOLDER FIRST COUNT

Each number gives the same file. The process ends with status 0 if every run
ended with status 0 or 2 and printed one error at most.
"""

import base64
import copy
import faulthandler
import io
import json
import pathlib
import random
import re
import shutil
import sys

import conversion
import numpy as np
from PIL import Image

# Seconds for one file. A process that needs more ends with a traceback.
LIMIT = 5

# Values that replace parts of a JSON file.
NASTY = (
  None,
  True,
  0,
  -1,
  1e308,
  float('nan'),
  float('inf'),
  10**400,
  '',
  'a',
  '\x1b[2J',
  '\ud800',
  '../../etc/passwd',
  [],
  [[]],
  {},
  {'a': {}},
  [1, 2],
  [[1, 2], [3]],
  'x' * 5000,
  2**40,
  0.5,
)

NAMES = 'abc'

TRIANGLE = [[2, 2], [20, 3], [10, 12]]


def png(values, mode=None):
  """Returns the bytes of a PNG."""
  file = io.BytesIO()
  image = Image.fromarray(np.asarray(values, np.uint8))
  if mode == 'P':
    image = image.convert('P')
    image.putpalette([9] * 768)
  image.save(file, 'PNG')
  return file.getvalue()


def brush(height, width):
  """Returns a brush of Label Studio that covers the whole picture."""
  total = 4 * height * width
  bits = f'{total:032b}{7:05b}' + f'{15:04b}' * 4
  while total:
    count = min(total, 1 << 16)
    bits += f'100{count - 1:016b}{255:08b}'
    total -= count
  bits += '0' * (-len(bits) % 8)
  return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def labels():
  """Returns a picture of two objects, 16x24."""
  values = np.zeros((16, 24), np.uint8)
  values[2:8, 3:9] = 1
  values[9:14, 12:20] = 2
  return values


def region(kind, value):
  """Returns a region of Label Studio."""
  return {
    'type': kind,
    'original_width': 24,
    'original_height': 16,
    'image_rotation': 0,
    'value': {kind: ['cat'], 'rotation': 0, **value},
  }


VIA = {
  'a.jpg9': {
    'filename': 'a.jpg',
    'size': 9,
    'regions': [
      {
        'shape_attributes': {
          'name': 'polygon',
          'all_points_x': [2, 20, 10],
          'all_points_y': [2, 3, 12],
        },
        'region_attributes': {'kind': 'cat'},
      },
      {
        'shape_attributes': {'name': 'ellipse'}
        | {'cx': 9, 'cy': 9, 'rx': 4, 'ry': 3, 'theta': 0.3},
        'region_attributes': {'kind': {'cat': True}},
      },
      {
        'shape_attributes': {'name': 'rect'}
        | {'x': 2, 'y': 2, 'width': 9, 'height': 9},
        'region_attributes': {'kind': 'dog'},
      },
    ],
  }
}
LABELME = {
  'version': '5.4',
  'imagePath': 'a.jpg',
  'imageHeight': 16,
  'imageWidth': 24,
  'shapes': [
    {'label': 'cat', 'points': TRIANGLE, 'group_id': 1},
    {'label': 'cat', 'points': TRIANGLE[:2], 'shape_type': 'rectangle'},
    {'label': 'dog', 'points': TRIANGLE[:2], 'shape_type': 'circle'},
    {
      'label': 'cat',
      'shape_type': 'mask',
      'group_id': 1,
      'points': [[3, 2], [8, 7]],
      'mask': base64.b64encode(png(np.ones((6, 6)))).decode(),
    },
  ],
}
LABEL_STUDIO = [
  {
    'id': 1,
    'data': {'image': '/data/upload/1/0123abcd-a.jpg'},
    'annotations': [
      {
        'was_cancelled': False,
        'result': [
          region('polygonlabels', {'points': [[5, 5], [90, 9], [50, 80]]}),
          region('rectanglelabels', {'x': 5, 'y': 5, 'width': 9, 'height': 50}),
          region('ellipselabels', {'x': 50, 'y': 50})
          | {
            'value': {'x': 50, 'y': 50, 'radiusX': 9, 'radiusY': 9}
            | {'ellipselabels': ['dog']}
          },
          region('brushlabels', {'format': 'rle', 'rle': brush(16, 24)}),
        ],
      }
    ],
  }
]
CVAT = b"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels><label><name>cat</name>
</label></labels></task></meta>
<image id="0" name="a.jpg" width="24" height="16">
<polygon label="cat" points="2.0,2.0;20.0,3.0;10.0,12.0" group_id="1"/>
<box label="cat" xtl="1" ytl="2" xbr="9" ybr="8" rotation="30"/>
<ellipse label="dog" cx="9" cy="9" rx="3" ry="2"/>
<mask label="cat" rle="3, 5, 4" left="2" top="3" width="4" height="3"/>
</image>
</annotations>"""
YOLO = b'0 0.1 0.1 0.9 0.2 0.5 0.8\n1 0.5 0.5 0.2 0.3\n'
YAML = b'names:\n  0: cat\n  1: dog\n'


def seeds(kind):
  """Returns the files of a set of a.jpg, b.jpg and c.jpg, by their path."""
  match kind:
    case 'via':
      entries = {}
      for name in NAMES:
        entries |= renamed(VIA, name)
      return {'v.json': entries}
    case 'labelme':
      return {f'{name}.json': renamed(LABELME, name) for name in NAMES}
    case 'label_studio':
      return {'l.json': [renamed(LABEL_STUDIO[0], name) for name in NAMES]}
    case 'cvat':
      first, image, last = re.split(rb'(?s)(<image.*</image>)', CVAT)
      images = [image.replace(b'a.jpg', f'{n}.jpg'.encode()) for n in NAMES]
      return {'annotations.xml': first + b''.join(images) + last}
    case 'yolo':
      return {f'{name}.txt': YOLO for name in NAMES} | {'data.yaml': YAML}
    case 'masks':
      return {f'{name}.png': png(labels(), 'P') for name in NAMES}
    case 'voc':
      files = {'labelmap.txt': b'background:0,0,0::\ncat:9,9,9::\n'}
      for name in NAMES:
        files[f'SegmentationObject/{name}.png'] = png(labels(), 'P')
        files[f'SegmentationClass/{name}.png'] = png(labels() > 0, 'P')
      return files
  raise ValueError(kind)


def renamed(value, name):
  """Returns a copy of a JSON value about the image a.jpg for another image."""
  return json.loads(json.dumps(value).replace('a.jpg', f'{name}.jpg'))


def replace_part(value, rng):
  """Replaces, deletes or doubles a random part of a JSON value."""
  places = []

  def visit(node):
    if isinstance(node, dict | list):
      keys = list(node) if isinstance(node, dict) else range(len(node))
      for key in keys:
        places.append((node, key))
        visit(node[key])

  visit(value)
  if not places:
    return rng.choice(NASTY)
  node, key = rng.choice(places)
  action = rng.random()
  if action < 0.6:
    node[key] = copy.deepcopy(rng.choice(NASTY))
  elif action < 0.8:
    del node[key]
  elif isinstance(node, list):
    node.append(copy.deepcopy(node[key]))
  else:
    node['x\x1b[31m'] = node[key]
  return value


def damage_bytes(content, rng):
  """Changes, deletes or inserts random bytes."""
  content = bytearray(content)
  for _ in range(rng.randint(1, 4)):
    place = rng.randrange(len(content) + 1)
    match rng.randrange(5):
      case 0 if place < len(content):
        content[place] ^= 1 << rng.randrange(8)
      case 1:
        del content[place : place + rng.randint(1, 9)]
      case 2:
        content[place:place] = rng.randbytes(rng.randint(1, 5))
      case 3:
        content[place:place] = rng.choice(
          (b'9' * 30, b'-', b'nan', b'\0', b'<!ENTITY', b',,', b'1e999', b'"')
        )
      case 4:
        content = content[: max(place, 1)]
  return bytes(content)


def write_case(folder, number):
  """Writes a damaged set.

  Returns:
    The format, or no format if it must be recognised.
  """
  rng = random.Random(number)
  kinds = ('via', 'labelme', 'label_studio', 'cvat', 'yolo', 'masks', 'voc')
  kind = kinds[number % len(kinds)]
  files = seeds(kind)
  target = rng.choice(sorted(files))
  for path, content in files.items():
    if path == target and not isinstance(content, bytes) and rng.random() < 0.7:
      for _ in range(rng.randint(1, 3)):
        content = replace_part(content, rng)
      content = json.dumps(content).encode()
    elif path == target:
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      content = damage_bytes(content, rng)
    elif not isinstance(content, bytes):
      content = json.dumps(content).encode()
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
  return [kind] if rng.random() < 0.7 else []


def main():
  """Converts the damaged sets with the numbers that the command line gives."""
  folder, first, count = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
  images = folder / 'images'
  images.mkdir(parents=True)
  for name in NAMES:
    Image.new('RGB', (24, 16)).save(images / f'{name}.jpg')
  statuses = []
  for number in range(first, first + count):
    place = folder / 'case'
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    kind = write_case(place, number)
    print(number, *kind, flush=True)
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    done = conversion.run(
      *kind,
      f'--images={images}',
      f'--annotations={place}',
      f'--out={folder / "out.json"}',
    )
    faulthandler.cancel_dump_traceback_later()
    printed = done.stdout + done.stderr
    assert done.returncode in (0, 2), (number, done)
    assert printed.isascii() or '\x1b' not in printed, (number, done)
    if done.returncode:
      line, *more = done.stderr.splitlines()
      assert line.startswith('error: ') and len(more) <= 1, (number, done)
    statuses.append(done.returncode)
  print(f'{statuses.count(0)} of {len(statuses)} were converted')


if __name__ == '__main__':
  main()
