"""Measures the time and the memory of --mode=predict.

  python scripts/predict_speed.py --checkpoint=CHECKPOINT [--count=200]

It draws pictures of 2 megapixels and predicts on them, with and without
overlays, and prints the wall time, the CPU time and the peak memory. Then it
reads a picture of 9000x12000 pixels, pastes 100 large masks, draws and saves
it as a prediction does, without a model, and prints the peak memory.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image


def main() -> None:
  """Runs the measurements and prints the figures."""
  assert __doc__ is not None
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', help='a trained model')
  parser.add_argument(
    '--count', type=int, default=200, help='number of pictures'
  )
  parser.add_argument(
    '--large', metavar='FILE', help='only draw on this large picture'
  )
  options = parser.parse_args()
  if options.large:
    draw_large(pathlib.Path(options.large))
    return
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if options.checkpoint:
      (folder / 'pictures').mkdir()
      for i in range(options.count):
        draw_photo(folder / 'pictures' / f'{i:04}.jpg', 1632, 1224, seed=i)
      for overlays in ('png', 'none'):
        measure(
          f'{options.count} pictures, overlays {overlays}',
          '-m',
          'maskrcnn_jax.main',
          '--mode=predict',
          f'--checkpoint={options.checkpoint}',
          f'--workdir={folder / overlays}',
          f'--input={folder / "pictures"}',
          f'--overlays={overlays}',
        )
    draw_photo(folder / 'large.jpg', 9000, 12_000, seed=0)
    measure('9000x12000', __file__, f'--large={folder / "large.jpg"}')


def draw_photo(path: pathlib.Path, width: int, height: int, seed: int) -> None:
  """Writes a picture that is about as smooth as a photograph.

  Args:
    path: The file.
    width: Width in pixels.
    height: Height in pixels.
    seed: The seed of its colors.
  """
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (height // 25, width // 25, 3), np.uint8)
  image = Image.fromarray(small).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  noise = rng.normal(0, 4, (min(height, 1024), min(width, 1024)))
  for top in range(0, height, 1024):
    for left in range(0, width, 1024):
      box = (left, top, min(left + 1024, width), min(top + 1024, height))
      pixels = np.asarray(image.crop(box)).astype(np.float32)
      pixels += noise[: pixels.shape[0], : pixels.shape[1], None]
      part = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
      image.paste(part, (left, top))
  image.save(path, quality=90)


def measure(title: str, *command: str) -> None:
  """Runs a program of this Python, and prints its figures.

  Args:
    title: The text in front of the figures.
    *command: The arguments of Python.
  """
  started = time.monotonic()
  process = subprocess.Popen([sys.executable, *command])
  _, status, usage = os.wait4(process.pid, 0)
  seconds = time.monotonic() - started
  if status:
    sys.exit(f'The program ended with status {status}.')
  print(
    f'{title}: {seconds:.1f} s wall, '
    f'{usage.ru_utime + usage.ru_stime:.1f} s CPU, '
    f'{usage.ru_maxrss / 2**20:.2f} GiB',
    flush=True,
  )


def draw_large(path: pathlib.Path) -> None:
  """Draws 100 large masks on a picture, as a prediction does.

  Args:
    path: The picture.
  """
  from maskrcnn_jax.data.images import decode_image
  from maskrcnn_jax.drawing.draw import draw_detections
  from maskrcnn_jax.mask_paste import paste_masks

  pixels = decode_image(path)
  height, width, _ = pixels.shape
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 0.5, (100, 2)) * (width, height)
  sides = rng.uniform(0.3, 0.5, (100, 2)) * (width, height)
  boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
  y, x = np.mgrid[:28, :28] / 27 - 0.5
  disk = np.clip(1 - 4 * (x**2 + y**2), 0, 1)
  noise = rng.uniform(-0.1, 0.1, (100, 28, 28))
  cells = np.clip(disk + noise, 0, 1).astype(np.float32)
  masks = paste_masks(cells, boxes, height=height, width=width)
  picture = draw_detections(
    pixels, boxes, ['disk'] * 100, rng.uniform(0.5, 1, 100).astype('f4'), masks
  )
  picture.save(path.with_suffix('.png'), compress_level=1)


if __name__ == '__main__':
  main()
