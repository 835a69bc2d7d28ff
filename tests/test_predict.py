"""Tests of prediction on a user's own pictures."""

import json
import shutil

from absl import logging
import numpy as np
from numpy.testing import assert_allclose
from PIL import ExifTags, Image
from pycocotools import mask as mask_api
import pytest

from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.predict import predict

pytestmark = pytest.mark.usefixtures('compilation_cache')


@pytest.fixture(scope='module')
def detector(tiny_run):
  return load_detector(tiny_run[0], None)


@pytest.fixture
def pictures(tiny_data, tmp_path):
  """A folder with a picture, a picture in a sub-folder, and a text file."""
  folder = tmp_path / 'pictures'
  (folder / 'sub' / 'deep').mkdir(parents=True)
  shutil.copyfile(tiny_data / 'images' / 'val_00000.jpg', folder / 'a.jpg')
  with Image.open(tiny_data / 'images' / 'val_00001.jpg') as image:
    image.save(folder / 'sub' / 'deep' / 'b.png')
  (folder / 'notes.txt').write_text('no picture')
  return folder


@pytest.fixture
def run(detector, tmp_path):
  """Returns a function that predicts on the pictures of a pattern.

  It returns the content of predictions.json and the number of broken files.
  """

  def run_on(pattern):
    broken = predict(
      detector,
      pattern=str(pattern),
      workdir=tmp_path / 'run',
      config=detector.config,
    )
    path = tmp_path / 'run' / 'predictions' / 'predictions.json'
    return json.loads(path.read_text(encoding='utf-8')), broken

  return run_on


def overlays(tmp_path):
  folder = tmp_path / 'run' / 'predictions'
  return {
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  } - {'predictions.json'}


def size_of(path):
  with Image.open(path) as image:
    return image.size


def assert_drawn_on(tmp_path, overlay, width, height):
  """Checks that an overlay has the size of its picture or a multiple of it."""
  drawn = size_of(tmp_path / 'run' / 'predictions' / overlay)
  times = drawn[0] // width
  assert times >= 1
  assert drawn == (times * width, times * height)


def test_predict_reads_gray_of_16_bits(detector, tmp_path):
  values = np.zeros((64, 64), np.uint16)
  values[10:40, 20:50] = 4000
  Image.fromarray(values).save(tmp_path / 'a.png')
  options = dict(pattern=str(tmp_path / 'a.png'), workdir=tmp_path / 'run')
  config = detector.config.copy_and_resolve_references()
  assert predict(detector, config=config, **options) == 1
  config.data.pixel_range = (0, 4000)
  assert predict(detector, config=config, **options) == 0
  # The same picture with 8 bits gives the same detections.
  gray = np.where(values > 0, 255, 0).astype(np.uint8)
  Image.fromarray(gray).save(tmp_path / 'b.png')
  path = tmp_path / 'run' / 'predictions' / 'predictions.json'
  found = json.loads(path.read_text(encoding='utf-8'))
  predict(
    detector,
    config=config,
    **options | {'pattern': str(tmp_path / 'b.png')},
  )
  of_8_bits = json.loads(path.read_text(encoding='utf-8'))
  assert [f | {'file_name': ''} for f in found] == [
    f | {'file_name': ''} for f in of_8_bits
  ]


def test_predict_writes_coco_results_with_names(
  run, detector, pictures, tiny_data
):
  results, broken = run(pictures / 'a.jpg')
  assert broken == 0
  assert 0 < len(results) <= 8
  width, height = size_of(pictures / 'a.jpg')
  content = json.loads((tiny_data / 'instances_val.json').read_text())
  names = {c['id']: c['name'] for c in content['categories']}
  for result in results:
    assert set(result) == {
      'image_id',
      'file_name',
      'category_id',
      'category_name',
      'score',
      'bbox',
      'segmentation',
    }
    assert (result['image_id'], result['file_name']) == (1, 'a.jpg')
    assert names[result['category_id']] == result['category_name']
    assert 0 <= result['score'] <= 1
    x, y, w, h = result['bbox']
    assert 0 <= x <= x + w <= width + 1e-3
    assert 0 <= y <= y + h <= height + 1e-3
    assert mask_api.decode(result['segmentation']).shape == (height, width)
  scores = [result['score'] for result in results]
  assert scores == sorted(scores, reverse=True)


def test_predict_finds_what_the_evaluation_finds(run, tiny_run, pictures):
  results, _ = run(pictures / 'a.jpg')
  evaluated = json.loads((tiny_run[0] / 'inference/bbox.json').read_text())
  first = evaluated[0]['image_id']
  evaluated = [r for r in evaluated if r['image_id'] == first]
  assert_allclose(
    [r['bbox'] for r in results], [r['bbox'] for r in evaluated], atol=0.01
  )
  assert_allclose(
    [r['score'] for r in results], [r['score'] for r in evaluated], atol=1e-4
  )


def test_predict_mirrors_sub_folders(run, pictures, tmp_path):
  results, broken = run(pictures)
  assert broken == 0
  assert {r['file_name'] for r in results} == {'a.jpg', 'sub/deep/b.png'}
  assert len({r['image_id'] for r in results}) == 2
  assert overlays(tmp_path) == {'a.png', 'sub/deep/b.png'}
  for source, overlay in (
    ('a.jpg', 'a.png'),
    ('sub/deep/b.png', 'sub/deep/b.png'),
  ):
    assert_drawn_on(tmp_path, overlay, *size_of(pictures / source))


def test_predict_takes_a_glob(run, pictures, tmp_path):
  results, _ = run(pictures / '**' / '*.png')
  assert {r['file_name'] for r in results} == {'b.png'}
  assert overlays(tmp_path) == {'b.png'}


def test_predict_takes_relative_paths(run, pictures, tmp_path, monkeypatch):
  monkeypatch.chdir(pictures)
  for pattern in ('a.jpg', '.', '*'):
    results, broken = run(pattern)
    assert broken == 0
    assert 'a.jpg' in {r['file_name'] for r in results}


def test_predict_skips_and_names_broken_files(
  run, pictures, tmp_path, monkeypatch
):
  lines = []
  monkeypatch.setattr(
    logging, 'error', lambda text, *args: lines.append(text % args)
  )
  # The first file is recognized as broken at once, the second only when it is
  # decoded.
  (pictures / 'aa.jpg').write_bytes(b'no picture')
  whole = (pictures / 'a.jpg').read_bytes()
  (pictures / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
  results, broken = run(pictures)
  assert broken == 2
  assert len(lines) == 2
  assert 'aa.jpg' in lines[0]
  assert 'cut.jpg' in lines[1]
  assert {r['file_name'] for r in results} == {'a.jpg', 'sub/deep/b.png'}
  assert overlays(tmp_path) == {'a.png', 'sub/deep/b.png'}


def test_predict_of_broken_files_alone_finds_nothing(run, tmp_path):
  (tmp_path / 'bad.png').write_bytes(b'')
  assert run(tmp_path / 'bad.png') == ([], 1)


def test_predict_turns_a_picture_as_a_viewer_does(run, pictures, tmp_path):
  # The EXIF orientation turns the picture by a right angle: it is 80 pixels
  # wide on disk and 64 pixels wide in a viewer.
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  picture = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
  )
  picture.save(pictures / 'turned.jpg', exif=exif)
  results, _ = run(pictures / 'turned.jpg')
  assert {tuple(r['segmentation']['size']) for r in results} == {(80, 64)}
  assert_drawn_on(tmp_path, 'turned.png', 64, 80)
  # The same picture, turned by EXIF and turned in the file, gives the same
  # boxes.
  picture.rotate(-90, expand=True).save(pictures / 'upright.png')
  picture.save(pictures / 'turned.png', exif=exif)
  turned, _ = run(pictures / 'turned.png')
  upright, _ = run(pictures / 'upright.png')
  assert [r['bbox'] for r in turned] == [r['bbox'] for r in upright]


def test_predict_draws_pictures_of_one_stem_apart(run, pictures, tmp_path):
  with Image.open(pictures / 'a.jpg') as image:
    image.save(pictures / 'a.png')
  results, _ = run(pictures)
  assert {r['file_name'] for r in results} == {
    'a.jpg',
    'a.png',
    'sub/deep/b.png',
  }
  assert overlays(tmp_path) == {'a.jpg.png', 'a.png.png', 'sub/deep/b.png.png'}


def test_predict_of_a_large_picture_is_in_its_own_pixels(run, tmp_path):
  # The sides are above max_source_side, so the network gets a shrunk picture.
  picture = np.random.default_rng(0).integers(0, 256, (170, 200, 3), np.uint8)
  Image.fromarray(picture).save(tmp_path / 'large.png')
  results, _ = run(tmp_path / 'large.png')
  assert results
  assert {tuple(r['segmentation']['size']) for r in results} == {(170, 200)}
  assert_drawn_on(tmp_path, 'large.png', 200, 170)


def test_predict_without_pictures_is_an_input_error(run, tmp_path):
  with pytest.raises(InputError, match='none'):
    run(tmp_path / 'none')
