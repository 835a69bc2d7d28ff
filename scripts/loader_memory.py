"""Measures what a large annotation file costs: time, and memory.

  python scripts/loader_memory.py DIR [--annotations=2000000] [--workers=2]

Writes a COCO file of that many polygons into DIR (once), reads it, and loads
batches from worker processes. Prints the seconds and the peak of this process,
and of each worker its resident memory (RSS) after the last batch and its part
that no other process shares (USS). Linux.
"""

import argparse
import json
import multiprocessing
import pathlib
import resource
import threading
import time

import numpy as np
from PIL import Image

from maskrcnn_jax.data import canvases, coco, image_sets, loader
from maskrcnn_jax.data.source import DataSet

SIZE = 480, 640  # of the images, as most of COCO's
NUM_FILES = 32


def write_set(folder, num_annotations):
  """Writes images and a file of as many objects an image as COCO has."""
  rng = np.random.default_rng(0)
  (folder / 'images').mkdir(parents=True, exist_ok=True)
  for i in range(NUM_FILES):
    pixels = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    image.save(folder / 'images' / f'{i}.jpg')
  num_images = num_annotations // 7
  angles = np.linspace(0, 2 * np.pi, 26)[:-1]
  circle = np.stack([np.cos(angles), np.sin(angles)], -1)
  path = folder / f'instances_{num_annotations}.json'
  with open(path, 'w') as file:
    file.write('{"images": [')
    file.write(
      ',\n'.join(
        json.dumps(
          {
            'id': i,
            'file_name': f'{i % NUM_FILES}.jpg',
            'height': SIZE[0],
            'width': SIZE[1],
          }
        )
        for i in range(num_images)
      )
    )
    file.write('],\n"annotations": [')
    for i in range(num_annotations):
      x, y = rng.uniform(60, 400, 2).round(2)
      radius = rng.uniform(5, 50)
      polygon = (circle * radius + (x, y)).round(2).ravel().tolist()
      file.write(
        (',\n' if i else '')
        + json.dumps(
          {
            'id': i + 1,
            'image_id': int(rng.integers(num_images)),
            'category_id': 1 + i % 80,
            'iscrowd': 0,
            'area': round(3.1 * radius**2, 2),
            'bbox': [x - radius, y - radius, 2 * radius, 2 * radius],
            'segmentation': [polygon],
          }
        )
      )
    file.write('],\n"categories": ')
    file.write(
      json.dumps([{'id': i, 'name': f'class {i}'} for i in range(1, 81)])
    )
    file.write('}')
  return path


def peak_mib():
  """The most memory that this process had, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_mib(pid):
  """The memory of a process in MiB: (all, what no other process shares)."""
  text = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
  kib = {
    name: int(rest.split()[0])
    for name, _, rest in (line.partition(':') for line in text.splitlines())
    if name in ('Rss', 'Private_Clean', 'Private_Dirty')
  }
  if not kib:  # it is a zombie
    raise ProcessLookupError(pid)
  return kib['Rss'] / 2**10, (
    kib['Private_Clean'] + kib['Private_Dirty']
  ) / 2**10


def main():
  """Prints the figures."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--annotations', type=int, default=2_000_000)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--steps', type=int, default=150)
  arguments = parser.parse_args()
  folder = arguments.folder
  path = folder / f'instances_{arguments.annotations}.json'
  if not path.exists():
    write_set(folder, arguments.annotations)
  print(f'{path}: {path.stat().st_size / 2**20:.0f} MiB')
  before = peak_mib()
  started = time.monotonic()
  index = coco.read_coco(path)
  print(
    f'reading: {time.monotonic() - started:.1f} s, peak {peak_mib():.0f} MiB'
    f' ({before:.0f} before)',
    flush=True,
  )
  plan = canvases.plan_canvases(
    index.heights,
    index.widths,
    short_side=800,
    long_side=1333,
    padded_sizes=((800, 1088),),
    max_source_side=2666,
  )
  rows, _ = image_sets.filter_images(index, keep_empty=False)
  started = time.monotonic()
  batches = loader.train_batches(
    DataSet(index, folder / 'images'),
    plan,
    rows,
    limits=image_sets.find_limits(index, max_objects=100),
    seed=0,
    start_step=0,
    num_steps=arguments.steps,
    batch_size=4,
    num_workers=arguments.workers,
  )
  most = {}

  def watch():
    while not done.wait(0.2):
      for child in multiprocessing.active_children():
        try:
          memory = memory_mib(child.pid)
        except OSError:  # it has ended
          continue
        most[child.pid] = np.maximum(most.get(child.pid, 0), memory)

  done = threading.Event()
  watcher = threading.Thread(target=watch)
  watcher.start()
  for i, _ in enumerate(batches):
    if not i:
      print(f'first batch: {time.monotonic() - started:.1f} s', flush=True)
  done.set()
  watcher.join()
  for pid, (rss, uss) in most.items():
    print(f'process {pid}: at most {rss:.0f} MiB RSS, {uss:.0f} MiB USS')


if __name__ == '__main__':
  main()
