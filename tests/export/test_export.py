"""Tests of exported models: their programs, their folder and its loader."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal
from pycocotools import mask as mask_api
import pytest
import tiny

from maskrcnn_jax.array_types import Batch, Outlines
from maskrcnn_jax.config.recipe import read_overrides
from maskrcnn_jax.data.canvases import resized_size
from maskrcnn_jax.data.coco_index import Category
from maskrcnn_jax.data.images import decode_image
from maskrcnn_jax.detector import Detector, load_detector, to_original
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.export import command_line, loader
from maskrcnn_jax.export.artifact import write_artifact
from maskrcnn_jax.export.program import default_sizes, resized_sizes
from maskrcnn_jax.mask_paste import paste_masks
from maskrcnn_jax.rcnn import Rcnn
from maskrcnn_jax.runtime import cluster

pytestmark = pytest.mark.usefixtures('compilation_cache')

PHOTOS = (
  pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'coco_mini' / 'images'
)

# The exported program and the live model compute the same, but XLA compiles the
# one as a whole and the other in two pieces, so that it may round other sums.
# Boxes are compared relative to the side of the picture.
ATOL = 1e-5


def import_loader(folder):
  """Imports and returns the module loader.py of an exported model."""
  spec = importlib.util.spec_from_file_location('loader', folder / 'loader.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def detect_live(detector, pictures, program, batch_size):
  """Returns the detections of the live model for a single batch of pictures.

  Args:
    detector: The model.
    pictures: The pictures of the batch; at most `batch_size`.
    program: The entry of export.json, whose padded size is used.
    batch_size: Number of slots of the batch.
  """
  height, width = program['picture_size']
  images = np.zeros((batch_size, height, width, 3), np.uint8)
  sizes = np.ones((batch_size, 2), np.int32)
  for i, picture in enumerate(pictures):
    sizes[i] = picture.shape[:2]
    images[i, : sizes[i, 0], : sizes[i, 1]] = picture
  data = detector.config.data
  resized = np.array(
    [
      resized_size(
        *size,
        short_side=data.short_side,
        long_side=data.long_side,
        rule=detector.rcnn.geometry.input_format.resize_rule,
      )
      for size in sizes.tolist()
    ],
    np.int32,
  )
  batch = Batch(
    images,
    sizes,
    resized,
    np.ones(batch_size, bool),
    np.zeros((batch_size, 1, 4), np.float32),
    np.zeros((batch_size, 1), np.int32),
    np.zeros((batch_size, 1), bool),
    Outlines(
      np.zeros((batch_size, 1, 2), np.float32),
      np.full((batch_size, 1), -1, np.int16),
      np.zeros((batch_size, 2), np.int32),
    ),
  )
  detections = jax.device_get(
    detector.detect(
      cluster.shard_batch(batch, detector.mesh),
      padded_size=tuple(program['padded_size']),
    )
  )
  return [
    to_original(
      jax.tree.map(lambda x, i=i: x[i], detections),
      tuple(resized[i].tolist()),
      row=i,
      original_size=tuple(sizes[i].tolist()),
      mask_threshold=detector.rcnn.geometry.mask_threshold,
      paste_rule=detector.rcnn.geometry.paste_rule,
    )
    for i in range(len(pictures))
  ]


def assert_equal_objects(found, expected, picture):
  """Checks the objects of one picture: exported model, live model."""
  assert_array_equal(found['classes'], expected.classes)
  side = max(picture.shape)
  assert_allclose(found['boxes'] / side, expected.boxes / side, atol=ATOL)
  assert_allclose(found['scores'], expected.scores, atol=ATOL)
  if expected.cells is None:
    assert 'masks' not in found
  else:
    assert_allclose(found['masks'], expected.cells, atol=ATOL)


def cut_pictures(count):
  """Returns wide drawn pictures of several sizes."""
  rng = np.random.default_rng(0)
  sizes = [(48, 64), (30, 45), (33, 33)]
  pictures = []
  for height, width in (sizes * count)[:count]:
    picture = np.full((height, width, 3), rng.integers(0, 255, 3), np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    picture[top : top + 15, left : left + 20] = rng.integers(0, 255, 3)
    pictures.append(picture)
  return pictures


@pytest.fixture(scope='module')
def exported(tiny_run, tmp_path_factory):
  """The recipe `tiny` exported for two sizes, and the live model.

  Returns:
    The folder, the content of export.json, and the live model.
  """
  folder = tmp_path_factory.mktemp('exported') / 'model'
  command_line.main(
    [
      f'--checkpoint={tiny_run[0]}',
      f'--out={folder}',
      '--sizes=64x64,48x64',
      '--batch=2',
      '--platforms=cpu,tpu',
      '--config.detections.min_score=0.001',
    ]
  )
  recipe = read_overrides([('detections.min_score', '0.001')])
  detector = load_detector(tiny_run[0], recipe)
  return folder, json.loads((folder / 'export.json').read_text()), detector


@pytest.mark.parametrize(
  ('padded_sizes', 'sizes'),
  [
    (
      ((800, 1088), (800, 1344), (1088, 800), (1344, 800)),
      [(800, 1344), (1344, 800)],
    ),
    (((384, 384), (384, 480), (480, 384)), [(384, 480), (480, 384)]),
    (((512, 512), (640, 640)), [(640, 640)]),
    (((800, 1344),), [(800, 1344)]),
  ],
)
def test_default_sizes_are_one_for_wide_and_one_for_upright_pictures(
  padded_sizes, sizes
):
  assert default_sizes(padded_sizes) == sizes


@pytest.mark.parametrize('size', [(4, 6), (6, 4), (5, 5)])
def test_resized_sizes_are_those_of_the_pictures_that_lie_the_same_way(size):
  table = resized_sizes(size, short_side=8, long_side=13, rule='nearest')
  assert table.shape == (*size, 2)
  for height in range(1, size[0] + 1):
    for width in range(1, size[1] + 1):
      is_other = (
        width < height if size == (4, 6) else width > height
      ) and size != (5, 5)
      expected = (
        (0, 0)
        if is_other
        else resized_size(height, width, short_side=8, long_side=13)
      )
      assert tuple(table[height - 1, width - 1]) == expected


def test_an_exported_model_finds_what_the_live_model_finds(exported):
  folder, about, detector = exported
  # Three pictures are a full batch of two, and one with padding.
  pictures = cut_pictures(3)
  found = import_loader(folder).load(folder)(pictures)
  # The smaller program is the first.
  program, other = about['programs']
  assert program['picture_size'] == [48, 64]
  assert other['picture_size'] == [64, 64]
  names = [class_.name for class_ in detector.categories]
  for rows in ([0, 1], [2]):
    expected = detect_live(detector, [pictures[i] for i in rows], program, 2)
    assert sum(len(objects.scores) for objects in expected)
    for i, objects in zip(rows, expected, strict=True):
      assert_equal_objects(found[i], objects, pictures[i])
      assert found[i]['names'] == [names[c - 1] for c in objects.classes]


def test_export_json_describes_the_model(exported):
  folder, about, detector = exported
  assert about['classes'] == [
    {'id': id, 'name': name} for id, name in detector.categories
  ]
  assert about['recipe']['detections']['min_score'] == 0.001
  assert about['recipe']['data']['short_side'] == 64
  assert (about['batch'], about['precision']) == (2, 'fp32')
  assert about['platforms'] == ['cpu', 'tpu']
  for program in about['programs']:
    height, width = program['picture_size']
    assert program['arguments'] == {
      'images': [[2, height, width, 3], 'uint8'],
      'sizes': [[2, 2], 'int32'],
    }
    assert program['results']['boxes'] == [[2, 8, 4], 'float32']
    assert program['files'].keys() == {'cpu', 'tpu'}
    for file in program['files'].values():
      # The first bytes of MLIR bytecode.
      assert (folder / file).read_bytes()[:4] == b'ML\xefR'


def test_a_picture_that_a_program_does_not_take_gives_nan(exported):
  folder, about, _ = exported
  module = import_loader(folder)
  with np.load(folder / 'weights.npz') as file:
    weights = dict(file)
  program = module.read_program(folder, about['programs'][0], weights)
  # The first is upright, but the program for 48x64 takes wide pictures.
  sizes = np.array([[40, 30], [30, 40]], np.int32)
  results = program(weights, np.zeros((2, 48, 64, 3), np.uint8), sizes)
  assert np.isnan(results['boxes'][0]).all()
  assert np.isnan(results['scores'][0]).all()
  assert results['valid'][0].all()
  assert np.isfinite(results['boxes'][1]).all()
  sizes = np.array([[49, 64], [0, 10]], np.int32)
  results = program(weights, np.zeros((2, 48, 64, 3), np.uint8), sizes)
  assert np.isnan(results['scores']).all()


@pytest.mark.parametrize(
  ('picture', 'words'),
  [
    (np.zeros((10, 10, 3), np.float32), 'not float32'),
    (np.zeros((10, 10), np.uint8), r'not uint8 \[10, 10\]'),
    (np.zeros((10, 10, 4), np.uint8), r'not uint8 \[10, 10, 4\]'),
    (np.zeros((0, 10, 3), np.uint8), r'not uint8 \[0, 10, 3\]'),
    (np.zeros((65, 10, 3), np.uint8), '65x10.*48x64, 64x64.*--sizes=65x10'),
  ],
)
def test_the_loader_refuses_other_arrays(picture, words):
  with pytest.raises(ValueError, match=words):
    loader.choose_size(picture, [(48, 64), (64, 64)])


@pytest.mark.parametrize('rule', ['sampled', 'resized'])
def test_paste_mask_gives_the_pixels_of_paste_masks(rule):
  rng = np.random.default_rng(1)
  boxes = rng.uniform(-5, 60, (40, 4)).astype(np.float32)
  boxes[:, 2:] = boxes[:, :2] + rng.uniform(0, 40, (40, 2)).astype(np.float32)
  boxes[0, 2] = boxes[0, 0]
  masks = rng.uniform(0, 1, (40, 28, 28)).astype(np.float32)
  expected = paste_masks(masks, boxes, height=50, width=60, rule=rule)
  about = {'paste_rule': rule, 'mask_threshold': 0.5}
  for mask, box, rle in zip(masks, boxes, expected, strict=True):
    pixels = loader.paste_mask(mask, box, 50, 60, about)
    assert_array_equal(pixels, mask_api.decode(rle).astype(bool))


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--platforms=cpu,gpu'], 'cpu,cuda,tpu'),
    (['--platforms=cpu,cpu'], 'each once'),
    (['--sizes=800'], 'HEIGHTxWIDTH'),
    (['--sizes=0x10'], 'HEIGHTxWIDTH'),
    (['--sizes=8x8,8x8'], 'each once'),
    (['--sizes=20000x20000'], '178956970'),
    (['--batch=0'], 'at least 1'),
    (['--batch=x'], 'invalid int'),
    (['--bach=2'], '--bach=2'),
    (['--checkpoint=nowhere'], 'nowhere'),
    (['--config.detections.min_score=x'], 'min_score'),
  ],
)
def test_wrong_arguments_are_refused(arguments, words, tmp_path, tiny_run):
  given = [f'--checkpoint={tiny_run[0]}', f'--out={tmp_path / "out"}']
  with pytest.raises(InputError, match=words):
    command_line.main([*given, *arguments])
  assert not (tmp_path / 'out').exists()


def test_published_weights_are_exported_by_name(
  tiny_run, monkeypatch, tmp_path
):
  exported = []
  monkeypatch.setattr(
    'maskrcnn_jax.named_weights.find_checkpoint',
    lambda name: {'torchvision:any': str(tiny_run[0])}[name],
  )
  monkeypatch.setattr(
    'maskrcnn_jax.export.artifact.write_artifact',
    lambda detector, folder, **options: exported.append(detector.step),
  )
  command_line.main(['--checkpoint=torchvision:any', f'--out={tmp_path}'])
  assert exported == [4]


def test_a_folder_with_files_is_refused(tmp_path, tiny_run):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='not empty'):
    command_line.main([f'--checkpoint={tiny_run[0]}', f'--out={tmp_path}'])


@pytest.mark.slow
@pytest.mark.parametrize('output', ['boxes', 'proposals'])
@pytest.mark.parametrize('geometry', ['torchvision', 'legacy'])
def test_models_without_masks_are_exported(output, geometry, key, tmp_path):
  config = tiny.get_config()
  config.model.output, config.geometry = output, geometry
  config.precision = 'fp32'
  rcnn = Rcnn.from_config(
    config,
    num_classes=3,
    dtype=np.float32,
    mesh=cluster.make_local_mesh(),
  )
  variables = cluster.replicate(rcnn.init(key), rcnn.mesh)
  categories = Category(4, 'a'), Category(9, 'b')
  detector = Detector(rcnn, variables, config, categories, 0)
  write_artifact(
    detector, tmp_path, sizes=None, batch_size=1, platforms=('cpu',)
  )
  about = json.loads((tmp_path / 'export.json').read_text())
  pictures = cut_pictures(2)
  found = import_loader(tmp_path).load(tmp_path)(pictures)
  for picture, objects in zip(pictures, found, strict=True):
    (expected,) = detect_live(detector, [picture], about['programs'][0], 1)
    assert len(expected.scores)
    assert_equal_objects(objects, expected, picture)
  assert about['classes'][0]['name'] == (
    'object' if output == 'proposals' else 'a'
  )


# Runs a loader where neither this package nor its dependencies can be imported.
PROGRAM = """
import sys

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in REFUSED:
      raise ImportError(name)

REFUSED = {'maskrcnn_jax', 'pallas_kernels', 'flax', 'flatbuffers', 'orbax',
           'PIL', 'pycocotools', 'ml_collections', 'absl', 'jaxtyping'}
sys.meta_path.insert(0, Refuse())
folder, data, out = sys.argv[1:]
sys.path.insert(0, folder)
from loader import load
import numpy as np

pictures = np.load(data)
found = load(folder)([pictures[str(i)] for i in range(len(pictures.files))])
np.savez(out, **{f'{name}_{i}': value for i, objects in enumerate(found)
                 for name, value in objects.items()})
"""


@pytest.mark.slow
def test_ten_photographs_in_a_process_without_this_package(tiny_run, tmp_path):
  files = sorted(PHOTOS.glob('*.jpg'))[:10] if PHOTOS.is_dir() else []
  if not files:
    pytest.skip('needs the photographs in ../shared/data')
  pictures = [decode_image(file) for file in files]
  detector = load_detector(tiny_run[0], None)
  program = {'picture_size': (640, 640), 'padded_size': (64, 64)}
  scores = [
    detect_live(detector, [picture], program, 1)[0].scores.max(initial=0)
    for picture in pictures
  ]
  # Half of the photographs have objects with a higher score.
  least = float(np.median(scores))
  recipe = [('detections.min_score', str(least))]
  command_line.main(
    [
      f'--checkpoint={tiny_run[0]}',
      f'--out={tmp_path / "model"}',
      '--sizes=480x640,640x640',
      '--batch=4',
      '--platforms=cpu',
      f'--config.detections.min_score={least}',
    ]
  )
  np.savez(
    tmp_path / 'pictures.npz', **{str(i): x for i, x in enumerate(pictures)}
  )
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      PROGRAM,
      tmp_path / 'model',
      tmp_path / 'pictures.npz',
      tmp_path / 'found.npz',
    ],
    capture_output=True,
    text=True,
    timeout=600,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 0, done.stderr
  about = json.loads((tmp_path / 'model' / 'export.json').read_text())
  detector = load_detector(tiny_run[0], read_overrides(recipe))
  groups = {tuple(row['picture_size']): [] for row in about['programs']}
  for i, picture in enumerate(pictures):
    groups[loader.choose_size(picture, list(groups))].append(i)
  assert all(groups.values())
  counts = []
  with np.load(tmp_path / 'found.npz') as file:
    found = dict(file)
  for row in about['programs']:
    rows = groups[tuple(row['picture_size'])]
    for start in range(0, len(rows), 4):
      part = rows[start : start + 4]
      expected = detect_live(detector, [pictures[i] for i in part], row, 4)
      for i, objects in zip(part, expected, strict=True):
        counts.append(len(objects.scores))
        names = ('boxes', 'classes', 'scores', 'masks')
        assert_equal_objects(
          {name: found[f'{name}_{i}'] for name in names}, objects, pictures[i]
        )
  assert min(counts) == 0 < max(counts)
