"""Compares detection from Python with `--mode=predict`: results and speed.

  python scripts/python_speed.py --checkpoint=DIR --input=PICTURES

Both find the objects of the same pictures, one after the other, and write the
results. Nothing is drawn: `--mode=predict` draws in other threads, while a loop
in Python that saves each drawing waits for it. First, all programs are
compiled, so that the figures are those of a long run. The script prints the
largest difference of a box or a score, and the pictures per second of both. The
exit status is 1 if the objects differ by more than 1e-5 of the size of the
picture.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import maskrcnn_jax
from maskrcnn_jax.api import ObjectDetector
from maskrcnn_jax.data.image_files import list_images
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.prediction.predict import predict
from maskrcnn_jax.runtime.files import write_json

# Largest difference of a score, or of a box as a share of its picture's longer
# side: rounding errors of float32 in batches of other sizes.
TOLERANCE = 1e-5


def main(argv: list[str] | None = None) -> int:
  """Runs the comparison and prints it.

  Args:
    argv: The arguments of the command line.

  Returns:
    The exit status: 0 if the results are equal, otherwise 1.
  """
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--checkpoint', required=True, help='a trained model')
  parser.add_argument('--input', required=True, help='a folder or a pattern')
  parser.add_argument(
    '--batch_size', type=int, default=1, help='pictures at once in Python'
  )
  parser.add_argument(
    '--rounds', type=int, default=1, help='how often the speed is measured'
  )
  options = parser.parse_args(argv)
  detector = maskrcnn_jax.load(options.checkpoint)
  files = list_images(options.input)
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder)
    theirs = run_predict(options.checkpoint, options.input, out)
    ours = run_python(detector, files, out, options.batch_size)
    difference = largest_difference(ours[0], theirs[0])
    print(f'{len(theirs[0])} objects in {len(files)} pictures')
    print(f'largest difference: {difference:.2g}')
    for number in range(options.rounds):
      _, slow = run_predict(options.checkpoint, options.input, out)
      _, fast = run_python(detector, files, out, options.batch_size)
      print(
        f'round {number + 1}: predict {len(files) / slow:.3f} pictures/s, '
        f'Python {len(files) / fast:.3f} pictures/s, ratio {slow / fast:.3f}',
        flush=True,
      )
  return int(difference > TOLERANCE)


def run_predict(
  checkpoint: str, pattern: str, out: pathlib.Path
) -> tuple[list[dict[str, Any]], float]:
  """Runs the function behind `--mode=predict`.

  Args:
    checkpoint: The trained model.
    pattern: The pictures.
    out: The folder to write to.

  Returns:
    The results, and the seconds without loading the model.
  """
  detector = load_detector(pathlib.Path(checkpoint))
  started = time.monotonic()
  predict(
    detector,
    pattern=pattern,
    output=out / 'predict',
    config=detector.config,
    draws=False,
  )
  seconds = time.monotonic() - started
  path = out / 'predict' / 'predictions.json'
  return json.loads(path.read_text(encoding='utf-8')), seconds


def run_python(
  detector: ObjectDetector,
  files: list[pathlib.Path],
  out: pathlib.Path,
  batch_size: int,
) -> tuple[list[dict[str, Any]], float]:
  """Does the same with the functions for Python; returns the same."""
  started = time.monotonic()
  found = []
  for result in detector(iter(files), batch_size=batch_size):
    found += result.to_coco()
  write_json(out / 'found.json', found)
  return found, time.monotonic() - started


def largest_difference(
  ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> float:
  """Returns the largest difference of a score or a box of the same object.

  Boxes count as shares of the longer side of their picture. If the classes
  or the numbers of objects differ, the difference is infinite. The objects of a
  picture are in the order of their scores.
  """

  def object_of(one: dict[str, Any]) -> tuple[str, Any]:
    """Returns the picture and the class of an object."""
    return pathlib.PurePath(one['file_name']).name, one['category_id']

  if list(map(object_of, ours)) != list(map(object_of, theirs)):
    return float('inf')
  largest = 0.0
  for one, other in zip(ours, theirs, strict=True):
    side = max(one.get('segmentation', {'size': [1]})['size'])
    largest = max(
      largest,
      abs(one['score'] - other['score']),
      *(
        abs(x - y) / side
        for x, y in zip(one['bbox'], other['bbox'], strict=True)
      ),
    )
  return largest


if __name__ == '__main__':
  sys.exit(main())
