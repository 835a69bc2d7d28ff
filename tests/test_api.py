"""Tests of the functions for Python: load, train, evaluate, and the results."""

import dataclasses
import doctest
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from PIL import ExifTags, Image
from pycocotools import mask as mask_api
import pytest
import tiny

import maskrcnn_jax
from maskrcnn_jax import api, named_weights
from maskrcnn_jax.drawing.draw import draw_detections
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.prediction import picture_batches, results
from maskrcnn_jax.prediction.picture_batches import read_picture
from maskrcnn_jax.prediction.predict import predict
from maskrcnn_jax.prediction.results import Result

pytestmark = pytest.mark.usefixtures('compilation_cache')

ROOT = pathlib.Path(__file__).parents[1]

# Pictures are put on one of two canvases; both sides become at most 64 pixels.
TWO_CANVASES = {'data.padded_sizes': ((64, 64), (32, 64))}
# (height, width) in the order in which they are given. The second and the
# fourth are for the smaller canvas. The fifth is shrunk on the host. The arrays
# of the others have different sizes.
SIZES = ((64, 80), (36, 90), (40, 50), (30, 64), (170, 100), (64, 64), (30, 44))


@pytest.fixture(scope='module')
def detector(tiny_run):
  return maskrcnn_jax.load(tiny_run[0], overrides=TWO_CANVASES)


@pytest.fixture(scope='module')
def photo(tiny_data):
  return tiny_data / 'images' / 'val_00000.jpg'


@pytest.fixture(scope='module')
def arrays(photo):
  """Pictures of all SIZES with parts of a drawn picture."""
  with Image.open(photo) as image:
    return [
      np.array(image.rotate(20 * i).resize((width, height)))
      for i, (height, width) in enumerate(SIZES)
    ]


@pytest.fixture
def pictures(arrays, tmp_path):
  """A folder with the pictures of `arrays` as files, in alphabetical order."""
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i, pixels in enumerate(arrays):
    Image.fromarray(pixels).save(folder / f'{i}.png')
  return folder


@pytest.fixture
def made():
  """A result with two objects in a black picture of 40 x 50 pixels."""
  masks = np.zeros((40, 50, 2), np.uint8, order='F')
  masks[2:22, 1:11, 0] = 1
  masks[30:33, 40:44, 1] = 1
  rle = mask_api.encode(masks)
  for mask in rle:
    mask['counts'] = mask['counts'].decode()
  return Result(
    boxes=np.array([[1, 2, 11, 22], [40, 30, 44, 33]], np.float32),
    classes=np.array([2, 1], np.int32),
    scores=np.array([0.9, 0.4], np.float32),
    names=['dog', 'cat'],
    category_ids=[18, 17],
    rle=rle,
    size=(40, 50),
    path='picture 3',
    image_id=3,
    class_names=('cat', 'dog'),
    drawn_score=0.5,
    _picture=np.zeros((40, 50, 3), np.uint8),
    _pixel_range=None,
    _width_offset=0.0,
  )


def assert_same(one, other, **tolerance):
  """Checks that two results have the same objects; by default to the bit."""
  for name in ('boxes', 'scores'):
    assert_allclose(
      getattr(one, name), getattr(other, name), **{'rtol': 0} | tolerance
    )
  assert_array_equal(one.classes, other.classes)
  if not tolerance:
    assert one.rle == other.rle


def test_a_detector_finds_what_predict_finds(detector, pictures, tmp_path):
  files = sorted(pictures.iterdir())
  ours = detector(files)
  predict(
    detector._detector,
    pattern=str(pictures),
    output=tmp_path / 'run',
    config=detector.config,
  )
  folder = tmp_path / 'run'
  theirs = json.loads((folder / 'predictions.json').read_text())
  assert len({r['file_name'] for r in theirs}) == len(files)
  # The numbers of the pictures are not ids of a data set.
  assert [r | {'image_id': 0} for r in theirs] == [
    coco | {'file_name': pathlib.Path(coco['file_name']).name, 'image_id': 0}
    for result in ours
    for coco in result.to_coco()
  ]
  for result, file in zip(ours, files, strict=True):
    with Image.open(folder / file.name) as overlay:
      assert_array_equal(np.asarray(overlay), np.asarray(result.draw()))


def test_results_come_in_the_order_of_the_pictures(detector, arrays):
  # The batches are 0 and 2, 1 and 3, 4 and 5, and 6 alone.
  found = detector(arrays, batch_size=2)
  assert [result.size for result in found] == list(SIZES)
  for result, pixels in zip(found, arrays, strict=True):
    # Sums over a batch may be in another order: 1e-5 of 100 pixels.
    assert_same(result, detector(pixels), atol=1e-3)
    assert_array_equal(result.image, pixels)


def test_large_pictures_are_not_gathered_for_a_batch(
  detector, arrays, monkeypatch
):
  make_batch, sizes = picture_batches._make_batch, []

  def make(pictures, *arguments):
    sizes.append(len(pictures))
    return make_batch(pictures, *arguments)

  monkeypatch.setattr(picture_batches, '_make_batch', make)
  height, width = SIZES[0]
  monkeypatch.setattr(picture_batches, '_MOST_PIXELS', 2 * height * width)
  found = detector([arrays[0]] * 4, batch_size=4)
  assert sizes == [3, 1]
  for result in found:
    assert_same(result, detector(arrays[0]), atol=1e-3)


def test_a_file_an_array_and_an_image_give_the_same(detector, pictures):
  path = pictures / '3.png'
  expected = detector(str(path))
  assert len(expected)
  assert expected.path == str(path)
  with Image.open(path) as image:
    pixels = np.array(image)
    assert_same(detector(image), expected)
  assert_same(detector(path), expected)
  assert_same(detector(pixels), expected)
  assert_same(detector(jnp.asarray(pixels)), expected)
  (only,) = detector([pixels], batch_size=1)
  assert_same(only, expected)
  assert detector([]) == []


def test_the_orientation_of_an_image_is_applied(detector, arrays, tmp_path):
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  Image.fromarray(arrays[0]).save(tmp_path / 'turned.png', exif=exif)
  with Image.open(tmp_path / 'turned.png') as image:
    result = detector(image)
  upright = np.rot90(arrays[0], -1)
  assert result.size == upright.shape[:2] == (80, 64)
  assert_array_equal(result.image, upright)
  assert_same(result, detector(tmp_path / 'turned.png'))
  assert_same(result, detector(upright))


def test_gray_and_transparent_images_become_rgb(detector, arrays):
  image = Image.fromarray(arrays[0]).convert('L')
  gray = np.repeat(np.asarray(image)[..., None], 3, axis=2)
  assert_same(detector(image), detector(gray))
  assert_same(detector(image.convert('RGBA')), detector(gray))


def test_a_generator_may_reuse_its_array_and_close_its_images(
  detector, arrays, pictures
):
  buffer = np.zeros_like(arrays[0])

  def frames():
    for shift in range(5):
      buffer[:] = np.roll(arrays[0], 8 * shift, axis=1)
      yield buffer
    with Image.open(pictures / '2.png') as image:
      yield image

  expected = [np.roll(arrays[0], 8 * shift, axis=1) for shift in range(5)]
  expected.append(arrays[2])
  found = list(detector(frames(), batch_size=2))
  for result, pixels in zip(found, expected, strict=True):
    assert_array_equal(result.image, pixels)
    assert_same(result, detector(pixels), atol=1e-3)


def test_a_generator_is_read_a_few_pictures_ahead(detector, arrays):
  # One picture on the second canvas, then endlessly many on the first: it must
  # not wait for a second one for ever.
  taken = []

  def endless():
    for i in itertools.count():
      taken.append(i)
      yield arrays[1 if i == 0 else 0]

  found = detector(endless(), batch_size=2)
  assert not taken
  first, second = itertools.islice(found, 2)
  assert (first.size, second.size) == (SIZES[1], SIZES[0])
  assert len(taken) <= 2 * 4 + 2 * 2 + 2


def test_an_iterator_raises_an_error_at_the_place_of_the_picture(
  detector, arrays, tmp_path
):
  found = detector(iter([arrays[0], tmp_path / 'none.jpg', arrays[0]]))
  assert len(next(found))
  with pytest.raises(InputError, match=r'I01: .*none\.jpg'):
    next(found)


@pytest.mark.parametrize(
  ('picture', 'message'),
  [
    (b'\xff\xd8', 'A bytes is no picture; .*BytesIO'),
    (7, 'A int is no picture'),
    (
      np.zeros((4, 5), np.uint8),
      r'picture 1 .* uint8 .* \(4, 5\); .*fromarray',
    ),
    (np.zeros((4, 5, 3)), 'picture 1 is an array of float64'),
    (np.zeros((2, 4, 5, 3), np.uint8), 'give a list of arrays'),
    (np.zeros((0, 5, 3), np.uint8), 'picture 1 has no pixels'),
    ('pictures', r'I01: cannot read pictures: Is a directory'),
  ],
)
def test_a_picture_of_another_kind_is_refused(
  detector, picture, message, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'pictures').mkdir()
  with pytest.raises(InputError, match=message):
    # Without the check of argument types, as for a user.
    api.ObjectDetector.__call__.__wrapped__(detector, picture)


def test_an_item_that_is_no_picture_is_refused():
  # Without the check of argument types, as for a user.
  read = read_picture.__wrapped__
  with pytest.raises(
    InputError, match='picture 1 is a NoneType; give the path'
  ):
    read(None, 'picture 1')


def test_a_picture_that_is_too_long_for_a_canvas_of_its_own_is_named(tiny_run):
  # The only canvas has 64 x 64 pixels, and this one would have 32 x 1024.
  overrides = {'data.long_side': 1000}
  detector = maskrcnn_jax.load(tiny_run[0], overrides=overrides)
  with pytest.raises(InputError, match='picture 1: .*padded sizes'):
    detector(np.zeros((8, 900, 3), np.uint8))


def test_batch_size_must_be_positive(detector, arrays):
  for pictures in (arrays[0], arrays):
    with pytest.raises(InputError, match=r'batch_size \(0\)'):
      detector(pictures, batch_size=0)


def test_a_result_has_masks_as_arrays(made):
  expected = np.zeros((2, 40, 50), bool)
  expected[0, 2:22, 1:11] = True
  expected[1, 30:33, 40:44] = True
  assert_array_equal(made.masks, expected)
  assert made.masks.dtype == bool
  assert dataclasses.replace(made, rle=None).masks is None


def test_filter_keeps_scores_and_classes(made):
  assert made.filter().names == ['dog', 'cat']
  assert made.filter(min_score=0.5).names == ['dog']
  # A score of float32 is compared with the number that was written.
  assert made.filter(min_score=float(np.float32(0.4))).names == ['dog', 'cat']
  for classes in ('cat', 1, ['cat'], (1,), {'cat', 1}, np.int32(1)):
    few = made.filter(classes=classes)
    assert (few.names, few.category_ids, len(few)) == (['cat'], [17], 1)
    assert_array_equal(few.boxes, [[40, 30, 44, 33]])
    assert few.masks.sum() == 12
  assert made.filter(classes=[]).names == []
  assert made.filter(classes=['cat', 2]).names == ['dog', 'cat']


def test_filter_refuses_a_class_that_the_model_lacks(made):
  with pytest.raises(InputError, match="no class 'dogs'; did you mean 'dog'"):
    made.filter(classes='dogs')
  with pytest.raises(InputError, match='no class number 3; .* 1 to 2'):
    made.filter(classes=3)


def test_repr_names_the_first_objects(made, detector):
  assert repr(made) == (
    "Result('picture 3', 40x50 pixels, 2 objects: dog 0.90, cat 0.40)"
  )
  assert repr(made.filter(classes='cat')).endswith('1 object: cat 0.40)')
  assert repr(made.filter(min_score=1)).endswith('0 objects)')
  many = dataclasses.replace(
    made,
    boxes=np.repeat(made.boxes, 4, axis=0),
    classes=np.tile(made.classes, 4),
    scores=np.tile(made.scores, 4),
    names=made.names * 4,
  )
  assert repr(many).endswith('dog 0.90, 3 more)')
  assert re.fullmatch(
    r"ObjectDetector\('.*tiny_run', step 4, \d classes: \w+, .*\)",
    repr(detector),
  )


def test_to_coco_has_the_fields_of_predict(made):
  first, second = made.to_coco()
  assert first == {
    'image_id': 3,
    'file_name': 'picture 3',
    'category_id': 18,
    'category_name': 'dog',
    'score': float(np.float32(0.9)),
    'bbox': [1, 2, 10, 20],
    'segmentation': made.rle[0],
  }
  assert second['category_id'] == 17
  assert json.loads(json.dumps(made.to_coco())) == made.to_coco()
  assert {r['image_id'] for r in made.to_coco(image_id='a')} == {'a'}
  # In the old convention, x2 and y2 are the last pixels inside.
  old = dataclasses.replace(made, _width_offset=1.0)
  assert old.to_coco()[0]['bbox'] == [1, 2, 11, 21]
  boxes_only = dataclasses.replace(made, rle=None)
  assert 'segmentation' not in boxes_only.to_coco()[0]


def test_draw_draws_the_objects_above_a_score(made):
  def drawn(few):
    return np.asarray(
      draw_detections(
        made.image, few.boxes, few.names, few.scores, few.rle, min_score=0.0
      )
    )

  assert_array_equal(made.draw(), drawn(made.filter(classes='dog')))
  assert_array_equal(made.draw(min_score=0.3), drawn(made))
  # A filter with a score says which objects are wanted.
  assert_array_equal(made.filter(min_score=0.3).draw(), drawn(made))
  assert_array_equal(made.filter(min_score=1).draw(), made.image)


def test_save_writes_the_drawing(made, tmp_path):
  made.save(tmp_path / 'new' / 'a.png')
  with Image.open(tmp_path / 'new' / 'a.png') as image:
    assert_array_equal(image, made.draw())
  made.save(str(tmp_path / 'all.png'), min_score=0)
  with Image.open(tmp_path / 'all.png') as image:
    assert_array_equal(image, made.draw(min_score=0))
  with pytest.raises(InputError, match=r'must end with one of .*\.png.*json'):
    made.save(tmp_path / 'a.json')


def test_a_result_of_a_file_reads_it_again_to_draw(detector, pictures):
  result = detector(pictures / '0.png')
  assert_array_equal(result.image, read_picture(pictures / '0.png', ''))
  (pictures / '0.png').unlink()
  assert result.to_coco()
  with pytest.raises(InputError, match='I01'):
    result.draw()


def test_to_supervision_passes_all_arrays(made, monkeypatch):
  # A stand-in with the arguments of supervision.Detections; scripts and
  # documentation of that library name them.
  @dataclasses.dataclass
  class Detections:
    xyxy: np.ndarray
    mask: np.ndarray | None
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict

  library = types.ModuleType('supervision')
  library.Detections = Detections
  monkeypatch.setitem(sys.modules, 'supervision', library)
  there = Result.to_supervision.__wrapped__(made)
  assert_array_equal(there.xyxy, made.boxes)
  assert_array_equal(there.mask, made.masks)
  assert_array_equal(there.confidence, made.scores)
  assert_array_equal(there.class_id, [2, 1])
  assert there.data['class_name'].tolist() == ['dog', 'cat']


def test_to_supervision_says_how_to_install_it(made, monkeypatch):
  monkeypatch.setitem(sys.modules, 'supervision', None)
  with pytest.raises(InputError, match='pip install supervision'):
    Result.to_supervision.__wrapped__(made)


def test_load_takes_names_of_published_weights(tiny_run, monkeypatch):
  asked = []

  def find_checkpoint(name):
    asked.append(name)
    return str(tiny_run[0])

  monkeypatch.setattr(named_weights, 'find_checkpoint', find_checkpoint)
  assert maskrcnn_jax.load('torchvision:any').step == 4
  assert maskrcnn_jax.load(tiny_run[0] / 'checkpoints' / '2').step == 2
  assert asked == ['torchvision:any']


def test_load_refuses_what_the_command_line_refuses(tiny_run, tmp_path):
  with pytest.raises(InputError, match='C08'):
    maskrcnn_jax.load(tmp_path)
  with pytest.raises(InputError, match='no config key'):
    maskrcnn_jax.load(tiny_run[0], overrides={'data.shortside': 3})
  with pytest.raises(InputError, match='weights'):
    maskrcnn_jax.load(tiny_run[0], overrides={'model.depth': 50})


def test_importing_the_package_does_not_import_jax():
  code = (
    'import sys, maskrcnn_jax\n'
    'assert "load" in dir(maskrcnn_jax)\n'
    'assert not {"jax", "numpy", "flax"} & set(sys.modules)\n'
    'try: maskrcnn_jax.lode\n'
    'except AttributeError: print("fine")'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True
  )
  assert done.stdout == 'fine\n', done.stderr


def test_train_passes_its_arguments_on(monkeypatch, tmp_path):
  calls = []
  monkeypatch.setattr(
    api,
    'train_in_workdir',
    lambda *args, **kwargs: calls.append((args, kwargs)),
  )
  config = tiny.get_config()
  overrides = {'train.num_steps': 7, 'data.short_sides': (32, 64)}
  maskrcnn_jax.train(
    config, tmp_path, init_from='there', overrides=overrides, resume=False
  )
  maskrcnn_jax.train(
    'shapes', str(tmp_path), overrides={'optimizer.name': 'adamw'}
  )
  assert config.train.num_steps == 4  # The recipe is not changed.
  ((of_tiny, workdir), options), ((of_shapes, _), others) = calls
  assert workdir == tmp_path
  assert (of_tiny.train.num_steps, of_tiny.model.width) == (7, 8)
  assert of_tiny.data.short_sides == (32, 64)
  assert options == {
    'init_from': pathlib.Path('there'),
    'skip_test': False,
    'resume': False,
    'allow_changes': False,
    'given_keys': {'train.num_steps', 'data.short_sides'},
  }
  assert of_shapes.optimizer.name == 'adamw'
  assert others['init_from'] is None
  with pytest.raises(InputError, match='recipe'):
    maskrcnn_jax.train('shape', tmp_path)
  with pytest.raises(InputError, match=r'train\.num_steps'):
    maskrcnn_jax.train(config, tmp_path, overrides={'train.num_steps': -1})


def test_train_fetches_named_weights_only_if_they_are_needed(
  tiny_run, monkeypatch, tmp_path
):
  asked, calls = [], []

  def find_checkpoint(name):
    asked.append(name)
    return str(tiny_run[0])

  monkeypatch.setattr(named_weights, 'find_checkpoint', find_checkpoint)
  monkeypatch.setattr(
    api,
    'train_in_workdir',
    lambda config, workdir, **options: calls.append(options['init_from']),
  )
  name = 'torchvision:resnet50'
  maskrcnn_jax.train(tiny.get_config(), tmp_path, init_from=name)
  assert asked == [name]
  assert calls == [tiny_run[0]]
  # A run that is continued needs them only if its recipe is taken from them.
  maskrcnn_jax.train(tiny.get_config(), tiny_run[0], init_from=name)
  assert asked == [name]
  maskrcnn_jax.train('finetune', tiny_run[0], init_from=name)
  assert asked == [name, name]


def test_evaluate_compares_named_weights_with_their_published_ap(
  tiny_run, monkeypatch, tmp_path
):
  expected = []
  monkeypatch.setattr(
    named_weights, 'find_checkpoint', lambda name: str(tiny_run[0])
  )

  def evaluate_and_report(detector, workdir, *, skip_eval):
    config = detector.config.expected
    expected.append((config.box_ap, config.mask_ap))
    return {}

  monkeypatch.setattr(api, 'evaluate_and_report', evaluate_and_report)
  overrides = {'data.eval.annotations': 'coco/instances_val2017.json'}
  name = 'detectron2:mask_rcnn_R_50_FPN_3x'
  for options in ({'checkpoint': name}, {'checkpoint': tiny_run[0]}):
    maskrcnn_jax.evaluate(tmp_path, overrides=overrides, **options)
  maskrcnn_jax.evaluate(
    tmp_path, checkpoint=name, overrides=overrides, skip_eval=True
  )
  tolerance = named_weights.table.TOLERANCE
  assert expected == [
    ((0.41, tolerance), (0.372, tolerance)),
    (None, None),
    (None, None),
  ]


def test_train_shows_its_log_and_leaves_logging_as_it_was():
  # A process of its own has logging as users have it.
  code = """
import sys
from absl import logging
from maskrcnn_jax import api
from maskrcnn_jax.training import run

def log_from(file, text):
  exec(compile(f'logging.info({text!r})', file, 'exec'), {'logging': logging})

def train(*args, **kwargs):
  log_from(run.__file__, 'our line')
  log_from('library.py', 'of a library')
  logging.warning('a warning')

api.train_in_workdir = train
logger = logging.get_absl_logger()
before = logger.handlers[:], logger.level, logger.propagate, sys.stderr
api.train('shapes', 'none')
assert before == (logger.handlers, logger.level, logger.propagate, sys.stderr)
log_from(run.__file__, 'too late')
logging.set_verbosity(logging.ERROR)
api.train('shapes', 'none')
"""
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  lines = re.sub(r'\d', '0', done.stderr).splitlines()
  # The other lines of `train` itself name the folder of the compilation cache.
  lines = [line for line in lines if 'Compiled programs' not in line]
  assert lines == ['00:00:00 our line', '00:00:00 a warning']


@pytest.fixture
def user_folder(tiny_run, tiny_data, tmp_path, monkeypatch):
  """The current folder of a user, with a run, a photo and pictures."""
  shutil.copytree(tiny_run[0], tmp_path / 'runs' / 'mine')
  (tmp_path / 'pictures').mkdir()
  images = tiny_data / 'images'
  shutil.copyfile(images / 'val_00000.jpg', tmp_path / 'photo.jpg')
  for name, number in (('a', 1), ('b', 2)):
    shutil.copyfile(
      images / f'val_0000{number}.jpg', tmp_path / 'pictures' / f'{name}.jpg'
    )
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_the_examples_in_docstrings_run(user_folder, tiny_run):
  names = {
    'load': maskrcnn_jax.load,
    'evaluate': maskrcnn_jax.evaluate,
    'detector': maskrcnn_jax.load('runs/mine'),
    'pathlib': pathlib,
  }
  names['result'] = names['detector']('photo.jpg')
  runner = doctest.DocTestRunner()
  for module in (api, results):
    for test in doctest.DocTestFinder().find(module):
      test.globs = dict(names)
      runner.run(test)
  assert runner.summarize().attempted >= 12
  assert runner.summarize().failed == 0
  # The evaluation gave the figures of the training.
  figures = [
    json.loads((folder / 'inference' / 'coco_results.json').read_text())
    for folder in (user_folder / 'runs' / 'mine', tiny_run[0])
  ]
  assert figures[0] == figures[1]


def readme_blocks():
  """Returns the Python code of README's section "Python", in its order."""
  text = (ROOT / 'README.md').read_text(encoding='utf-8')
  section = text.split('\n## Python\n')[1].split('\n## ')[0]
  return re.findall(r'```python\n(.*?)```', section, re.DOTALL)


def run_blocks(blocks, names):
  for code in blocks:
    exec(compile(code, 'README.md', 'exec'), names)


def test_the_python_section_of_readme_runs(user_folder, capsys):
  blocks = [code for code in readme_blocks() if '.train(' not in code]
  assert len(blocks) == 3
  names = {}
  run_blocks(blocks, names)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == repr(names['detector']('photo.jpg'))
  assert sorted(line[:15] for line in lines[-2:]) == [
    'pictures/a.jpg ',
    'pictures/b.jpg ',
  ]
  assert (user_folder / 'found.png').is_file()


@pytest.mark.slow  # A training of two steps takes a minute.
def test_the_whole_python_section_of_readme_runs(
  user_folder, tiny_data, capsys
):
  (user_folder / 'images').symlink_to(tiny_data / 'images')
  for part in ('train', 'val'):
    shutil.copyfile(
      tiny_data / f'instances_{part}.json', user_folder / f'{part}.json'
    )
  blocks = [code.replace('2000', '2') for code in readme_blocks()]
  assert len(blocks) == 4
  names = {}
  run_blocks(blocks, names)
  assert names['detector'].step == 2
  assert names['detector'].config.detections.min_score == 0.3
  assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1
