"""Tests of prediction on a user's own pictures."""

import errno
import importlib.util
import json
import shutil

from absl import logging
import numpy as np
from numpy.testing import assert_allclose
from PIL import ExifTags, Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
import pytest

from maskrcnn_jax.config import canvas_arguments, default_config
from maskrcnn_jax.detector import load_detector
from maskrcnn_jax.drawing import draw, fonts
from maskrcnn_jax.errors import InputError, SaveError
from maskrcnn_jax.prediction import lines as prediction_lines
from maskrcnn_jax.prediction import picture_batches
from maskrcnn_jax.prediction.lines import Share
from maskrcnn_jax.prediction.picture_batches import read_picture
from maskrcnn_jax.prediction.predict import predict
from maskrcnn_jax.prediction.results import Result

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

  def run_on(pattern, **options):
    arguments = {
      'output': tmp_path / 'run' / 'predictions',
      'config': detector.config,
    }
    broken = predict(detector, pattern=str(pattern), **arguments | options)
    path = tmp_path / 'run' / 'predictions' / 'predictions.json'
    return json.loads(path.read_text(encoding='utf-8')), broken

  return run_on


def overlays(tmp_path):
  folder = tmp_path / 'run' / 'predictions'
  return {
    str(path.relative_to(folder))
    for path in folder.rglob('*')
    if path.is_file()
  } - {'predictions.json', 'predictions.jsonl', '.lock'}


@pytest.fixture
def log(monkeypatch):
  """Returns the list of the lines that are logged."""
  lines = []
  for level in ('info', 'warning', 'error'):
    monkeypatch.setattr(
      logging, level, lambda text, *args: lines.append(text % args)
    )
  return lines


class Killed(BaseException):
  """Stands for the end of the process."""


def kill_after(monkeypatch, num_lines):
  """Makes the next prediction end after it has written some lines."""
  append = prediction_lines.append
  written = []

  def append_or_die(file, line):
    if len(written) == num_lines:
      file.write(b'{"file_name": "cu')
      raise Killed
    append(file, line)
    if 'file_name' in line:
      written.append(line)

  monkeypatch.setattr(prediction_lines, 'append', append_or_die)


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
  options = dict(
    pattern=str(tmp_path / 'a.png'), output=tmp_path / 'run' / 'predictions'
  )
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
      'file_name',
      'category_id',
      'category_name',
      'score',
      'bbox',
      'segmentation',
    }
    assert result['file_name'] == 'a.jpg'
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


@pytest.fixture
def many(tiny_data, tmp_path):
  """A folder with five pictures and two files that cannot be decoded."""
  folder = tmp_path / 'many'
  shutil.copytree(tiny_data / 'images', folder)
  for path in folder.glob('train*'):
    path.unlink()
  (folder / 'a_broken.jpg').write_bytes(b'no picture')
  (folder / 'z_empty.png').write_bytes(b'')
  return folder


def test_predict_that_was_killed_continues(run, many, tmp_path, monkeypatch):
  _, broken = run(many)
  assert broken == 2
  folder = tmp_path / 'run' / 'predictions'
  whole = folder.rename(tmp_path / 'whole')
  # It is killed at the first line, at the second of the next start, and so on.
  for num_lines in (0, 1, 2):
    kill_after(monkeypatch, num_lines)
    with pytest.raises(Killed):
      run(many)
    monkeypatch.undo()
    assert not (folder / 'predictions.json').exists()
  log = []
  monkeypatch.setattr(
    logging, 'error', lambda text, *args: log.append(text % args)
  )
  results, broken = run(many)
  assert broken == 2
  assert results == json.loads((whole / 'predictions.json').read_text())
  assert overlays(tmp_path) == {f'val_0000{i}.png' for i in range(5)}
  for name in ('a_broken.jpg', 'z_empty.png'):
    assert sum(name in line for line in log) == 1
  # Each picture has one line.
  lines = list(prediction_lines.finished_lines(folder))
  assert len({line['file_name'] for line in lines}) == len(lines) == 7


def test_predict_replaces_a_finished_result(run, many, pictures, tmp_path):
  run(many)
  results, _ = run(pictures)
  assert {r['file_name'] for r in results} == {'a.jpg', 'sub/deep/b.png'}
  assert overlays(tmp_path) == {'a.png', 'sub/deep/b.png'}
  run(pictures / 'a.jpg')
  assert overlays(tmp_path) == {'a.png'}
  assert not (tmp_path / 'run' / 'predictions' / 'sub').exists()


def test_predict_refuses_an_unfinished_result_of_another_recipe(
  run, detector, many, tmp_path, monkeypatch
):
  kill_after(monkeypatch, 2)
  with pytest.raises(Killed):
    run(many)
  monkeypatch.undo()
  config = detector.config.copy_and_resolve_references()
  config.data.num_threads += 1
  config.detections.max_detections = 3
  with pytest.raises(
    InputError, match=r'max_detections was 8, now 3\. Give --output=DIR'
  ):
    run(many, config=config)
  # The number of threads does not change the result.
  config.detections.max_detections = 8
  _, broken = run(many, config=config)
  assert broken == 2


def test_predict_with_two_processes_gives_what_one_gives(
  run, detector, many, tmp_path, monkeypatch
):
  single = tmp_path / 'single'
  predict(detector, pattern=str(many), output=single, config=detector.config)
  path = tmp_path / 'run' / 'predictions' / 'predictions.json'
  arguments = dict(
    pattern=str(many), output=path.parent, config=detector.config
  )
  # Process 0 has four of the seven files, and process 1 is killed.
  assert predict(detector, share=Share(0, 2), **arguments) == 2
  kill_after(monkeypatch, 1)
  with pytest.raises(Killed):
    predict(detector, share=Share(1, 2), **arguments)
  monkeypatch.undo()
  assert not path.exists()
  assert predict(detector, share=Share(1, 2), **arguments) == 2
  for name in ('predictions.json', 'predictions.jsonl'):
    assert (path.parent / name).read_bytes() == (single / name).read_bytes()


def test_predict_takes_ids_from_annotations(run, tiny_data, tmp_path, log):
  annotations = tiny_data / 'instances_val.json'
  # The ids of this set are not the numbers of the files in their order.
  content = json.loads(annotations.read_text())
  for image in content['images']:
    image['id'] = 1000 - image['id']
  content['images'][-1]['file_name'] = 'elsewhere.jpg'
  for entry in content['annotations']:
    entry['image_id'] = 1000 - entry['image_id']
  path = tmp_path / 'val.json'
  path.write_text(json.dumps(content))
  results, broken = run(
    tiny_data / 'images', annotations=str(path), draws=False
  )
  assert broken == 0
  ids = {image['file_name']: image['id'] for image in content['images']}
  assert {r['file_name'] for r in results} == set(ids) - {'elsewhere.jpg'}
  for result in results:
    assert result['image_id'] == ids[result['file_name']]
  # `loadRes` refuses results with unknown ids.
  coco = COCO(path)
  assert len(coco.loadRes(results).anns) == len(results)
  assert overlays(tmp_path) == set()
  assert any('9 pictures are not in' in line for line in log)
  assert any('such as elsewhere.jpg' in line for line in log)


def test_predict_finds_ids_by_the_end_of_a_path(run, pictures, tmp_path):
  path = tmp_path / 'a.json'

  def ids(names):
    images = [{'id': i, 'file_name': name} for i, name in enumerate(names, 7)]
    path.write_text(json.dumps({'images': images}))
    results, _ = run(pictures, annotations=str(path), draws=False)
    return {r['file_name']: r['image_id'] for r in results}

  assert ids(['pictures/a.jpg', 'b.png']) == {'a.jpg': 7, 'sub/deep/b.png': 8}
  with pytest.raises(InputError, match='names none of the 2 pictures'):
    ids(['c.png'])
  shutil.copy(pictures / 'a.jpg', pictures / 'sub' / 'a.jpg')
  with pytest.raises(InputError, match=r'both belong to the image a\.jpg'):
    ids(['a.jpg'])


@pytest.mark.parametrize(
  'suffix', '.jfif .jpe .jp2 .ppm .pgm .avif .mpo .apng .j2k'.split()
)
def test_predict_takes_every_format_that_decodes(
  run, pictures, tmp_path, suffix
):
  if suffix == '.avif' and not importlib.util.find_spec('PIL._avif'):
    pytest.skip('This Pillow has no AVIF.')
  folder = tmp_path / 'folder'
  folder.mkdir()
  with Image.open(pictures / 'a.jpg') as image:
    image.save(folder / f'a{suffix}')
  results, broken = run(folder)
  assert broken == 0
  assert {r['file_name'] for r in results} == {f'a{suffix}'}


def test_predict_names_the_files_that_it_does_not_use(
  run, pictures, tmp_path, log
):
  (pictures / 'photo.HEIC').write_bytes(b'\0\0\0\x18ftypheic' + bytes(99))
  (pictures / 'raw.nef').write_bytes(b'')
  frame = Image.new('RGB', (40, 40))
  frame.save(
    pictures / 'film.gif',
    save_all=True,
    append_images=[Image.new('RGB', (40, 40), 'red')],
  )
  _, broken = run(pictures)
  assert broken == 1
  (heic,) = [line for line in log if 'photo.HEIC' in line]
  assert 'magick' in heic
  assert any('film.gif holds more than one picture;' in line for line in log)
  assert any('passed over: 1 with .nef, 1 with .txt' in line for line in log)


def test_predict_does_not_take_its_overlays_for_pictures(
  run, detector, pictures, tmp_path, log
):
  arguments = {'config': detector.config}
  for output in (pictures / 'one', pictures / 'one', pictures / 'sub' / 'two'):
    for pattern in (pictures, pictures / '**'):
      predict(detector, pattern=str(pattern), output=output, **arguments)
      found = prediction_lines.finished_lines(output)
      assert {line['file_name'] for line in found} == {
        'a.jpg',
        'sub/deep/b.png',
      }
  assert any(
    'pictures are left out, because they are results' in x for x in log
  )
  with pytest.raises(
    InputError, match='no pictures in .* but overlay pictures'
  ):
    predict(
      detector,
      pattern=str(pictures / 'one'),
      output=pictures / 'one',
      **arguments,
    )


LANDSCAPES = {
  'padded_sizes': ((64, 96),),
  'short_side': 64,
  'long_side': 160,
  'max_source_side': 300,
}


@pytest.mark.parametrize(
  ('size', 'padded'),
  [
    ((64, 90), (64, 96)),
    ((90, 64), (96, 64)),  # a size of the recipe, turned
    ((40, 160), (64, 160)),
    ((160, 8), (160, 32)),
    ((80, 100), (64, 96)),
  ],
)
def test_a_picture_that_fits_nowhere_has_a_padded_size_of_its_own(size, padded):
  arguments = LANDSCAPES | {'resize_rule': 'nearest', 'antialias': True}
  pixels = np.zeros((*size, 3), np.uint8)
  decoded = picture_batches._decoded(0, 'a.png', pixels, arguments)
  assert decoded.padded == padded
  assert np.all(np.array(decoded.image_size) <= padded)


@pytest.mark.parametrize('ratio', [24.4, 24.6, 25, 300, 889, 1300])
def test_long_pictures_have_a_padded_size_with_the_conventions_legacy(ratio):
  config = default_config()
  config.geometry = 'legacy'
  pixels = np.zeros((10, int(10 * ratio), 3), np.uint8)
  decoded = picture_batches._decoded(
    0, 'a.png', pixels, canvas_arguments(config)
  )
  assert np.all(np.array(decoded.image_size) <= decoded.padded)


@pytest.mark.slow
def test_predict_gives_a_picture_that_fits_nowhere_a_size_of_its_own(
  run, detector, pictures
):
  config = detector.config.copy_and_resolve_references()
  config.data.update(LANDSCAPES)
  pixels = np.random.default_rng(0).integers(0, 256, (160, 40, 3), np.uint8)
  Image.fromarray(pixels).save(pictures / 'long.png')
  results, broken = run(pictures, config=config)
  assert broken == 0
  assert any(r['file_name'] == 'long.png' for r in results)


def test_predict_skips_a_picture_that_is_too_long(run, pictures, detector):
  config = detector.config.copy_and_resolve_references()
  config.data.update(long_side=100_000, max_source_side=100_000)
  Image.new('RGB', (1, 9000)).save(pictures / 'long.png')
  assert run(pictures / 'long.png', config=config) == ([], 1)


@pytest.mark.parametrize('place', ['reading', 'drawing'])
def test_predict_skips_a_picture_that_the_memory_is_too_small_for(
  run, pictures, monkeypatch, log, place
):
  def fail(picture, *args, **kwargs):
    if 'a.jpg' in str(getattr(picture, 'path', picture)):
      raise MemoryError
    return original(picture, *args, **kwargs)

  if place == 'reading':
    original = read_picture
    monkeypatch.setattr(
      'maskrcnn_jax.prediction.picture_batches.read_picture', fail
    )
  else:
    original = Result.save
    monkeypatch.setattr(Result, 'save', fail)
  results, broken = run(pictures)
  assert broken == 1
  assert {r['file_name'] for r in results} == {'sub/deep/b.png'}
  assert any('a.jpg is too large for the available memory' in x for x in log)


def test_predict_with_a_full_disk_names_it(run, pictures, monkeypatch):
  def fail(self, path):
    raise OSError(errno.ENOSPC, 'No space left on device', str(path))

  monkeypatch.setattr(Result, 'save', fail)
  with pytest.raises(SaveError, match='C10: .*No space left on device.*Make'):
    run(pictures)
  monkeypatch.undo()
  results, broken = run(pictures)
  assert broken == 0
  assert {r['file_name'] for r in results} == {'a.jpg', 'sub/deep/b.png'}


def test_predict_does_not_replace_pictures_by_overlays(run, pictures):
  picture = pictures / 'a.png'
  with Image.open(pictures / 'a.jpg') as image:
    image.save(picture)
  content = picture.read_bytes()
  for pattern in (picture, pictures, pictures / '*.png'):
    with pytest.raises(InputError, match='--output=DIR|no pictures in'):
      run(pattern, output=pictures)
  with pytest.raises(InputError, match='a.png exists already'):
    run(pictures / 'a.jpg', output=pictures)
  # Here the overlay of pictures/pictures/a.jpg would be pictures/a.png.
  (pictures / 'pictures').mkdir()
  (pictures / 'a.jpg').rename(pictures / 'pictures' / 'a.jpg')
  with pytest.raises(InputError, match='a.png exists already'):
    run(pictures, output=pictures.parent)
  # In a folder of results, files with the names of overlays are overlays.
  (pictures.parent / 'predictions.json').write_text('[]')
  with pytest.raises(InputError, match='would be replaced by the overlay'):
    run(pictures, output=pictures.parent)
  assert picture.read_bytes() == content


def test_predict_skips_a_picture_whose_overlay_has_too_long_a_name(
  run, pictures, log
):
  # With a.jpg and a.png in the folder, all overlays get a longer name.
  for name in ('a.png', f'{"x" * 250}.jpg'):
    shutil.copy(pictures / 'a.jpg', pictures / name)
  results, broken = run(pictures)
  assert broken == 1
  assert {r['file_name'] for r in results} == {
    'a.jpg',
    'a.png',
    'sub/deep/b.png',
  }
  assert any('xxx.jpg is too long; rename it' in line for line in log)


def test_predict_draws_names_of_any_script(
  run, detector, pictures, tmp_path, monkeypatch, log
):
  names = ['手术钳', 'nożyczki chirurgiczne', 'مشبك جراحي']
  named = detector._replace(
    categories=tuple(
      category._replace(name=name)
      for category, name in zip(detector.categories, names, strict=True)
    )
  )
  drawn = []
  monkeypatch.setattr(
    draw,
    '_draw_plate',
    lambda pen, plate, text, color, font: drawn.append(text),
  )
  monkeypatch.setattr(fonts, '_named', set())
  monkeypatch.setattr(fonts, '_font_files', lambda: [])
  fonts._choose.cache_clear()
  output = tmp_path / 'run'
  arguments = {'pattern': str(pictures), 'output': output}
  predict(named, config=detector.config, **arguments)
  results = json.loads((output / 'predictions.json').read_text())
  assert {r['category_name'] for r in results} <= set(names)
  # Without fonts, one line names the characters of all classes.
  assert {text.rsplit(' ', 1)[0] for text in drawn} <= {
    '???',
    'nozyczki chirurgiczne',
    '???? ?????',
  }
  (line,) = [x for x in log if 'predict.font=FILE' in x]
  assert all(character in line for character in '手术钳żمشبكجراحي')

  config = detector.config.copy_and_resolve_references()
  config.predict.font = str(pictures / 'notes.txt')
  with pytest.raises(InputError, match=r'C05: .*notes\.txt'):
    predict(named, config=config, **arguments)
  fonts._choose.cache_clear()
