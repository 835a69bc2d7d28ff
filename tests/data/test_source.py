"""Tests of data/source.py: COCO files and records give the same data set."""

import pathlib
import shutil

import numpy as np
from numpy.testing import assert_array_equal
import pytest
from tfds_sets import build, files_of, records_of
import tiny

from maskrcnn_jax.config import source_of
from maskrcnn_jax.data import canvases, coco_index, image_sets, loader
from maskrcnn_jax.data.records import Records
from maskrcnn_jax.data.source import (
  CocoFiles,
  read_set,
)
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training import run as train

SHARED = pathlib.Path(__file__).parents[3] / 'shared'


def assert_same_index(one, other):
  for name, a, b in zip(one._fields, one, other, strict=True):
    if isinstance(a, np.ndarray):
      assert_array_equal(a, b, err_msg=name, strict=True)
    else:
      assert a == b, name


def assert_same_batches(one, other, *, canvas, num_steps=3):
  """Asserts that two data sets give equal batches, to the bit."""
  streams = []
  for data_set in (one, other):
    index = data_set.coco_index
    rows, _ = image_sets.filter_images(index, keep_empty=True)
    streams.append(
      loader.train_batches(
        data_set,
        canvases.plan_canvases(index.heights, index.widths, **canvas),
        rows,
        limits=image_sets.find_limits(index, max_objects=64),
        seed=3,
        start_step=1,
        num_steps=num_steps,
        batch_size=2,
      )
    )
  for (a, rows_a), (b, rows_b) in zip(*streams, strict=True):
    assert_array_equal(rows_a, rows_b)
    for x, y in zip(
      [*a[:-2], *a.outlines], [*b[:-2], *b.outlines], strict=True
    ):
      assert_array_equal(x, y, strict=True)


SMALL = dict(
  short_side=32,
  long_side=64,
  padded_sizes=((64, 64),),
  max_source_side=1000,
)


def test_records_give_the_index_and_the_batches_of_the_json(tfds_set):
  folder, out, _ = tfds_set
  one = read_set(files_of(folder))
  other = read_set(records_of(out))
  assert_same_index(one.coco_index, other.coco_index)
  assert_same_batches(one, other, canvas=SMALL)


def test_records_of_coco_give_the_batches_of_the_json(tmp_path):
  folder = SHARED / 'data' / 'coco_mini'
  if not folder.is_dir():
    pytest.skip('needs the shared folder with real images')
  build(folder, tmp_path)
  one = read_set(files_of(folder, split='val'))
  other = read_set(records_of(tmp_path, split='val'))
  assert_same_index(one.coco_index, other.coco_index)
  canvas = dict(
    short_side=100,
    long_side=200,
    padded_sizes=((224, 224),),
    max_source_side=1000,
  )
  assert_same_batches(one, other, canvas=canvas, num_steps=10)


def test_a_damaged_image_in_a_record_is_named(tfds_set, tmp_path):
  folder = tmp_path / 'own'
  shutil.copytree(tfds_set[0], folder)
  (folder / 'images' / '1.png').write_bytes(b'')
  build(folder, tmp_path / 'tfds')
  data_set = read_set(records_of(tmp_path / 'tfds'))
  index = data_set.coco_index
  plan = canvases.plan_canvases(index.heights, index.widths, **SMALL)
  with pytest.raises(InputError, match=r'I03: 1.png is empty .image id .b.'):
    loader.load_row(data_set, plan, 1, image_sets.NO_TRUTH, with_truth=False)


def test_read_content_gives_the_json(tfds_set):
  folder, out, content = tfds_set
  assert files_of(folder).read_content() == content
  assert records_of(out).read_content()['images'] == content['images']


@pytest.mark.parametrize(
  ('source', 'option', 'what'),
  [
    (CocoFiles('a', 'none.json'), '--', 'none.json; --annotations says'),
    (
      CocoFiles('a', 'none.json'),
      '--config.data.eval.',
      'none.json; --config.data.eval.annotations says',
    ),
    (CocoFiles('', 'a.json'), '--', '--images=DIR is missing: .* a.json'),
    (
      Records('a', 'train', '/nowhere'),
      '--config.data.train.',
      '--config.data.tfds_dir is ./nowhere',
    ),
  ],
)
def test_check_is_there_names_the_option(source, option, what):
  with pytest.raises(InputError, match=what):
    source.check_is_there(option)


def test_a_source_is_named_in_messages(tmp_path):
  assert str(CocoFiles('a', 'b.json')) == 'b.json'
  assert str(Records('a/b', 'val', 'c')) == 'a/b, split val, in c'


def test_records_come_before_the_json_of_the_recipe(tiny_data, tmp_path):
  config = tiny.with_data(tiny.get_config(), tiny_data)
  assert source_of(config, 'train') == CocoFiles(
    str(tiny_data / 'images'), str(tiny_data / 'instances_train.json')
  )
  config.data.tfds_dir = str(tmp_path)
  config.data.train.tfds = 'coco_instances/folder'
  assert source_of(config, 'train') == Records(
    'coco_instances/folder', 'train', str(tmp_path)
  )
  assert isinstance(source_of(config, 'eval'), CocoFiles)
  assert source_of(tiny.get_config(), 'train') is None
  with pytest.raises(InputError, match='there is no set .coco_instances/fold'):
    train.train(config, tmp_path / 'run')


def test_read_set_reads_json_and_folder(tfds_set):
  index, images = read_set(files_of(tfds_set[0], split='val'))
  assert isinstance(index, coco_index.CocoIndex)
  assert images == tfds_set[0] / 'images'


@pytest.mark.slow
@pytest.mark.usefixtures('compilation_cache')
def test_training_on_records_is_training_on_the_json(
  tiny_tfds, tiny_run, tmp_path
):
  config = tiny.get_config()
  config.data.tfds_dir = str(tiny_tfds)
  for part in (config.data.train, config.data.eval):
    part.tfds = 'coco_instances/folder'
  figures = tiny.run_training(config, tmp_path / 'run', skip_test=False)
  workdir, expected = tiny_run
  assert figures == expected
  for name in ('bbox', 'segm', 'coco_results'):
    file = pathlib.Path('inference', f'{name}.json')
    assert (tmp_path / 'run' / file).read_text() == (workdir / file).read_text()
