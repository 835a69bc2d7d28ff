"""Tests of data/coco_instances.py, data/records.py and build_tfds.py."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
from numpy.testing import assert_array_equal
from PIL import Image
from pycocotools import mask
import pytest
import tiny

from maskrcnn_jax.build_tfds import build as build_tfds
from maskrcnn_jax.config import records_of
from maskrcnn_jax.data import canvases, coco_index, image_sets, loader, records
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training import run as train

SHARED = pathlib.Path(__file__).parents[3] / 'shared'

COMPRESSED = mask.frPyObjects(
    {'size': [12, 16], 'counts': [40, 6, 146]}, 12, 16
)
COMPRESSED['counts'] = COMPRESSED['counts'].decode()

# All that a mask may be.
MASKS = [
    [[1.1, 2.3, 9.7, 2.3, 9.7, 11.9]],
    [[1, 1, 5, 1, 5, 5], [6, 6, 9, 6, 9, 9.5]],
    {'size': [12, 16], 'counts': [30, 5, 157]},
    COMPRESSED,
]


def box_of(segmentation):
  """The COCO box of a mask."""
  if isinstance(segmentation, dict):
    counts = segmentation['counts']
    if isinstance(counts, list):
      segmentation = mask.frPyObjects(segmentation, 12, 16)
    return mask.toBbox(segmentation).tolist()
  points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
  low, high = points.min(axis=0), points.max(axis=0)
  return [*low.tolist(), *(high - low).tolist()]


def write_set(folder, *, ids=(7, 'b', 2.5)):
  """Three images: four objects, none, a crowd; sparse, unsorted categories."""
  (folder / 'images').mkdir(parents=True)
  rng = np.random.default_rng(0)
  images = []
  for i, id_ in enumerate(ids):
    pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / 'images' / f'{i}.png')
    images.append(
        {'id': id_, 'file_name': f'{i}.png', 'height': 12, 'width': 16}
    )
  annotations = [
      {'id': 100 - i, 'image_id': ids[0], 'category_id': 9 if i % 2 else 3,
       'bbox': box_of(masks), 'area': 0.1 * i, 'iscrowd': 0,
       'segmentation': masks}
      for i, masks in enumerate(MASKS)
  ]
  del annotations[1]['area'], annotations[2]['id'], annotations[3]['iscrowd']
  annotations.append({
      'id': 'x', 'image_id': ids[2], 'category_id': 3, 'iscrowd': 1,
      'bbox': box_of(MASKS[2]), 'area': 9, 'segmentation': MASKS[2],
  })
  content = {
      'images': images, 'annotations': annotations,
      'categories': [{'id': 9, 'name': 'b'}, {'id': 3, 'name': 'a'}],
  }
  for split in ('train', 'val'):
    (folder / f'instances_{split}.json').write_text(json.dumps(content))
  return content


def build(folder, out, *, name='folder'):
  """Runs the command."""
  arguments = ['build_tfds', f'--manual_dir={folder}', f'--tfds_dir={out}',
               f'--name={name}']
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', arguments)
    build_tfds.main()


def of(out, *, name='folder', split='train'):
  return records.Records(f'coco_instances/{name}', split, str(out))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('set') / 'own'
  content = write_set(folder)
  out = folder.parent / 'tfds'
  build(folder, out)
  return folder, out, content


def assert_same_index(one, other):
  for name, a, b in zip(one._fields, one, other, strict=True):
    if isinstance(a, np.ndarray):
      assert_array_equal(a, b, err_msg=name, strict=True)
    else:
      assert a == b, name


def assert_same_batches(one, other, *, canvas, num_steps=3):
  """Compares the batches of two (index, images) to the bit."""
  streams = []
  for index, images in (one, other):
    rows, _ = image_sets.filter_images(index, keep_empty=True)
    streams.append(loader.train_batches(
        index, canvases.plan_canvases(index.heights, index.widths, **canvas),
        rows, images_dir=images,
        limits=image_sets.find_limits(index, max_objects=64), seed=3,
        start_step=1, num_steps=num_steps, batch_size=2,
    ))
  for (a, rows_a), (b, rows_b) in zip(*streams, strict=True):
    assert_array_equal(rows_a, rows_b)
    for x, y in zip(
        [*a[:-1], *a.outlines], [*b[:-1], *b.outlines], strict=True
    ):
      assert_array_equal(x, y, strict=True)


SMALL = dict(
    short_side=32, long_side=64, padded_sizes=((64, 64),),
    max_source_side=1000,
)


def test_records_give_the_index_and_the_batches_of_the_json(built):
  folder, out, _ = built
  one = image_sets.read_set(folder / 'instances_train.json', folder / 'images')
  other = image_sets.read_set('', '', of(out))
  assert_same_index(one[0], other[0])
  assert_same_batches(one, other, canvas=SMALL)


def test_records_of_coco_give_the_batches_of_the_json(tmp_path):
  folder = SHARED / 'data' / 'coco_mini'
  if not folder.is_dir():
    pytest.skip('needs the shared folder with real images')
  build(folder, tmp_path)
  one = image_sets.read_set(folder / 'instances_val.json', folder / 'images')
  other = image_sets.read_set('', '', of(tmp_path, split='val'))
  assert_same_index(one[0], other[0])
  canvas = dict(
      short_side=100, long_side=200, padded_sizes=((224, 224),),
      max_source_side=1000,
  )
  assert_same_batches(one, other, canvas=canvas, num_steps=10)


def test_records_give_back_what_the_json_says(built):
  folder, out, content = built
  truth, images = records.read_records(of(out, split='val'))
  assert truth['images'] == content['images']
  assert sorted(truth['categories'], key=lambda c: c['id']) == sorted(
      content['categories'], key=lambda c: c['id']
  )
  for a, b in zip(
      truth['annotations'], content['annotations'], strict=True
  ):
    assert a == {'iscrowd': 0} | b  # the key may be missing there
  for row in range(3):
    file = folder / 'images' / f'{row}.png'
    assert images.read(row) == file.read_bytes()


def test_record_images_can_be_sent_to_a_worker(built):
  _, out, _ = built
  _, images = records.read_records(of(out))
  assert pickle.loads(pickle.dumps(images)).read(1) == images.read(1)


def test_a_damaged_image_in_a_record_is_named(built, tmp_path):
  folder = tmp_path / 'own'
  shutil.copytree(built[0], folder)
  (folder / 'images' / '1.png').write_bytes(b'')
  build(folder, tmp_path / 'tfds')
  index, images = image_sets.read_set('', '', of(tmp_path / 'tfds'))
  plan = canvases.plan_canvases(index.heights, index.widths, **SMALL)
  with pytest.raises(InputError, match=r'I03: 1.png is empty .image id .b.'):
    loader.load_row(
        index, plan, images, 1, image_sets.NO_TRUTH, with_truth=False
    )


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        ({'directory': '/nowhere'}, 'tfds_dir is .*/nowhere'),
        ({'directory': ''}, "tfds_dir is ''"),
        ({'name': 'coco'}, "no set 'coco' .* there is coco_instances/folder"),
        ({'split': 'test'}, "no split 'test'; it has train, val"),
    ],
)
def test_records_that_are_not_there_are_named(built, change, what):
  with pytest.raises(InputError, match=what):
    records.read_records(of(built[1])._replace(**change))


def test_a_set_without_masks_is_refused(tmp_path):
  import tensorflow_datasets as tfds

  class NoMasks(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict({'a': np.int64})
      )

    def _split_generators(self, _):
      return {'train': iter([(0, {'a': 1})])}

    def _generate_examples(self):
      """Is not called."""

  NoMasks(
      data_dir=str(tmp_path), file_format='array_record'
  ).download_and_prepare()
  with pytest.raises(InputError, match='A25: .* no masks; give one that'):
    records.read_records(
        records.Records('no_masks', 'train', str(tmp_path))
    )


def break_nothing(folder):
  pass


def remove_image(folder):
  (folder / 'images' / '2.png').unlink()


def remove_first_image(folder):
  (folder / 'images' / '0.png').unlink()


def remove_json(folder):
  for file in folder.glob('*.json'):
    file.unlink()


def rename_class(folder):
  file = folder / 'instances_val.json'
  file.write_text(file.read_text().replace('"name": "b"', '"name": "c"'))


def break_annotation(folder):
  file = folder / 'instances_val.json'
  file.write_text(file.read_text().replace('"image_id": 7', '"image_id": 8'))


def two_files_of_a_split(folder):
  (folder / 'annotations').mkdir()
  shutil.copy(folder / 'instances_val.json', folder / 'annotations')


@pytest.mark.parametrize(
    ('change', 'name', 'what'),
    [
        (remove_image, 'folder', 'I01: 1 of 3 images are not in'),
        (remove_first_image, 'folder', 'I01: 0.png, the first image of'),
        (remove_json, 'folder', 'I01: there is no *.json in'),
        (rename_class, 'folder', 'A21'),
        (break_annotation, 'folder', 'A14'),
        (two_files_of_a_split, 'folder', 'would both be the split val'),
        (break_nothing, '2017', 'COCO 2017 must be unpacked in'),
        (shutil.rmtree, 'folder', 'I01: there is no folder'),
    ],
)
def test_build_tfds_names_what_is_wrong(
    built, tmp_path, capsys, change, name, what
):
  folder = tmp_path / 'own'
  shutil.copytree(built[0], folder)
  change(folder)
  with pytest.raises(SystemExit) as exit_:
    build(folder, tmp_path / 'tfds', name=name)
  assert exit_.value.code == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'error: ' in line
  assert what in line
  assert not list((tmp_path / 'tfds').rglob('dataset_info.json'))


def test_build_tfds_does_not_overwrite(built, capsys):
  with pytest.raises(SystemExit) as exit_:
    build(built[0], built[1])
  assert exit_.value.code == 2
  assert 'is there already' in capsys.readouterr().err


def test_build_tfds_finds_coco_as_it_unpacks(built, tmp_path):
  folder = tmp_path / 'coco'
  for split in ('train', 'val'):
    shutil.copytree(built[0] / 'images', folder / f'{split}2014')
    (folder / 'annotations').mkdir(exist_ok=True)
    shutil.copy(
        built[0] / f'instances_{split}.json',
        folder / 'annotations' / f'instances_{split}2014.json',
    )
  build(folder, tmp_path / 'tfds', name='2014')
  truth, _ = records.read_records(of(tmp_path / 'tfds', name='2014'))
  assert len(truth['images']) == 3


def test_tensorflow_is_not_loaded(built):
  program = (
      'import sys\n'
      'from maskrcnn_jax.data import records\n'
      f'records.read_records(records.Records{tuple(of(built[1]))!r})\n'
      'assert "tensorflow" not in sys.modules\n'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.usefixtures('compilation_cache')
def test_training_on_records_is_training_on_the_json(
    tiny_data, tiny_run, tmp_path
):
  build(tiny_data, tmp_path / 'tfds')
  config = tiny.get_config()
  config.data.tfds_dir = str(tmp_path / 'tfds')
  for part in (config.data.train, config.data.eval):
    part.tfds = 'coco_instances/folder'
  figures = tiny.run_training(config, tmp_path / 'run', skip_test=False)
  workdir, expected = tiny_run
  assert figures == expected
  for name in ('bbox', 'segm', 'coco_results'):
    file = pathlib.Path('inference', f'{name}.json')
    assert (tmp_path / 'run' / file).read_text() == (
        workdir / file
    ).read_text()


def test_records_come_before_the_json_of_the_recipe(tiny_data, tmp_path):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  assert records_of(config, 'train') is None
  config.data.tfds_dir = str(tmp_path)
  config.data.train.tfds = 'coco_instances/folder'
  assert records_of(config, 'train') == records.Records(
      'coco_instances/folder', 'train', str(tmp_path)
  )
  assert records_of(config, 'eval') is None
  with pytest.raises(InputError, match='there is no set .coco_instances/fold'):
    train.train(config, tmp_path / 'run')


def test_read_set_reads_json_and_folder(built):
  index, images = image_sets.read_set(
      built[0] / 'instances_val.json', built[0] / 'images'
  )
  assert isinstance(index, coco_index.CocoIndex)
  assert images == built[0] / 'images'
