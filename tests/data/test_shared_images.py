"""Training names the images that its evaluation set shares."""

import json

import numpy as np
from PIL import Image
import pytest

from maskrcnn_jax.config import default_config
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training import checks

SQUARE = [4, 4, 30, 4, 30, 30, 4, 30]


def write_set(folder, names, *, seed=0, categories=('a', 'b')):
  """Writes a data set of random images; returns the folder and the JSON."""
  rng = np.random.default_rng(seed)
  (folder / 'images').mkdir(parents=True)
  content = {'images': [], 'annotations': []}
  content['categories'] = [
    {'id': i, 'name': name} for i, name in enumerate(categories, start=1)
  ]
  for i, name in enumerate(names):
    pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
    # All files have the same number of bytes.
    Image.fromarray(pixels).save(folder / 'images' / name, 'BMP')
    content['images'].append(
      {'id': i, 'file_name': name, 'height': 40, 'width': 40}
    )
    for class_ in (1, 2):
      content['annotations'].append(
        {
          'id': 2 * i + class_,
          'image_id': i,
          'category_id': class_,
          'bbox': [4, 4, 26, 26],
          'area': 676,
          'iscrowd': 0,
          'segmentation': [SQUARE],
        }
      )
  (folder / 'a.json').write_text(json.dumps(content))
  return folder


def start(train, evaluation):
  """Reads both sets as the start of a training does."""
  config = default_config()
  for part, folder in (('train', train), ('eval', evaluation)):
    config.data[part].images = str(folder / 'images')
    config.data[part].annotations = str(folder / 'a.json')
  data_set, _ = checks.read_training_set(config)
  checks.check_eval_set(config, data_set)


def warnings_of(caplog):
  return [r.getMessage() for r in caplog.records if 'A20' in r.getMessage()]


def test_images_of_the_evaluation_set_are_found_in_the_training_set(
  tmp_path, caplog
):
  names = [f'{i}.bmp' for i in range(8)]
  train = write_set(tmp_path / 'train', names)
  other = write_set(tmp_path / 'val', names[:5], seed=1)
  # The names are the same, but the pictures are not.
  start(train, other)
  assert warnings_of(caplog) == []
  for name in names[:2]:
    content = (train / 'images' / name).read_bytes()
    (other / 'images' / name).write_bytes(content)
  start(train, other)
  (line,) = warnings_of(caplog)
  assert '2 of the 5 images of' in line
  assert line.endswith('0.bmp, 1.bmp.')


def test_the_training_set_itself_shares_all_images(tmp_path, caplog):
  train = write_set(tmp_path / 'train', ['a.bmp'])
  start(train, train)
  (line,) = warnings_of(caplog)
  assert '1 of the 1 images' in line


def test_other_classes_are_named_by_id_and_name(tmp_path):
  train = write_set(tmp_path / 'train', ['a.bmp'], categories='abc')
  other = write_set(tmp_path / 'val', ['v.bmp'], categories='ab')
  with pytest.raises(InputError, match=r"A21: .*training set: it lacks 3 'c'"):
    start(train, other)
