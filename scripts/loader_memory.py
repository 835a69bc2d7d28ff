"""Measures the time and the memory that a large annotation file costs.

  python scripts/loader_memory.py DIR [--annotations=2000000] [--workers=2]

Writes a COCO file with that many polygons into DIR, unless it exists, reads it,
and loads batches in worker processes. Prints the seconds and the peak memory of
reading. For each worker it prints the largest resident memory (RSS) and the
largest part of it that no other process shares (USS). Works on Linux only.
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

SIZE = 480, 640  # (height, width) of the images in pixels, as most of COCO's
# Number of different image files; all images of the set use one of them.
NUM_FILES = 32


def write_set(folder: pathlib.Path, num_annotations: int) -> pathlib.Path:
  """Writes a made-up data set: image files and a COCO annotation file.

  Each object is a polygon of 25 vertices in an image that is chosen at random.
  There are seven objects per image on average, about as many as in COCO. The
  images of the data set share `NUM_FILES` image files.

  Args:
    folder: Folder for the annotation file. The image files are written to its
      subfolder `images`.
    num_annotations: Number of objects of all images together, at least 7.

  Returns:
    Path of the annotation file.
  """
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


def peak_mib() -> float:
  """Returns the largest memory that this process has used so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_mib(pid: int) -> tuple[float, float]:
  """Returns the memory of a process in MiB.

  Args:
    pid: Number of the process.

  Returns:
    rss: All memory of the process.
    uss: The part that it shares with no other process.

  Raises:
    OSError: If the process has ended.
  """
  text = pathlib.Path(f'/proc/{pid}/smaps_rollup').read_text()
  kib = {
    name: int(rest.split()[0])
    for name, _, rest in (line.partition(':') for line in text.splitlines())
    if name in ('Rss', 'Private_Clean', 'Private_Dirty')
  }
  if not kib:  # The process has ended, but its entry still exists.
    raise ProcessLookupError(pid)
  return kib['Rss'] / 2**10, (
    kib['Private_Clean'] + kib['Private_Dirty']
  ) / 2**10


def main() -> None:
  """Writes the data set if needed, loads it, and prints the measurements."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument(
    'folder', type=pathlib.Path, help='folder for the data set'
  )
  parser.add_argument(
    '--annotations', type=int, default=2_000_000, help='number of objects'
  )
  parser.add_argument(
    '--workers', type=int, default=2, help='number of worker processes'
  )
  parser.add_argument(
    '--steps', type=int, default=150, help='number of batches to load'
  )
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
  largest: dict[int, np.ndarray] = {}  # [RSS, USS] of each process, in MiB

  def watch() -> None:
    """Records the largest memory of each worker until `done` is set."""
    while not done.wait(0.2):
      for child in multiprocessing.active_children():
        assert child.pid is not None  # It has been started.
        try:
          memory = memory_mib(child.pid)
        except OSError:  # The process has ended.
          continue
        largest[child.pid] = np.maximum(largest.get(child.pid, 0), memory)

  done = threading.Event()
  watcher = threading.Thread(target=watch)
  watcher.start()
  for i, _ in enumerate(batches):
    if not i:
      print(f'first batch: {time.monotonic() - started:.1f} s', flush=True)
  done.set()
  watcher.join()
  for pid, (rss, uss) in largest.items():
    print(f'process {pid}: at most {rss:.0f} MiB RSS, {uss:.0f} MiB USS')


if __name__ == '__main__':
  main()
