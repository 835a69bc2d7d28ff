"""Runs check_data on a hundred damaged annotation files: a program for a test.

  python fuzz_coco.py SEED FOLDER

Prints a line for each file that ends in an exception, and a last line 'done'.
If a file takes more than LIMIT seconds of computing, the process ends with a
traceback.
"""

import contextlib
import copy
import faulthandler
import io
import json
import pathlib
import random
import signal
import sys
import traceback

from PIL import Image

from maskrcnn_jax.check_data import command_line, contact_sheet

NUM_FILES = 100
# Seconds of computing that one file may take. A sound file takes 0.2 s.
LIMIT = 5

WORDS = (
  'images annotations categories id image_id category_id bbox segmentation '
  'area iscrowd file_name width height name supercategory counts size coco_url'
).split()


def strange(rng):
  """Returns a value that does not belong into annotations, or only at times."""
  return rng.choice(
    [
      *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400),
      *(0.5, 1e308, -1e308, 1e-320, float('nan'), float('inf'), -0.0, 1.0),
      *('', '1', '1.0', 'cat', '\x1b[31m', 'a\nb', '\ud800', '\0', '../a.png'),
      *('/etc/passwd', '0.png', 'x' * 10_000, '%', "b'abc'", 'o' * 1000),
      *([], {}, [[]], [{}], [None], [1], [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]]),
      *([[1, 2], [3, 4], [5, 6]], [['1'] * 6], [[0.0] * 6], [[1e300] * 6]),
      *({'size': [96, 128], 'counts': [96 * 128]}, {'size': [96, 128]}),
      *({'size': [2**31, 2**31], 'counts': [1]}, {'counts': 'x'}, {'id': 1}),
      *([[[[[[]]]]]], {'a': {'b': {}}}, [10**400], [True] * 4, 'null'),
      *({'size': [96, 128], 'counts': 'PPYo0' * 3}, [-1, -1, 0, 0]),
    ]
  )


def sound():
  """Returns annotations of three pictures with masks of each kind."""
  polygon = [[10.0, 12, 40, 12, 40, 32, 10, 32]]
  rle = {'size': [96, 128], 'counts': [960, 20, 96 * 128 - 980]}
  objects = [(polygon, 0), (rle, 1), (polygon * 2, 0), (polygon, 0)] * 2
  return {
    'info': {'year': 2026},
    'images': [
      {'id': 10 + i, 'file_name': f'{i}.png', 'height': 96, 'width': 128}
      for i in range(3)
    ],
    'annotations': [
      {
        'id': 7 + i,
        'image_id': 10 + i % 3,
        'category_id': 3 if i % 2 else 9,
        'iscrowd': is_crowd,
        'area': 600.0,
        'bbox': [10.0, 12, 30, 20],
        'segmentation': segmentation,
      }
      for i, (segmentation, is_crowd) in enumerate(objects)
    ],
    'categories': [{'id': 3, 'name': 'cat'}, {'id': 9, 'name': 'dog'}],
  }


def places(value):
  """Yields (container, key) for every value inside of a JSON value."""
  pairs = []
  if isinstance(value, dict):
    pairs = list(value.items())
  elif isinstance(value, list):
    pairs = list(enumerate(value))
  for key, item in pairs:
    yield value, key
    yield from places(item)


def damage(document, rng):
  """Changes one value of a JSON document."""
  everywhere = list(places(document))
  if not everywhere:
    return
  container, key = rng.choice(everywhere)
  match rng.randrange(6):
    case 0 | 1:
      container[key] = strange(rng)
    case 2:
      container[key] = copy.deepcopy(rng.choice(everywhere)[0])
    case 3:
      del container[key]
    case 4 if isinstance(container, dict):
      container[rng.choice(WORDS)] = container.pop(key)
    case 4:
      container.insert(key, strange(rng))
    case 5 if isinstance(container, dict):
      container[rng.choice(WORDS)] = strange(rng)
    case 5:
      container.append(copy.deepcopy(container[key]))


def damage_bytes(content, rng):
  """Changes, removes, doubles or inserts a few bytes, or cuts off the end."""
  first = rng.randrange(len(content))
  last = min(len(content), first + rng.randrange(1, 20))
  part = content[first:last]
  new = rng.choice([b'', part * 2, rng.randbytes(3), b'"', b'[' * 2000, b'\0'])
  end = content[last:] if rng.random() < 0.9 else b''
  return content[:first] + new + end


def make_file(rng):
  """Returns the bytes of a damaged annotation file."""
  document = sound()
  for _ in range(rng.choice([0, 1, 1, 2, 5, 20])):
    damage(document, rng)
  # The surrogate stays as an escape, as Python writes it.
  content = json.dumps(document).encode()
  for _ in range(rng.choice([0, 0, 0, 1, 3])):
    content = damage_bytes(content, rng)
  return content


def main(seed, folder):
  """Makes the files one after the other, and checks each of them."""
  rng = random.Random(seed)
  contact_sheet.NUM_EXAMPLES = 1
  (folder / 'images').mkdir()
  for i in range(3):
    picture = Image.new('RGB', (128, 96), (50 * i, 0, 0))
    picture.save(folder / 'images' / f'{i}.png')
  file = folder / 'a.json'
  # The handler prints the traceback, and then the signal ends the process, even
  # inside of a library.
  faulthandler.register(signal.SIGPROF, chain=True)
  for i in range(-1, NUM_FILES):
    # The first file is sound. The program imports its libraries with it.
    content = make_file(rng) if i >= 0 else json.dumps(sound()).encode()
    file.write_bytes(content)
    signal.setitimer(signal.ITIMER_PROF, LIMIT if i >= 0 else 0)
    printed = io.StringIO()
    try:
      with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
      ):
        status = command_line.main(
          [
            f'--images={folder / "images"}',
            f'--annotations={file}',
            f'--out={folder / "out"}',
            '--workers=1',
          ]
        )
      if status not in ((0, 2) if i >= 0 else (0,)):
        print(f'{seed}/{i}: status {status}')
      if not printed.getvalue().replace('\n', '').isprintable():
        print(f'{seed}/{i}: prints control characters')
    except Exception:
      kept = folder.parent / f'fuzzed_{seed}_{i}.json'
      file.rename(kept)
      print(f'{seed}/{i}, kept as {kept}:')
      traceback.print_exc(file=sys.stdout)
    signal.setitimer(signal.ITIMER_PROF, 0)
  print('done')


if __name__ == '__main__':
  main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
